import itertools
import json

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms
from torchvision.transforms import v2

from gkd_plugin.data import ImageInput, image_transform, normalisation_of, with_evaluation_view
from gkd_plugin.data.transforms import preprocessing_of, trained_with
from tests.runner.fakes import refused

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NORMALISE = transforms.Normalize(MEAN, STD)


class Images(Dataset):
    targets = (0, 1)

    def __init__(self, *steps):
        self.transform = transforms.Compose(steps) if len(steps) > 1 else (*steps, None)[0]

    def __len__(self):
        return 2


def grey(size=8, **arguments):
    return image_transform(size, [0.0], [1.0], **arguments)


def results(transform, image, count=20):
    torch.manual_seed(0)
    return {tuple(transform(image).flatten().tolist()) for _ in range(count)}


def test_every_image_gets_the_size_and_evaluation_only_normalises_one_that_has_it():
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    tensor = image_transform(4, [0.5, 0.5, 0.2], [0.5, 0.25, 1.0])(image)
    expected = torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1).expand(3, 4, 4)
    assert torch.allclose(tensor, expected, atol=1e-6)
    for shape, train in itertools.product([(4, 4), (16, 10), (9, 25)], [False, True]):
        assert grey(train=train)(Image.new("L", shape)).shape == (1, 8, 8)


def test_padding_flip_and_a_larger_shorter_side_augment():
    image = Image.linear_gradient("L").resize((8, 8)).rotate(90)
    assert len(results(grey(train=True, padding=2), image)) > 2
    plain = grey()(image)
    seen = results(grey(train=True, flip=True), image)
    assert seen == {tuple(plain.flatten().tolist()), tuple(plain.flip(2).flatten().tolist())}
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (2, 2, 6, 6))
    assert torch.equal(grey(4, resize=8)(image), torch.ones(1, 4, 4))
    assert len(results(grey(4, train=True, resize=8), image)) > 2


def test_a_part_of_the_image_is_stretched_to_the_size():
    image = Image.linear_gradient("L").resize((12, 20))
    seen = results(grey(train=True, crop="resized", scale=[0.1, 0.2]), image)
    assert {len(values) for values in seen} == {64}
    assert max(max(values) - min(values) for values in seen) < 0.7  # ≤ √(0.2 · 4/3 · 12 / 20) of the height
    whole = grey()(image)
    assert float(whole.max() - whole.min()) > 0.5


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
        ({"resize": 7}, "resize must be a whole number in 8 …"),
        ({"size": 0}, "size must be"),
        ({"padding": -1, "train": True}, "padding must be"),
        ({"std": [0.5, 0.5]}, "mean and std must be of one length"),
        ({"std": [0.0]}, "std: must be a number above 0"),
        ({"std": [float("nan")]}, "std: must be a number above 0"),
        ({"mean": ["0.5"]}, "mean: must be a number for each channel"),
        ({"mean": [float("nan")]}, "mean: must be a number for each channel"),
        ({"mean": [123.7]}, "mean and std must be .* at most 4"),
        ({"mean": None}, "mean and std must be"),
        ({"size": 1_000_000}, "size must be"),
        ({"flip": True}, "need train=True"),
        ({"padding": 4}, "need train=True"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    refused(message, image_transform, **{"size": 8, "mean": [0.5], "std": [0.5], **arguments})


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([transforms.Compose([transforms.ToTensor()]), transforms.Compose([NORMALISE])]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        nn.Sequential(transforms.RandomHorizontalFlip(), NORMALISE),
        transforms.Normalize([255 * m for m in MEAN], [255 * s for s in STD]),
        transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        transforms.Compose([lambda x: x, transforms.ToTensor(), NORMALISE, transforms.RandomErasing()]),
        image_transform(32, MEAN, STD, train=True, padding=2),
        create_transform(32, is_training=True, auto_augment="rand-m9", mean=MEAN, std=STD, re_prob=0.2),
    ],
)
def test_a_normalisation_is_found_in_wrappers_too(transform):
    known = Images(transform)
    for dataset in (known, Subset(known, [0]), with_evaluation_view(known, Images()), ConcatDataset([known, known])):
        found = normalisation_of(dataset)
        assert (found.mean, found.std, found.size) == (pytest.approx(MEAN), pytest.approx(STD), None)


