"""Local classifier distillation against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import emphasis_weights, local_classifier_distillation, local_logits, present_classes
from tests import reference


def batch(size=16, classes=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, classes, generator=generator, dtype=dtype)
    local = 3 * torch.randn(size, classes, generator=generator, dtype=dtype)
    return student, local, torch.randint(classes - 2, (size,), generator=generator)


@pytest.mark.parametrize(("temperature", "student_temperature"), [(1.0, 1.0), (2.0, 2.0), (0.5, 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_loops(temperature, student_temperature, weighted):
    student, local, labels = batch()
    weights = emphasis_weights(local) if weighted else None
    got = local_classifier_distillation(
        student,
        local,
        labels,
        temperature=temperature,
        student_temperature=student_temperature,
        weights=weights,
    )
    want = reference.local_classifier(
        student, local, labels, temperature, student_temperature, weights.tolist() if weighted else None
    )
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_float32_keeps_five_digits():
    student, local, labels = batch(dtype=torch.float32)
    got = local_classifier_distillation(student, local, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(reference.local_classifier(student, local, labels, 1, 1), rel=1e-5)


def test_gradcheck_and_absent_classes_get_no_gradient():
    student, local, labels = batch()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_classifier_distillation(x, local, labels), (student,))
    local_classifier_distillation(student, local, labels).backward()
    absent = ~present_classes(labels, 7)
    assert absent.any()
    assert torch.equal(student.grad[:, absent], torch.zeros(16, int(absent.sum()), dtype=torch.float64))


def test_teacher_gets_no_gradient():
    student, local, labels = batch()
    local.requires_grad_()
    student.requires_grad_()
    local_classifier_distillation(student, local, labels).backward()
    assert local.grad is None


def test_one_class_in_the_batch_is_zero_with_a_graph():
    student, local, _ = batch()
    student.requires_grad_()
    loss = local_classifier_distillation(student, local, torch.full((16,), 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_local_logits_do_not_normalise_the_embedding():
    embedding, centres = torch.randn(4, 3).double(), torch.eye(3).double()
    torch.testing.assert_close(local_logits(embedding, centres), embedding)


def test_local_logits_stay_in_float32_under_autocast():
    embedding, centres = torch.randn(4, 64), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = local_logits(embedding, centres)
    assert got.dtype == torch.float32
    assert torch.equal(got, embedding @ centres.T)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 10), classes=st.integers(3, 6), scale=st.floats(0, 100), seed=st.integers(0, 1000))
def test_any_batch_matches_the_loops(size, classes, scale, seed):
    student, local, labels = batch(size, classes, seed=seed)
    got = local_classifier_distillation(scale * student, local, labels)
    want = reference.local_classifier(scale * student, local, labels, 1, 1)
    assert got.item() == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "^temperature: must be a finite number above 0, got 0$"),
        ({"teacher_local_logits": torch.zeros(16, 5)}, r"student \[16, 7\], teacher \[16, 5\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels \[3\]"),
        ({"student_temperature": float("inf")}, "^student_temperature: must be a finite number above 0, got inf$"),
        ({"weights": torch.ones(16, 1)}, r"^weights must be one for each sample, \[16\], got \[16, 1\]$"),
    ],
)
def test_bad_input_is_named(change, message):
    student, local, labels = batch()
    arguments = {"student_logits": student, "teacher_local_logits": local, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        local_classifier_distillation(**arguments)


def test_an_empty_batch_is_a_zero_with_a_graph():
    student = torch.zeros(0, 3, requires_grad=True)
    loss = local_classifier_distillation(student, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
