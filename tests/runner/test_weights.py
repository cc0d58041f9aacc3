"""Weights in, weights out: read safely, fitted strictly, written whole."""

import argparse
import io
import json
import logging
import os
import pickle
import random
import stat
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import nn
from torchdistill.common.main_util import load_ckpt
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner import weights
from gkd_plugin.runner.weights import (
    load_backbone_weights,
    load_teacher_weights,
    load_weights,
    read_weights,
)
from gkd_plugin.teacher import RefilledTeacher
from tests.damage import damaged
from tests.fakes import TinyNet
from tests.runner.fakes import equal, refused


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def resnet(classes=4, name="test_resnet"):
    return timm.create_model(name, num_classes=classes)


def student(classes=4, name="test_resnet"):
    return timm_model(name, num_classes=classes)


def wide(classes):
    return wide_resnet(10, 1, 0.0, classes, False, False)


def without(head, state):
    return {key: value for key, value in state.items() if not key.startswith(head)}


def saved(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)({k: v.contiguous() for k, v in state.items()}, path)
    return path


def save(model, path, **about):
    """In the format that goes with the suffix: the student's alone, or torchdistill's."""
    if path.suffix == ".safetensors":
        weights.save_student(model, path, {"model": "tiny", **about})
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        box = SimpleNamespace(optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1))
        weights.save_upstream_checkpoint(model, box, 12.5, path, about)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_our_files_say_how_the_weights_were_trained(tmp_path, name):
    known, source, model = ImageInput((0.5,), (0.25,), (32, 32)), TinyNet(), TinyNet()
    path = save(source, tmp_path / name, image_input=vars(known), classes=["cat", "dog"], epochs=(3, 3))
    found = read_weights(path, "here")
    assert (found.image_input, found.classes, found.epochs) == (known, ["cat", "dog"], (3, 3))
    load_teacher_weights(model, path, "here")
    assert (model.image_input, model.trained_classes) == (known, ["cat", "dog"])
    assert equal(model.state_dict(), source.state_dict())
    other = TinyNet()
    load_teacher_weights(other, saved(tmp_path / "other.safetensors", source.state_dict()), "here")
    assert not hasattr(other, "image_input")
    assert not hasattr(other, "trained_classes")
    if name == "w.pt":
        best, _ = load_ckpt(str(path), again := TinyNet())
        assert best == 12.5
        assert equal(again.state_dict(), source.state_dict())
    else:
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["gkd_plugin"])["model"] == "tiny"
        (tmp_path / "plain").write_text("x")  # as readable as any other file
        assert len({stat.S_IMODE(file.stat().st_mode) for file in (path, tmp_path / "plain")}) == 1


class Malicious:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {"w": torch.ones(1)}, "args": x}])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch, wrap):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Malicious()), "w.pt")
    refused(r"^here: w\.pt cannot be read as weights: .*not unpickled", read_weights, "w.pt", "here")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(wrap(Malicious())))
    refused(r"^here: raw\.pt cannot be read as weights", read_weights, "raw.pt", "here")
    assert not (tmp_path / "hacked").exists()


class Custom:
    pass


def pickled(content):
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


def scripted():
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer := io.BytesIO())
    return buffer.getvalue()


PLAIN = {"w": torch.ones(2)}
CAUSES = [
    ("w.pt", b"", "is empty"),
    ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ("w.pt", b"\n<!DOCTYPE html>\n<html></html>", "HTML"),
    ("w.safetensors", b"<html></html>", "HTML"),
    ("w.pt", to_bytes(PLAIN), r"rename it to \.safetensors"),
    ("w.safetensors", pickled(PLAIN), r"rename it to \.pt"),
    ("w.safetensors", pickle.dumps(PLAIN), r"rename it to \.pt"),
    ("w.pt", pickled(nn.Linear(2, 2)), r"whole pickled model \(torch\.nn\.modules\.linear\.Linear\).*state_dict\(\)"),
    ("w.pt", pickled({"model": PLAIN, "more": Custom()}), r"object \S+\.Custom, .*not unpickled"),
    ("w.pt", pickle.dumps({"more": Custom()}), "no file of torch.save"),
    ("w.pt", scripted(), "TorchScript.*state_dict"),
]


