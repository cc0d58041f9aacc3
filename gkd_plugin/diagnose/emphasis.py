"""Do the emphasis weights ω tell the classes that the teacher knows from those that it does not?

Stage ``classifier`` weighs samples by the teacher's confidence, so that what the teacher knows counts more (TPAMI 2023,
section 4.3). Here confidence is compared with what the user says the teacher knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from gkd_plugin.diagnose.figures import GROUPS, LeftOut, new_figure, save_figure
from gkd_plugin.diagnose.restore import NO_CENTRES, Images, RestoredRun
from gkd_plugin.errors import whole_number
from gkd_plugin.functional import confidence_cost, emphasis_weights

__all__ = ["SCORES", "auc", "check_known", "known_classes", "report_emphasis", "sample_scores", "teacher_scores"]

# score of a sample → how it is named; the larger, the more the teacher should know of the sample
SCORES = {
    "confidence": "confidence −u",
    "max_logit": "max logit",
    "energy": "energy (logsumexp)",
    "label_agreement": "label agreement",
    "emphasis": "emphasis ω",
    "known_mass": "local mass of known classes",
}
_BINS = 20


def report_emphasis(run: RestoredRun, folder: Path, known: Sequence[int] | None) -> dict[str, Any]:
    """The figures, and the picture ``emphasis``.

    Args:
        run: a finished run.
        folder: where the picture goes.
        known: the student's labels of classes that the teacher knows; by default what the training set says.

    Raises:
        LeftOut: it is not known what the teacher knows, or it knows all classes or none.
        ConfigError: ``known`` names a label that there is not.
    """
    mask = known_classes(run, known)
    size = run.train.loader.batch_size or 1
    images = {}
    for split in (run.train, run.validation):
        if split is not None:
            scores, labels = teacher_scores(run, split, size, mask)
            images[split.name] = _figures(scores, mask[labels])
    _draw(images, folder)
    return {
        "known_classes": np.flatnonzero(mask).tolist(),
        "confidence_of": "own classifier" if run.teacher.has_classifier else "local classifier",
        "batch_size": size,
        "images": images,
    }


def check_known(given: Sequence[int], count: int) -> None:
    """Raises ConfigError where a label is none of ``count`` classes."""
    for label in given:
        whole_number("--known: class index", label, low=0, high=count - 1)


def known_classes(run: RestoredRun, given: Sequence[int] | None) -> NDArray[np.bool_]:
    """``[C]``: whether the teacher knows each of the student's classes.

    Raises:
        LeftOut: that is not known, or it is all of them or none.
        ConfigError: a label in ``given`` is out of range.
    """
    if given is None:
        if run.teacher_labels is None:
            raise LeftOut(
                "the training set does not say which classes the teacher knows; name the student's labels of them, "
                "e.g. --known 0,1,2"
            )
        given = [label for label, own in enumerate(run.teacher_labels) if own is not None]
    count = len(run.class_names)
    check_known(given, count)
    mask = np.isin(np.arange(count), given)
    if mask.all() or not mask.any():
        raise LeftOut(f"the teacher knows {'all' if mask.all() else 'none'} of the classes")
    return mask


@torch.no_grad()
def teacher_scores(
    run: RestoredRun, images: Images, batch_size: int, known: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    r"""What the teacher says of each image: u, ω and the scores of :data:`SCORES`, ``[N]`` each, and the labels.

    ω is relative to a batch, so the images come as in training: shuffled (with the run's seed), in batches of its size.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": images.loader.num_workers}
    generator = torch.Generator().manual_seed(run.seed)
    loader: DataLoader[Any] = DataLoader(images.loader.dataset, shuffle=True, generator=generator, **options)
    rows, labels = [], []
    for batch in tqdm(loader, desc=f"teacher, {images.name}", leave=False, disable=None):
        with run.accelerator.autocast():
            answers = run.teacher.answers(batch[0].to(run.accelerator.device))
        local = answers.local_classifier
        if local is None:
            raise LeftOut(NO_CENTRES)
        rows.append(sample_scores(local if answers.logits is None else answers.logits, local, batch[1], known))
        labels.append(batch[1])
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, torch.cat(labels).numpy()


def sample_scores(own: Tensor, local: Tensor, labels: Tensor, known: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    r"""Scores of a batch, ``[B]`` each: how well the teacher seems to know the samples.

    ``confidence`` −u = log max_c softmax(own)_c, ``max_logit`` max_c own_c, ``energy`` log Σ_c exp(own_c),
    ``label_agreement`` log softmax(local)_y, ``emphasis`` ω, ``known_mass`` Σ_known softmax(local); and the raw
    ``confidence_cost`` u.

    Args:
        own: ``[B, C_t]``, logits of the teacher's own classifier.
        local: ``[B, C]``, logits of its local classifier.
        labels: ``[B]``, the student's.
        known: ``[C]`` or longer, whether the teacher knows each of the student's classes.
    """
    own, local, labels = own.cpu().double(), local.cpu().double(), labels.cpu().long()
    cost = confidence_cost(own)
    found = {
        "confidence": -cost,
        "max_logit": own.amax(dim=1),
        "energy": own.logsumexp(dim=1),
        "label_agreement": -functional.cross_entropy(local, labels, reduction="none"),
        "emphasis": emphasis_weights(own),
        "known_mass": local.softmax(dim=1)[:, torch.from_numpy(known[: local.shape[1]])].sum(dim=1),
        "confidence_cost": cost,
    }
    return {name: value.numpy() for name, value in found.items()}


def auc(score: NDArray[Any], is_known: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: how often a sample of a known class scores above one of an unknown; 0.5 is chance.

    ``None`` where one of the groups has no sample.
    """
    return None if is_known.all() or not is_known.any() else float(roc_auc_score(is_known, score))


def _figures(scores: dict[str, NDArray[Any]], is_known: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of one set of images."""
    cost = scores["confidence_cost"]
    limits = {"emphasis": (2 / (1 + np.e), 1.0), "confidence_cost": (cost.min(), max(cost.max(), cost.min() + 1e-6))}
    return {
        "known": int(is_known.sum()),
        "unknown": int((~is_known).sum()),
        "auc": {name: auc(scores[name], is_known) for name in SCORES},
        **{name: _histogram(scores[name], is_known, ends) for name, ends in limits.items()},
    }


def _histogram(values: NDArray[Any], is_known: NDArray[np.bool_], limits: tuple[float, float]) -> dict[str, Any]:
    """Counts of both groups over the same bins, and their means."""
    edges = np.linspace(*limits, _BINS + 1)
    made: dict[str, Any] = {"edges": edges.tolist()}
    for name, chosen in (("known", is_known), ("unknown", ~is_known)):
        inside = np.clip(values[chosen], *limits)  # ω is rounded
        made[name] = np.histogram(inside, edges)[0].tolist()
        made[f"{name}_mean"] = float(values[chosen].mean()) if chosen.any() else None
    return made


def _draw(figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Shares of each group, one hatched, so that they can be told apart without colour."""
    figure, axes = new_figure(4.5 * len(figures), 6, rows=2, columns=len(figures))
    kinds = {"emphasis": ("emphasis", "ω", "emphasis weight ω")}
    kinds["confidence_cost"] = ("confidence", "−u", "confidence cost u (nats)")
    for row, (kind, (score, sign, label)) in zip(axes, kinds.items(), strict=True):
        for axis, (split, found) in zip(row, figures.items(), strict=True):
            edges = found[kind]["edges"]
            for group, answer, hatch in (("known", "yes", None), ("unknown", "no", "//")):
                counts = np.asarray(found[kind][group], dtype=float)
                colours: Any = {"facecolor": to_rgba(GROUPS[group], 0.4), "edgecolor": GROUPS[group], "hatch": hatch}
                shares, name = counts / max(counts.sum(), 1), f"{answer} ({found[group]})"
                axis.stairs(shares, edges, fill=True, linewidth=1.5, label=name, **colours)
            area = found["auc"][score]
            title = f"{split} images: AUC of {sign} {'–' if area is None else f'{area:.2f}'}"
            axis.set(title=title, xlabel=label, ylabel="share of the group", xlim=(edges[0], edges[-1]))
    for axis in axes[0]:
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
        axis.legend(title="teacher knows the class", fontsize="small", title_fontsize="small")
    save_figure(figure, folder, "emphasis")
