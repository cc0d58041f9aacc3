"""The device section, and Accelerate behind it."""

import platform
import re
import resource
from dataclasses import replace

import pytest
import torch

from gkd_plugin.runner import devices
from gkd_plugin.runner.devices import Placement, available_devices, make_accelerator, read_placement
from tests.runner.fakes import CPU, refused

GPUS = ["cpu", "cuda", "cuda:0", "cuda:1"]


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: GPUS)


def read(option=None, **section):
    return read_placement({"device": section}, option)


@pytest.mark.parametrize("config", [{}, {"device": None}, {"device": {"default": "auto"}}, {"device": {}}])
def test_auto_is_the_best_there_is(config, monkeypatch):
    assert read_placement(config).device == torch.device("cuda")
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    assert read_placement(config) == replace(CPU, channels_last=True)


@pytest.mark.parametrize(
    ("section", "is_last"),
    [
        ({"default": "cpu"}, True),
        ({"default": "cpu", "channels_last": False}, False),
        ({}, False),
        ({"precision": "fp16"}, True),
        ({"channels_last": True}, True),
    ],
)
def test_channels_last_where_it_is_faster(section, is_last):
    assert read(**section).channels_last == is_last


def test_a_cpu_that_emulates_bf16_is_told(monkeypatch, caplog):
    for has_it in (True, False):
        caplog.clear()
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda has_it=has_it: dict.fromkeys(("avx512_bf16", "amx_bf16"), has_it)
        )
        read(default="cpu", precision="bf16")
        assert ("device.precision: this CPU has no instructions for bf16" in caplog.text) != has_it


def test_the_cores_are_those_of_the_job(monkeypatch):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert devices.cores() == 2


def test_every_setting():
    wanted = Placement(torch.device("cpu"), torch.device("cuda:1"), "no", "fp16", True, "both")
    given = {"teacher": "cuda:1", "teacher_dtype": "fp16", "channels_last": True, "compile": "both"}
    assert read(default="cpu", **given) == wanted
    assert read("cpu", default="cuda:0", **given) == wanted, "the command line goes before the YAML"
    for precision in ("no", False, None):  # YAML reads a bare no as False
        assert read(default="cpu", precision=precision).precision == "no"
    assert available_devices()[0] == "cpu"


@pytest.mark.parametrize(
    ("section", "option", "message"),
    [
        ({"default": "cuda:7"}, None, "device.default: there is no device 'cuda:7' here; this machine has: auto, cpu"),
        ({"teacher": "mps"}, None, "device.teacher: there is no device 'mps' here"),
        (
            {"teacher": "sharded"},
            None,
            "device.teacher: 'sharded' is over several processes, this is one; start them: ",
        ),
        ({"teacher": "auto", "compile": "both"}, None, "device.compile: 'both' is not for a divided teacher"),
        ({"default": "cpu"}, "gpu", "--device: there is no device 'gpu' here"),
        ({"default": "cpu", "precision": "fp16"}, None, "device.precision: 'fp16' needs a CUDA device, not 'cpu'"),
        ({"default": "cpu", "teacher_dtype": "fp16"}, None, "device.teacher_dtype: 'fp16' needs a CUDA device"),
        ({"default": "cuda", "precision": "bf16"}, None, "device.precision: Old GPU has no 'bf16'; use 'fp16'"),
    ],
)
def test_what_this_machine_does_not_have(section, option, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    refused(f"^{re.escape(message)}", read, option, **section)
    assert read(default="cuda:1", precision="fp16").precision == "fp16"


def test_a_teacher_is_divided_in_one_way(monkeypatch):
    assert read(default="cpu", teacher="auto").teacher_device == "auto"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert read(default="cpu", teacher="sharded").teacher_device == "sharded"
    refused("^device.teacher: 'auto' is for one process, these are 4", read, default="cpu", teacher="auto")
    one_device = {"device": {"default": "cpu", "teacher": "auto"}}
    assert read_placement(one_device, one_device=True).teacher_device is None


def test_several_accelerators_in_one_process():
    for precision in ("bf16", "no", "bf16"):
        accelerator = make_accelerator(Placement(CPU.device, None, precision))
        assert (accelerator.mixed_precision, accelerator.device) == (precision, CPU.device)
        assert accelerator.state.use_fp16 is False  # which torchdistill reads
        with accelerator.autocast():
            assert torch.is_autocast_enabled("cpu") is (precision == "bf16")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_a_step_frees_serves_the_next_step():
    """Otherwise thousands of its pages are got from the system again, in most of the steps."""
    make_accelerator(CPU)
    model = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
    images, faults = torch.randn(16, 16, 96, 96), []
    with torch.inference_mode():
        for _ in range(10):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            model(images)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert sum(faults[3:]) < 1000, faults
