"""Batches of P classes × K samples, and of samples with and without a label."""

import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torchvision.datasets  # noqa: F401  (torchdistill's registry reads it from sys.modules)
from torch.utils.data import Dataset, RandomSampler, Sampler
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT, register_batch_sampler

from gkd_plugin.box import register
from gkd_plugin.data.labels import UNLABELLED, labels_of
from gkd_plugin.errors import ConfigError, whole_number

__all__ = ["ClassBalancedBatchSampler", "MixedBatchSampler"]


@register(BATCH_SAMPLER_DICT, register_batch_sampler, "ClassBalancedBatchSampler")
class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Batches of P different classes with K samples each: every anchor has positives, every batch has negatives.

    Every epoch reads the sampler once and deals the samples of each class in that order, those without a label left
    out. All classes are visited equally often (counts differ by one at most): a class that runs out of samples starts
    again, so a batch repeats a sample only where the class has fewer than K. All randomness comes from the sampler:
    processes whose samplers agree (as under Hugging Face Accelerate) make the same batches; with
    ``DistributedSampler`` each rank those of its shard.

    Args:
        sampler: a sampler that knows its dataset as ``data_source`` or ``dataset``, as torch's ``RandomSampler``,
            ``SequentialSampler`` and ``DistributedSampler`` do; or a dataset, which is then shuffled.
        classes_per_batch: P.
        samples_per_class: K.
        num_batches: batches in an epoch; ``None`` means one pass over as many samples as the sampler has,
            ``max(1, len(sampler) // (P · K))``.

    Raises:
        ConfigError: a number is out of range, the sampler knows no dataset, or (when iterated) a shard has few classes.
    """

    def __init__(
        self,
        sampler: Sampler[int] | Dataset[Any],
        classes_per_batch: int,
        samples_per_class: int,
        num_batches: int | None = None,
    ) -> None:
        self.classes_per_batch = whole_number("classes_per_batch", classes_per_batch, low=1)
        self.samples_per_class = whole_number("samples_per_class", samples_per_class, low=1)
        self.num_batches = None if num_batches is None else whole_number("num_batches", num_batches, low=1)
        self.batch_size = self.classes_per_batch * self.samples_per_class
        self.drop_last = True
        self._labels = _labels_of(sampler)
        self._check_classes(len({*self._labels} - {UNLABELLED}))
        self.sampler = sampler if isinstance(sampler, Sampler) else RandomSampler(sampler)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.num_batches or max(1, len(self.sampler) // self.batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        order = [int(index) for index in self.sampler]
        members: defaultdict[int, list[int]] = defaultdict(list)
        for index in order:
            members[self._labels[index]].append(index)
        members.pop(UNLABELLED, None)
        self._check_classes(len(members))
        classes, decks = sorted(members), {label: cycle(indices) for label, indices in members.items()}
        draw = random.Random(zlib.crc32(np.asarray(order, dtype=np.int64).tobytes()))
        waiting: list[int] = []  # classes are dealt from shuffled rounds of all of them
        for _ in range(len(self)):
            group, waiting = waiting[: self.classes_per_batch], waiting[self.classes_per_batch :]
            missing = self.classes_per_batch - len(group)
            if missing:  # classes that the group already has keep their place in the next round: none gets two ahead
                fresh, taken = draw.sample(classes, len(classes)), set(group)
                added = dict.fromkeys([label for label in fresh if label not in taken][:missing])
                group, waiting = [*group, *added], [label for label in fresh if label not in added]
            yield [index for label in group for index in islice(decks[label], self.samples_per_class)]

    def _check_classes(self, present: int) -> None:
        if present < self.classes_per_batch:
            raise ConfigError(f"classes_per_batch={self.classes_per_batch}, but there are samples of {present} classes")


@register(BATCH_SAMPLER_DICT, register_batch_sampler, "MixedBatchSampler")
class MixedBatchSampler(Sampler[list[int]]):
    """Batches of samples with a label and samples without one, in a fixed ratio.

    The training set is one of :func:`gkd_plugin.data.with_unlabelled`. Every epoch reads the sampler once and deals the
    two kinds in that order: each labelled sample is seen once, and some of the others, which the next epoch draws anew
    if the sampler shuffles. The last batch is filled up with the first labelled samples, and where the others are few
    they come again. Under ``DistributedSampler`` each rank makes as many batches, of its shard.

    Args:
        sampler: as in :class:`ClassBalancedBatchSampler`.
        labelled: samples with a label in each batch.
        unlabelled: samples without one in each batch.

    Raises:
        ConfigError: a number is out of range, the sampler knows no dataset, or there is no sample of a kind.
    """

    def __init__(self, sampler: Sampler[int] | Dataset[Any], labelled: int, unlabelled: int) -> None:
        self.labelled = whole_number("labelled", labelled, low=1)
        self.unlabelled = whole_number("unlabelled", unlabelled, low=1)
        self.batch_size, self.drop_last = self.labelled + self.unlabelled, False  # Accelerate fills up the last round
        self._labels = _labels_of(sampler)
        self._by_kind(range(len(self._labels)))
        self.sampler = sampler if isinstance(sampler, Sampler) else RandomSampler(sampler)  # type: ignore[arg-type]

    def __len__(self) -> int:
        known, of_a_rank = sum(label != UNLABELLED for label in self._labels), len(self.sampler)  # type: ignore[arg-type]
        return max(1, -(-known * of_a_rank // (len(self._labels) * self.labelled)))

    def __iter__(self) -> Iterator[list[int]]:
        labelled, unlabelled = map(cycle, self._by_kind(self.sampler))
        for _ in range(len(self)):
            yield [*islice(labelled, self.labelled), *islice(unlabelled, self.unlabelled)]

    def _by_kind(self, order: Iterable[int]) -> tuple[list[int], list[int]]:
        """The samples with a label and those without one, in order."""
        kinds: tuple[list[int], list[int]] = ([], [])
        for index in map(int, order):
            kinds[self._labels[index] == UNLABELLED].append(index)
        if not all(kinds):
            lacks, advice = "without" if kinds[0] else "with", "gkd_plugin.data.with_unlabelled makes a set of both"
            raise ConfigError(f"MixedBatchSampler: the training set has no sample {lacks} a label; {advice}")
        return kinds


def _labels_of(sampler: Sampler[int] | Dataset[Any]) -> list[int]:
    """The label of each sample of a dataset, or of a sampler's dataset."""
    dataset: Any = sampler
    if isinstance(sampler, Sampler):
        sources = (getattr(sampler, name, None) for name in ("data_source", "dataset"))
        dataset = next((source for source in sources if source is not None), None)
    if dataset is None:
        allowed = "samplers with 'data_source' or 'dataset', as RandomSampler or DistributedSampler"
        raise ConfigError(f"sampler {type(sampler).__name__} does not know its dataset; allowed: {allowed}")
    return labels_of(dataset)
