"""The schedule that is told how long its stage is."""

import math

import pytest
import torch
from torchdistill.optim.registry import get_scheduler

from gkd_plugin.box.schedule import RefilledCosine, tell_schedule
from gkd_plugin.config.stages import stages_of
from gkd_plugin.runner.training import Training
from tests.fakes import make_box, models, stage
from tests.runner.fakes import cpu, refused


def rates(length, steps, **settings):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.4}])
    schedule = get_scheduler(optimizer, "refilled_cosine", **settings)
    if length:
        schedule.tell(length)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("warmup", "final"), [(0.25, 0.0), (0.0, 0.1), (0.1, 1.0)])
def test_it_rises_and_falls_to_the_end(warmup, final):
    length = 12
    rising = math.ceil(warmup * length)
    wanted = []
    for step in range(length):
        turned = math.cos(math.pi * (step - rising) / (length - rising))
        falling = final + (1 - final) * (1 + turned) / 2
        wanted.append(0.4 * ((step + 1) / (rising + 1) if step < rising else falling))
    assert rates(length, length, warmup=warmup, final=final) == pytest.approx(wanted)


def test_until_it_is_told_and_after_the_end():
    with pytest.warns(UserWarning, match="was not told its length"):
        assert rates(0, 3) == [0.4] * 3
    assert rates(4, 7, warmup=0.0)[4:] == pytest.approx([0.0] * 3)
    assert rates(1, 1) == pytest.approx([0.2])


@pytest.mark.parametrize(
    "settings", [{"warmup": 1}, {"warmup": -0.1}, {"final": 1.1}, {"final": "x"}, {"warmup": True}]
)
def test_what_is_out_of_range(settings):
    refused(f"^{next(iter(settings))}: must be a number from 0 to 1", rates, 4, 1, **settings)


@pytest.mark.parametrize(
    ("plan", "length"), [({"scheduling_step": 1}, 6), ({"scheduling_step": 2}, 3), ({}, 3), ({"scheduling_step": 0}, 3)]
)
def test_it_is_told_the_steps_of_its_own_stage(plan, length):
    """Of 24 images in batches of 12; each stage has its own."""
    made = {"key": "refilled_cosine", "kwargs": {}, **plan}
    sections = {"stage1": stage("embedding"), "stage2": stage("classifier", epochs=3, scheduler=made)}
    accelerator, (teacher, student) = cpu(), models()
    box = make_box(sections, teacher, student, accelerator)
    rows = [row["lr"] for _, row in Training(box, student, stages_of({"train": sections}), accelerator).epochs()]
    assert isinstance(box.lr_scheduler, RefilledCosine)
    assert box.lr_scheduler.length == length
    assert rows[1] == pytest.approx(0.05 / 2)
    tell_schedule(box)  # again changes nothing
    assert box.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
