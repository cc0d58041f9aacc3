"""``optimizer.max_grad_norm`` under float16: a shim for torchdistill 1.1.5."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

__all__ = ["clip_unscaled"]


def clip_unscaled(box: Any, accelerator: Accelerator) -> None:
    """Clips the gradients of a stage themselves, where torchdistill would clip what a gradient scaler multiplied.

    Symptom: in float16 Accelerate multiplies the loss by up to 65536 and divides the gradients again just before the
    step; torchdistill clips between the two, so that ``max_grad_norm: 2.0`` leaves gradients of 2 / 65536 and nothing
    is learned. A hook on the optimizer itself runs after the division; a fused optimizer divides in its own step, and
    has the scaler's factor on it until then. Does nothing without a scaler.

    Args:
        box: torchdistill's box, with the optimizer of the stage that begins.
        accelerator: what it was built with.
    """
    if box.max_grad_norm is None or accelerator.scaler is None:
        return
    limit, box.max_grad_norm = box.max_grad_norm, None

    def clip(optimizer: Optimizer, *_: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, limit if scale is None else limit * float(scale))

    box.optimizer.optimizer.register_step_pre_hook(clip)
