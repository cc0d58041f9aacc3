"""The epoch loop."""

import copy

import pytest
import torch
from torch.utils.data import SequentialSampler

import gkd_plugin  # noqa: F401
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.training import train_epochs
from tests.fakes import loader, make_box, stage


def accelerator(precision="no"):
    return make_accelerator(Placement(torch.device("cpu"), None, precision))


def models():
    torch.manual_seed(0)
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def train(sections, accelerate=None, val_freq=1):
    """Rows, and the box."""
    accelerate = accelerate or accelerator()
    teacher, student = models()
    sections = copy.deepcopy(sections)
    box = make_box(sections if "stage1" in sections else {"stage1": sections}, teacher, student, accelerate)
    stages = {name: section["num_epochs"] for name, section in box.train_config.items()}
    return list(train_epochs(box, student, stages, accelerate, val_freq=val_freq)), box


def test_one_row_per_epoch_with_the_figure_of_its_stage():
    rows, _ = train({"stage1": stage("embedding", epochs=2), "stage2": stage("classifier", epochs=2)})
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("stage1", 1),
        ("stage1", 2),
        ("stage2", 1),
        ("stage2", 2),
    ]
    assert ["ncm_top1" in row for row in rows] == [False, True, False, False]
    assert ["top1" in row for row in rows] == [False, False, True, True]


def test_the_learning_rate_of_each_epoch():
    schedule = {"key": "StepLR", "kwargs": {"step_size": 1, "gamma": 0.1}}
    rows, _ = train(stage("embedding", epochs=3, scheduler=schedule))
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.005, 0.0005])


def test_without_validation_there_is_no_figure():
    rows, _ = train(stage("classifier", val_data_loader={}))
    assert "top1" not in rows[0]


def test_validation_after_every_few_epochs_and_the_last_three():
    rows, _ = train({"stage1": stage("embedding", epochs=2), "stage2": stage("classifier", epochs=8)}, val_freq=2)
    assert ["ncm_top1" in row for row in rows[:2]] == [False, True]
    assert [row["epoch"] for row in rows[2:] if "top1" in row] == [2, 4, 6, 7, 8]
    assert "loss" in rows[2]


def test_validation_leaves_training_as_it_is():
    losses = [[row["loss"] for row in train(stage("classifier", epochs=5), val_freq=n)[0]] for n in (1, 50)]
    assert losses[0] == losses[1]


def test_the_students_forward_is_wrapped_once_in_every_stage():
    """Accelerate's wrappers for mixed precision would otherwise pile up from stage to stage."""
    sections = {f"stage{n}": stage("classifier") for n in (1, 2, 3)}
    _, box = train(sections, accelerator("bf16"))
    student = box.org_student_model
    assert "forward" not in student.__dict__ or not hasattr(student.forward, "__wrapped__")
    assert "_original_forward" not in student.__dict__


def test_the_teacher_runs_in_the_students_precision():
    seen = []
    accelerate = accelerator("bf16")
    teacher, student = models()
    box = make_box({"stage1": stage("classifier")}, teacher, student, accelerate)
    teacher.layer1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    rows = train_epochs(box, student, {"stage1": 1}, accelerate)
    next(rows)
    assert torch.bfloat16 in seen


def test_gradients_are_clipped_in_every_stage(monkeypatch):
    seen = []
    monkeypatch.setattr("gkd_plugin.runner.training.clip_unscaled", lambda box, _: seen.append(box.max_grad_norm))
    sections = {"stage1": stage("embedding"), "stage2": stage("classifier")}
    sections["stage2"]["optimizer"]["max_grad_norm"] = 0.5
    train(sections)
    assert seen == [None, 0.5]


def test_an_epoch_with_nothing_to_compare_is_an_error():
    section = stage("embedding", train_data_loader=loader("train", SequentialSampler, batch_size=6))
    with pytest.raises(ConfigError, match=r"^stage1 1/1: no batch held two samples of one class and one of another"):
        train(section)


@pytest.mark.parametrize(("margin", "warnings"), [(1e-9, 1), (0.2, 0)])
def test_a_stage_that_ends_without_a_tuple_is_told(margin, warnings, caplog):
    section = stage("embedding", epochs=2)
    section["criterion"]["kwargs"]["margin"] = margin
    train(section)
    assert caplog.text.count("stage1: its last epoch had no tuple") == warnings


def test_one_batch_with_something_to_compare_is_enough():
    train(stage("embedding", train_data_loader=loader("train", SequentialSampler, batch_size=5)))


def test_a_last_batch_of_one_image_is_explained():
    section = stage("embedding", train_data_loader=loader("train", batch_size=23))
    with pytest.raises(ConfigError, match=r"^stage1 1/1, step 2: .*\(the batch has one image: kwargs\.drop_last"):
        train(section)


def test_a_path_that_nothing_records_is_named():
    """A loss that hook_checks does not know."""
    term = {"criterion": {"key": "ATLoss", "kwargs": {"at_pairs": {}, "mode": "code"}}, "weight": 1.0}
    pair = {"io": "output", "path": "layer9"}
    term["criterion"]["kwargs"]["at_pairs"] = {"a": {"teacher": pair, "student": pair, "factor": 1}}
    section = stage("classifier", criterion={"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"at": term}}})
    with pytest.raises(ConfigError, match=r"^stage1 1/1, step 1: nothing is recorded under 'layer9': is it a module"):
        train(section)


def test_what_torchdistill_refuses_in_a_later_stage_is_told():
    second = stage("classifier")
    second["optimizer"]["kwargs"]["lr"] = -1
    with pytest.raises(ConfigError, match=r"^train: torchdistill cannot build this stage: Invalid learning rate"):
        train({"stage1": stage("embedding"), "stage2": second})


def test_a_later_stage_on_other_data_computes_its_own_centres():
    """Same wrapper class, other training set: the centres of stage 1 must not be adopted."""
    sections = {"stage1": stage("classifier"), "stage2": stage("classifier", train_data_loader=loader("val"))}
    first_centres = []
    accelerate = accelerator()
    teacher, student = models()
    box = make_box(sections, teacher, student, accelerate)
    for row in train_epochs(box, student, {"stage1": 1, "stage2": 1}, accelerate):
        first_centres.append(box.teacher_model.local_classifier.centres.clone())
        assert row["epoch"] == 1
    assert not torch.equal(*first_centres)
