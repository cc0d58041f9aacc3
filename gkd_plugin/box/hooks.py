"""Module paths and what hooks record of them: checked here, because torchdistill does not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkd_plugin.errors import ConfigError, nearest


class Capture:
    """A forward hook that keeps what a module was last given, or gave, until it is taken."""

    def __init__(self, io: str) -> None:
        self.io = io
        self.value: Any = None

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: D102
        self.value = output if self.io == "output" else args[0]

    def take(self, model: str, path: str) -> Tensor:
        """What was kept, as :func:`hooked_tensor`; then it is gone."""
        value, self.value = self.value, None
        return hooked_tensor({path: {} if value is None else {self.io: value}}, model, path, self.io)

    @classmethod
    def of(cls, model: nn.Module, path: str, io: str) -> "Capture":
        """The one on this module, which wrappers of one model share; it stays there, as a compiled model needs it."""
        module = model.get_submodule(path)
        for hook in module._forward_hooks.values():  # noqa: SLF001
            if isinstance(hook, cls) and hook.io == io:
                return hook
        capture = cls(io)
        module.register_forward_hook(capture)
        return capture

    @classmethod
    @contextmanager
    def during(cls, model: nn.Module, path: str, io: str = "output") -> Iterator["Capture"]:
        """A new one on this module of the model, removed afterwards."""
        capture = cls(io)
        with model.get_submodule(path).register_forward_hook(capture):
            yield capture


def check_module_path(model: nn.Module, path: str, where: str) -> None:
    """Raises ConfigError, naming ``where`` and the nearest paths, unless ``path`` is a submodule of ``model``."""
    names = [name for name, _ in model.named_modules() if name]
    if path not in names:
        raise ConfigError(f"{where}: {type(model).__name__} has no module {path!r}; {nearest(path, names)}")


def hooked_tensor(io_dict: Mapping[str, Mapping[str, Any]], model: str, path: str, io: str = "output") -> Tensor:
    """The tensor that a hook on the 'student' or 'teacher' recorded, ``[B, D]`` also where it is ``[B, D, 1, 1]``.

    Raises ConfigError where nothing was recorded, or no tensor of such a shape.
    """
    recorded = io_dict.get(path, {})
    if io not in recorded:
        if path == "local_classifier":
            needed = "'refilled_teacher' with forward_hook output 'local_classifier', and pre_epoch_process: 'refilled'"
            raise ConfigError(f"the teacher's 'local_classifier' gave nothing: stage 'classifier' needs {needed}")
        if not io_dict:
            raise ConfigError(f"there is no {model}: ReFilled needs models.teacher_model and models.student_model")
        known, place = nearest(path, [key for key in io_dict if key != "."]), f"{model}.forward_hook.{io}"
        raise ConfigError(f"the {model}'s {path!r}/{io} is not recorded: add it to the stage's {place}; {known}")
    value = recorded[io]
    if not isinstance(value, Tensor):
        raise ConfigError(f"the {model}'s {path!r}/{io} is a {type(value).__name__}, not one tensor")
    if value.ndim != 2 and (value.ndim != 4 or value.shape[2:] != (1, 1)):
        raise ConfigError(f"the {model}'s {path!r}/{io} has shape {list(value.shape)}, not [B, D] or [B, D, 1, 1]")
    return value.flatten(1)


def unreached_parameters(model: nn.Module, path: str, images: Tensor) -> list[nn.Parameter]:
    """The trainable parameters that the output of a module does not depend on: a loss on it gives them no gradient.

    For the embedding those are of the classifiers, whatever the architecture. Runs the model once, forward and
    backward, in eval mode; weights, statistics and random states stay as they were.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next((parameter.device for parameter in model.parameters()), images.device)
    was_training = model.training
    model.eval()
    try:
        with Capture.during(model, path) as capture, torch.enable_grad(), torch.random.fork_rng(devices=[]):
            model(images.to(device))
    finally:
        model.train(was_training)
    embedding = capture.take("student", path)
    if not embedding.requires_grad:
        return trainable
    gradients = torch.autograd.grad(embedding.sum(), trainable, allow_unused=True)
    return [parameter for parameter, gradient in zip(trainable, gradients, strict=True) if gradient is None]
