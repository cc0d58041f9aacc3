"""The engine: one torch operator, and its two forms on one shared matrix of distances."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_plugin.functional import relationship_matching
from gkd_plugin.functional._dense import score_densely
from gkd_plugin.functional._engine import relationship_operator
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._tuples import ClassIndex, Selection
from gkd_plugin.functional.mining import MINING
from tests import reference
from tests.functional.test_relationship import batch

FORMS = {"prefix sums": score_by_prefix_sums, "dense": score_densely}


def arguments(student, teacher, labels, max_negatives=None):
    return (student, None, teacher, labels, 4.0, 0.2, "semihard", max_negatives, False, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_negatives", [None, 0, 2])
def test_is_a_well_formed_operator(max_negatives, dtype):
    """Schema, fake tensors, autograd registration and tracing, by torch's own check."""
    student, teacher, labels = batch(dtype=dtype)
    torch.library.opcheck(relationship_operator, arguments(student, teacher, labels, max_negatives))
    differentiable = arguments(student.requires_grad_(), teacher, labels, max_negatives)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # the other one differentiates twice
    torch.library.opcheck(relationship_operator, differentiable, test_utils=checks)


@pytest.mark.parametrize("transposed", [False, True])
def test_compiles_without_a_graph_break_to_the_same_values(transposed):
    student, teacher, labels = batch(dtype=torch.float32)
    student = student.T.contiguous().T if transposed else student

    def match(x):
        found = relationship_matching(x * 2, teacher, labels)
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
    """The same bits, and the user's matrix products as they were."""
    student, teacher, labels = batch(size=80, dtype=torch.float32)
    want = relationship_matching(student, teacher, labels).loss
    torch.set_float32_matmul_precision("medium")
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: relationship_matching(student, teacher, labels).loss, range(40)))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(loss, want) for loss in found)


def test_shapes_without_data():
    with FakeTensorMode():
        student = torch.empty(16, 8, device="cuda", requires_grad=True)
        match = relationship_matching(student, torch.empty(16, 5, device="cuda"), torch.empty(16, device="cuda").long())
        assert match.loss.device.type == "cuda"
        assert match.loss.shape == match.tuples.shape == match.negatives.shape == ()


def grid(size, levels, generator):
    """A symmetric matrix of few different distances, in steps that float32 holds exactly."""
    steps = torch.randint(1, levels + 1, (size, size), generator=generator)
    return ((steps + steps.T) / 64).fill_diagonal_(0)


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("form", FORMS)
@given(
    size=st.integers(1, 16),
    classes=st.integers(1, 4),
    levels=st.integers(1, 60),
    mining=st.sampled_from(sorted(MINING)),
    margin=st.integers(0, 40),
    temperature=st.sampled_from([4.0, 1.0, 0.3]),
    seed=st.integers(0, 1000),
)
@example(size=3, classes=3, levels=37, mining="all", margin=0, temperature=1.0, seed=347)  # one small gap, one tuple
def test_ties_on_a_shared_matrix(form, size, classes, levels, mining, margin, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = grid(size, levels, generator), grid(size, levels, generator)
    labels = torch.randint(classes, (size,), generator=generator)
    loss, tuples, negatives, gradient = reference.matched_distances(
        student.tolist(), teacher.tolist(), labels.tolist(), temperature, margin / 64, mining=mining
    )
    score = FORMS[form](
        student.clone(),
        teacher.clone(),
        ClassIndex(labels, wait=True).positives(0, size),
        Selection(temperature, margin / 64, MINING[mining], None),
        True,
    )
    assert score.tuples.item() == tuples
    assert score.negatives.item() == round(negatives * tuples)
    assert score.divergence.item() == pytest.approx(loss * tuples, rel=1e-9, abs=1e-14)
    want = torch.tensor(gradient) * tuples / student.where(student > 0, 1)
    torch.testing.assert_close(score.pull.double(), want.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_margin_that_rounds(form):
    """d + 0.2 rounded is not always the largest x with x − d ≤ 0.2: the windows agree with the definition."""
    generator = torch.Generator().manual_seed(3)
    student = torch.rand(40, 40, generator=generator)
    labels = torch.arange(40) % 4
    near = student[:, ::4].contiguous()
    student[:, 1::4] = near + torch.tensor(0.2)
    student[:, 2::4] = torch.nextafter(student[:, 1::4], torch.tensor(9.0))
    student.fill_diagonal_(0)
    positives = ClassIndex(labels, wait=True).positives(0, 40)
    score = FORMS[form](
        student.clone(), student.clone(), positives, Selection(4.0, 0.2, MINING["semihard"], None), False
    )
    margin = torch.tensor(0.2)
    count = 0
    for a in range(40):
        for p in range(40):
            if a != p and labels[a] == labels[p]:
                gap = student[a] - student[a, p]
                count += ((gap > 0) & (gap <= margin) & (labels != labels[a])).sum().item()
    assert score.negatives.item() == count
    assert score.pull is None
