"""Shim for torchdistill 1.1.5, with a test that fails the day it is no longer needed.

The one for Accelerate is set where its state is made, in ``gkd_plugin.runner.devices``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torchdistill.core.distillation import DistillationBox

__all__ = ["install_prepare_hook"]


def install_prepare_hook() -> None:
    """Lets a criterion see the models before the box wraps them, by calling ``criterion.prepare(box, stage)``.

    Symptom: torchdistill builds the criterion after the models and before DDP, but no part that a plugin can
    register is shown the student between the two. Stage ``embedding`` must freeze the student's classifier just
    there: under DDP a classifier that gets no gradient stops training, with or without
    ``find_unused_parameters``, and its module path differs per architecture.

    Installing twice is harmless.
    """
    original: Callable[..., None] = DistillationBox.setup_loss
    if getattr(original, "calls_prepare", False):
        return

    @functools.wraps(original)
    def setup_loss(self: Any, train_config: dict[str, Any]) -> None:
        original(self, train_config)
        prepare = getattr(self.criterion, "prepare", None)
        if prepare is not None:
            prepare(self, train_config)

    setup_loss.calls_prepare = True  # type: ignore[attr-defined]
    DistillationBox.setup_loss = setup_loss
