import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import ClassSubset, class_split, class_subset, few_shot_subset, few_shot_task, teacher_labels_of
from gkd_plugin.data.splits import (
    incremental_subset,
    ordered_classes,
    overlap_classes,
    overlap_subset,
    train_test_subset,
)
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, counted, known_by_a_teacher, samples
from tests.runner.fakes import refused

EIGHT, THREE = [0, 1, 2, 0, 1, 2, 0, 1], ["ant", "bee", "cat"]
NAMES = [*THREE, "dog", "elk", "fox"]
LABELS = [i % 6 for i in range(48)]
IMAGES = FakeImages(LABELS, NAMES)
TASK_LABELS = [i % 6 for i in range(72)]
TASK_IMAGES = FakeImages(TASK_LABELS, NAMES)
SIZES = {"base": 3, "validation": 1, "novel": 2}
ORDER_NAMES = ["ant", "bee", ("tench", "Tinca tinca"), "sea lion"]


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "order.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return file


def assert_names_follow(subset, labels):
    """The new labels name the classes that the old ones named."""
    assert [subset.classes[label] for label in subset.targets] == [NAMES[labels[i]] for i in subset.indices]


def per_label(subset):
    return [subset.targets.count(label) for label in range(len(subset.classes))]


@pytest.mark.parametrize("classes", [[2, 0], ["cat", 0]])
def test_labels_follow_the_order_of_the_classes_given(classes):
    subset = class_subset(FakeImages(EIGHT, THREE), classes)
    assert (subset.indices, subset.targets, subset.classes) == ([0, 2, 3, 5, 6], [1, 0, 1, 0, 1], ["cat", "ant"])
    assert samples(subset)[:2] == [("image0", 1), ("image2", 0)]


def test_synonyms_of_imagenet_classes_are_names():
    dataset = FakeImages([0, 1, 2], [("tench", "Tinca tinca"), ("crane", "crane"), ("Grus", "Crane")])
    assert class_subset(dataset, ["Tinca tinca", "crane"]).indices == [0, 1]
    dataset.classes[2] = ("crane", "crane bird")
    refused(r"'crane' belongs to the classes \[1, 2\]", class_subset, dataset, ["crane"])


def test_subsets_of_subsets_and_wrappers_are_looked_through():
    assert class_subset(FakeImages(EIGHT), [2, 1]).classes == [2, 1]  # the indices, where there are no names
    images = FakeImages(EIGHT, THREE)
    inner = class_subset(BaseDatasetWrapper(images), ["cat", "bee"])
    assert inner.dataset is images  # the wrapper does nothing to its samples
    outer = class_subset(inner, ["bee"])
    assert (outer.classes, samples(outer)) == (["bee"], [("image1", 0), ("image4", 0), ("image7", 0)])


def test_per_class_and_start_cut_each_class_without_overlap():
    dataset = FakeImages(EIGHT, [*THREE, "dog"])
    cut = [class_subset(dataset, [0, 1], **given) for given in ({"per_class": 1}, {"per_class": 2, "start": 1})]
    rest = class_subset(dataset, [0, 1, 3], start=1)  # a class without samples is allowed among others
    assert [subset.indices for subset in cut] == [[0, 1], [3, 4, 6, 7]]
    assert (rest.indices, rest.targets, rest.classes) == ([3, 4, 6, 7], [0, 1, 0, 1], ["ant", "bee", "dog"])


@pytest.mark.parametrize("kind", [int, str])
def test_the_work_grows_with_the_number_of_classes_and_not_with_its_square(kind, write):
    count, name = 400, counted(kind)
    names = [name(label if kind is int else f"{label}" if label % 2 else f"class {label}") for label in range(count)]
    assert class_subset(FakeImages(range(count), names), names[::-1]).indices == list(range(count))
    if kind is str:
        assert ordered_classes(write("\n".join(names[::-1])), None, count, names) == list(range(count))[::-1]
    assert 0 < name.looks < 40 * count


