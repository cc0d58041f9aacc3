"""Labels that do not fit, stages that could learn nothing, and numbers of CRD's that do not fit the data."""

import logging

import numpy as np
import pytest

from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import ArrayImages
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.data_checks import check_data, check_labels, check_trained_classes
from tests.data.fakes import counted
from tests.fakes import TinyImages, cross_entropy, loader, stage


class Labels:
    def __init__(self, *targets):
        self.targets = list(targets)

    def __len__(self):
        return len(self.targets)


class Unlabelled:
    pass


def stages(*sections):
    return stages_of({"train": {f"stage{number}": section for number, section in enumerate(sections, 1)}})


EMBEDDING, CLASSIFIER, JOINT = (stages(stage(kind)) for kind in ("embedding", "classifier", "joint"))
CROSS_ENTROPY = stages(stage("embedding", criterion={"key": "WeightedSumLoss", "kwargs": None}))


def check(dataset, stages, num_classes=None):
    check_labels("d/train", dataset, "models.student_model", num_classes, stages)


@pytest.mark.parametrize("stages", [EMBEDDING, CLASSIFIER, CROSS_ENTROPY, [*EMBEDDING, *CLASSIFIER]])
def test_good_labels_pass(stages):
    check(TinyImages(), stages, 4)
    check(TinyImages(), stages)


@pytest.mark.parametrize(
    ("labels", "stages", "num_classes", "parts"),
    [
        ([], CROSS_ENTROPY, 4, ["no sample"]),
        ([0, 1, 4], CROSS_ENTROPY, 4, ["out of range", "label 4", "models.student_model has 4 classes (0 … 3)"]),
        ([0, -1], CROSS_ENTROPY, None, ["out of range", "label -1"]),
        ([2, 2, 2], EMBEDDING, 4, ["one class only", "'embedding'"]),
        ([0, 1, 2], EMBEDDING, 4, ["every class has one sample", "'embedding'"]),
        ([0, 1], JOINT, 2, ["every class has one sample", "'joint'"]),
        ([0, 0, 1, 1], CLASSIFIER, 4, ["class 2, 3", "'classifier'", "4 classes", "models.student_model.kwargs.num_c"]),
        ([0, 0, 1, 1], JOINT, 3, ["class 2", "'joint'", "3 classes"]),
        ([0, 0, 2, 2], EMBEDDING, 4, ["class 1", "'embedding'", "3 classes"]),
    ],
)
def test_bad_labels_are_one_line(labels, stages, num_classes, parts):
    with pytest.raises(ConfigError) as caught:
        check(Labels(*labels), stages, num_classes)
    message = str(caught.value)
    assert message.startswith("datasets.d/train: ")
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("labels", "stages", "num_classes"),
    [
        ([2, 2, 2], CROSS_ENTROPY, 4),
        ([0, 0, 1, 1], EMBEDDING, 4),
        ([0, 1, 2, 3], CLASSIFIER, 4),
        ([0, 0, 1, 1], JOINT, 2),
    ],
)
def test_what_matters_to_one_stage_only(labels, stages, num_classes):
    check(Labels(*labels), stages, num_classes)


def test_balanced_batches_make_pairs_of_one_sample():
    sampler = {"key": "ClassBalancedBatchSampler", "kwargs": {"classes_per_batch": 2, "samples_per_class": 3}}
    balanced = stages(stage("embedding", train_data_loader={**loader("train"), "batch_sampler": sampler}))
    check(Labels(0, 1), balanced, 2)
    sampler["kwargs"]["samples_per_class"] = 1
    with pytest.raises(ConfigError, match="every class has one sample"):
        check(Labels(0, 1), balanced, 2)


def test_some_classes_with_one_sample_is_a_warning(caplog):
    check(Labels(0, 0, 1), EMBEDDING, 2)
    assert caplog.messages == ["datasets.d/train: classes [1] have one sample: they form no positive pair"]


def test_a_dataset_without_labels_is_said_not_to_be_checked(caplog):
    with caplog.at_level(logging.INFO):
        check(Unlabelled(), EMBEDDING, 2)
    assert "labels cannot be read ahead" in caplog.text


def config(**datasets):
    return {"datasets": datasets, "test": {"test_data_loader": loader("test")}}


def test_every_dataset_that_is_used_is_checked():
    good = Labels(0, 0, 1, 1)
    check_data(config(train=good, val=good, test=Labels(1), unused=Labels(9)), "m", 2, [*EMBEDDING, *CLASSIFIER])
    for name in ("train", "val", "test"):
        datasets = {"train": good, "val": good, "test": good, name: Labels(0, 7)}
        with pytest.raises(ConfigError, match=rf"^datasets\.{name}: class index out of range: label 7, but m has 2"):
            check_data(config(**datasets), "m", 2, EMBEDDING)


def named(*classes):
    dataset = Labels(*range(len(classes)), *range(len(classes)))
    dataset.classes = list(classes)
    return dataset


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_class_has_one_label(name):
    good = named("cat", "dog", "fox")
    check_data(config(**dict.fromkeys(("train", "val", "test"), good)), "m", 3, EMBEDDING)
    datasets = {"train": good, "val": good, "test": good, name: named("dog", "cat", "fox")}
    with pytest.raises(
        ConfigError, match=rf"^datasets\.{name}: class 'cat' has label 1, and label 0 in the training set, d"
    ):
        check_data(config(**datasets), "m", 3, EMBEDDING)


