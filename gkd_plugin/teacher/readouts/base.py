"""What a teacher says of images, and what a readout makes of it: logits over the student's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["READOUTS", "Answers", "Readout", "Seen"]

READOUTS: dict[str, Readout] = {}
"""Name → readout; every subclass of :class:`Readout` enters itself."""


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


class Seen(NamedTuple):
    """Training images as the student sees them, for a readout to be fitted to; on the CPU in float32.

    Attributes:
        rows: ``[N, D_t + F]``, see :attr:`Answers.rows`.
        logits: ``[N, C_t]``, the teacher's own; ``None`` where it has none, or shares no class with the student.
        labels: ``[N]``, the student's.
        samples: ``[N]`` integers, equal for differently augmented images of one sample.
        teacher_labels: for each of the student's classes the teacher's own label of it, ``None`` for a class that
            the teacher does not have; ``None`` for all where no class is shared.
    """

    rows: Tensor
    logits: Tensor | None
    labels: Tensor
    samples: Tensor
    teacher_labels: Sequence[int | None] | None


class Readout:
    """A way to read logits over the student's C classes off the teacher; it keeps no state of its own.

    Attributes:
        name: what the wrapper's keyword ``local_classifier`` calls it.
        wants_views: whether :meth:`fit` gets training images, augmented as the student sees them. Class centres,
            which are computed without augmentation, it gets in any case.
    """

    name: ClassVar[str]
    wants_views: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        READOUTS[cls.name] = cls()

    def fit(self, centres: Tensor, seen: Seen | None) -> dict[str, Tensor]:
        """Whatever tensors :meth:`logits` needs, by name; they become buffers of the wrapper's ``local_classifier``.

        Args:
            centres: ``[C, D_t]``, class centres, on the teacher's device.
            seen: training images; ``None`` unless ``wants_views``.

        Raises:
            ValueError: the images or the class map cannot be used.
        """
        raise NotImplementedError

    def logits(self, fitted: Mapping[str, Tensor], answers: Answers) -> Tensor:
        """``[B, C]`` float32; here rows · weightᵀ + bias, where ``weight`` may leave out the last columns of the rows.

        Args:
            fitted: the tensors that :meth:`fit` returned, and ``centres``, on the teacher's device.
            answers: of a batch, on the same device.
        """
        weight = fitted["weight"]
        return functional.linear(answers.rows[:, : weight.shape[1]], weight, fitted["bias"])
