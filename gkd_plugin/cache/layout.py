"""The two files of a bank: ``<digest>.npy``, ``[rows, sum of the widths]``, and ``<digest>.json``, its description.

The second is put in place last, so where it is, the bank is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gkd_plugin.cache.fingerprint import Fingerprint
from gkd_plugin.errors import ConfigError

__all__ = ["DTYPE", "FORMAT", "WHERE", "Description", "bank_paths", "checksum", "disk_errors", "reason_of"]

FORMAT = 1
DTYPE = np.dtype("<f2")
WHERE = "teacher_cache.folder"


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of ``<digest>.json``.

    Attributes:
        format: version of the two files' format.
        fingerprint: of what the bank was computed from.
        rows: the number of rows.
        columns: name → width, in the order of the array.
        checksum: of the array's bytes.
    """

    format: int
    fingerprint: Fingerprint
    rows: int
    columns: dict[str, int]
    checksum: str

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return self.rows, sum(self.columns.values())

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Description:
        """The description from what the JSON holds.

        Raises:
            TypeError: a field is missing, unknown or of another type.
        """
        made = cls(**{**fields, "fingerprint": Fingerprint(**fields.get("fingerprint", {}))})
        if not isinstance(made.columns, dict) or not made.columns:
            raise TypeError(f"columns must be widths by name, got {made.columns!r}")
        sizes = [made.rows, *made.columns.values()]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise TypeError(f"rows and widths must be whole numbers from 1 up, got {sizes}")
        return made


def bank_paths(folder: Path, fingerprint: Fingerprint) -> tuple[Path, Path]:
    """The array's file and the description's."""
    return folder / f"{fingerprint.digest}.npy", folder / f"{fingerprint.digest}.json"


def checksum() -> hashlib.blake2b:
    """A new hash, to be updated with the array's bytes."""
    return hashlib.blake2b(digest_size=16)


@contextlib.contextmanager
def disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Turns an ``OSError`` into a ConfigError: the folder cannot be ``what``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{WHERE}: {folder} cannot be {what}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an exception says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
