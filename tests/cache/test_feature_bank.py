from __future__ import annotations

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.cache import BankWriter, FeatureBank
from gkd_plugin.cache.fingerprint import Fingerprint
from gkd_plugin.errors import ConfigError

FINGERPRINT = Fingerprint("aa", "bb", "cc", "dd")
COLUMNS = {"embedding": 5, "logits": 2}
ROWS = 6
FULL = OSError(errno.ENOSPC, "No space left on device")


def batch(rows=ROWS, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(rows, width, generator=generator) for name, width in COLUMNS.items()}


def write(folder, values=None, fingerprint=FINGERPRINT):
    with BankWriter(folder, fingerprint, ROWS, COLUMNS) as writer:
        writer.write(batch() if values is None else values)


def opened(folder, fingerprint=FINGERPRINT):
    bank = FeatureBank.open(folder, fingerprint)
    assert bank is not None
    return bank


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "banks"


@pytest.fixture
def array(folder):
    write(folder)
    return folder / f"{FINGERPRINT.digest}.npy"


@pytest.fixture
def description(array):
    return array.with_suffix(".json")


def refuses(folder, message):
    with pytest.raises(ConfigError, match=message) as caught:
        FeatureBank.open(folder, FINGERPRINT)
    text = str(caught.value)
    assert text.startswith("teacher_cache.folder: ")
    assert "\n" not in text
    names = [str(folder / f"{FINGERPRINT.digest}.{kind}") for kind in ("npy", "json")]
    assert text.endswith(f"; delete {names[0]} and {names[1]} to have the bank computed anew")


def test_values_come_back_rounded_to_float16(folder):
    parts = [batch(4, seed=1), batch(2, seed=2)]
    with BankWriter(folder, FINGERPRINT, ROWS, COLUMNS) as writer:
        for part in parts:
            writer.write(part)
    bank = opened(folder)
    assert (bank.rows, bank.columns, bank.nbytes) == (ROWS, COLUMNS, ROWS * 7 * 2)
    rows = torch.tensor([5, 0, 3, 3])
    got = bank.read(rows)
    for name, width in COLUMNS.items():
        expected = torch.cat([part[name] for part in parts])[rows].half().float()
        assert got[name].dtype == torch.float32
        assert got[name].shape == (4, width)
        assert got[name].is_contiguous()
        assert torch.equal(got[name], expected)


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=8))
def test_any_value_within_float16_is_rounded_once(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("bank")
    column = torch.tensor(values).unsqueeze(1)
    with BankWriter(folder, FINGERPRINT, len(values), {"x": 1}) as writer:
        writer.write({"x": column})
    got = opened(folder).read(torch.arange(len(values)))["x"]
    assert torch.equal(got, column.half().float())
    assert (got - column).abs().le(column.abs() * 2**-11 + 2**-25).all()


def test_the_array_is_an_ordinary_npy_file(array):
    loaded = np.load(array)
    assert (loaded.dtype, loaded.shape) == (np.float16, (ROWS, 7))
    assert np.array_equal(loaded[:, :5], batch()["embedding"].half().numpy())


def test_only_the_two_files_are_there(array, description):
    assert sorted(array.parent.iterdir()) == sorted([array, description])
    assert json.loads(description.read_text())["fingerprint"] == dataclasses.asdict(FINGERPRINT)


def test_any_floating_type_can_be_written(folder):
    write(folder, {name: value.bfloat16().requires_grad_() for name, value in batch().items()})
    assert torch.equal(opened(folder).read(torch.tensor([1]))["logits"], batch()["logits"][1:2].bfloat16().half())


def test_a_bank_may_be_written_again(array):
    write(array.parent, batch(seed=9))
    assert torch.equal(opened(array.parent).read(torch.arange(ROWS))["logits"], batch(seed=9)["logits"].half())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([0, 6]), r"row 6 is not in the feature bank, allowed 0 … 5"),
        (torch.tensor([-1]), r"row -1 is not in"),
        (torch.tensor([0.0]), r"whole numbers \[B\], got torch.float32 \[1\]"),
        (torch.tensor([True] * ROWS), r"whole numbers \[B\], got torch.bool"),
        (torch.tensor(0), r"whole numbers \[B\], got torch.int64 \[\]"),
    ],
)
def test_other_rows_cannot_be_read(array, rows, message):
    with pytest.raises(ConfigError, match=message):
        opened(array.parent).read(rows)


