"""Subsets of a dataset by class, relabelled 0, 1, …: chosen classes, splits by an order of the classes, few shots.

Another split is one more function here, which gives classes of :func:`ordered_classes` to :func:`class_subset`, or its
own choice of samples to :func:`pick`. All raise ConfigError where an argument is out of range or contradicts another,
where a class is unknown, given twice or has too few samples, and where no sample is left.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gkd_plugin.data.labels import (
    UNLABELLED,
    class_groups_of,
    classes_of,
    labels_of,
    teacher_labels_of,
    teacher_num_classes_of,
    unwrapped,
)
from gkd_plugin.errors import ConfigError, is_number, nearest, nearest_beside, one_of, told_at, whole_number

__all__ = ["ClassNames", "ClassOrder", "ClassSubset", "class_split", "class_subset", "few_shot_subset", "few_shot_task"]
__all__ += ["incremental_subset", "members_of", "ordered_classes", "overlap_classes", "overlap_subset", "pick"]
__all__ += ["train_test_subset"]

ClassOrder = Sequence[int] | str  # all class indices, or the path to a text file that holds one class in each line

_COMMENT = re.compile(r"(^|\s)#.*")
_ROUNDING = 5e-5 + 1e-9  # an overlap may be written with four decimals: 0.3333, 0.0312 for 1 / 32


@dataclass(eq=False, repr=False)
class ClassSubset(Dataset[Any]):
    """Some samples of a dataset, with labels of their own; every split makes one.

    Attributes:
        dataset: a map dataset whose samples start with the image.
        indices: the positions of the samples in ``dataset``.
        targets: the new labels, one for each index, each a position in ``classes``.
        classes: the names (or indices in ``dataset``) of the classes, in the order of the new labels.
        teacher_labels: the teacher's own label of each class, ``None`` where the teacher does not know the class;
            ``None`` as a whole where nothing is known.
        teacher_num_classes: how many classes the teacher has; ``None`` where it is not known.
        class_groups: name → new labels, for groups of classes whose accuracies are shown apart.
    """

    dataset: Dataset[Any]
    indices: Sequence[int]
    targets: Sequence[int]
    classes: Sequence[Any]
    teacher_labels: Sequence[int | None] | None = field(default=None, kw_only=True)
    teacher_num_classes: int | None = field(default=None, kw_only=True)
    class_groups: Mapping[str, Sequence[int]] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        labels, count = self.teacher_labels or (), len(self.classes)
        if self.teacher_labels is not None and len(labels) != count:
            raise ConfigError(f"teacher_labels must be one for each of {count} classes, got {len(labels)}")
        last = max((label for label in labels if label is not None), default=-1)
        if self.teacher_num_classes is not None and last >= self.teacher_num_classes:
            raise ConfigError(f"teacher_labels name class {last} of a teacher with {self.teacher_num_classes} classes")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[self.indices[index]][0], self.targets[index]


def pick(dataset: Dataset[Any], classes: Sequence[int], samples: Sequence[Sequence[int]]) -> ClassSubset:
    """Chosen samples of chosen classes, in the order of the dataset, with what is known of the teacher's classes.

    ``classes`` holds the old label of each new label, ``samples`` the positions of its samples in ``dataset``.
    """
    dataset = unwrapped(dataset)
    names, known = classes_of(dataset), teacher_labels_of(dataset)
    pairs = sorted((index, label) for label, indices in enumerate(samples) for index in indices)
    indices, targets = [index for index, _ in pairs], [label for _, label in pairs]
    own = None if known is None else [known[old] for old in classes if old < len(known)]
    subset = ClassSubset(dataset, indices, targets, [names[old] for old in classes], teacher_labels=own)
    return subset if known is None else replace(subset, teacher_num_classes=teacher_num_classes_of(dataset))


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
    """
    least = 1 if per_class is None else whole_number("per_class", per_class, low=1)
    whole_number("start", start, low=0)
    names, members = classes_of(dataset), members_of(dataset)
    known = ClassNames(names)
    with told_at("classes: "):
        labels = [known.label(entry) for entry in classes]
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise ConfigError(f"each class may be given once, class index {min(twice)} is given twice or more")
    for label in labels:
        if members[label] or per_class is not None:
            _check_size(names[label], members[label], start + least, f"start={start} and per_class={per_class}")
    samples = [members[label][start : None if per_class is None else start + per_class] for label in labels]
    if not any(samples):
        raise ConfigError(f"classes: no sample of the {len(labels)} given; the dataset has {len(names)} classes")
    return pick(dataset, labels, samples)


