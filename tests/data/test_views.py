import copy
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper
from torchvision import transforms

from gkd_plugin.data.images import ArrayImages
from gkd_plugin.data.labels import class_groups_of, labels_of, teacher_labels_of
from gkd_plugin.data.splits import class_split, class_subset, few_shot_subset, incremental_subset
from gkd_plugin.data.streams import timm_dataset
from gkd_plugin.data.views import FixedViews, evaluation_view, fixed_views, seeded, sketch, with_evaluation_view
from tests.data.fakes import FakeImages, fixed_by_hand, noisy, random_states, samples, shards, with_view
from tests.fakes import ViewedImages
from tests.runner.fakes import refused

SAMPLES = 7
LABELS = [i % 3 for i in range(SAMPLES)]


def array_images(transform="augmented", **given):
    given = {name: lambda _, text=text: text for name, text in {"transform": transform, **given}.items()}
    return ArrayImages(np.zeros((3, 4, 4), np.uint8), [2, 0, 1], **given)


class Delegating(FakeImages):
    """Passes on attributes of what is inside, whose view is not its own."""

    def __getattr__(self, name):
        return getattr(array_images(eval_transform="clean"), name)


@pytest.mark.parametrize(
    "dataset", [FakeImages([0, 1]), Subset(FakeImages([0, 1]), [1]), array_images(), Delegating([0])]
)
def test_a_dataset_that_offers_none_is_returned_unwrapped(dataset):
    assert evaluation_view(dataset) == (dataset, False)
    assert evaluation_view(BaseDatasetWrapper(dataset)) == (dataset, False)
    view, found = evaluation_view(Subset(BaseDatasetWrapper(dataset), [0]))
    assert (view[0], found) == (dataset[0], False)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (BaseDatasetWrapper(with_view([0, 1])), [("clean0", 0), ("clean1", 1)]),
        (FixedViews(with_view([0, 1]), 2), [("clean0", 0), ("clean1", 1)]),
        (Subset(BaseDatasetWrapper(with_view([0, 1, 2])), [2, 0]), [("clean2", 2), ("clean0", 0)]),
        (Subset(class_subset(with_view([0, 1, 2, 1]), [1]), [1]), [("clean3", 0)]),
        (class_subset(class_subset(with_view([0, 1, 2, 1]), [1, 2]), [1]), [("clean2", 0)]),
        (class_split(with_view([0, 1, 2]), "b", {"a": 1, "b": 2}), [("clean1", 0), ("clean2", 1)]),
        (class_subset(array_images(eval_transform="clean"), [2, 1]), [("clean", 0), ("clean", 1)]),
        (with_evaluation_view(FakeImages([1]), FakeImages([1], prefix="clean")), [("clean0", 1)]),
    ],
)
def test_the_view_has_the_same_samples_through_wrappers_and_subsets(dataset, expected):
    view, found = evaluation_view(dataset)
    assert found
    assert samples(view) == expected
    assert labels_of(view) == labels_of(dataset)
    assert not evaluation_view(view)[1]


def test_a_dataset_that_is_its_own_view_is_found_in_a_subset():
    dataset = ViewedImages()
    for subset in (Subset(dataset, [1]), class_subset(dataset, [1])):
        assert evaluation_view(subset) == (subset, True)


def test_the_view_keeps_what_is_known_of_the_classes():
    subset = incremental_subset(with_view([0, 1, 2] * 4), 2, 1, 3)
    for dataset in (evaluation_view(subset)[0], evaluation_view(few_shot_subset(subset, shots=2))[0]):
        assert teacher_labels_of(dataset) == [0, 1, None]
        assert dataset.teacher_num_classes == 2
        assert class_groups_of(dataset) == {"old": [0, 1], "new": [2]}


