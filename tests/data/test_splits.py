from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gkd_plugin.data import (
    class_split,
    class_subset,
    incremental_subset,
    overlap_classes,
    overlap_subset,
)
from gkd_plugin.data.splits import ordered_classes
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, counted

LABELS = [i % 6 for i in range(48)]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
IMAGES = FakeImages(LABELS, NAMES)
SIZES = {"base": 3, "validation": 1, "novel": 2}
ORDER_NAMES = ["ant", "bee", ("tench", "Tinca tinca"), "sea lion"]


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "order.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return file


@st.composite
def overlaps(draw):
    n = draw(st.integers(1, 60))
    k = draw(st.integers(0, n))
    return n, k, draw(st.integers(n + k, 150))


@given(overlaps(), st.one_of(st.none(), st.integers(0, 1000)))
def test_teacher_and_student_share_exactly_the_overlap(split, seed):
    n, k, total = split
    teacher = overlap_classes(n, "teacher", shift=k, seed=seed, total_classes=total)
    student = overlap_classes(n, "student", shift=k, seed=seed, total_classes=total)
    assert len(set(teacher)) == len(set(student)) == n
    assert len(set(teacher) & set(student)) == n - k
    assert teacher[k:] == student[: n - k]
    assert set(teacher) | set(student) <= set(range(total))


@given(overlaps(), st.sampled_from([4, 6, 17]))
def test_an_overlap_fraction_means_its_shift_even_when_rounded(split, decimals):
    n, k, total = split
    fraction = round((n - k) / n, decimals)
    given_fraction = overlap_classes(n, "student", overlap=fraction, total_classes=total)
    assert given_fraction == overlap_classes(n, "student", shift=k, total_classes=total)


def test_overlaps_of_a_natural_and_of_an_explicit_order():
    for overlap, student in ((1, [0, 1, 2, 3]), (0.25, [3, 4, 5, 6]), (0, [4, 5, 6, 7])):
        assert overlap_classes(4, "teacher", overlap=overlap) == [0, 1, 2, 3]
        assert overlap_classes(4, "student", overlap=overlap) == student
    order = [5, 3, 1, 0, 2, 4]
    assert overlap_classes(3, "teacher", shift=2, class_order=order) == [5, 3, 1]
    assert overlap_classes(3, "student", shift=2, class_order=order) == [1, 0, 2]


@pytest.mark.parametrize(
    ("split", "arguments", "message"),
    [
        (overlap_classes, {"role": "studnet", "shift": 1}, "did you mean 'student'"),
        (overlap_classes, {}, "give either shift or overlap, got shift=None and overlap=None"),
        (overlap_classes, {"shift": 1, "overlap": 0.5}, "give either shift or overlap"),
        (overlap_classes, {"shift": 5}, r"shift must be a whole number in 0 … 4, got 5"),
        (overlap_classes, {"overlap": 1.5}, r"overlap must be a number in 0 … 1, got 1.5"),
        (overlap_classes, {"overlap": 0.2502}, r"nearest allowed: 0.2500 \(shift=3\) or 0.5000 \(shift=2\)"),
        (overlap_classes, {"shift": 3, "total_classes": 6}, "num_classes=4 and shift=3 need 7 classes, there are 6"),
        (overlap_classes, {"shift": 0, "seed": 1}, "total_classes is needed"),
        (
            overlap_classes,
            {"shift": 0, "class_order": [0, 1, 2, 3], "total_classes": 5},
            "each of the 5 classes once; missing",
        ),
        (overlap_classes, {"shift": 0, "num_classes": 0}, "num_classes must be a whole number from 1 up"),
        (class_split, {"part": "bse"}, "part: 'bse' is unknown; did you mean 'base'"),
        (class_split, {"sizes": {"base": 4, "novel": 3}}, r"sizes: 4 \+ 3 = 7 classes, the dataset has 6"),
        (class_split, {"sizes": {"base": 4, "novel": 0}}, "sizes.novel must be a whole number from 1 up, got 0"),
        (class_split, {"sizes": [4, 2]}, r"sizes must map .* got \[4, 2\]"),
        (class_split, {"per_class": 9}, "class 'elk' has 8 samples, but .*per_class=9"),
        (incremental_subset, {"old": 0}, "old must be a whole number from 1 up, got 0"),
        (incremental_subset, {"new": 0}, "new must be a whole number from 1 up, got 0"),
        (incremental_subset, {"new": 5}, "old=2 and new=5 need 7 classes, the dataset has 6"),
        (incremental_subset, {"memory": -1}, "memory must be a whole number from 0 up, got -1"),
        (incremental_subset, {"memory": 9}, "class 'ant' has 8 samples, but memory=9 need 9"),
        (incremental_subset, {"memory": 4, "per_class": 3}, "class 'ant' has 3 samples, but memory=4 need 4"),
        (
            incremental_subset,
            {"dataset": FakeImages([0, 1], NAMES[:4]), "memory": 0},
            "none of the new classes has a sample",
        ),
    ],
)
def test_an_unusable_split_is_refused(split, arguments, message):
    usable = {
        overlap_classes: {"num_classes": 4, "role": "student"},
        class_split: {"dataset": IMAGES, "part": "novel", "sizes": SIZES},
        incremental_subset: {"dataset": IMAGES, "old": 2, "new": 2},
    }
    with pytest.raises(ConfigError, match=message):
        split(**{**usable[split], **arguments})


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


