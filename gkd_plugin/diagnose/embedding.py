"""Two-dimensional pictures of the validation images: the student over time, and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional

from gkd_plugin.diagnose.figures import PALETTE, new_figure, save_figure
from gkd_plugin.diagnose.left_out import NO_CENTRES, LeftOut
from gkd_plugin.diagnose.restore import Images, RestoredRun, Score, outputs
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.runner.accuracy import embedding_of

__all__ = ["PROJECTIONS", "ncm_top1", "project", "report_embedding", "shown_samples"]

PROJECTIONS = ("pca", "tsne")
_PER_CLASS = 200  # points; more cover each other
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class _Panel:
    """One embedding: its key in the figures and its title, ``[n, 2]`` points with labels, and how much they show."""

    key: str
    title: str
    points: NDArray[Any]
    labels: NDArray[Any]
    ncm: float
    explained: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"ncm_top1": self.ncm, "explained_variance": self.explained}


def report_embedding(run: RestoredRun, folder: Path, projection: str = "pca") -> dict[str, Any]:
    """The figures, and the picture ``embedding``; the student ends with its final weights.

    Raises:
        LeftOut: nothing tells the student's embedding, there are no validation images, or there are no class centres.
    """
    path = run.embedding_path
    if path is None:
        raise LeftOut("the student's embedding is not known: it is no timm_model and no stage 'embedding' names it")
    if run.validation is None:
        raise LeftOut("there are no validation images (val_data_loader) and no test images")
    if not run.teacher.local_classifier.is_ready:
        raise LeftOut(NO_CENTRES)
    embed, panels = embedding_of(run.student, path), []
    for key, title, weights in _moments(run):
        run.load_student(weights)
        panels.append(_panel(key, title, embed, run, centres=_centres(embed, run), projection=projection))
    centres = run.teacher.local_classifier.centres.cpu()
    panels.append(_panel("teacher", "teacher", run.teacher.embed, run, centres=centres, projection=projection))
    _draw(panels, run, projection, folder)
    return {
        "projection": projection,
        "on": run.validation.name,
        "classes_shown": np.unique(panels[0].labels).tolist(),
        "panels": {panel.key: panel.as_dict() for panel in panels},
    }


def shown_samples(labels: NDArray[Any], classes: int = len(PALETTE)) -> NDArray[Any]:
    """Indices of the samples in the picture: of at most 10 classes, evenly spaced, the first 200 each."""
    present = np.unique(labels)
    spaced = present[np.linspace(0, len(present) - 1, min(classes, len(present))).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:_PER_CLASS] for label in spaced]))


def ncm_top1(embedding: Tensor, labels: Tensor, centres: Tensor) -> float:
    """Nearest-class-mean accuracy in per cent.

    Args:
        embedding: ``[N, D]``.
        labels: ``[N]``.
        centres: ``[C, D]``, rows of length 1.
    """
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


def _moments(run: RestoredRun) -> list[tuple[str, str, Path | None]]:
    """(key, title, weights) of the student over time, ending in its final weights."""
    moments: list[tuple[str, str, Path | None]] = [("before_training", "student before training", None)]
    kept = None if run.embedding_stage is None else run.folder.student_after(run.embedding_stage)
    if kept is not None and kept.is_file():  # not kept of a last stage: that is the final student
        moments.append(("after_embedding", f"student after {run.embedding_stage}", kept))
    return [*moments, ("final", "final student", run.folder.student)]


def _panel(key: str, title: str, embed: Score, run: RestoredRun, *, centres: Tensor, projection: str) -> _Panel:
    embedding, labels = outputs(embed, cast("Images", run.validation), run.accelerator, title)
    chosen = torch.from_numpy(shown_samples(labels.numpy()))
    points, explained = project(embedding[chosen], projection, run.seed)
    return _Panel(key, title, points, labels[chosen].numpy(), ncm_top1(embedding, labels, centres), explained)


@torch.no_grad()
def _centres(embed: Score, run: RestoredRun) -> Tensor:
    """Class centres of the student's embedding of the training images, ``[C, D]``."""
    device = run.accelerator.device
    with run.accelerator.autocast():
        return class_centres((embed(batch[0].to(device)), batch[1]) for batch in run.train.loader).cpu()


def _draw(panels: list[_Panel], run: RestoredRun, projection: str, folder: Path) -> None:
    figure, ((*axes,),) = new_figure(3.4 * len(panels), 4.2, columns=len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, run.class_names)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 10), markerscale=2)
    kind, images = {"pca": "PCA", "tsne": "t-SNE"}[projection], cast("Images", run.validation).name
    figure.suptitle(f"{kind} of the {images} images' embeddings, {len(names)} of {len(run.class_names)} classes")
    save_figure(figure, folder, "embedding")


def _draw_panel(axis: Axes, panel: _Panel, names: list[str]) -> None:
    for index, label in enumerate(np.unique(panel.labels)):
        points = panel.points[panel.labels == label]
        marker, name = _MARKERS[index % len(_MARKERS)], names[label] if label < len(names) else str(label)
        axis.scatter(
            points[:, 0], points[:, 1], s=12, color=PALETTE[index], marker=marker, alpha=0.8, linewidths=0, label=name
        )
    axis.set_title(f"{panel.title}\nNCM {panel.ncm:.1f} %", fontsize="medium")
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", "datalim")
    if panel.explained is not None:
        axis.set_xlabel(f"{100 * panel.explained:.0f} % of the variance", fontsize="small")
