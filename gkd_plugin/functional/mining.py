r"""Which negatives a positive pair (a, p) is compared with: an interval of the student's distances.

A strategy is a :class:`Window`: must a negative be farther from the anchor than the positive is, and how far away may
it be? Because the answer is an interval, one sort per anchor serves all of its positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MINING", "Reach", "Window", "largest_within_margin"]


class Reach(IntEnum):
    """How far a negative may be from the anchor."""

    POSITIVE = 0
    """D_an ≤ D_ap."""
    MARGIN = 1
    """D_an − D_ap ≤ margin."""
    ANY = 2
    """Any distance."""


class Window(NamedTuple):
    """N(a, p) = {n : y_n ≠ y_a, D_an > D_ap where ``beyond_positive``, D_an within ``reach``}."""

    beyond_positive: bool
    reach: Reach

    def ends(self, distance: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """(lower, upper), such that N(a, p) are the negatives with lower < D_an ≤ upper.

        Args:
            distance: D_ap, any shape.
            margin: ≥ 0.
        """
        lower = distance if self.beyond_positive else torch.full_like(distance, -torch.inf)
        if self.reach == Reach.MARGIN:
            return lower, largest_within_margin(distance, margin)
        return lower, distance if self.reach == Reach.POSITIVE else torch.full_like(distance, torch.inf)


def largest_within_margin(distance: Tensor, margin: float) -> Tensor:
    r"""θ(d): the largest representable x for which the difference x − d, rounded, is at most ``margin``.

    ``d + margin`` is off by one unit in the last place where either operation rounds; comparing with θ(d) selects
    exactly what ``x - d <= margin`` selects.

    Args:
        distance: d ≥ 0, any shape.
        margin: ≥ 0.

    Returns:
        θ(d), of the same shape and type.
    """
    bound, above = (torch.full_like(distance, value) for value in (margin, torch.inf))
    first = torch.nextafter(distance + bound, above)
    second = torch.nextafter(first, -above)
    third = torch.nextafter(second, -above)
    chosen = torch.where(second - distance <= bound, second, third)
    return torch.where(first - distance <= bound, first, chosen)


MINING: Mapping[str, Window] = {
    "semihard": Window(beyond_positive=True, reach=Reach.MARGIN),
    "hard": Window(beyond_positive=False, reach=Reach.POSITIVE),
    "all": Window(beyond_positive=False, reach=Reach.ANY),
}
"""``'semihard'``, the paper's: 0 < D_an − D_ap ≤ margin, farther than the positive but not by more than the margin.
``'hard'``: D_an ≤ D_ap, the negatives that violate the order. ``'all'``: every sample of another class; nothing is
mined and the margin is not used (other libraries call 'all' what is semi-hard or hard here)."""
