from __future__ import annotations

import pytest
import torch
from PIL import Image

from gkd_plugin.data import image_transform
from gkd_plugin.errors import ConfigError

HALF = [0.5, 0.5, 0.5]


def test_evaluation_only_normalises_an_image_of_that_size():
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    tensor = image_transform(4, [0.5, 0.5, 0.2], [0.5, 0.25, 1.0])(image)
    expected = torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1).expand(3, 4, 4)
    assert torch.allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 10), (10, 16), (9, 25)])
def test_every_image_gets_the_size(shape, train):
    assert image_transform(8, HALF, HALF, train=train)(Image.new("RGB", shape)).shape == (3, 8, 8)


def test_grey_images_have_one_channel():
    assert image_transform(8, [0.5], [0.5])(Image.new("L", (8, 8))).shape == (1, 8, 8)


def test_padding_and_flip_augment():
    image = Image.linear_gradient("L").resize((8, 8)).rotate(90)
    torch.manual_seed(0)
    padded = image_transform(8, [0.0], [1.0], train=True, padding=2)
    assert len({tuple(padded(image).flatten().tolist()) for _ in range(20)}) > 2
    flipped = image_transform(8, [0.0], [1.0], train=True, flip=True)
    seen = {tuple(flipped(image).flatten().tolist()) for _ in range(20)}
    plain = image_transform(8, [0.0], [1.0])(image)
    assert seen == {tuple(plain.flatten().tolist()), tuple(plain.flip(2).flatten().tolist())}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"padding": -1, "train": True}, "padding must be"),
        ({"std": [0.5, 0.5]}, "mean and std must be of one length"),
        ({"std": [0.5, 0.0, 0.5]}, "std above 0"),
        ({"flip": True}, "need train=True"),
        ({"padding": 4}, "need train=True"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        image_transform(**{"size": 8, "mean": HALF, "std": HALF, **arguments})
