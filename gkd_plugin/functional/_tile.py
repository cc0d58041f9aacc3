"""What the engines have in common: a tile of anchors in, its part of the loss and of the gradient out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gkd_plugin.functional._positives import ClassIndex, Positives
from gkd_plugin.functional.mining import Window

__all__ = ["SMALLEST_DISTANCE", "Selection", "Tile", "TileScore"]

SMALLEST_DISTANCE = 1e-6
"""Distances up to this one have gradient 0: the direction between equal points is not defined."""


class Selection(NamedTuple):
    """How tuples are formed and weighed.

    Attributes:
        temperature: τ₁.
        margin: width of the window, for strategies that use it.
        window: the mining strategy.
        max_negatives: at most so many negatives per tuple, the first in batch order (a scalar integer tensor where the
            batch decides); ``None`` for all.
    """

    temperature: float
    margin: float
    window: Window
    max_negatives: int | Tensor | None


class Tile(NamedTuple):
    """R anchors against N columns.

    Attributes:
        student: ``[R, N]`` distances D^S. The engine may overwrite them, and may return its pull in the same tensor.
        teacher: ``[R, N]`` distances D^T, of the same type. The engine may overwrite them.
        classes: the classes of the columns.
        first: the column of the first anchor; the others follow.
    """

    student: Tensor
    teacher: Tensor
    classes: ClassIndex
    first: int

    def positives(self) -> Positives:
        """Where the positives of the anchors are."""
        return self.classes.positives(self.first, self.first + self.student.shape[0])


class TileScore(NamedTuple):
    """The sums over the tuples of a tile.

    Attributes:
        divergence: scalar float64, sum of KL(q^T ‖ q^S).
        tuples: scalar int64.
        negatives: scalar int64, over all tuples.
        pull: ``[R, N]``, ∂divergence/∂D^S_an ÷ D^S_an (0 where D^S_an ≤ ``SMALLEST_DISTANCE``), or ``None``.
    """

    divergence: Tensor
    tuples: Tensor
    negatives: Tensor
    pull: Tensor | None
