"""Parameters that an embedding does not depend on: they get no gradient from a loss on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdistill.core.forward_hook import ForwardHookManager

from gkd_plugin.box.hooks import hooked_tensor

__all__ = ["unreached_parameters"]


def unreached_parameters(model: nn.Module, path: str, io: str, images: Tensor) -> list[nn.Parameter]:
    """The trainable parameters that what a hook records does not depend on, found by autograd.

    That is the classifier (all of them, where a model has several, and what weighs them against each other), whatever
    the architecture. Runs the model once, forward and backward, in eval mode; weights, statistics and random states
    stay as they were.

    Args:
        model: the student.
        path: module path of the hook.
        io: 'output' or 'input'.
        images: ``[B, …]``, on any device.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embedding = _embedding(model, path, io, images)
    if not embedding.requires_grad:
        return trainable
    gradients = torch.autograd.grad(embedding.sum(), trainable, allow_unused=True)
    return [parameter for parameter, gradient in zip(trainable, gradients, strict=True) if gradient is None]


def _embedding(model: nn.Module, path: str, io: str, images: Tensor) -> Tensor:
    device = next((parameter.device for parameter in model.parameters()), images.device)
    hook: Any = ForwardHookManager(device)
    hook.add_hook(model, path, requires_input=io == "input", requires_output=io == "output")
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            model(images.to(device))
        return hooked_tensor(hook.pop_io_dict(), "student", path, io)
    finally:
        hook.clear()
        model.train(was_training)
