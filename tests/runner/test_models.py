"""From an entry of ``models`` to a model with its weights, and a classifier that starts at class centres."""

import logging
from functools import partial

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torch.utils.data import DataLoader
from torchdistill.models.classification.resnet import resnet20

import gkd_plugin  # noqa: F401
from gkd_plugin.box.hooks import Capture
from gkd_plugin.data import ImageInput
from gkd_plugin.models import EmbeddingTap, timm_model
from gkd_plugin.runner import models
from gkd_plugin.runner.models import SCALE, build_model, start_at_centres
from tests import reference
from tests.fakes import TinyImages
from tests.runner.fakes import cpu, equal, model, refused

timm_entry = partial(model, "test_resnet")


def test_models_of_timm_torchvision_and_torchdistill():
    assert isinstance(build_model("models.model", timm_entry()), EmbeddingTap)
    resnet18 = build_model("models.model", {"key": "resnet18", "kwargs": {"num_classes": 3}})
    assert type(resnet18).__module__ == "torchvision.models.resnet"
    assert not hasattr(resnet18, "image_input")
    kwargs = {"depth": 10, "k": 1, "dropout_p": 0.0, "num_classes": 3, "pretrained": False, "progress": False}
    wide = build_model("models.model", {"key": "wide_resnet", "kwargs": kwargs})
    assert type(wide).__module__.startswith("torchdistill")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (timm_entry(model_name="resnet18x"), "timm has no model 'resnet18x'; did you mean .*'resnet18'"),
        (timm_entry(no_such=1), ".*unexpected keyword argument 'no_such'$"),
        ({"key": "nowhere", "kwargs": {}}, ".*nowhere"),
        ({"key": "resnet18", "kwargs": {"num_classes": -2}}, ".*negative dimension"),
        (timm_entry(model_name="local-dir:nowhere"), ".*(nowhere|a file that its kwargs name does not exist)"),
        (timm_entry(pretrained=True, pretrained_cfg_overlay={"file": "nowhere.pth"}), ".*(nowhere|does not exist)"),
        (timm_entry(checkpoint_path="nowhere.pth"), ".*(nowhere|a file that its kwargs name does not exist)"),
    ],
)
def test_models_that_cannot_be_built(entry, message):
    refused(rf"^models\.m: {message}", build_model, "models.m", entry)


def test_weights_are_loaded_as_the_model_needs_them(tmp_path):
    model, path = build_model("models.m", timm_entry()), str(tmp_path / "w.pt")
    torch.save(model.state_dict(), path)

    def build(num_classes=4, classifier=None, where="models.m"):
        entry = {**timm_entry(num_classes=num_classes), "src_ckpt": path, "src_ckpt_classifier": classifier}
        return build_model(where, entry)

    assert equal(build().state_dict(), model.state_dict())
    refused(r"^models\.m\.src_ckpt: .* of another shape: fc\.bias", build, 2)
    for classifier in ("new", "centres"):
        assert torch.equal(build(2, classifier).layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    assert torch.equal(build(6, "extended").fc.weight[:4], model.fc.weight)
    assert build(0, where="models.teacher_model").num_classes == 0
    refused("does not fit ResNet: 2 unexpected", build, 0, where="models.student_model")


@pytest.mark.parametrize(  # the last one folds pixels into channels
    ("name", "channels", "role"),
    [("test_resnet", 1, "teacher"), ("test_vit", 4, "student"), ("tresnet_m", 1, "teacher")],
)
def test_rgb_weights_of_a_file_serve_other_channels_as_timms_pretrained_ones_do(tmp_path, name, channels, role):
    path = str(tmp_path / "w.safetensors")
    save_file(timm.create_model(name, num_classes=4).state_dict(), path)
    entry = timm_entry(model_name=name, in_chans=channels)
    overlay = {"file": path, "num_classes": 4}
    timms = timm.create_model(**entry["kwargs"], pretrained=True, pretrained_cfg_overlay=overlay)
    built = build_model(f"models.{role}_model", {**entry, "src_ckpt": path})
    assert equal(built.state_dict(), timms.state_dict())


@pytest.mark.parametrize("where", ["models.teacher_model", "models.student_model"])
@pytest.mark.parametrize(("classifier", "lacks"), [(None, "nothing"), ("new", "fc.")])
def test_one_of_several_sets_of_weights_is_chosen(tmp_path, where, classifier, lacks):
    sources = {f"encoder_{x}": timm_model("test_resnet", num_classes=4) for x in "qk"}
    states = {name: source.state_dict().items() for name, source in sources.items()}
    kept = {name: {k: value for k, value in state if not k.startswith(lacks)} for name, state in states.items()}
    torch.save(kept, path := str(tmp_path / "w.pt"))
    entry, wanted = {**timm_entry(), "src_ckpt": path, "src_ckpt_classifier": classifier}, sources["encoder_k"]
    message = rf"^{where}\.src_ckpt: .*src_ckpt_prefix .* 'encoder_k\.', 'encoder_q\.'"
    refused(message, build_model, where, entry)
    built = build_model(where, {**entry, "src_ckpt_prefix": "encoder_k"})
    assert torch.equal(built.layer1[0].conv1.weight, wanted.layer1[0].conv1.weight)


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch, caplog):
    """What huggingface_hub raises where there is neither a connection nor a cached file."""

    def create_model(*_args, **_kwargs):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise LocalEntryNotFoundError("An error happened.\nMore lines.")

    monkeypatch.setattr(timm, "create_model", create_model)
    level = logging.getLogger("huggingface_hub").level
    entry = timm_entry(model_name="resnet18", pretrained=True)
    refused(r"^models\.teacher_model: what .*resnet18.*no connection", build_model, "models.teacher_model", entry)
    assert "Retrying" not in caplog.text
    assert logging.getLogger("huggingface_hub").level == level


