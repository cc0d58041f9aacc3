"""The device section, and Accelerate behind it."""

import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner import devices
from gkd_plugin.runner.devices import Placement, available_devices, make_accelerator, read_placement


@pytest.fixture
def _cpu_only(monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])


@pytest.fixture
def _two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu", "cuda", "cuda:0", "cuda:1"])


def section(**values):
    return {"device": values}


def test_this_machine_has_a_cpu():
    assert available_devices()[0] == "cpu"


@pytest.mark.usefixtures("_cpu_only")
@pytest.mark.parametrize("config", [{}, {"device": None}, section(), section(default="auto"), section(default="cpu")])
def test_auto_is_the_cpu_where_there_is_nothing_else(config):
    assert read_placement(config) == Placement(torch.device("cpu"), None, "no")


@pytest.mark.usefixtures("_two_gpus")
def test_auto_is_the_gpu_where_there_is_one():
    assert read_placement(section(default="auto")).device == torch.device("cuda")
    assert read_placement(section(default="auto", teacher="cuda:1")).teacher_device == torch.device("cuda:1")


@pytest.mark.usefixtures("_two_gpus")
def test_the_command_line_goes_before_the_yaml():
    assert read_placement(section(default="cuda:0"), "cpu").device == torch.device("cpu")


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(
    ("config", "option", "key", "name"),
    [
        (section(default="cuda:7"), None, "device.default", "cuda:7"),
        (section(teacher="mps"), None, "device.teacher", "mps"),
        (section(default="cpu"), "gpu", "--device", "gpu"),
    ],
)
def test_a_device_that_is_not_here_is_named_with_those_that_are(config, option, key, name):
    wanted = f"{key}: there is no device '{name}' here; this machine has: auto, cpu, cuda, cuda:0, cuda:1"
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        read_placement(config, option)


def test_a_bare_no_in_yaml_is_a_precision():
    assert read_placement(section(default="cpu", precision=False)).precision == "no"
    assert read_placement(section(default="cpu", precision="bf16")).precision == "bf16"
    assert read_placement(section(default="cpu", precision=None)).precision == "no"


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("key", ["precision", "teacher_dtype"])
def test_precisions_that_the_device_does_not_have(key):
    with pytest.raises(ConfigError, match=rf"^device\.{key}: 'fp16' needs a CUDA device, not 'cpu'; use 'bf16'$"):
        read_placement(section(default="cpu", **{key: "fp16"}))
    assert read_placement(section(default="cpu", teacher="cuda:1", teacher_dtype="fp16")).teacher_dtype == "fp16"
    assert read_placement(section(default="cuda:1", precision="fp16")).precision == "fp16"


@pytest.mark.usefixtures("_two_gpus")
def test_bf16_where_the_gpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(ConfigError, match=r"^device\.precision: Old GPU has no 'bf16'; use 'fp16'$"):
        read_placement(section(default="cuda", precision="bf16"))


@pytest.mark.usefixtures("_two_gpus")
def test_every_setting():
    given = section(default="cpu", teacher="cuda:1", teacher_dtype="fp16", channels_last=True, compile="both")
    wanted = Placement(torch.device("cpu"), torch.device("cuda:1"), "no", "fp16", True, "both")
    assert read_placement(given) == wanted


def test_several_accelerators_in_one_process():
    cpu = torch.device("cpu")
    for precision in ("bf16", "no", "bf16"):
        accelerator = make_accelerator(Placement(cpu, None, precision))
        assert (accelerator.mixed_precision, accelerator.device) == (precision, cpu)
        with accelerator.autocast():
            assert torch.is_autocast_enabled("cpu") is (precision == "bf16")


def test_torchdistill_finds_the_flag_that_it_reads():
    assert make_accelerator(Placement(torch.device("cpu"), None, "no")).state.use_fp16 is False


def test_accelerate_has_no_such_flag_of_its_own():
    """Fails the day it has: then make_accelerator() need not set it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not hasattr(Accelerator(cpu=True).state, "use_fp16")
