"""Views of a training dataset: its samples without augmentation, and with a fixed number of augmentations each."""

import copy
import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gkd_plugin.data.images import TransformedImages
from gkd_plugin.data.labels import classes_of, labelled_part, labels_of, length_of, unwrapped
from gkd_plugin.data.splits import ClassSubset
from gkd_plugin.data.streams import Stream
from gkd_plugin.errors import ConfigError, whole_number

__all__ = [
    "DatasetWithView",
    "FixedViews",
    "RandomStates",
    "evaluation_view",
    "seeded",
    "sketch",
    "with_evaluation_view",
]

_PIXELS = 4096
_SIGNS = torch.from_numpy(2 * np.random.default_rng(0).integers(0, 2, (8, _PIXELS)) - 1).float()


class DatasetWithView(Subset[Any]):
    """All samples of ``dataset``, its training dataset, with an attribute ``evaluation_view``."""

    def __init__(self, dataset: Dataset[Any], view: Dataset[Any]) -> None:
        self.evaluation_view, self.targets, self.classes = view, labels_of(dataset), classes_of(dataset)
        super().__init__(dataset, range(len(self.targets)))


def with_evaluation_view(dataset: Dataset[Any], view: Dataset[Any]) -> DatasetWithView:
    """Attaches to a training dataset the same samples without random augmentation.

    Args:
        dataset: the training dataset, with its augmenting transform.
        view: the same samples in the same order (labels are compared), with the transform of the evaluation.
    """
    labels, view_labels = labels_of(dataset), labels_of(view)
    for index, (label, view_label) in enumerate(zip_longest(labels, view_labels)):
        if label != view_label:
            given = f"sample {index} has label {view_label}, but {label} in the training dataset"
            counts = f"the view {len(view_labels)}, the other {len(labels)}"
            raise ConfigError(f"evaluation view: {given}; both must hold the same samples in the same order ({counts})")
    return DatasetWithView(dataset, view)


def evaluation_view(dataset: Dataset[Any]) -> tuple[Dataset[Any], bool]:
    """The dataset's evaluation view and True, or the dataset itself and False where it offers none.

    A dataset offers one as its attribute ``evaluation_view``, this package's image datasets as ``eval_transform``.
    Looks into torchdistill's dataset wrappers (and returns what is inside them), ``Subset`` and :class:`ClassSubset`.
    Samples without a label are left out.
    """
    dataset = unwrapped(labelled_part(dataset))
    if isinstance(dataset, Stream):
        return dataset.in_order(dataset.eval_transform or dataset.transform), dataset.eval_transform is not None
    if hasattr(dataset, "evaluation_view"):
        return unwrapped(dataset.evaluation_view), True
    if isinstance(dataset, TransformedImages) and dataset.eval_transform is not None:
        clean = copy.copy(dataset)
        clean.transform, clean.eval_transform = dataset.eval_transform, None
        return clean, True
    if not isinstance(dataset, (Subset, ClassSubset)):
        return dataset, False
    view, found = evaluation_view(dataset.dataset)
    if view is dataset.dataset:  # there is none, or it is its own
        return dataset, found
    return (Subset(view, dataset.indices) if isinstance(dataset, Subset) else replace(dataset, dataset=view)), found


class FixedViews(Dataset[Any]):
    """K random augmentations of each sample that are the same in every process, worker, order and run.

    View v of sample i is ``dataset[i]``, an (image tensor, label), with the global random states of ``random``,
    ``numpy.random`` and torch's CPU generator seeded from (seed, i, v); afterwards all three are as before. A transform
    that draws from a generator of its own is out of reach. Samples are ``(image, label, {"bank_row": i * views + v,
    "sketch": …})``, see :func:`sketch`; epoch e shows view v = (e + i) % views of sample i. K is ``views``.
    """

    def __init__(self, dataset: Dataset[Any], views: int, seed: int = 0) -> None:
        self.dataset = self.org_dataset = dataset  # the second is torchdistill's name for what a wrapper holds
        self.views = whole_number("views", views, low=1)
        self.seed = whole_number("seed", seed, low=0)
        self.targets, self.classes = labels_of(dataset), classes_of(dataset)
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
        """Chooses the views of an epoch, in running DataLoader workers too; call it before the loader is iterated."""
        self._epoch.fill_(epoch)

    def view(self, index: int, view: int) -> tuple[Tensor, Any]:
        """One view of one sample: ``(image, label)``; raises ConfigError where the dataset's samples are not such."""
        if not (0 <= index < len(self) and 0 <= view < self.views):
            raise IndexError(f"sample {index}, view {view}: there are {len(self)} samples of {self.views} views")
        with seeded(f"{self.seed},{index},{view}"):
            sample = self.dataset[index]
        parts = sample if isinstance(sample, (tuple, list)) else [sample]
        if len(parts) != 2 or not isinstance(parts[0], Tensor):
            found = f"sample {index} is ({', '.join(type(part).__name__ for part in parts)})"
            raise ConfigError(f"dataset {type(self.dataset).__name__}: only (tensor, label) can be cached, {found}")
        return parts[0], parts[1]


class RandomStates:
    """The global random states of ``random``, ``numpy.random`` and torch's CPU generator: those given, or as now."""

    def __init__(self, values: Any = None) -> None:
        self.values: Any = (random.getstate(), _numpy_state(), torch.get_rng_state()) if values is None else values

    def restore(self) -> None:
        """Makes them the present ones again."""
        random.setstate(self.values[0])
        np.random.set_state(self.values[1])  # noqa: NPY002
        torch.set_rng_state(self.values[2])


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *others = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002
    return name, keys.tolist(), *others  # NumPy takes a list back 25 times faster than its own array


@contextmanager
def seeded(key: str) -> Iterator[None]:
    """Global CPU random states that depend on ``key`` alone; restored afterwards."""
    states = RandomStates()
    try:
        seed_cpu(key)
        yield
    finally:
        states.restore()


def seed_cpu(key: str) -> None:
    """Makes the global CPU random states those of ``key``; torch.manual_seed() would seed the GPUs as well."""
    digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
    random.seed(digest[:16])
    np.random.seed(np.frombuffer(digest[16:], dtype="<u4"))  # noqa: NPY002
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))


def sketch(image: Tensor) -> Tensor:
    """Eight numbers, ``[8]`` float32, by which an image of any shape is known again.

    Sums of up to 4096 of its values with fixed random signs, divided by the root of the number of values.
    """
    values = image.detach().reshape(-1).float()
    values = values[:: -(-len(values) // _PIXELS)]
    sums: Tensor = (_SIGNS[:, : len(values)] * values).sum(1)
    return sums / math.sqrt(len(values))
