"""One-step incremental learning: the teacher knows the old classes, the student learns old and new ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils.data import Dataset

from gkd_plugin.data._checks import whole_number
from gkd_plugin.data.class_order import ClassOrder, ordered_classes
from gkd_plugin.data.class_subset import ClassSubset, class_subset
from gkd_plugin.data.labels import classes_of
from gkd_plugin.errors import ConfigError

__all__ = ["incremental_subset"]


def incremental_subset(
    dataset: Dataset[Any],
    old: int,
    new: int,
    memory: int | None = None,
    *,
    class_order: ClassOrder | None = None,
    seed: int | None = None,
    per_class: int | None = None,
    start: int = 0,
) -> ClassSubset:
    """Old and new classes under one classifier: labels 0 … old − 1 are the teacher's, then ``new`` more follow.

    The teacher's own dataset is ``overlap_subset(num_classes=old, role='teacher', shift=0)`` of the same class order.
    The subset's ``teacher_labels`` say that the first ``old`` labels are the teacher's, its ``teacher_num_classes``
    that it has no others, and its ``class_groups`` (``{'old': […], 'new': […]}``) which accuracies are told apart.

    Args:
        dataset: a torchvision-style map dataset.
        old: the number of classes that the teacher knows, the first of the class order.
        new: the number of classes after them.
        memory: exemplars of each old class, the first of its samples; 0 leaves none, but the classes stay.
            ``None`` keeps all samples: test sets, and joint training.
        class_order: as in :func:`gkd_plugin.data.overlap_subset`: all class indices, or a text file.
        seed: draws a random class order instead; ``None`` keeps the natural order.
        per_class: as in :func:`gkd_plugin.data.class_subset`; exemplars are the first of these samples.
        start: as in :func:`gkd_plugin.data.class_subset`.

    Raises:
        ConfigError: an argument is out of range, there are not so many classes, an old class has fewer samples than
            ``memory``, no sample of a new class is there, or as :func:`gkd_plugin.data.class_subset` and the class
            order.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(8, 1))
        >>> images.targets = [0, 1, 2, 3] * 2
        >>> subset = incremental_subset(images, old=2, new=1, memory=1)
        >>> subset.targets, subset.classes, subset.teacher_labels
        ([0, 1, 2, 2], [0, 1, 2], [0, 1, None])
    """
    whole_number("old", old, low=1)
    whole_number("new", new, low=1)
    names = classes_of(dataset)
    if old + new > len(names):
        raise ConfigError(f"old={old} and new={new} need {old + new} classes, the dataset has {len(names)}")
    order = ordered_classes(class_order, seed, len(names), names)
    everything = class_subset(dataset, order[: old + new], per_class, start)
    labels = list(range(old + new))
    kept = _kept(everything, old, memory)
    return ClassSubset(
        everything.dataset,
        [everything.indices[i] for i in kept],
        [everything.targets[i] for i in kept],
        everything.classes,
        teacher_labels=[label if label < old else None for label in labels],
        teacher_num_classes=old,
        class_groups={"old": labels[:old], "new": labels[old:]},
    )


def _kept(everything: ClassSubset, old: int, memory: int | None) -> list[int]:
    """The positions of all samples of new classes, and of the first ``memory`` of each old one."""
    if all(label < old for label in everything.targets):
        raise ConfigError("new: none of the new classes has a sample")
    if memory is None:
        return list(range(len(everything)))
    whole_number("memory", memory, low=0)
    seen: Counter[int] = Counter()
    kept = []
    for position, label in enumerate(everything.targets):
        seen[label] += 1
        if label >= old or seen[label] <= memory:
            kept.append(position)
    for label in range(old):
        if seen[label] < memory:
            raise ConfigError(
                f"class {everything.classes[label]!r} has {seen[label]} samples to draw from, memory={memory} needs "
                f"{memory}"
            )
    return kept
