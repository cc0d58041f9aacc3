"""Processes that share a batch find what one process finds."""

import subprocess
import sys

import pytest
import torch
from torchdistill.losses.registry import get_mid_level_loss

from tests.losses.shared_batch import CASES
from tests.runner.fakes import refused

SHARED = [case for case in CASES if case != "apart"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "tests.losses.shared_batch", folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return lambda case, dtype, count: torch.load(folder / f"{case}-{dtype}-{count}")


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("count", [2, 4])
def test_loss_tuples_and_gradients_are_those_of_one_process(found, case, dtype, close, count):
    want, got = found(case, dtype, 1), found(case, dtype, count)
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=close, atol=close * value.abs().max().item(), msg=name)
    assert case in ("classifier", "queue") or want["tuples"] > 0
    assert any(value.abs().max() > 0 for name, value in want.items() if name.endswith("weight"))


@pytest.mark.parametrize("key", ["refilled_relationship", "refilled_local_classifier", "queue_distillation"])
def test_gather_is_a_flag(key):
    refused("gather: .*'yes'", get_mid_level_loss, {"key": key, "kwargs": {"gather": "yes"}})


def test_apart_each_process_has_its_own_tuples(found):
    whole, parts = (found("apart", torch.float64, count) for count in (1, 2))
    assert 2 * parts["tuples"] < whole["tuples"]
    torch.testing.assert_close(parts["cross_entropy"], whole["cross_entropy"])