def test_attaching_a_view_keeps_samples_labels_and_names_and_refuses_other_samples():
    dataset = FakeImages([0, 1], ["ant", "bee"], "augmented")
    both = with_evaluation_view(dataset, FakeImages([0, 1]))
    assert samples(both) == samples(dataset)
    assert (both.targets, both.classes) == ([0, 1], ["ant", "bee"])
    for labels, message in (
        ([0], "sample 1 has label None, but 1 .*the view 1, the other 2"),
        ([0, 1, 1], "sample 2 has label 1, but None .*the view 3, the other 2"),
        ([0, 0], "sample 1 has label 0, but 1"),
    ):
        refused(message, with_evaluation_view, dataset, FakeImages(labels))


class Draws(FakeImages):
    """A sample is a number of each global generator."""

    def __getitem__(self, index):
        return torch.stack([torch.tensor(random.random()), torch.tensor(np.random.rand()), torch.rand(())]), 0  # noqa: NPY002


class Augmented(ArrayImages):
    def __init__(self):
        images = np.random.default_rng(0).integers(0, 256, (SAMPLES, 12, 12, 3), dtype=np.uint8)
        steps = [transforms.RandomResizedCrop(8), transforms.ColorJitter(0.5), transforms.ToTensor()]
        super().__init__(images, LABELS, ["ant", "bee", "cat"], transforms.Compose(steps))


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
    views, other = FixedViews(Draws(LABELS), 4), FixedViews(Draws(LABELS), 4, seed=1)
    drawn = [source.view(i, v)[0] for source in (views, other) for i in range(SAMPLES) for v in range(4)]
    for generator in torch.stack(drawn).T:
        assert len(set(generator.tolist())) == len(drawn)
    assert torch.equal(FixedViews(Draws(LABELS), 9).view(3, 1)[0], views.view(3, 1)[0])


def test_the_global_random_states_are_left_alone_after_an_error_too():
    def failing():
        with seeded("key"):
            random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
            raise RuntimeError

    random.gauss(0, 1), np.random.randn(), torch.randn(())  # noqa: NPY002  (each keeps half of a pair)
    before = random_states()
    FixedViews(Draws(LABELS), 2)[3]
    with pytest.raises(RuntimeError):
        failing()
    assert random_states() == before


def test_samples_name_their_row_and_epochs_change_the_view():
    views, shown = FixedViews(Augmented(), 3), []
    assert (views.targets, views.classes) == (LABELS, ["ant", "bee", "cat"])
    for epoch in range(4):
        views.set_epoch(epoch)
        image, label, extra = views[5]
        shown.append(extra["bank_row"])
        assert (label, extra["sketch"].tolist()) == (2, sketch(image).tolist())
        assert torch.equal(image, views.view(5, extra["bank_row"] - 15)[0])
    assert shown == [17, 15, 16, 17]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_live_workers_show_the_same_views_and_follow_the_epoch(method):
    assert_follows(FixedViews(Augmented(), 3), (0, 1, 5), num_workers=2, multiprocessing_context=method)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda views: pickle.loads(pickle.dumps(views))])
def test_workers_of_a_copy_follow_the_copy_and_a_spawned_worker_the_original(copied):
    original = FixedViews(Augmented(), 3)
    received = pickle.loads(ForkingPickler.dumps(original))
    assert_follows(copied(original), (0, 2), num_workers=1)
    assert original[0][2]["bank_row"] == received[0][2]["bank_row"] == 0
    original.set_epoch(2)
    assert received[0][2]["bank_row"] == 2


def test_other_samples_and_views_are_refused():
    for dataset, views, found in (
        (BaseDatasetWrapper(FakeImages([0, 1])), 2, r"BaseDatasetWrapper: .* sample 1 is \(str, int, dict\)"),
        (ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), 2, r"ArrayImages: .* sample 1 is \(Image, int\)"),
        (Draws(LABELS), 0, "views must be a whole number from 1 up"),
    ):
        refused(found, lambda dataset=dataset, views=views: FixedViews(dataset, views)[1])
    for index, view in [(SAMPLES, 0), (-1, 0), (0, 2), (0, -1)]:
        with pytest.raises(IndexError, match="7 samples of 2 views"):
            FixedViews(Draws(LABELS), 2).view(index, view)
    assert len([*FixedViews(Draws(LABELS), 2)]) == SAMPLES  # type: ignore[misc]


