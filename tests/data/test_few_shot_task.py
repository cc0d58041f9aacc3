from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.data import class_subset, evaluation_view, few_shot_task
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view

LABELS = [i % 6 for i in range(72)]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
IMAGES = FakeImages(LABELS, NAMES)


def both(ways, shots, task, **others):
    return tuple(few_shot_task(IMAGES, ways, shots, task, role, **others) for role in ("support", "query"))


def per_label(subset):
    return [subset.targets.count(label) for label in range(len(subset.classes))]


@given(st.integers(2, 6), st.integers(1, 11), st.integers(0, 500), st.integers(0, 5), st.data())
def test_support_and_queries_of_a_task_are_disjoint_and_of_the_same_classes(ways, shots, task, seed, data):
    queries = data.draw(st.one_of(st.none(), st.integers(1, 12 - shots)))
    support, query = both(ways, shots, task, queries=queries, seed=seed)
    assert support.classes == query.classes
    assert len(set(support.classes)) == ways
    assert per_label(support) == [shots] * ways
    assert per_label(query) == [12 - shots if queries is None else queries] * ways
    assert not set(support.indices) & set(query.indices)
    for subset in (support, query):
        assert [subset.classes[label] for label in subset.targets] == [NAMES[LABELS[i]] for i in subset.indices]


@given(st.integers(1, 5), st.integers(0, 50))
def test_fewer_shots_are_a_subset_of_more_with_the_same_queries(shots, task):
    few, first_queries = both(3, shots, task, queries=6)
    more, second_queries = both(3, shots + 1, task, queries=6)
    assert set(few.indices) < set(more.indices)
    assert first_queries.indices == second_queries.indices


def test_a_task_depends_on_its_number_and_the_seed_alone():
    torch.manual_seed(1)
    first = both(3, 2, 7, queries=5)
    torch.manual_seed(2)
    again = both(3, 2, 7, queries=5)
    assert [part.indices for part in first] == [part.indices for part in again]
    drawn = {(task, seed): both(3, 2, task, queries=5, seed=seed) for task in range(10) for seed in range(10)}
    assert len({tuple(support.indices) for support, _ in drawn.values()}) > 95
    assert len({tuple(support.classes) for support, _ in drawn.values()}) > 50


def test_classes_of_equal_size_do_not_share_one_permutation():
    places = [[], []]
    for task in range(20):
        support, _ = both(2, 1, task, queries=5)
        for label in (0, 1):
            places[label].append(support.indices[support.targets.index(label)] // 6)
    assert places[0] != places[1]


def test_two_datasets_with_the_same_classes_give_one_task():
    train, test = FakeImages(LABELS, NAMES), FakeImages(LABELS[:24], NAMES)
    support = few_shot_task(train, 3, 12, 4, "support", queries=0)
    query = few_shot_task(test, 3, 0, 4, "query", queries=None)
    assert support.classes == query.classes
    assert per_label(support) == [12] * 3
    assert per_label(query) == [4] * 3


def test_the_view_and_the_teachers_labels_go_along():
    novel = class_subset(with_view(LABELS, NAMES), [3, 4, 5])
    novel.teacher_labels, novel.teacher_num_classes = [8, None, 7], 9
    support = few_shot_task(novel, 2, 1, 0, "support", queries=5)
    known = {"dog": 8, "elk": None, "fox": 7}
    assert support.teacher_labels == [known[name] for name in support.classes]
    assert evaluation_view(support)[0].teacher_labels == support.teacher_labels
    assert support.teacher_num_classes == evaluation_view(support)[0].teacher_num_classes == 9
    assert evaluation_view(support)[0][0][0].startswith("clean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "suport"}, "role: 'suport' is unknown; did you mean 'support'"),
        ({"ways": 1}, "ways must be a whole number from 2 up, got 1"),
        ({"ways": 7}, "ways=7, but the dataset has 6 classes"),
        ({"shots": 0}, "shots must be a whole number from 1 up, got 0"),
        ({"shots": 0, "queries": 0, "role": "query"}, "queries must be a whole number from 1 up, got 0"),
        ({"task": -1}, "task must be a whole number from 0 up"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"shots": 13, "queries": None}, r"class '\w+' has 12 samples, shots=13 and queries=0 need 13"),
        ({"shots": 2}, r"class '\w+' has 12 samples, shots=2 and queries=15 need 17"),
        (
            {"shots": 12, "queries": None, "role": "query"},
            r"12 samples, shots=12 and queries=1 need 13",
        ),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        few_shot_task(**{"dataset": IMAGES, "ways": 6, "shots": 1, "task": 0, "role": "support", **arguments})


def test_the_class_that_is_too_small_is_named():
    with pytest.raises(ConfigError, match="class 'cat' has 0 samples"):
        few_shot_task(FakeImages([0, 1] * 10, ["ant", "bee", "cat"]), 3, 1, 0, "support", queries=1)


def test_an_empty_set_is_refused():
    with pytest.raises(ConfigError, match="FakeImages has no samples"):
        few_shot_task(FakeImages([], NAMES), 2, 1, 0, "support")
