"""Weights in, weights out: read safely, fitted strictly, written whole."""

import argparse
import json
import logging
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
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.weights import (
    load_backbone_weights,
    load_teacher_weights,
    load_weights,
    read_weights,
    save_student,
    save_upstream_checkpoint,
)
from tests.fakes import TinyNet

LOADERS = [load_weights, load_teacher_weights]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def resnet(classes=4, name="test_resnet"):
    return timm.create_model(name, num_classes=classes)


def student(classes=4, name="test_resnet"):
    return timm_model(name, num_classes=classes)


def saved(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)({k: v.contiguous() for k, v in state.items()}, path)
    return path


def save(model, path, **about):
    """In the format that goes with the suffix: the student's alone, or torchdistill's."""
    if path.suffix == ".safetensors":
        save_student(model, path, "tiny", **about)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        save_upstream_checkpoint(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), 12.5, path, **about)
    return path


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pt", "state_dict", "timm"])
def test_round_trip(tmp_path, kind):
    model, path = TinyNet(), tmp_path / kind
    if kind == "state_dict":
        torch.save(model.state_dict(), path)
    elif kind == "timm":
        torch.save({"epoch": 3, "args": argparse.Namespace(lr=1), "state_dict": model.state_dict()}, path)
    else:
        save(model, path)
    copy = TinyNet()
    assert not equal(copy.state_dict(), model.state_dict())
    load_weights(copy, path, "models.model.src_ckpt")
    assert equal(copy.state_dict(), model.state_dict())
    if kind == "w.pt":
        best, _ = load_ckpt(str(path), again := TinyNet())
        assert best == 12.5
        assert equal(again.state_dict(), model.state_dict())


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
    [b"", b"\x80", b"hello", b"PK\x03\x04", random.Random(0).randbytes(200), b"\x80\x02]q\x00.", None],
    ids=range(7),
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_files_are_one_line(tmp_path, content, name):
    path = save(TinyNet(), tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        ConfigError, match=rf"^here: .*{name} (cannot be read as weights|holds no state_dict)"
    ) as caught:
        read_weights(path, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"model": {"a": "b"}}, torch.ones(2)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"^here: .*w\.pt holds no state_dict$"):
        read_weights(tmp_path / "w.pt", "here")
    with pytest.raises(ConfigError, match=r"^here: no such file: .*nowhere\.pt$"):
        read_weights(tmp_path / "nowhere.pt", "here")


