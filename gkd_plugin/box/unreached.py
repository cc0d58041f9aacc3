"""Parameters that an embedding does not depend on: they get no gradient from a loss on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_plugin.box.hooks import Capture

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
    device = next((parameter.device for parameter in model.parameters()), images.device)
    capture, was_training = Capture(io), model.training
    handle = model.get_submodule(path).register_forward_hook(capture)
    model.eval()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            model(images.to(device))
    finally:
        handle.remove()
        model.train(was_training)
    embedding = capture.take("student", path)
    if not embedding.requires_grad:
        return trainable
    gradients = torch.autograd.grad(embedding.sum(), trainable, allow_unused=True)
    return [parameter for parameter, gradient in zip(trainable, gradients, strict=True) if gradient is None]
