from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import ClassSubset, class_subset, few_shot_subset, few_shot_task, teacher_labels_of
from gkd_plugin.data.subsets import pick
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, counted, samples

LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
NAMES = ["ant", "bee", "cat"]
TASK_LABELS = [i % 6 for i in range(72)]
TASK_NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
TASK_IMAGES = FakeImages(TASK_LABELS, TASK_NAMES)


def known_by_a_teacher(dataset, labels, count):
    dataset.teacher_labels, dataset.teacher_num_classes = labels, count
    return dataset


def both(ways, shots, task, **others):
    return tuple(few_shot_task(TASK_IMAGES, ways, shots, task, role, **others) for role in ("support", "query"))


def per_label(subset):
    return [subset.targets.count(label) for label in range(len(subset.classes))]


@pytest.mark.parametrize("classes", [[2, 0], ["cat", 0]])
def test_labels_follow_the_order_of_the_classes_given(classes):
    subset = class_subset(FakeImages(LABELS, NAMES), classes)
    assert subset.indices == [0, 2, 3, 5, 6]
    assert subset.targets == [1, 0, 1, 0, 1]
    assert subset.classes == ["cat", "ant"]
    assert samples(subset)[:2] == [("image0", 1), ("image2", 0)]


def test_synonyms_of_imagenet_classes_are_names():
    dataset = FakeImages([0, 1, 2], [("tench", "Tinca tinca"), ("crane", "crane"), ("Grus", "Crane")])
    assert class_subset(dataset, ["Tinca tinca", "crane"]).indices == [0, 1]
    dataset.classes[2] = ("crane", "crane bird")
    with pytest.raises(ConfigError, match=r"'crane' belongs to the classes \[1, 2\]"):
        class_subset(dataset, ["crane"])


def test_subsets_of_subsets_and_wrappers_are_looked_through():
    assert class_subset(FakeImages(LABELS), [2, 1]).classes == [2, 1]  # the indices, where there are no names
    inner = class_subset(BaseDatasetWrapper(FakeImages(LABELS, NAMES)), ["cat", "bee"])
    outer = class_subset(inner, ["bee"])
    assert outer.classes == ["bee"]
    assert samples(outer) == [("image1", 0), ("image4", 0), ("image7", 0)]


def test_per_class_and_start_cut_each_class_without_overlap():
    dataset = FakeImages(LABELS)
    first = class_subset(dataset, [0, 1], per_class=1)
    second = class_subset(dataset, [0, 1], per_class=2, start=1)
    rest = class_subset(dataset, [0, 1], start=1)
    assert first.indices == [0, 1]
    assert second.indices == rest.indices == [3, 4, 6, 7]
    assert second.targets == [0, 1, 0, 1]


def test_a_class_without_samples_is_allowed_among_others():
    subset = class_subset(FakeImages(LABELS, [*NAMES, "dog"]), [3, 0])
    assert set(subset.targets) == {1}
    assert subset.classes == ["dog", "ant"]


@pytest.mark.parametrize("by_name", [False, True])
def test_the_work_grows_with_the_number_of_classes_and_not_with_its_square(by_name):
    count, kind = 400, counted(str if by_name else int)
    names = [kind(f"class {label}") if by_name else label for label in range(count)]
    subset = class_subset(FakeImages(range(count), names), [kind(name) for name in reversed(names)])
    assert subset.indices == list(range(count))
    assert kind.looks < 20 * count


def test_teacher_labels_follow_the_classes():
    known = known_by_a_teacher(class_subset(FakeImages(LABELS, NAMES), [0, 1, 2]), [4, None, 1], 7)
    subset = class_subset(known, ["cat", "bee"])
    assert (subset.teacher_labels, subset.teacher_num_classes) == ([1, None], 7)
    assert teacher_labels_of(ClassSubset(known, [0], [0], ["new"])) is None


def test_teacher_labels_are_one_for_each_class():
    for subset in (
        lambda: ClassSubset(FakeImages(LABELS), [0], [0], ["ant", "bee"], teacher_labels=[0]),
        lambda: pick(known_by_a_teacher(FakeImages(LABELS), [0], 1), [0, 1], [[0], [1]]),
    ):
        with pytest.raises(ConfigError, match="one for each of 2 classes, got 1"):
            subset()
    with pytest.raises(ConfigError, match="teacher_labels name class 5 of a teacher with 5 classes"):
        ClassSubset(FakeImages(LABELS), [0], [0], ["ant"], teacher_labels=[5], teacher_num_classes=5)


def test_few_shot_draws_the_same_number_of_every_class_by_the_seed_alone():
    dataset = FakeImages([i % 3 for i in range(90)], NAMES)
    first = few_shot_subset(dataset, shots=5, seed=1)
    assert sorted(first.targets) == [0] * 5 + [1] * 5 + [2] * 5
    assert first.classes == NAMES
    assert first.targets == [dataset.targets[i] for i in first.indices]
    assert few_shot_subset(dataset, shots=5, seed=1).indices == first.indices
    assert few_shot_subset(dataset, shots=5, seed=2).indices != first.indices
    assert set(few_shot_subset(dataset, 2, seed=1).indices) < set(first.indices)


