from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import class_names_of, classes_of, labels_of, num_classes_of, with_evaluation_view
from gkd_plugin.data.labels import has_own, keeps_labels
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages

LABELS = [2, 0, 1, 2]


@pytest.mark.parametrize(
    "targets",
    [LABELS, tuple(LABELS), np.array(LABELS), torch.tensor(LABELS), list(torch.tensor(LABELS)), list(np.array(LABELS))],
    ids=["list", "tuple", "array", "tensor", "list of tensors", "list of numpy integers"],
)
def test_labels_of_every_container_are_plain_integers(targets):
    labels = labels_of(FakeImages(targets))
    assert labels == LABELS
    assert {type(label) for label in labels} == {int}


@pytest.mark.parametrize("attribute", ["labels", "_labels"])
def test_labels_under_the_other_names_of_torchvision(attribute):
    dataset = FakeImages(None)
    setattr(dataset, attribute, LABELS)
    assert labels_of(dataset) == LABELS


def test_labels_of_path_label_pairs():
    dataset = FakeImages(None)
    dataset._samples = [("a.png", 3), ("b.png", 1)]
    assert labels_of(dataset) == [3, 1]


def test_labels_follow_the_target_transform():
    dataset = FakeImages(LABELS)
    dataset.target_transform = {0: 5, 1: 6, 2: 7}.get
    assert labels_of(dataset) == [7, 5, 6, 7]


def test_labels_through_subsets_wrappers_and_concatenations():
    wrapped = BaseDatasetWrapper(BaseDatasetWrapper(FakeImages(LABELS)))
    assert labels_of(wrapped) == LABELS
    assert labels_of(Subset(wrapped, [3, 1])) == [2, 0]
    assert labels_of(Subset(Subset(wrapped, torch.tensor([3, 1])), [1])) == [0]
    assert labels_of(ConcatDataset([Subset(wrapped, [1]), FakeImages([9])])) == [0, 9]


def test_a_dataset_without_labels_is_named():
    with pytest.raises(ConfigError, match=r"FakeImages has no labels.*'targets'"):
        labels_of(Subset(FakeImages(None), [0]))


@pytest.mark.parametrize("targets", [[0.5, 1.0], [[0, 1], [1, 0]], torch.zeros(2, 2), ["cat", "dog"]])
def test_labels_that_are_not_whole_numbers_are_refused(targets):
    with pytest.raises(ConfigError, match="one whole number for each sample"):
        labels_of(FakeImages(targets))


def test_num_classes_is_the_largest_label_plus_one():
    assert num_classes_of(FakeImages([0, 4, 1])) == 5


def test_num_classes_refuses_negative_labels_and_empty_datasets():
    with pytest.raises(ConfigError, match="class index out of range: label -1"):
        num_classes_of(FakeImages([0, -1]))
    with pytest.raises(ConfigError, match="no samples"):
        num_classes_of(FakeImages([]))


def test_class_names_come_from_the_dataset_or_are_the_labels():
    named = FakeImages([0, 1], classes=["ant", "bee", "cat"])
    assert classes_of(named) == ["ant", "bee", "cat"]
    assert classes_of(Subset(BaseDatasetWrapper(named), [0])) == ["ant", "bee", "cat"]
    assert classes_of(FakeImages([0, 2])) == [0, 1, 2]
    assert classes_of(FakeImages([0, 2], classes=["too", "few"])) == [0, 1, 2]


NAMES = ["ant", "bee", "cat"]


class Wrapper(Dataset):
    """A user's dataset around another one, with attributes of its own."""

    def __init__(self, dataset, **attributes):
        self.dataset = dataset
        self.__dict__.update(attributes)


class Delegating(Wrapper):
    """One that passes on what it does not have."""

    def __getattr__(self, name):
        return getattr(self.__dict__["dataset"], name)


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({}, True),
        ({"targets": LABELS}, True),
        ({"targets": torch.tensor(LABELS)}, True),
        ({"targets": LABELS, "classes": ["a", "b", "c"]}, True),  # names alone do not move a label
        ({"targets": [2, 1, 0, 2]}, False),
        ({"targets": LABELS, "target_transform": lambda label: 2 - label}, False),
        ({"target_transform": lambda label: 2 - label}, False),
        ({"target_transform": lambda label: label}, True),
        ({"targets": [1, 2], "indices": [2, 3]}, True),
        ({"targets": [0, 1], "indices": [2, 3]}, False),
        ({"indices": [2, 3]}, True),
        ({"targets": [0, 1]}, False),  # of which samples?
        ({"targets": LABELS * 2, "classes": NAMES}, True),
        ({"targets": LABELS * 2, "classes": NAMES[::-1]}, False),
        ({"classes": NAMES}, True),
        ({"classes": NAMES[::-1]}, False),
    ],
)
def test_whether_a_wrapper_keeps_the_labels_inside(attributes, kept):
    assert keeps_labels(Wrapper(FakeImages(LABELS, NAMES), **attributes)) is kept
    assert keeps_labels(Delegating(FakeImages(LABELS, NAMES), **attributes)) is kept


def test_names_that_nothing_inside_has_say_nothing():
    assert keeps_labels(Wrapper(FakeImages(LABELS), classes=NAMES))
    assert not keeps_labels(Wrapper(FakeImages(LABELS), targets=LABELS * 2, classes=NAMES))


def test_the_usual_wrappers_keep_labels():
    images = FakeImages(LABELS, NAMES)
    part = Subset(images, [3, 0])
    for dataset in (images, part, ConcatDataset([part, images]), BaseDatasetWrapper(part)):
        assert keeps_labels(dataset)
    assert keeps_labels(with_evaluation_view(images, images))
    part.targets = [1, 0]
    assert not keeps_labels(part)


def test_what_is_passed_on_is_not_a_datasets_own():
    wrapper = Delegating(FakeImages(LABELS, NAMES), targets=LABELS)
    assert has_own(wrapper, "targets")
    assert wrapper.classes == NAMES
    assert not has_own(wrapper, "classes")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["cat", "dog", "fox"], ["cat", "dog", "fox"]),
        ([3, 1, 2], None),
        ([("tench", "Tinca tinca"), "dog", ("fox",)], ["tench", "dog", "fox"]),
        (["cat", "dog"], None),
        (10, None),
        (np.array(["cat", "dog", "fox"]), ["cat", "dog", "fox"]),
        (None, None),
    ],
    ids=["names", "numbers", "several names", "too few", "a count", "array", "none"],
)
def test_class_names_where_the_dataset_names_its_classes(classes, names):
    dataset = FakeImages(LABELS)
    if classes is not None:
        dataset.classes = classes
    assert class_names_of(Subset(dataset, [0, 1])) == names
