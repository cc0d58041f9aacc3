"""Two images through each model before anything is written: sizes and channels that do not fit show here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from gkd_plugin.errors import ConfigError

__all__ = ["check_forward", "first_images"]


def first_images(dataset: Any) -> Tensor:
    """The first two images of a data set as a batch; random states stay as they were."""
    with torch.random.fork_rng(devices=[]):
        loader = DataLoader(Subset(dataset, range(min(2, len(dataset)))), batch_size=2)
        images: Tensor = next(iter(loader))[0]
    return images


@torch.no_grad()
def check_forward(where: str, model: Callable[[Tensor], Any], images: Tensor, accelerator: Accelerator) -> None:
    """Runs images through a model (in eval mode); random states stay as they were.

    Args:
        where: key path of the model.
        model: on the accelerator's device.
        images: ``[B, …]``.
        accelerator: whose device and precision are used.

    Raises:
        ConfigError: the model refuses the images (names the model, their shape, the reason, and where the model is
            built for one size, how to build it for this one).
    """
    try:
        with torch.random.fork_rng(devices=[]), accelerator.autocast():
            model(images.to(accelerator.device))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = _size_hint(model, images)
        raise ConfigError(f"{where}: cannot take images of shape {list(images.shape)}: {reason}{hint}") from error


def _size_hint(model: Any, images: Tensor) -> str:
    """Where timm's model is built for one size and the images have another."""
    cfg = getattr(getattr(model, "teacher", model), "pretrained_cfg", None) or {}
    size = list(images.shape[2:])
    if not cfg.get("fixed_input_size") or list(cfg.get("input_size", ())[1:]) == size:
        return ""
    given = size[0] if len(set(size)) == 1 else size
    return f" (its kwargs.img_size: {given} builds it for this size)"
