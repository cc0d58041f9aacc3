"""Caltech-UCSD Birds-200-2011: 11,788 photographs of 200 species, read from the folder that the archive unpacks to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gkd_plugin.data.image_files import ImageFiles, existing_folder
from gkd_plugin.data.images import Transform
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["cub200"]

_FLAGS = {"train": "1", "test": "0"}  # in train_test_split.txt: is_training_image


def cub200(
    root: str | Path,
    split: str = "train",
    transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> ImageFiles:
    """CUB-200-2011 with its official split (5,994 training and 5,794 test images).

    Args:
        root: the folder with ``classes.txt``, ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and
            ``images``, or the folder with ``CUB_200_2011`` in it; ``~`` is allowed.
        split: ``'train'`` or ``'test'``.
        transform: as in :class:`gkd_plugin.data.ImageFiles`.
        eval_transform: as in :class:`gkd_plugin.data.ImageFiles`.

    Returns:
        The images in the order of ``images.txt``; ``classes`` are the names of ``classes.txt`` in its order.

    Raises:
        ConfigError: a file is missing or malformed (with the line), the files contradict each other, or an image is not
            there.
    """
    if split not in _FLAGS:
        raise ConfigError(f"split: {split!r} is unknown; {nearest(split, _FLAGS)}")
    folder = _unpacked(existing_folder(root))
    names = _table(folder / "classes.txt")
    images = _table(folder / "images.txt")
    classes = _column(folder / "image_class_labels.txt", images, allowed=names)
    flags = _column(folder / "train_test_split.txt", images, allowed=dict.fromkeys(_FLAGS.values(), ""))
    labels = {number: label for label, number in enumerate(names)}
    samples = [
        (str(folder / "images" / name), labels[classes[number]])
        for number, name in images.items()
        if flags[number] == _FLAGS[split]
    ]
    missing = [path for path, _ in samples if not Path(path).is_file()]
    if missing:
        raise ConfigError(f"root: {len(missing)} of {len(samples)} images of images.txt are missing, e.g. {missing[0]}")
    return ImageFiles(samples, list(names.values()), folder, transform, eval_transform)


def _unpacked(folder: Path) -> Path:
    inner = folder / "CUB_200_2011"
    return inner if inner.is_dir() and not (folder / "images.txt").exists() else folder


def _table(path: Path) -> dict[str, str]:
    """Number → the rest of the line, in the order of the file.

    Raises:
        ConfigError: no such file, a line that is not "number value", a number twice, or no line at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"root: there is no file {path}; CUB_200_2011.tgz has it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"root: {path} cannot be read: {error}") from error
    table: dict[str, str] = {}
    for count, line in enumerate(lines, start=1):
        number, _, value = line.strip().partition(" ")
        if not number.isdecimal() or not value:
            raise ConfigError(f"root: {path}, line {count}: {line!r} given; must be a number and a value")
        if number in table:
            raise ConfigError(f"root: {path}, line {count}: number {number} is there twice")
        table[number] = value
    if not table:
        raise ConfigError(f"root: {path} is empty")
    return table


def _column(path: Path, images: Mapping[str, str], *, allowed: Mapping[str, str]) -> dict[str, str]:
    """The value of each image.

    Raises:
        ConfigError: as :func:`_table`; an image has no value, or one that is not allowed.
    """
    table = _table(path)
    for number, name in images.items():
        if number not in table:
            raise ConfigError(f"root: {path} has no line for image {number} ({name})")
        if table[number] not in allowed:
            raise ConfigError(f"root: {path}: image {number} has {table[number]!r}; {nearest(table[number], allowed)}")
    return table