def test_an_overlap_subset_is_the_class_subset_of_these_classes():
    student = overlap_subset(FakeImages(LABELS), 3, "student", overlap=1 / 3, seed=5, per_class=2, start=1)
    classes = overlap_classes(3, "student", shift=2, seed=5, total_classes=6)
    expected = class_subset(FakeImages(LABELS), classes, per_class=2, start=1)
    assert (student.indices, student.targets) == (expected.indices, expected.targets)
    assert student.classes == classes


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_teacher_labels_name_the_same_class_in_the_teachers_subset(shift):
    teacher = overlap_subset(IMAGES, 3, "teacher", shift=shift, seed=7)
    student = overlap_subset(IMAGES, 3, "student", shift=shift, seed=7)
    assert teacher.teacher_labels == [0, 1, 2]
    expected = [teacher.classes.index(name) if name in teacher.classes else None for name in student.classes]
    assert student.teacher_labels == expected
    assert teacher.teacher_num_classes == student.teacher_num_classes == 3
    assert expected.count(None) == shift


@pytest.mark.parametrize("seed", [None, 0])
def test_the_parts_follow_each_other_in_the_class_order(seed):
    parts = [class_split(IMAGES, part, SIZES, seed=seed) for part in SIZES]
    classes = [name for part in parts for name in part.classes]
    assert sorted(classes) == NAMES
    assert (classes == NAMES) is (seed is None)
    assert [len(part.classes) for part in parts] == [3, 1, 2]
    for part in parts:
        assert [part.classes[label] for label in part.targets] == [NAMES[LABELS[i]] for i in part.indices]


def test_a_part_takes_an_order_and_the_samples_to_draw_from():
    novel = class_split(IMAGES, "novel", SIZES, class_order=[5, 4, 3, 2, 1, 0], per_class=1, start=2)
    assert (novel.classes, novel.indices, novel.targets) == (["bee", "ant"], [12, 13], [1, 0])
    assert class_split(IMAGES, "b", {"a": 1, "b": 2}).classes == ["bee", "cat"]


@given(st.integers(1, 5), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 8)), st.one_of(st.none(), st.just(3)))
def test_old_classes_first_with_the_exemplars_that_memory_allows(old, new, memory, seed):
    new = min(new, 6 - old)
    subset = incremental_subset(IMAGES, old, new, memory, seed=seed)
    count = 8 if memory is None else memory
    assert [subset.targets.count(k) for k in range(old + new)] == [count] * old + [8] * new
    assert [subset.classes[label] for label in subset.targets] == [NAMES[LABELS[i]] for i in subset.indices]
    assert subset.indices == sorted(subset.indices)
    assert subset.teacher_labels == [*range(old), *[None] * new]
    assert subset.teacher_num_classes == old
    assert subset.class_groups == {"old": list(range(old)), "new": list(range(old, old + new))}
    teacher = overlap_subset(IMAGES, old, "teacher", shift=0, seed=seed)
    assert subset.classes[:old] == teacher.classes


