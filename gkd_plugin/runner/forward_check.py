"""Two images through each model before anything is written: sizes and channels that do not fit show here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from gkd_plugin.errors import ConfigError

__all__ = ["check_forward"]


@torch.no_grad()
def check_forward(dataset: Any, models: Mapping[str, Callable[[Tensor], Any]], accelerator: Accelerator) -> None:
    """Runs the first images of the training set through the models (in eval mode); random states stay as they were.

    Args:
        dataset: the training set.
        models: key path → model.
        accelerator: whose device and precision are used.

    Raises:
        ConfigError: a model refuses the images (names the model, their shape and the reason).
    """
    with torch.random.fork_rng(devices=[]):
        loader = DataLoader(Subset(dataset, range(min(2, len(dataset)))), batch_size=2)
        images: Tensor = next(iter(loader))[0].to(accelerator.device)
    for where, model in models.items():
        with torch.random.fork_rng(devices=[]), accelerator.autocast():
            _forward(where, model, images)


def _forward(where: str, model: Callable[[Tensor], Any], images: Tensor) -> None:
    try:
        model(images)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{where}: cannot take images of shape {list(images.shape)}: {reason}") from error
