from __future__ import annotations

import pytest
from torch.utils.data import Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import class_subset, evaluation_view, labels_of, with_evaluation_view
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view


def test_a_dataset_that_offers_none_is_returned_unwrapped():
    dataset = FakeImages([0, 1])
    assert evaluation_view(dataset) == (dataset, False)
    assert evaluation_view(BaseDatasetWrapper(dataset)) == (dataset, False)
    subset = Subset(dataset, [1])
    assert evaluation_view(subset) == (subset, False)


def test_the_view_is_found_through_wrappers():
    view, found = evaluation_view(BaseDatasetWrapper(with_view([0, 1])))
    assert found
    assert view[1] == ("clean1", 1)


def test_the_view_of_a_subset_has_the_same_samples():
    view, found = evaluation_view(Subset(BaseDatasetWrapper(with_view([0, 1, 2])), [2, 0]))
    assert found
    assert [view[i] for i in range(len(view))] == [("clean2", 2), ("clean0", 0)]


def test_the_view_survives_nested_subsets():
    view, found = evaluation_view(Subset(class_subset(with_view([0, 1, 2, 1]), [1]), [1]))
    assert found
    assert view[0] == ("clean3", 0)


def test_a_wrapped_subset_without_view_loses_only_the_wrapper():
    view, found = evaluation_view(Subset(BaseDatasetWrapper(FakeImages([4, 5])), [1]))
    assert not found
    assert view[0] == ("image1", 5)


def test_attaching_a_view_keeps_samples_labels_and_names():
    dataset = FakeImages([1, 0], classes=["ant", "bee"], prefix="augmented")
    both = with_evaluation_view(dataset, FakeImages([1, 0], prefix="clean"))
    assert len(both) == 2
    assert both[0] == ("augmented0", 1)
    assert labels_of(both) == both.targets == [1, 0]
    assert both.classes == ["ant", "bee"]
    view, found = evaluation_view(both)
    assert found
    assert view[0] == ("clean0", 1)


def test_attaching_other_samples_is_refused():
    with pytest.raises(ConfigError, match=r"1 samples, but the training dataset has 2"):
        with_evaluation_view(FakeImages([0, 1]), FakeImages([0]))
    with pytest.raises(ConfigError, match=r"sample 1 has label 0, but 1"):
        with_evaluation_view(FakeImages([0, 1]), FakeImages([0, 0]))
