from __future__ import annotations

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchdistill.common import yaml_util
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.data import (
    ClassSubset,
    FixedViews,
    class_subset,
    evaluation_view,
    few_shot_subset,
    labels_of,
    teacher_labels_of,
    teacher_num_classes_of,
    with_evaluation_view,
)
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view

LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
NAMES = ["ant", "bee", "cat"]


def samples(dataset):
    return [dataset[i] for i in range(len(dataset))]


def test_labels_follow_the_order_of_the_classes_given():
    subset = class_subset(FakeImages(LABELS, NAMES), [2, 0])
    assert subset.indices == [0, 2, 3, 5, 6]
    assert subset.targets == [1, 0, 1, 0, 1]
    assert subset.classes == ["cat", "ant"]
    assert samples(subset)[:2] == [("image0", 1), ("image2", 0)]


def test_classes_may_be_names():
    by_name = class_subset(FakeImages(LABELS, NAMES), ["cat", 0])
    assert by_name.targets == [1, 0, 1, 0, 1]


def test_synonyms_of_imagenet_classes_are_names():
    dataset = FakeImages([0, 1, 2], [("tench", "Tinca tinca"), ("crane",), ("crane", "crane bird")])
    assert class_subset(dataset, ["Tinca tinca"]).indices == [0]
    with pytest.raises(ConfigError, match=r"'crane' belongs to the classes \[1, 2\]"):
        class_subset(dataset, ["crane"])


def test_without_names_the_classes_are_the_original_indices():
    assert class_subset(FakeImages(LABELS), [2, 1]).classes == [2, 1]


def test_a_subset_of_a_subset_keeps_the_names():
    inner = class_subset(FakeImages(LABELS, NAMES), ["cat", "bee"])
    outer = class_subset(inner, ["bee"])
    assert outer.classes == ["bee"]
    assert samples(outer) == [("image1", 0), ("image4", 0), ("image7", 0)]


def test_torchdistill_wrappers_are_looked_through():
    subset = class_subset(BaseDatasetWrapper(FakeImages(LABELS)), [1])
    assert subset[0] == ("image1", 0)


def test_per_class_and_start_cut_each_class_without_overlap():
    dataset = FakeImages(LABELS)
    first = class_subset(dataset, [0, 1], per_class=1)
    second = class_subset(dataset, [0, 1], per_class=2, start=1)
    rest = class_subset(dataset, [0, 1], start=1)
    assert first.indices == [0, 1]
    assert second.indices == rest.indices == [3, 4, 6, 7]
    assert second.targets == [0, 1, 0, 1]


def test_too_few_samples_names_the_class_and_its_size():
    with pytest.raises(ConfigError, match=r"class 'cat' has 2 samples, per_class=2 and start=1 need 3"):
        class_subset(FakeImages(LABELS, NAMES), [0, 2], per_class=2, start=1)
    with pytest.raises(ConfigError, match=r"class 'cat' has 2 samples, start=2 need 3"):
        class_subset(FakeImages(LABELS, NAMES), [0, 2], start=2)
    with pytest.raises(ConfigError, match=r"class 'dog' has 0 samples"):
        class_subset(FakeImages(LABELS, [*NAMES, "dog"]), [3], per_class=1)


def test_a_class_without_samples_is_allowed_among_others():
    subset = class_subset(FakeImages(LABELS, [*NAMES, "dog"]), [3, 0])
    assert set(subset.targets) == {1}
    assert subset.classes == ["dog", "ant"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 3], r"class index must be a whole number in 0 … 2, got 3"),
        ([-1], "got -1"),
        ([1, 1], r"class index 1 is given twice"),
        (["bee", 1], r"class index 1 is given twice"),
        (["bees"], r"no class is named 'bees'; did you mean 'bee'"),
        ([], r"no sample"),
        ([1.5], r"class indices or names, got 1.5"),
        ([True], r"class indices or names, got True"),
    ],
)
def test_unusable_classes_are_refused(classes, message):
    with pytest.raises(ConfigError, match=message):
        class_subset(FakeImages(LABELS, NAMES), classes)


def test_an_empty_result_is_refused():
    with pytest.raises(ConfigError, match="no sample of the 1 classes"):
        class_subset(FakeImages(LABELS, [*NAMES, "dog"]), ["dog"])


