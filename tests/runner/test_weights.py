"""Weights in, weights out: read safely, fitted strictly, written whole."""

import argparse
import json
import logging
import os
import pickle
import random
import stat
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchdistill.common.main_util import load_ckpt
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.data import ImageInput
from gkd_plugin.models import timm_model
from gkd_plugin.runner import weights
from gkd_plugin.runner.weights import (
    load_backbone_weights,
    load_teacher_weights,
    load_weights,
    read_weights,
)
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
    for content in ({}, {"a": 1}, [1, 2], {"model": {"a": "b"}}, torch.ones(2)):
        torch.save(content, tmp_path / "w.pt")
        refused(r"^here: .*w\.pt holds no state_dict$", read_weights, tmp_path / "w.pt", "here")
    refused(r"^here: no such file: .*nowhere\.pt$", read_weights, tmp_path / "nowhere.pt", "here")
    assert list(read_weights(saved(tmp_path / "w.safetensors", {"model": torch.ones(2)}), "here").state) == ["model"]


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
    assert caplog.messages == ([told] if epochs == (13, 15) else [])


def nested(key):
    return lambda good: {"epoch": 1, "args": argparse.Namespace(lr=1), key: good}


def prefixed(prefix):
    return lambda good: {prefix + key: value for key, value in good.items()}


@pytest.mark.parametrize(
    "content",
    [
        *map(prefixed, ["", "module.", "_orig_mod.module.", "backbone.", "teacher.backbone."]),
        *map(nested, ["state_dict", "state_dict_ema", "model_ema", "model", "teacher"]),  # of timm's train.py, DINO
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
        (load_teacher_weights, student(), two_models(), r"several sets .* prefixes 'student\.', 'teacher\.'$"),
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
    assert weights._prefix(dict.fromkeys(["x.weight", "weight"]), dict.fromkeys(["weight", "bias"])) == ""
