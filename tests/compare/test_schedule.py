import pytest
import torch

from gkd_plugin.compare.schedule import scaled, stretched
from gkd_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "kwargs", "changed"),
    [
        ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.1}, {"T_max": 25}),
        ("StepLR", {"step_size": 4, "gamma": 0.5}, {"step_size": 10}),
        ("MultiStepLR", {"milestones": [4, 8]}, {"milestones": [10, 20]}),
        ("LinearLR", {"total_iters": 6}, {"total_iters": 15}),
        ("PolynomialLR", {"total_iters": 6, "power": 2}, {"total_iters": 15}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 20}, {"total_steps": 50}),
        ("ConstantLR", {"factor": 1.0}, {}),
        ("ReduceLROnPlateau", {"patience": 3}, {}),
    ],
)
def test_two_and_a_half_times_as_long(key, kwargs, changed):
    expected = {**kwargs, **changed}
    given = {"key": key, "kwargs": kwargs, "scheduling_step": 1}
    assert stretched(given, 2.5) == {"key": key, "kwargs": expected, "scheduling_step": 1}
    assert given["kwargs"] == kwargs
    weights = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    getattr(torch.optim.lr_scheduler, key)(weights, **expected)


@pytest.mark.parametrize("scheduler", [None, {"key": "OneCycleLR", "kwargs": {}}])
def test_nothing_to_stretch(scheduler):
    assert stretched(scheduler, 1) == scheduler
    assert stretched(None, 2) is None


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"key": "CosineAnealingLR"}, "'CosineAnealingLR' cannot be stretched .* did you mean 'CosineAnnealingLR'"),
        ({"key": "ExponentialLR", "kwargs": {"gamma": 0.9}}, "'ExponentialLR' cannot be stretched"),
        ({"key": "StepLR"}, "scheduler.kwargs: 'StepLR' has no 'step_size' to stretch"),
    ],
)
def test_what_cannot_be_stretched(scheduler, message):
    with pytest.raises(ConfigError, match=message):
        stretched(scheduler, 2)


def test_a_peak_is_scaled_with_the_learning_rate():
    cycle = {"key": "OneCycleLR", "kwargs": {"max_lr": 0.5, "total_steps": 20}, "scheduling_step": 1}
    assert scaled(cycle, 0.5) == {**cycle, "kwargs": {"max_lr": 0.25, "total_steps": 20}}
    assert cycle["kwargs"]["max_lr"] == 0.5
    grouped = {"key": "OneCycleLR", "kwargs": {"max_lr": [0.5, 0.2], "total_steps": 20}}
    assert scaled(grouped, 0.5)["kwargs"]["max_lr"] == [0.25, 0.1]
    cosine = {"key": "CosineAnnealingLR", "kwargs": {"T_max": 10, "eta_min": 0.1}}
    assert scaled(cosine, 0.5) == cosine
    assert scaled({"key": "ConstantLR"}, 0.5) == {"key": "ConstantLR"}
