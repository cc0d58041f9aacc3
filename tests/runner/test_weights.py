"""Weights of any file into a model: prefixes, reports, refusals."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.checkpoints import save_student, save_upstream_checkpoint
from gkd_plugin.runner.weights import load_backbone_weights, load_teacher_weights, load_weights
from tests.fakes import TinyNet


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def resnet(classes=4, name="test_resnet"):
    return timm.create_model(name, num_classes=classes)


def saved(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)({k: v.contiguous() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("load", [load_weights, load_teacher_weights])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone.", "teacher.backbone."])
def test_a_prefix_is_taken_off(tmp_path, load, suffix, prefix):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    path = saved(tmp_path / f"w{suffix}", {prefix + key: value for key, value in source.state_dict().items()})
    load(model, path, "here")
    assert equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "state_dict", "model", "teacher"])
def test_nested_checkpoints(tmp_path, key):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    torch.save({"epoch": 1, key: source.state_dict()}, tmp_path / "w.pth")
    load_teacher_weights(model, tmp_path / "w.pth", "here")
    assert equal(model.state_dict(), source.state_dict())


def test_averaged_weights_go_first(tmp_path):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    torch.save({"state_dict": resnet().state_dict(), "state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    load_teacher_weights(model, tmp_path / "w.pth", "here")
    assert equal(model.state_dict(), source.state_dict())


def test_a_teacher_without_classifier_leaves_heads_out_and_says_so(tmp_path, caplog):
    source, model = resnet(9), timm_model("test_resnet", num_classes=0)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    state["projector.0.weight"] = torch.zeros(2)
    with caplog.at_level(logging.INFO):
        load_teacher_weights(model, saved(tmp_path / "w.pth", state), "models.teacher_model.src_ckpt")
    assert equal(model.state_dict(), {k: v for k, v in source.state_dict().items() if not k.startswith("fc.")})
    assert "prefix 'module.' taken off; left out: 3 unexpected: fc.bias, fc.weight, projector.0.weight" in caplog.text


def test_a_file_of_two_models_is_refused(tmp_path):
    both = {f"{role}.{key}": value for role in ("student", "teacher") for key, value in resnet().state_dict().items()}
    with pytest.raises(ConfigError, match=r"^here: .*w\.pth holds several sets .* prefixes 'student\.', 'teacher\.'$"):
        load_teacher_weights(timm_model("test_resnet", num_classes=4), saved(tmp_path / "w.pth", both), "here")


def test_a_file_with_a_classifier_beside_the_prefix(tmp_path):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    state = {key if key.startswith("fc.") else f"backbone.{key}": value for key, value in source.state_dict().items()}
    load_teacher_weights(model, saved(tmp_path / "w.pth", state), "here")
    assert equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("load", [load_weights, load_teacher_weights])
def test_a_file_from_before_batches_were_counted(tmp_path, load):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    state = {key: value for key, value in source.state_dict().items() if "num_batches_tracked" not in key}
    load(model, saved(tmp_path / "w.pth", state), "here")
    assert equal(model.state_dict(), source.state_dict())


def test_an_empty_average_is_passed_over(tmp_path):
    source, model = resnet(), timm_model("test_resnet", num_classes=4)
    torch.save({"state_dict_ema": {}, "state_dict": source.state_dict()}, tmp_path / "w.pth")
    load_teacher_weights(model, tmp_path / "w.pth", "here")
    assert equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("key", ["reg_token", "pos_embed", "norm.weight", "fc_norm.bias", "blocks.12.mlp.fc1.weight"])
def test_a_part_of_a_backbone_is_not_left_out(tmp_path, key):
    state = {**resnet().state_dict(), key: torch.zeros(2)}
    with pytest.raises(ConfigError, match=f"does not fit ResNet: 1 unexpected: {key}"):
        load_teacher_weights(timm_model("test_resnet", num_classes=4), saved(tmp_path / "w.pth", state), "here")


@pytest.mark.parametrize("change", ["other classes", "none"])
def test_a_teachers_classifier_must_be_there(tmp_path, change):
    state = resnet(9).state_dict()
    if change == "none":
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    model = timm_model("test_resnet", num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"fits the backbone of ResNet, but not its classifier: 2 .*num_classes: 0"):
        load_teacher_weights(model, saved(tmp_path / "w.pth", state), "here")
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("test_vit", "missing"),
        ("resnet18", "of another shape"),
    ],
)
def test_another_architecture_is_refused(tmp_path, other, message):
    model = timm_model("resnet26", num_classes=4)
    path = saved(tmp_path / "w.pth", resnet(4, other).state_dict())
    with pytest.raises(ConfigError, match=f"does not fit ResNet: .*{message}") as caught:
        load_teacher_weights(model, path, "here")
    assert "\n" not in str(caught.value)


def test_a_deeper_network_is_refused_though_nothing_is_missing(tmp_path):
    """Every tensor of a ResNet-26 fits one of a ResNet-50, whose further blocks would be lost."""
    path = saved(tmp_path / "w.pth", resnet(4, "resnet50").state_dict())
    model = timm_model("resnet26", num_classes=4)
    assert model.state_dict().keys() < resnet(4, "resnet50").state_dict().keys()
    with pytest.raises(ConfigError, match=r"does not fit ResNet: \d+ unexpected: layer1\.2"):
        load_teacher_weights(model, path, "here")


def test_a_student_takes_nothing_but_its_own(tmp_path):
    with pytest.raises(ConfigError, match=r"does not fit ResNet: 2 unexpected: fc\.bias, fc\.weight"):
        load_weights(timm_model("test_resnet", num_classes=0), saved(tmp_path / "w.pth", resnet().state_dict()), "here")


@pytest.mark.parametrize("kind", ["student", "torchdistill"])
def test_our_files_say_what_images_they_were_trained_with(tmp_path, kind):
    known = ImageInput((0.5,), (0.25,), (32, 32))
    source, path = TinyNet(), tmp_path / ("w.safetensors" if kind == "student" else "w.pt")
    if kind == "student":
        save_student(source, path, "tiny", known, classes=["cat", "dog"])
    else:
        optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
        save_upstream_checkpoint(
            source,
            optimizer,
            torch.optim.lr_scheduler.StepLR(optimizer, 1),
            1.0,
            path,
            image_input=known,
            classes=["cat", "dog"],
        )
    model = TinyNet()
    load_teacher_weights(model, path, "here")
    assert model.image_input == known
    assert model.trained_classes == ["cat", "dog"]
    assert equal(model.state_dict(), source.state_dict())


def test_other_files_say_nothing(tmp_path):
    model = TinyNet()
    load_teacher_weights(model, saved(tmp_path / "w.safetensors", TinyNet().state_dict()), "here")
    assert not hasattr(model, "image_input")
    assert not hasattr(model, "trained_classes")


# --- a backbone under another classifier -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 4, 6])
def test_a_new_classifier_keeps_nothing_of_the_files(tmp_path, classes):
    """Also where it has as many classes: they are other ones."""
    source, model = resnet(), timm_model("test_resnet", num_classes=classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone_weights(model, saved(tmp_path / "w.pth", source.state_dict()), "here")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("fc.") else source.state_dict()[key])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_extended_classifier_starts_with_the_files_rows(tmp_path, prefix, caplog):
    source, model = resnet(), timm_model("test_resnet", num_classes=6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = saved(tmp_path / "w.pth", {prefix + key: value for key, value in source.state_dict().items()})
    with caplog.at_level(logging.INFO):
        load_backbone_weights(model, path, "here", extends_classifier=True)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key][: len(value)] if value.ndim else model.state_dict()[key], value)
    for key in ("fc.weight", "fc.bias"):
        assert torch.equal(model.state_dict()[key][4:], before[key][4:])
    assert "the classifier is extended" in caplog.text


def test_a_classifier_of_more_classes_cannot_be_extended(tmp_path):
    path = saved(tmp_path / "w.pth", resnet(5).state_dict())
    with pytest.raises(ConfigError, match=r"here: .*w\.pth: fc\.\w+ \[5.*\] cannot be the first rows of \[4"):
        load_backbone_weights(timm_model("test_resnet", num_classes=4), path, "here", extends_classifier=True)


def test_a_backbone_of_another_architecture_is_refused_whatever_the_classifier(tmp_path):
    path = saved(tmp_path / "w.pth", resnet(name="test_byobnet").state_dict())
    with pytest.raises(ConfigError, match=r"here: .*w\.pth does not fit ResNet: "):
        load_backbone_weights(timm_model("test_resnet", num_classes=4), path, "here")


def test_a_last_linear_is_the_classifier_of_models_that_are_not_timms(tmp_path):
    source, model = (wide_resnet(10, 1, 0.0, classes, False, False) for classes in (3, 5))
    path = saved(tmp_path / "w.pth", source.state_dict())
    load_backbone_weights(model, path, "here", extends_classifier=True)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key][:3] if key.startswith("fc.") else model.state_dict()[key], value)


def test_a_model_that_does_not_say_what_its_classifier_is(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    path = saved(tmp_path / "w.pth", model.state_dict())
    with pytest.raises(ConfigError, match=r"here: Sequential does not say .* last module with weights is no Linear"):
        load_backbone_weights(model, path, "here")


@pytest.mark.parametrize("kind", ["student", "torchdistill"])
@pytest.mark.parametrize(("epochs", "is_told"), [((13, 15), True), ((15, 15), False), (None, False)])
def test_weights_of_a_run_that_did_not_finish_are_told(tmp_path, caplog, kind, epochs, is_told):
    model, path = TinyNet(), tmp_path / ("w.safetensors" if kind == "student" else "w.pt")
    if kind == "student":
        save_student(model, path, "tiny", epochs=epochs)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        save_upstream_checkpoint(model, optimizer, scheduler, 1.0, path, epochs=epochs)
    load_weights(model, path, "here")
    assert (f"here: {path} is of epoch 13 of 15: the run that wrote it did not finish" in caplog.text) == is_told