def test_other_names_are_a_warning(caplog):
    datasets = {"train": named("cat", "dog"), "val": named("cat", "dog"), "test": named("Katze", "Hund")}
    check_data(config(**datasets), "m", 2, EMBEDDING)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "datasets.test: its classes ['Katze', 'Hund'] are none of the classes ['cat', "
    )


def test_a_set_is_compared_with_the_training_set_of_the_last_stage_that_it_measures():
    """Stage 'embedding' asks of labels only whether they are equal."""
    datasets = {"train": named("dog", "cat"), "few": named("cat", "dog"), "test": named("cat", "dog")}
    first, second = (
        {key: value for key, value in stage(kind, train_data_loader=loader(train)).items() if key != "val_data_loader"}
        for kind, train in (("embedding", "train"), ("classifier", "few"))
    )
    check_data(config(**datasets), "m", 2, stages(first, second))
    with pytest.raises(ConfigError, match=r"in the training set, datasets\.train"):
        check_data(config(**datasets), "m", 2, stages(second, first))


def test_classes_without_names_are_not_compared(caplog):
    datasets = {"train": named("cat", "dog"), "val": Labels(0, 0, 1, 1), "test": named("cat", "dog", "fox")}
    check_data(config(**datasets), "m", 3, EMBEDDING)
    assert not caplog.messages


def test_stages_with_training_sets_of_their_own():
    second = stage("classifier", train_data_loader=loader("few"))
    datasets = {"train": Labels(0, 0, 1, 1), "few": Labels(0, 0), "val": Labels(0), "test": Labels(0)}
    with pytest.raises(ConfigError, match=r"^datasets\.few: no sample of class 1: stage 'classifier'"):
        check_data(config(**datasets), "m", 2, stages(stage("embedding"), second))


def test_without_validation_or_test_set():
    section = stage("embedding")
    del section["val_data_loader"]
    check_data({"datasets": {"train": TinyImages()}, "test": None}, "m", 4, stages(section))


@pytest.mark.parametrize(("trained", "warned"), [(None, 0), (["a", "b"], 0), (["a", "b", "c"], 0), (["x", "y"], 1)])
def test_classes_that_weights_were_trained_with(trained, warned, caplog):
    data = TinyImages(classes=2)
    data.classes = ["a", "b"]
    check_trained_classes(trained, "d/test", data, "--checkpoint: s.pt")
    assert sum("classes ['a', 'b'] are none of the classes" in line for line in caplog.messages) == warned


def test_weights_of_another_class_order_are_refused():
    data = TinyImages(classes=3)
    data.classes = ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"^datasets\.d/test: class 'b' has label 1, and label 2 in --che"):
        check_trained_classes(["a", "c", "b"], "d/test", data, "--checkpoint: s.pt")


def test_a_name_of_two_classes_is_not_compared():
    check_trained_classes(["a", "a", "b"], "d/test", named("a", "c", "b"), "--checkpoint: s.pt")


def test_the_work_on_names_grows_with_the_number_of_classes_and_not_with_its_square():
    name, data = counted(str), Labels(*range(400))
    data.classes = [f"class {label}" for label in range(400)]
    check_trained_classes([name(known) for known in data.classes], "d/test", data, "--checkpoint: s.pt")
    assert name.looks < 20 * 400


@pytest.mark.parametrize(("shared", "warned"), [(0, False), (1, False), (2, True), (60, True)])
def test_training_images_in_a_test_set_are_warned_of(shared, warned, caplog):
    rows = np.random.default_rng(0).integers(0, 255, (120, 4, 4, 3), dtype=np.uint8)
    train = ArrayImages(rows[:60], [index % 2 for index in range(60)])
    test = ArrayImages(rows[60 - shared : 120 - shared], [index % 2 for index in range(60)])
    measured = stages(stage("classifier", val_data_loader=loader("test")))
    check_data(config(train=train, test=test), "models.model", 2, measured)
    line = f"datasets.test: {shared} of its 60 images are training images too (datasets.train)"
    assert (line in caplog.messages) == warned


LOSS = {"num_negative_samples": 6, "output_size": 24, "num_samples": 24}
WRAPPER = {"key": "CRDDatasetWrapper", "kwargs": {"num_negative_samples": 6, "mode": "exact", "ratio": 1.0}}


def check_crd(wrapper=WRAPPER, **kwargs):
    crd = {"criterion": {"key": "CRDLoss", "kwargs": {**LOSS, **kwargs}}, "weight": 1.0}
    criterion = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy(), "crd": crd}}}
    section = stage("embedding", criterion=criterion, train_data_loader={**loader("train"), "dataset_wrapper": wrapper})
    data = dict.fromkeys(("train", "val", "test"), TinyImages())
    check_data(config(**data), "m", 4, stages(section))


@pytest.mark.parametrize("given", [{}, {"output_size": 30}, {"wrapper": {"key": "Mine"}}])
def test_numbers_of_crd_that_fit(given):
    check_crd(**given)


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"wrapper": None}, "train_data_loader.dataset_wrapper", "missing; CRDLoss needs 'CRDDatasetWrapper'"),
        ({"num_negative_samples": 7}, "criterion.*.crd.criterion.kwargs.num_negative_samples", "7 given, .* draws 6$"),
        ({"output_size": 23}, "criterion.*.crd.criterion.kwargs.output_size", "23 given, .* 24 training samples$"),
    ],
)
def test_numbers_of_crd_that_do_not_fit(given, path, message):
    with pytest.raises(ConfigError, match=rf"^train\.stage1\.{path}: {message}"):
        check_crd(**given)
