from __future__ import annotations

import pytest

from gkd_plugin.data import class_split, evaluation_view
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
LABELS = [i % 6 for i in range(24)]
SIZES = {"base": 3, "validation": 1, "novel": 2}


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_parts_follow_each_other_in_the_class_order(seed):
    parts = [class_split(FakeImages(LABELS, NAMES), part, SIZES, seed=seed) for part in SIZES]
    classes = [name for part in parts for name in part.classes]
    assert sorted(classes) == NAMES
    assert (classes == NAMES) is (seed is None)
    assert [len(part.classes) for part in parts] == [3, 1, 2]
    for part in parts:
        assert [part.classes[label] for label in part.targets] == [NAMES[LABELS[i]] for i in part.indices]


def test_an_explicit_order_samples_to_draw_from_and_the_view_go_along():
    novel = class_split(with_view(LABELS, NAMES), "novel", SIZES, class_order=[5, 4, 3, 2, 1, 0], per_class=1, start=2)
    assert (novel.classes, novel.indices, novel.targets) == (["bee", "ant"], [12, 13], [1, 0])
    assert evaluation_view(novel)[0][0] == ("clean12", 1)


def test_the_order_may_be_a_file(tmp_path):
    path = tmp_path / "order.txt"
    path.write_text("\n".join(reversed(NAMES)), encoding="utf-8")
    assert class_split(FakeImages(LABELS, NAMES), "validation", SIZES, class_order=str(path)).classes == ["cat"]


def test_classes_may_be_left_over():
    assert class_split(FakeImages(LABELS, NAMES), "b", {"a": 1, "b": 2}).classes == ["bee", "cat"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "bse"}, "part: 'bse' is not in sizes; did you mean 'base'"),
        ({"sizes": {}}, "'novel' is not in sizes; there are none"),
        ({"sizes": {"base": 4, "novel": 3}}, r"sizes: 4 \+ 3 = 7 classes, the dataset has 6"),
        ({"sizes": {"base": 4, "novel": 0}}, "sizes.novel must be a whole number from 1 up, got 0"),
        ({"sizes": [4, 2]}, r"sizes must map .* got \[4, 2\]"),
        ({"seed": 1, "class_order": [0, 1, 2, 3, 4, 5]}, "either class_order or seed"),
        ({"per_class": 5}, "class 'elk' has 4 samples, per_class=5"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        class_split(FakeImages(LABELS, NAMES), **{"part": "novel", "sizes": SIZES, **arguments})
