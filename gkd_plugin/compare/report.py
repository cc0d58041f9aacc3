"""What a comparison leaves behind: a table and ``results.csv``."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from gkd_plugin.compare.grid import FAILED, FINISHED, NOT_SERVED, Result
from gkd_plugin.compare.method import CONTROL, Method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.compare.statistics import Mean, Repetition, mean_of, paired_difference
from gkd_plugin.runner.run_folder import write_atomically
from gkd_plugin.runner.summary import aligned

__all__ = ["COLUMNS", "OF_GROUPS", "SCORES", "comparison_table", "error_of", "results_of", "scores_of", "write_csv"]

OF_GROUPS = ("old_top1", "new_top1", "harmonic_mean")
"""Figures of test sets that tell old and new classes apart."""
SCORES = ("top1", "val_top1_last3", "top5", "ncm_top1", *OF_GROUPS)
"""Figures of ``final`` in a run's ``summary.json`` that a comparison may rank by."""
COLUMNS = ("method", *Setting.__dataclass_fields__, "task", "seed", "status", *SCORES, "teacher_ncm_top1", "seconds")
"""Of ``results.csv``; then the reason of a cell without a result, and its folder."""


def comparison_table(results: Sequence[Result], score: str) -> str:
    """Methods down, settings across: mean ± error, then the difference from ``ce``; a last line says what these are."""
    methods = list(dict.fromkeys(result.cell.method for result in results))
    settings = list(dict.fromkeys(result.cell.setting for result in results))
    has_control = any(method.name == CONTROL for method in methods)
    columns = 2 if has_control else 1  # of a setting
    rows = [["method", *(text for setting in settings for text in (setting.title, f"− {CONTROL}")[:columns])]]
    for method in methods:
        pairs = (_mean_and_difference(results, method, setting, score) for setting in settings)
        rows.append([method.title, *(text for pair in pairs for text in pair[:columns])])
    error = error_of(results)
    note = f"{score} in %, {error}" + ("" if error.startswith("one") else " (the teacher is the same in all)")
    if has_control:
        note += f"; − {CONTROL}: paired difference, p of the t-test"
    return "\n".join([aligned(rows), note, *_teacher(results), *_reasons(results)])


def _mean_and_difference(results: Sequence[Result], method: Method, setting: Setting, score: str) -> tuple[str, str]:
    here = results_of(results, method, setting)
    values = scores_of(here, score)
    bad = [result for result in here if result.status != FINISHED]
    failed = sum(result.status == FAILED for result in here)
    if not values:
        return (f"no {score}" if not bad else "failed" if bad[0].status == FAILED else bad[0].reason), ""
    mean = _mean(mean_of(values)) + (f", {failed} failed" if failed else "")
    of_control = [result for result in results if (result.cell.method.name, result.cell.setting) == (CONTROL, setting)]
    control = scores_of(of_control, score)
    difference = None if method.name == CONTROL else paired_difference(values, control)
    if difference is None:
        return mean, ""
    p_value = "" if difference.p_value is None else f" (p {difference.p_value:.2g})"
    common = len(values.keys() & control.keys())
    pairs = "" if common == len(values) else f", {common} of {len(values)} paired"
    return mean, f"{_mean(difference, signed=True)}{p_value}{pairs}"


def _teacher(results: Sequence[Result]) -> list[str]:
    """What the teacher knows of each setting's classes, on average over tasks: how much it may help."""
    found: defaultdict[Setting, list[float]] = defaultdict(list)
    for result in results:
        if (ncm := _teacher_ncm(result)) is not None:
            found[result.cell.setting].append(ncm)
    texts = [f"{setting.title} {fmean(values):.1f}" for setting, values in found.items()]
    return [f"the teacher's NCM accuracy on validation images in %: {', '.join(texts)}"] if texts else []


def _teacher_ncm(result: Result) -> float | None:
    value: float | None = result.summary.get("teacher", {}).get("ncm_top1")
    return value


def _reasons(results: Sequence[Result]) -> list[str]:
    """One line for each reason why cells failed."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.status == FAILED:
            by_reason[result.reason].append(result.cell.title)
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
        teacher = _rounded(_teacher_ncm(result))
        seconds = result.summary.get("wall_seconds")
        head = (cell.method.name, *vars(cell.setting).values(), cell.task, cell.seed, result.status)
        folder = "" if result.status == NOT_SERVED else cell.folder
        writer.writerow([*head, *scores, teacher, seconds, result.reason, folder])
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
