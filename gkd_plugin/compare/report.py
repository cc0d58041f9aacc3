"""What a comparison leaves behind: a table with means, errors and paired tests, ``results.csv`` and a plot."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import sem, t, ttest_1samp

from gkd_plugin.compare.grid import NOT_SERVED, Result
from gkd_plugin.compare.method import CONTROL, Method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.data.files import write_atomically
from gkd_plugin.runner.run_folder import FAILED, FINISHED, aligned

SCORES = ("top1", "val_top1_last3", "top5", "ncm_top1", "old_top1", "new_top1", "harmonic_mean")
"""What ``--score`` takes: figures of ``final`` in a run's ``summary.json``."""
COLUMNS = ("method", *Setting.__dataclass_fields__, "task", "seed", "status", *SCORES, "teacher_ncm_top1")
COLUMNS += ("preparation_seconds", "seconds")
"""Of ``results.csv``; then the reason of a cell without a result, and its folder."""
_AXES = {
    "overlap": "overlap of the teacher's and the student's classes in %",
    "ways": "classes of a task",
    "shots": "labelled images of each class",
    "memory": "exemplars of each old class",
}
PLOT = re.compile(rf"({'|'.join(SCORES)})_(of_methods|against_({'|'.join(_AXES)}))\.(png|svg)")
"""Name of a plot; a folder holds those of the last comparison alone."""
_MARKERS = "osD^vPX*<>"
Scores = Mapping[tuple[int, "int | None"], float]  # seed and few-shot task (None without tasks) → score


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds, or over n tasks."""

    value: float
    error: float | None  # s/√n; over tasks half the 95 % confidence interval, t(0.975; n−1)·s/√n; None for n = 1
    p_value: float | None = None  # of the two-sided paired t-test; None below two pairs and for equal differences


def mean_of(values: Scores) -> Mean:
    """Mean over seeds with its standard error; with tasks, over tasks (each the mean of its seeds) with its interval.

    >>> mean_of({(0, None): 1.0, (1, None): 3.0})
    Mean(value=2.0, error=1.0, p_value=None)
    """
    sample, has_tasks = _sample(values), any(task is not None for _, task in values)
    factor = t.ppf(0.975, len(sample) - 1) if has_tasks else 1.0
    return Mean(fmean(sample), None if len(sample) < 2 else float(factor * sem(sample)))


def paired_difference(ours: Scores, control: Scores) -> Mean | None:
    """Ours − control over what both have, with SciPy's paired t-test; ``None`` where that is nothing."""
    differences = {key: value - control[key] for key, value in ours.items() if key in control}
    if not differences:
        return None
    mean = mean_of(differences)
    rounding = 1e-9 * max(1.0, *map(abs, [*ours.values(), mean.value]))  # equal differences differ by no more
    if mean.error is None or mean.error <= rounding:
        return mean
    return replace(mean, p_value=float(ttest_1samp(_sample(differences), 0).pvalue))


def _sample(values: Scores) -> list[float]:
    """What counts as independent: the seeds, or the tasks."""
    found = _grouped((seed if task is None else task, value) for (seed, task), value in values.items())
    return [fmean(own) for own in found.values()]


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    found = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found


def _by_place(results: Sequence[Result]) -> dict[tuple[Method | None, Setting], list[Result]]:
    """The results of each method in each setting."""
    return _grouped(((result.cell.method, result.cell.setting), result) for result in results)


def _scores(results: Sequence[Result], score: str) -> Scores:
    """Of every one that has the score."""
    found = {(result.cell.seed, result.cell.task): result.score(score) for result in results}
    return {key: value for key, value in found.items() if value is not None}


def comparison_table(results: Sequence[Result], score: str) -> str:
    """:func:`comparison_rows` as aligned text."""
    rows, notes = comparison_rows(results, score)
    return "\n".join([aligned(rows), *notes])


def comparison_rows(results: Sequence[Result], score: str) -> tuple[list[list[str]], list[str]]:
    """Methods down, settings across: mean ± error, then the difference from ``ce``; notes say what these are."""
    places = _by_place(results)
    methods = list(dict.fromkeys(result.cell.method for result in results))
    settings = list(dict.fromkeys(result.cell.setting for result in results))
    control = next((method for method in methods if method.name == CONTROL), None)
    columns = 2 if control else 1  # of a setting
    titles = [text for setting in settings for text in (setting.title, f"− {CONTROL}")[:columns]]
    rows = [["method", *titles, "preparation + training"]]
    for method in methods:
        pairs = (_mean_and_difference(places[method, there], places[control, there], score) for there in settings)
        rows.append([method.title, *(text for pair in pairs for text in pair[:columns]), _seconds(results, method)])
    error = _error_of(results)
    note = f"{score} in %, {error}"
    if not error.startswith("one") and not any(method.teacher for method in methods):
        note += " (the teacher is the same in all)"
    if control:
        note += f"; − {CONTROL}: paired difference, p of the t-test"
    return rows, [note, *_teacher(results), *_reasons(results)]


