"""``device.compile``: ``torch.compile`` in place, so that names, hooks and checkpoints stay the same."""

from __future__ import annotations

import logging

from torch import nn

__all__ = ["compile_models"]

logger = logging.getLogger(__name__)


def compile_models(which: str | None, student: nn.Module, teacher: nn.Module | None) -> None:
    """Compiles the models at their first forward pass.

    Args:
        which: 'student', 'teacher', 'both', or ``None`` for neither.
        student: the model itself, unwrapped.
        teacher: the model itself, unwrapped.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if which in (name, "both") and model is not None:
            logger.info("torch.compile: the first batches of the %s may take minutes", name)
            model.compile()
