"""From sections of a config to models, loaders and boxes."""

import pytest
import torch

import gkd_plugin  # noqa: F401
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.building import (
    build_box,
    build_test_loader,
    section_name,
    stage_configs,
    told_as_config_error,
)
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.models import build_model
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages, TinyNet, loader, stage

CPU = Placement(torch.device("cpu"), None, "no")


@pytest.fixture
def accelerator():
    return make_accelerator(CPU)


def timm_entry(**kwargs):
    return {"key": "timm_model", "kwargs": {"model_name": "test_resnet", "num_classes": 4, **kwargs}}


def config(**stages):
    return {"datasets": {"train": TinyImages(), "val": TinyImages(seed=1)}, "train": stages}


def test_stages_in_order_and_one_without_names():
    assert list(stage_configs({"stage10": {}, "stage2": {}, "stage1": {}, "log_freq": 1})) == [
        "stage1",
        "stage2",
        "stage10",
    ]
    assert stage_configs({"num_epochs": 3}) == {"train": {"num_epochs": 3}}
    assert [section_name(name) for name in ("train", "stage2")] == ["train", "train.stage2"]


def test_a_stage_without_loaders_keeps_those_of_the_stage_before():
    train = {"stage1": {"train_data_loader": "a", "val_data_loader": "b"}, "stage2": {"val_data_loader": "c"}}
    assert stage_configs(train)["stage2"] == {"train_data_loader": "a", "val_data_loader": "c"}
    assert train["stage2"] == {"val_data_loader": "c"}


def models():
    return build_model("t", timm_entry(num_classes=7)), build_model("s", timm_entry())


def test_building_a_box_leaves_the_config_as_it_was(accelerator):
    built = config(stage1=stage("embedding"), stage2=stage("classifier"))
    placement = Placement(torch.device("cpu"), torch.device("cpu"), "no")
    box = build_box(built, *models(), placement, accelerator)
    assert isinstance(box.teacher_model, RefilledTeacher)
    assert box.teacher_model._own_device == torch.device("cpu")
    assert built["train"] == {"stage1": stage("embedding"), "stage2": stage("classifier")}


def test_a_teacher_of_its_own_device_needs_the_wrapper(accelerator):
    second = stage("classifier")
    second["teacher"]["auxiliary_model_wrapper"] = None
    built = config(stage1=stage("embedding"), stage2=second)
    placement = Placement(torch.device("cpu"), torch.device("cpu"), "no")
    with pytest.raises(ConfigError, match=r"^device\.teacher: only .*; set train\.stage2\.teacher\.auxiliary_"):
        build_box(built, *models(), placement, accelerator)


def test_what_torchdistill_refuses_is_told_with_its_section(accelerator):
    section = stage("embedding")
    section["optimizer"]["kwargs"]["lr"] = -1
    built = config(stage1=section, stage2=stage("classifier"))
    with pytest.raises(ConfigError, match=r"^train\.stage1: torchdistill cannot build this stage: Invalid learning"):
        build_box(built, *models(), CPU, accelerator)
    section = stage("embedding")
    section["criterion"]["kwargs"]["student_embedding"] = "nowhere"
    with pytest.raises(ConfigError, match=r"^train\.stage1\.student\.forward_hook\.output: .* has no module 'nowhere'"):
        build_box(config(stage1=section), *models(), CPU, accelerator)


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AttributeError("x"), ValueError("x")])
def test_errors_while_building_a_stage(error):
    message = r"^train\.stage3: torchdistill cannot build this stage: '?x'?$"
    with pytest.raises(ConfigError, match=message), told_as_config_error("train.stage3"):
        raise error


def test_a_box_without_a_teacher(accelerator):
    section = stage("embedding")
    section["model"] = {"forward_proc": "forward_batch_only"}
    section["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {}}}
    del section["pre_epoch_process"], section["teacher"], section["student"]
    built = {"datasets": config()["datasets"], "train": section}
    box = build_box(built, None, TinyNet(), CPU, accelerator)
    assert not hasattr(box, "teacher_model")


def test_the_test_loader(accelerator):
    built = {**config(), "test": {"test_data_loader": loader("val")}}
    assert len(build_test_loader(built, accelerator).dataset) == 24
    assert build_test_loader(config(), accelerator) is None
    assert build_test_loader({**config(), "test": None}, accelerator) is None


def test_stages_share_one_teacher_and_its_precision(accelerator):
    built = config(stage1=stage("embedding"), stage2=stage("classifier"))
    built["train"]["stage1"]["teacher"]["auxiliary_model_wrapper"]["kwargs"]["teacher_dtype"] = "bf16"
    with pytest.raises(ConfigError, match="the stages' teacher_dtype differ, but they share one teacher"):
        build_box(built, *models(), CPU, accelerator)
