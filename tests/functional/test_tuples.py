"""The positives of each anchor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.functional._tuples import ClassIndex


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
