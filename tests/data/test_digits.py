from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
from torchvision.transforms import ToTensor

from gkd_plugin.data import digits, evaluation_view
from gkd_plugin.errors import ConfigError


def rows(dataset):
    return Counter(image.tobytes() for image in dataset.data)


def test_the_splits_share_nothing_and_lose_nothing():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1198, 599)
    everything = digits("train", 0.5), digits("test", 0.5)
    assert rows(train) + rows(test) == rows(everything[0]) + rows(everything[1])
    assert not rows(train) & rows(test)


def test_the_classes_keep_their_shares():
    train, test = Counter(digits("train").targets), Counter(digits("test").targets)
    assert all(abs(train[k] - 2 * test[k]) <= 2 for k in range(10))


def test_the_split_depends_on_the_seed_alone():
    np.random.seed(1)  # noqa: NPY002
    first = digits().data
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(digits().data, first)
    assert not np.array_equal(digits(seed=1).data, first)


def test_images_are_grey_and_use_the_whole_range():
    dataset = digits()
    image, label = dataset[0]
    assert (image.mode, image.size, type(label)) == ("L", (8, 8), int)
    assert (dataset.data.min(), dataset.data.max()) == (0, 255)
    assert dataset.classes == list("0123456789")


def test_size_scales_the_images():
    assert digits(size=16).data.shape == (1198, 16, 16)


def test_transforms_reach_the_dataset():
    dataset = digits("test", transform=ToTensor(), eval_transform=lambda _: "clean")
    assert dataset[0][0].shape == (1, 8, 8)
    assert evaluation_view(dataset)[0][0][0] == "clean"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
        ({"test_fraction": 0.001}, "test_fraction=0.001 leaves a class without samples"),
        ({"seed": -1}, "seed must be"),
        ({"size": 0}, "size must be"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        digits(**arguments)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'gkd-plugin\[digits\]'"):
        digits()
