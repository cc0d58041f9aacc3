"""Relationship matching against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import pairwise_distances, relationship_matching, semihard_negatives
from tests import reference


def batch(size=24, classes=4, width=8, teacher_width=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, width, generator=generator, dtype=dtype)
    teacher = torch.randn(size, teacher_width, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(classes, (size,), generator=generator)


def reference_gradient(student, teacher, labels, temperature, margin):
    """Central differences of the loop-written loss."""
    gradient = torch.zeros_like(student, dtype=torch.float64)
    step = 1e-6
    for i in range(student.shape[0]):
        for j in range(student.shape[1]):
            values = []
            for sign in (1, -1):
                moved = student.double().clone()
                moved[i, j] += sign * step
                values.append(reference.relationship(moved, teacher, labels, temperature, margin)[0])
            gradient[i, j] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("temperature", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("max_negatives", [None, 1, 3, "smallest"])
def test_matches_the_loops_in_float64(temperature, max_negatives):
    student, teacher, labels = batch()
    got = relationship_matching(
        student, teacher, labels, temperature=temperature, margin=0.2, max_negatives=max_negatives
    )
    loss, tuples, negatives = reference.relationship(student, teacher, labels, temperature, 0.2, max_negatives)
    assert got.tuples == tuples > 0
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_loses_nothing_but_its_own_rounding(dtype):
    student, teacher, labels = (x.to(dtype) if x.is_floating_point() else x for x in batch())
    got = relationship_matching(student, teacher, labels)
    want, *_ = reference.relationship(student, teacher, labels, 4.0, 0.2)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want, rel=1e-5)


def test_gradient_in_float32_matches_differences_of_the_loops():
    student, teacher, labels = batch(size=12, classes=3, width=4, dtype=torch.float32)
    student.requires_grad_()
    relationship_matching(student, teacher, labels, temperature=1.0).loss.backward()
    want = reference_gradient(student.detach(), teacher, labels, 1.0, 0.2)
    assert (student.grad.double() - want).norm() / want.norm() < 1e-5


def test_gradcheck():
    student, teacher, labels = batch(size=14, classes=3, width=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relationship_matching(x, teacher, labels).loss, (student,))


def test_teacher_and_selection_carry_no_gradient():
    student, teacher, labels = batch()
    teacher.requires_grad_()
    student.requires_grad_()
    relationship_matching(student, teacher, labels).loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert not semihard_negatives(
        pairwise_distances(student), labels, torch.tensor([0]), torch.tensor([1]), 0.2
    ).requires_grad


def test_loss_falls_to_zero_where_the_spaces_agree():
    student, _, labels = batch()
    assert relationship_matching(student, 3 * student, labels).loss.item() == pytest.approx(0, abs=1e-15)


def test_labels_may_have_any_integer_values():
    student, teacher, labels = batch()
    odd = torch.tensor([-7, 10**12, 0, 3])[labels]
    assert relationship_matching(student, teacher, odd).loss == relationship_matching(student, teacher, labels).loss


@pytest.mark.parametrize(
    "labels",
    [[1, 1, 1, 1], [0, 1, 2, 3], [5], []],
    ids=["one class", "no positives", "one sample", "no samples"],
)
def test_no_tuple_is_a_zero_loss_with_a_graph(labels):
    student = torch.randn(len(labels), 3, requires_grad=True)
    match = relationship_matching(student, torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.long))
    assert match.loss.item() == 0
    assert match.tuples.item() == 0
    assert match.negatives.item() == 0
    match.loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_equal_and_zero_rows_have_finite_gradients():
    student = torch.tensor([[1.0, 0], [1, 0], [0, 0], [1.1, 0.3], [0.9, 0.1]], requires_grad=True)
    match = relationship_matching(student, torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1]), margin=2.0)
    match.loss.backward()
    assert match.tuples > 0
    assert torch.isfinite(student.grad).all()


def test_distance_of_equal_rows_is_zero_with_zero_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    distances = pairwise_distances(x)
    distances.sum().backward()
    assert torch.equal(distances, torch.zeros(2, 2, dtype=torch.float64))
    assert torch.equal(x.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype):
    student, teacher, labels = batch(dtype=torch.float32)
    outside = relationship_matching(student, teacher, labels).loss
    with torch.autocast("cpu", dtype=dtype):
        inside = relationship_matching(student, teacher, labels).loss
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(0, 14),
    classes=st.integers(1, 5),
    temperature=st.floats(0.02, 10),
    margin=st.floats(0, 2),
    seed=st.integers(0, 1000),
)
def test_any_batch_matches_the_loops(size, classes, temperature, margin, seed):
    student, teacher, labels = batch(size=size, classes=classes, seed=seed)
    got = relationship_matching(student, teacher, labels, temperature=temperature, margin=margin)
    loss, tuples, negatives = reference.relationship(student, teacher, labels, temperature, margin)
    assert got.tuples == tuples
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
        ({"max_negatives": 0}, "max_negatives must be None, 'smallest' or an integer ≥ 1, got 0"),
        ({"max_negatives": "all"}, "got 'all'"),
        ({"labels": torch.zeros(24)}, "integer labels, got torch.float32"),
        ({"labels": torch.zeros(23, dtype=torch.long)}, "one batch"),
        ({"teacher_embedding": torch.zeros(24, 3, 1, 1)}, r"\[24, 3, 1, 1\]"),
    ],
)
def test_bad_input_is_named(change, message):
    student, teacher, labels = batch()
    arguments = {"student_embedding": student, "teacher_embedding": teacher, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        relationship_matching(**arguments)


def test_the_window_is_open_at_the_positive_and_closed_at_the_margin():
    """Exact ties in distances that float64 holds exactly: a gap of 0 is out, one of the margin is in."""
    distances = torch.tensor([[0.0, 0.25, 0.25, 0.5, 0.75, 1.0, 0.125]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1])
    got = semihard_negatives(distances, labels, torch.tensor([0]), torch.tensor([1]), 0.5)
    assert got.tolist() == [[False, False, False, True, True, False, False]]
    assert relationship_matching(torch.eye(4), torch.eye(4), torch.tensor([0, 0, 1, 1])).tuples == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradient_matches_that_of_the_loops(dtype, tolerance):
    student, teacher, labels = batch(size=16, classes=3, width=6, dtype=dtype)
    mine, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    relationship_matching(mine, teacher, labels).loss.backward()
    reference.differentiable_relationship(theirs, teacher.double(), labels, 4.0, 0.2).backward()
    assert (mine.grad.double() - theirs.grad).norm() / theirs.grad.norm() < tolerance
