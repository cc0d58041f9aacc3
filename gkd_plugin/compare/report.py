"""What a comparison leaves behind: a table, ``results.csv``, and the plot of accuracy against overlap."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gkd_plugin.compare.class_space import ClassSpace
from gkd_plugin.compare.grid import FAILED, FINISHED, Result
from gkd_plugin.compare.method import CONTROL, Method
from gkd_plugin.compare.scores import SCORES
from gkd_plugin.compare.statistics import Mean, mean_of, paired_difference
from gkd_plugin.runner.checkpoints import write_atomically
from gkd_plugin.runner.table import aligned

__all__ = ["comparison_table", "draw_overlap", "write_csv"]


def comparison_table(results: Sequence[Result], score: str) -> str:
    """Methods down, class spaces across: mean ± standard error over seeds, then the difference from ``ce``."""
    methods = list(dict.fromkeys(result.cell.method for result in results))
    spaces = list(dict.fromkeys(result.cell.space for result in results))
    has_control = any(method.name == CONTROL for method in methods)
    header = ["method", *(column for space in spaces for column in _header(space, has_control))]
    rows = [
        [method.title, *(cell for space in spaces for cell in _cells(results, method, space, score, has_control))]
        for method in methods
    ]
    return aligned([header, *rows])


def _header(space: ClassSpace, has_control: bool) -> list[str]:
    return [space.title, f"− {CONTROL}"] if has_control else [space.title]


def _cells(results: Sequence[Result], method: Method, space: ClassSpace, score: str, has_control: bool) -> list[str]:
    here = [result for result in results if (result.cell.method, result.cell.space) == (method, space)]
    values = _by_seed(here, score)
    bad = [result for result in here if result.status != FINISHED]
    if not values:
        return [bad[0].reason if bad else f"no {score}", *([""] if has_control else [])]
    failed = sum(result.status == FAILED for result in here)
    shown = _mean(mean_of(list(values.values()))) + (f", {failed} failed" if failed else "")
    if not has_control:
        return [shown]
    control = [result for result in results if (result.cell.method.name, result.cell.space) == (CONTROL, space)]
    difference = None if method.name == CONTROL else paired_difference(values, _by_seed(control, score))
    if difference is None:
        return [shown, ""]
    p_value = "" if difference.p_value is None else f" (p {difference.p_value:.2g})"
    return [shown, f"{_mean(difference, signed=True)}{p_value}"]


def _by_seed(results: Sequence[Result], score: str) -> dict[int, float]:
    return {
        result.cell.seed: value
        for result in results
        if result.status == FINISHED and (value := result.score(score)) is not None
    }


def _mean(mean: Mean, *, signed: bool = False) -> str:
    value = f"{mean.value:+.1f}" if signed else f"{mean.value:.1f}"
    return value if mean.error is None else f"{value} ± {mean.error:.1f}"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One row for each cell; figures to four decimals."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["method", "overlap", "seed", "status", *SCORES, "teacher_ncm_top1", "seconds", "reason", "folder"])
    for result in results:
        cell = result.cell
        scores = [_rounded(result.score(name)) for name in SCORES]
        teacher = _rounded(result.summary.get("teacher", {}).get("ncm_top1"))
        seconds = result.summary.get("wall_seconds")
        head = (cell.method.name, cell.space.overlap, cell.seed, result.status)
        writer.writerow([*head, *scores, teacher, seconds, result.reason, cell.folder])
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def draw_overlap(results: Sequence[Result], score: str, stem: Path) -> list[Path]:
    """Accuracy against overlap, error bars of one standard error, as PNG and SVG; nothing for fewer than two overlaps.

    Args:
        results: of the grid.
        score: figure of ``summary.final``.
        stem: path without suffix.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    overlaps = sorted({result.cell.space.overlap for result in results if result.cell.space.overlap is not None})
    if len(overlaps) < 2:
        return []
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(result.cell.method for result in results))
    for index, method in enumerate(methods):
        points = [
            (overlap, mean_of(list(values.values())))
            for overlap in overlaps
            if (
                values := _by_seed(
                    [r for r in results if r.cell.method == method and r.cell.space.overlap == overlap], score
                )
            )
        ]
        if not points:
            continue
        axes.errorbar(
            [overlap for overlap, _ in points],
            [mean.value for _, mean in points],
            [mean.error or 0 for _, mean in points],
            label=method.title,
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="--" if method.name == CONTROL else "-",
            color="black" if method.name == CONTROL else None,
            capsize=3,
        )
    axes.set_xlabel("overlap of the teacher's and the student's classes in %")
    axes.set_ylabel(f"{score} in % (mean ± standard error)")
    axes.set_xticks(overlaps)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


_MARKERS = "osD^vPX*<>"