def overlap_classes(
    num_classes: int,
    role: str,
    shift: int | None = None,
    overlap: float | None = None,
    *,
    class_order: ClassOrder | None = None,
    seed: int | None = None,
    total_classes: int | None = None,
    class_names: Sequence[Any] | None = None,
) -> list[int]:
    """The class indices of the teacher or of the student, which overlap by a chosen degree (TPAMI 2023, section 5).

    Of an order of all classes the teacher has positions [0, n) and the student positions [k, n + k): k = 0 is standard
    distillation, k = n is cross-task distillation, and the overlap is (n − k) / n.

    Args:
        num_classes: n, the number of classes that each of the two has.
        role: ``'teacher'`` or ``'student'``.
        shift: k in 0 … n; give either this or ``overlap``.
        overlap: (n − k) / n in 0 … 1, the fraction of shared classes; k must come out whole.
        class_order: all class indices, or the path to a UTF-8 text file that holds one class in each line: its name,
            or its index where no class has that name. Blank lines and ``# comments`` are left out.
        seed: draws a random class order instead, whatever the global random state is; ``None`` keeps the natural order.
        total_classes: the number of classes there are; needed by ``seed``, and checked where given.
        class_names: the names that a file may use.

    Example:
        >>> overlap_classes(4, 'teacher', overlap=0.5), overlap_classes(4, 'student', overlap=0.5)
        ([0, 1, 2, 3], [2, 3, 4, 5])
    """
    whole_number("num_classes", num_classes, low=1)
    one_of("role", role, ("teacher", "student"))
    k = _shift(num_classes, shift, overlap)
    needed = num_classes + k
    if total_classes is not None:
        whole_number("total_classes", total_classes, low=1)
    elif class_order is None and seed is None:
        total_classes = needed
    order = ordered_classes(class_order, seed, total_classes, class_names)
    if needed > len(order):
        raise ConfigError(f"num_classes={num_classes} and shift={k} need {needed} classes, there are {len(order)}")
    return order[:num_classes] if role == "teacher" else order[k:needed]


def overlap_subset(
    dataset: Dataset[Any],
    num_classes: int,
    role: str,
    shift: int | None = None,
    overlap: float | None = None,
    *,
    class_order: ClassOrder | None = None,
    seed: int | None = None,
    per_class: int | None = None,
    start: int = 0,
) -> ClassSubset:
    """The teacher's or the student's part of a dataset, relabelled 0 … num_classes − 1.

    Takes the arguments of :func:`overlap_classes` and :func:`class_subset`. Its ``teacher_labels`` are those of the
    teacher of the same split: the student's label i is its label i + k, and it does not know those from n − k on.
    """
    names = classes_of(dataset)
    order = ordered_classes(class_order, seed, len(names), names)
    classes = overlap_classes(num_classes, role, shift, overlap, class_order=order)
    subset = class_subset(dataset, classes, per_class, start)
    first = 0 if role == "teacher" else _shift(num_classes, shift, overlap)
    labels = [label if label < num_classes else None for label in range(first, first + num_classes)]
    return replace(subset, teacher_labels=labels, teacher_num_classes=num_classes)


