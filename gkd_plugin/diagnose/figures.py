"""How figures are saved, and the parts ``embedding``, ``tuples`` and ``confusion``: their figures and pictures."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn import functional

from gkd_plugin.diagnose.restore import LeftOut, RestoredRun
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.runner.accuracy import Score, embedding_of
from gkd_plugin.runner.curves import PALETTE, new_figure

SUFFIXES = ("png", "svg")
PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE"}
_MARKERS = "os^Dv"
_COUNTS = {"tuples": "tuples (a, p, N) in a batch", "negatives": "semi-hard negatives in a tuple"}


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name.png`` and ``name.svg``; the same picture gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": name}):
        for suffix in SUFFIXES:
            metadata: Any = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=metadata)


def report_tuples(metrics: Path, folder: Path) -> dict[str, list[float]]:
    """How much stage ``embedding`` had to compare: ``epoch`` (from 1), ``tuples``, ``negatives`` of a metrics file."""
    try:
        text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
        rows = [row for row in map(json.loads, text.splitlines()) if _COUNTS.keys() <= row.keys()]
    except (ValueError, AttributeError, RecursionError) as error:
        raise LeftOut(f"{metrics} does not hold a JSON section in each line: {error}") from error
    if not rows:
        raise LeftOut(f"no epoch in {metrics} counts tuples: only 'refilled' does, in stages 'embedding' and 'joint'")
    epochs: list[float] = list(range(1, len(rows) + 1))
    counts = {key: [row[key] for row in rows] for key in _COUNTS}
    figure, ((*axes,),) = new_figure(8, 3.2, columns=2)
    for axis, (key, title) in zip(axes, _COUNTS.items(), strict=True):
        axis.plot(epochs, counts[key], color=PALETTE[0], marker="." if len(epochs) < 30 else None)
        axis.set(title=title, xlabel="epoch", ylim=(0, 1.1 * max(*counts[key], 1)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, folder, "tuples")
    return {"epoch": epochs, **counts}


def report_confusion(run: RestoredRun, folder: Path) -> dict[str, Any]:
    """Counts (true class, predicted class) of the final student, and the pairs that it confuses most."""
    logits, labels = run.answers
    assert run.test is not None  # there are answers
    counts = confusion_matrix(labels.numpy(), logits.argmax(dim=1).numpy(), labels=np.arange(logits.shape[1]))
    names = [*run.class_names, *map(str, range(len(run.class_names), len(counts)))][: len(counts)]
    draw_confusion(counts, names, run.test.name, folder)
    return {
        "on": run.test.name,
        "samples": len(labels),
        "top1": 100 * float(np.trace(counts)) / max(len(labels), 1),
        "classes": names,
        "counts": counts.tolist(),
        "most_confused": most_confused(counts, names),
    }


def most_confused(counts: NDArray[Any], names: list[str]) -> list[dict[str, Any]]:
    """The 20 pairs (true class, predicted class) with the largest shares of the true class, but those never seen."""
    wrong = _shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    return [
        {"true": names[i], "predicted": names[j], "samples": int(counts[i, j]), "share": float(wrong[i, j])}
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j] > 0
    ]


def _shares(counts: NDArray[Any]) -> Any:
    """Of each true class, one a row; 0 where it has no sample."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def draw_confusion(counts: NDArray[Any], names: list[str], split: str, folder: Path) -> None:
    """The picture ``confusion``, with names and numbers where they fit."""
    shares, count = _shares(counts), len(counts)
    side = float(np.clip(2.5 + 0.3 * count, 4.5, 14))
    figure, ((axis,),) = new_figure(side + 1, side)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="true class", title=f"final student, {split} images")
    if count <= 40:  # names fit beside the picture
        axis.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axis.set_yticks(range(count), names)
    if count <= 12:  # shares fit into the cells
        for (row, column), share in np.ndenumerate(shares):
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
    save_figure(figure, folder, "confusion")