@pytest.mark.parametrize("numbers", [{"per_class": 0}, {"start": -1}, {"per_class": 1.0}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ConfigError, match="must be a whole number"):
        class_subset(FakeImages(LABELS), [0], **numbers)


def test_the_evaluation_view_has_the_same_samples():
    view = evaluation_view(class_subset(with_view(LABELS, NAMES), [2]))[0]
    assert samples(view) == [("clean2", 0), ("clean5", 0)]
    assert view.classes == ["cat"]
    assert not evaluation_view(view)[1]


def known_by_a_teacher(dataset):
    subset = class_subset(dataset, [0, 1, 2])
    subset.teacher_labels, subset.teacher_num_classes = [4, None, 1], 7
    return subset


def test_teacher_labels_go_along_with_views_draws_and_wrappers():
    subset = known_by_a_teacher(with_view(LABELS, NAMES))
    wrapped = BaseDatasetWrapper(few_shot_subset(Subset(subset, range(8)), shots=1))
    for dataset in (with_evaluation_view(wrapped, wrapped), evaluation_view(subset)[0], FixedViews(subset, 2)):
        assert teacher_labels_of(dataset) == [4, None, 1]
        assert teacher_num_classes_of(dataset) == 7


def test_teacher_labels_follow_the_classes_of_a_subset():
    subset = class_subset(known_by_a_teacher(FakeImages(LABELS, NAMES)), ["cat", "bee"])
    assert (subset.teacher_labels, subset.teacher_num_classes) == ([1, None], 7)


def test_without_teacher_labels_nobody_can_say():
    plain = FakeImages(LABELS)
    assert teacher_labels_of(plain) is None
    assert teacher_labels_of(class_subset(plain, [0])) is None
    assert teacher_num_classes_of(class_subset(plain, [0])) is None
    assert teacher_labels_of(ClassSubset(known_by_a_teacher(plain), [0], [0], ["new"])) is None


def test_parts_that_disagree_have_no_teacher_labels():
    first, second = known_by_a_teacher(FakeImages(LABELS)), known_by_a_teacher(FakeImages(LABELS))
    assert teacher_labels_of(ConcatDataset([first, second])) == [4, None, 1]
    second.teacher_labels = [4, 0, 1]
    assert teacher_labels_of(ConcatDataset([first, second])) is None


class Permuted(Dataset):
    """A user's wrapper with other labels, which passes on what it does not have."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.targets = [(label + 1) % 3 for label in dataset.targets]

    def __getattr__(self, name):
        return getattr(self.__dict__["dataset"], name)


def test_the_teacher_labels_inside_a_dataset_that_relabels_are_not_believed(caplog):
    permuted = Permuted(known_by_a_teacher(FakeImages(LABELS, NAMES)))
    for dataset in (permuted, Subset(permuted, range(4)), BaseDatasetWrapper(permuted)):
        caplog.clear()
        assert teacher_labels_of(dataset) is None
        (record,) = caplog.records
        assert record.getMessage().startswith(
            "dataset Permuted has labels or classes of its own, so the teacher_labels"
        )
        assert teacher_num_classes_of(dataset) is None
    permuted.teacher_labels = [1, 4, None]
    assert teacher_labels_of(Subset(permuted, range(4))) == [1, 4, None]


def test_a_dataset_that_relabels_what_no_teacher_knows_is_not_worth_a_line(caplog):
    assert teacher_labels_of(Permuted(FakeImages(LABELS, NAMES))) is None
    assert not caplog.records


def test_a_last_class_without_samples_does_not_disturb_a_draw_from_a_concatenation():
    both = ConcatDataset([known_by_a_teacher(FakeImages([0, 1], NAMES))])
    assert few_shot_subset(both, shots=1).teacher_labels == [4, None]


def test_teacher_labels_are_one_for_each_class():
    with pytest.raises(ConfigError, match="one for each of 2 classes, got 1"):
        ClassSubset(FakeImages(LABELS), [0], [0], ["ant", "bee"], teacher_labels=[0])
    with pytest.raises(ConfigError, match="teacher_labels name class 5 of a teacher with 5 classes"):
        ClassSubset(FakeImages(LABELS), [0], [0], ["ant"], teacher_labels=[5], teacher_num_classes=5)


def test_without_underlying_view_there_is_no_view():
    assert not evaluation_view(class_subset(FakeImages(LABELS), [0]))[1]


def test_few_shot_draws_the_same_number_of_every_class():
    subset = few_shot_subset(FakeImages(LABELS, NAMES), shots=2)
    assert sorted(subset.targets) == [0, 0, 1, 1, 2, 2]
    assert subset.classes == NAMES
    assert subset.targets == [LABELS[i] for i in subset.indices]


def test_few_shot_depends_on_the_seed_alone():
    dataset = FakeImages([i % 3 for i in range(90)])
    before = torch.get_rng_state()
    first = few_shot_subset(dataset, shots=5, seed=1).indices
    torch.manual_seed(99)
    assert few_shot_subset(dataset, shots=5, seed=1).indices == first
    assert few_shot_subset(dataset, shots=5, seed=2).indices != first
    torch.set_rng_state(before)


def test_fewer_shots_are_a_subset_of_more():
    dataset = FakeImages([i % 3 for i in range(90)])
    assert set(few_shot_subset(dataset, 2).indices) < set(few_shot_subset(dataset, 7).indices)


def test_few_shot_needs_enough_samples():
    with pytest.raises(ConfigError, match=r"class 'cat' has 2 samples, shots=3"):
        few_shot_subset(FakeImages(LABELS, NAMES), shots=3)
    with pytest.raises(ConfigError, match="shots must be"):
        few_shot_subset(FakeImages(LABELS), shots=0)


def test_subsets_travel_to_worker_processes():
    subset = class_subset(FakeImages(LABELS), [1, 2])
    batches = list(DataLoader(subset, batch_size=5, num_workers=1))
    assert batches[0][1].tolist() == subset.targets


def test_a_yaml_file_can_nest_the_calls(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
dataset: !import_call
  key: 'gkd_plugin.data.class_subset'
  init:
    kwargs:
      dataset: !import_call
        key: 'tests.data.fakes.FakeImages'
        init:
          kwargs: {labels: [0, 1, 2, 1], classes: ['ant', 'bee', 'cat']}
      classes: ['cat', 'bee']
      per_class: 1
"""
    )
    subset = yaml_util.load_yaml_file(str(config))["dataset"]
    assert labels_of(subset) == [1, 0]