def test_no_rows_are_no_values(array):
    assert opened(array.parent).read(torch.tensor([], dtype=torch.int64))["embedding"].shape == (0, 5)


def test_without_files_there_is_no_bank(folder, array):
    other = dataclasses.replace(FINGERPRINT, teacher="ee")
    assert FeatureBank.open(folder, other) is None
    assert FeatureBank.open(folder / "missing", FINGERPRINT) is None


def nothing_left(tmp_path):
    return list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path, folder):
    def interrupted():
        with BankWriter(folder, FINGERPRINT, ROWS, COLUMNS) as writer:
            writer.write(batch(3))
            assert not nothing_left(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert nothing_left(tmp_path)


def test_an_interruption_spares_what_was_there(array):
    before = {path: path.read_bytes() for path in array.parent.iterdir()}
    with pytest.raises(ConfigError, match="incomplete"):
        write(array.parent, batch(3))
    assert {path: path.read_bytes() for path in array.parent.iterdir()} == before


def test_too_few_rows_leave_nothing(tmp_path, folder):
    with pytest.raises(ConfigError, match="the feature bank is incomplete: 5 of 6 rows were written"):
        write(folder, batch(5))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (batch(7), "has 6 rows, got 7"),
        ({"embedding": torch.zeros(2, 5)}, r"needs the columns \{'embedding': \[2, 5\], 'logits': \[2, 2\]\}, got"),
        ({**batch(2), "more": torch.zeros(2, 1)}, r"got .*'more': \[2, 1\]"),
        ({**batch(2), "logits": torch.zeros(2, 3)}, r"got .*'logits': \[2, 3\]"),
        ({**batch(2), "logits": torch.zeros(3, 2)}, r"got .*'logits': \[3, 2\]"),
        (
            {**batch(2), "logits": torch.tensor([[0.0, 0.0], [-70000.0, 0.0]])},
            r"values of 'logits' reach 70000; a feature bank holds float16, finite and within ±65504",
        ),
        ({**batch(2), "embedding": torch.full((2, 5), torch.nan)}, r"values of 'embedding' are not all finite"),
        ({**batch(2), "embedding": torch.full((2, 5), torch.inf)}, r"values of 'embedding' are not all finite"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, folder, values, message):
    with pytest.raises(ConfigError, match=message):
        write(folder, values)
    assert nothing_left(tmp_path)


def test_nothing_can_be_added_afterwards(folder):
    with BankWriter(folder, FINGERPRINT, ROWS, COLUMNS) as writer:
        writer.write(batch())
    with pytest.raises(ConfigError, match="no more rows"):
        writer.write(batch(0))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(0, COLUMNS, "rows must be"), (1, {}, "at least one"), (1, {"x": 0}, "columns.x must be")],
)
def test_the_size_must_make_sense(tmp_path, rows, columns, message):
    with pytest.raises(ConfigError, match=message):
        BankWriter(tmp_path, FINGERPRINT, rows, columns)


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, folder, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    BankWriter(tmp_path / "fits", FINGERPRINT, 10**7, {"x": 50})._discard()
    message = r"^teacher_cache.folder: .*banks has 1.00 GB free, .* 10000000 rows × 51 .* needs 1.02 GB$"
    with pytest.raises(ConfigError, match=message):
        BankWriter(folder, FINGERPRINT, 10**7, {"x": 51})
    assert nothing_left(tmp_path)


class FullDisk:
    """A file on a disk that has room for ``limit`` more bytes."""

    def __init__(self, file, limit):
        self.file, self.limit = file, limit

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.limit -= memoryview(content).nbytes
        if self.limit < 0:
            raise FULL
        return self.file.write(content)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path, folder):
    def filling():
        with BankWriter(folder, FINGERPRINT, ROWS, COLUMNS) as writer:
            writer._file = FullDisk(writer._file, limit=50)
            writer.write(batch(3))
            writer.write(batch(3))

    with pytest.raises(ConfigError, match=r"^teacher_cache.folder: .*banks cannot be written to: No space left"):
        filling()
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_disk_that_fills_up_at_the_end_leaves_nothing(tmp_path, folder, monkeypatch, calls):
    left = [calls]

    def fsync(_):
        left[0] -= 1
        if not left[0]:
            raise FULL

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(ConfigError, match="cannot be written to: No space left"):
        write(folder)
    assert nothing_left(tmp_path)


def test_an_array_whose_description_cannot_be_placed_is_removed(tmp_path, folder, monkeypatch):
    from pathlib import Path

    place = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: place(a, b) if b.suffix == ".npy" else _raise(FULL))
    with pytest.raises(ConfigError, match="cannot be written to"):
        write(folder)
    assert nothing_left(tmp_path)


