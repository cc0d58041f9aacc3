"""Which class of the teacher each class of the student is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gkd_plugin.data import class_names_of, classes_of, teacher_labels_of, teacher_num_classes_of
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["ClassMap", "SharedClassesOf", "are_the_teachers", "check_class_names", "resolve_class_map"]

logger = logging.getLogger(__name__)

_WHERE = "class_map"


class SharedClassesOf(NamedTuple):
    """What is known of the classes that student and teacher share.

    Attributes:
        labels: for each class of the student the teacher's label of it, ``None`` where it has none; ``None`` for all
            where no class is known to be shared.
        num_classes: the number of classes of the teacher that this was said of; ``None`` where it is of this teacher.
    """

    labels: list[int | None] | None
    num_classes: int | None


class ClassMap:
    """The teacher wrapper's keywords ``class_map`` and ``teacher_classes``, see :func:`resolve_class_map`."""

    def __init__(self, class_map: str | Mapping[Any, Any] | None, teacher_classes: Sequence[str] | None) -> None:
        self._given = class_map
        self._teacher_classes = teacher_classes

    @property
    def is_asked_for(self) -> bool:
        """Whether the user wrote one."""
        return self._given not in ("auto", None)

    def shared_classes(self, teacher: Any, dataset: Any) -> SharedClassesOf:
        """The shared classes of a teacher and a student's training set.

        Where the names of the teacher's classes are not given, they are those that its weights were trained with
        (``trained_classes``, where this package wrote the checkpoint), and what the training set says is compared
        with them.

        Raises:
            ConfigError: the map does not fit the teacher, the training set or the names of the classes.
        """
        names = getattr(teacher, "trained_classes", None) if self._teacher_classes is None else self._teacher_classes
        labels = resolve_class_map(self._given, names, dataset)
        said_of = teacher_num_classes_of(dataset) if self._given == "auto" else None
        if said_of is None:
            _check_last(labels or [], getattr(teacher, "num_classes", None))
        elif names is not None and said_of == len(names):
            check_class_names(labels, names, dataset)
        if self._given == "auto" and labels is None and said_of is None and names is not None:
            _tell_common(names, class_names_of(dataset) or [])
        return SharedClassesOf(labels, said_of)


def are_the_teachers(
    labels: Sequence[int | None] | None, teacher_classes: Sequence[str] | None, dataset: Any
) -> bool | None:
    """Whether the student's classes are the teacher's own, in one order; ``None`` where nothing shows it.

    Args:
        labels: for each class of the student the teacher's label of it, ``None`` where it has none; where that is not
            known, ``None`` for all.
        teacher_classes: the names of the teacher's classes, or ``None``.
        dataset: the student's training set.
    """
    if labels is not None:
        return list(labels) == list(range(len(labels)))
    names = class_names_of(dataset)
    if names is None or teacher_classes is None or not set(names) & set(teacher_classes):
        return None
    return names == list(teacher_classes)


def resolve_class_map(
    class_map: str | Mapping[Any, Any] | None, teacher_classes: Sequence[str] | None, dataset: Any
) -> list[int | None] | None:
    """For each class of the student the teacher's index of it, or ``None`` for a class that the teacher does not know.

    Args:
        class_map: 'auto' asks the training set (``overlap_subset`` and ``incremental_subset`` know); 'names' takes
            classes of one name to be one class; a mapping gives, for a student's class (its name or its index), the
            teacher's (its index, or its name in ``teacher_classes``) or null, and what it leaves out is not known;
            ``None`` for no map.
        teacher_classes: the teacher's class names, in the order of its logits.
        dataset: the student's training set.

    Returns:
        ``None`` where no class is known to be shared.

    Raises:
        ConfigError: a class that does not exist, one teacher class for two, or names that nobody knows.
    """
    if teacher_classes is not None and not _are_names(teacher_classes):
        raise ConfigError(f"teacher_classes: must be a list of class names, got {teacher_classes!r}")
    if class_map is None:
        return None
    if class_map == "auto":
        labels = teacher_labels_of(dataset)
    elif class_map == "names":
        labels = _same_names(_names(dataset), _given(teacher_classes))
        if not any(label is not None for label in labels):
            logger.warning("class_map: no class of the student has the name of a class of the teacher")
    elif isinstance(class_map, Mapping):
        labels = _mapped(class_map, _names(dataset), teacher_classes)
    else:
        raise ConfigError(f"{_WHERE}: {class_map!r} given; 'auto', 'names', null or a mapping of classes")
    _refuse_twice(labels or [])
    return labels if labels and any(label is not None for label in labels) else None