def test_teacher_labels_follow_the_classes_one_for_each():
    known = known_by_a_teacher(FakeImages(EIGHT, THREE))
    for dataset in (known, ConcatDataset([known, known])):
        subset = class_subset(dataset, [2, 1])
        assert (subset.teacher_labels, subset.teacher_num_classes) == ([1, None], 7)
    assert teacher_labels_of(ClassSubset(known, [0], [0], ["new"])) is None
    part = known_by_a_teacher(FakeImages([0, 1], THREE))  # whose last class, without samples, is not to be seen
    assert few_shot_subset(ConcatDataset([part]), shots=1).teacher_labels == [4, None]
    task = few_shot_task(known, 2, 1, 0, "support", queries=1)
    assert task.teacher_labels == [{"ant": 4, "bee": None, "cat": 1}[name] for name in task.classes]
    known.teacher_labels = [4]
    refused("teacher_labels must be one for each of 2 classes, got 1", class_subset, known, [0, 1])
    with pytest.raises(ConfigError, match="teacher_labels name class 5 of a teacher with 5 classes"):
        ClassSubset(FakeImages(EIGHT), [0], [0], ["ant"], teacher_labels=[5], teacher_num_classes=5)


@st.composite
def overlaps(draw):
    n = draw(st.integers(1, 60))
    k = draw(st.integers(0, n))
    return n, k, draw(st.integers(n + k, 150))


@given(overlaps(), st.one_of(st.none(), st.integers(0, 1000)), st.sampled_from([4, 6, 17]))
def test_teacher_and_student_share_exactly_the_overlap_that_a_shift_or_a_rounded_fraction_gives(split, seed, decimals):
    n, k, total = split
    teacher = overlap_classes(n, "teacher", shift=k, seed=seed, total_classes=total)
    student = overlap_classes(n, "student", shift=k, seed=seed, total_classes=total)
    assert len(set(teacher)) == len(set(student)) == n
    assert len(set(teacher) & set(student)) == n - k
    assert teacher[k:] == student[: n - k]
    assert set(teacher) | set(student) <= set(range(total))
    fraction = round((n - k) / n, decimals)
    assert overlap_classes(n, "student", overlap=fraction, seed=seed, total_classes=total) == student


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


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_an_overlap_subset_has_these_classes_and_the_labels_of_the_teachers_subset(shift):
    teacher = overlap_subset(IMAGES, 3, "teacher", shift=shift, seed=7)
    student = overlap_subset(IMAGES, 3, "student", shift=shift, seed=7)
    assert teacher.teacher_labels == [0, 1, 2]
    expected = [teacher.classes.index(name) if name in teacher.classes else None for name in student.classes]
    assert student.teacher_labels == expected
    assert teacher.teacher_num_classes == student.teacher_num_classes == 3
    assert expected.count(None) == shift
    part = overlap_subset(FakeImages(LABELS), 3, "student", overlap=1 - shift / 3, seed=5, per_class=2, start=1)
    classes = overlap_classes(3, "student", shift=shift, seed=5, total_classes=6)
    assert samples(part) == samples(class_subset(FakeImages(LABELS), classes, per_class=2, start=1))
    assert part.classes == classes


@pytest.mark.parametrize("seed", [None, 0])
def test_the_parts_follow_each_other_in_the_class_order(seed):
    parts = [class_split(IMAGES, part, SIZES, seed=seed) for part in SIZES]
    order = [NAMES[label] for label in ordered_classes(None, seed, 6)]
    assert [part.classes for part in parts] == [order[:3], order[3:4], order[4:]]
    for part in parts:
        assert_names_follow(part, LABELS)


def test_a_split_takes_an_order_and_the_samples_to_draw_from():
    novel = class_split(IMAGES, "novel", SIZES, class_order=[5, 4, 3, 2, 1, 0], per_class=1, start=2)
    assert (novel.classes, novel.indices, novel.targets) == (["bee", "ant"], [12, 13], [1, 0])
    exemplars = incremental_subset(IMAGES, 1, 1, 2, class_order=[5, 0, 1, 2, 3, 4], per_class=4, start=3)
    assert (exemplars.indices, exemplars.targets) == ([18, 23, 24, 29, 30, 36], [1, 0, 1, 0, 1, 1])


