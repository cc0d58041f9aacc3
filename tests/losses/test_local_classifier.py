"""The mid-level local classifier loss in a WeightedSumLoss mix."""

import pytest
import torch
from torchdistill.losses.registry import get_high_level_loss, get_mid_level_loss

from gkd_plugin import ConfigError
from gkd_plugin.functional import emphasis_weights, local_classifier_distillation


@pytest.mark.parametrize("adaptive", [True, False])
def test_in_a_weighted_sum(adaptive):
    torch.manual_seed(0)
    student, local, own, labels = torch.randn(10, 4), torch.randn(10, 4), torch.randn(10, 6), torch.arange(10) % 3
    term = {"criterion": {"key": "refilled_local_classifier", "kwargs": {"adaptive": adaptive}}, "weight": 3.0}
    loss = get_high_level_loss({"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"l": term}}})
    io_dict = {
        "student": {".": {"output": student}},
        "teacher": {".": {"output": own}, "local_classifier": {"output": local}},
    }
    weights = emphasis_weights(own) if adaptive else None
    want = local_classifier_distillation(student, local, labels, weights=weights)
    assert loss(io_dict, {}, labels).item() == pytest.approx(3 * want.item())


def test_without_class_centres_it_says_how_to_get_them():
    loss = get_mid_level_loss({"key": "refilled_local_classifier", "kwargs": {}})
    with pytest.raises(ConfigError, match="computes the class centres before the first epoch"):
        loss({".": {"output": torch.randn(2, 2)}}, {".": {"output": torch.randn(2, 2)}}, torch.tensor([0, 1]))
