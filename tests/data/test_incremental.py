from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.data import (
    class_groups_of,
    evaluation_view,
    few_shot_subset,
    incremental_subset,
    overlap_subset,
    teacher_labels_of,
)
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view

LABELS = [i % 6 for i in range(48)]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
IMAGES = FakeImages(LABELS, NAMES)


@given(st.integers(1, 5), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 8)), st.one_of(st.none(), st.just(3)))
def test_old_classes_first_with_the_exemplars_that_memory_allows(old, new, memory, seed):
    if old + new > 6:
        new = 6 - old
    subset = incremental_subset(IMAGES, old, new, memory, seed=seed)
    count = 8 if memory is None else memory
    assert [subset.targets.count(k) for k in range(old + new)] == [count] * old + [8] * new
    assert [subset.classes[label] for label in subset.targets] == [NAMES[LABELS[i]] for i in subset.indices]
    assert subset.teacher_labels == [*range(old), *[None] * new]
    assert subset.teacher_num_classes == old
    assert subset.class_groups == {"old": list(range(old)), "new": list(range(old, old + new))}
    teacher = overlap_subset(IMAGES, old, "teacher", shift=0, seed=seed)
    assert subset.classes[:old] == teacher.classes


def test_exemplars_are_the_first_of_the_samples_to_draw_from():
    subset = incremental_subset(IMAGES, 1, 1, 2, class_order=[5, 0, 1, 2, 3, 4], per_class=4, start=3)
    assert [i for i, label in zip(subset.indices, subset.targets, strict=True) if label == 0] == [23, 29]
    assert [i for i, label in zip(subset.indices, subset.targets, strict=True) if label == 1] == [18, 24, 30, 36]


def test_without_memory_old_classes_stay_in_the_label_space():
    subset = incremental_subset(IMAGES, 2, 2, 0)
    assert subset.classes == ["ant", "bee", "cat", "dog"]
    assert set(subset.targets) == {2, 3}


def test_the_view_and_draws_keep_labels_and_groups():
    subset = incremental_subset(with_view(LABELS, NAMES), 2, 1, 3)
    drawn = few_shot_subset(subset, shots=2)
    for dataset in (evaluation_view(subset)[0], drawn, evaluation_view(drawn)[0]):
        assert teacher_labels_of(dataset) == [0, 1, None]
        assert dataset.teacher_num_classes == 2
        assert class_groups_of(dataset) == {"old": [0, 1], "new": [2]}
    assert evaluation_view(subset)[0][0] == ("clean0", 0)
    assert class_groups_of(IMAGES) is None


def test_the_order_may_be_a_file(tmp_path):
    path = tmp_path / "order.txt"
    path.write_text("\n".join(reversed(NAMES)), encoding="utf-8")
    assert incremental_subset(IMAGES, 1, 2, class_order=str(path)).classes == ["fox", "elk", "dog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"old": 0}, "old must be a whole number from 1 up, got 0"),
        ({"new": 0}, "new must be a whole number from 1 up, got 0"),
        ({"new": 5}, "old=2 and new=5 need 7 classes, the dataset has 6"),
        ({"memory": -1}, "memory must be a whole number from 0 up, got -1"),
        ({"memory": True}, "memory must be a whole number from 0 up, got True"),
        ({"memory": 9}, "class 'ant' has 8 samples to draw from, memory=9 needs 9"),
        ({"memory": 4, "per_class": 3}, "class 'ant' has 3 samples to draw from, memory=4 needs 4"),
        ({"seed": 1, "class_order": [0, 1, 2, 3, 4, 5]}, "either class_order or seed"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        incremental_subset(**{"dataset": IMAGES, "old": 2, "new": 2, **arguments})


@pytest.mark.parametrize("memory", [None, 0, 1])
def test_new_classes_without_samples_are_refused(memory):
    with pytest.raises(ConfigError, match="none of the new classes has a sample"):
        incremental_subset(FakeImages([0, 1], ["ant", "bee", "cat"]), 2, 1, memory)