@given(st.integers(1, 5), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 8)), st.one_of(st.none(), st.just(3)))
def test_old_classes_first_with_the_exemplars_that_memory_allows(old, new, memory, seed):
    new = min(new, 6 - old)
    subset = incremental_subset(IMAGES, old, new, memory, seed=seed)
    assert per_label(subset) == [8 if memory is None else memory] * old + [8] * new
    assert_names_follow(subset, LABELS)
    assert subset.indices == sorted(subset.indices)
    assert subset.teacher_labels == [*range(old), *[None] * new]
    assert subset.teacher_num_classes == old
    assert subset.class_groups == {"old": list(range(old)), "new": list(range(old, old + new))}
    assert subset.classes[:old] == overlap_subset(IMAGES, old, "teacher", shift=0, seed=seed).classes


def test_few_shot_draws_the_same_number_of_every_class_by_the_seed_alone():
    dataset = FakeImages([i % 3 for i in range(90)], THREE)
    first = few_shot_subset(dataset, shots=5, seed=1)
    assert (per_label(first), first.classes) == ([5, 5, 5], THREE)
    assert first.targets == [dataset.targets[i] for i in first.indices]
    assert few_shot_subset(dataset, shots=5, seed=1).indices == first.indices
    assert few_shot_subset(dataset, shots=5, seed=2).indices != first.indices
    assert set(few_shot_subset(dataset, 2, seed=1).indices) < set(first.indices)
    draw = np.random.default_rng(1)  # a seed means the same samples in every version
    assert first.indices == sorted(int(i) for k in range(3) for i in draw.permutation(range(k, 90, 3))[:5])


@pytest.mark.parametrize(
    ("fraction", "tested"), [(0.2, [2, 1, 1]), (0.5, [5, 2, 1]), (0.99, [9, 4, 1]), (0.01, [1, 1, 1])]
)
def test_a_part_of_every_class_is_held_out(fraction, tested):
    dataset = FakeImages([0] * 10 + [1] * 5 + [2] * 2, THREE)
    train, test = (train_test_subset(dataset, split, fraction, seed=3) for split in ("train", "test"))
    assert per_label(test) == tested
    assert sorted((*train.indices, *test.indices)) == list(range(17))
    assert train.classes == test.classes == THREE
    assert train_test_subset(dataset, "test", 0.5, seed=3).indices == train_test_subset(dataset, "test", 0.5, 3).indices
    assert train_test_subset(dataset, "test", 0.5, seed=4).indices != train_test_subset(dataset, "test", 0.5, 3).indices


