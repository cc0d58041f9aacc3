"""Image datasets from files: images that are read when they are asked for, and the plain folder of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from gkd_plugin.data.images import Transform
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["ImageFiles", "existing_folder", "image_folder"]


class ImageFiles(Dataset[Any]):
    """A torchvision-style dataset of image files; samples are ``(transform(RGB PIL image), int label)``.

    With ``eval_transform`` the dataset has the attribute ``evaluation_view``: the same files, transformed by it.

    Args:
        samples: (path, label) pairs.
        classes: the class names in the order of the labels.
        root: the folder that the paths lie in.
        transform: takes a PIL image; ``None`` returns the PIL image.
        eval_transform: the transform of the evaluation view.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        root: str | Path,
        transform: Transform | None = None,
        eval_transform: Transform | None = None,
    ) -> None:
        self.samples = list(samples)
        self.targets = [label for _, label in self.samples]
        self.classes = list(classes)
        self.root = str(root)
        self.transform = transform
        self.eval_transform = eval_transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = _read_rgb(path)
        return (image if self.transform is None else self.transform(image)), label

    @property
    def evaluation_view(self) -> ImageFiles:
        """The same files with ``eval_transform``.

        Raises:
            AttributeError: there is no ``eval_transform``.
        """
        if self.eval_transform is None:
            raise AttributeError("ImageFiles has no evaluation_view without eval_transform")
        return ImageFiles(self.samples, self.classes, self.root, self.eval_transform)


def image_folder(
    root: str | Path, transform: Transform | None = None, eval_transform: Transform | None = None
) -> ImageFiles:
    """A folder with a folder of images for each class: ``root/<class>/….jpg``, as torchvision's ``ImageFolder``.

    The labels are the positions of the class folders in alphabetical order.

    Args:
        root: the folder; ``~`` is allowed.
        transform: as in :class:`ImageFiles`.
        eval_transform: as in :class:`ImageFiles`; training sets need it for class centres on clean images.

    Raises:
        ConfigError: there is no such folder, no class folder in it, or one without images.
    """
    folder = existing_folder(root)
    try:
        found = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ConfigError(f"root: {folder}: {error}; it needs a folder of images for each class") from error
    return ImageFiles(found.samples, found.classes, folder, transform, eval_transform)


def existing_folder(root: str | Path) -> Path:
    """The path of ``root``, ``~`` resolved.

    Raises:
        ConfigError: there is no such folder; names the nearest of its siblings.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        return folder
    parent = folder.parent
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    hint = f"; in {parent}: {nearest(folder.name, siblings)}" if siblings else ""
    raise ConfigError(f"root: there is no folder {folder}{hint}")


def _read_rgb(path: str) -> Image.Image:
    """Raises ConfigError: the file is gone, or no image that Pillow reads."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's formats raise
        reason = getattr(error, "strerror", None) or "it is damaged, or of no format that Pillow reads"
        raise ConfigError(f"image {path} cannot be read: {reason}") from error
