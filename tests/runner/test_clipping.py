from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torchdistill.core.interfaces.post_forward_proc import default_post_forward_process

from gkd_plugin.runner.clipping import clip_unscaled

LIMIT, SCALE = 0.5, 2.0**16
GRADIENT = torch.tensor([3.0, 4.0])


class Scaled:
    """What Accelerate does in float16, with a scaler for the CPU."""

    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)

    def backward(self, loss):
        self.scaler.scale(loss).backward()


def box_with(accelerator, max_grad_norm, **kwargs):
    parameter = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0, **kwargs)
    box = SimpleNamespace(accelerator=accelerator, max_grad_norm=max_grad_norm, grad_accum_step=1, stage_grad_count=0)
    box.lr_scheduler, box.scheduling_step, box.parameter = None, 0, parameter
    box.optimizer = AcceleratedOptimizer(optimizer, device_placement=False, scaler=accelerator.scaler)
    return box


def step(box):
    """The step that torchdistill takes against the gradient (3, 4)."""
    before = box.parameter.detach().clone()
    default_post_forward_process(box, loss=(box.parameter * GRADIENT).sum())
    return box.parameter.detach() - before


@pytest.fixture(autouse=True)
def _cpu_state():
    from accelerate import Accelerator

    Accelerator(cpu=True)  # AcceleratedOptimizer reads its state


def test_trap_torchdistill_clips_what_the_scaler_multiplied():
    torch.testing.assert_close(step(box_with(Scaled(), LIMIT)), -LIMIT * GRADIENT / 5 / SCALE)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("limit", "expected"), [(LIMIT, LIMIT * GRADIENT / 5), (10.0, GRADIENT), (None, GRADIENT)])
def test_the_gradient_itself_is_clipped(limit, expected, fused):
    accelerator = Scaled()
    box = box_with(accelerator, limit, fused=fused)
    clip_unscaled(box, accelerator)
    for _ in range(2):
        torch.testing.assert_close(step(box), -expected)


def test_without_a_scaler_torchdistill_clips():
    accelerator = SimpleNamespace(scaler=None, backward=lambda loss: loss.backward())
    box = box_with(accelerator, LIMIT)
    clip_unscaled(box, accelerator)
    assert box.max_grad_norm == LIMIT
    torch.testing.assert_close(step(box), -LIMIT * GRADIENT / 5)


def test_accumulated_gradients_are_clipped_once():
    accelerator = Scaled()
    box = box_with(accelerator, LIMIT)
    box.grad_accum_step = 2
    clip_unscaled(box, accelerator)
    assert not step(box).any()
    torch.testing.assert_close(step(box), -LIMIT * GRADIENT / 5)
