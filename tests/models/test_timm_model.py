"""timm models by name."""

import copy
import pickle

import pytest
import timm
import torch
from torch.nn.functional import interpolate
from torchdistill.models.registry import get_model

from tests.runner.fakes import refused


def made(**kwargs):
    with torch.device("meta"):
        return get_model("timm_model", None, **kwargs)


def test_registered_under_its_name_and_built_as_asked_for():
    model = get_model("timm_model", None, model_name="test_resnet.r160_in1k", num_classes=4, in_chans=1)
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model_name": "resnet51"}, "timm has no model 'resnet51'; did you mean '.*resnet50"),
        ({"model_name": None}, "model_name must be a timm model name, got None"),
        ({"model_name": "qwen3_vit_88m_enc", "num_classes": 3}, "encoder without a classifier.* a teacher, not a stud"),
        ({"model_name": "test_resnet", "input_size": 0}, "input_size: must be a number of pixels or .*, got 0"),
    ],
)
def test_what_cannot_be_built(kwargs, message):
    refused(message, made, **kwargs)


def test_the_input_size_is_the_one_it_was_built_for():
    assert made(model_name="test_vit", img_size=32, in_chans=1).pretrained_cfg["input_size"] == (1, 32, 32)
    assert made(model_name="test_vit").pretrained_cfg["input_size"] == (3, 160, 160)


@pytest.mark.parametrize(("given", "size"), [(32, (32, 32)), ([32, 48], (32, 48))])
def test_images_of_another_size_are_resized_to_its_own(given, size):
    """One view serves a teacher at 64 pixels and this student; copies do the same, and the weights are timm's own."""
    torch.manual_seed(0)
    model = get_model("timm_model", None, model_name="test_resnet", num_classes=4, input_size=given).eval()
    plain = timm.create_model("test_resnet", num_classes=4).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    want = plain(interpolate(images, size, mode="bicubic", antialias=True))
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(images), want)
    own = torch.randn(2, 3, *size)
    assert torch.equal(model(own), plain(own))
    assert model.pretrained_cfg["input_size"] == (3, *size)
