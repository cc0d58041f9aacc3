"""What a feature bank was computed from, as digests: another teacher, data set or transform gives another bank."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from gkd_plugin.data import FixedViews, labels_of
from gkd_plugin.data._checks import inner_datasets, layers_of, length_of
from gkd_plugin.errors import ConfigError

__all__ = ["Fingerprint", "data_key", "image_keys", "teacher_key", "views_key"]

_ARRAY_ATTRIBUTES = ("data", "images", "tensors")  # arrays in memory
_FILE_ATTRIBUTES = ("samples", "_samples", "imgs", "_image_files", "_images")  # paths or (path, label), torchvision's
_TRANSFORM_ATTRIBUTES = ("transforms", "transform", "target_transform")
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Four hex digests; banks are interchangeable only where all four are equal.

    Attributes:
        teacher: of :func:`teacher_key`.
        data: of :func:`data_key`.
        views: of :func:`views_key`.
        preprocessing: of whatever else decides the teacher's outputs, e.g. its precision.
    """

    teacher: str
    data: str
    views: str
    preprocessing: str

    @property
    def digest(self) -> str:
        """All four in 20 hex digits."""
        key = _Key(digest_size=10)
        key.text(*dataclasses.astuple(self))
        return key.hex()

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the parts that differ."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]


class _Key:
    """blake2b of texts and arrays, each with its length, so that no two lists of them run together."""

    def __init__(self, digest_size: int = 16) -> None:
        self._hash = hashlib.blake2b(digest_size=digest_size)

    def hex(self) -> str:
        return self._hash.hexdigest()

    def text(self, *parts: object) -> None:
        for part in parts:
            content = str(part).encode()
            self._hash.update(b"%d:" % len(content))
            self._hash.update(content)

    def array(self, values: NDArray[Any] | Tensor) -> None:
        """Type, shape and bytes; at most one copy of the array at a time."""
        self.text(values.dtype, list(values.shape))
        if isinstance(values, Tensor):
            flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK):
            self._hash.update(flat[start : start + _CHUNK].data)

    def content(self, value: object) -> None:
        """An array, tensor or PIL image by its values, lists and dicts of them too; anything else by its repr."""
        if isinstance(value, (Tensor, np.ndarray)) and value.dtype != object:
            self.array(value)
        elif isinstance(value, Image.Image):
            self.text(value.mode, value.size)
            self.array(np.asarray(value))
        elif isinstance(value, (tuple, list)):
            self.text(len(value))
            for part in value:
                self.content(part)
        elif isinstance(value, dict):
            self.content(list(value.items()))
        else:
            self.text(_stable_repr(value))


def teacher_key(model: nn.Module) -> str:
    """Digest of a model: class, modules with their settings, and every entry of its ``state_dict``, byte by byte.

    Takes any dtype and device; copies one tensor at a time.
    """
    key = _Key()
    key.text(type(model).__name__, _stable_repr(model))
    for name, value in model.state_dict().items():
        key.text(name)
        key.content(value)
    return key.hex()


def data_key(dataset: Dataset[Any]) -> str:
    """Digest of a data set's labels and images, before any transform; wrappers do not change it, subsets do.

    Images in memory (``data``, ``images``, ``tensors``: arrays or tensors) count in full; lists of files (``samples``
    and the like) count with path below ``root``, size and time of change; of any other data set only the class name
    and length are known.

    Raises:
        ConfigError: the data set has no labels to find.
    """
    key = _Key()
    key.array(np.asarray(labels_of(dataset), dtype=np.int64))
    for layer in layers_of(dataset):
        if not inner_datasets(layer):
            key.text(type(layer).__name__, length_of(layer))
            _add_images(key, layer)
        elif hasattr(layer, "indices"):
            key.text("indices")
            key.array(np.asarray([int(index) for index in layer.indices], dtype=np.int64))
    return key.hex()


