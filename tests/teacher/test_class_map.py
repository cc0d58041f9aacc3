"""Which classes are shared: asked of the data, by name, or as written."""

from types import SimpleNamespace

import pytest

from gkd_plugin import ConfigError
from gkd_plugin.data import overlap_subset
from gkd_plugin.teacher.class_map import ClassMap, are_the_teachers, check_class_names, resolve_class_map
from tests.fakes import TinyImages


@pytest.fixture
def pets():
    data = TinyImages(classes=3)
    data.classes = ["cat", "dog", "newt"]
    return data


def test_the_training_set_knows():
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    assert resolve_class_map("auto", None, student) == [2, 3, None, None]


def test_nothing_is_known_of_a_plain_dataset(pets):
    assert resolve_class_map("auto", None, pets) is None


def test_no_shared_class_is_no_map(pets):
    assert resolve_class_map("auto", None, overlap_subset(TinyImages(classes=6), 3, "student", overlap=0.0)) is None
    assert resolve_class_map({"cat": None}, None, pets) is None
    assert resolve_class_map(None, None, pets) is None


def test_by_equal_names(pets):
    assert resolve_class_map("names", ["newt", "eft", "cat"], pets) == [2, None, 0]


def test_names_of_which_none_is_shared_are_warned_of(pets, caplog):
    assert resolve_class_map("names", ["Cat", "Dog"], pets) is None
    assert "no class of the student has the name of a class of the teacher" in caplog.text


@pytest.mark.parametrize("class_map", [{"cat": 281, "newt": 26}, {0: 281, 2: 26, "dog": None}])
def test_as_written_with_indices(pets, class_map):
    assert resolve_class_map(class_map, None, pets) == [281, None, 26]


def test_as_written_with_names(pets):
    assert resolve_class_map({"cat": "tabby", "dog": 0}, ["pug", "tabby"], pets) == [1, 0, None]


