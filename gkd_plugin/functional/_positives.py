"""The positives of each anchor, as columns of the distance matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassIndex", "Positives"]


class Positives(NamedTuple):
    """Of R anchors, each with at most P positives.

    Attributes:
        own: ``[R, 1]`` column of the anchor itself.
        columns: ``[R, P]`` columns of the anchor's class; the anchor's own column where there is no positive.
        exist: ``[R, P]`` bool, False for the padding and for the anchor itself.
        negatives: ``[R, 1]`` number of columns of other classes.
    """

    own: Tensor
    columns: Tensor
    exist: Tensor
    negatives: Tensor


class ClassIndex:
    """Finds the positives of the anchors in one sort of the labels.

    Args:
        labels: ``[N]`` of the columns, int64 of any value; the anchors are the first columns.

    Attributes:
        order: ``[N]`` columns, class by class.
        start: ``[N]``, where in ``order`` the class of each column begins.
        size: ``[N]``, how many columns are of the class of each.
        width: P. On the CPU the size of the largest class; elsewhere N, so that the host waits for nothing.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        ordered, self.order = labels.sort(stable=True)
        self.start = torch.searchsorted(ordered, labels)
        self.size = torch.searchsorted(ordered, labels, right=True) - self.start
        self._largest: int | None = None
        self.width = self.largest() if labels.device.type == "cpu" else labels.numel()

    def largest(self) -> int:
        """The size of the largest class; on a GPU the host waits for it, once."""
        if self._largest is None:
            self._largest = int(self.size.max()) if self.size.numel() > 0 else 0
        return self._largest

    def positives(self, first: int, last: int) -> Positives:
        """The positives of the anchors ``first`` to ``last - 1``."""
        device = self._labels.device
        own = torch.arange(first, last, device=device).unsqueeze(1)
        rank = torch.arange(self.width, device=device).unsqueeze(0)
        start, size = self.start[first:last, None], self.size[first:last, None]
        columns = self.order[(start + rank).clamp_(max=self._labels.numel() - 1)]
        exist = (rank < size) & (columns != own)
        return Positives(own, torch.where(exist, columns, own), exist, self._labels.numel() - size)