def test_scaling_alone_is_mean_0_and_std_1():
    for step in (transforms.ToTensor(), v2.ToDtype(torch.float32, scale=True)):
        assert normalisation_of(Images(step)) == ImageInput((0.0,), (1.0,))


@pytest.mark.parametrize(
    "dataset",
    [
        Images(),
        Images(transforms.PILToTensor()),
        Images(NORMALISE, NORMALISE),
        Images(v2.ToDtype(torch.float32)),
        Images(NORMALISE, v2.ToDtype(torch.uint8)),
        Images(transforms.ToTensor(), transforms.Lambda(lambda x: (x - 0.5) / 0.25)),
        Images(transforms.ToTensor(), NORMALISE, lambda x: 2 * x),
        Images(transforms.ToTensor(), transforms.RandomApply([NORMALISE])),
        Images(type("Normalize", (), {})()),
        Images(type("Compose", (), {})()),
        Images(transforms.Normalize("x", "y")),
        ConcatDataset([Images(NORMALISE), Images(transforms.ToTensor())]),
    ],
)
def test_what_cannot_be_told_stays_open(dataset):
    assert normalisation_of(dataset) == ImageInput()


def test_a_record_is_read_back():
    for known in (ImageInput((0.5,), (0.25,), (32, 48)), ImageInput()):
        assert trained_with(vars(known)) == known
    for record in ({"mean": "x"}, {"size": [3]}, {"std": 1}):
        refused("no description of images", trained_with, record)


RESIZED = image_transform(8, MEAN, STD, resize=10)
TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), NORMALISE]


@pytest.mark.parametrize(
    ("transform", "share", "mode", "interpolation"),
    [
        (RESIZED, 0.8, "center", "bilinear"),
        (image_transform(8, MEAN, STD, resize=11), 8 / 11, "center", "bilinear"),
        (image_transform(32, MEAN, STD, resize=93), 32 / 93.5, "center", "bilinear"),  # 32 / (32 / 93) is below 93
        (create_transform(8, mean=MEAN, std=STD, crop_pct=0.8, interpolation="bicubic"), 0.8, "center", "bicubic"),
        (create_transform(8, mean=MEAN, std=STD, crop_pct=1.0, crop_mode="squash"), 1, "squash", "bilinear"),
        (create_transform((3, 8, 4), mean=MEAN, std=STD, crop_pct=0.5, crop_mode="squash"), 0.5, "squash", "bilinear"),
        (v2.Compose([v2.Resize((8, 8), v2.InterpolationMode.NEAREST), *TENSOR]), 1, "squash", "nearest"),
        (v2.Compose([v2.Resize(10), v2.CenterCrop(8), *TENSOR]), 0.8, "center", "bilinear"),
    ],
)
def test_how_a_photo_is_prepared_is_told_in_timms_words(transform, share, mode, interpolation):
    photo = Image.effect_noise((20, 16), 90).convert("RGB")
    known = preprocessing_of(Subset(Images(transform), [1]), transform(photo)[None])
    about = {"crop_pct": pytest.approx(share), "crop_mode": mode, "interpolation": interpolation}
    size = tuple(transform(photo).shape)
    assert known == {"input_size": size, "mean": pytest.approx(MEAN), "std": pytest.approx(STD), **about}
    made = create_transform(**json.loads(json.dumps(known)))
    assert torch.allclose(made(photo), transform(photo), atol=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [transforms.CenterCrop(12), transforms.Resize(8)],
        [transforms.Resize(10), transforms.RandomCrop(8)],
        [transforms.Resize(10, max_size=12), transforms.CenterCrop(8)],
        [transforms.Resize((10, 12)), transforms.CenterCrop(8)],
        [transforms.Lambda(lambda image: image), transforms.Resize(8)],
        [type("Resize", (), {})()],
    ],
)
def test_what_timm_has_no_words_for_is_left_out(steps):
    images = torch.zeros(2, 3, 8, 8)
    known = {"input_size": (3, 8, 8), "mean": pytest.approx(MEAN), "std": pytest.approx(STD)}
    assert preprocessing_of(Images(*steps, transforms.ToTensor(), NORMALISE), images) == known
    assert preprocessing_of(ConcatDataset([Images(RESIZED), Images(image_transform(8, MEAN, STD))]), images) == known
    assert preprocessing_of(Images(), images) == {"input_size": (3, 8, 8)}
