"""Subsets of a dataset by class, relabelled 0, 1, …, and few-shot subsets and tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gkd_plugin.data.labels import (
    class_groups_of,
    classes_of,
    labels_of,
    teacher_labels_of,
    teacher_num_classes_of,
    unwrapped,
)
from gkd_plugin.errors import ConfigError, nearest, one_of, told_at, whole_number

__all__ = ["ClassNames", "ClassSubset", "class_subset", "few_shot_subset", "few_shot_task", "members_of", "pick"]


class ClassSubset(Dataset[Any]):
    """Some samples of a dataset, with labels of their own; every split makes one.

    Args:
        dataset: a map dataset whose samples start with the image.
        indices: the positions of the samples in ``dataset``.
        targets: the new labels, one for each index, each a position in ``classes``.
        classes: the names (or indices in ``dataset``) of the classes, in the order of the new labels.
        teacher_labels: for each new label the label of the same class in the teacher's own label space, ``None``
            for a class that the teacher does not know; ``None`` as a whole where nothing is known.
        teacher_num_classes: how many classes that label space has; ``None`` where it is not known.
        class_groups: name → new labels, for groups of classes whose accuracies are shown apart.

    Raises:
        ConfigError: ``teacher_labels`` are not one for each class, or beyond the teacher's last class.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Sequence[int],
        targets: Sequence[int],
        classes: Sequence[Any],
        *,
        teacher_labels: Sequence[int | None] | None = None,
        teacher_num_classes: int | None = None,
        class_groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.targets = list(targets)
        self.classes = list(classes)
        self.teacher_labels = None if teacher_labels is None else list(teacher_labels)
        self.teacher_num_classes = teacher_num_classes
        self.class_groups = None if class_groups is None else {k: list(v) for k, v in class_groups.items()}
        if teacher_labels is not None and len(teacher_labels) != len(classes):
            raise ConfigError(
                f"teacher_labels must be one for each of {len(classes)} classes, got {len(teacher_labels)}"
            )
        last = max((label for label in teacher_labels or () if label is not None), default=-1)
        if teacher_num_classes is not None and last >= teacher_num_classes:
            raise ConfigError(f"teacher_labels name class {last} of a teacher with {teacher_num_classes} classes")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[self.indices[index]][0], self.targets[index]


def pick(dataset: Dataset[Any], classes: Sequence[int], samples: Sequence[Sequence[int]]) -> ClassSubset:
    """Chosen samples of chosen classes: what every split ends with.

    Args:
        dataset: a torchvision-style map dataset, unwrapped.
        classes: the old label of each new label.
        samples: for each new label the positions of its samples in ``dataset``.

    Returns:
        The samples in the order of ``dataset``, with the names of the classes and what :func:`teacher_labels_of` and
        :func:`teacher_num_classes_of` know of them.
    """
    names, known = classes_of(dataset), teacher_labels_of(dataset)
    pairs = sorted((index, label) for label, indices in enumerate(samples) for index in indices)
    return ClassSubset(
        dataset,
        [index for index, _ in pairs],
        [label for _, label in pairs],
        [names[old] for old in classes],
        teacher_labels=None if known is None else [known[old] for old in classes if old < len(known)],
        teacher_num_classes=None if known is None else teacher_num_classes_of(dataset),
    )


def class_subset(
    dataset: Dataset[Any], classes: Sequence[int | str], per_class: int | None = None, start: int = 0
) -> ClassSubset:
    """The samples of some classes, relabelled 0 … len(classes) − 1 in the order given.

    Args:
        dataset: a torchvision-style map dataset.
        classes: class indices, or names where ``dataset.classes`` has names.
        per_class: n keeps n samples of each class, in the order of the dataset; ``None`` keeps all.
        start: number of samples of each class to leave out first; ``per_class: 400`` and ``start: 400`` split
            a dataset into two that share no sample.

    Raises:
        ConfigError: a class is unknown or named twice, a class has too few samples, or nothing is left.
    """
    dataset = unwrapped(dataset)
    whole_number("start", start, low=0)
    if per_class is not None:
        whole_number("per_class", per_class, low=1)
    names, members = classes_of(dataset), members_of(dataset)
    known = ClassNames(names)
    with told_at("classes: "):
        chosen = [known.label(entry) for entry in classes]
        twice = [label for label, count in Counter(chosen).items() if count > 1]
        if twice:
            raise ConfigError(f"each class may be given once, class index {min(twice)} is given twice or more")
    samples = [_slice(members[label], names[label], per_class, start) for label in chosen]
    if not any(samples):
        raise ConfigError(f"classes: no sample of the {len(chosen)} given; the dataset has {len(names)} classes")
    return pick(dataset, chosen, samples)


