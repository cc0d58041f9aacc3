"""A fixed number of augmentations of each sample, so that a frozen teacher's outputs for them can be kept."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gkd_plugin.data.labels import classes_of, labels_of, length_of
from gkd_plugin.errors import ConfigError, whole_number

__all__ = ["FixedViews", "seeded", "sketch"]

_PIXELS = 4096


class FixedViews(Dataset[Any]):
    """K random augmentations of each sample that are the same in every process, worker, order and run.

    View v of sample i is ``dataset[i]`` with the global random states of ``random``, ``numpy.random`` and torch's
    CPU generator seeded from (seed, i, v); afterwards all three are as before. A transform that draws from a generator
    of its own is out of reach. Samples are ``(image, label, {"bank_row": i * views + v, "sketch": …})``, see
    :func:`sketch`; epoch e shows view v = (e + i) % views of sample i.

    Args:
        dataset: a map dataset of ``(image tensor, label)``.
        views: K.
        seed: of the augmentations.

    Attributes:
        org_dataset: the dataset given, under torchdistill's name for what a wrapper holds; also ``dataset``.
        views: K.
        seed: of the augmentations.
        targets: the labels, a list of ``int``.
        classes: the class names, or the labels 0, 1, … where the dataset has none.

    Raises:
        ConfigError: ``views`` < 1, ``seed`` < 0, or the dataset has no labels to find.
    """

    def __init__(self, dataset: Dataset[Any], views: int, seed: int = 0) -> None:
        self.dataset = self.org_dataset = dataset
        self.views = whole_number("views", views, low=1)
        self.seed = whole_number("seed", seed, low=0)
        self.targets = labels_of(dataset)
        self.classes = classes_of(dataset)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy's memory is not shared as it comes

    def __len__(self) -> int:
        return length_of(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, dict[str, Any]]:
        view = (int(self._epoch) + index) % self.views
        image, label = self.view(index, view)
        return image, label, {"bank_row": index * self.views + view, "sketch": sketch(image)}

    def set_epoch(self, epoch: int) -> None:
        """Chooses the views of an epoch, in DataLoader workers that already run too.

        Batches that a worker fetched before are not fetched again, so call it before the loader is iterated.
        """
        self._epoch.fill_(epoch)

    def view(self, index: int, view: int) -> tuple[Tensor, Any]:
        """One view of one sample: ``(image, label)``.

        Raises:
            IndexError: there is no such sample or view.
            ConfigError: the dataset's samples are not ``(image tensor, label)``.
        """
        if not (0 <= index < len(self) and 0 <= view < self.views):
            raise IndexError(f"sample {index}, view {view}: there are {len(self)} samples of {self.views} views")
        with seeded(f"{self.seed},{index},{view}"):
            sample = self.dataset[index]
        is_pair = isinstance(sample, (tuple, list)) and len(sample) == 2
        if not is_pair or not isinstance(sample[0], Tensor):
            parts = sample if isinstance(sample, (tuple, list)) else [sample]
            raise ConfigError(
                f"dataset {type(self.dataset).__name__}: only samples of (image tensor, label) can be cached, "
                f"sample {index} is ({', '.join(type(part).__name__ for part in parts)})"
            )
        return sample[0], sample[1]


@contextmanager
def seeded(key: str) -> Iterator[None]:
    """Global CPU random states that depend on ``key`` alone; restored afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
    try:
        random.seed(digest[:16])
        np.random.seed(np.frombuffer(digest[16:], dtype="<u4"))  # noqa: NPY002
        # not torch.manual_seed(), which seeds the GPUs as well
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def sketch(image: Tensor) -> Tensor:
    """Eight numbers by which an image is known again: sums of up to 4096 of its values with fixed random signs.

    Args:
        image: any shape, at least one value.

    Returns:
        ``[8]`` float32, each sum divided by the root of the number of values.
    """
    values = image.detach().reshape(-1).float()
    values = values[:: -(-len(values) // _PIXELS)]
    sums: Tensor = (_signs()[:, : len(values)] * values).sum(1)
    return sums / math.sqrt(len(values))


@functools.cache
def _signs() -> Tensor:
    bits = np.random.default_rng(0).integers(0, 2, (8, _PIXELS))
    return torch.from_numpy(2 * bits - 1).float()