def report_embedding(run: RestoredRun, folder: Path, projection: str = "pca") -> dict[str, Any]:
    """NCM accuracy and projection of the validation images at each moment; the student ends with its final weights."""
    path, images = run.embedding_path, run.validation
    if path is None:
        raise LeftOut("the student's embedding is not known: it is no timm_model and no stage 'embedding' names it")
    if images is None:
        raise LeftOut("there are no validation images (val_data_loader) and no test images")
    run.check_centres()
    moments: dict[str, tuple[str, Path | None]] = {"before_training": ("student before training", None)}
    kept = None if run.embedding_stage is None else run.folder.student_after(run.embedding_stage)
    if kept is not None and kept.is_file():  # not kept of a last stage: that is the final student
        moments["after_embedding"] = (f"student after {run.embedding_stage}", kept)
    moments["final"] = ("final student", run.folder.student)
    if run.teacher is not None:
        moments["teacher"] = ("teacher", None)
    figure, ((*axes,),) = new_figure(3.4 * len(moments), 4.2, columns=len(moments))
    panels = {}
    for axis, (key, (title, weights)) in zip(axes, moments.items(), strict=True):
        embed: Score
        if key == "teacher" and run.teacher is not None:
            embed, centres = run.teacher.embed, run.teacher.local_classifier.centres.cpu()
        else:
            run.load_student(weights)
            embed = embedding_of(run.student, path)
            batches = run.batches(run.train.loader, f"{title}, class centres")
            centres = class_centres((embed(batch), labels) for batch, labels in batches).cpu()
        embedding, labels = run.outputs(embed, images, title)
        ncm = 100 * float((nearest_class_mean(embedding, centres).argmax(dim=1) == labels).double().mean())
        places = shown_samples(labels.numpy())
        points, explained = project(embedding[places], projection, run.seed)
        panels[key] = {"ncm_top1": ncm, "explained_variance": explained}
        shown_labels = labels.numpy()[places]
        for label, colour, marker in zip(np.unique(shown_labels), PALETTE, 2 * _MARKERS, strict=False):
            x, y = points[shown_labels == label].T
            name = run.class_names[label] if label < len(run.class_names) else str(label)
            axis.scatter(x, y, s=12, alpha=0.8, linewidths=0, color=colour, marker=marker, label=name)
        axis.set_title(f"{title}\nNCM {ncm:.1f} %", fontsize="medium")
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", "datalim")
        if explained is not None:
            axis.set_xlabel(f"{100 * explained:.0f} % of the variance", fontsize="small")
    handles, names = axes[0].get_legend_handles_labels()
    shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in names]
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.08 * max(map(len, shown)))  # the panels stay as wide
    figure.legend(handles, shown, loc="outside right center", markerscale=2, frameon=False)
    about = f"{len(names)} of {len(run.class_names)} classes"
    figure.suptitle(f"{PROJECTIONS[projection]} of the {images.name} images' embeddings, {about}")
    save_figure(figure, folder, "embedding")
    classes = np.unique(shown_labels).tolist()
    return {"projection": projection, "on": images.name, "classes_shown": classes, "panels": panels}


def shown_samples(labels: NDArray[Any]) -> NDArray[Any]:
    """Indices of the samples shown: of at most 10 classes, evenly spaced, the first 200 of each."""
    present = np.unique(labels)
    spaced = present[np.linspace(0, len(present) - 1, min(len(PALETTE), len(present))).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:200] for label in spaced]))


def project(embedding: Tensor, projection: str, seed: int) -> tuple[NDArray[Any], float | None]:
    """``[n, D]`` → ``[n, 2]`` of the normalised rows, as ReFilled's distances; with PCA the share of variance shown."""
    rows = functional.normalize(embedding.double(), dim=1).numpy()
    if rows.shape[0] < 3 or rows.shape[1] < 2:
        raise LeftOut(f"{rows.shape[0]} samples in {rows.shape[1]} dimensions make no picture")
    if projection == "pca":
        pca = PCA(n_components=2, random_state=seed, svd_solver="full")
        return pca.fit_transform(rows), float(pca.explained_variance_ratio_.sum())
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows), None
