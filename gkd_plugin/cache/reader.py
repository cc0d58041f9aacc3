"""Reading a bank, after checking that it is whole and the one asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gkd_plugin.cache.fingerprint import Fingerprint
from gkd_plugin.cache.layout import (
    DTYPE,
    FORMAT,
    WHERE,
    Description,
    bank_paths,
    checksum,
    disk_errors,
    reason_of,
)
from gkd_plugin.errors import ConfigError

__all__ = ["FeatureBank"]

_CHUNK = 1 << 24


class FeatureBank:
    """A complete, checked bank; made by :meth:`open`.

    Attributes:
        rows: the number of rows.
        columns: name → width, in the order of the array.
        nbytes: size of the array.
    """

    def __init__(self, array: np.memmap[Any, Any], columns: Mapping[str, int]) -> None:
        self._array = array
        self.rows = len(array)
        self.columns = dict(columns)
        self.nbytes = array.nbytes

    @classmethod
    def open(cls, folder: Path, fingerprint: Fingerprint) -> FeatureBank | None:
        """The bank of this fingerprint, or ``None`` where there is none; reads the array once, for its checksum.

        Raises:
            ConfigError: there is one that cannot be used: incomplete, damaged, or computed from something else.
        """
        array, description = bank_paths(folder, fingerprint)
        with disk_errors(folder, "read"):
            if not array.exists() and not description.exists():
                return None
        try:
            found = _read_description(description, fingerprint)
            return cls(_checked_array(array, found), found.columns)
        except (ConfigError, OSError) as error:
            raise ConfigError(
                f"{WHERE}: {reason_of(error)}; delete {array} and {description} to have the bank computed anew"
            ) from error

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Some rows, on the CPU in float32.

        Args:
            rows: whole numbers ``[B]``.

        Returns:
            For each column ``[B, width]``.

        Raises:
            ConfigError: the rows are not whole numbers ``[B]``, or one is not in the bank.
        """
        if rows.ndim != 1 or rows.dtype.is_floating_point or rows.dtype == torch.bool:
            raise ConfigError(f"rows of the feature bank must be whole numbers [B], got {rows.dtype} {[*rows.shape]}")
        index = rows.detach().cpu().numpy()
        outside = index[(index < 0) | (index >= self.rows)]
        if outside.size:
            raise ConfigError(f"row {outside[0]} is not in the feature bank, allowed 0 … {self.rows - 1}")
        values = np.asarray(self._array)[index]
        ends = np.cumsum(list(self.columns.values()))[:-1]
        parts = np.split(values, ends, axis=1)
        named = zip(self.columns, parts, strict=True)
        return {name: torch.from_numpy(part.astype(np.float32, order="C")) for name, part in named}


def _read_description(path: Path, fingerprint: Fingerprint) -> Description:
    """The description, where it is of this format and fingerprint.

    Raises:
        ConfigError: it is not, or is missing or unreadable.
    """
    _check_exists(path)
    fields = _read_fields(path)
    if fields.get("format") != FORMAT:
        raise ConfigError(f"{path.name} has format version {fields.get('format')!r}, this program reads {FORMAT}")
    try:
        found = Description.from_fields(fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path.name} does not describe a feature bank: {reason_of(error)}") from error
    different = fingerprint.differences(found.fingerprint)
    if different:
        raise ConfigError(f"{path.name}: the bank was computed from something else; different: {', '.join(different)}")
    return found


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path.name} is damaged: it is no JSON") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path.name} does not describe a feature bank: it is no JSON object")
    return fields


def _checked_array(path: Path, expected: Description) -> np.memmap[Any, Any]:
    """The array, mapped, after its header, size and checksum were found right.

    Raises:
        ConfigError: they are not.
    """
    _check_exists(path)
    with path.open("rb") as file:
        _check_header(file, path.name, expected.shape)
        start = file.tell()
        _check_size(path, start + expected.shape[0] * expected.shape[1] * DTYPE.itemsize)
        found = checksum()
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != expected.checksum:
        raise ConfigError(f"{path.name} is damaged: its checksum is not the one in its description")
    return np.memmap(path, dtype=DTYPE, mode="r", offset=start, shape=expected.shape)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"the feature bank is incomplete: there is no {path.name}")


def _check_header(file: BinaryIO, name: str, expected: tuple[int, int]) -> None:
    try:
        npy.read_magic(file)
        shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    except Exception as error:  # broken headers raise whatever the parser meets first
        raise ConfigError(f"{name} is damaged: it has no readable .npy header") from error
    if shape != expected or dtype != DTYPE or is_fortran:
        raise ConfigError(f"{name} is {dtype} {list(shape)}, its description says {DTYPE} {list(expected)}")


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise ConfigError(f"{path.name} is {what}: {size} bytes, should be {expected}")
