"""The positives of each anchor, and the windows of the mining strategies."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gkd_plugin.functional._tuples import ClassIndex, largest_within_margin


@pytest.mark.parametrize("wait", [True, False])
@given(labels=st.lists(st.sampled_from([-3, 0, 7, 10**12]), min_size=1, max_size=12), data=st.data())
def test_positives_are_the_other_columns_of_the_class(wait, labels, data):
    first = data.draw(st.integers(0, len(labels) - 1))
    last = data.draw(st.integers(first + 1, len(labels)))
    positives = ClassIndex(torch.tensor(labels), wait).positives(first, last)
    assert positives.columns.shape[1] == (max(map(labels.count, labels)) if wait else len(labels))
    for row, anchor in enumerate(range(first, last)):
        found = positives.columns[row][positives.exist[row]].tolist()
        assert sorted(found) == [n for n, label in enumerate(labels) if label == labels[anchor] and n != anchor]
        assert set(positives.columns[row][~positives.exist[row]].tolist()) == {anchor}
        assert positives.own[row].item() == anchor
        assert positives.negatives[row].item() == sum(label != labels[anchor] for label in labels)


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
