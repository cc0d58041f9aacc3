"""Which classes are shared: asked of the data, by name, or as written."""

import pytest

from gkd_plugin.data import overlap_subset
from gkd_plugin.teacher import ClassMap
from tests.data.fakes import counted
from tests.fakes import TinyImages
from tests.runner.fakes import refused
from tests.teacher.fakes import overlapping, pets


@pytest.mark.parametrize(
    ("dataset", "written", "teacher", "labels", "shared"),
    [
        (overlapping(), "auto", None, [2, 3, None, None], True),
        (overlapping(), None, None, [2, 3, None, None], False),
        (overlapping("abcdefgh", overlap=0.0), "auto", None, [None] * 4, False),
        (pets(), "auto", None, None, False),
        (pets(), {"cat": None}, None, [None] * 3, False),
        (pets(), "names", ["newt", "eft", "cat"], [2, None, 0], True),
        (pets(), {"cat": 281, "newt": 26}, None, [281, None, 26], True),
        (pets(), {0: 281, 2: 26, "dog": None}, None, [281, None, 26], True),
        (pets(), {"cat": "tabby", "dog": 0}, ["pug", "tabby"], [1, 0, None], True),
        (TinyImages(classes=3), {"1": 5}, None, [None, 5, None], True),  # its labels are its names
    ],
)
def test_labels(dataset, written, teacher, labels, shared):
    found = ClassMap.of(dataset, written, teacher)
    assert found.labels == labels
    assert found.shared == (labels if shared else None)


@pytest.mark.parametrize(("size", "believed"), [(4, True), (0, True), (None, True), (3, False)])
def test_a_teacher_with_another_number_of_classes_has_other_classes(size, believed):
    found = ClassMap.of(overlapping(), teacher_size=size)
    assert (found.labels, found.shared) == (([2, 3, None, None],) * 2 if believed else (None, None))


@pytest.mark.parametrize(
    ("dataset", "written", "size", "is_used", "line"),
    [
        (overlapping(), "auto", 4, True, None),
        (overlapping(), "auto", None, True, None),
        (overlapping(), "auto", 3, True, "of a teacher with 4 classes, this one has 3"),
        (overlapping(), "auto", 3, False, None),
        (overlapping(), None, 3, True, None),
        (overlapping("abcdefgh", overlap=0.0), "auto", 3, True, None),
        (overlapping(), {0: 1}, 3, False, "class_map: not used"),
        (overlapping(), {0: 1}, 3, True, None),
    ],
)
def test_a_map_that_is_left_out_is_warned_of(dataset, written, size, is_used, line, caplog):
    ClassMap.of(dataset, written, teacher_size=size).tell_use(is_used)
    assert [line in message for message in caplog.messages] == ([True] if line else [])


SAME = {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    ("dataset", "written", "teacher", "size", "relation"),
    [
        (pets(), SAME, None, 3, "same"),
        (pets(), SAME, None, None, "same"),
        (pets(), SAME, None, 4, "different"),
        (pets(), {0: 0, 1: 2, 2: 1}, None, None, "reordered"),
        (pets(), {0: 0, 1: 1}, ["cat", "dog", "newt"], 3, "different"),
        (pets(), "auto", ["cat", "dog", "newt"], None, "same"),
        (pets(), "auto", ["cat", "newt", "dog"], None, "reordered"),
        (pets(), "auto", ["cat", "dog", "newt", "eft"], None, "different"),
        (pets(), "auto", ["n01", "n02", "n03"], None, None),
        (pets(), "auto", None, 3, None),
        (pets(), None, ["cat", "newt", "dog"], None, "reordered"),
        (overlapping(), "auto", None, None, "different"),
        (overlapping(overlap=1.0), "auto", None, None, "same"),
        (overlapping(overlap=1.0), "auto", None, 5, None),  # it speaks of another teacher
        (overlapping("abcdef", overlap=1.0), None, list("abdc"), None, "reordered"),  # by the names
    ],
)
def test_whether_the_classes_are_the_teachers_own(dataset, written, teacher, size, relation):
    assert ClassMap.of(dataset, written, teacher, size).relation == relation


