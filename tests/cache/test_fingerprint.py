import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gkd_plugin.cache.fingerprint import bank_keys, data_key, digest, image_keys, model_key, views_key
from gkd_plugin.data import ArrayImages, FixedViews, class_subset, timm_dataset, with_evaluation_view
from gkd_plugin.data.views import fixed_views
from tests.data.fakes import FakeImages, image_tree, noisy, shards
from tests.fakes import TinyImages, TinyNet
from tests.runner.fakes import refused

LABELS = [0, 1, 2, 0, 1]


def pixels():
    return np.arange(5 * 6 * 6 * 3, dtype=np.uint16).astype(np.uint8).reshape(5, 6, 6, 3)


def arrays(images=None, labels=LABELS, transform=None):
    return ArrayImages(pixels() if images is None else images, labels, ["a", "b", "c"], transform)


def views_of(transform, count=2, seed=0):
    return FixedViews(arrays(transform=transform), count, seed)


def tiny(kind=TinyNet):
    torch.manual_seed(0)
    return kind()


def test_parts_do_not_run_together_and_type_shape_and_every_value_of_an_array_count():
    parts = [("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), (["a", "bc"],), ("a", 1), ("a", 2)]
    assert len({digest(*some) for some in parts}) == len(parts)
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(4).bfloat16()]
    assert len({digest(x) for x in (*zeros, *torch.eye(4))}) == 8
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())
    assert digest(pixels()) == digest(pixels().copy()) != digest(pixels()[::-1])


def test_weights_statistics_precision_class_and_settings_change_the_teacher_and_the_place_in_memory_does_not():
    def changed(name):
        model = tiny()
        model.state_dict()[name].view(-1)[-1:].add_(1)
        return model

    other, pooled = tiny(type("Other", (TinyNet,), {})), tiny()
    pooled.pool = nn.AdaptiveMaxPool2d(1)  # has no weights
    sized = tiny()
    sized.own_size = 40, 40  # timm_model's
    models = [tiny(), tiny().half(), tiny().bfloat16(), other, pooled, sized, *map(changed, tiny().state_dict())]
    assert len({model_key(model) for model in models}) == len(models)
    assert len({model_key(tiny(), but=("fc",)), model_key(tiny()), model_key(changed("fc.bias"), but=("fc",))}) == 2
    assert model_key(models[0]) == model_key(tiny()) == model_key(tiny().eval())
    assert model_key(tiny().to(memory_format=torch.channels_last)) == model_key(tiny())


def test_one_pixel_or_label_or_a_choice_of_samples_changes_the_data():
    other, tensors = pixels(), TinyImages()
    other[4, 5, 5, 2] ^= 1
    tensors.images[3, 0, 0, 0] += 1
    made = [
        arrays(),
        arrays(other),
        arrays(labels=[0, 1, 2, 0, 2]),
        *(Subset(arrays(), indices) for indices in ([0, 1], [3, 1], torch.tensor([3, 4]))),
        class_subset(arrays(), [1]),
        class_subset(arrays(other), [1]),
        ConcatDataset([arrays(), arrays()]),
        ConcatDataset([arrays(), arrays(other)]),
        TinyImages(),
        tensors,
    ]
    keys = [data_key(dataset) for dataset in made]
    assert len(set(keys)) == len(made)
    assert data_key(Subset(arrays(), np.array([0, 1]))) == keys[3]
    wrapped = FixedViews(BaseDatasetWrapper(arrays(transform=transforms.ToTensor())), 2)
    assert data_key(wrapped) == keys[0]  # wrappers and transforms do not count


def test_of_unknown_images_the_labels_alone_count():
    made = FakeImages([0, 1])
    assert data_key(made) == data_key(FakeImages([0, 1], prefix="other"))
    assert data_key(made) != data_key(FakeImages([0, 1, 1]))
    for dataset in (made, Subset(made, [0]), ConcatDataset([made, arrays()])):
        assert image_keys(dataset) is None


def test_files_count_by_name_size_and_time_wherever_they_lie(tmp_path):
    folder = image_tree(tmp_path / "images", ["ant", "bee"])
    paths = sorted(folder.glob("*/*"))
    assert image_keys(ImageFolder(folder)) == image_keys(ImageFolder(folder / "ant/..")) == paths
    keys = [data_key(ImageFolder(folder))]
    moved = folder.rename(tmp_path / "moved")
    assert data_key(ImageFolder(moved)) == keys[0]
    file, time = moved / "bee/0.png", (moved / "bee/0.png").stat().st_mtime_ns
    for change in (
        lambda: os.utime(file, ns=(0, time + 1)),
        lambda: (file.write_bytes(file.read_bytes() + b"0"), os.utime(file, ns=(0, time))),
        lambda: file.rename(moved / "bee/2.png"),
    ):
        change()
        keys.append(data_key(ImageFolder(moved)))
    assert len(set(keys)) == 4


