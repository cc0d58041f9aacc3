"""Files on a disk: which images a folder holds, how each is read, and writing in one step."""

import hashlib
import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from gkd_plugin.errors import ConfigError, first_line, nearest_beside, one_of

logger = logging.getLogger(__name__)

_SUFFIXES = {*IMG_EXTENSIONS, ".apng", ".avif", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".pbm", ".pnm", ".tga"}
_HIDDEN = ("__MACOSX", "__pycache__", "@eaDir")  # beside names that begin with a dot
_BRIGHTEST = {"F": (1, 2**8 - 1, 2**16 - 1), "I": (2**8 - 1, 2**16 - 1, 2**31 - 1), "I;16": (2**16 - 1,)}


def existing_folder(root: str | Path, key: str = "root") -> Path:
    """The folder, ``~`` expanded; raises ConfigError at ``key`` where there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}{nearest_beside(folder, is_folder=True)}")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a program made the file or folder for itself."""
    return name.startswith(".") or name in _HIDDEN


def images_below(folder: Path) -> list[str]:
    """Paths of the images in it and in all folders in it, in order; links are followed, hidden names are left out.

    An image is a file with the suffix of a photo that Pillow reads. The log says what else there was. Raises
    ConfigError: a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise ConfigError(f"folder {error.filename} cannot be read: {error.strerror}")

    kinds = _SUFFIXES & Image.registered_extensions().keys()
    found, others, seen = list[tuple[str, str]](), Counter[str](), set[str]()
    for where, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        for name in names if real not in seen else ():
            suffix = Path(name).suffix.lower()
            if suffix in kinds and not is_hidden(name):
                found.append((where, name))
            elif not is_hidden(name):
                others[suffix or "without suffix"] += 1
        seen.add(real)  # a link may lead here again
    if others:
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
        count = others.total()
        are = "file is no image and is" if count == 1 else "files are no images and are"
        logger.warning("%s: %d %s left out: %s", folder, count, are, counts)
    return [str(Path(where, name)) for where, name in sorted(found)]


def unreadable_images(paths: Sequence[str], root: Path, on_bad_image: str = "refuse") -> set[str]:
    """Those of the images below ``root`` that Pillow cannot read; each is decoded, unless it is known from before.

    With ``on_bad_image='skip'`` the log names the first ten. Raises ConfigError: ``'refuse'``, and there are some.
    """
    one_of("on_bad_image", on_bad_image, ("refuse", "skip"))
    bad = _problems(paths, root)
    if bad:
        names = ", ".join([os.path.relpath(path, root) for path in bad][:10])
        listed = f"{names}{', …' if len(bad) > 10 else ''} (the first: {next(iter(bad.values()))})"
        text = f"{len(bad)} of {len(paths)} images in {root} cannot be read: {listed}"
        if on_bad_image == "refuse":
            raise ConfigError(f"{text}; mend or remove them, or leave them out by on_bad_image: 'skip'")
        logger.warning("%s; they are left out", text)
    return set(bad)


def _problems(paths: Sequence[str], root: Path) -> dict[str, str]:
    """Path → reason of what cannot be read. For each root, torch's cache folder keeps size and time of what can be."""
    key = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    memory = Path(torch.hub.get_dir(), "gkd_plugin", f"{key}.json")
    known, read = dict[str, list[int]](), dict[str, list[int]]()
    with suppress(OSError, ValueError, TypeError):  # there is none, or another process is writing it
        known |= json.loads(memory.read_text("utf-8"))

    def problem(path: str) -> str:
        try:
            status, name = Path(path).stat(), os.path.relpath(path, root)
            stamp = [status.st_size, status.st_mtime_ns]
            if known.get(name) != stamp:
                _read(path, quick=True)
                read[name] = stamp
        except Exception as error:
            return _reason(error)
        return ""

    with ThreadPool() as pool:  # Pillow decodes without holding the interpreter
        found = pool.imap(problem, paths, chunksize=16)
        shown = tqdm(found, "checking images", len(paths), leave=False, disable=None, delay=1)
        bad = {path: reason for path, reason in zip(paths, shown, strict=True) if reason}
    if read:
        with suppress(OSError):  # without a memory the next check takes as long
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(known | read), "utf-8")
    return bad


def read_image(path: str) -> Image.Image:
    """The image in RGB, upright as its EXIF data says.

    16-bit integers are scaled to 8 bits; other integers, and floats, by the first of 1 (floats only), 255, 65535 and
    2³¹ − 1 that no pixel exceeds. What is negative or not finite is black. Raises ConfigError: there is no such file,
    or no image that Pillow reads.
    """
    try:
        return _read(path)
    except Exception as error:
        raise ConfigError(f"image {path} cannot be read: {_reason(error)}") from error


def _read(path: str, *, quick: bool = False) -> Image.Image:
    """Raises anything, as Pillow's formats do; ``quick`` reads the whole file, but a JPEG at an eighth of its size."""
    with Image.open(path) as image:
        if quick:
            image.draft(None, (1, 1))
        image.load()
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """As :func:`read_image`, of an image in memory, which may change."""
    with suppress(Exception):  # what Pillow raises of damaged tags, when it has turned the image in place
        ImageOps.exif_transpose(image, in_place=True)
    return _as_rgb(image)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"Pillow says: {first_line(error)}"


def _as_rgb(image: Image.Image) -> Image.Image:
    kind = "I;16" if image.mode.startswith("I;16") else image.mode
    if kind in _BRIGHTEST:
        pixels = np.asarray(image, dtype=np.float64)
        pixels = np.where(np.isfinite(pixels), pixels, 0).clip(0)
        highest = float(pixels.max())
        brightest = next((value for value in _BRIGHTEST[kind] if highest <= 1.01 * value), highest)
        image = Image.fromarray(np.rint(pixels * (255 / brightest)).clip(0, 255).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def first_difference(file: Path, wanted: str) -> str:
    """The first line in which a file, of whatever kind, differs from a text; empty where none does."""
    there = file.read_text(encoding="utf-8", errors="replace")
    lines = zip_longest(there.splitlines(), wanted.splitlines(), fillvalue="")
    for number, (a, b) in enumerate(lines, start=1):
        if a != b:
            same = next(place for place, (x, y) in enumerate(zip_longest(a, b)) if x != y)
            start = max(same - 20, 0)  # lines may be long
            return f"line {number} says {a[start : start + 60]!r}, not {b[start : start + 60]!r}"
    return ""


@contextmanager
def told_unwritten(path: Path) -> Iterator[None]:
    """What writing to the path raises becomes a ConfigError; torch raises RuntimeError where the disk is full."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path} cannot be written: {first_line(error)}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary file beside ``path``, then puts it in place in one step.

    Raises ConfigError, with the path, where it cannot be written: the disk is full, say. The old file is still there.
    """
    # torch.save keeps what is before the last dot; no process id: another machine may have it too
    temporary = path.with_name(f".{path.name}.tmp{secrets.token_hex(4)}")
    with told_unwritten(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
