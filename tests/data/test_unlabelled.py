from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler, Subset
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin import data
from tests.data.fakes import FakeImages, image_tree, known_by_a_teacher, samples, with_view
from tests.runner.fakes import refused

LABELLED = known_by_a_teacher(with_view([0, 1, 2, 0], ["ant", "bee", "cat"]))
MIXED = data.with_unlabelled(LABELLED, FakeImages([5, 6, 7, 8, 9], prefix="other"))


@pytest.mark.parametrize("wrapped", [lambda x: x, BaseDatasetWrapper, lambda x: data.FixedViews(x, 2)])
def test_the_labelled_samples_decide_what_is_known_of_the_classes(wrapped):
    dataset = wrapped(MIXED)
    assert data.labels_of(dataset) == [0, 1, 2, 0] + 5 * [-1]
    assert (data.num_classes_of(dataset), data.class_names_of(dataset)) == (3, ["ant", "bee", "cat"])
    assert (data.teacher_labels_of(dataset), data.teacher_num_classes_of(dataset)) == ([4, None, 1], 7)
    assert data.labelled_part(dataset) is LABELLED
    view, is_clean = data.evaluation_view(dataset)
    assert (samples(view), is_clean) == ([("clean0", 0), ("clean1", 1), ("clean2", 2), ("clean3", 0)], True)


def test_a_sample_without_label_is_known_by_its_image_alone():
    assert samples(MIXED)[3:] == [("augmented3", 0)] + [(f"other{i}", -1) for i in range(5)]
    assert data.labelled_part(data.with_unlabelled(MIXED, FakeImages([0]))) is LABELLED


def test_a_wrapper_that_asks_another_for_what_it_lacks_is_no_mixed_set_itself():
    """It may change images."""

    class Asks(FakeImages):
        def __getattr__(self, name):
            return getattr(MIXED, name)

    asks = Asks([0])
    assert data.labelled_part(asks) is asks


def test_a_folder_is_read_to_its_depth_with_the_labelled_transform(tmp_path):
    own = data.image_folder(image_tree(tmp_path / "own", ["a", "b"]), transform=lambda image: image.getpixel((0, 0)))
    image_tree(tmp_path / "more" / "deep", ["x"], per_class=3)
    (tmp_path / "more" / "notes.txt").touch()
    for labelled in (own, Subset(own, [0, 1, 2, 3])):
        mixed = data.with_unlabelled(labelled, tmp_path / "more")
        assert samples(mixed)[3:] == [((10, 1, 0), 1), ((0, 0, 0), -1), ((0, 1, 0), -1), ((0, 2, 0), -1)]
    (tmp_path / "more" / "deep" / "x" / "1.png").write_bytes(b"")
    refused("1 of 3 images in .*more .*: deep/x/1.png", data.with_unlabelled, own, tmp_path / "more")
    assert samples(data.with_unlabelled(own, tmp_path / "more", "skip"))[4:] == [((0, 0, 0), -1), ((0, 2, 0), -1)]


def test_batches_of_both_kinds():
    sampler = data.MixedBatchSampler(MIXED, labelled=3, unlabelled=2)
    batches = list(sampler)
    assert (len(sampler), sampler.batch_size) == (len(batches), 5) == (2, 5)
    assert {index for batch in batches for index in batch[:3]} == {0, 1, 2, 3}
    others = [index for batch in batches for index in batch[3:]]
    assert len(set(others)) == 4
    assert set(others) <= set(range(4, 9))
    assert len({tuple(map(tuple, sampler)) for _ in range(9)}) > 1
    once = data.MixedBatchSampler(SequentialSampler(MIXED), labelled=1, unlabelled=2)
    shards = [list(BatchSamplerShard(once, 3, rank)) for rank in range(3)]  # of Accelerate's processes
    assert [len(shard) for shard in shards] == [2, 2, 2]
    assert {batch[0] for shard in shards for batch in shard} == {0, 1, 2, 3}
    few = data.MixedBatchSampler(
        RandomSampler(data.with_unlabelled(LABELLED, FakeImages([0]))), labelled=1, unlabelled=3
    )
    assert [batch[1:] for batch in few] == 4 * [[4, 4, 4]]


def test_a_rank_has_its_share_of_the_batches():
    """Of 82 samples on 3 ranks each has 28, and so 14 of the 41 with a label."""
    even = data.with_unlabelled(FakeImages([0] * 41), FakeImages([0] * 41))
    assert len(data.MixedBatchSampler(DistributedSampler(even, 3, 0), labelled=2, unlabelled=1)) == 7


TWO = FakeImages([0, 1])


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (data.with_unlabelled, (TWO, "emty"), "unlabelled: there is no folder .*emty.*did you mean .*empty"),
        (data.with_unlabelled, (TWO, "empty"), "unlabelled: .*empty holds no image"),
        (data.with_unlabelled, (TWO, "photos"), "unlabelled: dataset FakeImages shows no transform"),
        (data.num_classes_of, (Subset(MIXED, [0, 4]),), "label -1"),  # not outermost
        (data.few_shot_subset, (MIXED, 1), "put with_unlabelled around it"),
        (data.MixedBatchSampler, (LABELLED, 1, 1), "no sample without a label; gkd_plugin.data.with_unlabelled"),
        (data.MixedBatchSampler, (MIXED, 0, 1), "labelled must be"),
        (data.MixedBatchSampler, (MIXED, 1, 0), "unlabelled must be"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, call, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    image_tree(Path("photos"), ["x"])
    refused(message, call, *arguments)
