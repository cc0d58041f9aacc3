"""The benchmark's own machinery; how fast anything is, is no matter of a test's pass or fail."""

import sys

import pytest
import torch

from tests.benchmarks import relationship as benchmark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)


def test_the_sweep_measures_every_method_that_stands_the_size(monkeypatch):
    monkeypatch.setattr(benchmark, "LARGEST", {"padded": 16})
    rows = list(benchmark.sweep([32]))
    assert {row["method"] for row in rows} == set(benchmark.METHODS) - {"padded"}
    assert all(row["seconds"] > 0 and row["peak_bytes"] >= 0 for row in rows)
    assert {row["classes"] for row in rows} == {10, 100}


def test_rows_are_written_as_they_come(tmp_path):
    def rows():
        yield {"size": 1, "seconds": 0.5}
        assert (tmp_path / "rows.csv").read_text(encoding="utf-8").split() == ["size,seconds", "1,0.5"]

    assert benchmark._written(rows(), tmp_path / "rows.csv") == [{"size": 1, "seconds": 0.5}]


def test_figures_compare_with_their_goal(monkeypatch):
    monkeypatch.setattr(benchmark, "medians", lambda steps: dict(zip(steps, (0.5, 1.5), strict=True)))
    batch = benchmark.Batch(64, 10, 8)
    assert benchmark.faster_than(batch, "RKD", 3).row()[2:] == ["≥ 3×", "3×", "met"]
    assert benchmark.faster_than(batch, "RKD", 3.1).row()[-1] == "missed"
    assert benchmark.share_of(batch, "x", lambda: None, 30, " %").row()[2:] == ["≤ 30 %", "33.3 %", "missed"]


def test_growth_is_the_exponent():
    rows = [{"method": "ours", "classes": 100, "size": size, "seconds": size**2.0} for size in (1024, 8192)]
    assert benchmark.growth(rows, "seconds", 2.2).measured == pytest.approx(2.0)


def test_engines_agree_on_the_batches_that_are_measured():
    batch = benchmark.Batch(128, 10, 32)
    gradients = {}
    for name, loss in benchmark.OURS.items():
        batch.step(loss)()
        gradients[name] = batch.student.grad
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients["dense"], rtol=1e-3, atol=1e-9, msg=name)
