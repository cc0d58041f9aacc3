"""Draws the figures of these pages from the recorded results: ``python docs/make_figure.py`` (extra ``report``)."""

import csv
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

from gkd_plugin.compare.report import Mean, mean_of, paired_difference

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "tests/benchmarks/results/tiny100_second_teacher.csv"
FIGURE = DOCS / "accuracy_against_overlap.png"
PHOTOS = RESULTS.with_name("photos.csv")
PHOTOS_FIGURE = DOCS / "gain_on_photos.png"

# method in the CSV file → (label, colour, marker, line style); Okabe and Ito's colours
LINES = {
    "refilled-joint": ("ReFilled, stage joint", "#D55E00", "o", "-"),
    "pkt": ("PKT", "#009E73", "D", "-"),
    "refilled": ("ReFilled, as published", "#0072B2", "s", "-"),
    "rkd": ("RKD", "#CC79A7", "v", "-"),
    "ce": ("cross-entropy", "black", "^", "--"),
}
SAME_CLASSES_ONLY = {"kd-tuned": ("KD", "P"), "dist-tuned": ("DIST", "X"), "srd": ("SRD", "*")}
# label → the case in the CSV file, and the case of its cross-entropy
CASES = {
    "pretrained,\n10 of each": ("pretrained, 60 epochs", "pretrained, 60 epochs"),
    "pretrained, 10 of each,\n20 epochs": ("pretrained, 20 views", "pretrained, 20 views"),
    "pretrained, 30 of each,\n20 epochs": ("pretrained, 30 of each", "pretrained, 30 of each"),
    "pretrained, 10 of each\n+ photos without labels": ("pretrained, unlabelled", "pretrained, 20 views"),
    "from scratch,\n10 of each": ("from scratch, 100 views", "from scratch, 100 views"),
    "from scratch, 30 of each,\n40 epochs": ("from scratch, 30 of each", "from scratch, 30 of each"),
    "from scratch, 30 of each,\n100 epochs": ("from scratch, 30 of each, 100 epochs",) * 2,
    "from scratch, 10 of each\n+ photos without labels": ("from scratch, unlabelled", "from scratch, 100 views"),
}
FURTHER = {"pretrained, further methods": ("pretrained, further methods",) * 2}  # in a table, not in the figure
FURTHER_METHODS = {
    "vkd": "VkD",
    "inverted-projector": "inverted projector",
    "srd-features": "SRD, features",
    "finetuned-kd": "fine-tuned teacher, then KD",
}
PHOTO_LINES = {
    "refilled-joint": LINES["refilled-joint"],
    "probe-kd": ("probe, then KD", "#0072B2", "s", ""),
    "queue-kl": ("queue KL", "#CC79A7", "v", ""),
    "pkt": LINES["pkt"],
}


def means(path: Path = RESULTS) -> dict[str, dict[float, Mean]]:
    """Method → overlap in per cent → top-1, mean of the last three epochs."""
    found: defaultdict[str, defaultdict[float, dict[tuple[int, None], float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "finished":
                found[row["method"]][float(row["overlap"])][int(row["seed"]), None] = float(row["val_top1_last3"])
    return {
        method: {overlap: mean_of(scores) for overlap, scores in sorted(of.items())} for method, of in found.items()
    }


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


@cache
def photo_scores(path: Path = PHOTOS) -> dict[tuple[str, str], dict[tuple[int, None], float]]:
    """(case, method) → top-1 by choice of the labelled photos."""
    found: defaultdict[tuple[str, str], dict[tuple[int, None], float]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["case"], row["method"]][int(row["seed"]), None] = float(row["top1"])
    return found


def gain(data: str, label: str, method: str) -> Mean | None:
    """Difference from cross-entropy in points, paired by choice of the labelled photos; of a case in :data:`CASES`."""
    (case, control), scores = {**CASES, **FURTHER}[label], photo_scores()
    return paired_difference(scores[f"{data}, {case}", method], scores[f"{data}, {control}", "ce"])


def photo_table(label: str) -> list[str]:
    """The rows of a case in when-it-pays.md."""
    rows, scores = list[str](), photo_scores()
    names = {"ce": "cross-entropy", **{method: line[0] for method, line in PHOTO_LINES.items()}, **FURTHER_METHODS}
    for method, name in names.items():
        cells = []
        for data in ("clothes", "flowers"):
            case = {**CASES, **FURTHER}[label][method == "ce"]
            found, difference = scores[f"{data}, {case}", method], gain(data, label, method)
            cells += [
                shown(mean_of(found)) if found else "",
                "" if difference is None or method == "ce" else shown(difference, "+"),
            ]
        if any(cells):
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def shown(mean: Mean, sign: str = "") -> str:
    """With its standard error, where there is one."""
    error = "" if mean.error is None else f" ± {mean.error:.1f}"
    return f"{mean.value:{sign}.1f}{error}".replace("-", "−")


def draw_photos(path: Path = PHOTOS_FIGURE) -> None:
    """Writes the figure of the photos: a panel for each data set, a row for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, data in zip(figure.subplots(1, 2, sharey=True), ("flowers", "clothes"), strict=True):
        for place, (method, (label, colour, marker, _)) in enumerate(PHOTO_LINES.items()):
            found = {row: mean for row, case in enumerate(CASES) if (mean := gain(data, case, method)) is not None}
            axes.errorbar(
                [mean.value for mean in found.values()],
                [row + 0.15 * place - 0.2 for row in found],
                xerr=[mean.error or 0 for mean in found.values()],
                label=label if data == "flowers" else None,
                color=colour,
                marker=marker,
                linestyle="",
                capsize=3,
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(CASES)), CASES)
        axes.set_xlabel("points above cross-entropy")
        axes.set_title(data)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(PHOTO_LINES), frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw()
    draw_photos()
    for case in {**CASES, **FURTHER}:
        sys.stdout.write("\n".join([case.replace("\n", " "), *photo_table(case), "\n"]))
