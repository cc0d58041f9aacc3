"""Image datasets: arrays in memory, ``.npz`` files, scikit-learn's digits, folders of classes, and CUB-200-2011.

All raise ConfigError where a file or folder is missing, unreadable or malformed (with the line), where labels and
images do not fit together, and where an argument is out of range.
"""

import itertools
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from gkd_plugin.data.files import existing_folder, images_below, is_hidden, read_image, unreadable_images
from gkd_plugin.errors import ConfigError, is_number, nearest, nearest_beside, one_of, whole_number

__all__ = ["ArrayImages", "ImageFiles", "TransformedImages", "cub200", "digits", "image_folder", "npz_images"]

Labels = Sequence[int] | NDArray[Any]
Transform = Callable[[Any], Any] | None

_CUB_FLAGS = {"train": "1", "test": "0"}  # in train_test_split.txt: is_training_image


def check_transforms(transform: Any, eval_transform: Any) -> None:
    """Raises ConfigError where one is not ``None`` and cannot be called."""
    for name, given in (("transform", transform), ("eval_transform", eval_transform)):
        if not (given is None or callable(given)):
            raise ConfigError(f"{name}: {given!r} given; must take an image, e.g. gkd_plugin.data.image_transform")


class TransformedImages(Dataset[Any], ABC):
    """A torchvision-style dataset: samples are ``(transform(PIL image), int label)``.

    Args:
        targets: the labels.
        classes: the class names in the order of the labels.
        transform: takes a PIL image; ``None`` returns the PIL image.
        eval_transform: the transform of the evaluation view, without augmentation; ``None`` offers no such view, and
            class centres are then computed on augmented images.
    """

    def __init__(
        self, targets: Labels, classes: Sequence[Any], transform: Transform, eval_transform: Transform
    ) -> None:
        self.targets, self.classes = [int(label) for label in targets], [str(name) for name in classes]
        self.transform, self.eval_transform = transform, eval_transform
        check_transforms(transform, eval_transform)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image of a sample, before any transform."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (image if self.transform is None else self.transform(image)), self.targets[index]