def test_a_parameter_may_be_called_model(tmp_path):
    save_file({"model": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(read_weights(tmp_path / "w.safetensors", "here").state) == ["model"]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_student_loads_with_timm_alone(tmp_path, name):
    size = {"img_size": 32} if "vit" in name else {}
    model, path = timm_model(name, num_classes=3, **size), tmp_path / "student.safetensors"
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
    assert equal(read_weights(save(model, tmp_path / "w.safetensors"), "here").state, model.state_dict())


def test_the_student_file_has_the_permissions_of_any_other(tmp_path):
    save(TinyNet(), tmp_path / "w.safetensors")
    (tmp_path / "plain").write_text("x")
    assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w.safetensors", "plain")}) == 1


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_our_files_say_how_the_weights_were_trained(tmp_path, name):
    known, source, model = ImageInput((0.5,), (0.25,), (32, 32)), TinyNet(), TinyNet()
    path = save(source, tmp_path / name, image_input=known, classes=["cat", "dog"], epochs=(3, 3))
    found = read_weights(path, "here")
    assert (found.image_input, found.classes, found.epochs) == (known, ["cat", "dog"], (3, 3))
    load_teacher_weights(model, path, "here")
    assert (model.image_input, model.trained_classes) == (known, ["cat", "dog"])
    assert equal(model.state_dict(), source.state_dict())
    other = TinyNet()
    load_teacher_weights(other, saved(tmp_path / "other.safetensors", source.state_dict()), "here")
    assert not hasattr(other, "image_input")
    assert not hasattr(other, "trained_classes")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(("epochs", "is_told"), [((13, 15), True), ((15, 15), False), (None, False)])
def test_weights_of_an_unfinished_run_are_told(tmp_path, caplog, name, epochs, is_told):
    path = save(TinyNet(), tmp_path / name, epochs=epochs)
    load_weights(TinyNet(), path, "here")
    assert ("the run that wrote it did not finish" in caplog.text) == is_told
    assert (f"here: {path} is of epoch 13 of 15" in caplog.text) == is_told


# --- into a model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone.", "teacher.backbone."])
def test_a_prefix_is_removed(tmp_path, load, suffix, prefix):
    source, model = resnet(), student()
    path = saved(tmp_path / f"w{suffix}", {prefix + key: value for key, value in source.state_dict().items()})
    load(model, path, "here")
    assert equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    "content",
    [
        *[
            lambda good, _, key=key: {"epoch": 1, key: good}
            for key in ("state_dict_ema", "model_ema", "model", "teacher")
        ],
        lambda good, other: {"state_dict": other, "state_dict_ema": good},  # averaged ones first
        lambda good, _: {"state_dict_ema": {}, "state_dict": good},
        lambda good, _: {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in good.items()},
        lambda good, _: {key: value for key, value in good.items() if "num_batches_tracked" not in key},  # old files
    ],
)
@pytest.mark.parametrize("load", LOADERS)
def test_other_layouts_of_a_file(tmp_path, content, load):
    source, model = resnet(), student()
    torch.save(content(source.state_dict(), resnet().state_dict()), tmp_path / "w.pth")
    load(model, tmp_path / "w.pth", "here")
    assert equal(model.state_dict(), source.state_dict())


def test_what_does_not_fit_is_listed(tmp_path):
    state = TinyNet().state_dict()
    del state["conv.weight"], state["conv.bias"]
    state |= {"fc.weight": torch.zeros(7, 8), "head.bias": torch.zeros(1)}
    model, path = TinyNet(), saved(tmp_path / "w.pt", state)
    before = copied(model)
    with pytest.raises(ConfigError) as caught:
        load_weights(model, path, "here")
    assert str(caught.value) == (
        f"here: {path} does not fit TinyNet: 2 missing: conv.bias, conv.weight; 1 unexpected: head.bias; "
        "1 of another shape: fc.weight [7, 8] (model: [4, 8])"
    )
    assert equal(model.state_dict(), before)
    with pytest.raises(ConfigError, match=r"8 missing: bn\.bias, .*, …; 1 unexpected: x$"):
        load_weights(model, saved(tmp_path / "x.pt", {"x": torch.zeros(1)}), "here")


def test_a_teacher_without_classifier_leaves_heads_out_and_says_so(tmp_path, caplog):
    source, model = resnet(9), student(0)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    state["projector.0.weight"] = torch.zeros(2)
    with caplog.at_level(logging.INFO):
        load_teacher_weights(model, saved(tmp_path / "w.pth", state), "models.teacher_model.src_ckpt")
    assert equal(model.state_dict(), {k: v for k, v in source.state_dict().items() if not k.startswith("fc.")})
    assert "prefix 'module.' removed; left out: 3 unexpected: fc.bias, fc.weight, projector.0.weight" in caplog.text


@pytest.mark.parametrize("change", ["other classes", "none"])
def test_a_teachers_classifier_must_be_there(tmp_path, change):
    state = resnet(9).state_dict()
    if change == "none":
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    model = student()
    before = copied(model)
    with pytest.raises(ConfigError, match=r"fits the backbone of ResNet, but not its classifier: 2 .*num_classes: 0"):
        load_teacher_weights(model, saved(tmp_path / "w.pth", state), "here")
    assert equal(model.state_dict(), before)


def two_models():
    return {f"{role}.{key}": value for role in ("student", "teacher") for key, value in resnet().state_dict().items()}


@pytest.mark.parametrize(
    ("load", "model", "state", "message"),
    [
        (load_teacher_weights, "test_resnet", two_models, r"several sets .* prefixes 'student\.', 'teacher\.'$"),
        (load_teacher_weights, "resnet26", lambda: resnet(4, "test_vit").state_dict(), r"fit ResNet: \d+ missing"),
        (load_teacher_weights, "resnet26", lambda: resnet(4, "resnet18").state_dict(), r"fit ResNet: .*another shape"),
        # nothing is missing: every tensor of a ResNet-26 fits one of a ResNet-50, whose further blocks would be lost
        (
            load_teacher_weights,
            "resnet26",
            lambda: resnet(4, "resnet50").state_dict(),
            r"fit ResNet: \d+ unexpected: l",
        ),
        (
            load_backbone_weights,
            "test_resnet",
            lambda: resnet(4, "test_byobnet").state_dict(),
            r"does not fit ResNet: ",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, load, model, state, message):
    with pytest.raises(ConfigError, match=rf"^here: .*w\.pth .*{message}") as caught:
        load(student(4, model), saved(tmp_path / "w.pth", state()), "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["reg_token", "pos_embed", "norm.weight", "fc_norm.bias", "blocks.12.mlp.fc1.weight"])
def test_a_part_of_a_backbone_is_not_left_out(tmp_path, key):
    path = saved(tmp_path / "w.pth", {**resnet().state_dict(), key: torch.zeros(2)})
    with pytest.raises(ConfigError, match=f"does not fit ResNet: 1 unexpected: {key}"):
        load_teacher_weights(student(), path, "here")
    path = saved(tmp_path / "w.pth", {**TinyNet().state_dict(), "fc.scale": torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"does not fit TinyNet: 1 unexpected: fc\.scale"):
        load_teacher_weights(TinyNet(), path, "here")


@pytest.mark.parametrize("num_classes", [0, 4])
def test_a_teacher_that_claims_no_classes_needs_no_classifier_of_the_file(tmp_path, num_classes):
    source, model = TinyNet(), TinyNet()
    model.pretrained_cfg, model.num_classes = {"classifier": "fc"}, num_classes
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    path = saved(tmp_path / "w.pth", state)
    if num_classes == 0:
        load_teacher_weights(model, path, "here")
        assert torch.equal(model.conv.weight, source.conv.weight)
    else:
        with pytest.raises(ConfigError, match="but not its classifier: 2 missing"):
            load_teacher_weights(model, path, "here")


def test_a_student_takes_nothing_but_its_own(tmp_path):
    path = saved(tmp_path / "w.pth", resnet().state_dict())
    with pytest.raises(ConfigError, match=r"does not fit ResNet: 2 unexpected: fc\.bias, fc\.weight"):
        load_weights(student(0), path, "here")


# --- a backbone under another classifier -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 4, 6])
def test_a_new_classifier_keeps_nothing_of_the_files(tmp_path, classes):
    """Also where it has as many classes: they are other ones."""
    source, model = resnet(), student(classes)
    before = copied(model)
    load_backbone_weights(model, saved(tmp_path / "w.pth", source.state_dict()), "here")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("fc.") else source.state_dict()[key])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_extended_classifier_starts_with_the_files_rows(tmp_path, prefix, caplog):
    source, model = resnet(), student(6)
    before = copied(model)
    path = saved(tmp_path / "w.pth", {prefix + key: value for key, value in source.state_dict().items()})
    with caplog.at_level(logging.INFO):
        load_backbone_weights(model, path, "here", extends_classifier=True)
    after = model.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(after[key][:4] if key.startswith("fc.") else after[key], value)
    assert all(torch.equal(after[key][4:], before[key][4:]) for key in ("fc.weight", "fc.bias"))
    assert "the classifier is extended" in caplog.text
    with pytest.raises(ConfigError, match=r"^here: .*w\.pth: fc\.\w+ \[4.*\] cannot be the first rows of \[3"):
        load_backbone_weights(student(3), path, "here", extends_classifier=True)


def test_a_last_linear_is_the_classifier_of_models_that_are_not_timms(tmp_path):
    source, model = (wide_resnet(10, 1, 0.0, classes, False, False) for classes in (3, 5))
    load_backbone_weights(model, saved(tmp_path / "w.pth", source.state_dict()), "here", extends_classifier=True)
    after = model.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(after[key][:3] if key.startswith("fc.") else after[key], value)


def test_a_model_that_does_not_say_what_its_classifier_is(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match=r"here: Sequential does not say .* last module with weights is no Linear"):
        load_backbone_weights(model, saved(tmp_path / "w.pth", model.state_dict()), "here")
