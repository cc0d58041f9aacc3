"""The baselines are what they say: the same tuples as ours, by another way."""

import pytest
import torch

from gkd_plugin.functional import relationship_matching
from tests.benchmarks import baselines, memory
from tests.functional.test_relationship import batch, relative_error


@pytest.mark.parametrize(("baseline", "max_negatives"), [("padded", None), ("truncated", "smallest")])
def test_the_same_tuples_give_the_same_loss_and_gradient(baseline, max_negatives):
    student, teacher, labels = batch(size=30, dtype=torch.float32)
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    got = relationship_matching(mine, teacher, labels, max_negatives=max_negatives).loss
    want = baselines.BASELINES[baseline](theirs, teacher, labels)
    got.backward()
    want.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-3)
    assert relative_error(mine.grad, theirs.grad) < 1e-3


@pytest.mark.parametrize("baseline", ["RKD", "SPKD", "KD"])
def test_torchdistills_losses_have_a_gradient(baseline):
    student, teacher, labels = batch(size=30, dtype=torch.float32)
    student.requires_grad_()
    baselines.BASELINES[baseline](student, teacher, labels).backward()
    assert student.grad.abs().sum() > 0


def test_peak_memory_sees_what_is_freed_again():
    def call():
        torch.ones(8 * 2**20).sum()

    call()
    assert 30 * 2**20 < memory.peak_bytes(call) < 60 * 2**20
