"""Which classes the final student takes for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from gkd_plugin.diagnose.figures import LeftOut, new_figure, save_figure
from gkd_plugin.diagnose.restore import RestoredRun, outputs

__all__ = ["draw", "most_confused", "report_confusion", "row_shares"]

_NAMED = 40  # classes, whose names fit beside the picture
_WRITTEN = 12  # classes, whose shares fit into the cells


def report_confusion(run: RestoredRun, folder: Path) -> dict[str, Any]:
    """The figures, and the picture ``confusion``, of the final student.

    Raises:
        LeftOut: there are neither test nor validation images.
    """
    images = run.test
    if images is None:
        raise LeftOut("there are no test images (test.test_data_loader) and no validation images")
    run.load_student(run.folder.student)
    logits, labels = outputs(run.student, images, run.accelerator, "confusion")
    counts = confusion_matrix(labels.numpy(), logits.argmax(dim=1).numpy(), labels=np.arange(logits.shape[1]))
    names = [*run.class_names, *map(str, range(len(run.class_names), len(counts)))][: len(counts)]
    draw(row_shares(counts), names, images.name, folder)
    return {
        "on": images.name,
        "samples": len(labels),
        "top1": 100 * float(np.trace(counts)) / max(len(labels), 1),
        "classes": names,
        "counts": counts.tolist(),
        "most_confused": most_confused(counts, names),
    }


def row_shares(counts: NDArray[Any]) -> NDArray[Any]:
    """``[C, C]`` counts (true class, predicted class) → shares of each true class; 0 where it has no sample."""
    shares: NDArray[Any] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def most_confused(counts: NDArray[Any], names: list[str], pairs: int = 20) -> list[dict[str, Any]]:
    """The pairs (true class, predicted class) with the largest shares of the true class, without those never seen."""
    wrong = row_shares(counts)
    np.fill_diagonal(wrong, 0)
    found = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:pairs]:
        true, predicted = divmod(int(index), len(counts))
        share, samples = float(wrong[true, predicted]), int(counts[true, predicted])
        if share > 0:
            found.append({"true": names[true], "predicted": names[predicted], "samples": samples, "share": share})
    return found


def draw(shares: NDArray[Any], names: list[str], split: str, folder: Path) -> None:
    """The picture ``confusion``, with names and numbers where they fit."""
    count = len(shares)
    side = float(np.clip(2.5 + 0.3 * count, 4.5, 14))
    figure, ((axis,),) = new_figure(side + 1, side)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="true class", title=f"final student, {split} images")
    if count <= _NAMED:
        axis.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axis.set_yticks(range(count), names)
    if count <= _WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
    save_figure(figure, folder, "confusion")
