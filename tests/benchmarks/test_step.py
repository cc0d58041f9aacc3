"""The benchmark's own machinery; how fast anything is, is no matter of a test's pass or fail."""

import logging
import time

import pytest
import torch

from tests.benchmarks import step

TINY = ["x-size=32", "x-images=24", "x-batch=12", "x-teacher=test_resnet", "x-student=test_resnet"]


@pytest.fixture
def config(tmp_path):
    yield step.resolved(TINY, tmp_path)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("side", step.SIDES)
def test_every_side_trains_epoch_after_epoch(side, config):
    path, steps, batch = config
    assert (steps, batch) == (2, 12)
    epochs = step.SIDES[side](path, "cpu")
    assert all(next(epochs)[0] > 0 for _ in range(2))
    epochs.close()


def test_sides_take_turns_in_processes_of_their_own(config):
    times = step.compared(config[0], rounds=2, sides=["bare"])
    assert list(times) == ["bare"]
    assert len(times["bare"]) == 2  # the first one is left out
    assert min(min(pair) for pair in times["bare"]) > 0


def test_ratios_are_of_pairs():
    text = step.table({"run": [(2.0, 3.0)] * 3, "bare": [(1.0, 6.0), (4.0, 6.0), (1.0, 6.0)]}, steps=2, batch=64)
    assert text.splitlines()[-1].split() == ["bare", "500.0", "3000.0", "128", "2.000", "of", "it", "0.500", "of", "it"]


def test_a_call_inside_another_counts_once():
    class Outer:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            self.inner()

    timed, clock = Outer(), step.Clock(torch.device("cpu"))
    clock.watch(timed, "inner", "inner")
    clock.watch(timed, "outer", "outer")
    timed.outer()
    assert clock.seconds["inner"] > clock.seconds["outer"] > 0


def test_the_shares_are_all_of_the_time(config):
    found = step.shares(config[0], rounds=1)
    assert sum(found.values()) == pytest.approx(1)
    assert {"teacher", "student, forward", "backward", "loss", "optimizer", "data", "rest"} < found.keys()
