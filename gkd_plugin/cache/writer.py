"""Writing a bank: all of it, or nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from numpy.lib import format as npy
from torch import Tensor
from typing_extensions import Self

from gkd_plugin.cache.fingerprint import Fingerprint
from gkd_plugin.cache.layout import DTYPE, FORMAT, WHERE, Description, bank_paths, checksum, disk_errors
from gkd_plugin.data._checks import whole_number
from gkd_plugin.errors import ConfigError

__all__ = ["BankWriter"]

_LARGEST = torch.finfo(torch.float16).max


class BankWriter:
    """Writes a bank row by row; only as a context manager.

    The folder and the room on the disk are checked at once, before anything is computed. Where the block ends with
    an exception, nothing is left behind.

    Args:
        folder: is made where it does not exist.
        fingerprint: of what the rows are computed from.
        rows: how many will be written.
        columns: name → width.

    Raises:
        ConfigError: the folder cannot be made or written to, or the disk has too little room; on leaving the block,
            also that fewer than ``rows`` rows were written.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, rows: int, columns: Mapping[str, int]) -> None:
        self.rows = whole_number("rows", rows, low=1)
        self.columns = {name: whole_number(f"columns.{name}", width, low=1) for name, width in columns.items()}
        if not self.columns:
            raise ConfigError("columns: the feature bank needs at least one")
        self._folder, self._fingerprint = folder, fingerprint
        self._targets = bank_paths(folder, fingerprint)
        unique = secrets.token_hex(4)  # not the process id, which a process on another machine may have too
        self._temporary = [path.with_name(f".{path.name}.{unique}.tmp") for path in self._targets]
        self._made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]  # innermost first
        self._written = 0
        self._checksum = checksum()
        self._file: BinaryIO | None = None
        try:
            with disk_errors(folder, "written to"):
                self._start()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with disk_errors(self._folder, "written to"):
                self._finish()
        except BaseException:
            self._discard()
            raise

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Appends rows.

        Args:
            values: for each column a tensor ``[B, width]``, of any floating type, on any device.

        Raises:
            ConfigError: the columns or shapes are others, there are too many rows, a value does not fit float16, or
                the disk is full.
        """
        self._check(values)
        block = torch.cat([_half(name, values[name]) for name in self.columns], dim=1).numpy().astype(DTYPE, copy=False)
        with disk_errors(self._folder, "written to"):
            self._open_file.write(block.data)
        self._checksum.update(block.data)
        self._written += len(block)

    @property
    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ConfigError("the feature bank is written to its end; no more rows can be added")
        return self._file

    def _check(self, values: Mapping[str, Tensor]) -> None:
        given = {name: list(value.shape) for name, value in values.items()}
        count = next((shape[0] for shape in given.values() if shape), 0)
        expected = {name: [count, width] for name, width in self.columns.items()}
        if given != expected:
            raise ConfigError(f"the feature bank needs the columns {expected}, got {given}")
        if self._written + count > self.rows:
            raise ConfigError(f"the feature bank has {self.rows} rows, got {self._written + count}")

    def _start(self) -> None:
        """Makes the folder, looks for room, opens the temporary file and writes its header."""
        shape = (self.rows, sum(self.columns.values()))
        self._folder.mkdir(parents=True, exist_ok=True)
        _check_room(self._folder, shape)
        self._file = self._temporary[0].open("xb")
        npy.write_array_header_1_0(self._file, {"descr": DTYPE.str, "fortran_order": False, "shape": shape})
        self._file.flush()

    def _finish(self) -> None:
        """Puts both files in place, the description last."""
        if self._written != self.rows:
            raise ConfigError(f"the feature bank is incomplete: {self._written} of {self.rows} rows were written")
        description = Description(FORMAT, self._fingerprint, self.rows, self.columns, self._checksum.hexdigest())
        _sync(self._open_file)
        self._open_file.close()
        self._file = None
        with self._temporary[1].open("xb") as file:
            file.write(description.to_json().encode())
            _sync(file)
        self._temporary[0].replace(self._targets[0])
        try:
            self._temporary[1].replace(self._targets[1])
        except BaseException:
            self._targets[0].unlink()
            raise

    def _discard(self) -> None:
        """Removes the temporary files and the folders made, where these are empty."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk raises again at the last flush
                self._file.close()
            self._file = None
        for path in self._temporary:
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _check_room(folder: Path, shape: tuple[int, int]) -> None:
    needed, free = shape[0] * shape[1] * DTYPE.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{WHERE}: {folder} has {free / 1e9:.2f} GB free, a feature bank of {shape[0]} rows × {shape[1]} "
            f"float16 values needs {needed / 1e9:.2f} GB"
        )


def _half(name: str, values: Tensor) -> Tensor:
    """``[B, width]`` in float16 on the CPU.

    Raises:
        ConfigError: a value is not finite, or too large for float16.
    """
    values = values.detach()
    half = values.to(torch.float16)
    if not torch.isfinite(half).all():
        is_finite = torch.isfinite(values).all()
        found = f"reach {values.abs().max().item():.6g}" if is_finite else "are not all finite"
        raise ConfigError(
            f"teacher_cache: the teacher's values of {name!r} {found}; a feature bank holds float16, finite and "
            f"within ±{_LARGEST:.0f}"
        )
    return half.cpu()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
