"""Splits in which the student's classes overlap the teacher's by a chosen degree (TPAMI 2023, section 5).

In an order of all classes the teacher has positions [0, n) and the student has positions [k, n + k): k = 0 is
standard distillation, k = n is cross-task distillation, and the overlap is (n − k) / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from gkd_plugin.data._checks import whole_number
from gkd_plugin.data.class_order import ClassOrder, ordered_classes
from gkd_plugin.data.class_subset import ClassSubset, class_subset
from gkd_plugin.data.labels import classes_of
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["overlap_classes", "overlap_subset"]

_ROLES = ("teacher", "student")
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
    """The class indices of the teacher or of the student.

    Args:
        num_classes: n, the number of classes that each of the two has.
        role: ``'teacher'`` for positions [0, n) of the class order, ``'student'`` for positions [k, n + k).
        shift: k in 0 … n; give either this or ``overlap``.
        overlap: (n − k) / n in 0 … 1, the fraction of shared classes; k must come out whole.
        class_order: all class indices in the order to cut from, or the path to a text file with one class in each
            line (its name, or its index where no class has that name; blank lines and ``# comments`` are left out).
        seed: draws a random order of ``total_classes`` classes instead; ``None`` keeps the natural order.
        total_classes: the number of classes there are; needed by ``seed``, and checked where given.
        class_names: the names that a file may use.

    Raises:
        ConfigError: arguments are out of range, missing or contradictory, or n + k classes do not exist.

    Example:
        >>> overlap_classes(4, 'teacher', overlap=0.5), overlap_classes(4, 'student', overlap=0.5)
        ([0, 1, 2, 3], [2, 3, 4, 5])
    """
    whole_number("num_classes", num_classes, low=1)
    if role not in _ROLES:
        raise ConfigError(f"role: {role!r} is unknown; {nearest(role, _ROLES)}")
    k = _shift(num_classes, shift, overlap)
    if total_classes is not None:
        whole_number("total_classes", total_classes, low=1)
    elif class_order is None and seed is None:
        total_classes = num_classes + k
    order = ordered_classes(class_order, seed, total_classes, class_names)
    if num_classes + k > len(order):
        raise ConfigError(
            f"num_classes={num_classes} and shift={k} need {num_classes + k} classes, there are {len(order)}"
        )
    first = k if role == "student" else 0
    return order[first : first + num_classes]


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

    Takes the arguments of :func:`overlap_classes` and, as ``per_class`` and ``start``, of
    :func:`gkd_plugin.data.class_subset`. Its ``teacher_labels`` are those of the teacher of the same split:
    the student's label i is the teacher's label i + k, and a class the teacher does not know from n − k on; its
    ``teacher_num_classes`` says that this teacher has n classes.

    Raises:
        ConfigError: as these two.
    """
    names = classes_of(dataset)
    classes = overlap_classes(
        num_classes,
        role,
        shift,
        overlap,
        class_order=class_order,
        seed=seed,
        total_classes=len(names),
        class_names=names,
    )
    subset = class_subset(dataset, classes, per_class, start)
    first = _shift(num_classes, shift, overlap) if role == "student" else 0
    subset.teacher_labels = [i if i < num_classes else None for i in range(first, first + num_classes)]
    subset.teacher_num_classes = num_classes
    return subset


def _shift(n: int, shift: int | None, overlap: float | None) -> int:
    if (shift is None) == (overlap is None):
        raise ConfigError(f"give either shift or overlap, got shift={shift!r} and overlap={overlap!r}")
    if overlap is None:
        return whole_number("shift", shift, low=0, high=n)
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap <= 1:
        raise ConfigError(f"overlap must be a number in 0 … 1, got {overlap!r}")
    k = round(n * (1 - overlap))
    if abs(overlap - (n - k) / n) > _ROUNDING:
        below = int(n * (1 - overlap))
        near = " or ".join(f"{(n - m) / n:.4f} (shift={m})" for m in (below + 1, below))
        raise ConfigError(f"overlap={overlap} of {n} classes is not a whole number of classes; nearest allowed: {near}")
    return k