def few_shot_subset(dataset: Dataset[Any], shots: int, seed: int = 0) -> ClassSubset:
    """``shots`` random samples of every class, with the dataset's own labels and ``class_groups``.

    The draw depends on ``seed`` alone, not on the global random state; with one seed, fewer shots are a
    subset of more shots.

    Args:
        dataset: a torchvision-style map dataset.
        shots: samples of each class, 1 or more.
        seed: of the draw.

    Raises:
        ConfigError: ``shots`` < 1, or a class has fewer samples.
    """
    dataset = unwrapped(dataset)
    whole_number("shots", shots, low=1)
    names, members = classes_of(dataset), members_of(dataset)
    generator = np.random.default_rng(whole_number("seed", seed, low=0))
    for label, name in enumerate(names):
        check_size(name, members[label], shots, f"shots={shots}")
    subset = pick(dataset, range(len(names)), [_shuffled(members[k], generator)[:shots] for k in range(len(names))])
    subset.class_groups = class_groups_of(dataset)
    return subset


def few_shot_task(
    dataset: Dataset[Any],
    ways: int,
    shots: int,
    task: int,
    role: str,
    *,
    queries: int | None = 15,
    seed: int = 0,
) -> ClassSubset:
    """One part of one N-way K-shot task, its classes relabelled 0 … N − 1.

    ``seed`` and ``task`` alone draw the classes and, for each class, a permutation of its images: the support set is
    cut from its front, the queries from its end. Cut from one dataset, the two are disjoint; fewer shots are a subset
    of more shots, with the same queries. Support set and queries may also come from two datasets with the same classes
    (training and test images): then give ``queries: 0`` for the support set and ``shots: 0`` for the queries.

    Args:
        dataset: a torchvision-style map dataset of the novel classes.
        ways: N, from 2 up.
        shots: K, the images of each class in the support set; for the queries, how many are left to the support set.
        task: the number of the task, 0, 1, …
        role: ``'support'`` or ``'query'``.
        queries: the images of each class to answer for; for the support set, how many are left to the queries.
            ``None``: all that the support set leaves.
        seed: of all tasks.

    Raises:
        ConfigError: an argument is out of range, there are fewer than N classes, a class has too few images, or the
            dataset is empty.
    """
    dataset = unwrapped(dataset)
    one_of("role", role, ("support", "query"))
    is_support = role == "support"
    whole_number("ways", ways, low=2)
    whole_number("shots", shots, low=1 if is_support else 0)
    if queries is not None:
        whole_number("queries", queries, low=0 if is_support else 1)
    entropy = [whole_number("seed", seed, low=0), whole_number("task", task, low=0)]
    names, members = classes_of(dataset), members_of(dataset)
    if ways > len(names):
        raise ConfigError(f"ways={ways}, but the dataset has {len(names)} classes")
    drawn = np.random.default_rng(entropy).permutation(len(names))[:ways].tolist()
    others = int(not is_support) if queries is None else queries
    samples = []
    for label in drawn:
        check_size(names[label], members[label], shots + others, f"shots={shots} and queries={others}")
        order = _shuffled(members[label], np.random.default_rng([*entropy, label + 1]))
        samples.append(order[:shots] if is_support else order[len(order) - queries if queries else shots :])
    return pick(dataset, drawn, samples)


class ClassNames:
    """Finds classes by index or name; a class may have a tuple of names, as in torchvision's ImageNet."""

    def __init__(self, names: Sequence[Any]) -> None:
        self._count = len(names)
        self._names: list[Any] = []
        self._labels: defaultdict[str, list[int]] = defaultdict(list)
        for label, entry in enumerate(names):
            synonyms = entry if isinstance(entry, tuple) else (entry,)
            self._names.extend(synonyms)
            for name in {name for name in synonyms if isinstance(name, str)}:
                self._labels[name].append(label)

    def __contains__(self, name: str) -> bool:
        return name in self._labels

    def label(self, entry: int | str) -> int:
        """The class of this index or name, which must be one."""
        if not isinstance(entry, str):
            return whole_number("class index", entry, low=0, high=self._count - 1)
        labels = self._labels.get(entry, [])
        if len(labels) > 1:
            raise ConfigError(f"name {entry!r} belongs to the classes {labels}; give the index instead")
        if not labels:
            raise ConfigError(f"no class is named {entry!r}; {nearest(entry, self._names)}")
        return labels[0]


def members_of(dataset: Dataset[Any]) -> defaultdict[int, list[int]]:
    """Label → the positions of its samples."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels_of(dataset)):
        members[label].append(index)
    return members


def check_size(name: Any, samples: Sequence[int], needed: int, what_for: str) -> None:
    """Raises ConfigError where a class has too few samples."""
    if len(samples) < needed:
        raise ConfigError(f"class {name!r} has {len(samples)} samples, but {what_for} need {needed}")


def _shuffled(indices: list[int], generator: np.random.Generator) -> list[int]:
    return [indices[i] for i in generator.permutation(len(indices)).tolist()]


def _slice(indices: list[int], name: Any, per_class: int | None, start: int) -> list[int]:
    if not indices and per_class is None:
        return []
    check_size(name, indices, start + (per_class or 1), f"start={start} and per_class={per_class}")
    return indices[start:] if per_class is None else indices[start : start + per_class]
