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


def test_a_part_of_the_image_is_stretched_to_the_size():
    image = Image.linear_gradient("L").resize((12, 20))
    torch.manual_seed(0)
    part = image_transform(8, [0.0], [1.0], train=True, crop="resized", scale=[0.1, 0.2])
    spans = [float(tensor.max() - tensor.min()) for tensor in (part(image) for _ in range(20))]
    assert part(image).shape == (1, 8, 8)
    assert max(spans) < 0.7  # at most √(0.2 · 4/3 · 12 / 20) of the height, with the pixels at both ends
    whole = image_transform(8, [0.0], [1.0])(image)
    assert float(whole.max() - whole.min()) > 0.5


def test_the_shorter_side_before_the_crop_may_be_larger():
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (2, 2, 6, 6))
    assert torch.equal(image_transform(4, [0.0], [1.0], resize=8)(image), torch.ones(1, 4, 4))
    torch.manual_seed(0)
    crops = {tuple(image_transform(4, [0.0], [1.0], train=True, resize=8)(image).flatten().tolist()) for _ in range(20)}
    assert len(crops) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "resize", "train": True}, "crop: 'resize' is unknown; did you mean 'resized'"),
        ({"crop": "resized"}, "need train=True"),
        ({"crop": "resized", "train": True, "padding": 2}, "no use for padding and resize"),
        ({"crop": "resized", "train": True, "resize": 9}, "no use for padding and resize"),
        ({"crop": "resized", "train": True, "scale": [0.5, 0.2]}, "scale must be two numbers"),
        ({"crop": "resized", "train": True, "scale": [0.0, 1.0]}, "scale must be two numbers"),
        ({"crop": "resized", "train": True, "scale": [0.5]}, "scale must be two numbers"),
        ({"resize": 7}, "resize must be a whole number from 8 up"),
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