def check_class_names(shared: Sequence[int | None] | None, teacher_classes: Sequence[str], dataset: Any) -> None:
    """Compares what a training set says of shared classes with the names of the teacher's classes.

    Names that have nothing in common may be spelt otherwise: that is a warning.

    Args:
        shared: for each class of the student the teacher's index of it, or ``None``.
        teacher_classes: names.
        dataset: the student's training set; one that names no classes is not compared.

    Raises:
        ConfigError: a class is said to be one of the teacher's that has another name.
    """
    names = class_names_of(dataset)
    if names is None:
        return
    if shared and not set(names) & set(teacher_classes):
        logger.warning(
            "class_map: the training set takes classes (%s, …) to be the teacher's, none of which has such a name "
            "(%s, …): are they spelt otherwise, or is its class_order not the teacher's?",
            names[0],
            teacher_classes[0],
        )
        return
    labels = list(shared or [None] * len(names))
    for name, label in zip(names, labels, strict=False):
        if label is not None and label < len(teacher_classes) and teacher_classes[label] != name:
            raise ConfigError(
                f"{_WHERE}: the training set takes its class {name!r} to be the teacher's class {label}, which is "
                f"{teacher_classes[label]!r} by its names; give both one class_order, or {_WHERE}: 'names'"
            )
    missed = [name for name, label in zip(names, labels, strict=False) if label is None and name in teacher_classes]
    if missed:
        logger.warning(
            "class_map: the teacher has classes named %s too, which the training set does not take to be shared; is "
            "its class_order the teacher's? (class_map: 'names' shares them)",
            ", ".join(map(repr, missed[:5])),
        )


def _tell_common(teacher_classes: Sequence[str], names: Sequence[str]) -> None:
    common = [name for name in names if name in teacher_classes]
    if common:
        logger.info(
            "class_map: %d classes have names of the teacher's (%s); stage 'joint' takes them to be its classes with "
            "auxiliary_model_wrapper.kwargs.class_map: 'names'",
            len(common),
            ", ".join(map(repr, common[:5])),
        )


def _check_last(labels: Sequence[int | None], classes: object) -> None:
    """Where the number of the teacher's classes is known, none beyond its last may be named."""
    last = max((label for label in labels if label is not None), default=-1)
    if isinstance(classes, int) and 0 < classes <= last:
        raise ConfigError(f"{_WHERE}: names class {last} of a teacher with {classes} classes (0 … {classes - 1})")


def _are_names(given: object) -> bool:
    return isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)


def _same_names(student: list[str], teacher: Sequence[str]) -> list[int | None]:
    return [_index(name, list(teacher), f"{_WHERE}: the teacher") if name in teacher else None for name in student]


def _mapped(class_map: Mapping[Any, Any], names: list[str], teacher: Sequence[str] | None) -> list[int | None]:
    labels: list[int | None] = [None] * len(names)
    for student_class, teacher_class in class_map.items():
        label = _index(student_class, names, f"{_WHERE}: the student")
        labels[label] = None if teacher_class is None else _teacher_index(student_class, teacher_class, teacher)
    return labels


def _teacher_index(student_class: Any, teacher_class: Any, names: Sequence[str] | None) -> int:
    if isinstance(teacher_class, str) or names is not None:
        return _index(teacher_class, [str(name) for name in _given(names)], f"{_WHERE}.{student_class}: the teacher")
    if isinstance(teacher_class, bool) or not isinstance(teacher_class, int) or teacher_class < 0:
        raise ConfigError(f"{_WHERE}.{student_class}: {teacher_class!r} given; the index of a teacher's class, or null")
    return teacher_class


def _index(entry: Any, names: list[str], whose: str) -> int:
    if isinstance(entry, str):
        if entry not in names:
            raise ConfigError(f"{whose} has no class {entry!r}; {nearest(entry, names)}")
        if names.count(entry) > 1:
            raise ConfigError(f"{whose} has several classes {entry!r}; give the index instead")
        return names.index(entry)
    if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < len(names):
        raise ConfigError(f"{whose} has no class {entry!r}; allowed: a name, or an index in 0 … {len(names) - 1}")
    return entry


def _names(dataset: Any) -> list[str]:
    return class_names_of(dataset) or [str(name) for name in classes_of(dataset)]


def _given(names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        raise ConfigError("teacher_classes: the teacher's class names are needed to find a class by its name")
    return names


def _refuse_twice(labels: Sequence[int | None]) -> None:
    known = [label for label in labels if label is not None]
    twice = sorted({label for label in known if known.count(label) > 1})
    if twice:
        raise ConfigError(f"{_WHERE}: class {twice[0]} of the teacher is given for two classes of the student")
