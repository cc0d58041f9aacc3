import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import FixedViews, few_shot_subset, labels_of, num_classes_of, with_evaluation_view
from gkd_plugin.data.labels import class_names_of, classes_of, keeps_labels, teacher_labels_of, teacher_num_classes_of
from tests.data.fakes import FakeImages, known_by_a_teacher
from tests.runner.fakes import refused

LABELS = [2, 0, 1, 2]
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
    ("attribute", "value"),
    [
        *(("targets", container(LABELS)) for container in (tuple, np.array, torch.tensor)),
        ("targets", list(torch.tensor(LABELS))),
        ("targets", list(np.array(LABELS))),
        ("labels", LABELS),
        ("_labels", LABELS),
        ("_samples", [(f"{label}.png", label) for label in LABELS]),
    ],
)
def test_labels_are_plain_integers_whatever_holds_them(attribute, value):
    dataset = FakeImages(None)
    setattr(dataset, attribute, value)
    labels = labels_of(dataset)
    assert labels == LABELS
    assert {type(label) for label in labels} == {int}


def test_labels_through_transforms_subsets_wrappers_and_concatenations():
    dataset = FakeImages(LABELS)
    wrapped = BaseDatasetWrapper(BaseDatasetWrapper(dataset))
    assert labels_of(wrapped) == LABELS
    dataset.target_transform = {0: 5, 1: 6, 2: 7}.get
    assert labels_of(wrapped) == [7, 5, 6, 7]
    assert labels_of(Subset(Subset(wrapped, torch.tensor([3, 1])), [1])) == [5]
    assert labels_of(ConcatDataset([Subset(wrapped, [1]), FakeImages([9])])) == [5, 9]


@pytest.mark.parametrize("targets", [None, [0.5, 1.0], [[0, 1], [1, 0]], torch.zeros(2, 2), ["cat", "dog"]])
def test_unreadable_labels_are_refused(targets):
    refused(r"dataset FakeImages.* label", labels_of, Subset(FakeImages(targets), [0]))


def test_classes_are_the_names_of_the_dataset_or_the_labels_up_to_the_largest():
    assert num_classes_of(FakeImages([0, 4, 1])) == 5
    for labels, message in (([0, -1], "label -1"), ([], "FakeImages has no samples")):
        refused(message, num_classes_of, FakeImages(labels))
    named = FakeImages([0, 1], classes=NAMES)
    assert classes_of(Subset(BaseDatasetWrapper(named), [0])) == NAMES
    assert classes_of(FakeImages([0, 2])) == [0, 1, 2]
    assert classes_of(FakeImages([0, 2], classes=["too", "few"])) == [0, 1, 2]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (np.array(NAMES), NAMES),
        ([3, 1, 2], None),  # numbers
        ([("tench", "Tinca tinca"), "dog", ("fox",)], ["tench", "dog", "fox"]),
        (["cat", "dog"], None),  # too few
        (10, None),
        (None, None),
    ],
)
def test_class_names_where_the_dataset_names_its_classes(classes, names):
    dataset = FakeImages(LABELS)
    dataset.classes = classes
    assert class_names_of(Subset(dataset, [0, 1])) == names


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({}, True),
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
        ({"dataset": FakeImages(LABELS), "classes": NAMES}, True),  # nothing inside has names
        ({"dataset": FakeImages(LABELS), "targets": LABELS * 2, "classes": NAMES}, False),
    ],
)
def test_whether_a_wrapper_keeps_the_labels_inside(attributes, kept):
    for kind in (Wrapper, Delegating):
        assert keeps_labels(kind(**{"dataset": FakeImages(LABELS, NAMES), **attributes})) is kept


def test_teacher_labels_go_along_with_views_draws_and_wrappers_unless_parts_disagree():
    subset, other = (known_by_a_teacher(FakeImages(LABELS, NAMES)) for _ in range(2))
    wrapped = BaseDatasetWrapper(few_shot_subset(Subset(subset, range(4)), shots=1))
    parts = ConcatDataset([subset, other])
    for dataset in (with_evaluation_view(wrapped, wrapped), FixedViews(subset, 2), parts):
        assert teacher_labels_of(dataset) == [4, None, 1]
        assert teacher_num_classes_of(dataset) == 7
    other.teacher_labels = [4, 0, 1]
    assert teacher_labels_of(parts) is None


def test_the_teacher_labels_inside_a_dataset_that_relabels_are_not_believed(caplog):
    permuted = Delegating(known_by_a_teacher(FakeImages(LABELS, NAMES)), targets=[0, 1, 2, 0])
    for dataset in (permuted, Subset(permuted, range(4)), BaseDatasetWrapper(permuted)):
        assert teacher_labels_of(dataset) is teacher_num_classes_of(dataset) is None
    permuted.teacher_labels = [1, 4, None]
    assert teacher_labels_of(Subset(permuted, range(4))) == [1, 4, None]
    assert teacher_labels_of(Delegating(FakeImages(LABELS, NAMES), targets=[0, 1, 2, 0])) is None  # nothing to tell
    assert caplog.text.count("Delegating has labels or classes of its own, so the teacher_labels") == 3
    assert len(caplog.records) == 3
