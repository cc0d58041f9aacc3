"""Draws accuracy_against_overlap.png from the recorded results: ``python docs/make_figure.py`` (extra ``report``)."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "tests/benchmarks/results/tiny100_second_teacher.csv"
FIGURE = DOCS / "accuracy_against_overlap.png"

# method in the CSV file → (label, colour, marker, line style); Okabe and Ito's colours
LINES = {
    "refilled-joint": ("ReFilled, stage joint", "#D55E00", "o", "-"),
    "pkt": ("PKT", "#009E73", "D", "-"),
    "refilled": ("ReFilled, as published", "#0072B2", "s", "-"),
    "rkd": ("RKD", "#CC79A7", "v", "-"),
    "ce": ("cross-entropy", "black", "^", "--"),
}
SAME_CLASSES_ONLY = {"kd-tuned": ("KD", "P"), "dist-tuned": ("DIST", "X"), "srd": ("SRD", "*")}


class Mean(NamedTuple):
    """Mean over the seeds and its standard error; ``None`` for one seed."""

    value: float
    error: float | None


def means(path: Path = RESULTS) -> dict[str, dict[float, Mean]]:
    """Method → overlap in per cent → top-1, mean of the last three epochs."""
    found: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "finished":
                found[row["method"], float(row["overlap"])].append(float(row["val_top1_last3"]))
    made: defaultdict[str, dict[float, Mean]] = defaultdict(dict)
    for (method, overlap), values in sorted(found.items()):
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        made[method][overlap] = Mean(fmean(values), error)
    return dict(made)


def draw(path: Path = FIGURE) -> None:
    """Writes the figure."""
    from matplotlib.figure import Figure

    scores = means()
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for method, (label, colour, marker, style) in LINES.items():
        points = scores[method]
        axes.errorbar(
            list(points),
            [mean.value for mean in points.values()],
            [mean.error or 0 for mean in points.values()],
            label=label,
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=3,
        )
    for place, (method, (label, marker)) in enumerate(SAME_CLASSES_ONLY.items()):
        mean = scores[method][100.0]
        axes.errorbar(
            104 + 4 * place,  # beside the line, which they would cover
            mean.value,
            mean.error or 0,
            label=f"{label} (same classes only)",
            color="#666666",
            marker=marker,
            markersize=8,
            linestyle="",
            capsize=3,
        )
    axes.set_xticks([0, 50, 100])
    axes.set_xlabel("student's classes that the teacher knows, %")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw()
