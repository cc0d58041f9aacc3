"""The engine as a torch operator."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_plugin.functional import relationship_matching
from gkd_plugin.functional._operator import relationship_operator
from tests.functional.test_relationship import batch


def arguments(student, teacher, labels, max_negatives=-1):
    return (student, None, teacher, labels, 4.0, 0.2, "semihard", max_negatives, False, True)


@pytest.mark.parametrize("max_negatives", [-1, 0, 2])
def test_is_a_well_formed_operator(max_negatives):
    """Schema, fake tensors, autograd registration and tracing, by torch's own check."""
    student, teacher, labels = batch()
    torch.library.opcheck(relationship_operator, arguments(student.requires_grad_(), teacher, labels, max_negatives))


def test_compiles_without_a_graph_break():
    student, teacher, labels = batch(dtype=torch.float32)

    def loss(x):
        return relationship_matching(x * 2, teacher, labels).loss * 3

    eager, compiled = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.equal(eager.grad, compiled.grad)


def test_shapes_without_data():
    with FakeTensorMode():
        student = torch.empty(16, 8, device="cuda", requires_grad=True)
        match = relationship_matching(student, torch.empty(16, 5, device="cuda"), torch.empty(16, device="cuda").long())
        assert match.loss.device.type == "cuda"
        assert match.loss.shape == match.tuples.shape == match.negatives.shape == ()
