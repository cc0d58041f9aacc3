"""From an entry of ``models`` to a model with its weights."""

import logging

import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import save_for_hf

import gkd_plugin  # noqa: F401
from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import EmbeddingTap
from gkd_plugin.runner.models import _note_torchvision_input, build_model, student_entry


def timm_entry(**kwargs):
    return {"key": "timm_model", "kwargs": {"model_name": "test_resnet", "num_classes": 4, **kwargs}}


def test_the_model_that_trains():
    with_teacher = {"models": {"teacher_model": {"key": "a"}, "student_model": {"key": "b"}}}
    assert student_entry(with_teacher) == ("models.student_model", {"key": "b"})
    assert student_entry({"models": {"model": {"key": "c"}}}) == ("models.model", {"key": "c"})


def test_models_of_timm_torchvision_and_torchdistill():
    assert isinstance(build_model("models.model", timm_entry()), EmbeddingTap)
    resnet18 = build_model("models.model", {"key": "resnet18", "kwargs": {"num_classes": 3}})
    assert type(resnet18).__module__ == "torchvision.models.resnet"
    wide = {
        "key": "wide_resnet",
        "kwargs": {"depth": 10, "k": 1, "dropout_p": 0.0, "num_classes": 3, "pretrained": False, "progress": False},
    }
    assert type(build_model("models.model", wide)).__module__.startswith("torchdistill")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (timm_entry(model_name="resnet18x"), r"^models\.m: timm has no model 'resnet18x'; did you mean .*'resnet18'"),
        (timm_entry(no_such=1), r"^models\.m: .*unexpected keyword argument 'no_such'$"),
        ({"key": "nowhere", "kwargs": {}}, r"^models\.m: .*nowhere"),
        ({"key": "resnet18", "kwargs": {"num_classes": -2}}, r"^models\.m: .*negative dimension"),
    ],
)
def test_models_that_cannot_be_built(entry, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_model("models.m", entry)
    assert "\n" not in str(caught.value)


def test_weights_are_loaded(tmp_path):
    model = build_model("models.m", timm_entry())
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = build_model("models.m", {**timm_entry(), "src_ckpt": str(tmp_path / "w.pt")})
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"^models\.m\.src_ckpt: .* of another shape: fc\.bias"):
        build_model("models.m", {**timm_entry(num_classes=2), "src_ckpt": str(tmp_path / "w.pt")})


def test_a_teacher_may_leave_a_files_classifier_out(tmp_path):
    torch.save(build_model("models.m", timm_entry()).state_dict(), tmp_path / "w.pt")
    entry = {**timm_entry(num_classes=0), "src_ckpt": str(tmp_path / "w.pt")}
    assert build_model("models.teacher_model", entry).num_classes == 0
    with pytest.raises(ConfigError, match="does not fit ResNet: 2 unexpected"):
        build_model("models.student_model", entry)


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch, caplog, name):
    """What huggingface_hub raises where there is neither a connection nor a cached file."""

    def create_model(*_args, **_kwargs):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise LocalEntryNotFoundError("An error happened.\nMore lines.")

    monkeypatch.setattr(timm, "create_model", create_model)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(
        ConfigError, match=r"^models\.teacher_model: what .*resnet18.* needs of the Hugging Face hub .*no connection"
    ) as caught:
        build_model("models.teacher_model", timm_entry(model_name=name, pretrained=True))
    assert "\n" not in str(caught.value)
    assert "Retrying" not in caplog.text
    assert logging.getLogger("huggingface_hub").level == level


def test_weights_from_a_folder_as_the_hub_has_them(tmp_path):
    source = timm.create_model("test_resnet", num_classes=6)
    save_for_hf(source, tmp_path, model_config={"num_classes": 6})
    kwargs = {"model_name": f"local-dir:{tmp_path}", "pretrained": True, "num_classes": None}
    model = build_model("models.teacher_model", timm_entry(**kwargs))
    assert model.num_classes == 6
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    assert torch.equal(model.eval()(torch.ones(1, 3, 64, 64)), source.eval()(torch.ones(1, 3, 64, 64)))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"model_name": "local-dir:nowhere"},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "nowhere.pth"}},
        {"checkpoint_path": "nowhere.pth"},
    ],
)
def test_files_that_the_kwargs_name_and_that_are_not_there(kwargs):
    with pytest.raises(ConfigError, match=r"^models\.m: .*(nowhere|a file that its kwargs name does not exist)"):
        build_model("models.m", timm_entry(**kwargs))


def test_torchvisions_pretrained_weights_say_what_they_were_trained_with():
    model = torchvision.models.resnet18()
    _note_torchvision_input(model, {"key": "resnet18", "kwargs": {"weights": "ResNet18_Weights.IMAGENET1K_V1"}})
    assert model.image_input == ImageInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    other = torchvision.models.resnet18()
    _note_torchvision_input(other, {"key": "resnet18", "kwargs": {}})
    assert not hasattr(other, "image_input")
