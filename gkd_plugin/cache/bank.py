"""A bank: the teacher's answers in float16, a record for each view, in a memory-mapped ``.npy`` with a checksum."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gkd_plugin.errors import ConfigError

Records = np.ndarray[Any, np.dtype[Any]]


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


def read_bank(records: Records, rows: Tensor) -> dict[str, Tensor]:
    """The given rows ``[B]`` of each field, ``[B, width]`` in float32 on the CPU."""
    found = records[rows.cpu().numpy()]
    return {name: torch.from_numpy(found[name].astype(np.float32, order="C")) for name in found.dtype.names or ()}


def write_bank(path: Path, rows: int, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Writes a bank of so many rows, tensors ``[B, width]`` by name in each batch, or leaves no file behind."""
    folder = path.parent
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp")  # no process id: another machine may have it too
    with _disk_errors(folder):  # before the first batch is asked for
        folder.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")  # no memory map: a disk that fills up under one ends the process without an error
    checksum = hashlib.blake2b()
    try:
        for number, batch in enumerate(batches):
            records = _records(batch)
            if number == 0:
                free, needed = shutil.disk_usage(folder).free, rows * records.itemsize
                if needed > free:
                    space = f"{free / 1e9:.2f} GB free, the answers need {needed / 1e9:.2f} GB"
                    raise ConfigError(f"teacher_cache.folder: {folder} has {space}")
                checksum = _new_checksum(path, records.dtype)
                header = {"descr": npy.dtype_to_descr(records.dtype), "fortran_order": False, "shape": (rows,)}
                npy.write_array_header_1_0(file, header)
            checksum.update(records.data)
            with _disk_errors(folder):
                file.write(records.data)
        with _disk_errors(folder):
            file.write(checksum.digest())
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