def test_each_shard_of_a_stream_counts_by_itself_by_name_size_and_time(tmp_path):
    pytest.importorskip("webdataset")

    def stream(root, **more):
        return timm_dataset("wds/", root, is_training=True, transform=noisy, **more)

    root = shards(tmp_path / "images", [3, 2, 4])
    keys, views = bank_keys(fixed_views(stream(root), 2)), views_key(fixed_views(stream(root), 2))
    assert len(set(keys)) == 3
    assert bank_keys(stream(root, split="train-{0001..0002}.tar|6")) == keys[1:]
    (tmp_path / "deep").mkdir()
    root = root.rename(tmp_path / "deep/images")
    assert bank_keys(stream(root)) == keys
    assert {*bank_keys(stream(root, input_img_mode="L"))}.isdisjoint(keys)
    assert data_key(stream(root)) != data_key(stream(root, class_map={"a": 1}))
    os.utime(root / "train-0001.tar", ns=(0, 1))
    changed = bank_keys(stream(root))
    assert [one == other for one, other in zip(changed, keys, strict=True)] == [True, False, True]
    assert views_key(fixed_views(stream(root), 2)) == views  # not of the shards
    assert views_key(fixed_views(stream(root), 3)) != views
    far = stream(root)
    far.reader.root = "https://example.org/shards"
    refused("only shards on a disk", data_key, far)
    own = np.random.default_rng(0)
    other = timm_dataset("wds/", root, "train-0000.tar|3", transform=lambda _: torch.from_numpy(own.random(3)))
    refused("Stream: a fixed view is different each time", views_key, fixed_views(other, 2))


def test_number_of_views_seed_repr_of_the_transform_and_what_it_makes_change_the_views():
    plain = transforms.ToTensor()  # of which neither the number nor the seed changes a pixel
    made = [views_of(plain), views_of(plain, 3), views_of(plain, seed=1)]
    made += [views_of(transforms.Compose([plain, transforms.RandomHorizontalFlip(p)])) for p in (0.0, 1e-9)]
    made += [views_of(transforms.Lambda(lambda image, k=k: plain(image) + k)) for k in (0, 1)]
    assert len({views_key(views) for views in made}) == len(made)
    assert views_key(views_of(plain)) == views_key(made[0])
    same = [views_of(lambda _: torch.rand(2)) for _ in range(2)]  # but for their addresses in memory
    assert repr(same[0].dataset.transform) != repr(same[1].dataset.transform)
    assert views_key(same[0]) == views_key(same[1])


def test_every_probed_view_counts():
    views, keys = views_of(None, 4), set()
    for other in (None, *((j, j % 4) for j in range(5))):
        views.view = lambda *row, other=other: (torch.tensor(row == other), 0)
        keys.add(views_key(views))
    assert len(keys) == 6


def test_a_transform_with_a_random_state_of_its_own_is_refused():
    generator = np.random.default_rng(0)
    views = views_of(lambda _: torch.from_numpy(generator.random(3)))
    refused("ArrayImages: a fixed view is different each time", views_key, views)


def keys():
    """Of things whose reprs hold addresses."""
    return [model_key(tiny()), data_key(arrays()), views_key(views_of(transforms.Lambda(lambda _: torch.rand(2))))]


@pytest.mark.slow
def test_the_keys_are_the_same_in_another_process():
    script = "from tests.cache.test_fingerprint import keys; print(*keys())"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == keys()


def test_images_in_memory_are_told_apart_by_their_pixels_through_subsets_and_concatenations():
    data, doubled = arrays(), arrays()
    keys = image_keys(data)
    assert len(set(keys)) == 5
    doubled.data[3] = doubled.data[1]
    assert image_keys(doubled) == [*keys[:3], keys[1], keys[4]]
    assert image_keys(Subset(data, [4, 0])) == [keys[4], keys[0]]
    assert image_keys(Subset(class_subset(data, [1]), [1])) == [keys[4]]
    assert image_keys(ConcatDataset([data, Subset(data, [2])])) == [*keys, keys[2]]
    assert image_keys(with_evaluation_view(data, data)) == keys
