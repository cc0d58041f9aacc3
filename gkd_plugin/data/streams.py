"""timm's readers: sets with an index (folders, ``hfds/``), and streams without one (shards, hubs)."""

import copy
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.readers.reader_factory import create_reader
from timm.data.readers.reader_wds import ReaderWds
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from gkd_plugin.data.files import existing_folder
from gkd_plugin.data.images import Transform, TransformedImages, check_transforms
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.errors import ConfigError, first_line, one_of

__all__ = ["Stream", "TimmImages", "first_batch", "timm_dataset"]

_NEEDS = {"wds": "webdataset", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets"}
_STREAMS = ("wds", "hfids", "tfds")

_TOLD: set[str] = set()


def _is_news(line: logging.LogRecord) -> bool:
    """Of what timm says of shards: no remark on a file that need not be there, and the same error once."""
    text = line.getMessage()
    is_news = "info file not found" not in text and text not in _TOLD
    _TOLD.add(text)
    return is_news


logging.getLogger("timm.data.readers.reader_wds").addFilter(_is_news)


class TimmImages(TransformedImages):
    """What a reader of timm with an index reads, in the colour mode ``mode`` of PIL."""

    def __init__(
        self, reader: Any, classes: Sequence[Any], transform: Transform, eval_transform: Transform, mode: str = "RGB"
    ) -> None:
        is_folder = hasattr(reader, "samples")
        labels = [label for _, label in reader.samples] if is_folder else list(reader.iter_targets())
        super().__init__(labels, classes, transform, eval_transform)
        self.reader, self.mode = reader, mode
        self.samples = reader.samples if is_folder else None  # by which images are known again

    def image(self, index: int) -> Image.Image:
        """Raises what PIL does: timm's own set would go on with the next image, and its label."""
        return Image.open(self.reader[index][0]).convert(self.mode)


class Stream(IterableDataset[Any]):
    """A set without an index, read through a reader of timm: every process, and every worker, its own part.

    Trained on, it is shuffled, and every process has as many batches: some samples come twice, as timm has it.
    Measured, each sample comes once. What is iterated is a copy of the reader, so an epoch depends on its number and
    the random state of the loading alone. Training samples have an empty supplement: torchdistill's scripts read one.
    """

    org_dataset: "Stream"
    is_numbered = False  # whether images are (image, shard, number of the sample in it), of ``wds/``

    def __init__(
        self,
        reader: Any,
        classes: Sequence[Any] = (),
        transform: Transform = None,
        eval_transform: Transform = None,
    ) -> None:
        self.reader, self.classes = reader, [str(name) for name in classes]
        self.transform, self.eval_transform = transform, eval_transform
        check_transforms(transform, eval_transform)

    @property
    def is_training(self) -> bool:
        """Whether it is shuffled."""
        return bool(self.reader.is_training)

    @property
    def files(self) -> list[str]:
        """The shards of ``wds/``, where all lie on a disk."""
        shards = [os.path.join(self.reader.root, name) for name in dict.fromkeys(_shards(self.reader) or ())]  # noqa: PTH118
        return shards if all(map(os.path.exists, shards)) else []

    def __len__(self) -> int:
        """The samples of this process; of a set that is measured, about as many."""
        return len(self.reader) if self.is_training else -(-self.reader.num_samples // self.reader.dist_num_replicas)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for image, label in self._read():
            sample = image if self.transform is None else self.transform(image), label
            yield (*sample, {}) if self.is_training else sample

    def _read(self) -> Iterator[tuple[Any, int]]:
        """The images of this process and this worker, without transform, and their labels."""
        reader = copy.copy(self.reader)
        shards, skipped = _shards(reader), (0, None, 1)
        rank, ranks = reader.dist_rank, reader.dist_num_replicas
        if self.is_training and get_worker_info() is None and hasattr(reader, "worker_seed"):
            reader.worker_seed = int(torch.randint(2**31, ()))  # those of workers are drawn by torch
        if not self.is_training and ranks > 1 and shards is not None:  # timm leaves out some, and repeats some
            if not shards[rank::ranks]:
                return
            reader.split_info = replace(reader.split_info, filenames=shards[rank::ranks])
            reader.dist_rank, reader.dist_num_replicas = 0, 1
        elif not self.is_training and ranks > 1 and hasattr(reader, "subsplit"):  # TensorFlow's: timm repeats some
            skipped, reader.dist_rank, reader.dist_num_replicas = (rank, None, ranks), 0, 1
        if self.is_numbered:
            reader._lazy_init()  # noqa: SLF001
            reader.ds.pipeline.insert(4 if self.is_training else 3, _number)  # after the shards are read
            reader.ds.append(lambda found: ({**x, "image": (x["image"], *x["__key__"])} for x in found))
        for image, label in islice(reader, *skipped):
            yield image, int(label)

    def set_epoch(self, epoch: int) -> None:
        """Another order of the shards; call it before the loader is iterated."""
        self.reader.set_epoch(epoch)

    def in_order(self, transform: Transform) -> "Stream":
        """All of its samples once each, in their own order, each in one of the processes."""
        ordered = Stream(copy.copy(self.reader), self.classes, transform)
        ordered.reader.is_training = False
        return ordered

    def whole(self) -> "Stream":
        """Itself, of which every process now reads all."""
        self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1
        return self

    def make_loader(
        self, sampler: Any = None, batch_size: int = 1, num_workers: int = 0, **kwargs: Any
    ) -> DataLoader[Any]:
        """A loader of this process's part, which Accelerate does not split again; see ``box.upstream``."""
        if not isinstance(sampler, SequentialSampler | DistributedSampler):
            way = "write torch.utils.data.SequentialSampler; is_training: True of the data set shuffles"
            raise ConfigError(f"sampler: {type(sampler).__name__} given, but a stream has an order of its own; {way}")
        own = copy.copy(self)
        own.org_dataset = self  # torchdistill's name for what a wrapper holds
        own.reader = copy.copy(self.reader)
        own.reader.batch_size = batch_size
        own.reader.set_loader_cfg(num_workers=num_workers)
        self._check_parts(num_workers)
        loader: DataLoader[Any] = DataLoader(own, batch_size, num_workers=num_workers, **kwargs)
        loader._is_accelerate_prepared = True  # noqa: SLF001
        return loader

    def _check_parts(self, num_workers: int) -> None:
        ranks, shards = self.reader.dist_num_replicas, _shards(self.reader)
        if ranks > 1 and not num_workers and hasattr(self.reader, "subsplit"):
            raise ConfigError("kwargs.num_workers: 0 given; in several processes tfds/ is split by workers, 1 or more")
        parts = ranks * max(num_workers, 1)
        if self.is_training and shards is not None and len(shards) < parts:
            given = f"{num_workers} given in {ranks} process(es), which read {parts} parts"
            raise ConfigError(f"kwargs.num_workers: {given}, but there are {len(shards)} shards")


def first_batch(dataset: Any, indices: Sequence[int], collate_fn: Any = None) -> Any:
    """These samples, or as many, the first, of a stream, as training sees them in every process; made by no worker."""
    stream: Any = unwrapped(dataset)
    is_stream = isinstance(stream, Stream)
    samples = stream.in_order(stream.transform).whole() if is_stream else Subset(dataset, indices)
    batch = next(iter(DataLoader(samples, len(indices), collate_fn=collate_fn)), None)
    if batch is None:
        raise ConfigError("it has no sample that can be read: each needs an image, and a whole number as its label")
    return batch


def _shards(reader: Any) -> Sequence[str] | None:
    """Those of ``wds/``."""
    return reader.split_info.filenames if isinstance(reader, ReaderWds) else None


def _number(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of samples as they are in their shards; webdataset keeps a sample's key when it is decoded."""
    shard, number = None, 0
    for sample in samples:
        shard, number = sample["__url__"], number + 1 if sample["__url__"] == shard else 0
        yield {**sample, "__key__": (shard, number)}


def timm_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    classes: Sequence[str] | None = None,
    *,
    is_training: bool = False,
    transform: Transform = None,
    eval_transform: Transform = None,
    **reader: Any,
) -> TimmImages | Stream:
    """A set that timm reads: a stream for ``wds/``, ``hfids/`` and ``tfds/``, otherwise one with an index.

    Args:
        name: ``'wds/'`` (webdataset's shards), ``'hfids/<name>'`` (Hugging Face, streamed), ``'hfds/<name>'`` (Hugging
            Face, with an index), ``'tfds/<name>'``, or ``''`` (a folder of images for each class).
        root: the folder or the address of the shards; where the others keep what they download; ``~`` is allowed.
        split: as timm has it; of shards a name in their ``_info.json``, or e.g. ``'train-{0000..0099}.tar|100000'``,
            with the number of samples.
        classes: the names of the classes in the order of their labels; by default those that the reader knows.
        is_training: whether a stream is trained on: it is shuffled, and every process has as many batches.
        reader: what else timm's reader takes, e.g. ``class_map``, ``target_key``, ``num_samples``, ``seed``,
            ``input_img_mode``, or ``sample_shuffle_size`` (of ``wds/``, samples in memory that are shuffled).

    Raises:
        ConfigError: a package is missing, or a shard, or a folder.
    """
    prefix, slash, _ = name.lower().partition("/")
    kind = prefix if slash else ""
    if kind in _NEEDS and find_spec(_NEEDS[kind]) is None:
        extra = "tensorflow-datasets tensorflow" if kind == "tfds" else "'gkd-plugin[streaming]'"
        raise ConfigError(f"name: {name!r} needs {_NEEDS[kind]}: pip install {extra}")
    one_of("name", kind, [*_NEEDS, ""])
    place = None if root is None else str(root) if "://" in str(root) else str(Path(root).expanduser())
    if not kind or (kind == "wds" and place and "://" not in place):
        existing_folder(place or "")
    mode = "RGB" if kind in _STREAMS else reader.pop("input_img_mode", "RGB")
    reader |= {"is_training": is_training} if kind in _STREAMS else {}
    try:
        made = create_reader(name, place or ("" if kind == "wds" else None), split, **reader)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # timm's, of splits and keywords
        way = "; split: '<shards>.tar|<number of samples>', or a split of _info.json" if kind == "wds" else ""
        raise ConfigError(f"{name}: {first_line(error)}{way}") from error
    known = sorted(made.class_to_idx, key=made.class_to_idx.get) if getattr(made, "class_to_idx", None) else []
    names = known if classes is None else classes
    if kind not in _STREAMS:
        return TimmImages(made, names, transform, eval_transform, mode)
    shards = [os.path.join(place or "", name) for name in _shards(made) or ()]  # noqa: PTH118  # as timm does, of addresses too
    missing = [shard for shard in shards if not (re.match(r"\w+:", shard) or Path(shard).exists())]
    if missing:  # timm leaves them out
        raise ConfigError(f"split: {len(missing)} of {len(shards)} shards are missing: {missing[0]}")
    return Stream(made, names, transform, eval_transform)
