"""``queue_distillation`` against the reference; other methods' terms that torchdistill's losses are made to give."""

import math

import pytest
import torch
from torchdistill.losses.registry import get_mid_level_loss

from gkd_plugin.compare.method import load_method
from tests import reference
from tests.runner.fakes import refused


def io(path, rows):
    return {path: {"output": rows}}


def queue_loss(**kwargs):
    loss = get_mid_level_loss({"key": "queue_distillation", "kwargs": kwargs})
    return lambda student, teacher: loss(io("projection", student), io("embedding", teacher), torch.zeros(len(student)))


def batch(samples, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, width, generator=generator, dtype=torch.float64) for _ in range(2)]


def once_more(student, teachers, samples, size, tau):
    """Of the last batch, of so many samples, whose teacher's rows end ``teachers``."""
    z, t = (rows.double() / rows.double().square().sum(dim=1, keepdim=True).sqrt() for rows in (student, teachers))
    queue = t[-size:]
    return reference.local_classifier(z @ queue.T, t[-samples:] @ queue.T, torch.arange(len(queue)), tau, tau)


@pytest.mark.parametrize("kwargs", [{}, {"queue_size": 9, "temperature": 0.5}, {"queue_size": 3}])
def test_the_queue_agrees_with_the_reference(kwargs):
    """Of three batches; the queue holds all of them, some of them, or part of the last."""
    loss, seen = queue_loss(**kwargs), torch.zeros(0, 4)
    for seed, samples in enumerate((5, 6, 4)):
        student, teacher = batch(samples, seed=seed)
        seen = torch.cat([seen, teacher])
        expected = once_more(student, seen, samples, kwargs.get("queue_size", 8192), kwargs.get("temperature", 0.07))
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_the_students_alone_and_exact():
    student, teacher = (rows.requires_grad_() for rows in batch(5))
    assert torch.autograd.gradcheck(lambda rows: queue_loss(temperature=0.5)(rows, teacher), student)
    queue_loss()(student, teacher).backward()
    assert teacher.grad is None


def test_a_student_like_its_teacher_loses_nothing_and_autocast_changes_nothing():
    student, teacher = batch(5)
    assert queue_loss()(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    halves = student.bfloat16(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = queue_loss()(*halves)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(once_more(*halves, 5, 5, 0.07), rel=1e-4)


def test_what_the_queue_does_not_take():
    refused("queue_size must be a whole number from 1 up, got 0", queue_loss, queue_size=0)
    refused("temperature: must be a finite number above 0", queue_loss, temperature=0)
    rows = torch.ones(5, 3)
    refused(
        "queue_distillation: .* 5 labels", get_mid_level_loss({"key": "queue_distillation", "kwargs": {}}), rows, rows
    )
    refused(r"\[5, 3\] of the student, \[5, 4\] of the teacher", queue_loss(), torch.ones(5, 3), torch.ones(5, 4))


def test_srds_feature_term_alone():
    """2·log of the sum of fourth powers; what torchdistill adds is nothing, in value and gradient."""
    terms = load_method("srd-features").stages[0].criterion["kwargs"]["sub_terms"]
    student, teacher = batch(6)
    student = student.float().requires_grad_()
    loss = get_mid_level_loss(terms["srd"]["criterion"])(io("projection", student), io("projection", teacher.float()))
    rows = zip(student.tolist(), teacher.float().tolist(), strict=True)
    total = sum((a - b) ** 4 for ours, theirs in rows for a, b in zip(ours, theirs, strict=True))
    assert loss.item() == pytest.approx(2 * math.log(total), rel=1e-6)
    loss.backward()
    difference = student.detach().double() - teacher
    torch.testing.assert_close(student.grad, (8 * difference**3 / total).float())