class ArrayImages(TransformedImages):
    """Images in memory: uint8 ``[N, H, W]`` (grey) or ``[N, H, W, 3]`` (RGB); labels 0, 1, … where ``classes`` lack."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        targets: Labels,
        classes: Sequence[str] | None = None,
        transform: Transform = None,
        eval_transform: Transform = None,
    ) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise ConfigError(f"images must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} {images.shape}")
        if len(images) != len(targets):
            raise ConfigError(f"targets: {len(targets)} labels for {len(images)} images; one for each is needed")
        names = range(max(map(int, targets), default=-1) + 1) if classes is None else classes
        super().__init__(targets, names, transform, eval_transform)
        self.data = images

    def image(self, index: int) -> Image.Image:
        """The array as a PIL image, grey or RGB."""
        return Image.fromarray(self.data[index])


class ImageFiles(TransformedImages):
    """Image files below ``root``, (path, label) each, which are read as RGB when they are asked for."""

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        root: str | Path,
        transform: Transform = None,
        eval_transform: Transform = None,
    ) -> None:
        super().__init__([label for _, label in samples], classes, transform, eval_transform)
        self.samples, self.root = list(samples), str(root)

    def image(self, index: int) -> Image.Image:
        """As :func:`gkd_plugin.data.files.read_image`."""
        return read_image(self.samples[index][0])


def npz_images(
    path: str | Path, split: str = "train", pool: int = 1, transform: Transform = None, eval_transform: Transform = None
) -> ArrayImages:
    """Reads a split of an ``.npz`` file with ``x_<split>``, ``y_<split>`` and, optionally, ``class_names``.

    Args:
        path: the file; ``~`` is allowed.
        split: ``'train'``, ``'test'`` or any other that the file has.
        pool: p replaces each p × p square of pixels by its rounded mean.
    """
    whole_number("pool", pool, low=1)
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"path: there is no file {file}{nearest_beside(file)}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            held = archive.files
            images, labels, names = (archive.get(key) for key in (f"x_{split}", f"y_{split}", "class_names"))
    except (AttributeError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"path: {file} is no .npz file of arrays, or has damaged or pickled ones") from error
    if images is None or labels is None:
        hint = nearest(split, [key[2:] for key in held if key.startswith("x_") and f"y_{key[2:]}" in held])
        raise ConfigError(f"split: {file} has no x_{split} and y_{split}; {hint}; it holds {', '.join(sorted(held))}")
    dataset = ArrayImages(images, labels, names, transform, eval_transform)
    if pool > 1:
        height, width = images.shape[1:3]
        if height % pool or width % pool:
            raise ConfigError(f"pool={pool} does not divide images of {height} × {width} pixels")
        places = itertools.product(range(pool), repeat=2)  # in a square; faster than a mean over two axes
        total = sum(images[:, row::pool, column::pool].astype(np.uint32) for row, column in places)
        dataset.data = np.rint(total / pool**2).astype(np.uint8)
    return dataset


def digits(
    split: str = "train",
    test_fraction: float = 1 / 3,
    seed: int = 0,
    *,
    transform: Transform = None,
    eval_transform: Transform = None,
    size: int | None = None,
    rgb: bool = False,
) -> ArrayImages:
    """``sklearn.datasets.load_digits``: 1,797 grey images of 8 × 8 pixels in 10 classes.

    Args:
        split: ``'train'`` or ``'test'``; the two are disjoint, and have the classes in equal parts.
        test_fraction: the part of the images that ``'test'`` has.
        seed: of the split, which does not depend on the global random state.
        size: scales the images to size × size pixels (bilinear); ``None`` leaves them at 8 × 8.
        rgb: three equal channels, as most pretrained models take them.
    """
    one_of("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError("the digits dataset needs scikit-learn: pip install 'gkd-plugin[digits]'") from error
    bunch = load_digits()
    rows = np.arange(len(bunch.target))
    whole_number("seed", seed, low=0)
    if not is_number(test_fraction) or not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    try:
        train, test = train_test_split(rows, test_size=float(test_fraction), random_state=seed, stratify=bunch.target)
    except ValueError as error:
        raise ConfigError(f"test_fraction must leave samples of each class, got {test_fraction}: {error}") from error
    chosen = np.sort(train if split == "train" else test)
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    if size is not None:
        shape = (whole_number("size", size, low=1, high=1000), size)
        scaled = (Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR) for image in images)
        images = np.stack([np.asarray(image) for image in scaled])
    if rgb:
        images = np.repeat(images[..., None], 3, axis=-1)
    return ArrayImages(images, bunch.target[chosen], bunch.target_names, transform, eval_transform)


def image_folder(
    root: str | Path,
    transform: Transform = None,
    eval_transform: Transform = None,
    classes_of: str | Path | None = None,
    on_bad_image: str = "refuse",
) -> ImageFiles:
    """A folder of images for each class, in alphabetical order: ``root/<class>/….jpg``, in folders of any depth.

    Hidden files and folders do not count, nor what computers put there unasked (``.ipynb_checkpoints``, ``__MACOSX``);
    the log says what else is left out.

    Args:
        root: the folder; ``~`` is allowed.
        classes_of: the training set's folder, whose classes these are; a test set may then lack images of some of them.
            ``None``: the folders in ``root`` are the classes, and each holds images.
        on_bad_image: ``'refuse'``: images that cannot be read are an error, which names them. ``'skip'``: they are left
            out, and the log names them.
    """
    key, source = ("root", root) if classes_of is None else ("classes_of", classes_of)
    classes, arguments = _class_folders(source, key), (transform, eval_transform, on_bad_image)
    return images_of_classes(root, classes, *arguments, may_lack=classes_of is not None)


def images_of_classes(
    root: str | Path,
    classes: Sequence[str],
    transform: Transform = None,
    eval_transform: Transform = None,
    on_bad_image: str = "refuse",
    *,
    may_lack: bool = True,
    key: str = "root",
) -> ImageFiles:
    """As :func:`image_folder`, of the ``classes`` given; ``key`` is what messages call ``root``."""
    folder, own = Path(root).expanduser(), _class_folders(root, key)
    for name in own:
        one_of(f"{key}: class folder of {folder}", name, classes)
    found = {name: images_below(folder / name) if name in own else [] for name in classes}
    bad = unreadable_images([path for images in found.values() for path in images], folder, on_bad_image)
    found = {name: [path for path in images if path not in bad] for name, images in found.items()}
    empty = [name for name, images in found.items() if not images]
    if empty and (not may_lack or len(empty) == len(classes)):
        text = f"no image in the folders of {len(empty)} of {len(classes)} classes: {', '.join(empty[:10])}"
        raise ConfigError(f"{key}: {folder}: {text}")
    samples = [(path, label) for label, images in enumerate(found.values()) for path in images]
    return ImageFiles(samples, classes, folder, transform, eval_transform)


def _class_folders(root: str | Path, key: str) -> list[str]:
    folder = existing_folder(root, key)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    if not names:
        raise ConfigError(f"{key}: {folder} holds no folders; it needs a folder of images for each class")
    return names


def cub200(
    root: str | Path, split: str = "train", transform: Transform = None, eval_transform: Transform = None
) -> ImageFiles:
    """Caltech-UCSD Birds-200-2011 with its official split: 5,994 training and 5,794 test images of 200 species.

    The images are in the order of ``images.txt``, the classes in that of ``classes.txt``.

    Args:
        root: the folder with ``classes.txt``, ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and
            ``images``, or the folder with ``CUB_200_2011`` in it; ``~`` is allowed.
        split: ``'train'`` or ``'test'``.
    """
    one_of("split", split, tuple(_CUB_FLAGS))
    folder = existing_folder(root)
    if (folder / "CUB_200_2011").is_dir() and not (folder / "images.txt").exists():
        folder /= "CUB_200_2011"
    names, images = (_cub_table(folder / name) for name in ("classes.txt", "images.txt"))
    classes = _cub_table(folder / "image_class_labels.txt", images, names)
    flags = _cub_table(folder / "train_test_split.txt", images, _CUB_FLAGS.values())
    labels = {number: label for label, number in enumerate(names)}
    chosen = [number for number in images if flags[number] == _CUB_FLAGS[split]]
    samples = [(str(folder / "images" / images[number]), labels[classes[number]]) for number in chosen]
    missing = [path for path, _ in samples if not Path(path).is_file()]
    if missing:
        raise ConfigError(f"root: {len(missing)} of {len(samples)} images of images.txt are missing, e.g. {missing[0]}")
    unreadable_images([path for path, _ in samples], folder)
    return ImageFiles(samples, list(names.values()), folder, transform, eval_transform)


def _cub_table(path: Path, images: Mapping[str, str] | None = None, allowed: Collection[str] = ()) -> dict[str, str]:
    """Number → the rest of the line, in the order of the file; one of ``allowed`` for each of the images given."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"root: {path}, which CUB_200_2011.tgz has, cannot be read: {error}") from error
    table: dict[str, str] = {}
    for count, line in enumerate(lines, start=1):
        number, _, value = line.strip().partition(" ")
        if not number.isdecimal() or not value or number in table:
            raise ConfigError(f"root: {path}, line {count}: {line!r} given; must be a new number and a value")
        table[number] = value
    if not table:
        raise ConfigError(f"root: {path} is empty")
    for number, name in (images or {}).items():
        if number not in table:
            raise ConfigError(f"root: {path} has no line for image {number} ({name})")
        one_of(f"root: {path}: image {number}", table[number], allowed)
    return table
