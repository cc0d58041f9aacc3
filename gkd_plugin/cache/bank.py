"""A bank: the teacher's answers in float16, a record for each view, in a memory-mapped ``.npy`` with a checksum."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gkd_plugin.data.views import BANK
from gkd_plugin.errors import ConfigError

Records = np.ndarray[Any, np.dtype[Any]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_OPEN = 32


def open_bank(path: Path) -> Records | None:
    """One record for each row, or ``None`` where there is no such file; reads all of it once, for its checksum."""
    try:
        records = npy.open_memmap(path, mode="r")
        checksum = _new_checksum(path, records.dtype)
        checksum.update(records.data)
        if np.memmap(path, np.uint8, mode="r")[-checksum.digest_size :].tobytes() != checksum.digest():
            raise ValueError("its checksum is wrong")  # noqa: TRY301
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged header makes numpy's parser raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"teacher_cache.folder: {path} cannot be used: {reason}; delete it") from error
    return records


class Banks:
    """Several banks as one: row i of bank b is row ``(b << BANK) + i``. Few are open at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.open = lru_cache(_OPEN)(lambda number: npy.open_memmap(paths[number], mode="r"))

    def size(self) -> tuple[int, int]:
        """Rows, and bytes of them."""
        sizes = [(len(bank), bank.nbytes) for bank in map(self.open, range(len(self.paths)))]
        return sum(rows for rows, _ in sizes), sum(size for _, size in sizes)

    def __getitem__(self, rows: Rows) -> Records:
        numbers, rows = rows >> BANK, rows & (1 << BANK) - 1
        parts = [self.open(number).take(rows[numbers == number], mode="clip") for number in np.unique(numbers).tolist()]
        found: Records = np.concatenate(parts)[np.argsort(np.argsort(numbers, kind="stable"))]
        return found


def read_bank(records: Records | Banks, rows: Tensor) -> dict[str, Tensor]:
    """The given rows ``[B]`` of each field, ``[B, width]`` in float32 on the CPU."""
    found = records[rows.cpu().numpy()]
    return {name: torch.from_numpy(found[name].astype(np.float32, order="C")) for name in found.dtype.names or ()}


def write_banks(
    paths: Mapping[int, Path], rows: int, answers: Iterable[tuple[Mapping[str, Tensor], Tensor]], lanes: int = 1
) -> None:
    """Writes banks by number, each whole or not at all, where there is room for so many ``rows``.

    ``answers`` are tensors ``[B, width]`` by name, and the numbers of their rows, see :class:`Banks`; gaps are zeros.
    So many banks as ``lanes`` come at the same time, in each lane one after the other, in the order of ``paths``.
    """
    folder = next(iter(paths.values())).parent
    with _disk_errors(folder):  # before the first answer is asked for
        folder.mkdir(parents=True, exist_ok=True)
    adds: dict[int, tuple[int, Callable[[Records, Rows], None]]] = {}  # by lane, of the bank that is written
    with ExitStack() as stack:
        unfinished = [stack.enter_context(ExitStack()) for _ in range(lanes)]
        lane_of = {number: index % lanes for index, number in enumerate(paths)}
        for fields, numbers in answers:
            records, of = _records(fields), numbers.cpu().numpy()
            free, needed = shutil.disk_usage(folder).free, rows * records.itemsize
            if not adds and needed > free:
                space = f"{free / 1e9:.2f} GB free, the answers need {needed / 1e9:.2f} GB"
                raise ConfigError(f"teacher_cache.folder: {folder} has {space}")
            for number in np.unique(of >> BANK).tolist():
                lane, chosen = lane_of[number], of >> BANK == number
                with _disk_errors(folder):
                    if lane not in adds or adds[lane][0] != number:
                        unfinished[lane].close()  # the bank before is finished
                        adds[lane] = number, unfinished[lane].enter_context(_bank(paths[number], records.dtype))
                    adds[lane][1](records[chosen], of[chosen] - (number << BANK))
        with _disk_errors(folder):
            for last in unfinished:
                last.close()


@contextmanager
def _bank(path: Path, dtype: np.dtype[Any]) -> Iterator[Callable[[Records, Rows], None]]:
    """What adds records at the given rows; afterwards there is a bank, or after an error no file."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp")  # no process id: another machine may have it too
    header, checksum, rows = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False}, _new_checksum(path, dtype), 0

    def add(records: Records, places: Rows) -> None:
        nonlocal rows
        written = np.zeros(int(places[-1]) + 1 - rows, dtype)
        written[places - rows] = records
        rows += len(written)
        checksum.update(written.data)
        file.write(written.data)

    file = temporary.open("xb")  # no memory map: a disk that fills up under one ends the process without an error
    try:
        npy.write_array_header_1_0(file, {**header, "shape": (rows,)})  # as long as that of any number of rows
        yield add
        file.write(checksum.digest())
        file.seek(0)
        npy.write_array_header_1_0(file, {**header, "shape": (rows,)})
        file.flush()
        os.fsync(file.fileno())
        file.close()
        temporary.replace(path)
    finally:
        with suppress(OSError):  # a full disk raises again
            file.close()
        temporary.unlink(missing_ok=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"teacher_cache.folder: {folder} cannot be written to: {error.strerror}") from error


def _new_checksum(path: Path, dtype: np.dtype[Any]) -> hashlib.blake2b:
    """Of the file's name, and then of all records; it follows the array."""
    return hashlib.blake2b(f"{path.stem} {dtype}".encode(), digest_size=16)


def _records(batch: Mapping[str, Tensor]) -> Records:
    halves = {name: values.detach().half().cpu() for name, values in batch.items()}
    for name, half in halves.items():
        if not half.isfinite().all():
            given = f"the teacher's values of {name!r} reach {batch[name].abs().max():.6g}"
            raise ConfigError(f"teacher_cache: {given}; they are kept in float16, finite and within ±65504")
    fields = [(name, "<f2", half.shape[1:]) for name, half in halves.items()]
    records = np.empty(max(len(half) for half in halves.values()), fields)
    for name, half in halves.items():
        records[name] = half
    return records
