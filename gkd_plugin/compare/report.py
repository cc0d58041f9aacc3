"""What a comparison leaves behind: a table, ``results.csv``, and the plot of accuracy against what varies."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gkd_plugin.compare.grid import FAILED, FINISHED, Result
from gkd_plugin.compare.method import CONTROL, Method
from gkd_plugin.compare.scores import SCORES
from gkd_plugin.compare.setting import Setting
from gkd_plugin.compare.statistics import Mean, Repetition, mean_of, paired_difference
from gkd_plugin.runner.checkpoints import write_atomically
from gkd_plugin.runner.table import aligned

__all__ = ["comparison_table", "draw_settings", "write_csv"]


def comparison_table(results: Sequence[Result], score: str) -> str:
    """Methods down, settings across: mean ± error, then the difference from ``ce``; a last line says what these are."""
    methods = list(dict.fromkeys(result.cell.method for result in results))
    settings = list(dict.fromkeys(result.cell.setting for result in results))
    has_control = any(method.name == CONTROL for method in methods)
    header = ["method", *(column for setting in settings for column in _header(setting, has_control))]
    rows = [
        [method.title, *(cell for setting in settings for cell in _cells(results, method, setting, score, has_control))]
        for method in methods
    ]
    notes = [_note(results, score, has_control), *_reasons(results)]
    return "\n".join([aligned([header, *rows]), *notes])


def _note(results: Sequence[Result], score: str, has_control: bool) -> str:
    difference = f"; − {CONTROL}: paired difference, p of the t-test" if has_control else ""
    return f"{score} in %, {_error_of(results)}{difference}"


def _reasons(results: Sequence[Result]) -> list[str]:
    """One line for each reason why cells failed."""
    by_reason: dict[str, list[str]] = {}
    for result in results:
        if result.status == FAILED:
            by_reason.setdefault(result.reason, []).append(result.cell.title)
    return [
        f"failed: {titles[0]}{f' and {len(titles) - 1} more' if len(titles) > 1 else ''}: {reason}"
        for reason, titles in by_reason.items()
    ]


def _error_of(results: Sequence[Result]) -> str:
    has_tasks = any(result.cell.task is not None for result in results)
    return "mean ± 95 % confidence over tasks" if has_tasks else "mean ± standard error over seeds"


def _header(setting: Setting, has_control: bool) -> list[str]:
    return [setting.title, f"− {CONTROL}"] if has_control else [setting.title]


def _cells(results: Sequence[Result], method: Method, setting: Setting, score: str, has_control: bool) -> list[str]:
    here = _of(results, method, setting)
    values = _by_repetition(here, score)
    bad = [result for result in here if result.status != FINISHED]
    if not values:
        reason = f"no {score}" if not bad else "failed" if bad[0].status == FAILED else bad[0].reason
        return [reason, *([""] if has_control else [])]
    failed = sum(result.status == FAILED for result in here)
    shown = _mean(mean_of(values)) + (f", {failed} failed" if failed else "")
    if not has_control:
        return [shown]
    control = [result for result in results if (result.cell.method.name, result.cell.setting) == (CONTROL, setting)]
    difference = None if method.name == CONTROL else paired_difference(values, _by_repetition(control, score))
    if difference is None:
        return [shown, ""]
    p_value = "" if difference.p_value is None else f" (p {difference.p_value:.2g})"
    pairs = "" if difference.count == mean_of(values).count else f", {difference.count} paired"
    return [shown, f"{_mean(difference, signed=True)}{p_value}{pairs}"]


def _of(results: Sequence[Result], method: Method, setting: Setting) -> list[Result]:
    return [result for result in results if (result.cell.method, result.cell.setting) == (method, setting)]


def _by_repetition(results: Sequence[Result], score: str) -> dict[Repetition, float]:
    return {
        result.cell.repetition: value
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
    writer.writerow(
        ["method", *_AXES, "task", "seed", "status", *SCORES, "teacher_ncm_top1", "seconds", "reason", "folder"]
    )
    for result in results:
        cell = result.cell
        scores = [_rounded(result.score(name)) for name in SCORES]
        teacher = _rounded(result.summary.get("teacher", {}).get("ncm_top1"))
        seconds = result.summary.get("wall_seconds")
        head = (cell.method.name, *vars(cell.setting).values(), cell.task, cell.seed, result.status)
        writer.writerow([*head, *scores, teacher, seconds, result.reason, cell.folder])
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def draw_settings(results: Sequence[Result], score: str, folder: Path) -> list[Path]:
    """The score against the one thing that varies between the settings, with error bars, as PNG and SVG.

    Args:
        results: of the grid.
        score: figure of ``summary.final``.
        folder: gets ``<score>_against_<what varies>``, in place of an earlier comparison's.

    Returns:
        The files; none where nothing or more than one thing varies.
    """
    from matplotlib.figure import Figure

    for stale in (folder / f"{name}_against_{axis}{end}" for name in SCORES for axis in _AXES for end in _SUFFIXES):
        stale.unlink(missing_ok=True)  # of an earlier comparison, which results.csv does not hold
    settings = list(dict.fromkeys(result.cell.setting for result in results))
    varying = [axis for axis in _AXES if len({getattr(setting, axis) for setting in settings}) > 1]
    if len(varying) != 1:
        return []
    (axis,) = varying
    settings.sort(key=lambda setting: float(getattr(setting, axis)))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(result.cell.method for result in results))
    for index, method in enumerate(methods):
        points = [
            (getattr(setting, axis), mean_of(values))
            for setting in settings
            if (values := _by_repetition(_of(results, method, setting), score))
        ]
        if not points:
            continue
        axes.errorbar(
            [value for value, _ in points],
            [mean.value for _, mean in points],
            [mean.error or 0 for _, mean in points],
            label=method.title,
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="--" if method.name == CONTROL else "-",
            color="black" if method.name == CONTROL else None,
            capsize=3,
        )
    axes.set_xlabel(_AXES[axis])
    axes.set_ylabel(f"{score} in % ({_error_of(results)})")
    axes.set_xticks([getattr(setting, axis) for setting in settings])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    files = [folder / f"{score}_against_{axis}{suffix}" for suffix in _SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


_AXES = {
    "overlap": "overlap of the teacher's and the student's classes in %",
    "ways": "classes of a task",
    "shots": "labelled images of each class",
    "memory": "exemplars of each old class",
}
_SUFFIXES = (".png", ".svg")
_MARKERS = "osD^vPX*<>"
