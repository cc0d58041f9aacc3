"""Image files on a disk: which ones a folder holds, and how each is read."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gkd_plugin.errors import ConfigError, nearest_beside

logger = logging.getLogger(__name__)

_NOT_ALONE = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")  # Pillow only knows them, or needs other programs
_HIDDEN = ("__MACOSX", "__pycache__", "@eaDir")  # beside names that begin with a dot
_BRIGHTEST = {"F": (1.0, 2.0**8 - 1, 2.0**16 - 1), "I": (2.0**16 - 1, 2.0**31 - 1)}  # the first that no pixel exceeds


def existing_folder(root: str | Path, key: str = "root") -> Path:
    """The folder, ``~`` expanded; raises ConfigError at ``key`` where there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}{nearest_beside(folder)}")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a program made the file or folder for itself."""
    return name.startswith(".") or name in _HIDDEN


def images_below(folder: Path) -> list[str]:
    """Paths of the images in it and in all folders in it, in order; links are followed, hidden names are left out.

    An image is a file whose suffix Pillow reads. The log says what else there was.
    """
    Image.init()
    kinds = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _NOT_ALONE}
    found, others, seen = list[tuple[str, str]](), Counter[str](), set[str]()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(name)]
        for name in names if real not in seen else ():
            suffix = Path(name).suffix.lower()
            if suffix in kinds and not is_hidden(name):
                found.append((where, name))
            elif not is_hidden(name):
                others[suffix or "without suffix"] += 1
        seen.add(real)  # a link may lead here again
    if others:
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
        logger.warning("%s: %d files are no images and are left out: %s", folder, others.total(), counts)
    return [str(Path(where, name)) for where, name in sorted(found)]


def read_image(path: str) -> Image.Image:
    """The image in RGB, upright as its EXIF data says.

    16-bit and 32-bit integers are scaled to 8 bits by the range of their type, floats by the first of 1, 255 and 65535
    that no pixel exceeds. Raises ConfigError: there is no such file, or no image that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's formats raise
        reason = getattr(error, "strerror", None) or "it is damaged, or of no format that Pillow reads"
        raise ConfigError(f"image {path} cannot be read: {reason}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    kind = "I" if image.mode.startswith("I;16") else image.mode
    if kind in _BRIGHTEST:
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        brightest = next((value for value in _BRIGHTEST[kind] if pixels.max() <= value), pixels.max())
        image = Image.fromarray(np.rint(pixels.clip(0) * (255 / brightest)).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
