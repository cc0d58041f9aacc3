"""Pictures show the pixels that the network was given."""

import base64
import io

import pytest
import torch
from PIL import Image

from gkd_plugin.data import ImageInput
from gkd_plugin.diagnose.restore import LeftOut
from gkd_plugin.report.pictures import thumbnail


def pixels(uri):
    kind, _, content = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{picture.format.lower()}"
    return picture


def test_the_normalisation_is_taken_back():
    image = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert pixels(thumbnail(normalised, ImageInput(mean, std))).getpixel((3, 3)) == (51, 102, 153)
    grey = torch.full((1, 8, 8), -1.0)
    assert pixels(thumbnail(grey, ImageInput((0.5,), (0.5,)))).getpixel((0, 0)) == 0


def test_without_a_known_normalisation_the_range_is_filled_where_it_is_no_picture_yet():
    image = torch.linspace(0, 1, 64).view(1, 8, 8)
    assert pixels(thumbnail(image, ImageInput())).getextrema() == (0, 255)
    assert pixels(thumbnail(image / 2, ImageInput())).getextrema() == (0, 127)
    assert pixels(thumbnail(image * 6 - 3, ImageInput())).getextrema() == (0, 255)
    assert pixels(thumbnail(torch.full((1, 8, 8), 7.0), ImageInput())).getextrema() == (0, 0)


def test_large_images_become_small_and_others_are_left_out():
    assert pixels(thumbnail(torch.rand(3, 400, 200), ImageInput())).size == (56, 112)
    for shape in ((5, 8, 8), (8, 8), (12,)):
        with pytest.raises(LeftOut, match="no picture"):
            thumbnail(torch.zeros(shape), ImageInput())