def _raise(error):
    raise error


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_folders_place_is_reported(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"^teacher_cache.folder: .* cannot be written to: (File exists|Not a dir)"):
        BankWriter(tmp_path / "file" / below, FINGERPRINT, ROWS, COLUMNS)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_is_reported_before_anything_is_computed(tmp_path, folder, monkeypatch):
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("pathlib.Path.open", lambda *_: _raise(denied))
    with pytest.raises(ConfigError, match=r"^teacher_cache.folder: .* cannot be written to: Permission denied$"):
        BankWriter(folder, FINGERPRINT, ROWS, COLUMNS)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 127, 128, -1])
def test_a_truncated_array_is_refused(array, size):
    content = array.read_bytes()
    array.write_bytes(content[:size])
    refuses(array.parent, "truncated: .* bytes, should be 212" if size in (128, -1) else "no readable .npy header")


def test_a_longer_array_is_refused(array):
    array.write_bytes(array.read_bytes() + b"\0")
    refuses(array.parent, "too long: 213 bytes, should be 212")


def test_a_flipped_bit_of_any_value_is_refused(array):
    content = array.read_bytes()
    for position in range(128, len(content)):
        array.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        refuses(array.parent, "npy is damaged: its checksum")


@pytest.mark.parametrize("mask", [1, 32, 255])
def test_a_flipped_byte_of_the_header_never_gives_other_values(array, mask):
    content = array.read_bytes()
    for position in range(128):
        array.write_bytes(content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :])
        try:
            bank = FeatureBank.open(array.parent, FINGERPRINT)
        except ConfigError:
            continue
        assert torch.equal(bank.read(torch.arange(ROWS))["logits"], batch()["logits"].half())


@pytest.mark.parametrize(
    "other", [np.zeros((ROWS, 7)), np.zeros((ROWS, 8), np.float16), np.zeros((7, ROWS), np.float16)]
)
def test_an_array_of_another_type_or_shape_is_refused(array, other):
    np.save(array, other)
    refuses(array.parent, rf"npy is {other.dtype} \[{other.shape[0]}, {other.shape[1]}\], .* says float16 \[6, 7\]")


def test_an_array_in_fortran_order_is_refused(array):
    np.save(array, np.asfortranarray(np.load(array)))
    refuses(array.parent, "npy is float16")


def test_half_a_bank_is_refused(array, description):
    description.rename(description.with_suffix(".old"))
    refuses(array.parent, rf"incomplete: there is no {description.name}")
    description.with_suffix(".old").rename(description)
    array.unlink()
    refuses(array.parent, rf"incomplete: there is no {array.name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format version 2, this program reads 1"),
        ({"format": None}, "has format version None"),
        ({"rows": 5}, r"npy is float16 \[6, 7\], its description says float16 \[5, 7\]"),
        ({"rows": "6"}, r"whole numbers from 1 up, got \['6', 5, 2\]"),
        ({"rows": -6}, "whole numbers from 1 up"),
        ({"columns": {"embedding": 7, "logits": 0}}, "whole numbers from 1 up"),
        ({"columns": [["embedding", 7]]}, "columns must be widths by name"),
        ({"columns": {}}, "columns must be"),
        ({"checksum": "0"}, "its checksum is not"),
        ({"checksum": None}, "its checksum is not"),
        ({"fingerprint": {"teacher": "aa"}}, "does not describe a feature bank"),
        ({"fingerprint": 3}, "does not describe a feature bank"),
        ({"more": 1}, "does not describe a feature bank"),
        (
            {"fingerprint": {"teacher": "aa", "data": "xx", "views": "yy", "preprocessing": "dd"}},
            "computed from something else; different: data, views;",
        ),
    ],
)
def test_an_edited_description_is_refused(description, changes, message):
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, **changes}))
    refuses(description.parent, message)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}"])
def test_an_unreadable_description_is_refused(description, content):
    description.write_bytes(content)
    refuses(description.parent, "is no JSON|format version None")


def test_a_renamed_bank_is_refused(array, description):
    other = dataclasses.replace(FINGERPRINT, teacher="ee", preprocessing="ff")
    for path in (array, description):
        path.rename(path.with_stem(other.digest))
    with pytest.raises(ConfigError, match="computed from something else; different: teacher, preprocessing; delete"):
        FeatureBank.open(array.parent, other)
