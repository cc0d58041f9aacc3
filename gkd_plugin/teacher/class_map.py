"""Which class of the teacher each class of the student is: the one object to ask about two label spaces."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gkd_plugin.data import class_names_of, classes_of, teacher_labels_of, teacher_num_classes_of
from gkd_plugin.data.splits import ClassNames
from gkd_plugin.errors import ConfigError, told_at, whole_number

logger = logging.getLogger(__name__)

Written = str | Mapping[Any, Any] | None
Labels = list[int | None]
Names = Sequence[str] | None


@dataclass
class ClassMap:
    """What is known of the classes that student and teacher have in common; made by :meth:`of`.

    Ask :attr:`relation` whether the student's classes are the teacher's own, :attr:`labels` which one is which, and
    :attr:`shared` which of the teacher's own logits a local classifier may read.
    """

    said: Labels | None = None  # of each class of the student the teacher's label, or None; None where nothing tells
    said_of: int | None = None  # how many classes the teacher has that the training set speaks of
    written: Written = "auto"  # the wrapper's keyword class_map
    student_names: Names = None
    teacher_names: Names = None  # in the order of its logits
    teacher_size: int | None = None  # its number of classes; None where it is not known yet, or there are none

    @classmethod
    def of(
        cls, dataset: Any, written: Written = "auto", teacher_names: Names = None, teacher_size: int | None = None
    ) -> "ClassMap":
        """The map for a student's training set; ``teacher_size`` is 0 for a teacher without a classifier.

        ``written``: 'auto' asks the training set (``overlap_subset`` and ``incremental_subset`` know), and compares
        what it says with the names; 'names' takes classes of one name to be one class; a mapping gives, for a student's
        class (its name or its index), the teacher's (its index, or its name in ``teacher_names``) or null, and what it
        leaves out is not shared; ``None`` keeps the teacher's own logits out of the local classifier.
        """
        is_list = isinstance(teacher_names, list | tuple) and all(isinstance(name, str) for name in teacher_names)
        if teacher_names is not None and not is_list:
            raise ConfigError(f"teacher_classes: must be a list of class names, got {teacher_names!r}")
        names = class_names_of(dataset)
        if written in ("auto", None):
            said, said_of = teacher_labels_of(dataset), teacher_num_classes_of(dataset)
        else:
            names = names or [str(name) for name in classes_of(dataset)]
            said, said_of = _mapped(written, names, teacher_names, teacher_size), None
        found = cls(said, said_of, written, names, teacher_names, teacher_size or None)
        if written is not None:
            found._check()
        return found

    @property
    def labels(self) -> Labels | None:
        """``said``, unless that is of a teacher with another number of classes."""
        return self.said if self.said_of is None or self.teacher_size in (None, self.said_of) else None

    @property
    def shared(self) -> Labels | None:
        """``labels`` for a local classifier; ``None`` where no class is shared, or ``class_map`` is null."""
        return self.labels if self.written is not None and _any(self.labels) else None

    @property
    def relation(self) -> Literal["same", "reordered", "different"] | None:
        """Whether the student's classes are the teacher's own, in the same order; ``None`` where nothing tells.

        A written map goes before the names, if any is common, and these before what the training set says.
        """
        ours, theirs = list[Any](self.student_names or ()), list[Any](self.teacher_names or ())
        if self.written not in ("auto", None) or not set(ours) & set(theirs):
            if self.labels is None:
                return None
            ours, theirs = self.labels, list(range(self.teacher_size or len(self.labels)))
        if ours == theirs:
            return "same"
        return "reordered" if set(ours) == set(theirs) else "different"

    def tell_use(self, is_used: bool) -> None:
        """Warns of a map that the local classifier, which uses it or not, leaves out."""
        if not is_used and self.written not in ("auto", None):
            logger.warning("class_map: not used, this local classifier reads the class centres alone")
        if is_used and self.written is not None and self.labels != self.said and _any(self.said):
            sizes = f"a teacher with {self.said_of} classes, this one has {self.teacher_size}, so no class is shared"
            cure = "write the map {student class: teacher class}, or null for no shared class"
            logger.warning("class_map: the training set speaks of %s; %s", sizes, cure)

    def _check(self) -> None:
        """Refuses labels that cannot be; compares the names with what the training set says."""
        names, theirs = self.student_names or (), list(self.teacher_names or ())
        known, given = set(theirs), Counter(label for label in self.said or () if label is not None)
        common = [name for name in names if name in known]
        if given.total() > len(given):
            label = given.most_common(1)[0][0]
            raise ConfigError(f"class_map: class {label} of the teacher is given for two classes of the student")
        if self.written == "auto" and self.said_of is None and not given and common:
            alike = f"{len(common)} classes have names of the teacher's ({_few(common)})"
            hint = "stage 'joint' takes them to be its classes with auxiliary_model_wrapper.kwargs.class_map: 'names'"
            logger.info("class_map: %s; %s", alike, hint)
        if self.said_of is None or self.said_of != len(theirs):
            return
        if names and given and not common:
            text = f"({names[0]}, …) to be the teacher's, none of which has such a name ({theirs[0]}, …)"
            question = "are they spelt otherwise, or is its class_order not the teacher's?"
            logger.warning("class_map: the training set takes classes %s: %s", text, question)
            return
        pairs = list(zip(names, self.said or [None] * len(names), strict=False))
        for name, said in pairs:
            if said is not None and said < len(theirs) and theirs[said] != name:
                taken = f"its class {name!r} to be the teacher's class {said}, which is {theirs[said]!r} by its names"
                cure = "give both one class_order, or class_map: 'names'"
                raise ConfigError(f"class_map: the training set takes {taken}; {cure}")
        missed = [name for name, said in pairs if said is None and name in known]
        if missed:
            text = f"{_few(missed)} too, which the training set does not take to be shared"
            hint = "is its class_order the teacher's? (class_map: 'names' shares them)"
            logger.warning("class_map: the teacher has classes named %s; %s", text, hint)


def _mapped(written: Any, names: Sequence[str], teacher_names: Names, teacher_size: int | None) -> Labels:
    """The labels that a map in the configuration means."""
    teacher = None if teacher_names is None else ClassNames(teacher_names)
    last = teacher_size - 1 if teacher_size else None
    if written == "names":
        if teacher is None:
            raise ConfigError("teacher_classes: the teacher's class names are needed for class_map: 'names'")
        written = {index: name for index, name in enumerate(names) if name in teacher}
        if not written:
            logger.warning("class_map: no class of the student has the name of a class of the teacher")
    if not isinstance(written, Mapping):
        raise ConfigError(f"class_map: {written!r} given; 'auto', 'names', null or a mapping of classes")
    student = ClassNames(names)
    labels: Labels = [None] * len(names)
    for ours, theirs in written.items():
        with told_at("class_map: the student: "):
            label = student.label(ours)
        if isinstance(theirs, str) and teacher is None:
            raise ConfigError("teacher_classes: the teacher's class names are needed to find a class by its name")
        with told_at(f"class_map.{ours}: the teacher: "):
            if theirs is not None:
                found = teacher.label(theirs) if teacher else theirs
                labels[label] = whole_number("class index", found, low=0, high=last)
    return labels


def _any(labels: Labels | None) -> bool:
    return any(label is not None for label in labels or ())


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5]))