def test_a_last_class_without_samples_does_not_disturb_a_draw_from_a_concatenation():
    part = known_by_a_teacher(class_subset(FakeImages([0, 1], NAMES), [0, 1, 2]), [4, None, 1], 7)
    assert few_shot_subset(ConcatDataset([part]), shots=1).teacher_labels == [4, None]


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
        classes = [TASK_NAMES[TASK_LABELS[i]] for i in subset.indices]
        assert [subset.classes[label] for label in subset.targets] == classes
    fewer, same_query = both(ways, shots - 1, task, queries=queries, seed=seed)
    assert set(fewer.indices) < set(support.indices)
    assert queries is None or same_query.indices == query.indices


def test_a_task_depends_on_its_number_and_the_seed_alone():
    first, again = (both(3, 2, 7, queries=5) for _ in range(2))
    assert [part.indices for part in first] == [part.indices for part in again]
    drawn = {(task, seed): both(3, 2, task, queries=5, seed=seed) for task in range(10) for seed in range(10)}
    assert len({tuple(support.indices) for support, _ in drawn.values()}) > 95
    assert len({tuple(support.classes) for support, _ in drawn.values()}) > 50


def test_classes_of_equal_size_do_not_share_one_permutation():
    tasks = [both(2, 1, task, queries=5)[0] for task in range(20)]
    places = [[task.indices[task.targets.index(label)] // 6 for task in tasks] for label in (0, 1)]
    assert places[0] != places[1]


def test_two_datasets_with_the_same_classes_give_one_task():
    test = FakeImages(TASK_LABELS[:24], TASK_NAMES)
    support = few_shot_task(TASK_IMAGES, 3, 12, 4, "support", queries=0)
    query = few_shot_task(test, 3, 0, 4, "query", queries=None)
    assert support.classes == query.classes
    assert per_label(support) == [12] * 3
    assert per_label(query) == [4] * 3


def test_a_task_keeps_the_teachers_labels():
    novel = known_by_a_teacher(class_subset(TASK_IMAGES, [3, 4, 5]), [8, None, 7], 9)
    support = few_shot_task(novel, 2, 1, 0, "support", queries=5)
    known = {"dog": 8, "elk": None, "fox": 7}
    assert support.teacher_labels == [known[name] for name in support.classes]
    assert support.teacher_num_classes == 9


@pytest.mark.parametrize(
    ("subset", "arguments", "message"),
    [
        (class_subset, {"classes": [0, 4]}, "classes: class index .* 0 … 3, got 4"),
        (class_subset, {"classes": ["bee", 1]}, "class index 1 is given twice"),
        (class_subset, {"classes": ["bees"]}, "no class is named 'bees'; did you mean 'bee'"),
        (class_subset, {"classes": ["dog"]}, "classes: no sample of the 1 given"),
        (class_subset, {"classes": [0], "per_class": 0}, "per_class must be a whole number from 1 up, got 0"),
        (class_subset, {"classes": [0], "start": -1}, "start must be a whole number from 0 up, got -1"),
        (class_subset, {"classes": [0, 2], "per_class": 2, "start": 1}, "'cat' has 2 samples, .* need 3"),
        (class_subset, {"classes": [0, 2], "start": 2}, "class 'cat' has 2 samples, but start=2 .* need 3"),
        (few_shot_subset, {"shots": 3}, "class 'cat' has 2 samples, but shots=3"),
        (few_shot_subset, {"shots": 0}, "shots must be"),
        (few_shot_task, {"role": "suport"}, "role: 'suport' is unknown; did you mean 'support'"),
        (few_shot_task, {"ways": 1}, "ways must be a whole number from 2 up, got 1"),
        (few_shot_task, {"ways": 7}, "ways=7, but the dataset has 6 classes"),
        (few_shot_task, {"shots": 0}, "shots must be a whole number from 1 up, got 0"),
        (few_shot_task, {"shots": 0, "queries": 0, "role": "query"}, "queries must be a whole number from 1 up, got 0"),
        (few_shot_task, {"task": -1}, "task must be a whole number from 0 up"),
        (few_shot_task, {"seed": -1}, "seed must be a whole number from 0 up"),
        (few_shot_task, {"shots": 13, "queries": None}, r"class '\w+' has 12 samples, but shots=13 .* need 13"),
        (few_shot_task, {"shots": 2}, "12 samples, but shots=2 and queries=15 need 17"),
        (few_shot_task, {"shots": 12, "queries": None, "role": "query"}, "shots=12 and queries=1 need 13"),
    ],
)
def test_an_unusable_subset_is_refused(subset, arguments, message):
    usable = {
        class_subset: {"dataset": FakeImages(LABELS, [*NAMES, "dog"])},
        few_shot_subset: {"dataset": FakeImages(LABELS, NAMES)},
        few_shot_task: {"dataset": TASK_IMAGES, "ways": 6, "shots": 1, "task": 0, "role": "support"},
    }
    with pytest.raises(ConfigError, match=message):
        subset(**{**usable[subset], **arguments})