def class_split(
    dataset: Dataset[Any],
    part: str,
    sizes: Mapping[str, int],
    *,
    class_order: ClassOrder | None = None,
    seed: int | None = None,
    per_class: int | None = None,
    start: int = 0,
) -> ClassSubset:
    """One of several parts that share no class (base, validation and novel classes, say), relabelled from 0 up.

    Takes ``class_order`` and ``seed`` as :func:`overlap_classes`, ``per_class`` and ``start`` as :func:`class_subset`.

    Args:
        part: which of ``sizes``.
        sizes: name of a part → its number of classes; cut from the class order in turn; some may be left over.
    """
    if not isinstance(sizes, Mapping):
        raise ConfigError(f"sizes must map the names of the parts to numbers of classes, got {sizes!r}")
    counts = {name: whole_number(f"sizes.{name}", size, low=1) for name, size in sizes.items()}
    one_of("part", part, counts)
    names, terms = classes_of(dataset), " + ".join(map(str, counts.values()))
    if sum(counts.values()) > len(names):
        raise ConfigError(f"sizes: {terms} = {sum(counts.values())} classes, the dataset has {len(names)}")
    order = ordered_classes(class_order, seed, len(names), names)
    first = sum(list(counts.values())[: list(counts).index(part)])
    return class_subset(dataset, order[first : first + counts[part]], per_class, start)


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
    The subset's ``class_groups`` are ``{'old': […], 'new': […]}``. Takes ``class_order`` and ``seed`` as
    :func:`overlap_classes`, ``start`` as :func:`class_subset`.

    Args:
        old: the number of classes that the teacher knows, the first of the class order.
        new: the number of classes after them.
        memory: exemplars of each old class, the first of its samples; 0 leaves none, but the classes stay.
            ``None`` keeps all samples: test sets, and joint training.
        per_class: samples of each class; exemplars are the first of them.
    """
    total, names = whole_number("old", old, low=1) + whole_number("new", new, low=1), classes_of(dataset)
    if total > len(names):
        raise ConfigError(f"old={old} and new={new} need {total} classes, the dataset has {len(names)}")
    order = ordered_classes(class_order, seed, len(names), names)
    subset = class_subset(dataset, order[:total], per_class, start)
    if max(subset.targets) < old:
        raise ConfigError("new: none of the new classes has a sample")
    if memory is not None:
        whole_number("memory", memory, low=0)
        members = members_of(subset)
        for label in range(old):
            _check_size(subset.classes[label], members[label], memory, f"memory={memory}")
            members[label] = members[label][:memory]
        samples = [[subset.indices[index] for index in members[label]] for label in range(total)]
        subset = pick(subset.dataset, order[:total], samples)
    groups = {"old": list(range(old)), "new": list(range(old, total))}
    return replace(subset, class_groups=groups, teacher_labels=[*range(old), *[None] * new], teacher_num_classes=old)


def few_shot_subset(dataset: Dataset[Any], shots: int, seed: int = 0) -> ClassSubset:
    """``shots`` random samples of every class, with the dataset's own labels and ``class_groups``.

    Args:
        shots: samples of each class, 1 or more; with one seed, fewer shots are a subset of more shots.
        seed: of the draw, which does not depend on the global random state.
    """
    whole_number("shots", shots, low=1)
    names, members = classes_of(dataset), members_of(dataset)
    generator = np.random.default_rng(whole_number("seed", seed, low=0))
    for label, name in enumerate(names):
        _check_size(name, members[label], shots, f"shots={shots}")
    samples = [generator.permutation(members[label]).tolist()[:shots] for label in range(len(names))]
    return replace(pick(dataset, range(len(names)), samples), class_groups=class_groups_of(dataset))


def train_test_subset(
    dataset: Dataset[Any], split: str = "train", test_fraction: float = 0.2, seed: int = 0
) -> ClassSubset:
    """One of two disjoint parts of a dataset; each has its part of every class, drawn at random, and at least a sample.

    Args:
        split: ``'train'`` or ``'test'``.
        test_fraction: the part of each class's samples that ``'test'`` has.
        seed: of the draw, which does not depend on the global random state.
    """
    one_of("split", split, ("train", "test"))
    if not is_number(test_fraction) or not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction: must lie between 0 and 1, got {test_fraction!r}")
    names, members = classes_of(dataset), members_of(dataset)
    generator = np.random.default_rng(whole_number("seed", seed, low=0))
    samples = []
    for label, name in enumerate(names):
        _check_size(name, members[label], 2, "a training and a test sample")
        order, count = generator.permutation(members[label]).tolist(), len(members[label])
        tested = min(max(round(test_fraction * count), 1), count - 1)
        samples.append(order[:tested] if split == "test" else order[tested:])
    return replace(pick(dataset, range(len(names)), samples), class_groups=class_groups_of(dataset))


def few_shot_task(
    dataset: Dataset[Any], ways: int, shots: int, task: int, role: str, *, queries: int | None = 15, seed: int = 0
) -> ClassSubset:
    """One part of one N-way K-shot task, its classes relabelled 0 … N − 1.

    ``seed`` and ``task`` alone draw the classes and, for each class, a permutation of its images: the support set is
    cut from its front, the queries from its end. So fewer shots are a subset of more, with the same queries. To cut the
    two from two datasets with the same classes, give ``queries: 0`` for the support set and ``shots: 0`` for the other.

    Args:
        dataset: a torchvision-style map dataset of the novel classes.
        ways: N, from 2 up.
        shots: K, the images of each class in the support set; for the queries, how many are left to the support set.
        task: the number of the task, 0, 1, …
        role: ``'support'`` or ``'query'``.
        queries: the images of each class to answer for; for the support set, how many are left to the queries.
            ``None``: all that the support set leaves.
        seed: of all tasks.
    """
    one_of("role", role, ("support", "query"))
    is_support = role == "support"
    whole_number("ways", ways, low=2)
    whole_number("shots", shots, low=1 if is_support else 0)
    others = int(not is_support) if queries is None else whole_number("queries", queries, low=0 if is_support else 1)
    entropy = [whole_number("seed", seed, low=0), whole_number("task", task, low=0)]
    names, members = classes_of(dataset), members_of(dataset)
    if ways > len(names):
        raise ConfigError(f"ways={ways}, but the dataset has {len(names)} classes")
    drawn = np.random.default_rng(entropy).permutation(len(names))[:ways].tolist()
    samples = []
    for label in drawn:
        _check_size(names[label], members[label], shots + others, f"shots={shots} and queries={others}")
        order = np.random.default_rng([*entropy, label + 1]).permutation(members[label]).tolist()
        samples.append(order[:shots] if is_support else order[len(order) - queries if queries else shots :])
    return pick(dataset, drawn, samples)


def ordered_classes(
    class_order: ClassOrder | None,
    seed: int | None,
    total_classes: int | None,
    class_names: Sequence[Any] | None = None,
) -> list[int]:
    """All class indices in the order to cut from; the arguments are those of :func:`overlap_classes`."""
    if class_order is None:
        if total_classes is None:
            raise ConfigError(f"seed={seed!r} draws an order of all classes, so total_classes is needed too")
        if seed is None:
            return list(range(total_classes))
        return list(np.random.default_rng(whole_number("seed", seed, low=0)).permutation(total_classes).tolist())
    if seed is not None:
        raise ConfigError(f"give either class_order or seed, got both (seed={seed!r})")
    if isinstance(class_order, str):
        order = _read_order(Path(class_order), total_classes, class_names)
    elif isinstance(class_order, list | tuple | range):
        last = max((total_classes or len(class_order)) - 1, 0)
        order = [whole_number(f"class_order: entry {i}", k, low=0, high=last) for i, k in enumerate(class_order)]
    else:
        raise ConfigError(f"class_order must be a list of class indices or the path to a file, got {class_order!r}")
    size = len(order) if total_classes is None else total_classes
    names, counts = range(size) if class_names is None else class_names, Counter(order)
    twice = [names[label] for label, count in counts.items() if count > 1]
    missing = [names[label] for label in range(size) if label not in counts]
    if twice or missing:
        file = f" {class_order}" if isinstance(class_order, str) else ""
        found = [f"{what} {labels[:5]}" for what, labels in (("twice", twice), ("missing", missing)) if labels]
        raise ConfigError(f"class_order{file} must hold each of the {size} classes once; {', '.join(found)}")
    return order


def _read_order(path: Path, total_classes: int | None, class_names: Sequence[Any] | None) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"class_order: there is no file {path}{nearest_beside(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"class_order: {path} cannot be read as UTF-8 text: {error}") from error
    lines = [_COMMENT.sub("", line).strip() for line in text.splitlines()]
    known = ClassNames(range(total_classes or sum(map(bool, lines))) if class_names is None else class_names)
    order = []
    for number, entry in enumerate(lines, start=1):
        with told_at(f"class_order: {path}, line {number}: "):
            if entry:
                order.append(known.label(int(entry) if entry.isdecimal() and entry not in known else entry))
    return order


def _shift(n: int, shift: int | None, overlap: float | None) -> int:
    """K, the number of the student's classes that the teacher does not have."""
    if (shift is None) == (overlap is None):
        raise ConfigError(f"give either shift or overlap, got shift={shift!r} and overlap={overlap!r}")
    if overlap is None:
        return whole_number("shift", shift, low=0, high=n)
    if not is_number(overlap) or not 0 <= overlap <= 1:
        raise ConfigError(f"overlap must be a number in 0 … 1, got {overlap!r}")
    k = round(n * (1 - overlap))
    if abs(overlap - (n - k) / n) > _ROUNDING:
        below = int(n * (1 - overlap))
        near = " or ".join(f"{(n - m) / n:.4f} (shift={m})" for m in (below + 1, below))
        raise ConfigError(f"overlap={overlap} of {n} classes is not a whole number of classes; nearest allowed: {near}")
    return k


class ClassNames:
    """Finds classes by index or name; a class may have a tuple of names, as in torchvision's ImageNet."""

    def __init__(self, names: Sequence[Any]) -> None:
        self._count = len(names)
        self._labels: defaultdict[Any, list[int]] = defaultdict(list)
        for label, entry in enumerate(names):
            for name in set(entry) if isinstance(entry, tuple) else {str(entry)}:
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
            raise ConfigError(f"no class is named {entry!r}; {nearest(entry, self._labels)}")
        return labels[0]


def members_of(dataset: Dataset[Any]) -> defaultdict[int, list[int]]:
    """Label → the positions of its samples."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels_of(dataset)):
        members[label].append(index)
    if UNLABELLED in members:
        raise ConfigError("a split needs labels: put with_unlabelled around it, rather than inside it")
    return members


def _check_size(name: Any, samples: Sequence[int], needed: int, what_for: str) -> None:
    if len(samples) < needed:
        raise ConfigError(f"class {name!r} has {len(samples)} samples, but {what_for} need {needed}")
