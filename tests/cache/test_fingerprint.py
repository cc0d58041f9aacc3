from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gkd_plugin.cache.fingerprint import Fingerprint, data_key, image_keys, teacher_key, views_key
from gkd_plugin.data import ArrayImages, FixedViews, class_subset, with_evaluation_view
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages
from tests.fakes import TinyImages, TinyNet

PARTS = ("teacher", "data", "views", "preprocessing")
LABELS = [0, 1, 2, 0, 1]


def pixels():
    return np.arange(5 * 6 * 6 * 3, dtype=np.uint16).astype(np.uint8).reshape(5, 6, 6, 3)


def arrays(images=None, labels=LABELS, transform=None):
    return ArrayImages(pixels() if images is None else images, labels, ["a", "b", "c"], transform)


class Wrapper(Dataset):
    """As torchdistill's ``BaseDatasetWrapper``."""

    def __init__(self, dataset):
        self.org_dataset = dataset


def tiny():
    torch.manual_seed(0)
    return TinyNet()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_changes_the_digest_and_is_named(part):
    first = Fingerprint("1", "2", "3", "4")
    second = dataclasses.replace(first, **{part: "other"})
    assert first.digest != second.digest
    assert first.differences(second) == [part]
    assert first.differences(Fingerprint("1", "2", "3", "4")) == []


def test_the_parts_do_not_run_together():
    assert Fingerprint("1", "23", "", "4").digest != Fingerprint("12", "3", "", "4").digest


def test_a_teacher_has_one_key_wherever_it_lies_in_memory():
    model = tiny()
    assert teacher_key(model) == teacher_key(tiny()) == teacher_key(model.eval())
    assert teacher_key(model.to(memory_format=torch.channels_last)) == teacher_key(tiny())


def test_one_weight_or_statistic_changes_the_teacher():
    keys = {teacher_key(tiny())}
    for name in tiny().state_dict():
        model = tiny()
        model.state_dict()[name].view(-1)[-1:].add_(1)
        keys.add(teacher_key(model))
    assert len(keys) == 1 + len(tiny().state_dict())


def test_equal_bytes_of_another_type_are_another_teacher():
    models = [nn.Module(), nn.Module()]
    for model, dtype in zip(models, (torch.float32, torch.int32), strict=True):
        model.register_buffer("zeros", torch.zeros(3, dtype=dtype))
    assert teacher_key(models[0]) != teacher_key(models[1])


def test_precision_class_and_settings_change_the_teacher():
    class Other(TinyNet):
        pass

    torch.manual_seed(0)
    other = Other()
    pooled = tiny()
    pooled.pool = nn.AdaptiveMaxPool2d(1)  # has no weights
    keys = [teacher_key(model) for model in (tiny(), tiny().half(), tiny().bfloat16(), other, pooled)]
    assert len(set(keys)) == 5


def test_one_pixel_or_label_changes_the_data():
    other = pixels()
    other[4, 5, 5, 2] ^= 1
    keys = [data_key(dataset) for dataset in (arrays(), arrays(other), arrays(labels=[0, 1, 2, 0, 2]))]
    assert len(set(keys)) == 3
    assert data_key(arrays()) == keys[0]


def test_a_tensor_in_memory_counts():
    changed = TinyImages()
    changed.images[3, 0, 0, 0] += 1
    assert data_key(TinyImages()) == data_key(TinyImages()) != data_key(changed)
    stacks = [TensorDataset(torch.full((2, 1), value)) for value in (0.0, 1.0)]
    for stack in stacks:
        stack.targets = [0, 1]
    assert data_key(stacks[0]) != data_key(stacks[1])


def test_subsets_count_by_their_indices():
    same_labels = [Subset(arrays(), indices) for indices in ([0, 1], [3, 1], torch.tensor([3, 4]))]
    keys = [data_key(dataset) for dataset in (arrays(), *same_labels, class_subset(arrays(), [0]))]
    assert len(set(keys)) == 5
    assert data_key(Subset(arrays(), np.array([0, 1]))) == keys[1]


def test_subsets_see_the_images_below_them():
    other = pixels()
    other[0, 0, 0, 0] ^= 1
    assert data_key(class_subset(arrays(), [0])) != data_key(class_subset(arrays(other), [0]))
    assert data_key(ConcatDataset([arrays(), arrays()])) != data_key(ConcatDataset([arrays(), arrays(other)]))


def test_wrappers_and_transforms_do_not_change_the_data():
    wrapped = FixedViews(Wrapper(arrays(transform=transforms.ToTensor())), 2)
    assert data_key(wrapped) == data_key(arrays())


def test_of_unknown_data_the_class_and_length_count():
    assert data_key(FakeImages([0, 1])) == data_key(FakeImages([0, 1], prefix="other"))
    assert data_key(FakeImages([0, 1])) != data_key(FakeImages([0, 1, 1]))


