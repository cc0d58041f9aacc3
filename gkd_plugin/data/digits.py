"""scikit-learn's handwritten digits: real images without a download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkd_plugin.data._checks import whole_number
from gkd_plugin.data.images import ArrayImages, Transform
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["digits"]

_SPLITS = ("train", "test")


def digits(
    split: str = "train",
    test_fraction: float = 1 / 3,
    seed: int = 0,
    *,
    transform: Transform | None = None,
    eval_transform: Transform | None = None,
    size: int | None = None,
    rgb: bool = False,
) -> ArrayImages:
    """``sklearn.datasets.load_digits``: 1,797 grey images of 8 × 8 pixels in 10 classes.

    Args:
        split: ``'train'`` or ``'test'``; the two are disjoint, and have the classes in equal parts.
        test_fraction: the part of the images that ``'test'`` has.
        seed: of the split, which does not depend on the global random state.
        transform: as in :class:`gkd_plugin.data.ArrayImages`.
        eval_transform: as in :class:`gkd_plugin.data.ArrayImages`.
        size: scales the images to size × size pixels (bilinear); ``None`` leaves them at 8 × 8.
        rgb: three equal channels, as most pretrained models take them.

    Raises:
        ConfigError: scikit-learn is not installed, or an argument is out of range.
    """
    if split not in _SPLITS:
        raise ConfigError(f"split: {split!r} is unknown; {nearest(split, _SPLITS)}")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    images, labels = _split(split, test_fraction, whole_number("seed", seed, low=0))
    if size is not None:
        images = _scaled(images, whole_number("size", size, low=1))
    if rgb:
        images = np.repeat(images[..., None], 3, axis=-1)
    return ArrayImages(images, labels, [str(digit) for digit in range(10)], transform, eval_transform)


def _split(split: str, test_fraction: float, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 ``[N, 8, 8]`` and labels ``[N]`` of the split."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError("the digits dataset needs scikit-learn: pip install 'gkd-plugin[digits]'") from error
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    try:
        train, test = train_test_split(
            np.arange(len(images)), test_size=test_fraction, random_state=seed, stratify=bunch.target
        )
    except ValueError as error:
        raise ConfigError(f"test_fraction={test_fraction} leaves a class without samples: {error}") from error
    chosen = np.sort(train if split == "train" else test)
    return images[chosen], bunch.target[chosen]


def _scaled(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    scaled = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in scaled])
