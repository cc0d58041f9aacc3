"""The benchmark's own machinery; how fast anything is, is no matter of a test's pass or fail."""

import sys

import pytest
import torch

from tests.benchmarks import relationship as benchmark
from tests.functional.test_relationship import batch, relative_error

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)


@pytest.mark.parametrize(
    ("method", "settings"), [(benchmark.TILED, {}), ("padded", {}), ("truncated", {"max_negatives": "smallest"})]
)
def test_the_same_tuples_give_the_same_loss_and_gradient(method, settings):
    student, teacher, labels = batch(size=30, dtype=torch.float32)
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    got, want = benchmark.ours(mine, teacher, labels, **settings), benchmark.METHODS[method](theirs, teacher, labels)
    got.backward()
    want.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-3)
    assert relative_error(mine.grad, theirs.grad) < 1e-3


def test_the_sweep_measures_every_method_that_stands_the_size_and_keeps_each_row(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "LARGEST", {"padded": 16})
    rows = benchmark.written(benchmark.sweep([32]), tmp_path / "rows.csv", benchmark.Row._fields)
    assert {row.method for row in rows} == set(benchmark.METHODS) - {"padded"}
    assert all(row.seconds > 0 and row.peak_bytes >= 0 for row in rows)
    assert {row.classes for row in rows} == {10, 100}
    lines = (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("size,classes,width,method")
    assert len(lines) == 1 + len(rows)


def test_figures_compare_with_their_goal(monkeypatch):
    monkeypatch.setattr(benchmark, "medians", lambda steps: dict(zip(steps, (0.5, 1.5), strict=True)))
    made = benchmark.Batch(64, 10, 8)
    assert benchmark.compared(made, "RKD", goal=3, faster=True)[2:] == ["3×", "≥ 3×", "met"]
    assert benchmark.compared(made, "RKD", goal=3.1, faster=True)[-1] == "missed"
    assert benchmark.compared(made, "x", 30, lambda: None)[2:] == ["33.3 %", "≤ 30 %", "missed"]
    monkeypatch.setattr(benchmark, "memory_of", lambda batch, method: [])
    goals = [row[3] for row in benchmark.figures() if row and row[3]]
    assert goals == ["≤ 1 %"] * 2 + ["≤ 100 %"] * 3 + ["≥ 36×", "≥ 7×"]


def test_peak_memory_sees_what_is_freed_again():
    def call():
        torch.ones(8 * 2**20).sum()

    call()
    assert 30 * 2**20 < benchmark.peak_bytes(call) < 60 * 2**20
