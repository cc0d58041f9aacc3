"""Two-dimensional pictures of the validation images: the student over time, and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional

from gkd_plugin.diagnose.figures import PALETTE, LeftOut, add_legend, new_figure, save_figure
from gkd_plugin.diagnose.restore import NO_CENTRES, RestoredRun, outputs
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.runner.accuracy import embedding_of

__all__ = ["PROJECTIONS", "Panel", "draw", "ncm_top1", "project", "report_embedding", "shown_samples"]

PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE"}
_PER_CLASS = 200  # points; more cover each other
_MARKERS = "os^Dv"


class Panel(NamedTuple):
    """``[n, 2]`` points with labels; the NCM accuracy of all images in per cent; the share of the variance shown."""

    title: str
    points: NDArray[Any]
    labels: NDArray[Any]
    ncm: float
    explained: float | None


def report_embedding(run: RestoredRun, folder: Path, projection: str = "pca") -> dict[str, Any]:
    """The figures, and the picture ``embedding``; the student ends with its final weights.

    Raises:
        LeftOut: the student's embedding is not known, or there are no validation images or no class centres.
    """
    path, images = run.embedding_path, run.validation
    if path is None:
        raise LeftOut("the student's embedding is not known: it is no timm_model and no stage 'embedding' names it")
    if images is None:
        raise LeftOut("there are no validation images (val_data_loader) and no test images")
    if not run.teacher.local_classifier.is_ready:
        raise LeftOut(NO_CENTRES)
    panels = {}
    for key, (title, weights) in _moments(run).items():
        if key != "teacher":
            run.load_student(weights)
        embed = run.teacher.embed if key == "teacher" else embedding_of(run.student, path)
        embedding, labels = outputs(embed, images, run.accelerator, title)
        centres = run.teacher.local_classifier.centres.cpu() if key == "teacher" else _centres(embed, run)
        chosen = torch.from_numpy(shown_samples(labels.numpy()))
        points, explained = project(embedding[chosen], projection, run.seed)
        ncm = ncm_top1(embedding, labels, centres)
        panels[key] = Panel(title, points, labels[chosen].numpy(), ncm, explained)
    title = f"{PROJECTIONS[projection]} of the {images.name} images' embeddings"
    save_figure(draw(list(panels.values()), run.class_names, title), folder, "embedding")
    return {
        "projection": projection,
        "on": images.name,
        "classes_shown": np.unique(panels["final"].labels).tolist(),
        "panels": {key: {"ncm_top1": p.ncm, "explained_variance": p.explained} for key, p in panels.items()},
    }


def shown_samples(labels: NDArray[Any], classes: int = len(PALETTE)) -> NDArray[Any]:
    """Indices of the samples in the picture: of at most 10 classes, evenly spaced, the first 200 each."""
    present = np.unique(labels)
    spaced = present[np.linspace(0, len(present) - 1, min(classes, len(present))).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:_PER_CLASS] for label in spaced]))


def ncm_top1(embedding: Tensor, labels: Tensor, centres: Tensor) -> float:
    """Nearest-class-mean accuracy in per cent of ``[N, D]`` embeddings, with centres ``[C, D]`` of length 1."""
    return 100 * float((nearest_class_mean(embedding, centres).argmax(dim=1) == labels).double().mean())


def project(embedding: Tensor, projection: str, seed: int) -> tuple[NDArray[Any], float | None]:
    """``[n, D]`` → ``[n, 2]``, of the normalised rows (distances in ReFilled are theirs).

    Returns:
        The points, and of PCA the share of the variance that they show.

    Raises:
        LeftOut: fewer than 3 samples, or fewer than 2 dimensions.
    """
    rows = functional.normalize(embedding.double(), dim=1).numpy()
    if rows.shape[0] < 3 or rows.shape[1] < 2:
        raise LeftOut(f"{rows.shape[0]} samples in {rows.shape[1]} dimensions make no picture")
    if projection == "pca":
        pca = PCA(n_components=2, random_state=seed, svd_solver="full")
        return pca.fit_transform(rows), float(pca.explained_variance_ratio_.sum())
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows), None


def draw(panels: Sequence[Panel], class_names: Sequence[str], title: str) -> Figure:
    """The panels side by side, with one legend and title for all."""
    figure, ((*axes,),) = new_figure(3.4 * len(panels), 4.2, columns=len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for index, label in enumerate(np.unique(panel.labels)):
            name = class_names[label] if label < len(class_names) else str(label)
            style: dict[str, Any] = {"color": PALETTE[index], "marker": _MARKERS[index % len(_MARKERS)], "label": name}
            x, y = panel.points[panel.labels == label].T
            axis.scatter(x, y, s=12, alpha=0.8, linewidths=0, **style)
        axis.set_title(f"{panel.title}\nNCM {panel.ncm:.1f} %", fontsize="medium")
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", "datalim")
        if panel.explained is not None:
            axis.set_xlabel(f"{100 * panel.explained:.0f} % of the variance", fontsize="small")
    handles, names = axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names)
    figure.suptitle(f"{title}, {len(names)} of {len(class_names)} classes")
    return figure


def _moments(run: RestoredRun) -> dict[str, tuple[str, Path | None]]:
    """Key → (title, the student's weights) of the panels, of which the student's last has the final weights."""
    moments: dict[str, tuple[str, Path | None]] = {"before_training": ("student before training", None)}
    kept = None if run.embedding_stage is None else run.folder.student_after(run.embedding_stage)
    if kept is not None and kept.is_file():  # not kept of a last stage: that is the final student
        moments["after_embedding"] = (f"student after {run.embedding_stage}", kept)
    return {**moments, "final": ("final student", run.folder.student), "teacher": ("teacher", None)}


@torch.no_grad()
def _centres(embed: Any, run: RestoredRun) -> Tensor:
    """Class centres of the student's embedding of the training images, ``[C, D]``."""
    device = run.accelerator.device
    with run.accelerator.autocast():
        return class_centres((embed(batch[0].to(device)), batch[1]) for batch in run.train.loader).cpu()
