"""Which class of the teacher each class of the student is: the one object to ask about two label spaces."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gkd_plugin.data import class_names_of, classes_of, teacher_labels_of, teacher_num_classes_of
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["ClassMap"]

logger = logging.getLogger(__name__)

Written = str | Mapping[Any, Any] | None
Labels = Sequence[int | None]


@dataclass
class ClassMap:
    """What is known of the classes that student and teacher have in common; made by :meth:`of`.

    Ask :attr:`relation` whether the student's classes are the teacher's own, :attr:`labels` which one is which, and
    :attr:`shared` which of the teacher's own logits a local classifier may read.

    Attributes:
        said: for each class of the student the teacher's label of it, ``None`` for a class that the teacher does not
            have; ``None`` for all where nothing tells.
        said_of: the number of classes of the teacher that the training set speaks of, where it is the training set that
            tells; ``None``: of this teacher. A teacher with another number of classes has other classes.
        written: the wrapper's keyword ``class_map``.
        student_names: of the student's classes, ``None`` where they have none.
        teacher_names: of the teacher's classes, likewise.
        teacher_size: the number of the teacher's classes; ``None`` where it is not known yet, or there are none.
    """

    said: Labels | None = None
    said_of: int | None = None
    written: Written = "auto"
    student_names: Sequence[str] | None = None
    teacher_names: Sequence[str] | None = None
    teacher_size: int | None = None

    @classmethod
    def of(
        cls,
        dataset: Any,
        written: Written = "auto",
        teacher_names: Sequence[str] | None = None,
        teacher_size: int | None = None,
    ) -> ClassMap:
        """The map for a student's training set.

        Args:
            dataset: the training set.
            written: 'auto' asks the training set (``overlap_subset`` and ``incremental_subset`` know), and compares
                what it says with the names; 'names' takes classes of one name to be one class; a mapping gives, for a
                student's class (its name or its index), the teacher's (its index, or its name in ``teacher_names``)
                or null, and what it leaves out is not shared; ``None`` keeps the teacher's own logits out of the local
                classifier.
            teacher_names: the teacher's class names, in the order of its logits.
            teacher_size: see above; 0 for a teacher without a classifier.

        Raises:
            ConfigError: a class that does not exist, one teacher class for two, names that nobody knows, or a training
                set that contradicts the names.
        """
        if teacher_names is not None and not _are_names(teacher_names):
            raise ConfigError(f"teacher_classes: must be a list of class names, got {teacher_names!r}")
        names = class_names_of(dataset)
        found = cls(
            written=written, student_names=names, teacher_names=teacher_names, teacher_size=teacher_size or None
        )
        if not found.is_written:
            found.said, found.said_of = teacher_labels_of(dataset), teacher_num_classes_of(dataset)
        elif written == "names" or isinstance(written, Mapping):
            names = names or [str(name) for name in classes_of(dataset)]
            mapping = _same_names(names, teacher_names) if isinstance(written, str) else written
            found.said = _mapped(mapping or {}, names, teacher_names)
        else:
            raise ConfigError(f"class_map: {written!r} given; 'auto', 'names', null or a mapping of classes")
        if written is not None:
            found._check()
        return found

    @property
    def is_written(self) -> bool:
        """Whether the user wrote one."""
        return self.written not in ("auto", None)

    @property
    def is_of_another_teacher(self) -> bool:
        """Whether the training set speaks of a teacher with another number of classes."""
        return self.said_of is not None and self.teacher_size not in (None, self.said_of)

    @property
    def labels(self) -> Labels | None:
        """``said``, unless that is of another teacher."""
        return None if self.is_of_another_teacher else self.said

    @property
    def shared(self) -> Labels | None:
        """``labels`` for a local classifier; ``None`` where no class is shared, or ``class_map`` is null."""
        return self.labels if self.written is not None and _any(self.labels) else None

    @property
    def relation(self) -> Literal["same", "reordered", "different"] | None:
        """Whether the student's classes are the teacher's own, in the same order; ``None`` where nothing tells.

        Where there are no labels it goes by the names; names that have nothing in common may be spelt otherwise, and
        then tell nothing.
        """
        ours: list[Any]
        theirs: list[Any]
        if self.labels is not None:
            ours, theirs = list(self.labels), list(range(self.teacher_size or len(self.labels)))
        elif self.student_names and self.teacher_names and set(self.student_names) & set(self.teacher_names):
            ours, theirs = list(self.student_names), list(self.teacher_names)
        else:
            return None
        if ours == theirs:
            return "same"
        return "reordered" if set(ours) == set(theirs) else "different"

    def tell_use(self, is_used: bool) -> None:
        """Warns of a map that the local classifier, which uses it or not, leaves out."""
        if self.is_written and not is_used:
            logger.warning("class_map: not used, this local classifier reads the class centres alone")
        if is_used and self.written is not None and self.is_of_another_teacher and _any(self.said):
            logger.warning(
                "class_map: the training set speaks of a teacher with %s classes, this one has %s, so no class is "
                "shared; write the map {student class: teacher class}, or null for no shared class",
                self.said_of,
                self.teacher_size,
            )

    def _check(self) -> None:
        given = [label for label in self.said or () if label is not None]
        label, times = Counter(given).most_common(1)[0] if given else (0, 1)
        if times > 1:
            raise ConfigError(f"class_map: class {label} of the teacher is given for two classes of the student")
        if self.said_of is None:
            self._check_last(max(given, default=-1))
        elif self.teacher_names is not None and self.said_of == len(self.teacher_names):
            self._check_names(self.teacher_names)
        if self.said_of is None and not given and self.teacher_names and self.written == "auto":
            self._tell_common(self.teacher_names)

    def _check_last(self, last: int) -> None:
        if self.teacher_size is not None and last >= self.teacher_size:
            raise ConfigError(
                f"class_map: names class {last} of a teacher with {self.teacher_size} classes "
                f"(0 … {self.teacher_size - 1})"
            )

    def _check_names(self, teacher_names: Sequence[str]) -> None:
        """Compares what the training set says with the names; those that have nothing in common are a warning."""
        names = self.student_names
        if names is None:
            return
        known = set(teacher_names)
        if _any(self.said) and not known & set(names):
            logger.warning(
                "class_map: the training set takes classes (%s, …) to be the teacher's, none of which has such a name "
                "(%s, …): are they spelt otherwise, or is its class_order not the teacher's?",
                names[0],
                teacher_names[0],
            )
            return
        labels = self.said or [None] * len(names)
        for name, label in zip(names, labels, strict=False):
            if label is not None and label < len(teacher_names) and teacher_names[label] != name:
                raise ConfigError(
                    f"class_map: the training set takes its class {name!r} to be the teacher's class {label}, which is "
                    f"{teacher_names[label]!r} by its names; give both one class_order, or class_map: 'names'"
                )
        missed = [name for name, label in zip(names, labels, strict=False) if label is None and name in known]
        if missed:
            logger.warning(
                "class_map: the teacher has classes named %s too, which the training set does not take to be shared; "
                "is its class_order the teacher's? (class_map: 'names' shares them)",
                ", ".join(map(repr, missed[:5])),
            )

    def _tell_common(self, teacher_names: Sequence[str]) -> None:
        known = set(teacher_names)
        common = [name for name in self.student_names or () if name in known]
        if common:
            logger.info(
                "class_map: %d classes have names of the teacher's (%s); stage 'joint' takes them to be its classes "
                "with auxiliary_model_wrapper.kwargs.class_map: 'names'",
                len(common),
                ", ".join(map(repr, common[:5])),
            )


class _Classes:
    """Finds classes by name or index; without names any index is one."""

    def __init__(self, names: Sequence[str] | None, whose: str) -> None:
        self.names = names
        self.whose = whose
        self._places: dict[str, list[int]] = {}
        for place, name in enumerate(names or ()):
            self._places.setdefault(name, []).append(place)

    def index(self, entry: Any, where: str) -> int:
        """The index of a class in a map; ``where`` it stands goes before messages."""
        if isinstance(entry, str):
            if self.names is None:
                raise ConfigError("teacher_classes: the teacher's class names are needed to find a class by its name")
            places = self._places.get(entry, [])
            if len(places) > 1:
                raise ConfigError(f"{where}: {self.whose} has several classes {entry!r}; give the index instead")
            if not places:
                raise ConfigError(f"{where}: {self.whose} has no class {entry!r}; {nearest(entry, self.names)}")
            return places[0]
        if type(entry) is not int or entry < 0 or (self.names is not None and entry >= len(self.names)):
            allowed = "from 0 up" if self.names is None else f"in 0 … {len(self.names) - 1}, or a name"
            raise ConfigError(f"{where}: {self.whose} has no class {entry!r}; allowed: an index {allowed}")
        return entry


def _same_names(names: Sequence[str], teacher_names: Sequence[str] | None) -> dict[int, str]:
    """The map of classes that have a teacher's class's name."""
    if teacher_names is None:
        raise ConfigError("teacher_classes: the teacher's class names are needed for class_map: 'names'")
    known = set(teacher_names)
    common = {index: name for index, name in enumerate(names) if name in known}
    if not common:
        logger.warning("class_map: no class of the student has the name of a class of the teacher")
    return common


def _mapped(written: Mapping[Any, Any], names: Sequence[str], teacher_names: Sequence[str] | None) -> Labels:
    labels: list[int | None] = [None] * len(names)
    student, teacher = _Classes(names, "the student"), _Classes(teacher_names, "the teacher")
    for ours, theirs in written.items():
        label = student.index(ours, "class_map")
        labels[label] = None if theirs is None else teacher.index(theirs, f"class_map.{ours}")
    return labels


def _any(labels: Labels | None) -> bool:
    return any(label is not None for label in labels or ())


def _are_names(given: object) -> bool:
    return isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)
