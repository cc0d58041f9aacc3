"""Do the emphasis weights ω (TPAMI 2023, section 4.3) tell the classes that the teacher knows from the others?"""

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

from gkd_plugin.diagnose.figures import save_figure
from gkd_plugin.diagnose.restore import Images, LeftOut, RestoredRun
from gkd_plugin.functional import confidence_cost, emphasis_weights
from gkd_plugin.runner.curves import PALETTE, new_figure

# score of a sample → how it is named; the larger, the more the teacher should know of the sample
SCORES = {
    "confidence": "confidence −u",
    "max_logit": "max logit",
    "energy": "energy (logsumexp)",
    "label_agreement": "label agreement",
    "emphasis": "emphasis ω",
    "known_mass": "local mass of known classes",
}


def report_emphasis(run: RestoredRun, folder: Path, known: Sequence[int] | None) -> dict[str, Any]:
    """Histograms and AUCs; ``known``: the student's labels of classes that the teacher knows, where they are named."""
    if run.teacher is None:
        raise LeftOut("the run has no teacher in the wrapper 'refilled_teacher'")
    mask = known_classes(run, known)
    run.check_centres()
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


def known_classes(run: RestoredRun, given: Sequence[int] | None) -> NDArray[np.bool_]:
    """``[C]``: whether the teacher knows each of the student's classes; by default what the training set says."""
    if given is None:
        if run.teacher_labels is None:
            advice = "name the student's labels of them, e.g. --known 0,1,2"
            raise LeftOut(f"the training set does not say which classes the teacher knows; {advice}")
        given = [label for label, own in enumerate(run.teacher_labels) if own is not None]
    mask = np.isin(np.arange(len(run.class_names)), given)
    if mask.all() or not mask.any():
        raise LeftOut(f"the teacher knows {'all' if mask.all() else 'none'} of the classes")
    return mask


def teacher_scores(
    run: RestoredRun, images: Images, batch_size: int, known: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """What the teacher says of each image (:func:`sample_scores`, ``[N]`` each), and the labels."""
    dataset, workers = images.loader.dataset, images.loader.num_workers
    generator = torch.Generator().manual_seed(run.seed)  # ω is relative to a batch: shuffled ones, as in training
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, generator=generator)
    rows, labels = [], []
    assert run.teacher is not None
    for batch, of in run.batches(loader, f"teacher, {images.name}"):
        answers = run.teacher.answers(batch)
        local = answers.local_classifier
        assert local is not None  # there are class centres
        rows.append(sample_scores(local if answers.logits is None else answers.logits, local, of, known))
        labels.append(of)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, torch.cat(labels).numpy()


def sample_scores(own: Tensor, local: Tensor, labels: Tensor, known: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Scores of a batch, ``[B]`` each: how well the teacher seems to know the samples.

    ``confidence`` −u = log max_c softmax(own)_c, ``max_logit`` max_c own_c, ``energy`` log Σ_c exp(own_c),
    ``label_agreement`` log softmax(local)_y, ``emphasis`` ω, ``known_mass`` Σ_known softmax(local); and the raw
    ``confidence_cost`` u. ``own`` ``[B, C_t]`` and ``local`` ``[B, C]`` are logits of the teacher's own and of its
    local classifier; ``known`` may be longer than C.
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


def _figures(scores: dict[str, NDArray[Any]], is_known: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of one set of images: AUCs, and over the same bins the counts of both groups, and their means."""
    cost, groups = scores["confidence_cost"], {"known": is_known, "unknown": ~is_known}
    limits = {"emphasis": (2 / (1 + np.e), 1.0), "confidence_cost": (cost.min(), max(cost.max(), cost.min() + 1e-6))}
    found: dict[str, Any] = {name: int(chosen.sum()) for name, chosen in groups.items()}
    has_both = is_known.any() and not is_known.all()
    found["auc"] = {name: float(roc_auc_score(is_known, scores[name])) if has_both else None for name in SCORES}
    for kind, ends in limits.items():
        edges = np.linspace(*ends, 21)  # 20 bins
        found[kind] = {"edges": edges.tolist()}
        for name, chosen in groups.items():
            values = scores[kind][chosen]
            found[kind][name] = np.histogram(np.clip(values, *ends), edges)[0].tolist()  # ω is rounded
            found[kind][f"{name}_mean"] = float(values.mean()) if chosen.any() else None
    return found


def _draw(figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Shares of each group, one hatched, so that they can be told apart without colour."""
    figure, axes = new_figure(4.5 * len(figures), 6, rows=2, columns=len(figures))
    kinds = {"emphasis": ("emphasis", "ω", "emphasis weight ω")}
    kinds["confidence_cost"] = ("confidence", "−u", "confidence cost u (nats)")
    groups = {"known": (PALETTE[0], "yes", None), "unknown": (PALETTE[1], "no", "//")}
    for row, (kind, (score, sign, label)) in zip(axes, kinds.items(), strict=True):
        for axis, (split, found) in zip(row, figures.items(), strict=True):
            edges = found[kind]["edges"]
            for group, (colour, answer, hatch) in groups.items():
                counts = np.asarray(found[kind][group], dtype=float)
                style: Any = {"facecolor": to_rgba(colour, 0.4), "edgecolor": colour, "hatch": hatch, "linewidth": 1.5}
                shares, name = counts / max(counts.sum(), 1), f"{answer} ({found[group]})"
                axis.stairs(shares, edges, fill=True, label=name, **style)
            area = found["auc"][score]
            title = f"{split} images: AUC of {sign} {'–' if area is None else f'{area:.2f}'}"
            axis.set(title=title, xlabel=label, ylabel="share of the group", xlim=(edges[0], edges[-1]))
    for axis in axes[0]:
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
        axis.legend(title="teacher knows the class", fontsize="small", title_fontsize="small")
    save_figure(figure, folder, "emphasis")
