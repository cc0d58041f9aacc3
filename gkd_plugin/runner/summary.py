"""What a run says about itself: ``summary.json``, a line for each epoch, its final figures, the table at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gkd_plugin.config.stages import Stage
from gkd_plugin.data import evaluation_view, labels_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.accuracy import evaluate, is_accuracy, student_ncm
from gkd_plugin.runner.devices import Placement
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.run_folder import package_versions
from gkd_plugin.runner.training import LAST_EPOCHS

__all__ = ["aligned", "epoch_line", "final_figures", "log_final", "new_summary", "results_table"]

logger = logging.getLogger(__name__)

HEADER = ("run", "student", "parameters", "classes", "teacher", "epochs", "top-1 %")


def new_summary(config: Path, seed: int, placement: Placement, parts: Parts | None = None) -> dict[str, Any]:
    """``summary.json`` of a run that starts; without its parts what every run has to say."""
    summary: dict[str, Any] = {
        "config": str(config),
        "status": "running",
        "seed": seed,
        **{key: str(value) if isinstance(value, torch.device) else value for key, value in vars(placement).items()},
        "versions": package_versions(),
    }
    if parts is None:
        return summary
    return summary | {
        "processes": parts.accelerator.num_processes,
        "student": {
            "key": parts.student_entry["key"],
            "kwargs": {k: v for k, v in (parts.student_entry.get("kwargs") or {}).items() if _is_plain(v)},
            "classes": parts.num_classes,
            "parameters": sum(p.numel() for p in parts.student.parameters()),
        },
        "stages": {stage.name: {"num_epochs": stage.epochs, "epochs": []} for stage in parts.stages},
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict | type(None))


def final_figures(parts: Parts, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the last epoch's weights on the test set, and the mean of the last three validation figures.

    On the test set both of the classifier and, by nearest class mean, of the embedding.
    """
    last = list(summary["stages"].values())[-1]["epochs"]
    final: dict[str, Any] = {}
    if parts.test_loader is not None:
        parts.student.eval()
        with parts.accelerator.autocast():  # the student was unwrapped at the end of its last stage
            final |= evaluate(parts.student, parts.test_loader, parts.accelerator, "test").as_dict()
            final |= _final_ncm(parts)
        final["on"] = "test"
    elif "top1" in last[-1]:
        final |= {key: value for key, value in last[-1].items() if is_accuracy(key)}
        final["on"] = "validation"
    tail = [row["top1"] for row in last[-LAST_EPOCHS:] if "top1" in row]
    if tail:
        final["val_top1_last3"] = sum(tail) / len(tail)
    return final


def _final_ncm(parts: Parts) -> dict[str, float]:
    """What the embedding knows without its classifier; where that cannot be measured, a log line says why."""
    obstacle = _ncm_obstacle(parts)
    if obstacle or parts.embedding_path is None:
        logger.info("final NCM accuracy: not measured, %s", obstacle)
        return {}
    loaders = parts.box.train_data_loader, parts.test_loader
    return student_ncm(parts.student, parts.embedding_path, *loaders, parts.accelerator).as_dict("ncm_")


def _ncm_obstacle(parts: Parts) -> str:
    if parts.embedding_path is None:
        return "the configuration does not show which module gives the student's embedding"
    dataset = parts.box.train_data_loader.dataset
    try:
        present = set(labels_of(dataset))
    except ConfigError as error:
        return str(error)
    missing = [label for label in range(parts.num_classes or max(present)) if label not in present]
    if missing:
        return f"no training sample of class {', '.join(map(str, missing[:10]))}"
    return "" if evaluation_view(dataset)[1] else "the training set offers no evaluation view"


def epoch_line(stage: Stage, row: Mapping[str, Any]) -> str:
    """One epoch in one line of text."""
    hidden = {"stage", "epoch", "seconds", "images_per_second"}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key not in hidden)
    return f"{stage.name} {row['epoch']}/{stage.epochs}  {shown}  {row['images_per_second']:.0f} img/s"


def log_final(final: Mapping[str, Any]) -> None:
    """The figures of a finished run, in one or two lines of the log."""
    if "top1" not in final:
        return
    others = [key for key in final if is_accuracy(key) and key != "top1" and not key.startswith("ncm_")]
    shown = "".join(f", {key.replace('_', ' ').replace('top', 'top-')} {final[key]:.2f} %" for key in others)
    logger.info("final top-1 on the %s set %.2f %%%s", final["on"], final["top1"], shown)
    if "ncm_top1" in final:
        logger.info("final NCM accuracy of the embedding on the test set %.2f %%", final["ncm_top1"])


def results_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The finished runs (as ``summary.json``) side by side, as aligned text."""
    return aligned([HEADER, *(_row(summary) for summary in summaries)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first row underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    student = summary["student"]
    top1 = summary["final"].get("top1")
    ncm = summary.get("teacher", {}).get("ncm_top1")
    return (
        Path(summary["config"]).stem,
        str(student["kwargs"].get("model_name", student["key"])),
        f"{student['parameters']:,}",
        str(student["classes"] or "?"),
        "none" if "teacher" not in summary else "yes" if ncm is None else f"NCM {ncm:.1f} %",
        "+".join(str(stage["num_epochs"]) for stage in summary["stages"].values()),
        "–" if top1 is None else f"{top1:.2f}",
    )
