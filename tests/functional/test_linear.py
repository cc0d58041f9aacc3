"""Cross-validation of linear local classifiers."""

import pytest
import torch

from gkd_plugin.functional import _linear, fit_discriminant
from tests.functional.test_discriminant import clouds


def test_thousands_of_classes_are_counted_in_one_pass():
    """A loop over the classes took seconds."""
    places, counts = _linear._places(torch.arange(40_000) % 20_000, torch.arange(40_000), 20_000)
    assert (counts == 2).all()
    assert torch.equal(places, torch.arange(40_000) // 20_000)


@pytest.mark.parametrize("block", [1, 37])
def test_a_few_rows_at_a_time_are_as_good_as_all(block, monkeypatch):
    rows, labels = clouds()
    whole = fit_discriminant(rows, labels, 4)
    monkeypatch.setattr(_linear, "_BLOCK", block)
    parts = fit_discriminant(rows, labels, 4)
    assert (parts.strength, parts.held_out_nll) == (whole.strength, pytest.approx(whole.held_out_nll, rel=1e-12))
    torch.testing.assert_close(parts.weight, whole.weight)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
def test_the_scale_is_the_most_likely_one(factor):
    logits, labels = factor * torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 4
    logits[range(50), labels] += factor
    targets = _linear.smoothed_targets(labels, 4, 50)
    nll, scale = _linear._most_likely_scale(logits - logits.amax(dim=1, keepdim=True), targets)
    cost = {f: torch.nn.functional.cross_entropy(f * scale * logits, targets).item() for f in (0.99, 1.0, 1.01)}
    assert nll == pytest.approx(cost[1.0], rel=1e-9)
    assert min(cost, key=cost.get) == 1.0
