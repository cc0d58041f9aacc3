"""The pre-epoch process, in torchdistill's boxes."""

import pytest
import torch

from gkd_plugin import ConfigError
from gkd_plugin.functional import class_centres
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages, make_box, stage, train_box


def models():
    torch.manual_seed(0)
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def test_teacher_is_in_eval_mode_and_frozen_after_the_pre_epoch_process():
    box = make_box(stage("classifier"), *models())
    box.pre_epoch_process(epoch=0)
    assert not any(module.training for module in box.teacher_model.modules())
    assert not any(parameter.requires_grad for parameter in box.teacher_model.parameters())
    assert box.student_model.training


def test_even_where_the_yaml_forgets_to_freeze_the_teacher():
    section = stage("classifier")
    del section["teacher"]["requires_grad"]
    teacher, student = models()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    train_box(make_box(section, teacher, student))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_centres_are_those_of_the_training_set_and_computed_once(monkeypatch):
    calls = []
    fit = RefilledTeacher.fit_centres
    monkeypatch.setattr(RefilledTeacher, "fit_centres", lambda self, *batches: (calls.append(1), fit(self, *batches)))
    box = make_box(stage("classifier", epochs=3), *models())
    train_box(box)
    assert len(calls) == 1
    data, teacher = TinyImages(), box.teacher_model
    want = class_centres([(teacher.embed(data.images), torch.tensor(data.targets))])
    torch.testing.assert_close(teacher.local_classifier.centres, want)


def test_stage_embedding_needs_no_centres():
    box = make_box(stage("embedding"), *models())
    box.pre_epoch_process(epoch=0)
    assert not box.teacher_model.local_classifier.is_ready


def test_a_class_without_a_sample_is_named():
    section = stage("classifier")
    section["teacher"]["auxiliary_model_wrapper"] = {"key": "refilled_teacher", "kwargs": {"num_classes": 5}}
    with pytest.raises(ConfigError, match="class centres: no sample of class 4"):
        make_box(section, *models()).pre_epoch_process(epoch=0)
