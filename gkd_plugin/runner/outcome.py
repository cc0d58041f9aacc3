"""What a run says of itself: ``summary.json``, a line for each epoch, its final figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from gkd_plugin.runner.accuracy import evaluate
from gkd_plugin.runner.devices import Placement
from gkd_plugin.runner.ncm_readout import final_ncm
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.run_folder import package_versions
from gkd_plugin.runner.training import LAST_EPOCHS

__all__ = ["epoch_line", "final_figures", "log_final", "new_summary"]

logger = logging.getLogger(__name__)


def new_summary(config: str, seed: int, placement: Placement, parts: Parts) -> dict[str, Any]:
    """What ``summary.json`` says of a run that begins.

    Args:
        config: path of the configuration.
        seed: of every random number.
        placement: devices and precision.
        parts: of the run.
    """
    return {
        "config": config,
        "status": "running",
        "seed": seed,
        "device": str(placement.device),
        "teacher_device": None if placement.teacher is None else str(placement.teacher),
        "precision": placement.precision,
        "teacher_dtype": placement.teacher_dtype,
        "channels_last": placement.channels_last,
        "compile": placement.compile,
        "processes": parts.accelerator.num_processes,
        "versions": package_versions(),
        "student": {
            "key": parts.student_entry["key"],
            "kwargs": {k: v for k, v in (parts.student_entry.get("kwargs") or {}).items() if _is_plain(v)},
            "classes": parts.num_classes,
            "parameters": sum(p.numel() for p in parts.student.parameters()),
        },
        "stages": {name: {"num_epochs": count, "epochs": []} for name, count in parts.stages.items()},
    }


def final_figures(parts: Parts, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the last epoch's weights on the test set, and the mean of the last three validation figures.

    On the test set that is the classifier's, and the embedding's by nearest class mean.
    """
    rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
    last = list(summary["stages"].values())[-1]["epochs"]
    final: dict[str, Any] = {}
    if parts.test_loader is not None:
        parts.student.eval()
        with parts.accelerator.autocast():  # the student was unwrapped at the end of its last stage
            final |= evaluate(parts.student, parts.test_loader, parts.accelerator, "test").as_dict()
            final |= final_ncm(
                parts.student,
                parts.embedding_path,
                parts.box.train_data_loader,
                parts.test_loader,
                parts.accelerator,
                num_classes=parts.num_classes,
            )
        final["on"] = "test"
    elif "top1" in rows[-1]:
        final |= {key: value for key, value in rows[-1].items() if _is_accuracy(key)}
        final["on"] = "validation"
    tail = [row["top1"] for row in last[-LAST_EPOCHS:] if "top1" in row]
    if tail:
        final["val_top1_last3"] = sum(tail) / len(tail)
    return final


def epoch_line(row: Mapping[str, Any], stages: Mapping[str, int]) -> str:
    """One epoch in one line of text."""
    head = f"{row['stage']} {row['epoch']}/{stages[row['stage']]}"
    hidden = {"stage", "epoch", "seconds", "images_per_second"}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key not in hidden)
    return f"{head}  {shown}  {row['images_per_second']:.0f} img/s"


def log_final(final: Mapping[str, Any]) -> None:
    """The figures of a finished run, in one or two lines of the log."""
    if "top1" not in final:
        return
    others = [key for key in final if _is_accuracy(key) and key != "top1" and not key.startswith("ncm_")]
    shown = "".join(f", {key.replace('_', ' ').replace('top', 'top-')} {final[key]:.2f} %" for key in others)
    logger.info("final top-1 on the %s set %.2f %%%s", final["on"], final["top1"], shown)
    if "ncm_top1" in final:
        logger.info("final NCM accuracy of the embedding on the test set %.2f %%", final["ncm_top1"])


def _is_accuracy(key: str) -> bool:
    """Whether a metrics row's key is one of ``Accuracy.as_dict``."""
    return key in ("top1", "top5", "harmonic_mean") or key.endswith("_top1")


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict | type(None))
