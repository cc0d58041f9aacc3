"""The teacher's accuracy before training."""

import logging

import pytest
import torch

from gkd_plugin.data.labels import unwrapped
from gkd_plugin.models import timm_model
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.teacher_check import check_teacher
from tests.fakes import TinyImages, TinyNet, make_box, stage


class Knowing(TinyNet):
    """Tells the classes of TinyImages, moved by ``shift``, without having been trained."""

    def __init__(self, num_classes=4, shift=0):
        super().__init__(num_classes)
        self.embedding = torch.nn.Identity()
        self.shift = shift
        self.num_classes = num_classes

    def forward(self, x):
        score = torch.stack([x[:, k % 3, :, 4 * k : 4 * k + 4].mean((1, 2)) for k in range(4)], dim=1)
        extra = torch.zeros(len(x), self.num_classes - 4)
        return torch.cat([self.embedding(score).roll(self.shift, dims=1), extra], dim=1)


@pytest.fixture
def accelerator():
    return make_accelerator(Placement(torch.device("cpu"), None, "no"))


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO)


def check(teacher, accelerator, num_classes=4, **changes):
    torch.manual_seed(0)
    box = make_box(stage("embedding", **changes), teacher, timm_model("test_resnet", num_classes=4), accelerator)
    return check_teacher(box, num_classes, accelerator), box


def test_shared_classes_give_ncm_and_top1(accelerator, caplog):
    row, box = check(Knowing(), accelerator)
    assert row == {"ncm_top1": 100.0, "top1": 100.0}
    assert "teacher: NCM accuracy over the student's 4 classes 100.0 %" in caplog.messages
    assert "teacher: top-1 of its own classifier 100.0 % (the classes are shared)" in caplog.messages
    assert "near chance" not in caplog.text
    assert box.teacher_model.local_classifier.is_ready


def test_other_classes_of_the_same_number_give_ncm_alone(accelerator, caplog):
    row, _ = check(Knowing(shift=1), accelerator)
    assert row == {"ncm_top1": 100.0}
    assert "near chance" not in caplog.text


@pytest.mark.parametrize(("names", "row"), [("abcd", {"top1": 0.0}), ("abce", {}), ("bacd", {}), ("wxyz", {})])
def test_names_tell_whether_the_classes_are_shared(accelerator, names, row):
    """Its own classifier, always wrong, is measured only where its classes are the student's."""
    teacher = Knowing(shift=1)
    teacher.trained_classes = list(names)
    torch.manual_seed(0)
    box = make_box(stage("embedding"), teacher, timm_model("test_resnet", num_classes=4), accelerator)
    unwrapped(box.train_data_loader.dataset).classes = list("abcd")
    box.teacher_model.prepare(box, {})  # reads the names
    assert check_teacher(box, 4, accelerator) == {"ncm_top1": 100.0, **row}


def test_training_begins_with_the_same_random_state_whatever_is_known_of_the_classes(accelerator):
    states = []
    for names in ("abcd", "abce", "wxyz"):
        teacher = Knowing()
        teacher.trained_classes = list(names)
        torch.manual_seed(0)
        box = make_box(stage("embedding"), teacher, timm_model("test_resnet", num_classes=4), accelerator)
        unwrapped(box.train_data_loader.dataset).classes = list("abcd")
        box.teacher_model.prepare(box, {})
        check_teacher(box, 4, accelerator)
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


@pytest.mark.parametrize("num_classes", [4, None])
def test_another_number_of_classes_gives_ncm_alone(accelerator, num_classes):
    row, _ = check(Knowing(7), accelerator, num_classes)
    assert row == {"ncm_top1": 100.0}


def test_a_teacher_without_a_classifier(accelerator):
    row, _ = check(timm_model("test_resnet", num_classes=0), accelerator)
    assert row.keys() == {"ncm_top1"}


class Blind(TinyNet):
    """Sees nothing: one embedding for every image."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Identity()

    def forward(self, x):
        return self.embedding(torch.ones(len(x), 4))


def test_a_teacher_near_chance_is_warned_of(accelerator, caplog):
    row, _ = check(Blind(), accelerator)
    assert row == {"ncm_top1": 25.0}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any(
        message.startswith("the teacher's accuracy, 25.0 %, is near chance (25.0 %): are its weights loaded (models.t")
        for message in warnings
    )


def test_an_untrained_teacher_is_warned_of(accelerator, caplog):
    """On noise, where random features tell nothing either."""
    torch.manual_seed(0)
    box = make_box(stage("embedding"), *random_models(), accelerator)
    for loader, seed in ((box.train_data_loader, 0), (box.val_data_loader, 1)):
        noise = innermost(loader.dataset)
        noise.images = torch.randn(noise.images.shape, generator=torch.Generator().manual_seed(seed))
    check_teacher(box, 4, accelerator)
    assert "is near chance" in caplog.text


def random_models():
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def innermost(dataset):
    while not isinstance(dataset, TinyImages):
        dataset = dataset.org_dataset
    return dataset


def test_without_the_wrapper_its_own_classifier_is_measured(accelerator, caplog):
    section = stage("embedding")
    del section["teacher"]["auxiliary_model_wrapper"]
    for teacher, expected in ((Knowing(), 100.0), (Knowing(shift=1), 0.0)):
        box = make_box(section, teacher, timm_model("test_resnet", num_classes=4), accelerator)
        assert check_teacher(box, 4, accelerator) == {"top1": expected}
        assert ("is near chance (25.0 %)" in caplog.text) == (expected == 0)


def test_without_a_validation_set(accelerator, caplog):
    row, box = check(Knowing(), accelerator, val_data_loader={})
    assert row == {}
    assert "there is no validation set (val_data_loader)" in caplog.text
    assert not box.teacher_model.local_classifier.is_ready


def test_a_class_without_a_training_sample_leaves_ncm_out(accelerator, caplog):
    torch.manual_seed(0)
    box = make_box(stage("embedding"), Knowing(), timm_model("test_resnet", num_classes=4), accelerator)
    dataset = unwrapped(box.train_data_loader.dataset)
    dataset.targets = [3 if label == 1 else label for label in dataset.targets]
    assert check_teacher(box, 4, accelerator) == {"top1": 100.0}
    assert "teacher: no training sample of class 1: no NCM accuracy" in caplog.messages
