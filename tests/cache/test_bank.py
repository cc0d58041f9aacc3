import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from gkd_plugin.cache.bank import BANK, Banks, open_bank, read_bank, write_banks
from gkd_plugin.errors import ConfigError
from tests.runner.fakes import refused

WIDTHS = {"embedding": 5, "logits": 2}
ROWS = 6


def batch(rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, width, generator=generator) for name, width in WIDTHS.items()}


def write_bank(path, rows, batches):
    """One bank alone, row after row."""

    def answers():
        start = 0
        for fields in batches:
            count = len(fields["logits"])
            yield fields, torch.arange(start, start + count)
            start += count

    write_banks({0: path}, rows, answers())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "bank.npy"


@pytest.fixture
def written(path):
    write_bank(path, ROWS, [batch()])
    return path


@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.requires_grad_])
def test_rows_come_back_rounded_to_float16_from_one_ordinary_npy_file(written, convert):
    parts = [batch(4, seed=1), batch(2, seed=2)]
    parts[1]["embedding"][1] = torch.tensor([65504, -65504, 1e-7, 1e-9, 1 + 2**-11])
    parts = [{name: convert(value) for name, value in part.items()} for part in parts]
    values = {name: torch.cat([part[name] for part in parts]).detach().half() for name in WIDTHS}
    write_bank(written, ROWS, iter(parts))
    assert list(written.parent.iterdir()) == [written]
    assert all(np.array_equal(np.load(written)[name], value.numpy()) for name, value in values.items())
    rows = [5, 0, 3, 3]
    got = read_bank(open_bank(written), torch.tensor(rows))
    assert got.keys() == values.keys()
    for name, value in values.items():
        assert (got[name].dtype, got[name].is_contiguous()) == (torch.float32, True)
        assert torch.equal(got[name], value[rows].float())


def failing(error, batches=1):
    """Batches, then an error."""
    yield from [batch(3)] * batches
    raise error


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (lambda: failing(KeyboardInterrupt("stopped")), KeyboardInterrupt, "^stopped$"),
        (lambda: failing(OSError("an image cannot be read")), OSError, "^an image cannot be read$"),
        (lambda: [{**batch(), "logits": torch.full((6, 2), -7e4)}], ConfigError, "'logits' reach 70000;"),
        (lambda: [{**batch(), "embedding": torch.full((6, 5), torch.nan)}], ConfigError, "'embedding' reach nan;"),
    ],
)
def test_what_fails_leaves_everything_as_it_was(path, batches, error, message, before):
    if before:
        write_bank(path, ROWS, [batch()])
    content = path.read_bytes() if before else None
    with pytest.raises(error, match=message):
        write_bank(path, ROWS, batches())
    assert list(path.parent.iterdir()) == [path] * before
    assert not before or path.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("rows", [3, 3000])
def test_a_disk_that_fills_up_leaves_nothing(path, monkeypatch, rows):
    """Few rows are buffered and fail at the end."""
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), "wb"))
    refused(r"^teacher_cache.folder: .*deep cannot be written to: No space left", write_bank, path, rows, [batch(rows)])
    assert list(path.parent.iterdir()) == []


def test_room_is_looked_for_after_the_first_batch(path, monkeypatch):
    needed = 10**7 * 14
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    asked = []
    with pytest.raises(ConfigError, match=r"^teacher_cache.folder: .*deep has 0.14 GB free, .* need 0.14 GB$"):
        write_bank(path, 10**7, (asked.append(k) or batch() for k in range(2)))
    assert asked == [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=ROWS * 14))
    write_bank(path, ROWS, [batch()])


def test_a_file_in_the_folders_place_is_told_before_anything_is_computed(tmp_path):
    assert open_bank(tmp_path / "missing" / "bank.npy") is None
    (tmp_path / "file").write_text("mine")
    assert open_bank(tmp_path / "file" / "bank.npy") is None
    with pytest.raises(ConfigError, match=r"^teacher_cache.folder: .* cannot be written to: File exists"):
        write_bank(tmp_path / "file" / "bank.npy", ROWS, failing(AssertionError, batches=0))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_flipped_bit_never_gives_other_values(written):
    content = written.read_bytes()
    for position in range(len(content)):
        written.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            bank = open_bank(written)
        except ConfigError:
            continue
        assert position < len(content) - ROWS * 14 - 16  # of the header's spaces
        assert all(np.array_equal(bank[name], value.half().numpy()) for name, value in batch().items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *((lambda path, size=size: path.write_bytes(path.read_bytes()[:size]), "") for size in (0, 127, -16)),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "checksum"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "checksum"),
        (lambda path: path.rename(path.with_name("other.npy")), "checksum"),
        (lambda path: np.save(path, np.array([{"a": 1}], dtype=object)), ""),
    ],
)
def test_another_file_is_refused(written, change, reason):
    change(written)
    (path,) = written.parent.iterdir()
    refused(rf"^teacher_cache.folder: {path} cannot be used: .*{reason}.*; delete it", open_bank, path)


def test_several_banks_are_written_together_and_read_as_one(tmp_path, monkeypatch):
    """In two lanes; a batch may hold the end of one bank and the beginning of the next. Row 2 of bank 2 lacks."""
    rows = {0: [0, 1, 2, 3], 1: [0, 1, 2], 2: [0, 1, 3, 4], 3: [0, 1]}
    lanes = [[(number << BANK) + row for number in lane for row in rows[number]] for lane in ((0, 2), (1, 3))]
    numbers = [lane[start : start + 3] for start in (0, 3, 6) for lane in lanes if lane[start:]]
    values = [batch(len(part), seed) for seed, part in enumerate(numbers)]
    paths = {number: tmp_path / f"{number}.npy" for number in rows}
    write_banks(paths, 13, zip(values, map(torch.tensor, numbers), strict=True), lanes=2)
    assert [len(open_bank(path)) for path in paths.values()] == [4, 3, 5, 2]
    assert not open_bank(paths[2])["embedding"][2].any()
    monkeypatch.setattr("gkd_plugin.cache.bank._OPEN", 2)
    banks, every = Banks([*paths.values()]), torch.tensor([*chain(*numbers)])
    shuffled = torch.randperm(len(every))
    for name, value in read_bank(banks, every[shuffled]).items():
        assert torch.equal(value, torch.cat([part[name] for part in values])[shuffled].half().float())
    assert banks.size() == (14, 14 * 14)


def test_of_several_banks_those_that_have_all_their_rows_stay(tmp_path):
    def answers():
        yield batch(4), torch.tensor([0, 1, (1 << BANK), (1 << BANK) + 1])
        raise OSError("an image cannot be read")

    with pytest.raises(OSError, match="an image"):
        write_banks({0: tmp_path / "0.npy", 1: tmp_path / "1.npy"}, 6, answers())
    assert [path.name for path in tmp_path.iterdir()] == ["0.npy"]
    assert len(open_bank(tmp_path / "0.npy")) == 2
