from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gkd_plugin.data import class_subset, overlap_classes, overlap_subset
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages

DATASET = FakeImages([i % 6 for i in range(24)])


@st.composite
def splits(draw):
    n = draw(st.integers(1, 60))
    k = draw(st.integers(0, n))
    return n, k, draw(st.integers(n + k, 150))


@given(splits(), st.one_of(st.none(), st.integers(0, 1000)))
def test_teacher_and_student_share_exactly_the_overlap(split, seed):
    n, k, total = split
    teacher = overlap_classes(n, "teacher", shift=k, seed=seed, total_classes=total)
    student = overlap_classes(n, "student", shift=k, seed=seed, total_classes=total)
    assert len(set(teacher)) == len(set(student)) == n
    assert len(set(teacher) & set(student)) == n - k
    assert teacher[k:] == student[: n - k]
    assert set(teacher) | set(student) <= set(range(total))


@given(splits(), st.sampled_from([4, 6, 17]))
def test_an_overlap_fraction_means_its_shift_even_when_rounded(split, decimals):
    n, k, total = split
    fraction = round((n - k) / n, decimals)
    given_fraction = overlap_classes(n, "student", overlap=fraction, total_classes=total)
    assert given_fraction == overlap_classes(n, "student", shift=k, total_classes=total)


@pytest.mark.parametrize(
    ("overlap", "student"), [(1, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3]), (0.25, [3, 4, 5, 6]), (0, [4, 5, 6, 7])]
)
def test_examples_in_natural_order(overlap, student):
    assert overlap_classes(4, "teacher", overlap=overlap) == [0, 1, 2, 3]
    assert overlap_classes(4, "student", overlap=overlap) == student


def test_an_explicit_order_is_cut_in_that_order():
    order = [5, 3, 1, 0, 2, 4]
    assert overlap_classes(3, "teacher", shift=2, class_order=order) == [5, 3, 1]
    assert overlap_classes(3, "student", shift=2, class_order=order) == [1, 0, 2]


def test_a_seed_decides_the_order():
    first = overlap_classes(20, "teacher", shift=0, seed=3, total_classes=50)
    assert overlap_classes(20, "teacher", shift=9, seed=3, total_classes=50) == first
    assert overlap_classes(20, "teacher", shift=0, seed=4, total_classes=50) != first
    assert first != list(range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "studnet", "shift": 1}, "did you mean 'student'"),
        ({}, "give either shift or overlap, got shift=None and overlap=None"),
        ({"shift": 1, "overlap": 0.5}, "give either shift or overlap"),
        ({"shift": 5}, r"shift must be a whole number in 0 … 4, got 5"),
        ({"shift": 1.0}, "shift must be a whole number"),
        ({"overlap": 1.5}, r"overlap must be a number in 0 … 1, got 1.5"),
        ({"overlap": "half"}, "overlap must be a number"),
        ({"overlap": 0.6}, r"nearest allowed: 0.5000 \(shift=2\) or 0.7500 \(shift=1\)"),
        ({"shift": 3, "total_classes": 6}, "num_classes=4 and shift=3 need 7 classes, there are 6"),
        ({"shift": 3, "class_order": [0, 1, 2, 3, 4, 5]}, "need 7 classes, there are 6"),
        ({"shift": 0, "seed": 1}, "total_classes is needed"),
        ({"shift": 0, "seed": 1, "class_order": [3, 2, 1, 0]}, "either class_order or seed"),
        ({"shift": 0, "class_order": [0, 1, 2, 2]}, r"each of the 4 class indices once; twice \[2\], missing \[3\]"),
        ({"shift": 0, "class_order": [0, 1, 2, 3], "total_classes": 5}, "each of the 5 class indices once"),
        ({"shift": 0, "class_order": [0, 1, 2, 9]}, r"class_order: entry 3 must be a whole number in 0 … 3, got 9"),
        ({"shift": 0, "num_classes": 0}, "num_classes must be a whole number from 1 up"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        overlap_classes(**{"num_classes": 4, "role": "student", **arguments})


@given(st.integers(2, 40), st.floats(0, 1))
@example(32, 0.046875)
def test_every_refused_overlap_names_allowed_ones(n, overlap):
    try:
        overlap_classes(n, "student", overlap=overlap)
    except ConfigError as error:
        named = [float(part.split()[0]) for part in str(error).split("nearest allowed: ")[1].split(" or ")]
        assert named[0] < overlap < named[1]
        for fraction in named:
            overlap_classes(n, "student", overlap=fraction)


def test_the_subset_is_the_class_subset_of_these_classes():
    student = overlap_subset(DATASET, 3, "student", overlap=1 / 3, seed=5, per_class=2, start=1)
    classes = overlap_classes(3, "student", shift=2, seed=5, total_classes=6)
    expected = class_subset(DATASET, classes, per_class=2, start=1)
    assert (student.indices, student.targets) == (expected.indices, expected.targets)
    assert student.classes == classes


def test_the_order_may_be_a_file_of_names(tmp_path):
    path = tmp_path / "order.txt"
    path.write_text("fox\nbee\nape\ncat\nelk\ndog\n", encoding="utf-8")
    named = FakeImages(DATASET.targets, ["ape", "bee", "cat", "dog", "elk", "fox"])
    assert overlap_subset(named, 3, "student", shift=2, class_order=str(path)).classes == ["ape", "cat", "elk"]
    assert overlap_classes(3, "teacher", shift=2, class_order=str(path), class_names=named.classes) == [5, 1, 0]


def test_the_number_of_classes_is_that_of_the_dataset():
    with pytest.raises(ConfigError, match="need 8 classes, there are 6"):
        overlap_subset(DATASET, 4, "student", shift=4)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_teacher_labels_name_the_same_class_in_the_teachers_subset(shift):
    teacher = overlap_subset(DATASET, 3, "teacher", shift=shift, seed=7)
    student = overlap_subset(DATASET, 3, "student", shift=shift, seed=7)
    assert teacher.teacher_labels == [0, 1, 2]
    expected = [teacher.classes.index(name) if name in teacher.classes else None for name in student.classes]
    assert student.teacher_labels == expected
    assert teacher.teacher_num_classes == student.teacher_num_classes == 3
    assert expected.count(None) == shift
