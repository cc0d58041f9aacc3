"""Digests of what a teacher's answers depend on: its weights, the images, the views of them."""

import hashlib
import os
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from gkd_plugin.data import FixedStream, FixedViews, Stream, inner_datasets, labels_of, layers_of, length_of, unwrapped
from gkd_plugin.errors import ConfigError

_FILES = ("samples", "_samples", "imgs", "_image_files", "_images")  # torchvision's lists of paths or (path, label)
_ARRAYS = ("data", "images")


def digest(*parts: object) -> str:
    """32 hex digits of tensors and arrays (type, shape and every byte), and of the repr of anything else."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = part if isinstance(part, (Tensor, np.ndarray)) else None
        for words in (part,) if array is None else (str(array.dtype), list(array.shape)):
            text = words if isinstance(words, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(words))  # addresses vary
            found.update(b"%d:%s" % (len(text.encode()), text.encode()))
        if isinstance(array, Tensor):
            array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if array is not None:
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def model_key(model: nn.Module, but: tuple[str, ...] = ()) -> str:
    """Digest of a model: its class, its modules with their settings, its images' size, and its ``state_dict``.

    All of that, but entries whose names begin with one of ``but``. A divided model knows that of the whole.
    """
    if hasattr(model, "whole_key"):
        return str(model.whole_key)
    entries = ((name, value) for name, value in model.state_dict().items() if not name.startswith(but))
    size = getattr(model, "own_size", None)  # of timm_model's input_size, which no module shows
    return digest(type(model).__name__, model, size, *chain.from_iterable(entries))


def data_key(dataset: Dataset[Any]) -> str:
    """Digest of the labels and images of a data set, before any transform; wrappers do not change it.

    Of files, the last two parts of the path, the size and the time of change count, so that the data may lie anywhere.
    Where :func:`image_keys` knows nothing of the images, the labels alone count.
    """
    if isinstance(unwrapped(dataset), Stream):
        return digest(bank_keys(dataset))
    return digest(labels_of(dataset), [_without_folder(key) for key in image_keys(dataset) or ()])


def bank_keys(dataset: Dataset[Any]) -> list[str]:
    """Digests of what has a bank of its own: the shards of a stream, or all of another data set."""
    stream: Any = unwrapped(dataset)
    if not isinstance(stream, Stream):
        return [data_key(dataset)]
    if not stream.files:
        raise ConfigError("only shards on a disk (name: 'wds/') are known again")
    read = stream.reader
    settings = (read.input_key, read.input_img_mode, read.target_key, read.split_info.alt_label, read.class_to_idx)
    return [digest(_without_folder(Path(file)), settings) for file in stream.files]


def _without_folder(key: Path | str) -> object:
    if isinstance(key, str):
        return key
    try:
        status = key.stat()
    except OSError:  # not a path as it stands; its name must do
        return key.parts[-2:]
    return *key.parts[-2:], status.st_size, status.st_mtime_ns


def views_key(views: FixedViews | FixedStream, probes: int = 16) -> str:
    """Digest of K, the seed, the transforms' repr, and the pixels of ``probes`` views."""
    first, second = ([digest(image) for image in views.probes(probes)] for _ in range(2))
    if first != second:
        advice = "its transform must draw from the global generators of random, numpy.random or torch"
        raise ConfigError(f"dataset {type(views.org_dataset).__name__}: a fixed view is different each time; {advice}")
    steps = [getattr(layer, name, None) for layer in layers_of(views) for name in ("transforms", "transform")]
    return digest(views.views, views.seed, steps, first)  # pixels show what a transform's repr may not


def image_keys(dataset: Any) -> list[Path | str] | None:
    """What tells the images of a data set apart: each one's file, or a digest of its pixels before any transform.

    Looks into wrappers, subsets and concatenations. ``None`` where images are neither listed files nor arrays.
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


def _own_image_keys(dataset: Any) -> list[Path | str] | None:
    count = length_of(dataset)
    for entries in (getattr(dataset, name, None) for name in _FILES):
        if isinstance(entries, list) and len(entries) == count > 0:
            paths = [entry[0] if isinstance(entry, (tuple, list)) and entry else entry for entry in entries]
            if all(isinstance(path, (str, Path)) for path in paths):
                return [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100  # Path.absolute() keeps '..'
    for rows in (getattr(dataset, name, None) for name in _ARRAYS):
        if isinstance(rows, (np.ndarray, Tensor)) and rows.ndim > 1 and len(rows) == count:
            return [digest(row) for row in rows]
    return None
