"""What a teacher says of a batch: the record that wrapper, readouts and cache hand on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Answers"]


class Answers(NamedTuple):
    """What a teacher says of a batch, ``[B, …]`` each in float32; ``None`` where it has none.

    Attributes:
        embedding: ``[B, D_t]``.
        local_classifier: ``[B, C]``, logits over the student's classes, once the local classifier is fitted; ``None``
            has the wrapper compute them.
        logits: ``[B, C_t]``, of the teacher's own classifier.
        features: ``[B, F]``, of earlier layers, see :mod:`gkd_plugin.teacher.features`.
    """

    embedding: Tensor
    local_classifier: Tensor | None = None
    logits: Tensor | None = None
    features: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """``[B, D_t + F]`` float32: embedding and features side by side."""
        parts = [self.embedding] if self.features is None else [self.embedding, self.features]
        return torch.cat([part.detach().float() for part in parts], dim=1)
