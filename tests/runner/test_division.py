"""A teacher in parts says what it says as a whole."""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import accelerate.hooks
import pytest
import torch
from accelerate.utils import compute_module_sizes
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.config.config import load_config
from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import Stream
from gkd_plugin.models import timm_model
from gkd_plugin.runner import division
from gkd_plugin.runner.checks import check_forward
from gkd_plugin.runner.devices import read_placement
from gkd_plugin.runner.division import divide
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.run import run_config
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import stage
from tests.runner.divided import TEACHERS, held, make_teacher, say, section
from tests.runner.fakes import cpu, equal, refused, write_configs
from tests.test_docs import ROOT

DATA = {"train": None, "val": None}
WRAPPER, KEY = "auxiliary_model_wrapper", "refilled_teacher"
EMBEDDING = stages_of({"train": stage("embedding")})


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Stands in for a GPU's counterpart: the last parts of a teacher, which run from there."""

    def places(model, _memory, fixed):
        size = compute_module_sizes(model)[""]
        return infer(model, {"cpu": int(0.8 * size), "disk": 9 * size}, fixed)

    infer = division.infer_auto_device_map
    monkeypatch.setattr(division, "infer_auto_device_map", places)
    monkeypatch.setattr(division, "dispatch_model", partial(division.dispatch_model, offload_dir=tmp_path / "disk"))


def test_two_processes_say_what_the_whole_teacher_says(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tests.runner.divided", tmp_path], env=env, cwd=ROOT, check=True, timeout=300)
    for name in TEACHERS:
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}")
            whole, divided = found["whole"], found["divided"]
            torch.testing.assert_close(divided["says"], whole["says"], rtol=1e-5, atol=1e-6)
            assert divided["key"] == whole["key"]
            assert divided["held"] == pytest.approx(whole["held"] / 2, rel=0.02)


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("name", TEACHERS)
def test_a_spread_teacher_says_what_the_whole_one_says(name):
    model = make_teacher(name)
    want, key = say(name, model), model_key(model)
    divide(model, EMBEDDING, DATA, read_placement(section(name, "auto")), cpu())
    assert {weight.device.type for weight in model.parameters()} == {"cpu", "meta"}
    torch.testing.assert_close(say(name, model), want, rtol=1e-5, atol=1e-6)
    assert (model_key(model), held(model)) == (key, held(make_teacher(name)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout"])
def test_gpus_in_a_row(name, monkeypatch):
    """Fake tensors refuse operands on two devices, as real ones do."""

    def place(module, name, device, value=None, **_):
        path, _, name = name.rpartition(".")
        module = module.get_submodule(path)
        weights = module._parameters if name in module._parameters else module._buffers
        old = weights[name] if value is None else value
        new = torch.zeros(old.shape, dtype=old.dtype, device=device)
        weights[name] = torch.nn.Parameter(new) if weights is module._parameters else new

    model = timm_model(name, num_classes=7)
    size = compute_module_sizes(model)[""]
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", place)  # makes no fake Parameter by itself
    monkeypatch.setattr(division, "model_key", lambda _: "")  # nor are there bytes
    monkeypatch.setattr(division, "get_max_memory", lambda: {0: size, 1: 0.8 * size, "cpu": 9 * size})
    placement = read_placement({"device": {"teacher": "auto"}})
    paths = [name for name, _ in model.named_children() if name in ("layer1", "layer4", "blocks", "stages")]
    with FakeTensorMode(allow_non_fake_inputs=True):
        divide(model, EMBEDDING, DATA, placement, None)
        with torch.device(model.home):
            teacher = RefilledTeacher(model, local_features=paths, data_mean=0.5, data_std=0.5)
        images = torch.zeros(2, 3, 160, 160, device="cuda:0")
        assert len({weight.device for weight in model.parameters()}) > 1
        assert {value.device for value in teacher.fields(images).values()} == {model.home}
        assert teacher(images).device == images.device


@pytest.mark.usefixtures("disk")
def test_a_run_with_a_spread_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    changes = ["models.teacher_model.src_ckpt=null", "device.default=cpu"]  # weights of the seed
    found = [
        run_config(load_config("student.yaml", [*changes, f"device.teacher={how}"]), tmp_path / name)
        for name, how in (("whole", "null"), ("divided", "auto"))
    ]
    assert found[1]["teacher_device"] == "auto"
    assert found[0]["teacher_weights"] == found[1]["teacher_weights"]
    assert equal(*(load_file(tmp_path / name / "student.safetensors") for name in ("whole", "divided")))


@pytest.mark.usefixtures("disk")
def test_a_rehearsal_leaves_no_hook_on_a_teacher_that_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    hook = "train.stage2.teacher.forward_hook.output=[embedding, local_classifier, teacher.layer1]"
    config = load_config("student.yaml", ["models.teacher_model.src_ckpt=null", "device.teacher=auto", hook])
    parts = Parts(config.build(), read_placement(config.tree, "cpu"), cpu(), None, is_trial=True)
    assert not parts.box.teacher_model.teacher.layer1._forward_hooks


def test_a_network_that_fails_once_it_is_divided():
    teacher = Mock(side_effect=RuntimeError("found two devices"), teacher=SimpleNamespace(home="cuda:0"))
    message = "^models.teacher_model: .*found two devices.*device.teacher"
    refused(message, check_forward, "models.teacher_model", teacher, torch.zeros(2, 3, 8, 8), cpu())


@pytest.mark.parametrize(
    ("how", "role", "message"),
    [
        ("auto", {WRAPPER: {}}, "device.teacher: .*'refilled_teacher'.*train.teacher.auxiliary_model_wrapper.key"),
        ("auto", {"src_ckpt": "a.pt"}, "train.teacher.src_ckpt: .*'auto'"),
        ("auto", {WRAPPER: {"key": KEY, "sequential": ["a"]}}, "train.teacher.auxiliary_model_wrapper.sequential: "),
        ("sharded", {WRAPPER: {"key": KEY, "kwargs": {"teacher_dtype": "bf16"}}}, ".*kwargs.teacher_dtype: "),
    ],
)  # fmt: skip
def test_what_a_divided_teacher_cannot_have(how, role, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2" if how == "sharded" else "1")
    train, placement = stage("embedding"), read_placement({"device": {"default": "cpu", "teacher": how}})
    stages = stages_of({"train": {**train, "teacher": {**train["teacher"], **role}}})
    refused(f"^{message}", divide, make_teacher("test_resnet"), stages, DATA, placement, None)


def test_a_stream_may_have_parts_of_any_length(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    placement = read_placement({"device": {"default": "cpu", "teacher": "sharded"}})
    data = {"train": Stream.__new__(Stream), "val": None}
    message = "^device.teacher: datasets.train is a stream"
    refused(message, divide, make_teacher("test_vit"), EMBEDDING, data, placement, None)


def test_a_network_that_accelerate_cannot_divide(monkeypatch):
    def fails(*_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(division, "infer_auto_device_map", fails)
    model, placement = make_teacher("test_resnet"), read_placement({"device": {"teacher": "auto"}})
    refused("^device.teacher: 'auto': .*ResNet: list index", divide, model, EMBEDDING, DATA, placement, None)
