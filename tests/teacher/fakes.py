"""Teachers and batches that the tests of this folder share."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from gkd_plugin.data import ArrayImages, overlap_subset
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import Answers, ClassMap, RefilledTeacher
from tests.fakes import TinyImages

SHARED = ClassMap(said=[0, None, 2, None])


def make_teacher(own_classes=5, **kwargs):
    torch.manual_seed(0)
    return RefilledTeacher(timm_model("test_resnet", num_classes=own_classes), **{"preprocessing": "data", **kwargs})


def batches(count=3, classes=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % classes) for _ in range(count)]


def box_over(dataset):
    """As much of torchdistill's box as a wrapper looks at."""
    return SimpleNamespace(train_data_loader=DataLoader(dataset))


def normalised(mean, std):
    """A training set whose transform ends so."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    return ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], transform=transform)


def pets(names=("cat", "dog", "newt")):
    data = TinyImages(classes=len(names))
    data.classes = list(names)
    return data


def overlapping(names=None, overlap=0.5):
    """Four classes, of which a teacher of the first four of six has two, too."""
    return overlap_subset(pets(names) if names else TinyImages(classes=6), 4, "student", overlap=overlap)


def record(model, *paths):
    """The last output of each module, by path."""
    seen = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    return seen


def said(n=48, classes=4, width=6, seed=0):
    """What a teacher of five classes says of n images, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    embedding = 2 * centres[labels] + torch.randn(n, width, generator=generator)
    own = torch.randn(n, 5, generator=generator) + 2 * functional.one_hot(labels, 5)
    return Answers(embedding, logits=own), labels
