"""What a comparison leaves behind: a table and ``results.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from gkd_plugin.compare.grid import FAILED, FINISHED, NOT_SERVED, Result
from gkd_plugin.compare.method import CONTROL, Method
from gkd_plugin.compare.scores import SCORES
from gkd_plugin.compare.setting import Setting
from gkd_plugin.compare.statistics import Mean, Repetition, mean_of, paired_difference
from gkd_plugin.runner.run_folder import write_atomically
from gkd_plugin.runner.summary import aligned

__all__ = ["COLUMNS", "comparison_table", "error_of", "results_of", "scores_of", "write_csv"]

COLUMNS = ("method", *Setting.__dataclass_fields__, "task", "seed", "status", *SCORES, "teacher_ncm_top1", "seconds")
"""Of ``results.csv``; then the reason of a cell without a result, and its folder."""


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
    notes = [_note(results, score, has_control), *_teacher(results), *_reasons(results)]
    return "\n".join([aligned([header, *rows]), *notes])


def _note(results: Sequence[Result], score: str, has_control: bool) -> str:
    difference = f"; − {CONTROL}: paired difference, p of the t-test" if has_control else ""
    same = "" if error_of(results).startswith("one") else " (the teacher is the same in all)"
    return f"{score} in %, {error_of(results)}{same}{difference}"


def _teacher(results: Sequence[Result]) -> list[str]:
    """What the teacher knows of each setting's classes, on average over tasks: how much it may help."""
    found: dict[Setting, list[float]] = {result.cell.setting: [] for result in results}
    for result in results:
        ncm = result.summary.get("teacher", {}).get("ncm_top1")
        if ncm is not None:
            found[result.cell.setting].append(ncm)
    texts = [f"{setting.title} {fmean(values):.1f}" for setting, values in found.items() if values]
    return [f"the teacher's NCM accuracy on validation images in %: {', '.join(texts)}"] if texts else []


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


def error_of(results: Sequence[Result]) -> str:
    """What ``±`` is."""
    has_tasks = any(result.cell.task is not None for result in results)
    repetitions = {result.cell.task if has_tasks else result.cell.seed for result in results}
    if len(repetitions) < 2:
        return "one task" if has_tasks else "one seed"
    return "mean ± 95 % confidence over tasks" if has_tasks else "mean ± standard error over seeds"


def _header(setting: Setting, has_control: bool) -> list[str]:
    return [setting.title, f"− {CONTROL}"] if has_control else [setting.title]


def _cells(results: Sequence[Result], method: Method, setting: Setting, score: str, has_control: bool) -> list[str]:
    here = results_of(results, method, setting)
    values = scores_of(here, score)
    bad = [result for result in here if result.status != FINISHED]
    if not values:
        reason = f"no {score}" if not bad else "failed" if bad[0].status == FAILED else bad[0].reason
        return [reason, *([""] if has_control else [])]
    failed = sum(result.status == FAILED for result in here)
    shown = _mean(mean_of(values)) + (f", {failed} failed" if failed else "")
    if not has_control:
        return [shown]
    control = scores_of(
        [result for result in results if (result.cell.method.name, result.cell.setting) == (CONTROL, setting)], score
    )
    difference = None if method.name == CONTROL else paired_difference(values, control)
    if difference is None:
        return [shown, ""]
    p_value = "" if difference.p_value is None else f" (p {difference.p_value:.2g})"
    common = len(values.keys() & control.keys())
    pairs = "" if common == len(values) else f", {common} of {len(values)} paired"
    return [shown, f"{_mean(difference, signed=True)}{p_value}{pairs}"]


def results_of(results: Sequence[Result], method: Method, setting: Setting) -> list[Result]:
    """Those of a method in a setting."""
    return [result for result in results if (result.cell.method, result.cell.setting) == (method, setting)]


def scores_of(results: Sequence[Result], score: str) -> dict[Repetition, float]:
    """The score of every finished cell that has one, by seed and task."""
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
    writer.writerow([*COLUMNS, "reason", "folder"])
    for result in results:
        cell = result.cell
        scores = [_rounded(result.score(name)) for name in SCORES]
        teacher = _rounded(result.summary.get("teacher", {}).get("ncm_top1"))
        seconds = result.summary.get("wall_seconds")
        head = (cell.method.name, *vars(cell.setting).values(), cell.task, cell.seed, result.status)
        folder = "" if result.status == NOT_SERVED else cell.folder
        writer.writerow([*head, *scores, teacher, seconds, result.reason, folder])
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
