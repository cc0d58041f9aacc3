"""``refilled diagnose``: every part in turn, one file of figures, a short table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_plugin.diagnose.confusion import report_confusion
from gkd_plugin.diagnose.embedding import PROJECTIONS, report_embedding
from gkd_plugin.diagnose.emphasis import SCORES, check_known, report_emphasis
from gkd_plugin.diagnose.figures import SUFFIXES, LeftOut
from gkd_plugin.diagnose.restore import restore
from gkd_plugin.diagnose.tuples import report_tuples
from gkd_plugin.errors import ConfigError, one_of
from gkd_plugin.runner.run_folder import write_atomically

__all__ = ["diagnose", "figures_table"]

logger = logging.getLogger(__name__)


def diagnose(
    run_folder: Path,
    *,
    output: Path | None = None,
    device: str | None = None,
    known: Sequence[int] | None = None,
    projection: str = "pca",
) -> dict[str, Any]:
    """Looks at a finished run; writes ``diagnostics.json`` and each part's picture as PNG and SVG.

    Args:
        run_folder: of a run with a teacher.
        output: where the files go, by default ``diagnostics`` in the run folder.
        device: goes before the configuration's ``device.default``.
        known: the student's labels of the classes that the teacher knows, by default what the training set says.
        projection: 'pca' or 'tsne'.

    Returns:
        What is in ``diagnostics.json``: the figures of each part, and under ``left_out`` why others are not there.

    Raises:
        ConfigError: the folder, an option, weights or data cannot be used.
    """
    one_of("--projection", projection, PROJECTIONS)
    folder = run_folder / "diagnostics" if output is None else output
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    run = restore(run_folder, device)
    parts: dict[str, Callable[[], Any]] = {
        "emphasis": lambda: report_emphasis(run, folder, known),
        "tuples": lambda: report_tuples(run_folder / "metrics.jsonl", folder),
        "embedding": lambda: report_embedding(run, folder, projection),
        "confusion": lambda: report_confusion(run, folder),
    }
    check_known(known or [], len(run.class_names))  # before pictures of an earlier look go
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"run": str(run_folder), "seed": run.seed, "left_out": {}}
    for name, part in parts.items():
        for suffix in SUFFIXES:  # of an earlier look, of which this one may leave some out
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        try:
            report[name] = part()
        except LeftOut as reason:
            report["left_out"][name] = str(reason)
            logger.warning("%s is left out: %s", name, reason)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "diagnostics.json", lambda path: path.write_text(text, encoding="utf-8"))
    logger.info("figures and pictures are in %s", folder)
    return report


def figures_table(report: Mapping[str, Any]) -> str:
    """The main figures as aligned text.

    Args:
        report: as :func:`diagnose` returns it.
    """
    found: dict[str, dict[str, str]] = {}  # row → set of images → cell
    if "embedding" in report:
        on = report["embedding"]["on"]
        for key, panel in report["embedding"]["panels"].items():
            found[f"NCM {key.replace('_', ' ')}"] = {on: f"{panel['ncm_top1']:.2f} %"}
    if "confusion" in report:
        found["top-1 final"] = {report["confusion"]["on"]: f"{report['confusion']['top1']:.2f} %"}
    for split, part in report.get("emphasis", {}).get("images", {}).items():
        for name, title in SCORES.items():
            area = part["auc"][name]
            found.setdefault(f"AUC {title}", {})[split] = "–" if area is None else f"{area:.3f}"
    splits = [split for split in ("train", "validation", "test") if any(split in cells for cells in found.values())]
    rows = [("", *splits), *((name, *(cells.get(split, "") for split in splits)) for name, cells in found.items())]
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
