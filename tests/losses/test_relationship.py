"""The mid-level relationship loss on its own."""

import pytest
import torch
from torchdistill.losses.registry import get_mid_level_loss

from gkd_plugin import ConfigError
from gkd_plugin.functional import relationship_matching


def recordings(student, teacher):
    return {"student": {"s": {"output": student}}, "teacher": {"t": {"output": teacher}}}


@pytest.mark.parametrize(
    ("path", "labels", "message"),
    [
        ("x", torch.tensor([0, 0, 1, 1]), r"the student's 'x'/output is not recorded: add it to .*allowed: 's'"),
        ("s", torch.zeros(4), r"refilled_relationship: .* integer labels, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(path, labels, message):
    kwargs = {"student_module_path": path, "teacher_module_path": "t"}
    loss = get_mid_level_loss({"key": "refilled_relationship", "kwargs": kwargs})
    with pytest.raises(ConfigError, match=message):
        loss(*recordings(torch.randn(4, 2), torch.randn(4, 2)).values(), labels)


def test_the_queue_holds_earlier_batches():
    """The second batch is compared with the first one too; the first one's embeddings are constant."""
    torch.manual_seed(0)
    kwargs = {"student_module_path": "s", "teacher_module_path": "t", "queue_size": 7}
    loss = get_mid_level_loss({"key": "refilled_relationship", "kwargs": kwargs})
    first = torch.randn(10, 4, requires_grad=True), torch.randn(10, 6), torch.arange(10) % 3
    second = torch.randn(8, 4, requires_grad=True), torch.randn(8, 6), torch.arange(8) % 3
    values = [loss(*recordings(student, teacher).values(), labels) for student, teacher, labels in (first, second)]
    earlier = tuple(tensor[-7:].detach() for tensor in first)
    assert values[0].item() == pytest.approx(relationship_matching(*first).loss.item())
    assert values[1].item() == pytest.approx(relationship_matching(*second, earlier=earlier).loss.item())
    values[1].backward()
    assert first[0].grad is None
    assert "queue_size=7" in repr(loss)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mining": "semi-hard"}, "mining: 'semi-hard' .* did you mean 'semihard'"),
        ({"max_negatives": "smalest"}, "refilled_relationship: max_negatives: must be None, 'smallest' or an integer"),
        ({"queue_size": -1}, "queue_size must be a whole number from 0 up, got -1"),
        ({"queue_size": True}, "queue_size must be a whole number from 0 up, got True"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        get_mid_level_loss({"key": "refilled_relationship", "kwargs": kwargs})
