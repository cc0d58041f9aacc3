"""Images that a model cannot take are named before training."""

import pytest
import torch
from accelerate import Accelerator

from gkd_plugin import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.forward_check import check_forward, first_images
from tests.fakes import TinyImages


def test_models_that_fit_leave_the_random_state_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = first_images(TinyImages())
    check_forward("models.model", torch.nn.Dropout(), images, Accelerator(cpu=True))
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "deit_tiny_patch16_224",
            {},
            r"shape \[2, 3, 32, 32\]: Input height.* \(its kwargs.img_size: 32 builds it for this size\)$",
        ),
        ("test_resnet", {"in_chans": 1}, r"models.teacher_model: cannot take images of shape .*1 channels?[^(]*$"),
    ],
)
def test_sizes_and_channels_that_do_not_fit(name, changes, message):
    model = timm_model(name, num_classes=3, **changes).eval()
    with pytest.raises(ConfigError, match=message):
        check_forward("models.teacher_model", model, first_images(TinyImages()), Accelerator(cpu=True))