def test_weights_from_a_folder_as_the_hub_has_them(tmp_path):
    source = timm.create_model("test_resnet", num_classes=6)
    save_for_hf(source, tmp_path, model_config={"num_classes": 6})
    kwargs = {"model_name": f"local-dir:{tmp_path}", "pretrained": True, "num_classes": None}
    model = build_model("models.teacher_model", timm_entry(**kwargs))
    assert model.num_classes == 6
    assert torch.equal(model.eval()(torch.ones(1, 3, 64, 64)), source.eval()(torch.ones(1, 3, 64, 64)))


def test_torchvisions_pretrained_weights_say_what_they_were_trained_with(monkeypatch):
    monkeypatch.setattr(models, "get_image_classification_model", lambda _: nn.Module())  # in place of a download
    entry = {"key": "resnet18", "kwargs": {"weights": "ResNet18_Weights.IMAGENET1K_V1"}}
    assert build_model("m", entry).image_input == ImageInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))


def started(model):
    data = TinyImages(classes=4, per_class=5)
    start_at_centres("models.student_model", model, DataLoader(data, batch_size=7), cpu())
    return data


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: timm_model("test_resnet", num_classes=4), "embedding"),
        (lambda: timm_model("test_vit", img_size=32, num_classes=4), "embedding"),
        (lambda: resnet20(num_classes=4, pretrained=False, progress=False), None),
    ],
)
def test_logits_are_scaled_similarities_to_class_centres(make, path):
    torch.manual_seed(0)
    model = make()
    random_state = torch.get_rng_state()
    data = started(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())
    (name, linear) = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    with Capture.during(model, path or name, "output" if path else "input") as given, torch.no_grad():
        logits = model.eval()(data.images)
    rows = given.value.double()
    centres = reference.centres(rows, torch.tensor(data.targets), 4)
    want = rows @ centres.T * SCALE / rows.norm(dim=1).mean()
    torch.testing.assert_close(logits.double(), want, rtol=1e-4, atol=1e-4)
    assert linear.bias.abs().max() == 0


def test_every_classifier_of_a_distilled_model_is_set():
    model = timm_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=4, depth=1)
    before = {head: head.weight.clone() for head in (model.head, model.head_dist)}
    started(model)
    assert all((head.weight != weight).any() for head, weight in before.items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm_model("test_resnet", num_classes=5), ".*class.* 4"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), "needs .* Linear, none is found in Sequential"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(1024, 4)), r".*\[7, 3, 1024\]"),  # a classifier of tokens
    ],
)
def test_what_cannot_start_at_centres_is_told_with_its_key(model, message):
    refused(rf"^models\.student_model\.src_ckpt_classifier: 'centres': {message}", started, model())
