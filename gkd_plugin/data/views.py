"""Views of a training dataset: its samples without augmentation, and with a fixed number of augmentations each."""

import copy
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gkd_plugin.data.images import TransformedImages
from gkd_plugin.data.labels import classes_of, labelled_part, labels_of, length_of, unwrapped
from gkd_plugin.data.splits import ClassSubset
from gkd_plugin.data.streams import Stream
from gkd_plugin.errors import ConfigError, whole_number

__all__ = [
    "DatasetWithView",
    "FixedStream",
    "FixedViews",
    "RandomStates",
    "evaluation_view",
    "seeded",
    "sketch",
    "with_evaluation_view",
]

BANK = 32  # bits of the number of a kept row, above which is the number of its bank
_PIXELS = 4096
_FEW = 8  # views that are compared with kept answers
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

    def probes(self, count: int) -> list[Tensor]:
        """Images of a few views, evenly over the samples."""
        count = min(count, len(self))
        return [self.view(j * len(self) // count, j % self.views)[0] for j in range(count)]

    def all_rows(self, *_: Any) -> "_AllViews":
        """(image, row of the bank) of every view of every sample, in order."""
        return _AllViews(self)

    def few_rows(self, *_: Any) -> list[tuple[Tensor, int]]:
        """A few of these, spread evenly."""
        rows = self.all_rows()
        return [rows[int(row)] for row in torch.linspace(0, len(rows) - 1, min(_FEW, len(rows))).long()]


class _AllViews(Dataset[Any]):
    def __init__(self, views: FixedViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views) * self.views.views

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.views.view(*divmod(row, self.views.views))[0], row


class FixedStream(Stream):
    """As :class:`FixedViews`, of a stream of shards on a disk; every shard has a bank of its own.

    View v of sample i of a shard depends on (seed, name of the shard, i, v). In the numbers of rows the upper 32 bits
    are the number of the shard, see :class:`gkd_plugin.cache.bank.Banks`.
    """

    is_numbered = True

    def __init__(self, stream: Stream, views: int, seed: int = 0) -> None:
        super().__init__(stream.reader, stream.classes, stream.transform)
        self.org_dataset, self.views, self.seed = stream, views, seed
        self._numbers = {file: number for number, file in enumerate(self.files)}

    def __len__(self) -> int:
        return super().__len__() * (1 if self.is_training else self.views)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """(image, label, supplement) of the epoch's views; where it is not trained on, (image, row) of all views."""
        epoch = self.reader.epoch_count.value
        for (image, file, index), label in self._read():
            first = (self._numbers[file] << BANK) + index * self.views
            for view in [(epoch + index) % self.views] if self.is_training else range(self.views):
                shown, row = self._view(image, f"{Path(file).name},{index}", view), first + view
                yield (shown, label, {"bank_row": row, "sketch": sketch(shown)}) if self.is_training else (shown, row)

    def _view(self, image: Image.Image, key: str, view: int) -> Tensor:
        with seeded(f"{self.seed},{key},{view}"):
            shown = image if self.transform is None else self.transform(image)
        if not isinstance(shown, Tensor):
            raise ConfigError(f"a stream: only images that are tensors can be cached, found {type(shown).__name__}")
        return shown

    def probes(self, count: int) -> list[Tensor]:
        """Views of an image of noise: a shard that changes leaves the banks of the others as they are."""
        noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert(self.reader.input_img_mode or "RGB")
        return [self._view(image, "noise", view) for view in range(count)]

    def all_rows(self, numbers: Sequence[int]) -> "FixedStream":
        """(image, row) of every view of every sample of these shards, in order; a shard in one process and worker."""
        part, names = copy.copy(self), [*dict.fromkeys(self.reader.split_info.filenames)]
        part.reader = reader = copy.copy(self.reader)
        reader.is_training, reader.num_samples = False, -(-reader.num_samples * len(numbers) // len(names))
        reader.split_info = replace(reader.split_info, filenames=[names[number] for number in numbers])
        reader.set_loader_cfg(0)
        return part

    def few_rows(self, numbers: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The first of a few shards, spread evenly."""
        chosen = numbers[:: -(-len(numbers) // _FEW)]
        return [row for number in chosen for row in islice(self.all_rows([number]).whole(), 1)]


def fixed_views(dataset: Dataset[Any], views: int, seed: int = 0) -> FixedViews | FixedStream:
    """Of a data set with an index, or of a stream."""
    return (FixedStream if isinstance(dataset, Stream) else FixedViews)(dataset, views, seed)  # type: ignore[arg-type]


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
