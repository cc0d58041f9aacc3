"""With and without Numba, and where Numba may write nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd_plugin.functional import _accelerated, _kernels, _prefix_sums, relationship_matching
from gkd_plugin.functional._tile import SMALLEST_DISTANCE
from gkd_plugin.functional.mining import Reach
from tests.functional.test_relationship import batch

ROOT = Path(__file__).parents[2]
STEP = """
import torch
from gkd_plugin.functional import _accelerated, relationship_matching
generator = torch.Generator().manual_seed(0)
x = torch.randn(24, 8, generator=generator, requires_grad=True)
loss = relationship_matching(x, torch.randn(24, 5, generator=generator), torch.arange(24) % 3).loss
loss.backward()
print(_accelerated.AVAILABLE, x.grad.abs().sum().item() > 0)
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_functional_core_works_without_numba():
    done = run("import sys; sys.modules['numba'] = None" + STEP)
    assert done.stdout.strip() == "False True", done.stderr


def test_numba_without_a_folder_to_write_to_compiles_all_the_same():
    block = """
from numba.core import caching
def nowhere(*arguments):
    raise RuntimeError("cannot cache function: no locator available")
caching.CacheImpl.__init__ = nowhere
"""
    done = run(block + STEP)
    assert done.stdout.strip() == "True True", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_works_in_one_thread():
    fork = """
import os, signal
torch.set_num_threads(2)
want = relationship_matching(x, x.detach(), torch.arange(24) % 3, mining="all").tuples.item()
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.set_num_threads(1)  # as the workers of a DataLoader do
    got = relationship_matching(x, x.detach(), torch.arange(24) % 3, mining="all").tuples.item()
    os._exit(0 if got == want else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run(STEP + fork)
    assert done.stdout.split() == ["True", "True", "0"], done.stderr


def test_one_thread_gives_the_same_values_as_more():
    student, teacher, labels = batch(size=70, dtype=torch.float32)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = student.clone().requires_grad_()
            match = relationship_matching(leaf, teacher, labels)
            match.loss.backward()
            found.append((match.loss.item(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert all(loss == pytest.approx(found[0][0], rel=1e-6) for loss, _ in found)
    for _, gradient in found:
        torch.testing.assert_close(gradient, found[0][1])


def test_fake_tensors_and_doubles_are_not_for_numba():
    assert _accelerated.compiled_for(torch.zeros(2))
    assert not _accelerated.compiled_for(torch.zeros(2, dtype=torch.float64))
    assert not _accelerated.compiled_for(torch.zeros(2, device="meta"))


def test_the_kernels_repeat_the_constants():
    assert _kernels.SMALLEST_DISTANCE == SMALLEST_DISTANCE
    assert (_kernels.REACH_MARGIN, _kernels.REACH_ANY) == (Reach.MARGIN, Reach.ANY)


def test_both_ways_of_adding_at_columns():
    """The one of GPUs, run here on the CPU."""
    columns = torch.tensor([[0, 2, 2], [1, 1, 1]])
    values = torch.rand(2, 3, dtype=torch.float64)
    first, second = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    _prefix_sums._add_in_order(first, columns, values)
    _prefix_sums._add_sorted(second, columns, values)
    torch.testing.assert_close(first, second)
    assert second[1, 1].item() == pytest.approx(values[1].sum().item())
