"""Accuracy of a classifier, and nearest-class-mean (NCM) accuracy of an embedding."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from gkd_plugin.box.hooks import Capture
from gkd_plugin.data import class_groups_of
from gkd_plugin.functional import ClassCentreAccumulator, nearest_class_mean
from gkd_plugin.teacher import clean_loader

__all__ = ["Accuracy", "embedding_of", "evaluate", "is_accuracy", "near_chance", "student_ncm"]

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over ``samples`` samples, in per cent.

    Attributes:
        top1: share of samples whose class has the largest score.
        top5: among the five largest; ``None`` where there are at most 5 classes.
        samples: how many.
        classes: number of scores per sample.
        groups: top-1 among the samples of each group of classes (:func:`gkd_plugin.data.class_groups_of`) that has
            samples, in the scores of all classes.
    """

    top1: float
    top5: float | None
    samples: int
    classes: int
    groups: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """For a metrics row; of several groups also the harmonic mean, which is 0 where one of them is 0."""
        row = {f"{prefix}top1": self.top1}
        if self.top5 is not None:
            row[f"{prefix}top5"] = self.top5
        row |= {f"{prefix}{name}_top1": top1 for name, top1 in self.groups.items()}
        if len(self.groups) > 1:
            row[f"{prefix}harmonic_mean"] = statistics.harmonic_mean(self.groups.values())
        return row


def is_accuracy(key: str) -> bool:
    """Whether a metrics row's key is one of :meth:`Accuracy.as_dict`."""
    return key in ("top1", "top5", "harmonic_mean") or key.endswith("_top1")


@torch.no_grad()
def evaluate(score: Score, loader: Iterable[Any], accelerator: Accelerator, title: str = "evaluation") -> Accuracy:
    """Top-1 and top-5 of ``score`` (images → ``[B, C]``) over (images, labels, …) batches, over all processes.

    Where the loader's dataset has groups of classes, also the top-1 of each.
    """
    hits1 = hits5 = samples = classes = 0
    groups = (class_groups_of(loader.dataset) if hasattr(loader, "dataset") else None) or {}
    group_hits: Counter[str] = Counter()
    group_samples: Counter[str] = Counter()
    for batch in _shown(loader, accelerator, title):
        images, labels = batch[0].to(accelerator.device), batch[1].to(accelerator.device)
        scores, labels = accelerator.gather_for_metrics((score(images).float().to(labels.device), labels))
        ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels.unsqueeze(1)
        hits1 += int(ranked[:, 0].sum())
        hits5 += int(ranked.sum())
        for name, members in groups.items():
            in_group = torch.isin(labels, torch.tensor(members, device=labels.device))
            group_hits[name] += int((ranked[:, 0] & in_group).sum())
            group_samples[name] += int(in_group.sum())
        samples += len(labels)
        classes = scores.shape[1]
    total = max(samples, 1)
    return Accuracy(
        100 * hits1 / total,
        100 * hits5 / total if classes > 5 else None,
        samples,
        classes,
        {name: 100 * group_hits[name] / count for name, count in group_samples.items() if count},
    )


def near_chance(accuracy: Accuracy) -> bool:
    """Whether the top-1 is within three standard errors of guessing among the classes."""
    chance = 1 / max(accuracy.classes, 1)
    error: float = (chance * (1 - chance) / max(accuracy.samples, 1)) ** 0.5
    return accuracy.top1 / 100 <= chance + 3 * error


def embedding_of(model: nn.Module, path: str) -> Score:
    """A function images → the output ``[B, D]`` of the module at ``path``."""

    def embed(images: Tensor) -> Tensor:
        capture = Capture("output")
        hook = model.get_submodule(path).register_forward_hook(capture)
        try:
            model(images)
            return capture.take("student", path)
        finally:
            hook.remove()

    return embed


@torch.no_grad()
def student_ncm(
    student: nn.Module, path: str, train_loader: Any, val_loader: Iterable[Any], accelerator: Accelerator
) -> Accuracy:
    """NCM accuracy of the student: centres from the training set (clean view), predictions on the validation set."""
    embed = embedding_of(student, path)
    centres = ClassCentreAccumulator()
    for batch in _shown(clean_loader(train_loader), accelerator, "NCM centres"):
        centres.update(embed(batch[0].to(accelerator.device)), batch[1])
    means = centres.result().to(accelerator.device)
    return evaluate(lambda images: nearest_class_mean(embed(images), means), val_loader, accelerator, "NCM")


def _shown(batches: Iterable[Any], accelerator: Accelerator, title: str) -> Iterable[Any]:
    """With a progress bar on the main process, where there is a terminal."""
    shown: Iterable[Any] = tqdm(batches, desc=title, leave=False, disable=None if accelerator.is_main_process else True)
    return shown
