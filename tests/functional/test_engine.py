"""The engine as a torch operator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gkd_plugin.functional import relationship_matching
from gkd_plugin.functional._engine import relationship_operator
from tests.functional.test_relationship import batch, match_and_gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_negatives", [None, 0, 2])
def test_is_a_well_formed_operator(max_negatives, dtype):
    """By torch's own check; its tests of tracing differentiate every output, the gradient too, which is refused."""
    student, teacher, labels = batch(dtype=dtype)
    settings = (4.0, 0.2, "semihard", max_negatives, False, True)
    arguments = (student.requires_grad_(), None, teacher, labels, 3, len(labels), *settings)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(relationship_operator, arguments, test_utils=checks)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("max_negatives", [None, "smallest"])
def test_compiles_without_a_graph_break_to_the_same_values(transposed, max_negatives):
    student, teacher, labels = batch(dtype=torch.float32)
    student = student.T.contiguous().T if transposed else student

    def match(x):
        found = relationship_matching(x * 2, teacher, labels, max_negatives=max_negatives)
        return found.loss**2, found.tuples, found.negatives

    eager, compiled = student.clone().requires_grad_(), student.clone().requires_grad_()
    want, got = match(eager), torch.compile(match, fullgraph=True, backend="aot_eager")(compiled)
    assert [value.item() for value in got] == [value.item() for value in want]
    want[0].backward()
    got[0].backward()
    assert torch.equal(eager.grad, compiled.grad)


def test_compiles_for_other_batch_sizes():
    student, teacher, labels = batch(size=40, dtype=torch.float32)
    compiled = torch.compile(lambda *tensors: relationship_matching(*tensors).loss, backend="aot_eager", dynamic=True)
    for size in (40, 31, 17):
        tensors = student[:size], teacher[:size], labels[:size]
        assert compiled(*tensors).item() == relationship_matching(*tensors).loss.item()


def test_the_types_do_not_follow_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        match = relationship_matching(*batch(dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (match.loss.dtype, match.tuples.dtype, match.negatives.dtype) == (torch.float32, torch.int64, torch.float32)


def test_a_second_derivative_is_refused_not_dropped():
    student, teacher, labels = batch()
    student.requires_grad_()
    loss = relationship_matching(student, teacher, labels).loss
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    assert gradient.requires_grad
    with pytest.raises(RuntimeError, match="once, not twice"):
        (gradient.square().sum() + student.sum()).backward()


def test_from_two_threads():
    """The same bits in full precision, and the user's matrix products as they were."""
    tensors = batch(size=200, width=64, dtype=torch.float32)
    want, gradient = match_and_gradient(*tensors)
    torch.set_float32_matmul_precision("medium")
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: match_and_gradient(*tensors), range(40)))
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(match.loss == want.loss and torch.equal(grad, gradient) for match, grad in found)
