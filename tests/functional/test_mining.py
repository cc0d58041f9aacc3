"""The windows of the mining strategies."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gkd_plugin.functional.mining import MINING, largest_within_margin

DISTANCES = torch.tensor([0.0, 0.25, 0.25, 0.5, 0.75, 1.0, 0.125])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(distance=st.floats(0, 2), margin=st.floats(0, 2), steps=st.integers(-4, 4))
@example(distance=2.0**-26, margin=0.25, steps=1)  # half a unit in the last place of float32, and
@example(distance=2.0**-55, margin=0.25, steps=1)  # of float64: x − d is a tie, and rounds to the margin
def test_theta_selects_what_the_difference_selects(dtype, distance, margin, steps):
    """At every value near d + margin, x ≤ θ(d) exactly where x − d, rounded, is at most margin."""
    d, m = torch.tensor([distance], dtype=dtype), torch.tensor([margin], dtype=dtype)
    x = d + m
    for _ in range(abs(steps)):
        x = torch.nextafter(x, torch.full_like(x, torch.inf * (1 if steps > 0 else -1)))
    assert (x <= largest_within_margin(d, m.item())).item() == (x - d <= m).item()


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("semihard", [0.5, 0.75]),  # a gap of 0 is out, one of exactly the margin is in
        ("hard", [0.0, 0.25, 0.25, 0.125]),
        ("all", DISTANCES.tolist()),
    ],
)
def test_windows(name, chosen):
    lower, upper = MINING[name].ends(torch.tensor([0.25]), 0.5)
    assert DISTANCES[(lower < DISTANCES) & (upper >= DISTANCES)].tolist() == chosen


def test_an_infinite_margin_has_no_upper_end():
    assert largest_within_margin(torch.tensor([0.3]), torch.inf).item() == torch.inf
