"""Learning without Forgetting's loss, against loops."""

import math

import pytest
import torch
from torchdistill.losses.registry import get_mid_level_loss

from gkd_plugin import ConfigError


def io(logits):
    return {".": {"output": logits}}


def loss_of(**kwargs):
    return get_mid_level_loss({"key": "old_class_distillation", "kwargs": kwargs})


def by_loops(student, teacher, temperature):
    total = 0.0
    for own, known in zip(student.tolist(), teacher.tolist(), strict=True):
        old = own[: len(known)]
        p, q = ([math.exp(value / temperature) for value in row] for row in (known, old))
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 5.0}])
@pytest.mark.parametrize(("old", "classes"), [(3, 5), (4, 4)])
def test_agrees_with_loops(kwargs, old, classes):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, classes, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, old, generator=generator, dtype=torch.float64)
    want = by_loops(student, teacher, kwargs.get("temperature", 2.0))
    assert loss_of(**kwargs)(io(student), io(teacher)).item() == pytest.approx(want, rel=1e-12)


def test_new_classes_and_the_teacher_get_no_gradient():
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    loss_of()(io(student), io(teacher)).backward()
    assert student.grad[:, :2].abs().min() > 0
    assert torch.equal(student.grad[:, 2:], torch.zeros(3, 3))
    assert teacher.grad is None


def test_float32_under_autocast():
    student, teacher = torch.randn(4, 5), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of()(io(student.bfloat16()), io(teacher))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(student.bfloat16().float(), teacher, 2.0), rel=1e-5)


def test_a_student_of_fewer_classes():
    with pytest.raises(ConfigError, match="the student has 2 classes, fewer than the teacher's 3"):
        loss_of()(io(torch.zeros(1, 2)), io(torch.zeros(1, 3)))


def test_a_temperature_that_is_none():
    with pytest.raises(ConfigError, match="temperature: must be a finite number above 0"):
        loss_of(temperature=0)
