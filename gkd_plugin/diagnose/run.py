"""``refilled diagnose``: every part in turn, one file of figures, a short table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_plugin.diagnose.emphasis import SCORES, report_emphasis
from gkd_plugin.diagnose.figures import PROJECTIONS, SUFFIXES, report_confusion, report_embedding, report_tuples
from gkd_plugin.diagnose.restore import LeftOut, RestoredRun
from gkd_plugin.errors import ConfigError, one_of, whole_number
from gkd_plugin.runner.run_folder import aligned, write_json

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

    ``known``: the student's labels of the classes that the teacher knows, by default what the training set says. The
    report is what ``diagnostics.json`` holds: figures of each part, and under ``left_out`` why others are not there.
    """
    one_of("--projection", projection, PROJECTIONS)
    folder = run_folder / "diagnostics" if output is None else output
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    run = RestoredRun(run_folder, device)
    for label in known or []:
        whole_number("--known: class index", label, low=0, high=len(run.class_names) - 1)
    parts: dict[str, Callable[[], Any]] = {
        "emphasis": lambda: report_emphasis(run, folder, known),
        "tuples": lambda: report_tuples(run_folder / "metrics.jsonl", folder),
        "embedding": lambda: report_embedding(run, folder, projection),
        "confusion": lambda: report_confusion(run, folder),
    }
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
    write_json(folder / "diagnostics.json", report)
    logger.info("figures and pictures are in %s", folder)
    return report


def figures_table(report: Mapping[str, Any]) -> str:
    """The main figures of a report as aligned text."""
    found: dict[str, dict[str, str]] = {}  # row → set of images → cell
    if "embedding" in report:
        for key, panel in report["embedding"]["panels"].items():
            found[f"NCM {key.replace('_', ' ')}"] = {report["embedding"]["on"]: f"{panel['ncm_top1']:.2f} %"}
    if "confusion" in report:
        found["top-1 final"] = {report["confusion"]["on"]: f"{report['confusion']['top1']:.2f} %"}
    for split, part in report.get("emphasis", {}).get("images", {}).items():
        for name, title in SCORES.items():
            area = part["auc"][name]
            found.setdefault(f"AUC {title}", {})[split] = "–" if area is None else f"{area:.3f}"
    splits = [split for split in ("train", "validation", "test") if any(split in cells for cells in found.values())]
    rows = [["", *splits], *([name, *(cells.get(split, "") for split in splits)] for name, cells in found.items())]
    return aligned(rows) if found else ""
