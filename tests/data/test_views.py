from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import (
    ArrayImages,
    class_groups_of,
    class_split,
    class_subset,
    evaluation_view,
    few_shot_subset,
    incremental_subset,
    labels_of,
    teacher_labels_of,
    with_evaluation_view,
)
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, samples, with_view


def array_images(**transforms):
    return ArrayImages(np.zeros((3, 4, 4), np.uint8), [2, 0, 1], **transforms)


@pytest.mark.parametrize(
    "dataset",
    [FakeImages([0, 1]), Subset(FakeImages([0, 1]), [1]), array_images(transform=lambda _: "augmented")],
)
def test_a_dataset_that_offers_none_is_returned_unwrapped(dataset):
    assert evaluation_view(dataset) == (dataset, False)
    assert evaluation_view(BaseDatasetWrapper(dataset)) == (dataset, False)


def test_a_wrapped_subset_without_view_loses_only_the_wrapper():
    view, found = evaluation_view(Subset(BaseDatasetWrapper(FakeImages([4, 5])), [1]))
    assert not found
    assert view[0] == ("image1", 5)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (BaseDatasetWrapper(with_view([0, 1])), [("clean0", 0), ("clean1", 1)]),
        (Subset(BaseDatasetWrapper(with_view([0, 1, 2])), [2, 0]), [("clean2", 2), ("clean0", 0)]),
        (Subset(class_subset(with_view([0, 1, 2, 1]), [1]), [1]), [("clean3", 0)]),
        (class_subset(class_subset(with_view([0, 1, 2, 1]), [1, 2]), [1]), [("clean2", 0)]),
        (class_split(with_view([0, 1, 2]), "b", {"a": 1, "b": 2}), [("clean1", 0), ("clean2", 1)]),
        (
            class_subset(array_images(transform=lambda _: "augmented", eval_transform=lambda _: "clean"), [2, 1]),
            [("clean", 0), ("clean", 1)],
        ),
        (with_evaluation_view(FakeImages([1]), FakeImages([1], prefix="clean")), [("clean0", 1)]),
    ],
)
def test_the_view_has_the_same_samples_through_wrappers_and_subsets(dataset, expected):
    view, found = evaluation_view(dataset)
    assert found
    assert samples(view) == expected
    assert labels_of(view) == labels_of(dataset)
    assert not evaluation_view(view)[1]


def test_a_dataset_that_is_its_own_view_is_found_in_a_subset():
    dataset = FakeImages([0, 1])
    dataset.evaluation_view = dataset
    for subset in (Subset(dataset, [1]), class_subset(dataset, [1])):
        assert evaluation_view(subset) == (subset, True)


def test_a_wrapper_that_passes_on_attributes_is_not_the_view_of_what_is_inside():
    class Augmenting(FakeImages):
        def __getattr__(self, name):
            return getattr(array_images(eval_transform=lambda _: "clean"), name)

    dataset = Augmenting([0])
    assert evaluation_view(dataset) == (dataset, False)


def test_the_view_keeps_what_is_known_of_the_classes():
    subset = incremental_subset(with_view([0, 1, 2] * 4), 2, 1, 3)
    for dataset in (evaluation_view(subset)[0], evaluation_view(few_shot_subset(subset, shots=2))[0]):
        assert teacher_labels_of(dataset) == [0, 1, None]
        assert dataset.teacher_num_classes == 2
        assert class_groups_of(dataset) == {"old": [0, 1], "new": [2]}


def test_attaching_a_view_keeps_samples_labels_and_names():
    both = with_evaluation_view(FakeImages([1, 0], ["ant", "bee"], "augmented"), FakeImages([1, 0]))
    assert samples(both) == [("augmented0", 1), ("augmented1", 0)]
    assert labels_of(both) == both.targets == [1, 0]
    assert both.classes == ["ant", "bee"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], "sample 1 has label None, but 1 .*the view 1, the other 2"),
        ([0, 1, 1], "sample 2 has label 1, but None .*the view 3, the other 2"),
        ([0, 0], "sample 1 has label 0, but 1"),
    ],
)
def test_attaching_other_samples_is_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        with_evaluation_view(FakeImages([0, 1]), FakeImages(labels))
