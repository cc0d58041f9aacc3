"""The plot of a comparison: the score against the one thing that varies between the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.method import CONTROL
from gkd_plugin.compare.report import error_of, results_of, scores_of
from gkd_plugin.compare.scores import SCORES
from gkd_plugin.compare.statistics import mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
        folder: gets ``<score>_against_<what varies>``, in place of an earlier comparison's.

    Returns:
        The files; none where nothing or more than one thing varies.
    """
    for name in plot_names():  # of an earlier comparison, which results.csv does not hold
        (folder / name).unlink(missing_ok=True)
    figure = settings_figure(results, score)
    if figure is None:
        return []
    files = [folder / f"{score}_against_{_varying(results)[0]}{suffix}" for suffix in _SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def settings_figure(results: Sequence[Result], score: str) -> Figure | None:
    """The score against the one thing that varies between the settings, a line with error bars for each method.

    ``None`` where nothing or more than one thing varies.
    """
    from matplotlib.figure import Figure

    varying = _varying(results)
    if len(varying) != 1:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    _draw(figure.subplots(), results, score, varying[0])
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _varying(results: Sequence[Result]) -> list[str]:
    return [axis for axis in _AXES if len({getattr(result.cell.setting, axis) for result in results}) > 1]


def plot_names() -> list[str]:
    """The names of all files that :func:`draw_settings` may write."""
    return [f"{score}_against_{axis}{suffix}" for score in SCORES for axis in _AXES for suffix in _SUFFIXES]


def _draw(axes: Axes, results: Sequence[Result], score: str, axis: str) -> None:
    """A line for each method that has results."""
    settings = sorted({result.cell.setting for result in results}, key=lambda there: float(getattr(there, axis)))
    for index, method in enumerate(dict.fromkeys(result.cell.method for result in results)):
        values = {getattr(there, axis): scores_of(results_of(results, method, there), score) for there in settings}
        means = {place: mean_of(found) for place, found in values.items() if found}
        if not means:
            continue
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
    axes.set_xlabel(_AXES[axis])
    axes.set_ylabel(f"{score} in % ({error_of(results)})")
    axes.set_xticks([getattr(setting, axis) for setting in settings])
    axes.grid(alpha=0.3)