@pytest.mark.parametrize(
    ("labels", "kwargs", "message"),
    [
        ([0, 0, 1], {}, "class 'b' has 1"),
        ([0, 0, 1, 1], {"split": "val"}, "split: 'val' is unknown"),
        ([0, 0, 1, 1], {"test_fraction": 1}, "test_fraction: must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_held_out(labels, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        train_test_subset(FakeImages(labels, ["a", "b"]), **kwargs)


def both(ways, shots, task, **others):
    return tuple(few_shot_task(TASK_IMAGES, ways, shots, task, role, **others) for role in ("support", "query"))


@given(st.integers(2, 6), st.integers(2, 11), st.integers(0, 500), st.integers(0, 5), st.data())
def test_support_and_queries_of_a_task_are_disjoint_and_of_the_same_classes(ways, shots, task, seed, data):
    queries = data.draw(st.one_of(st.none(), st.integers(1, 12 - shots)))
    support, query = both(ways, shots, task, queries=queries, seed=seed)
    assert support.classes == query.classes
    assert len(set(support.classes)) == ways
    assert per_label(support) == [shots] * ways
    assert per_label(query) == [12 - shots if queries is None else queries] * ways
    assert not set(support.indices) & set(query.indices)
    for subset in (support, query):
        assert_names_follow(subset, TASK_LABELS)
    fewer, same_query = both(ways, shots - 1, task, queries=queries, seed=seed)
    assert set(fewer.indices) < set(support.indices)
    assert queries is None or same_query.indices == query.indices


def test_a_task_depends_on_its_number_and_the_seed_alone():
    first, again = (both(3, 2, 7, queries=5) for _ in range(2))
    assert [part.indices for part in first] == [part.indices for part in again]
    drawn = [both(3, 2, task, queries=5, seed=seed)[0] for task in range(10) for seed in range(10)]
    assert len({tuple(support.indices) for support in drawn}) > 95
    assert len({tuple(support.classes) for support in drawn}) > 50
    places = [[task.indices[task.targets.index(label)] // 6 for task in drawn] for label in (0, 1)]
    assert places[0] != places[1]  # classes of equal size do not share one permutation


def test_two_datasets_with_the_same_classes_give_one_task():
    support = few_shot_task(TASK_IMAGES, 3, 12, 4, "support", queries=0)
    query = few_shot_task(FakeImages(TASK_LABELS[:24], NAMES), 3, 0, 4, "query", queries=None)
    assert support.classes == query.classes
    assert (per_label(support), per_label(query)) == ([12] * 3, [4] * 3)


USABLE = {
    class_subset: {"dataset": FakeImages(EIGHT, [*THREE, "dog"]), "classes": [0]},
    overlap_classes: {"num_classes": 4, "role": "student"},
    class_split: {"dataset": IMAGES, "part": "novel", "sizes": SIZES},
    incremental_subset: {"dataset": IMAGES, "old": 2, "new": 2},
    few_shot_subset: {"dataset": FakeImages(EIGHT, THREE)},
    few_shot_task: {"dataset": TASK_IMAGES, "ways": 6, "shots": 1, "task": 0, "role": "support"},
}


@pytest.mark.parametrize(
    ("split", "arguments", "message"),
    [
        (class_subset, {"classes": [0, 4]}, "classes: class index .* 0 … 3, got 4"),
        (class_subset, {"classes": ["bee", 1]}, "class index 1 is given twice"),
        (class_subset, {"classes": ["bees"]}, "no class is named 'bees'; did you mean 'bee'"),
        (class_subset, {"classes": ["dog"]}, "classes: no sample of the 1 given"),
        (class_subset, {"per_class": 0}, "per_class must be a whole number from 1 up, got 0"),
        (class_subset, {"start": -1}, "start must be a whole number from 0 up, got -1"),
        (class_subset, {"classes": [0, 2], "per_class": 2, "start": 1}, "'cat' has 2 samples, .* need 3"),
        (class_subset, {"classes": [0, 2], "start": 2}, "class 'cat' has 2 samples, but start=2 .* need 3"),
        (overlap_classes, {"role": "studnet", "shift": 1}, "did you mean 'student'"),
        (overlap_classes, {}, "give either shift or overlap, got shift=None and overlap=None"),
        (overlap_classes, {"shift": 5}, r"shift must be a whole number in 0 … 4, got 5"),
        (overlap_classes, {"overlap": 1.5}, r"overlap must be a number in 0 … 1, got 1.5"),
        (overlap_classes, {"overlap": 0.2502}, r"nearest allowed: 0.2500 \(shift=3\) or 0.5000 \(shift=2\)"),
        (overlap_classes, {"shift": 3, "total_classes": 6}, "num_classes=4 and shift=3 need 7 classes, there are 6"),
        (overlap_classes, {"shift": 0, "seed": 1}, "total_classes is needed"),
        (overlap_classes, {"shift": 0, "class_order": [0, 1, 2, 3], "total_classes": 5}, r"missing \[4\]"),
        (overlap_classes, {"shift": 0, "num_classes": 0}, "num_classes must be a whole number from 1 up"),
        (class_split, {"part": "bse"}, "part: 'bse' is unknown; did you mean 'base'"),
        (class_split, {"sizes": {"base": 4, "novel": 3}}, r"sizes: 4 \+ 3 = 7 classes, the dataset has 6"),
        (class_split, {"sizes": {"base": 4, "novel": 0}}, "sizes.novel must be a whole number from 1 up, got 0"),
        (class_split, {"sizes": [4, 2]}, r"sizes must map .* got \[4, 2\]"),
        (incremental_subset, {"old": 0}, "old must be a whole number from 1 up, got 0"),
        (incremental_subset, {"new": 0}, "new must be a whole number from 1 up, got 0"),
        (incremental_subset, {"new": 5}, "old=2 and new=5 need 7 classes, the dataset has 6"),
        (incremental_subset, {"memory": -1}, "memory must be a whole number from 0 up, got -1"),
        (incremental_subset, {"memory": 9}, "class 'ant' has 8 samples, but memory=9 need 9"),
        (incremental_subset, {"memory": 4, "per_class": 3}, "class 'ant' has 3 samples, but memory=4 need 4"),
        (incremental_subset, {"dataset": FakeImages([0, 1], NAMES)}, "none of the new classes has a sample"),
        (few_shot_subset, {"shots": 3}, "class 'cat' has 2 samples, but shots=3"),
        (few_shot_subset, {"shots": 0}, "shots must be"),
        (few_shot_task, {"role": "suport"}, "role: 'suport' is unknown; did you mean 'support'"),
        (few_shot_task, {"ways": 1}, "ways must be a whole number from 2 up, got 1"),
        (few_shot_task, {"ways": 7}, "ways=7, but the dataset has 6 classes"),
        (few_shot_task, {"shots": 0}, "shots must be a whole number from 1 up, got 0"),
        (few_shot_task, {"shots": 0, "queries": 0, "role": "query"}, "queries must be a whole number from 1 up, got 0"),
        (few_shot_task, {"task": -1}, "task must be a whole number from 0 up"),
        (few_shot_task, {"seed": -1}, "seed must be a whole number from 0 up"),
        (few_shot_task, {"shots": 2}, "12 samples, but shots=2 and queries=15 need 17"),
        (few_shot_task, {"shots": 12, "queries": None, "role": "query"}, "shots=12 and queries=1 need 13"),
    ],
)
def test_an_unusable_split_is_refused(split, arguments, message):
    refused(message, split, **{**USABLE[split], **arguments})


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
        ("2\n0\n\n1\n", None, None, [2, 0, 1]),
    ],
)
def test_a_file_holds_names_and_indices(write, text, total, names, order):
    assert ordered_classes(write(text), None, total, names) == order


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("ant\n\nbees\n", r"class_order: .*order.txt, line 3: no class is named 'bees'; did you mean 'bee'"),
        ("ant\nbee\n0\n", r"class_order .*order.txt must .*twice \['ant'\], missing \[\('tench', .*'sea lion'\]"),
        ("tench\nTinca tinca\n", r"twice \[\('tench', 'Tinca tinca'\)\], missing"),
        ("ant\n4\n", "line 2: class index .* 0 … 3, got 4"),
        ("ant\n-1\n", "line 2: no class is named '-1'"),
        ("# nothing\n", r"each of the 4 classes once; .*missing \['ant'"),
        (b"\xff\xfe", "order.txt cannot be read as UTF-8 text"),
        (5, "class_order must be a list of class indices or the path"),
        ({0: 1}, "class_order must be a list"),
        ([0, 2, 2, 3], r"each of the 4 classes once; twice \[\('tench', .*\], missing \['bee'\]$"),
        ([0, 1, 7], "^class_order: entry 2 must be a whole number in 0 … 3, got 7$"),
    ],
)
def test_an_unusable_order_is_refused(write, order, message):
    refused(message, ordered_classes, write(order) if isinstance(order, str | bytes) else order, None, 4, ORDER_NAMES)


def test_an_order_is_drawn_by_the_seed_alone_or_read_from_a_file_that_exists(write):
    first = ordered_classes(None, 3, 50)
    assert ordered_classes(None, 3, 50) == first != ordered_classes(None, 4, 50)
    assert sorted(first) == list(range(50))
    for order, seed, message in (
        ([0], 0, r"got both \(seed=0\)"),
        (None, -1, "seed must be"),
        (write("0\n").replace("der.txt", "dr.txt"), None, r"class_order: .*ordr.txt; did you mean .*order.txt"),
    ):
        refused(message, ordered_classes, order, seed, 3)
