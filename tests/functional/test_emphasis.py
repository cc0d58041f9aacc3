"""Adaptive emphasis against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import confidence_cost, emphasis_weights
from tests import reference


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 12), classes=st.integers(1, 6), scale=st.floats(0.01, 50), seed=st.integers(0, 1000))
def test_matches_the_loops(size, classes, scale, seed):
    logits = scale * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    want = torch.tensor(reference.emphasis(logits), dtype=torch.float64)
    torch.testing.assert_close(emphasis_weights(logits), want, rtol=1e-9, atol=1e-9)


def test_range_and_order():
    weights = emphasis_weights(torch.tensor([[9.0, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert weights[0] == 1
    assert weights[2].item() == pytest.approx(0.5379, abs=1e-4)
    assert weights[0] > weights[1] > weights[2]


@pytest.mark.parametrize("logits", [torch.zeros(4, 3), torch.randn(1, 3), torch.randn(5, 1)])
def test_equal_confidence_weighs_one(logits):
    assert torch.equal(emphasis_weights(logits), torch.ones(len(logits)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_has_no_weights(dtype):
    weights = emphasis_weights(torch.empty(0, 3, dtype=dtype))
    assert (weights.shape, weights.dtype) == ((0,), torch.float32)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e30, 0.0], [0.0, 0.0]])
    assert torch.isfinite(emphasis_weights(logits)).all()
    assert confidence_cost(logits)[0] == 0


def test_no_gradient():
    assert not emphasis_weights(torch.randn(3, 2, requires_grad=True)).requires_grad
