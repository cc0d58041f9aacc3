"""The tuples (a, p, N) of a tile of anchors: where they are, and what a tile adds to the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.functional.mining import Window

__all__ = ["SMALLEST_DISTANCE", "ClassIndex", "Positives", "Score", "Selection"]

SMALLEST_DISTANCE = 1e-6
"""Distances up to this one have gradient 0: the direction between equal points is not defined."""


class Selection(NamedTuple):
    """How tuples are formed and weighed.

    Attributes:
        temperature: τ₁.
        margin: width of the window, for strategies that use it.
        window: the mining strategy.
        max_negatives: at most so many negatives per tuple, the first in batch order; ``None`` for all.
    """

    temperature: float
    margin: float
    window: Window
    max_negatives: int | None = None


class Score(NamedTuple):
    """Sums over the tuples of a tile of R anchors.

    Attributes:
        divergence: scalar float64, Σ KL(q^T ‖ q^S).
        tuples: scalar int64.
        negatives: scalar int64, over all tuples.
        pull: ``[R, N]``, ∂divergence/∂D^S_an ÷ D^S_an (0 where D^S_an ≤ ``SMALLEST_DISTANCE``), or ``None``.
    """

    divergence: Tensor
    tuples: Tensor
    negatives: Tensor
    pull: Tensor | None


class Positives(NamedTuple):
    """The positives of R anchors, at most P each, as columns of the distances.

    Attributes:
        own: ``[R, 1]``, the column of the anchor itself.
        columns: ``[R, P]``, the columns of the anchor's class; padded with the anchor's own column.
        exist: ``[R, P]`` bool, False for the padding and the anchor itself.
        negatives: ``[R, 1]``, the number of columns of other classes.
    """

    own: Tensor
    columns: Tensor
    exist: Tensor
    negatives: Tensor


class ClassIndex:
    """Finds positives by one sort of the labels.

    Args:
        labels: ``[N]`` of the columns, int64 of any value; the anchors are the first columns.
        wait: whether the host may wait for the device to learn P, the size of the largest class. Otherwise P = N.
    """

    def __init__(self, labels: Tensor, wait: bool) -> None:
        ordered, self._order = labels.sort(stable=True)
        self._start = torch.searchsorted(ordered, labels)
        self._size = torch.searchsorted(ordered, labels, right=True) - self._start
        self._width = int(self._size.max()) if wait and len(labels) else len(labels)

    def positives(self, first: int, last: int) -> Positives:
        """Those of the anchors ``first`` to ``last - 1``."""
        count, device = len(self._order), self._order.device
        own = torch.arange(first, last, device=device).unsqueeze(1)
        rank = torch.arange(self._width, device=device)
        start, size = self._start[first:last, None], self._size[first:last, None]
        columns = self._order[(start + rank).clamp_(max=count - 1)]
        exist = (rank < size) & (columns != own)
        return Positives(own, torch.where(exist, columns, own), exist, count - size)
