"""Splits of a dataset by an order of its classes: natural, a list, a text file, or drawn from a seed.

Another split is one more function here. It cuts classes from :func:`ordered_classes` and gives them to
:func:`class_subset`, or chooses samples too and gives both to :func:`pick`; either adds the names of the classes and
what is known of the teacher's. A YAML file then calls it as ``gkd_plugin.data.splits.<function>``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gkd_plugin.data.labels import classes_of
from gkd_plugin.data.subsets import ClassNames, ClassSubset, check_size, class_subset, members_of
from gkd_plugin.errors import ConfigError, is_number, nearest_beside, one_of, told_at, whole_number

__all__ = ["ClassOrder", "class_split", "incremental_subset", "ordered_classes", "overlap_classes", "overlap_subset"]

ClassOrder = Sequence[int] | str  # all class indices, or the path to a text file that holds one class in each line

_COMMENT = re.compile(r"(^|\s)#.*")
_ROUNDING = 5e-5 + 1e-9  # an overlap may be written with four decimals: 0.3333, 0.0312 for 1 / 32


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
        class_order: all class indices, or the path to a text file of them, see :func:`ordered_classes`.
        seed: draws a random class order instead; ``None`` keeps the natural order.
        total_classes: the number of classes there are; needed by ``seed``, and checked where given.
        class_names: the names that a file may use.

    Raises:
        ConfigError: arguments are out of range, missing or contradictory, or n + k classes do not exist.

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

    Takes the arguments of :func:`overlap_classes` and, as ``per_class`` and ``start``, of :func:`class_subset`; raises
    what they raise. The teacher of its ``teacher_labels`` is that of the same split, with ``num_classes`` classes: the
    student's label i is the teacher's label i + k, and a class that the teacher does not know from n − k on.
    """
    names = classes_of(dataset)
    total = len(names)
    classes = overlap_classes(
        num_classes, role, shift, overlap, class_order=class_order, seed=seed, total_classes=total, class_names=names
    )
    first = 0 if role == "teacher" else _shift(num_classes, shift, overlap)
    return _with_teacher(class_subset(dataset, classes, per_class, start), num_classes, first)


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

    Args:
        dataset: a torchvision-style map dataset.
        part: which of ``sizes``.
        sizes: name of a part → its number of classes; the parts follow each other in the class order, in this order.
            Classes may be left over.
        class_order: all class indices, or the path to a text file of them, see :func:`ordered_classes`.
        seed: draws a random class order instead; ``None`` keeps the natural order.
        per_class: samples of each class, see :func:`class_subset`.
        start: samples of each class to leave out first.

    Raises:
        ConfigError: the part is unknown or empty, there are too few classes, or as :func:`class_subset` and
            :func:`ordered_classes`.
    """
    if not isinstance(sizes, Mapping):
        raise ConfigError(f"sizes must map the names of the parts to numbers of classes, got {sizes!r}")
    counts = {name: whole_number(f"sizes.{name}", size, low=1) for name, size in sizes.items()}
    one_of("part", part, counts)
    names, total = classes_of(dataset), sum(counts.values())
    if total > len(names):
        raise ConfigError(
            f"sizes: {' + '.join(map(str, counts.values()))} = {total} classes, the dataset has {len(names)}"
        )
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
    The subset's ``class_groups`` (``{'old': […], 'new': […]}``) say which accuracies are shown apart.

    Args:
        dataset: a torchvision-style map dataset.
        old: the number of classes that the teacher knows, the first of the class order.
        new: the number of classes after them.
        memory: exemplars of each old class, the first of its samples; 0 leaves none, but the classes stay.
            ``None`` keeps all samples: test sets, and joint training.
        class_order: all class indices, or the path to a text file of them, see :func:`ordered_classes`.
        seed: draws a random class order instead; ``None`` keeps the natural order.
        per_class: samples of each class, see :func:`class_subset`; exemplars are the first of them.
        start: samples of each class to leave out first.

    Raises:
        ConfigError: an argument is out of range, there are too few classes, an old class has fewer samples than
            ``memory``, a new class has none, or as :func:`class_subset` and :func:`ordered_classes`.
    """
    whole_number("old", old, low=1)
    whole_number("new", new, low=1)
    names = classes_of(dataset)
    if old + new > len(names):
        raise ConfigError(f"old={old} and new={new} need {old + new} classes, the dataset has {len(names)}")
    order = ordered_classes(class_order, seed, len(names), names)
    subset = class_subset(dataset, order[: old + new], per_class, start)
    if max(subset.targets) < old:
        raise ConfigError("new: none of the new classes has a sample")
    if memory is not None:
        _forget(subset, old, whole_number("memory", memory, low=0))
    subset.class_groups = {"old": list(range(old)), "new": list(range(old, old + new))}
    return _with_teacher(subset, old)


