import pytest
import torch
from torchdistill.losses.registry import get_mid_level_loss

from gkd_plugin.functional import relationship_matching
from gkd_plugin.losses import RelationshipLoss
from tests.runner.fakes import refused


def loss_and_recordings(*batches, **kwargs):
    paths = {"student_module_path": "s", "teacher_module_path": "t"}
    loss = get_mid_level_loss({"key": "refilled_relationship", "kwargs": paths | kwargs})
    return loss, [({"s": {"output": student}}, {"t": {"output": teacher}}, y) for student, teacher, y in batches]


def test_what_does_not_fit_is_named():
    loss, (batch,) = loss_and_recordings((torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4)))
    refused(r"refilled_relationship: .* integer labels, got torch.float32", loss, *batch)


def test_the_queue_holds_earlier_batches():
    """The second batch is compared with the first one too; the first one's embeddings are constant."""
    torch.manual_seed(0)
    first = torch.randn(10, 4, requires_grad=True), torch.randn(10, 6), torch.arange(10) % 3
    second = torch.randn(8, 4, requires_grad=True), torch.randn(8, 6), torch.arange(8) % 3
    loss, batches = loss_and_recordings(first, second, queue_size=7)
    values = [loss(*batch) for batch in batches]
    earlier = tuple(tensor[-7:].detach() for tensor in first)
    assert values[0].item() == pytest.approx(relationship_matching(*first).loss.item())
    assert values[1].item() == pytest.approx(relationship_matching(*second, earlier=earlier).loss.item())
    values[1].backward()
    assert first[0].grad is None


def test_in_a_loop_of_ones_own_it_takes_the_embeddings():
    torch.manual_seed(0)
    batch = torch.randn(10, 4), torch.randn(10, 6), torch.arange(10) % 3
    assert RelationshipLoss()(*batch).item() == pytest.approx(relationship_matching(*batch).loss.item())
    student, teacher, labels = batch
    for given, shown in ((None, "NoneType"), (labels[1:], r"\[9\]"), (labels.tolist(), "list"), (labels[0], r"\[\]")):
        refused(f"refilled_relationship: .* 10 labels, .* got {shown}$", RelationshipLoss(), student, teacher, given)
