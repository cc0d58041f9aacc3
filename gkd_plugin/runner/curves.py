"""How pictures are drawn, and ``curves.png``: loss, accuracy and learning rate over the epochs (extra ``report``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot, which may open a window
from matplotlib.ticker import MaxNLocator

from gkd_plugin.data.files import write_atomically
from gkd_plugin.runner.accuracy import is_accuracy
from gkd_plugin.runner.run_folder import CURVES

# Petroff's ten colours ("Accessible color sequences for data visualization", 2021), told apart by the colour-blind
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
TEACHER = "#333333"  # dashed or dotted
_TERMS = {
    "loss": "total, weighted",
    "cross_entropy": "cross-entropy with the labels",
    "relationship": "relationships between images",
    "local_classifier": "the teacher's local classifier",
}
_NO_TERMS = {"stage", "epoch", "lr", "loss", "images_per_second", "seconds", "tuples", "negatives", "emphasis"}
_NO_TERMS |= {"preparation_seconds", "waiting"}
_TEACHER = {"ncm_top1": ("nearest class mean", "--"), "top1": ("own classifier", ":")}
Summaries = Mapping[str, Mapping[str, Any]]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes as rows of a grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def write_curves(folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces ``curves.png``; raises ConfigError where it cannot be written."""
    figure = draw_curves({folder.name: summary})
    write_atomically(folder / CURVES, lambda file: figure.savefig(file, format="png", dpi=120))


def draw_curves(summaries: Summaries) -> Figure:
    """Runs by name (their ``summary.json``) over their epochs; of several only the total loss is drawn."""
    figure = Figure(figsize=(7.5, 8.5))  # with fixed margins: a layout that is computed takes as long again
    axes = loss, accuracy, lr = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.5))
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.06, top=0.96, hspace=0.16)
    is_one = len(summaries) == 1
    for colour, (name, summary) in zip(PALETTE * len(summaries), summaries.items(), strict=False):
        rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
        _plot(loss, rows, "loss", _TERMS["loss"] if is_one else name, color=colour, linewidth=2)
        _plot(lr, rows, "lr", name, color=colour)
        _draw_accuracy(accuracy, rows, summary, "student" if is_one else name, colour)
        if is_one:
            terms = dict.fromkeys(key for row in rows for key in row if _is_term(key))
            for other, key in zip(PALETTE[1:] * len(terms), terms, strict=False):
                _plot(loss, rows, key, _TERMS.get(key, key.replace("_", " ")), color=other)
    values = [value for line in loss.lines for value in line.get_ydata()]
    loss.set_yscale("log" if min(values, default=0) > 0 else "linear")
    _draw_teachers(accuracy, summaries)
    loss.set_title("Training loss" if is_one else "Training loss (of different methods: not to be compared)")
    loss.set_ylabel(f"loss ({loss.get_yscale()})")
    accuracy.set(title="Accuracy: images whose class is named right", ylabel="top-1 in %", ylim=(0, 100))
    lr.set(title="Learning rate: how large the steps are", ylabel="learning rate", xlabel="epoch")
    lr.xaxis.set_major_locator(MaxNLocator(integer=True))
    if is_one:
        _mark_stages(axes, *(summary["stages"] for summary in summaries.values()))
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1] and (axis is not lr or not is_one):
            axis.legend(fontsize="small")
    return figure


def _draw_accuracy(
    axis: Any, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], name: str, colour: str
) -> None:
    _plot(axis, rows, "top1", f"{name}, validation images", color=colour)
    _plot(axis, rows, "ncm_top1", f"{name}, its embedding alone (nearest class mean)", color=colour, marker="s")
    final, at, when = summary.get("final", {}), len(rows), "at the end"
    if "kept" in summary:  # an epoch of the last stage
        at += summary["kept"]["epoch"] - len([*summary["stages"].values()][-1]["epochs"])
        when = "of the epoch that is kept"
    if final.get("on") == "test":
        told = f"{name}, test images {when}: {final['top1']:.1f} %"
        axis.plot(at, final["top1"], "*", color=colour, markersize=13, label=told, clip_on=False, zorder=3)


def _draw_teachers(axis: Any, summaries: Summaries) -> None:
    """Lines across; one for runs that share their teacher."""
    found = {(key, run.get("teacher", {}).get(key)): name for name, run in summaries.items() for key in _TEACHER}
    for (key, value), name in found.items():
        if value is not None:
            (of, style), whose = _TEACHER[key], "" if len(summaries) == 1 else f" of {name}"
            axis.axhline(value, color=TEACHER, linestyle=style, label=f"teacher{whose}, {of}: {value:.1f} %")


def _is_term(key: str) -> bool:
    return key not in _NO_TERMS and not is_accuracy(key.removeprefix("ncm_"))


def _plot(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, title: str, **style: Any) -> None:
    """Over the epochs that have the key, counted through all stages."""
    points = [(epoch, row[key]) for epoch, row in enumerate(rows, 1) if key in row]
    if points:
        axis.plot(*zip(*points, strict=True), **{"marker": "." if len(points) < 30 else None, "label": title, **style})


def _mark_stages(axes: Sequence[Any], stages: Mapping[str, Any]) -> None:
    """A line where one stage ends and the next begins."""
    end = 0
    for name, stage in stages.items():
        begin, end = end, end + len(stage["epochs"])
        if len(stages) > 1:
            place = {"transform": axes[0].get_xaxis_transform(), "ha": "center", "color": "#555555"}
            axes[0].text((begin + end + 1) / 2, 0.02, name, **place)
        for axis in axes if begin else ():
            axis.axvline(begin + 0.5, color="#94a4a2", linewidth=1)