def ordered_classes(
    class_order: ClassOrder | None,
    seed: int | None,
    total_classes: int | None,
    class_names: Sequence[Any] | None = None,
) -> list[int]:
    """All class indices in the order to cut from.

    Args:
        class_order: all class indices, or the path to a UTF-8 text file that holds one class in each line: its name,
            or its index where no class has that name. Blank lines and ``# comments`` are left out.
        seed: draws a random order of ``total_classes`` classes instead, whatever the global random state is.
        total_classes: the number of classes there are; only with ``class_order`` it may be ``None``.
        class_names: the names that a file may use.

    Raises:
        ConfigError: both ``class_order`` and ``seed`` are given, the number of classes is needed and not given, the
            file cannot be read, or the order does not hold each class once.
    """
    if class_order is None:
        if total_classes is None:
            raise ConfigError(f"seed={seed!r} draws an order of all classes, so total_classes is needed too")
        if seed is None:
            return list(range(total_classes))
        generator = np.random.default_rng(whole_number("seed", seed, low=0))
        return [int(label) for label in generator.permutation(total_classes)]
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
    wrong = {
        "twice": [names[label] for label, count in counts.items() if count > 1],
        "missing": [names[label] for label in range(size) if label not in counts],
    }
    if any(wrong.values()):
        found = ", ".join(f"{what} {classes[:5]}" for what, classes in wrong.items() if classes)
        file = f" {class_order}" if isinstance(class_order, str) else ""
        raise ConfigError(f"class_order{file} must hold each of the {size} classes once; {found}")
    return order


def _read_order(path: Path, total_classes: int | None, class_names: Sequence[Any] | None) -> list[int]:
    lines = list(_lines(path))
    known = ClassNames(range(total_classes or len(lines)) if class_names is None else class_names)
    order = []
    for number, entry in lines:
        with told_at(f"class_order: {path}, line {number}: "):
            order.append(known.label(int(entry) if entry.isdecimal() and entry not in known else entry))
    return order


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and what stands there, without blank lines and comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"class_order: there is no file {path}{nearest_beside(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"class_order: {path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        entry = _COMMENT.sub("", line).strip()
        if entry:
            yield number, entry


def _shift(n: int, shift: int | None, overlap: float | None) -> int:
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


def _with_teacher(subset: ClassSubset, num_classes: int, first: int = 0) -> ClassSubset:
    """Says of a subset that its label i is label first + i of a teacher with ``num_classes`` classes."""
    labels = range(first, first + len(subset.classes))
    subset.teacher_labels = [label if label < num_classes else None for label in labels]
    subset.teacher_num_classes = num_classes
    return subset


def _forget(subset: ClassSubset, old: int, memory: int) -> None:
    """Leaves the first ``memory`` samples of each old class, and all of the others."""
    members = members_of(subset)
    for label in range(old):
        check_size(subset.classes[label], members[label], memory, f"memory={memory}")
        members[label] = members[label][:memory]
    kept = sorted(position for positions in members.values() for position in positions)
    subset.indices = [subset.indices[position] for position in kept]
    subset.targets = [subset.targets[position] for position in kept]
