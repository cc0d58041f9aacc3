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
    """Lets teacher and criterion see the box before it wraps the models, by calling their ``prepare(box, stage)``.

    Symptom: torchdistill builds the criterion after the models and before DDP, but no part that a plugin can
    register is shown the student or the data between the two. Stage ``embedding`` must freeze the student's classifier
    just there: under DDP a classifier that gets no gradient stops training, with or without
    ``find_unused_parameters``, and its module path differs per architecture. And the teacher must learn how the
    training images are normalised before the first one reaches it.

    Installing twice is harmless.
    """
    original: Callable[..., None] = DistillationBox.setup_loss
    if getattr(original, "calls_prepare", False):
        return

    @functools.wraps(original)
    def setup_loss(self: Any, train_config: dict[str, Any]) -> None:
        original(self, train_config)
        for part in (getattr(self, "teacher_model", None), self.criterion):
            prepare = getattr(part, "prepare", None)
            if prepare is not None:
                prepare(self, train_config)

    setup_loss.calls_prepare = True  # type: ignore[attr-defined]
    DistillationBox.setup_loss = setup_loss
