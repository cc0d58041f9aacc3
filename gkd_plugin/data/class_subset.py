"""Subsets of a dataset by class, relabelled 0, 1, …, and few-shot subsets."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gkd_plugin.data._checks import inner_datasets, unwrapped, whole_number
from gkd_plugin.data.evaluation_view import evaluation_view
from gkd_plugin.data.labels import classes_of, has_own, keeps_labels, labels_of
from gkd_plugin.errors import ConfigError, nearest, told_at

__all__ = [
    "ClassSubset",
    "class_groups_of",
    "class_subset",
    "few_shot_subset",
    "index_of_name",
    "members_of",
    "subset_of",
    "teacher_labels_of",
    "teacher_num_classes_of",
]


logger = logging.getLogger(__name__)


class ClassSubset(Dataset[Any]):
    """Some samples of a dataset, with labels of their own; made by :func:`class_subset` and its relatives.

    Where the underlying dataset offers an evaluation view, so does this one: the attribute
    ``evaluation_view`` holds the same samples of that view.

    Args:
        dataset: a map dataset whose samples start with the image.
        indices: the positions of the samples in ``dataset``.
        targets: the new labels, one for each index, each a position in ``classes``.
        classes: the names (or indices in ``dataset``) of the classes, in the order of the new labels.
        teacher_labels: for each new label the label of the same class in the teacher's own label space, ``None``
            for a class that the teacher does not know; ``None`` as a whole where nobody can say.
        teacher_num_classes: how many classes that label space has; ``None`` where nobody can say.
        class_groups: name → new labels, for groups of classes whose accuracies are told apart.

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
        if self.teacher_labels is not None and len(self.teacher_labels) != len(self.classes):
            raise ConfigError(
                f"teacher_labels must be one for each of {len(self.classes)} classes, got {len(self.teacher_labels)}"
            )
        last = max((label for label in self.teacher_labels or () if label is not None), default=-1)
        if teacher_num_classes is not None and last >= teacher_num_classes:
            raise ConfigError(f"teacher_labels name class {last} of a teacher with {teacher_num_classes} classes")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[self.indices[index]][0], self.targets[index]

    @property
    def evaluation_view(self) -> ClassSubset:
        """The same samples of the underlying dataset's evaluation view.

        Raises:
            AttributeError: the underlying dataset offers none.
        """
        view, found = evaluation_view(self.dataset)
        if not found:
            raise AttributeError(f"dataset {type(view).__name__} offers no evaluation_view")
        return ClassSubset(
            view,
            self.indices,
            self.targets,
            self.classes,
            teacher_labels=self.teacher_labels,
            teacher_num_classes=self.teacher_num_classes,
            class_groups=self.class_groups,
        )


def teacher_labels_of(dataset: Dataset[Any]) -> list[int | None] | None:
    """For each label of the dataset the label of the same class in the teacher's own label space.

    Looks into whatever keeps labels as they are: wrappers, ``Subset``, evaluation views, and concatenations whose
    parts agree. What is inside a wrapper with other labels or classes (:func:`gkd_plugin.data.labels.keeps_labels`)
    does not count; the log says so.

    Returns:
        A list with ``None`` for each class that the teacher does not know; ``None`` where nobody can say.

    Example:
        >>> import torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> from gkd_plugin.data import overlap_subset
        >>> images = TensorDataset(torch.zeros(6, 1))
        >>> images.targets = [0, 1, 2, 3, 4, 5]
        >>> teacher_labels_of(Subset(overlap_subset(images, 4, 'student', overlap=0.5), [0, 3]))
        [2, 3, None, None]
    """
    labels: list[int | None] | None = _said_of_labels(dataset, "teacher_labels", tell=True)
    return labels


def teacher_num_classes_of(dataset: Dataset[Any]) -> int | None:
    """How many classes the label space of :func:`teacher_labels_of` has, found likewise; ``None``: nobody can say."""
    count: int | None = _said_of_labels(dataset, "teacher_num_classes")
    return count


def class_groups_of(dataset: Dataset[Any]) -> dict[str, list[int]] | None:
    """Groups of classes whose accuracies are told apart, found as :func:`teacher_labels_of` finds its labels.

    Returns:
        Name → labels; ``None`` where there are no groups.
    """
    groups: dict[str, list[int]] | None = _said_of_labels(dataset, "class_groups")
    return groups


