import logging

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms

from gkd_plugin.data import ImageInput
from gkd_plugin.models import timm_model
from gkd_plugin.runner.rehearsal import undisturbed
from gkd_plugin.teacher.input import TeacherInput, checked_size, given_input, own_input
from tests.fakes import TinyNet
from tests.runner.fakes import refused

IMAGENET = ImageInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZED, GREY = ImageInput(HALF.mean, HALF.std, (40, 40)), ImageInput((0.5,), (0.5,))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def given_as(known):
    """An image with this normalisation."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(known.mean, known.std)])(PIXELS)[None]


CHANNEL = st.tuples(st.floats(-1, 1), st.floats(0.05, 3), st.floats(-1, 1), st.floats(0.05, 3))


@settings(max_examples=25)
@given(numbers=st.lists(CHANNEL, min_size=3, max_size=3))
def test_it_is_what_the_teachers_own_transform_gives(numbers):
    mean_d, std_d, mean_t, std_t = zip(*numbers, strict=True)
    data, teacher = ImageInput(mean_d, std_d), ImageInput(mean_t, std_t)
    torch.testing.assert_close(TeacherInput(data, teacher)(given_as(data)), given_as(teacher), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", [ImageInput((0.0,), (1.0,)), ImageInput((0.0,), (1 / 255,)), GREY])
def test_one_number_for_all_channels(data):
    torch.testing.assert_close(TeacherInput(data, IMAGENET)(given_as(data)), given_as(IMAGENET), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [16, 61, 224])
def test_sizes_are_changed_as_torchvision_does_before_or_after_the_normalisation(size):
    x = given_as(HALF)
    resized = transforms.functional.resize(x, [size, size], transforms.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(TeacherInput(HALF, ImageInput(HALF.mean, HALF.std, (size, size)))(x), resized)
    both = TeacherInput(HALF, ImageInput(IMAGENET.mean, IMAGENET.std, (size, size)))
    torch.testing.assert_close(both(x), TeacherInput(HALF, IMAGENET)(resized), rtol=1e-4, atol=1e-5)
    assert both(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("data", "teacher"), [(HALF, HALF), (HALF, SIZED), (GREY, HALF), (ImageInput(), IMAGENET), (HALF, ImageInput())]
)
def test_nothing_is_done_where_nothing_differs(data, teacher, caplog):
    caplog.set_level(logging.INFO)
    x, own = given_as(HALF), TeacherInput(data, teacher)
    assert own(x) is x
    own.log(x, TinyNet(), "data")
    assert "'data' leaves them" not in caplog.text


def test_other_channels_are_refused():
    two = ImageInput((0.0, 0.0), (1.0, 1.0))
    refused(r"takes images of 3 channels \(mean .*\), the data has 2", TeacherInput, two, IMAGENET)
    refused("of 3 channels, the data has 1", TeacherInput(GREY, IMAGENET), torch.zeros(1, 1, 8, 8))
    assert torch.equal(TeacherInput(GREY, ImageInput((1.5,), (1.0,)))(torch.zeros(1, 3, 8, 8)), -torch.ones(1, 3, 8, 8))


def test_own_input_of_timms_and_other_models():
    model = timm_model("test_vit", num_classes=2)
    cfg = timm.create_model("test_vit").pretrained_cfg
    assert own_input(model, "auto") == ImageInput(cfg["mean"], cfg["std"], cfg["input_size"][1:])
    assert own_input(model, "data") == ImageInput()
    model.image_input = ImageInput((0.1,), (0.2,), (8, 8))
    assert own_input(model, "auto") == model.image_input
    assert own_input(model, "pretrained").size == (160, 160)
    assert own_input(timm_model("test_vit", img_size=48), "auto").size == (48, 48)
    assert own_input(timm_model("test_vit", in_chans=1), "auto") == ImageInput(size=(160, 160))
    assert own_input(torch.nn.Linear(2, 2), "pretrained") == ImageInput()


def test_settings_are_read_and_numbers_that_are_none_are_refused():
    for name, value in (("mean", "x"), ("mean", []), ("std", [0.0]), ("std", -1), ("mean", [True]), ("mean", [None])):
        given = {"mean": None, "std": None, name: value}
        refused(f"^data_{name}: must be a number.* for each channel", given_input, **given, prefix="data_")
    for size in ("224", 0, [1, 2, 3], [1.5, 2], True):
        refused("input_size: must be a number of pixels or", checked_size, size)
    assert given_input(0.5, [1, 2.0], 32) == ImageInput((0.5,), (1.0, 2.0), (32, 32))
    known = ImageInput((0.1,), (0.2,), (8, 8))
    assert given_input(None, None, known=known) == known
    assert given_input(0.5, None, [8, 9], known=known) == ImageInput((0.5,), (0.2,), (8, 9))
    assert given_input(None, None) == ImageInput()


OWN = ImageInput(HALF.mean, HALF.std, (48, 48))
ZERO_ONE = ImageInput((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("data", "own", "preprocessing", "is_known", "level", "said"),
    [
        (ZERO_ONE, OWN, "auto", True, "INFO", "resized from 32 × 40 to 48 × 48 pixels"),
        (ZERO_ONE, OWN, "auto", True, "INFO", "(0.5, 0.5, 0.5) instead of the student's (0, 0, 0) and (1, 1, 1)"),
        (ZERO_ONE, OWN, "auto", False, "WARNING", "timm's pretrained_cfg is taken"),
        (ZERO_ONE, OWN, "pretrained", False, "INFO", "'data' leaves them as they are"),
        (ZERO_ONE, ImageInput(), "auto", True, "INFO", "does not say what images it was trained with"),
        (ZERO_ONE, ImageInput(), "data", True, None, None),
        (ImageInput(), HALF, "auto", True, "WARNING", "does not show how its images are normalised"),
    ],
)
def test_what_is_done_to_the_images_is_logged_once_for_each_teacher(
    data, own, preprocessing, is_known, level, said, caplog
):
    caplog.set_level(logging.INFO)
    teacher = TinyNet()
    if not is_known:
        teacher.has_weights_of_unknown_input = True
    with undisturbed(torch.device("cpu")):  # the rehearsal, which says nothing
        TeacherInput(data, own).log(torch.zeros(2, 3, 32, 40), teacher, preprocessing)
    for _ in range(2):
        TeacherInput(data, own).log(torch.zeros(2, 3, 32, 40), teacher, preprocessing)
    assert [(r.levelname, said in r.getMessage()) for r in caplog.records] == ([(level, True)] if level else [])
    assert ("timm's" in caplog.text) == (said is not None and "timm's" in said)
