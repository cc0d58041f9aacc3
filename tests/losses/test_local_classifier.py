"""The mid-level losses on logits: the local classifier's in a WeightedSumLoss mix, Learning without Forgetting's."""

import pytest
import torch
from torchdistill.losses.registry import get_high_level_loss, get_mid_level_loss

from gkd_plugin.functional import emphasis_weights, local_classifier_distillation
from gkd_plugin.losses import LocalClassifierLoss
from tests import reference
from tests.runner.fakes import refused


@pytest.mark.parametrize("adaptive", [True, False])
def test_in_a_weighted_sum(adaptive):
    torch.manual_seed(0)
    student, local, own, labels = torch.randn(10, 4), torch.randn(10, 4), torch.randn(10, 6), torch.arange(10) % 3
    term = {"criterion": {"key": "refilled_local_classifier", "kwargs": {"adaptive": adaptive}}, "weight": 3.0}
    loss = get_high_level_loss({"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"l": term}}})
    io_dict = {"student": io(student), "teacher": {**io(own), "local_classifier": {"output": local}}}
    weights = emphasis_weights(own) if adaptive else None
    want = local_classifier_distillation(student, local, labels, weights=weights)
    assert loss(io_dict, {}, labels).item() == pytest.approx(3 * want.item())


def io(logits):
    return {".": {"output": logits}}


def old_class_loss(student, teacher, **kwargs):
    return get_mid_level_loss({"key": "old_class_distillation", "kwargs": kwargs})(io(student), io(teacher))


def by_loops(student, teacher, tau):
    old = teacher.shape[1]
    every_class = torch.arange(len(student)) % old
    return tau**2 * reference.local_classifier(student[:, :old], teacher, every_class, tau, tau)


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 5.0}])
@pytest.mark.parametrize(("old", "classes"), [(3, 5), (4, 4)])
def test_old_classes_agree_with_loops(kwargs, old, classes):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, classes, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(6, old, generator=generator, dtype=torch.float64).requires_grad_()
    loss = old_class_loss(student, teacher, **kwargs)
    assert loss.item() == pytest.approx(by_loops(student, teacher, kwargs.get("temperature", 2.0)), rel=1e-12)
    loss.backward()
    assert student.grad[:, :old].abs().min() > 0
    assert not student.grad[:, old:].any()
    assert teacher.grad is None


def test_old_classes_in_float32_under_autocast():
    student, teacher = torch.randn(4, 5), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = old_class_loss(student.bfloat16(), teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(student.bfloat16().float(), teacher, 2.0), rel=1e-5)


def test_what_old_classes_do_not_take():
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    refused("the student has 2 classes, fewer than the teacher's 3", old_class_loss, two, three)
    refused("temperature: must be a finite number above 0", old_class_loss, two, two, temperature=0)


def test_in_a_loop_of_ones_own_it_takes_the_logits():
    torch.manual_seed(0)
    student, local, own, labels = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 5), torch.arange(6) % 3
    plain = local_classifier_distillation(student, local, labels).item()
    weighed = local_classifier_distillation(student, local, labels, weights=emphasis_weights(own)).item()
    assert LocalClassifierLoss(adaptive=False)(student, local, labels).item() == pytest.approx(plain)
    for pair in ((local, own), [local, own]):
        assert LocalClassifierLoss()(student, pair, labels).item() == pytest.approx(weighed)
    refused("refilled_local_classifier: .* 6 labels", LocalClassifierLoss(adaptive=False), student, local)
    refused(r"refilled_local_classifier: 2 .* 3: .*local_classifier", LocalClassifierLoss(), student, local, labels)