@pytest.mark.parametrize(("name", "content", "cause"), CAUSES, ids=range(len(CAUSES)))
def test_what_is_no_file_of_weights_is_named(tmp_path, name, content, cause):
    (tmp_path / name).write_bytes(content)
    refused(rf"^here: \S+{name} cannot be read as weights: .*{cause}", read_weights, tmp_path / name, "here")


def test_what_torch_unpickles_afterwards_is_read_by_torch(tmp_path, monkeypatch):
    """Not every version knows safetensors: what it takes for a pickle must have been read safely as one."""
    path = save(TinyNet(), tmp_path / "w.safetensors")
    assert read_weights(path, "here", as_torch_does=True).state
    monkeypatch.setattr(torch, "load", Mock(side_effect=pickle.UnpicklingError))
    assert read_weights(path, "here").state
    refused(r"^here: .*cannot be read as weights", read_weights, path, "here", as_torch_does=True)


def test_a_page_in_place_of_an_addresss_weights_is_told_with_its_copy(tmp_path, monkeypatch):
    """torch keeps what it has fetched, so that a mended address of the same name would meet the page again."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/w.pt").write_text("<html></html>")
    refused(r"^here: http\S+ \(kept as \S+w\.pt\) .*HTML", read_weights, "http://127.0.0.1:1/w.pt?x=1", "here")


@pytest.mark.parametrize(  # the same in every worker of pytest-xdist
    "content",
    [b"", b"\x80", b"hello", b"PK\x03\x04", random.Random(0).randbytes(200), b"\x80\x02]q\x00.", None],
    ids=range(7),
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_files_are_one_line(tmp_path, content, name):
    path = save(TinyNet(), tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused(rf"^here: .*{name} (cannot be read as weights|holds no state_dict)", read_weights, path, "here")


def test_broken_words_about_the_weights_are_told_with_the_file(tmp_path):
    for path, reason in (
        (save(TinyNet(), tmp_path / "w.pt", image_input={"mean": "abc"}), "no description of images: .*abc"),
        (save(TinyNet(), tmp_path / "w.safetensors", epochs=["a", "b"]), "'a'"),
    ):
        refused(rf"^here: .*{path.name} cannot be read as weights: .*{reason}", read_weights, path, "here")


def test_files_without_weights_and_with_a_parameter_called_model(tmp_path):
    for content in ({}, {"a": 1}, [1, 2], {"model": {"a": "b"}}, torch.ones(2), {0: torch.ones(2)}):
        torch.save(content, tmp_path / "w.pt")
        refused(r"^here: .*w\.pt holds no state_dict$", read_weights, tmp_path / "w.pt", "here")
    refused(r"^here: no such file: .*nowhere\.pt$", read_weights, tmp_path / "nowhere.pt", "here")
    assert list(read_weights(saved(tmp_path / "w.safetensors", {"model": torch.ones(2)}), "here").state) == ["model"]


def test_a_checkpoint_has_the_same_bytes_whatever_process_writes_it(tmp_path, monkeypatch):
    written = []
    for process in (1, 23):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        torch.manual_seed(0)
        written.append(save(TinyNet(), tmp_path / "w.pt", epochs=(1, 2)).read_bytes())
    assert written[0] == written[1]


def test_shared_tensors_and_views_are_written(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)
    assert equal(read_weights(save(model, tmp_path / "w.safetensors"), "here").state, model.state_dict())


@pytest.mark.parametrize("epochs", [(13, 15), (15, 15), None])
def test_weights_of_an_unfinished_run_are_told(tmp_path, caplog, epochs):
    path = save(TinyNet(), tmp_path / "w.safetensors", epochs=epochs)
    load_weights(TinyNet(), path, "here")
    told = f"here: {path} is of epoch 13 of 15: the run that wrote it did not finish"
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ([told] if epochs == (13, 15) else [])


def nested(key):
    return lambda good: {"epoch": 1, "args": argparse.Namespace(lr=1), key: good}


def prefixed(prefix):
    return lambda good: {prefix + key: value for key, value in good.items()}


@pytest.mark.parametrize(
    "content",
    [
        *map(prefixed, ["", "module.", "_orig_mod.module.", "backbone.", "teacher.backbone."]),
        *map(nested, ["state_dict", "state_dict_ema", "model_ema", "model", "teacher"]),  # of timm's train.py, DINO
        *map(nested, ["net", "model_state_dict"]),  # whatever its name, where it is the only one
        lambda good: {"state_dict": resnet().state_dict(), "state_dict_ema": good},  # averaged ones first
        lambda good: {"state_dict_ema": {}, "state_dict": good},
        lambda good: {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in good.items()},
        lambda good: {key: value for key, value in good.items() if "num_batches_tracked" not in key},  # old files
    ],
)
@pytest.mark.parametrize("load", [load_weights, load_teacher_weights])
def test_layouts_of_a_file(tmp_path, content, load):
    source, model = resnet(), student()
    made = content(source.state_dict())
    torch.save(made, tmp_path / "w.pth")
    load(model, tmp_path / "w.pth", "here")
    assert equal(model.state_dict(), source.state_dict())
    if all(isinstance(value, torch.Tensor) for value in made.values()):
        load(again := student(), saved(tmp_path / "w.safetensors", made), "here")
        assert equal(again.state_dict(), source.state_dict())


def tiny(num_classes):
    """With the attributes of a timm model."""
    model = TinyNet()
    model.pretrained_cfg, model.num_classes = {"classifier": "fc"}, num_classes
    return model


@pytest.mark.parametrize("load", [load_weights, load_teacher_weights, load_backbone_weights])
@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", ["total_ops", "layer1.0.total_params", "fc.total_ops"]),  # thop's
        ("", ["criterion.weight", "loss_fn.weight", "train_acc.tp", "val_metrics.acc.confmat"]),  # Lightning's
        ("model.", ["criterion.weight", "neck.conv.weight", "total_ops"]),
    ],
)
def test_what_lies_beside_a_complete_model_stays_out(tmp_path, caplog, load, prefix, beside):
    source, model = resnet(), student()
    state = prefixed(prefix)(source.state_dict()) | dict.fromkeys(beside, torch.zeros(1))
    with caplog.at_level(logging.INFO):
        load(model, saved(tmp_path / "w.pth", state), "here")
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight)
    assert all(name in caplog.messages[-1] for name in ("left out", *sorted(beside)))
    del state[f"{prefix}bn1.weight"]
    refused(r"1 missing: bn1\.weight; \d unexpected: ", load, student(), saved(tmp_path / "w.pth", state), "here")


def test_a_set_of_weights_is_chosen_by_its_prefix(tmp_path):
    source, copy = resnet(), resnet()
    state = source.state_dict() | prefixed("ema.")(copy.state_dict())
    path = saved(tmp_path / "w.pth", state)
    for prefix, expected in (("", source), ("ema", copy), ("ema.", copy)):
        load_weights(model := student(), path, "here", prefix)
        assert equal(model.state_dict(), expected.state_dict())
    refused(r"^here: .*src_ckpt_prefix 'emma'; did you mean 'ema\.'", load_weights, student(), path, "here", "emma")
    refused(r"^here: .*fit ResNet: \d+ missing", load_weights, student(), path, "here", "ema.layer1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("load", [load_weights, load_teacher_weights, load_backbone_weights])
def test_broken_weights_are_refused_by_name_and_leave_the_model(tmp_path, load, value):
    state, model = resnet().state_dict(), student()
    before = copied(model)
    state["bn1.weight"][3] = value
    for name in ("w.pth", "w.safetensors"):
        refused(rf"^here: .*{name} .*bn1\.weight$", load, model, saved(tmp_path / name, state), "here")
    assert equal(model.state_dict(), before)


def test_infinity_may_stand_in_a_buffer(tmp_path):
    model = TinyNet()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    load_weights(model, saved(tmp_path / "w.pth", model.state_dict()), "here")
    model.mask[0] = torch.nan
    refused(r"mask$", load_weights, model, saved(tmp_path / "w.pth", model.state_dict()), "here")


def test_an_rgb_teacher_of_ours_takes_grey_images_as_the_data_has_them(tmp_path):
    rgb = ImageInput((0.4, 0.5, 0.6), (0.2, 0.3, 0.2), (16, 16))
    path = save(student(), tmp_path / "w.safetensors", image_input=vars(rgb))
    load_teacher_weights(model := timm_model("test_resnet", num_classes=4, in_chans=1), path, "here")
    assert model.image_input == ImageInput(size=(16, 16))
    assert RefilledTeacher(model, data_mean=0.5, data_std=0.2)(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    grey = timm_model("test_resnet", num_classes=4, in_chans=1)
    refused(r"conv1\.0\.weight \[16, 3, 3, 3\]", load_weights, grey, path, "--checkpoint")  # it is to be measured


def test_a_teacher_without_classifier_leaves_heads_out_and_says_so_and_needs_none_of_the_file(tmp_path, caplog):
    source, model = resnet(9), student(0)
    state = prefixed("module.")(source.state_dict()) | {"projector.0.weight": torch.zeros(2)}
    state |= {"bn1.weight": torch.zeros(64)}  # of two alike the one inside is taken
    with caplog.at_level(logging.INFO):
        load_teacher_weights(model, saved(tmp_path / "w.pth", state), "models.teacher_model.src_ckpt")
    assert equal(model.state_dict(), without("fc.", source.state_dict()))
    assert "prefix 'module.' removed; left out: 3 unexpected: fc.bias, fc.weight, projector.0.weight" in caplog.text
    source, model = TinyNet(), tiny(0)
    load_teacher_weights(model, saved(tmp_path / "w.pth", without("fc.", source.state_dict())), "here")
    assert torch.equal(model.conv.weight, source.conv.weight)


@pytest.mark.parametrize("classes", [3, 4])  # as many, too, are other ones
def test_a_new_classifier_keeps_nothing_of_the_files(tmp_path, classes):
    source, model = resnet(), student(classes)
    expected = copied(model) | without("fc.", source.state_dict())
    load_backbone_weights(model, saved(tmp_path / "w.pth", source.state_dict()), "here")
    assert equal(model.state_dict(), expected)


@pytest.mark.parametrize(  # the last one is not timm's: its last Linear is the classifier
    ("source", "model", "prefix"),
    [(resnet(), student(6), ""), (resnet(), student(4), "module."), (wide(4), wide(6), "")],
)
def test_an_extended_classifier_starts_with_the_files_rows(tmp_path, source, model, prefix, caplog):
    before = copied(model)
    with caplog.at_level(logging.INFO):
        path = saved(tmp_path / "w.pth", prefixed(prefix)(source.state_dict()))
        load_backbone_weights(model, path, "here", extends_classifier=True)
    after = model.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(after[key][:4] if key.startswith("fc.") else after[key], value)
    assert all(torch.equal(after[key][4:], before[key][4:]) for key in ("fc.weight", "fc.bias"))
    assert "the classifier is extended" in caplog.text


def two_models():
    return {f"{role}.{key}": value for role in ("student", "teacher") for key, value in resnet().state_dict().items()}


def with_zeros(model, key):
    return {**model.state_dict(), key: torch.zeros(2)}


load_extended_weights = partial(load_backbone_weights, extends_classifier=True)
PAIR = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
HEADLESS = "fits the backbone of {}, but not its classifier: 2 .*num_classes: 0"


@pytest.mark.parametrize(
    ("load", "model", "state", "message"),
    [
        (load_weights, TinyNet(), {"x": torch.zeros(1)}, r"8 missing: bn\.bias, .*, …; 1 unexpected: x$"),
        (
            load_weights, TinyNet(),
            without("conv.", TinyNet().state_dict()) | {"fc.weight": torch.zeros(7, 8), "x": torch.zeros(1)},
            r"2 missing: conv\.bias, conv\.weight; 1 unexpected: x; 1 of .*: fc\.weight \[7, 8\] \(model: \[4, 8\]\)$",
        ),
        (load_weights, student(0), resnet().state_dict(), r"fit ResNet: 2 unexpected: fc\.bias, fc\.weight"),
        (load_teacher_weights, student(), resnet(9).state_dict(), HEADLESS.format("ResNet")),
        (load_teacher_weights, student(), without("fc.", resnet().state_dict()), HEADLESS.format("ResNet")),
        (load_teacher_weights, tiny(4), without("fc.", TinyNet().state_dict()), HEADLESS.format("TinyNet")),
        (load_teacher_weights, student(), two_models(), r"several sets .*src_ckpt_prefix .* 'student\.', 'teacher\.'$"),
        (load_teacher_weights, student(), resnet(4, "test_vit").state_dict(), r"fit ResNet: \d+ missing"),
        (load_teacher_weights, TinyNet(), TinyNet(width=9).state_dict(), "fit TinyNet: .*of another shape: bn"),
        (load_teacher_weights, TinyNet(), with_zeros(TinyNet(), "fc.scale"), r"fit TinyNet: 1 unexpected: fc\.scale"),
        *[
            (load_teacher_weights, student(), with_zeros(resnet(), key), f"fit ResNet: 1 unexpected: {key}")
            for key in ("reg_token", "pos_embed", "fc_norm.bias", "blocks.12.fc1.bias", "layer1.9.bn1.bias")
        ],
        (load_backbone_weights, student(), resnet(4, "test_byobnet").state_dict(), "does not fit ResNet: "),
        (load_backbone_weights, PAIR, PAIR.state_dict(), "Sequential does not say .* last module .* is no Linear"),
        (load_extended_weights, student(3), resnet().state_dict(), r"fc\.\w+ \[4.*\] cannot be the first rows of \[3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_leaves_the_model(tmp_path, load, model, state, message):
    path, before = saved(tmp_path / "w.pth", state), copied(model)
    refused(rf"^here: .*{message}", load, model, path, "here")
    assert equal(model.state_dict(), before)


def test_a_bias_that_the_new_classifier_lacks_is_left_out(tmp_path):
    source, model = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, n, bias=n == 5)) for n in (5, 4))
    load_backbone_weights(model, saved(tmp_path / "w.pth", source.state_dict()), "models.model.src_ckpt")
    assert torch.equal(model[0].weight, source[0].weight)


def test_of_prefixes_that_fit_alike_the_shortest_is_taken():
    assert weights._prefix(dict.fromkeys(["x.weight", "weight"]), dict.fromkeys(["weight", "bias"]))[0] == ""


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    """And a file that is refused changes nothing."""
    path, model = tmp_path / name, TinyNet()
    save(model, path)
    content, before, messages = path.read_bytes(), copied(model), []
    for number in range(100):
        path.write_bytes(damaged(content, number))
        try:
            load_weights(model, path, "here")
        except ConfigError as error:
            messages.append(str(error))
            assert equal(model.state_dict(), before)
        model.load_state_dict(before)
    assert len(messages) > 50
    assert all(message.startswith("here: ") and "\n" not in message for message in messages)
