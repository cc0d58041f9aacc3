"""Weights in, weights out: safely, strictly, never by half."""

import argparse
import json
import os
import pickle
import random
import stat

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchdistill.common.main_util import load_ckpt

from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.checkpoints import (
    read_weights,
    save_student,
    save_upstream_checkpoint,
    write_atomically,
)
from gkd_plugin.runner.weights import load_weights
from tests.fakes import TinyNet


def other(model):
    """The same network with other weights."""
    torch.manual_seed(1)
    return type(model)()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def write(model, path, kind):
    state = model.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "state_dict":
        torch.save(state, path)
    elif kind == "torchdistill":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        save_upstream_checkpoint(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), 12.5, path)
    else:
        torch.save({"epoch": 3, "arch": "x", "args": argparse.Namespace(lr=1), "state_dict": state}, path)


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "torchdistill", "timm"])
def test_round_trip(tmp_path, kind):
    model = TinyNet()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    write(model, path, kind)
    copy = other(model)
    assert not equal(copy.state_dict(), model.state_dict())
    load_weights(copy, path, "models.model.src_ckpt")
    assert equal(copy.state_dict(), model.state_dict())


def test_torchdistill_reads_what_is_written_in_its_format(tmp_path):
    model = TinyNet()
    write(model, tmp_path / "w.pt", "torchdistill")
    copy = other(model)
    best, _ = load_ckpt(str(tmp_path / "w.pt"), copy)
    assert best == 12.5
    assert equal(copy.state_dict(), model.state_dict())


class Malicious:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {"w": torch.ones(1)}, "args": x}])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch, wrap):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Malicious()), "w.pt")
    with pytest.raises(ConfigError, match=r"^here: w\.pt cannot be read as weights: .*not unpickled") as caught:
        read_weights("w.pt", "here")
    assert "\n" not in str(caught.value)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(wrap(Malicious())))
    with pytest.raises(ConfigError, match=r"^here: raw\.pt cannot be read as weights"):
        read_weights("raw.pt", "here")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(  # the same in every worker of pytest-xdist
    "content",
    [b"", b"\x80", b"hello", b"PK\x03\x04", random.Random(0).randbytes(200), b"\x80\x02]q\x00."],
    ids=range(6),
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_files_are_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"^here: .*{name} (cannot be read as weights|holds no state_dict)"
    ) as caught:
        read_weights(tmp_path / name, "here")
    assert "\n" not in str(caught.value)


def test_truncated_file(tmp_path):
    write(TinyNet(), tmp_path / "w.pt", "state_dict")
    data = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_weights(tmp_path / "w.pt", "here")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"model": {"a": "b"}}, torch.ones(2)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"^here: .*w\.pt holds no state_dict$"):
        read_weights(tmp_path / "w.pt", "here")


def test_a_parameter_may_be_called_model(tmp_path):
    save_file({"model": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(read_weights(tmp_path / "w.safetensors", "here").state) == ["model"]


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"^models\.teacher_model\.src_ckpt: no such file: .*nowhere\.pt$"):
        read_weights(tmp_path / "nowhere.pt", "models.teacher_model.src_ckpt")


def test_what_does_not_fit_is_listed(tmp_path):
    state = TinyNet().state_dict()
    del state["conv.weight"], state["conv.bias"]
    state |= {"fc.weight": torch.zeros(7, 8), "head.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pt")
    model = TinyNet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_weights(model, tmp_path / "w.pt", "here")
    assert str(caught.value) == (
        f"here: {tmp_path}/w.pt does not fit TinyNet: 2 missing: conv.bias, conv.weight; 1 unexpected: head.bias; "
        "1 of another shape: fc.weight [7, 8] (model: [4, 8])"
    )
    assert equal(model.state_dict(), before)


def test_long_lists_are_cut(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"8 missing: bn\.bias, .*, …; 1 unexpected: x$"):
        load_weights(TinyNet(), tmp_path / "w.pt", "here")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_student_loads_with_timm_alone(tmp_path, name):
    size = {"img_size": 32} if "vit" in name else {}
    model = timm_model(name, num_classes=3, **size)
    path = tmp_path / "student.safetensors"
    save_student(model, path, name)
    plain = timm.create_model(name, num_classes=3, **size)
    plain.load_state_dict(read_weights(path, "here").state, strict=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), model.eval()(images), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["gkd_plugin"]) == {"model": name, "image_input": None}


def test_shared_tensors_and_views_are_written(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)
    save_student(model, tmp_path / "w.safetensors", "tiny")
    assert equal(read_weights(tmp_path / "w.safetensors", "here").state, model.state_dict())


def test_the_student_file_has_the_permissions_of_any_other(tmp_path):
    save_student(TinyNet(), tmp_path / "w.safetensors", "tiny")
    (tmp_path / "plain").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w.safetensors", "plain")}
    assert len(modes) == 1


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    path = tmp_path / "sub" / "file"

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert list((tmp_path / "sub").iterdir()) == []
    write_atomically(path, lambda temporary: temporary.write_text("good"))
    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["file"]
    assert path.read_text() == "good"
