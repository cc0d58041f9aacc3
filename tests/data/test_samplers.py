import subprocess
import sys
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler
from torchdistill.datasets.util import build_data_loader

from gkd_plugin.data import ClassBalancedBatchSampler, with_unlabelled
from gkd_plugin.errors import ConfigError
from tests.data.fakes import FakeImages, random_states

LABELS = [i % 5 for i in range(60)]
IMAGES = FakeImages(LABELS)


def seeded(dataset=IMAGES, seed=0):
    return RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 30), st.data())
def test_batches_have_p_classes_of_k_samples_and_use_classes_and_samples_equally_often(sizes, K, num_batches, data):
    P = data.draw(st.integers(1, len(sizes)))
    targets = [label for label, size in enumerate(sizes) for _ in range(size)]
    sampler = ClassBalancedBatchSampler(seeded(FakeImages(targets)), P, K, num_batches)
    batches = list(sampler)
    assert len(batches) == len(sampler) == num_batches
    for batch in batches:
        counts = Counter(targets[index] for index in batch)
        assert list(counts.values()) == [K] * P
        different = Counter(targets[index] for index in set(batch))
        assert different == {label: min(K, sizes[label]) for label in counts}
    uses = Counter(index for batch in batches for index in batch)
    of_class = [[uses[i] for i, target in enumerate(targets) if target == label] for label in range(len(sizes))]
    for counts in (*of_class, [sum(counts) // K for counts in of_class]):
        assert max(counts) - min(counts) <= 1


def test_by_default_an_epoch_has_as_many_samples_as_the_sampler():
    assert [len(ClassBalancedBatchSampler(seeded(), P, K)) for P, K in ((5, 4), (4, 4), (5, 100))] == [3, 3, 1]
    batches = list(ClassBalancedBatchSampler(seeded(), 5, 4))
    assert sorted(index for batch in batches for index in batch) == list(range(60))


def test_the_sampler_alone_decides_the_batches_and_a_dataset_is_shuffled_anew_in_every_epoch():
    before, first = random_states(), list(ClassBalancedBatchSampler(seeded(seed=1), 2, 3))
    assert list(ClassBalancedBatchSampler(seeded(seed=1), 2, 3)) == first
    assert random_states() == before
    assert list(ClassBalancedBatchSampler(seeded(seed=2), 2, 3)) != first
    sampler = ClassBalancedBatchSampler(IMAGES, 2, 1, num_batches=200)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert len({frozenset(LABELS[index] for index in batch) for batch in first}) == 10  # every pair of classes meets


def test_each_distributed_rank_stays_in_its_shard_and_accelerate_deals_whole_batches():
    shards = [DistributedSampler(IMAGES, num_replicas=2, rank=rank) for rank in (0, 1)]
    drawn = [{i for batch in ClassBalancedBatchSampler(shard, 2, 3) for i in batch} for shard in shards]
    assert not drawn[0] & drawn[1]
    assert len(ClassBalancedBatchSampler(shards[0], 2, 3)) == 5
    whole = list(ClassBalancedBatchSampler(seeded(), 3, 4))
    for rank in (0, 1):
        assert list(BatchSamplerShard(ClassBalancedBatchSampler(seeded(), 3, 4), 2, rank)) == whole[rank:4:2]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (IMAGES, {"classes_per_batch": 6}, "classes_per_batch=6, but there are samples of 5 classes"),
        (IMAGES, {"classes_per_batch": 0}, "classes_per_batch must be a whole number from 1 up, got 0"),
        (IMAGES, {"samples_per_class": 0}, "samples_per_class must be"),
        (IMAGES, {"num_batches": 0}, "num_batches must be"),
        (FakeImages([]), {}, "samples of 0 classes"),
        (SubsetRandomSampler([0, 1]), {}, "SubsetRandomSampler does not know its dataset"),
        # rank 0 of 2 without shuffling sees class 0 alone
        (DistributedSampler(FakeImages([0, 1, 0, 1]), 2, 0, shuffle=False), {}, "classes_per_batch=2, .* 1 classes"),
    ],
)
def test_unusable_arguments_are_refused(source, arguments, message):
    with pytest.raises(ConfigError, match=message):
        list(ClassBalancedBatchSampler(source, **{"classes_per_batch": 2, "samples_per_class": 2, **arguments}))


def test_samples_without_a_label_are_in_no_balanced_batch():
    batches = ClassBalancedBatchSampler(with_unlabelled(IMAGES, IMAGES), 5, 2)
    assert {index for batch in batches for index in batch} <= set(range(60))


@pytest.mark.parametrize(("supp", "sampler"), [(False, RandomSampler), (True, SequentialSampler)])
def test_torchdistill_builds_a_loader_of_balanced_batches_and_accelerate_prepares_it(supp, sampler):
    balanced = {"key": "ClassBalancedBatchSampler", "kwargs": {"classes_per_batch": 3, "samples_per_class": 4}}
    config = {"sampler": {"class_or_func": sampler}, "batch_sampler": balanced, "requires_supp": supp, "kwargs": {}}
    prepared = Accelerator(cpu=True).prepare(build_data_loader(IMAGES, config, distributed=False))
    assert (prepared.total_batch_size, len(prepared)) == (12, 5)
    assert [list(Counter(labels.tolist()).values()) for _, labels, *_ in prepared] == [[4, 4, 4]] * 5


def test_the_package_can_be_the_first_import_of_a_process():
    # torchdistill.datasets reads torchvision.datasets from sys.modules and fails where nobody imported it yet
    subprocess.run([sys.executable, "-c", "import gkd_plugin.data"], check=True, timeout=120)
