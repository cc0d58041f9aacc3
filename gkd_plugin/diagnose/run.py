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

PARTS = ("emphasis", "tuples", "embedding", "confusion")


def diagnose(
    run_folder: Path,
    *,
    output: Path | None = None,
    device: str | None = None,
    known: Sequence[int] | None = None,
    projection: str = "pca",
) -> tuple[RestoredRun, dict[str, Any], Path]:
    """Looks at a finished run; writes ``diagnostics.json`` and each part's picture as PNG and SVG.

    ``known``: the student's labels of the classes that the teacher knows, by default what the training set says. Gives
    the run, what ``diagnostics.json`` holds (:func:`look`), and the folder.
    """
    one_of("--projection", projection, PROJECTIONS)
    folder = run_folder / "diagnostics" if output is None else output
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    run = RestoredRun(run_folder, device)
    for label in known or []:
        whole_number("--known: class index", label, low=0, high=len(run.class_names) - 1)
    report = {"run": str(run_folder), "seed": run.seed, **look(run, folder, PARTS, known, projection)}
    write_json(folder / "diagnostics.json", report)
    logger.info("figures and pictures are in %s", folder)
    return run, report, folder


def look(
    run: RestoredRun, folder: Path, names: Sequence[str], known: Sequence[int] | None = None, projection: str = "pca"
) -> dict[str, Any]:
    """The figures of some of the :data:`PARTS`, and under ``left_out`` why others are not there; draws into folder."""
    parts: dict[str, Callable[[], Any]] = {
        "emphasis": lambda: report_emphasis(run, folder, known),
        "tuples": lambda: report_tuples(run.folder.path / "metrics.jsonl", folder),
        "embedding": lambda: report_embedding(run, folder, projection),
        "confusion": lambda: report_confusion(run, folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"left_out": {}}
    for name in names:
        for suffix in SUFFIXES:  # of an earlier look, of which this one may leave some out
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        try:
            found[name] = parts[name]()
        except LeftOut as reason:
            found["left_out"][name] = str(reason)
            logger.warning("%s is left out: %s", name, reason)
    return found


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
