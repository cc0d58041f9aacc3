"""How a data set's images are normalised, read off its transforms."""

import pytest
import torch
from timm.data import create_transform
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms
from torchvision.transforms import v2

from gkd_plugin import ConfigError
from gkd_plugin.data import ImageInput, image_transform, normalisation_of, with_evaluation_view
from gkd_plugin.data.transforms import trained_with


class Images(Dataset):
    def __init__(self, transform=None):
        self.transform = transform
        self.targets = [0, 1]

    def __len__(self):
        return 2


MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NORMALISE = transforms.Normalize(MEAN, STD)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([transforms.ToTensor(), NORMALISE]),
        transforms.Compose([transforms.Compose([transforms.ToTensor()]), transforms.Compose([NORMALISE])]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        nn.Sequential(transforms.RandomHorizontalFlip(), NORMALISE),
        transforms.Normalize([255 * m for m in MEAN], [255 * s for s in STD]),
        transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        transforms.Compose([lambda x: x, transforms.ToTensor(), NORMALISE, transforms.RandomErasing()]),
        image_transform(32, MEAN, STD, train=True, padding=2),
        create_transform(32, is_training=True, auto_augment="rand-m9", mean=MEAN, std=STD, re_prob=0.2),
        create_transform(32, is_training=False, mean=MEAN, std=STD),
    ],
)
def test_a_normalisation_is_found(transform):
    found = normalisation_of(Images(transform))
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)
    assert found.size is None


@pytest.mark.parametrize(
    "transform", [transforms.ToTensor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])]
)
def test_scaling_alone_is_mean_0_and_std_1(transform):
    assert normalisation_of(Images(transform)) == ImageInput((0.0,), (1.0,))


@pytest.mark.parametrize(
    "transform",
    [
        None,
        transforms.PILToTensor(),
        lambda x: x,
        transforms.Compose([NORMALISE, NORMALISE]),
        v2.ToDtype(torch.float32),
        transforms.Compose([transforms.ToTensor(), transforms.Lambda(lambda x: (x - 0.5) / 0.25)]),
        transforms.Compose([transforms.ToTensor(), NORMALISE, transforms.Lambda(lambda x: 255 * x)]),
        transforms.Compose([transforms.ToTensor(), lambda x: 2 * x]),
        transforms.Compose([transforms.ToTensor(), transforms.RandomApply([NORMALISE])]),
        type("Normalize", (), {})(),
        transforms.Normalize("x", "y"),
    ],
)
def test_what_cannot_be_told_stays_open(transform):
    assert normalisation_of(Images(transform)) == ImageInput()


def test_wrappers_are_seen_through():
    known = Images(NORMALISE)
    for dataset in (Subset(known, [0]), with_evaluation_view(known, Images()), ConcatDataset([known, known])):
        assert normalisation_of(dataset).mean == pytest.approx(MEAN)
    assert normalisation_of(ConcatDataset([known, Images(transforms.ToTensor())])) == ImageInput()


def test_a_record_is_read_back():
    known = ImageInput((0.5,), (0.25,), (32, 48))
    assert trained_with(known.as_dict()) == known
    assert trained_with(ImageInput().as_dict()) == ImageInput()
    with pytest.raises(ConfigError, match="no description of images"):
        trained_with({"mean": "x"})