def image_keys(dataset: Any) -> list[str] | None:
    """What tells the images of a data set apart, one key a sample: its file, or a digest of its pixels untransformed.

    Looks into whatever keeps or picks samples: wrappers, subsets, concatenations. ``None`` where images are neither
    files that are listed (``samples`` and the like) nor arrays in memory.
    """
    parts = inner_datasets(dataset)
    if not parts:
        return _own_image_keys(dataset)
    inside = [image_keys(part) for part in parts]
    if None in inside or (len(inside) > 1 and not isinstance(dataset, ConcatDataset)):
        return None
    keys = [key for part in inside for key in part or ()]
    indices = getattr(dataset, "indices", None)
    picked = keys if indices is None else [keys[int(index)] for index in indices]
    return picked if len(picked) == length_of(dataset) else None


def _own_image_keys(dataset: Any) -> list[str] | None:
    count = length_of(dataset)
    for name in _FILE_ATTRIBUTES:
        paths = _paths(getattr(dataset, name, None))
        if len(paths) == count > 0:
            return [os.path.abspath(path) for path in paths]  # noqa: PTH100  # Path.absolute() keeps '..'
    for name in _ARRAY_ATTRIBUTES:
        rows = getattr(dataset, name, None)
        if isinstance(rows, (np.ndarray, Tensor)) and rows.ndim > 1 and len(rows) == count:
            return [_digest(row) for row in rows]
    return None


def _digest(row: NDArray[Any] | Tensor) -> str:
    key = _Key()
    key.array(row)
    return key.hex()


def views_key(views: FixedViews, probes: int = 16) -> str:
    """Digest of K, the seed, the transforms' repr, and the pixels of a view of ``probes`` samples spread evenly.

    The pixels show a change of the transform that its repr does not show.

    Args:
        views: the data set.
        probes: number of samples; probe j is view j % K.

    Raises:
        ConfigError: a view drawn twice differs, so the transform has a random state of its own.
    """
    key = _Key()
    key.text(views.views, views.seed)
    for layer in layers_of(views):
        for name in _TRANSFORM_ATTRIBUTES:
            if getattr(layer, name, None) is not None:
                key.text(name, _stable_repr(getattr(layer, name)))
    count = min(probes, len(views))
    for j in range(count):
        key.text(_probe(views, j * len(views) // count, j % views.views))
    return key.hex()


def _probe(views: FixedViews, index: int, view: int) -> str:
    """Digest of a view's image, drawn twice."""
    first, second = _Key(), _Key()
    first.content(views.view(index, view)[0])
    second.content(views.view(index, view)[0])
    if first.hex() != second.hex():
        raise ConfigError(
            f"dataset {type(views.dataset).__name__}: view {view} of sample {index} is different each time, so its "
            "transform draws from a random state of its own and cannot be cached; allowed: the global states of "
            "random, numpy.random and torch"
        )
    return first.hex()


def _add_images(key: _Key, dataset: Dataset[Any]) -> None:
    for name in _ARRAY_ATTRIBUTES:
        values = getattr(dataset, name, None)
        if isinstance(values, (np.ndarray, Tensor, tuple)):
            key.text(name)
            key.content(values)
    for name in _FILE_ATTRIBUTES:
        paths = _paths(getattr(dataset, name, None))
        if paths:
            _add_files(key, paths, getattr(dataset, "root", None))
            return


def _paths(entries: object) -> list[str]:
    """The paths in a list of paths or of (path, label); empty where it is something else."""
    if not isinstance(entries, list):
        return []
    firsts = [entry[0] if isinstance(entry, (tuple, list)) and entry else entry for entry in entries]
    return [str(path) for path in firsts] if all(isinstance(path, (str, Path)) for path in firsts) else []


def _add_files(key: _Key, paths: list[str], root: object) -> None:
    for path in paths:
        key.text(os.path.relpath(path, root) if isinstance(root, (str, Path)) else path)
        try:
            status = Path(path).stat()
        except OSError:  # not a path as it stands; the name must do
            continue
        key.text(status.st_size, status.st_mtime_ns)


def _stable_repr(value: object) -> str:
    """The repr without addresses in memory, which change from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
