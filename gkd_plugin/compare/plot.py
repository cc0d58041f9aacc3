"""The plot of a comparison: the score against the one thing that varies between the settings, or of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.method import CONTROL
from gkd_plugin.compare.report import SCORES, error_of, results_of, scores_of
from gkd_plugin.compare.statistics import mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_settings", "plot_names", "settings_figure"]

_AXES = {
    "overlap": "overlap of the teacher's and the student's classes in %",
    "ways": "classes of a task",
    "shots": "labelled images of each class",
    "memory": "exemplars of each old class",
}
_SUFFIXES = (".png", ".svg")
_MARKERS = "osD^vPX*<>"


def draw_settings(results: Sequence[Result], score: str, folder: Path) -> list[Path]:
    """Writes :func:`settings_figure` as PNG and SVG.

    Args:
        results: of the grid.
        score: figure of ``summary.final``.
        folder: gets ``<score>_against_<what varies>`` or ``<score>_of_methods``, in place of an earlier comparison's.

    Returns:
        The files; none where there is no figure.
    """
    for name in plot_names():  # of an earlier comparison, which results.csv does not hold
        (folder / name).unlink(missing_ok=True)
    figure = settings_figure(results, score)
    if figure is None:
        return []
    files = [folder / f"{_stem(score, *_varying(results))}{suffix}" for suffix in _SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def plot_names() -> list[str]:
    """The names of all files that :func:`draw_settings` may write."""
    stems = [_stem(score, *axis) for score in SCORES for axis in [(), *((axis,) for axis in _AXES)]]
    return [f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]


def _stem(score: str, axis: str | None = None) -> str:
    return f"{score}_of_methods" if axis is None else f"{score}_against_{axis}"


def settings_figure(results: Sequence[Result], score: str) -> Figure | None:
    """The score against the one thing that varies between the settings: a line with error bars for each method.

    Where nothing varies, a dot with an error bar for each method. ``None`` where several things vary, or where no cell
    has the score.
    """
    from matplotlib.figure import Figure

    varying = _varying(results)
    if len(varying) > 1:
        return None
    axis = varying[0] if varying else None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    settings = sorted({result.cell.setting for result in results}, key=lambda there: getattr(there, axis or "", 0))
    for index, method in enumerate(dict.fromkeys(result.cell.method for result in results)):
        values = {
            getattr(there, axis) if axis else method.title: scores_of(results_of(results, method, there), score)
            for there in settings
        }
        means = {place: mean_of(found) for place, found in values.items() if found}
        if means:
            axes.errorbar(
                list(means),
                [mean.value for mean in means.values()],
                [mean.error or 0 for mean in means.values()],
                label=method.title,
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle="--" if method.name == CONTROL else "-",
                color="black" if method.name == CONTROL else None,
                capsize=3,
            )
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
    axes.set_ylabel(f"{score} in % ({error_of(results)})")
    axes.grid(alpha=0.3)
    return figure


def _varying(results: Sequence[Result]) -> list[str]:
    return [axis for axis in _AXES if len({getattr(result.cell.setting, axis) for result in results}) > 1]