def _mean_and_difference(results: Sequence[Result], controls: Sequence[Result], score: str) -> tuple[str, str]:
    values, control = _scores(results, score), _scores(controls, score)
    bad = [result for result in results if result.status != FINISHED]
    if not values:
        reason = bad[0].reason if bad else f"no {score}"
        return "failed" if bad and bad[0].status == FAILED else reason, ""
    failed = sum(result.status == FAILED for result in bad)
    mean = _text(mean_of(values)) + (f", {failed} failed" if failed else "")
    difference = None if results is controls else paired_difference(values, control)
    if difference is None:
        return mean, ""
    p_value = "" if difference.p_value is None else f" (p {difference.p_value:.2g})"
    common = len(values.keys() & control.keys())
    pairs = "" if common == len(values) else f", {common} of {len(values)} paired"
    return mean, f"{_text(difference, '+')}{p_value}{pairs}"


def _seconds(results: Sequence[Result], method: Method) -> str:
    """Of preparation and of all that follows, on average over the finished cells."""
    found = [result.seconds for result in results if (result.cell.method, result.status) == (method, FINISHED)]
    if not found:
        return ""
    prepared, total = map(fmean, zip(*found, strict=True))
    return f"{prepared:.1f} + {total - prepared:.1f} s"


def _text(mean: Mean, sign: str = "") -> str:
    value = f"{mean.value:{sign}.1f}"
    return value if mean.error is None else f"{value} ± {mean.error:.1f}"


def _error_of(results: Sequence[Result]) -> str:
    """What ``±`` is."""
    seeds, tasks = {result.cell.seed for result in results}, {result.cell.task for result in results} - {None}
    if len(tasks or seeds) < 2:
        return "one task" if tasks else "one seed"
    return "mean ± 95 % confidence over tasks" if tasks else "mean ± standard error over seeds"


def _teacher(results: Sequence[Result]) -> list[str]:
    """What the configuration's teacher knows of each setting's classes, on average over tasks: how much it may help."""
    given = [result for result in results if result.cell.method.teacher is None]
    answers = [(result.cell.setting, result.summary.get("teacher", {}).get("ncm_top1")) for result in given]
    found = _grouped((setting, ncm) for setting, ncm in answers if ncm is not None)
    texts = [f"{setting.title} {fmean(values):.1f}" for setting, values in found.items()]
    return [f"the teacher's NCM accuracy before training in %: {', '.join(texts)}"] if texts else []


def _reasons(results: Sequence[Result]) -> list[str]:
    """One line for each reason why cells failed."""
    failed = _grouped((result.reason, result.cell.title) for result in results if result.status == FAILED)
    more = {reason: f" and {len(titles) - 1} more" if len(titles) > 1 else "" for reason, titles in failed.items()}
    return [f"failed: {titles[0]}{more[reason]}: {reason}" for reason, titles in failed.items()]


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One row for each cell; figures to four decimals."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, "reason", "folder"])
    for result in results:
        cell, figures = result.cell, [*map(result.score, SCORES), result.summary.get("teacher", {}).get("ncm_top1")]
        row = [cell.method.name, *vars(cell.setting).values(), cell.task, cell.seed, result.status]
        row += [None if figure is None else round(figure, 4) for figure in figures]
        folder = "" if result.status == NOT_SERVED else cell.folder
        seconds = (round(value, 3) for value in result.seconds) if result.status == FINISHED else ("", "")
        writer.writerow([*row, *seconds, result.reason, folder])
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def draw_settings(results: Sequence[Result], score: str, folder: Path) -> Figure | None:
    """The score against the one thing that varies between the settings: a line with error bars for each method.

    Where nothing varies, a dot with an error bar for each method. ``None`` where several things vary, or where no cell
    has the score. PNG and SVG are ``<score>_against_<what varies>`` or ``<score>_of_methods``.
    """
    for path in folder.iterdir():  # of an earlier comparison, which results.csv no longer holds
        if PLOT.fullmatch(path.name):
            path.unlink()
    varying = [axis for axis in _AXES if len({getattr(result.cell.setting, axis) for result in results}) > 1]
    if len(varying) > 1:
        return None
    axis, figure = "".join(varying), Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    settings = sorted({result.cell.setting for result in results}, key=lambda there: getattr(there, axis, 0))
    by_place = _by_place(results)
    for index, method in enumerate(dict.fromkeys(result.cell.method for result in results)):
        scores = {there: _scores(by_place[method, there], score) for there in settings}
        places = [getattr(there, axis) if axis else method.title for there, found in scores.items() if found]
        means = [mean_of(found) for found in scores.values() if found]
        values, errors = [mean.value for mean in means], [mean.error or 0 for mean in means]
        style: dict[str, Any] = {"marker": _MARKERS[index % len(_MARKERS)], "capsize": 3, "label": method.title}
        if method.name == CONTROL:
            style |= {"linestyle": "--", "color": "black"}
        if means:
            axes.errorbar(places, values, errors, **style)
    if not axes.containers:
        return None
    if axis:
        axes.set_xlabel(_AXES[axis])
        axes.set_xticks([getattr(setting, axis) for setting in settings])
        figure.legend(loc="outside right upper", frameon=False)
    else:
        axes.margins(x=0.1)
        for label in axes.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right")
    axes.set_ylabel(f"{score} in % ({_error_of(results)})")
    axes.grid(alpha=0.3)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{score}_{f'against_{axis}' if axis else 'of_methods'}.{suffix}", dpi=150)
    return figure
