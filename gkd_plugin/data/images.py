"""Image datasets from arrays in memory and from ``.npz`` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from gkd_plugin.data._checks import whole_number
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["ArrayImages", "npz_images"]

Transform = Callable[[Any], Any]


class ArrayImages(Dataset[Any]):
    """A torchvision-style dataset of images in memory; samples are ``(transform(PIL image), int label)``.

    With ``eval_transform`` the dataset has the attribute ``evaluation_view``: the same images, transformed by it.

    Args:
        images: uint8, ``[N, H, W]`` (grey) or ``[N, H, W, 3]`` (RGB).
        targets: N labels.
        classes: the class names in the order of the labels; ``None`` takes the labels 0, 1, … as names.
        transform: takes a PIL image; ``None`` returns the PIL image.
        eval_transform: the transform of the evaluation view.

    Raises:
        ConfigError: the images are of another type or shape, or there is not one label for each image.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        targets: Sequence[int] | NDArray[Any],
        classes: Sequence[str] | None = None,
        transform: Transform | None = None,
        eval_transform: Transform | None = None,
    ) -> None:
        _check_images(images)
        if len(images) != len(targets):
            raise ConfigError(f"targets: {len(targets)} labels for {len(images)} images; one for each is needed")
        self.data = images
        self.targets = [int(label) for label in targets]
        count = max(self.targets, default=-1) + 1
        self.classes = [str(name) for name in (range(count) if classes is None else classes)]
        self.transform = transform
        self.eval_transform = eval_transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    @property
    def evaluation_view(self) -> ArrayImages:
        """The same images with ``eval_transform``.

        Raises:
            AttributeError: there is no ``eval_transform``.
        """
        if self.eval_transform is None:
            raise AttributeError("ArrayImages has no evaluation_view without eval_transform")
        return ArrayImages(self.data, self.targets, self.classes, self.eval_transform)


def npz_images(
    path: str | Path,
    split: str = "train",
    pool: int = 1,
    transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> ArrayImages:
    """Reads a split of an ``.npz`` file with ``x_<split>``, ``y_<split>`` and, optionally, ``class_names``.

    Args:
        path: the file; ``~`` is allowed.
        split: ``'train'``, ``'test'`` or any other that the file has.
        pool: p replaces each p × p square of pixels by its rounded mean.
        transform: as in :class:`ArrayImages`.
        eval_transform: as in :class:`ArrayImages`.

    Raises:
        ConfigError: the file is missing or unreadable, has no such split, or ``pool`` does not divide the images.
    """
    whole_number("pool", pool, low=1)
    arrays = _read_npz(Path(path).expanduser(), split)
    return ArrayImages(
        _pooled(arrays[f"x_{split}"], pool),
        arrays[f"y_{split}"],
        arrays.get("class_names"),
        transform,
        eval_transform,
    )


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ConfigError(f"images must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} {list(images.shape)}")


def _read_npz(path: Path, split: str) -> dict[str, Any]:
    """The arrays of the split, and the class names where the file has them."""
    if not path.is_file():
        raise ConfigError(f"path: there is no file {path}{_neighbours(path)}")
    with _opened(path) as archive:
        _check_split(path, split, archive.files)
        names = [name for name in (f"x_{split}", f"y_{split}", "class_names") if name in archive.files]
        try:
            return {name: archive[name] for name in names}
        except (ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"path: {path} has damaged or pickled arrays, which are not read") from error


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"path: {path} is not a readable .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ConfigError(f"path: {path} holds a single array, not an .npz of several")
    return archive


def _neighbours(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.npz")] if path.parent.is_dir() else []
    return f"; {path.parent}: {nearest(path.name, names)}" if names else ""


def _check_split(path: Path, split: str, keys: Iterable[str]) -> None:
    present = set(keys)
    splits = [key[2:] for key in present if key.startswith("x_") and f"y_{key[2:]}" in present]
    if split not in splits:
        raise ConfigError(
            f"split: {path} has no x_{split} and y_{split}; {nearest(split, splits)}; "
            f"it holds {', '.join(sorted(present))}"
        )


def _pooled(images: NDArray[np.uint8], pool: int) -> NDArray[np.uint8]:
    """``[N, H, W(, 3)]`` → ``[N, H / pool, W / pool(, 3)]``."""
    _check_images(images)
    if pool == 1:
        return images
    count, height, width, *rest = images.shape
    if height % pool or width % pool:
        raise ConfigError(f"pool={pool} does not divide images of {height} × {width} pixels")
    total = np.zeros((count, height // pool, width // pool, *rest), np.uint32)
    for row, column in product(range(pool), repeat=2):  # much faster than a mean over two axes
        total += images[:, row::pool, column::pool]
    pooled: NDArray[np.uint8] = np.rint(total / pool**2).astype(np.uint8)
    return pooled
