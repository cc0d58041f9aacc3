"""What the two engines have in common: a tile of anchors in, its part of the loss and of the gradient out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gkd_plugin.functional._positives import Positives
from gkd_plugin.functional.mining import Bounds

__all__ = ["SMALLEST_DISTANCE", "Selection", "Tile", "TileScore"]

SMALLEST_DISTANCE = 1e-6
"""Distances up to this one have gradient 0: the direction between equal points is not defined."""


class Selection(NamedTuple):
    """How tuples are formed and weighed.

    Attributes:
        temperature: τ₁.
        margin: width of the window, for strategies that use it.
        bounds: the mining strategy.
        max_negatives: at most so many negatives per tuple, the first in batch order; ``None`` for all.
    """

    temperature: float
    margin: float
    bounds: Bounds
    max_negatives: int | Tensor | str | None


class Tile(NamedTuple):
    """R anchors against N columns.

    Attributes:
        student: ``[R, N]`` distances D^S. The engine may overwrite them.
        teacher: ``[R, N]`` distances D^T, of the same type. The engine may overwrite them.
        positives: where the positives of the anchors are.
    """

    student: Tensor
    teacher: Tensor
    positives: Positives


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