@pytest.mark.parametrize(
    ("class_map", "teacher_classes", "message"),
    [
        ("name", None, "class_map: 'name' given; 'auto', 'names', null or a mapping"),
        (["cat"], None, r"class_map: \['cat'\] given"),
        ("names", None, "teacher_classes: the teacher's class names are needed"),
        ({"cta": 1}, None, "class_map: the student has no class 'cta'; did you mean 'cat'"),
        ({3: 1}, None, "class_map: the student has no class 3; allowed: a name, or an index in 0 … 2"),
        ({True: 1}, None, "class_map: the student has no class True"),
        ({"cat": -1}, None, "class_map.cat: -1 given; the index of a teacher's class"),
        ({"cat": "tabby"}, None, "teacher_classes: the teacher's class names are needed"),
        ({"cat": "taby"}, ["tabby"], "class_map.cat: the teacher has no class 'taby'; did you mean 'tabby'"),
        ({"cat": 1}, ["tabby"], "class_map.cat: the teacher has no class 1; allowed: a name, or an index in 0 … 0"),
        ("names", ["cat", "dog", "cat"], "class_map: the teacher has several classes 'cat'; give the index instead"),
        ({"cat": "cat"}, ["cat", "cat"], "class_map.cat: the teacher has several classes 'cat'"),
        ("names", {"cat": 0}, r"teacher_classes: must be a list of class names, got \{'cat': 0\}"),
        ("names", "cat", "teacher_classes: must be a list of class names, got 'cat'"),
        ({"cat": 0}, 5, "teacher_classes: must be a list of class names, got 5"),
        ({"cat": 7, "dog": 7}, None, "class_map: class 7 of the teacher is given for two classes"),
    ],
)
def test_what_cannot_be_a_map(pets, class_map, teacher_classes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_class_map(class_map, teacher_classes, pets)


def test_names_that_fit_pass(pets, caplog):
    check_class_names([2, None, 0], ["newt", "eft", "cat"], pets)
    check_class_names(None, ["eel", "eft"], pets)
    check_class_names([2, 1, 0], ["a", "b", "c"], TinyImages(classes=3))  # which names none
    assert not caplog.messages


def test_a_shared_class_of_another_name_is_refused(pets):
    with pytest.raises(
        ConfigError, match=r"^class_map: the training set takes its class 'dog' to be the teacher's class 1, w"
    ):
        check_class_names([2, 1, None], ["newt", "eft", "cat"], pets)


def test_names_that_have_nothing_in_common_may_be_spelt_otherwise(pets, caplog):
    check_class_names([2, 1, None], ["n01", "n02", "n03"], pets)
    assert len(caplog.messages) == 1
    assert "takes classes (cat, …) to be the teacher's, none of which has such a name (n01, …)" in caplog.messages[0]


def test_classes_of_one_name_that_are_not_shared_are_warned_of(pets, caplog):
    check_class_names([2, None, None], ["newt", "eft", "cat"], pets)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("class_map: the teacher has classes named 'newt' too, which the training set")


def named_student():
    """Four classes, two of which a teacher of the classes a, b, c, d has, too."""
    images = TinyImages(classes=6)
    images.classes = list("abcdef")
    return overlap_subset(images, 4, "student", overlap=0.5)


@pytest.mark.parametrize("names", ["abcd", "xyz"])  # three names: of a teacher that the training set does not speak of
def test_names_that_the_weights_were_trained_with_and_what_the_training_set_says(names):
    teacher = SimpleNamespace(num_classes=len(names), trained_classes=list(names))
    assert ClassMap("auto", None).shared_classes(teacher, named_student()) == ([2, 3, None, None], 4)


def test_names_that_contradict_the_training_set_are_refused():
    teacher = SimpleNamespace(num_classes=4, trained_classes=list("abdc"))
    with pytest.raises(ConfigError, match=r"^class_map: .* class 'c' to be the teacher's class 2, which is 'd'"):
        ClassMap("auto", None).shared_classes(teacher, named_student())
    given = ClassMap("auto", list("abcd")).shared_classes(teacher, named_student())
    assert given.labels == [2, 3, None, None]


def test_classes_are_found_by_the_names_that_the_weights_were_trained_with():
    teacher = SimpleNamespace(num_classes=3, trained_classes=["d", "x", "c"])
    assert ClassMap("names", None).shared_classes(teacher, named_student()) == ([2, 0, None, None], None)


@pytest.mark.parametrize("classes", [0, 5, None])  # 0: no classifier; None: a model that does not say
def test_a_map_may_not_name_a_class_beyond_the_teachers_last(classes):
    teacher, written = SimpleNamespace(num_classes=classes), ClassMap({0: 9}, None)
    if classes == 5:
        with pytest.raises(ConfigError, match=r"^class_map: names class 9 of a teacher with 5 classes \(0 … 4\)$"):
            written.shared_classes(teacher, named_student())
    else:
        assert written.shared_classes(teacher, named_student()).labels == [9, None, None, None]


@pytest.mark.parametrize(("given", "asked"), [("auto", False), (None, False), ("names", True), ({0: 1}, True)])
def test_only_a_map_that_is_written_is_asked_for(given, asked):
    assert ClassMap(given, None).is_asked_for == asked


@pytest.mark.parametrize(
    ("labels", "names", "same"),
    [
        ([0, 1, 2], None, True),
        ([0, 2, 1], None, False),
        ([0, 1, None], ["cat", "dog", "newt"], False),
        (None, ["cat", "dog", "newt"], True),
        (None, ["cat", "newt", "dog"], False),
        (None, ["cat", "dog", "newt", "eft"], False),
        (None, ["n01", "n02", "n03"], None),
        (None, None, None),
    ],
)
def test_whether_the_classes_are_the_teachers_own(labels, names, same, pets):
    assert are_the_teachers(labels, names, pets) is same


def test_names_in_common_are_told_where_the_training_set_says_nothing(pets, caplog):
    caplog.set_level("INFO")
    teacher = SimpleNamespace(num_classes=3, trained_classes=["newt", "eft", "cat"])
    assert ClassMap("auto", None).shared_classes(teacher, pets) == (None, None)
    (line,) = caplog.messages
    assert line.startswith("class_map: 2 classes have names of the teacher's ('cat', 'newt'); stage 'joint' takes the")
    assert line.endswith("auxiliary_model_wrapper.kwargs.class_map: 'names'")
    caplog.clear()
    ClassMap(None, None).shared_classes(teacher, pets)
    ClassMap("auto", None).shared_classes(SimpleNamespace(num_classes=3), pets)
    assert not caplog.messages