@pytest.fixture
def folder(tmp_path):
    for name in ("ant/0.png", "bee/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
        os.utime(tmp_path / "images" / name, ns=(0, 10**18))
    return tmp_path / "images"


def test_files_count_by_name_size_and_time(folder, tmp_path):
    before = data_key(ImageFolder(folder))
    assert data_key(ImageFolder(folder)) == before
    moved = folder.rename(tmp_path / "moved")
    assert data_key(ImageFolder(moved)) == before
    os.utime(moved / "bee/1.png", ns=(0, 10**18 + 1))
    touched = data_key(ImageFolder(moved))
    (moved / "bee/1.png").rename(moved / "bee/2.png")
    assert len({before, touched, data_key(ImageFolder(moved))}) == 3


def test_the_number_of_views_seed_and_transform_change_the_views():
    made = [
        FixedViews(arrays(transform=transforms.RandomCrop(4)), 2),
        FixedViews(arrays(transform=transforms.RandomCrop(4)), 3),
        FixedViews(arrays(transform=transforms.RandomCrop(4)), 2, seed=1),
        FixedViews(arrays(transform=transforms.RandomCrop(3)), 2),
    ]
    assert len({views_key(views) for views in made}) == 4
    assert views_key(FixedViews(arrays(transform=transforms.RandomCrop(4)), 2)) == views_key(made[0])


def test_without_random_transform_the_number_of_views_and_seed_still_count():
    made = [FixedViews(arrays(), 2), FixedViews(arrays(), 3), FixedViews(arrays(), 2, seed=1)]
    assert len({views_key(views) for views in made}) == 3


def test_addresses_in_memory_do_not_count():
    views = [FixedViews(arrays(transform=lambda _: torch.rand(2)), 2) for _ in range(2)]
    assert repr(views[0].dataset.transform) != repr(views[1].dataset.transform)
    assert views_key(views[0]) == views_key(views[1])


def test_a_change_that_the_repr_does_not_show_changes_the_views():
    by_code = [FixedViews(arrays(transform=lambda image, k=k: np.asarray(image) + k), 2) for k in (0, 1)]
    assert views_key(by_code[0]) != views_key(by_code[1])


def test_a_change_that_the_probes_do_not_show_changes_the_views():
    rare = [transforms.RandomHorizontalFlip(p) for p in (0.0, 1e-9)]
    keys = [views_key(FixedViews(Subset(arrays(transform=transform), [0, 1]), 2)) for transform in rare]
    assert keys[0] != keys[1]


def test_every_view_has_a_probe():
    drawn = []

    def transform(_):
        drawn.append(float(torch.rand(())))
        return torch.zeros(1) + (drawn[-1] in special)

    views, special = FixedViews(arrays(transform=transform), 4), []
    before = views_key(views)
    for number in set(drawn):
        special = [number]
        assert views_key(views) != before
    special = []
    assert views_key(views) == before
    assert {float(FixedViews(arrays(transform=lambda _: torch.rand(())), 4).view(j, j % 4)[0]) for j in range(5)} == {
        *drawn
    }


def test_a_transform_with_a_random_state_of_its_own_is_refused():
    generator = np.random.default_rng(0)
    views = FixedViews(arrays(transform=lambda _: generator.random(3)), 2)
    with pytest.raises(ConfigError, match=r"ArrayImages: view 0 of sample 0 is different each time"):
        views_key(views)


def keys():
    """Of things whose reprs hold addresses."""
    views = FixedViews(arrays(transform=transforms.Lambda(lambda _: torch.rand(2))), 2)
    return [teacher_key(tiny()), data_key(arrays()), views_key(views)]


@pytest.mark.slow
def test_the_keys_are_the_same_in_another_process():
    script = "from tests.test_fingerprint import keys; print(*keys())"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == keys()


def pictures(count=6, seed=0):
    rows = np.random.default_rng(seed).integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return ArrayImages(rows, [index % 2 for index in range(count)])


def test_images_in_memory_are_told_apart_by_their_pictures():
    keys = image_keys(pictures())
    assert len(set(keys)) == 6
    assert image_keys(pictures()) == keys
    assert not set(image_keys(pictures(seed=1))) & set(keys)
    doubled = pictures()
    doubled.data[3] = doubled.data[1]
    assert image_keys(doubled)[3] == keys[1]


def test_subsets_and_concatenations_pick_keys():
    data = pictures()
    keys = image_keys(data)
    assert image_keys(Subset(data, [4, 0])) == [keys[4], keys[0]]
    assert image_keys(class_subset(data, [1])) == keys[1::2]
    assert image_keys(Subset(class_subset(data, [1]), [2])) == [keys[5]]
    assert image_keys(ConcatDataset([data, Subset(data, [2])])) == [*keys, keys[2]]
    assert image_keys(with_evaluation_view(data, data)) == keys


def test_files_are_told_apart_by_their_paths(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert image_keys(folder) == [str(tmp_path / name) for name in ("a/1.png", "a/2.png", "b/1.png")]
    assert image_keys(ImageFolder(tmp_path / "a/..")) == image_keys(folder)


def test_other_data_sets_have_no_keys():
    class Made(Dataset):
        def __len__(self):
            return 3

    assert image_keys(Made()) is None
    assert image_keys(Subset(Made(), [0])) is None
    assert image_keys(ConcatDataset([Made(), pictures()])) is None