@pytest.mark.parametrize(
    ("written", "teacher", "message"),
    [
        ("name", None, "class_map: 'name' given; 'auto', 'names', null or a mapping"),
        ("names", None, "teacher_classes: the teacher's class names are needed"),
        ({"cta": 1}, None, "class_map: the student: no class is named 'cta'; did you mean 'cat'"),
        ({3: 1}, None, "class_map: the student: class index must be .* in 0 … 2, got 3"),
        ({"cat": -1}, None, "class_map.cat: the teacher: class index must be .* in 0 … 8, got -1"),
        ({"cat": "tabby"}, None, "teacher_classes: the teacher's class names are needed"),
        ({"cat": "taby"}, ["tabby"], "class_map.cat: the teacher: no class is named 'taby'; did you mean 'tabby'"),
        ({"cat": 1}, ["tabby"], "class_map.cat: the teacher: class index must be .* in 0 … 0, got 1"),
        ("names", ["cat", "dog", "cat"], r"class_map.0: the teacher: name 'cat' belongs to the classes \[0, 2\]"),
        ({"cat": "cat"}, ["cat", "cat"], r"class_map.cat: the teacher: name 'cat' belongs to the classes \[0, 1\]"),
        ("names", "cat", "teacher_classes: must be a list of class names, got 'cat'"),
        ({"cat": 0}, 5, "teacher_classes: must be a list of class names, got 5"),
        ({"cat": 7, "dog": 7}, None, "class_map: class 7 of the teacher is given for two classes"),
        ({"cat": 9}, None, "class_map.cat: the teacher: class index must be .* in 0 … 8, got 9"),
    ],
)
def test_what_cannot_be_a_map(written, teacher, message):
    refused(message, ClassMap.of, pets(), written, teacher, 9)


@pytest.mark.parametrize(
    ("dataset", "names", "line"),
    [
        (overlapping("abcdef"), "abcd", None),
        (overlapping("abcdef"), "xyz", None),  # three: of a teacher that the training set does not speak of
        (overlapping(), "abcd", None),  # names no classes
        (overlapping("abcdef"), "wxyz", "classes (c, …) to be the teacher's, none of which has such a name (w, …)"),
        (overlapping("abcdef"), "eacd", "the teacher has classes named 'e' too"),
    ],
)
def test_names_that_may_contradict_the_training_set_are_warned_of(dataset, names, line, caplog):
    found = ClassMap.of(dataset, "auto", list(names))
    assert (found.said, found.said_of) == ([2, 3, None, None], 4)
    assert [line in message for message in caplog.messages] == ([True] if line else [])


def test_names_of_which_none_is_shared_are_warned_of_and_other_names_refused_unless_the_map_is_null(caplog):
    assert ClassMap.of(pets(), "names", ["Cat", "Dog"]).shared is None
    assert "no class of the student has the name of a class of the teacher" in caplog.text
    message, data = "^class_map: .* class 'c' to be the teacher's class 2, which is 'd'", overlapping("abcdef")
    refused(message, ClassMap.of, data, "auto", list("abdc"))
    assert ClassMap.of(data, None, list("abdc")).shared is None


@pytest.mark.parametrize("written", ["auto", None])
def test_names_in_common_are_told_where_the_training_set_says_nothing(written, caplog):
    caplog.set_level("INFO")
    ClassMap.of(pets(), written, ["newt", "eft", "cat"])
    ClassMap.of(pets())
    want = ["class_map: 2 classes have names of the teacher's ('cat', 'newt')"] if written else []
    assert [message.partition(";")[0] for message in caplog.messages] == want


@pytest.mark.parametrize("written", ["auto", "names"])
def test_names_are_compared_about_once_each(written, caplog):
    count, name = 1000, counted(str)
    theirs = [name(f"class {k}") for k in range(count)]
    dataset = overlap_subset(pets([name(text) for text in theirs]), count, "student", overlap=1.0)
    name.looks = 0
    assert ClassMap.of(dataset, written, theirs).relation == "same"
    assert 0 < name.looks < 40 * count