def test_exemplars_are_the_first_of_the_samples_to_draw_from():
    subset = incremental_subset(IMAGES, 1, 1, 2, class_order=[5, 0, 1, 2, 3, 4], per_class=4, start=3)
    assert [i for i, label in zip(subset.indices, subset.targets, strict=True) if label == 0] == [23, 29]
    assert [i for i, label in zip(subset.indices, subset.targets, strict=True) if label == 1] == [18, 24, 30, 36]


def test_the_order_of_every_split_may_be_a_file_of_names(write):
    path = write("fox\nbee\nant\ncat\nelk\ndog\n")
    assert overlap_classes(3, "teacher", shift=2, class_order=path, class_names=NAMES) == [5, 1, 0]
    assert overlap_subset(IMAGES, 3, "student", shift=2, class_order=path).classes == ["ant", "cat", "elk"]
    assert class_split(IMAGES, "validation", SIZES, class_order=path).classes == ["cat"]
    assert incremental_subset(IMAGES, 1, 2, class_order=path).classes == ["fox", "bee", "ant"]


@pytest.mark.parametrize(
    ("text", "total", "names", "order"),
    [
        ("\ufeff# mine\r\n\r\nsea lion  # no fish\r\n  0\r\nTinca tinca\r\n1\r\n", 4, ORDER_NAMES, [3, 0, 2, 1]),
        ("0\n1\n2\n", 3, ["2", "0", "1"], [1, 2, 0]),  # a number that is a name is the name
        ("2\n0\n1\n", 3, [10, 11, 12], [2, 0, 1]),
        ("2\n0\n1\n", None, None, [2, 0, 1]),
    ],
)
def test_a_file_holds_names_and_indices(write, text, total, names, order):
    assert ordered_classes(write(text), None, total, names) == order


def test_a_missing_file_names_the_nearest_one(write, tmp_path):
    write("0\n")
    with pytest.raises(ConfigError, match=r"class_order: .*ordr.txt; in its folder did you mean 'order.txt'"):
        ordered_classes(str(tmp_path / "ordr.txt"), None, 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        ordered_classes(str(tmp_path), None, 1)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("ant\n\nbees\n", r"class_order: .*order.txt, line 3: no class is named 'bees'; did you mean 'bee'"),
        ("ant\nbee\n0\n", r"class_order .*order.txt must .*twice \['ant'\], missing \[\('tench', .*'sea lion'\]"),
        ("tench\nTinca tinca\n", r"twice \[\('tench', 'Tinca tinca'\)\], missing"),
        ("ant\n4\n", "line 2: class index .* 0 … 3, got 4"),
        ("ant\n-1\n", "line 2: no class is named '-1'"),
        ("# nothing\n", r"each of the 4 classes once; missing \['ant'"),
        (b"\xff\xfe", "order.txt cannot be read as UTF-8 text"),
        (5, "class_order must be a list of class indices or the path"),
        ({0: 1}, "class_order must be a list"),
        ([0, 2, 2, 3], r"each of the 4 classes once; twice \[\('tench', .*\], missing \['bee'\]$"),
        ([0, 1, 7], "^class_order: entry 2 must be a whole number in 0 … 3, got 7$"),
    ],
)
def test_an_unusable_order_is_refused(write, order, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ordered_classes(write(order) if isinstance(order, str | bytes) else order, None, 4, ORDER_NAMES)
    assert "\n" not in str(caught.value)


def test_a_seed_draws_whatever_the_global_random_state():
    torch.manual_seed(1)
    first = ordered_classes(None, 3, 50)
    torch.manual_seed(2)
    assert ordered_classes(None, 3, 50) == first != ordered_classes(None, 4, 50)
    assert sorted(first) == list(range(50))
    for order, seed, message in (
        ([0], 0, r"got both \(seed=0\)"),
        (None, -1, "seed must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            ordered_classes(order, seed, 3)


def test_the_work_on_a_file_grows_with_the_number_of_classes_and_not_with_its_square(write):
    count, name = 400, counted(str)
    names = [name(f"{label}" if label % 2 else f"class {label}") for label in range(count)]
    path = write("\n".join(reversed(names)))
    assert ordered_classes(path, None, count, names) == list(range(count))[::-1]
    assert name.looks < 20 * count