@pytest.fixture
def stream(tmp_path):
    """Of 5, 6 and 4 samples."""
    pytest.importorskip("webdataset")
    return timm_dataset("wds/", shards(tmp_path / "shards", [5, 6, 4]), transform=noisy, is_training=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_shows_the_views_of_its_samples_in_any_order(workers, stream):
    views, rows = fixed_views(stream, 3), fixed_by_hand(Path(stream.reader.root), 3)
    loader = views.make_loader(SequentialSampler([]), 2, workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 2, 4):
        loader.dataset.set_epoch(epoch)
        shown = {}
        for images, labels, extra in loader:
            shown |= dict(zip(extra["bank_row"].tolist(), images, strict=True))
            torch.testing.assert_close(extra["sketch"], torch.stack([sketch(image) for image in images]))
            assert torch.equal(labels, (images[:, 1].mean((1, 2)) * 255 / 80).round())
        expected = {row for row in rows if row % 2**32 % 3 == (epoch + row % 2**32 // 3) % 3}
        assert set(shown) <= expected if workers else set(shown) == expected  # a worker may leave out some
        assert all(torch.equal(image, rows[row]) for row, image in shown.items())


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), (1, 2), (0, 5)])
def test_all_rows_of_a_stream_are_read_once_and_those_of_a_shard_in_order(workers, ranks, stream):
    views, rows = fixed_views(stream, 3), fixed_by_hand(Path(stream.reader.root), 3)
    numbers, found = [0, 2], []
    for rank in range(ranks):
        stream.reader.dist_rank, stream.reader.dist_num_replicas = rank, ranks
        found += [
            row
            for batch in DataLoader(views.all_rows(numbers), 4, num_workers=workers)
            for row in zip(*batch, strict=True)
        ]
    assert sorted(int(row) for _, row in found) == [row for row in sorted(rows) if row >> 32 in numbers]
    assert all(torch.equal(image, rows[int(row)]) for image, row in found)
    for number in numbers:
        own = [int(row) for _, row in found if row >> 32 == number]
        assert own == sorted(own)
    if ranks == 1:
        assert [row for _, row in views.few_rows(numbers)] == [0, 2 << 32]


def test_a_sample_that_cannot_be_read_leaves_the_rows_of_the_others_as_they_are(stream, caplog):
    path = Path(stream.reader.root) / "train-0001.tar"
    content = path.read_bytes()
    place = content.index(b"PNG", content.index(b"000007.png"))
    path.write_bytes(content[:place] + b"???" + content[place + 3 :])
    found = [row for _, row in fixed_views(stream, 2).all_rows([1])]
    assert found == [(1 << 32) + row for row in (0, 1, 2, 3, 6, 7, 8, 9, 10, 11)]


def test_a_stream_of_other_samples_is_refused(stream):
    stream.transform = None
    refused("a stream: only images that are tensors .*Image", lambda: next(iter(fixed_views(stream, 2))))


@pytest.mark.parametrize("shape", [(1,), (3, 32, 32), (3, 224, 224)])
def test_a_sketch_tells_images_apart(shape):
    generator = torch.Generator().manual_seed(0)  # single pixels may be near each other
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    before = sketch(first)
    assert before.shape == (8,)
    assert torch.equal(before, sketch(first.clone()))
    assert (before - sketch(second)).abs().max() > 0.05
    torch.testing.assert_close(sketch(2 * first), 2 * before)
    assert sketch(torch.ones(shape)).abs().max() < 4  # brightness does not outweigh the rest
    first.view(-1)[-len(first.view(-1)) // 2 :] += 1  # the end of a large image counts too
    assert (sketch(first) - before).abs().max() > 0.05
