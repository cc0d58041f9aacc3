"""timm models by name."""

import pytest
import torch
from torchdistill.models.registry import get_model

from gkd_plugin import ConfigError


def test_registered_under_its_name():
    model = get_model("timm_model", None, model_name="test_resnet", num_classes=4, in_chans=1)
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", "timm has no model 'resnet51'; did you mean '.*resnet50"),
        ("qqqqqqqqq", "none of the .* known names is close"),
        (None, "model_name must be a timm model name, got None"),
    ],
)
def test_unknown_names_offer_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        get_model("timm_model", None, model_name=name)


def test_a_pretrained_tag_is_part_of_the_name():
    assert get_model("timm_model", None, model_name="test_resnet.r160_in1k", num_classes=2).num_classes == 2


def test_the_input_size_is_the_one_it_was_built_for():
    model = get_model("timm_model", None, model_name="test_vit", img_size=32, in_chans=1, num_classes=2)
    assert model.pretrained_cfg["input_size"] == (1, 32, 32)
    assert get_model("timm_model", None, model_name="test_vit").pretrained_cfg["input_size"] == (3, 160, 160)


def test_an_encoder_takes_no_classes():
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"encoder without a classifier.* a teacher, not a stud"),
    ):
        get_model("timm_model", None, model_name="qwen3_vit_88m_enc", num_classes=3)
