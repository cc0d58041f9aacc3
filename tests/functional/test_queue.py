"""The queue of earlier embeddings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.functional import EmbeddingQueue


@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 12), max_size=6))
def test_keeps_the_last_samples_in_order(size, batches):
    queue = EmbeddingQueue(size)
    seen = []
    for count in batches:
        numbers = torch.arange(len(seen), len(seen) + count)
        seen += numbers.tolist()
        queue.push(numbers[:, None].float(), numbers[:, None].double() * torch.ones(3), numbers)
    assert len(queue) == min(size, len(seen))
    if batches:
        student, teacher, labels = queue.content()
        assert labels.tolist() == seen[-size:]
        assert student.flatten().tolist() == seen[-size:]
        assert teacher.shape[1] == 3


def test_keeps_no_graph_and_no_view_of_the_batch():
    queue = EmbeddingQueue(4)
    student = torch.ones(2, 3, requires_grad=True)
    labels = torch.tensor([0, 1])
    queue.push(student * 2, torch.ones(2, 3), labels)
    labels.zero_()
    kept, _, kept_labels = queue.content()
    assert not kept.requires_grad
    assert kept_labels.tolist() == [0, 1]


def test_can_be_cleared_and_needs_room():
    queue = EmbeddingQueue(4)
    assert queue.content() is None
    queue.push(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]))
    queue.clear()
    assert len(queue) == 0
    assert queue.content() is None
    with pytest.raises(ValueError, match="at least 1 sample, got size 0"):
        EmbeddingQueue(0)


def test_an_empty_queue_is_a_queue():
    assert EmbeddingQueue(3)


def test_batches_that_do_not_fit_are_refused():
    queue = EmbeddingQueue(4)
    with pytest.raises(ValueError, match=r"got \[2, 3\], \[1, 3\] and \[2\]"):
        queue.push(torch.ones(2, 3), torch.ones(1, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got size 2\.5"):
        EmbeddingQueue(2.5)