def _said_of_labels(dataset: Any, name: str, *, tell: bool = False) -> Any:
    """The attribute of the dataset, or of what is inside it where all parts have the same; otherwise ``None``.

    What is inside a dataset that relabels is not asked; where ``tell``, the log says so.
    """
    if has_own(dataset, name):
        return getattr(dataset, name)
    found = [_said_of_labels(part, name, tell=tell) for part in inner_datasets(dataset)]
    said = found[0] if found and all(value == found[0] for value in found) else None
    if said is None or keeps_labels(dataset):
        return said
    if tell:
        logger.warning(
            "dataset %s has labels or classes of its own, so the %s of the dataset inside it are not used; it may have "
            "its own %s, or class_map may be written down",
            type(dataset).__name__,
            name,
            name,
        )
    return None


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

    Where the dataset has ``teacher_labels`` (:func:`teacher_labels_of`), so has the subset, for its classes.

    Raises:
        ConfigError: a class is unknown or named twice, a class has too few samples, or nothing is left.
    """
    dataset = unwrapped(dataset)
    whole_number("start", start, low=0)
    if per_class is not None:
        whole_number("per_class", per_class, low=1)
    names = classes_of(dataset)
    chosen = [_class_index(entry, names) for entry in classes]
    _refuse_repeated(chosen)
    members = members_of(dataset)
    kept = {
        new: _slice(members[old], names[old], per_class, start)
        for new, old in enumerate(chosen)
        if members[old] or per_class is not None
    }
    if not kept:
        raise ConfigError(
            f"classes: no sample of the {len(chosen)} classes given; the dataset has {len(names)} classes"
        )
    known = teacher_labels_of(dataset)
    teacher_labels = None if known is None else [known[old] for old in chosen]
    return subset_of(dataset, kept, [names[old] for old in chosen], teacher_labels)


def few_shot_subset(dataset: Dataset[Any], shots: int, seed: int = 0) -> ClassSubset:
    """``shots`` random samples of every class, with the dataset's own labels.

    ``teacher_labels`` and ``class_groups`` stay as they are.

    The draw depends on ``seed`` alone, not on the global random state; with one seed, fewer shots are a
    subset of more shots.

    Raises:
        ConfigError: ``shots`` < 1, or a class has fewer samples.
    """
    dataset = unwrapped(dataset)
    whole_number("shots", shots, low=1)
    names, members = classes_of(dataset), members_of(dataset)
    generator = np.random.default_rng(whole_number("seed", seed, low=0))
    kept = {}
    for label, name in enumerate(names):
        if len(members[label]) < shots:
            raise ConfigError(f"class {name!r} has {len(members[label])} samples, shots={shots} needs {shots}")
        kept[label] = [members[label][i] for i in generator.permutation(len(members[label]))[:shots].tolist()]
    known = teacher_labels_of(dataset)
    subset = subset_of(dataset, kept, names, None if known is None else known[: len(names)])
    subset.class_groups = class_groups_of(dataset)
    return subset


def subset_of(
    dataset: Dataset[Any],
    kept: dict[int, list[int]],
    names: list[Any],
    teacher_labels: Sequence[int | None] | None,
) -> ClassSubset:
    """The subset of the samples ``kept[new label]``, in the order of the dataset; the teacher is the dataset's own."""
    pairs = sorted((index, label) for label, indices in kept.items() for index in indices)
    indices, labels = [index for index, _ in pairs], [label for _, label in pairs]
    count = None if teacher_labels is None else teacher_num_classes_of(dataset)
    return ClassSubset(dataset, indices, labels, names, teacher_labels=teacher_labels, teacher_num_classes=count)


def members_of(dataset: Dataset[Any]) -> defaultdict[int, list[int]]:
    """Label → the positions of its samples."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels_of(dataset)):
        members[label].append(index)
    return members


def _slice(indices: list[int], name: Any, per_class: int | None, start: int) -> list[int]:
    needed = start + (per_class or 1)
    if len(indices) < needed:
        size = "" if per_class is None else f"per_class={per_class} and "
        raise ConfigError(f"class {name!r} has {len(indices)} samples, {size}start={start} need {needed}")
    return indices[start:] if per_class is None else indices[start : start + per_class]


def _class_index(entry: int | str, names: list[Any]) -> int:
    if isinstance(entry, str):
        with told_at("classes: "):
            return index_of_name(entry, names)
    if not isinstance(entry, int) or isinstance(entry, bool):
        raise ConfigError(f"classes: must be class indices or names, got {entry!r}")
    if not 0 <= entry < len(names):
        raise ConfigError(f"classes: class index out of range: {entry}, allowed 0 … {len(names) - 1}")
    return entry


def index_of_name(name: str, names: Sequence[Any]) -> int:
    """The position of a name; torchvision's ImageNet has a tuple of synonyms for each class.

    Raises:
        ConfigError: no class has the name, or several have.
    """
    found = [i for i, known in enumerate(names) if name == known or (isinstance(known, tuple) and name in known)]
    if len(found) > 1:
        raise ConfigError(f"name {name!r} belongs to the classes {found}; give the index instead")
    if not found:
        known = [part for entry in names for part in (entry if isinstance(entry, tuple) else (entry,))]
        raise ConfigError(f"no class is named {name!r}; {nearest(name, known)}")
    return found[0]


def _refuse_repeated(chosen: list[int]) -> None:
    repeated = sorted({label for label in chosen if chosen.count(label) > 1})
    if repeated:
        raise ConfigError(f"classes: each class may be given once, class index {repeated[0]} is given twice or more")
