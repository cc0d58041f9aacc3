from __future__ import annotations

import copy
import pickle
import random
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchdistill.datasets.wrapper import BaseDatasetWrapper
from torchvision import transforms

from gkd_plugin.data import ArrayImages, FixedViews, evaluation_view, labels_of, seeded
from gkd_plugin.data.fixed_views import sketch
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, with_view

SAMPLES = 7
LABELS = [i % 3 for i in range(SAMPLES)]


class Draws(Dataset):
    """Sample i is a number of each global generator."""

    targets = LABELS

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.stack([torch.tensor(random.random()), torch.tensor(np.random.rand()), torch.rand(())]), 0  # noqa: NPY002


class Augmented(ArrayImages):
    def __init__(self):
        images = np.random.default_rng(0).integers(0, 256, (SAMPLES, 12, 12, 3), dtype=np.uint8)
        steps = [transforms.RandomResizedCrop(8), transforms.ColorJitter(0.5), transforms.ToTensor()]
        super().__init__(images, LABELS, ["ant", "bee", "cat"], transforms.Compose(steps))


def states():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


def assert_follows(views, epochs, **workers):
    """In each epoch workers that stay alive show what ``view`` shows in the main process."""
    loader = DataLoader(views, batch_size=2, persistent_workers=True, shuffle=True, **workers)
    for epoch in epochs:
        views.set_epoch(epoch)
        shown = {}
        for images, _, extra in loader:
            shown |= dict(zip(extra["bank_row"].tolist(), images, strict=True))
        expected = [(i, (epoch + i) % views.views) for i in range(SAMPLES)]
        assert sorted(shown) == [i * views.views + v for i, v in expected]
        assert all(torch.equal(shown[i * views.views + v], views.view(i, v)[0]) for i, v in expected)


def test_a_view_repeats_whatever_the_random_states_and_the_order():
    views = FixedViews(Augmented(), 4)
    first = {(i, v): views.view(i, v)[0] for i in range(SAMPLES) for v in range(4)}
    for key in random.sample(sorted(first), len(first)):
        torch.manual_seed(hash(key))
        assert torch.equal(FixedViews(Augmented(), 4).view(*key)[0], first[key])


def test_views_samples_and_seeds_differ():
    views, other = FixedViews(Draws(), 4), FixedViews(Draws(), 4, seed=1)
    drawn = [source.view(i, v)[0] for source in (views, other) for i in range(SAMPLES) for v in range(4)]
    for generator in torch.stack(drawn).T:
        assert len(set(generator.tolist())) == len(drawn)
    assert torch.equal(FixedViews(Draws(), 9).view(3, 1)[0], views.view(3, 1)[0])


def test_the_global_random_states_are_left_alone_after_an_error_too():
    def failing():
        with seeded("key"):
            random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
            raise RuntimeError

    random.gauss(0, 1), np.random.randn(), torch.randn(())  # noqa: NPY002  (each keeps half of a pair)
    before = states()
    FixedViews(Draws(), 2)[3]
    with pytest.raises(RuntimeError):
        failing()
    assert states() == before


def test_samples_name_their_row_and_epochs_change_the_view():
    views = FixedViews(Augmented(), 3)
    shown = []
    for epoch in range(4):
        views.set_epoch(epoch)
        image, label, extra = views[5]
        shown.append(extra["bank_row"])
        assert label == 2
        assert torch.equal(image, views.view(5, extra["bank_row"] - 15)[0])
    assert shown == [17, 15, 16, 17]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_live_workers_show_the_same_views_and_follow_the_epoch(method):
    assert_follows(FixedViews(Augmented(), 3), (0, 1, 5), num_workers=2, multiprocessing_context=method)


def test_what_a_spawned_worker_is_sent_follows_the_epoch():
    views = FixedViews(Augmented(), 3)
    received = pickle.loads(ForkingPickler.dumps(views))
    views.set_epoch(2)
    assert received[0][2]["bank_row"] == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda views: pickle.loads(pickle.dumps(views))])
def test_workers_of_a_copy_follow_the_copy(copied):
    original = FixedViews(Augmented(), 3)
    assert_follows(copied(original), (0, 2), num_workers=1)
    assert original[0][2]["bank_row"] == 0


def test_labels_names_and_evaluation_view_are_those_of_the_dataset():
    views = FixedViews(Augmented(), 2)
    assert labels_of(views) == views.targets == LABELS
    assert views.classes == ["ant", "bee", "cat"]
    view, found = evaluation_view(FixedViews(with_view([0, 1]), 2))
    assert (view[1], found) == (("clean1", 1), True)


@pytest.mark.parametrize(
    ("dataset", "found"),
    [
        (BaseDatasetWrapper(FakeImages([0, 1])), r"BaseDatasetWrapper: .* sample 1 is \(str, int, dict\)"),
        (ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), r"ArrayImages: .* sample 1 is \(Image, int\)"),
    ],
)
def test_other_samples_are_refused(dataset, found):
    with pytest.raises(ConfigError, match=found):
        FixedViews(dataset, 2)[1]


def test_there_are_no_other_samples_or_views():
    with pytest.raises(ConfigError, match="views must be a whole number from 1 up"):
        FixedViews(Draws(), 0)
    for index, view in [(SAMPLES, 0), (-1, 0), (0, 2), (0, -1)]:
        with pytest.raises(IndexError, match="7 samples of 2 views"):
            FixedViews(Draws(), 2).view(index, view)
    assert len([*FixedViews(Draws(), 2)]) == SAMPLES  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(1,), (3, 32, 32), (3, 224, 224)])
def test_a_sketch_tells_images_apart(shape):
    generator = torch.Generator().manual_seed(0)  # single pixels may be near each other
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    assert sketch(first).shape == (8,)
    assert torch.equal(sketch(first), sketch(first.clone()))
    before = sketch(first)
    assert (before - sketch(second)).abs().max() > 0.05
    torch.testing.assert_close(sketch(2 * first), 2 * sketch(first))
    assert sketch(torch.ones(shape)).abs().max() < 4  # brightness does not outweigh the rest
    first.view(-1)[-len(first.view(-1)) // 2 :] += 1  # the end of a large image counts too
    assert (sketch(first) - before).abs().max() > 0.05
