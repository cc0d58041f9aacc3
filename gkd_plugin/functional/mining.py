r"""Which negatives a positive pair (a, p) is compared with: an interval of the student's distances.

Every strategy has one contract. Given D_ap it returns (lower, upper), and N(a, p) holds the samples n of other classes
with lower < D_an ≤ upper. An interval is what lets one sort per anchor serve all of its positives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["MINING", "Bounds", "all_bounds", "hard_bounds", "largest_within_margin", "semihard_bounds"]

Bounds = Callable[[Tensor, float], tuple[Tensor, Tensor]]


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
    bound = torch.full_like(distance, margin)
    above, below = torch.full_like(distance, torch.inf), torch.full_like(distance, -torch.inf)
    first = torch.nextafter(distance + bound, above)
    second = torch.nextafter(first, below)
    third = torch.nextafter(second, below)
    chosen = torch.where(second - distance <= bound, second, third)
    return torch.where(first - distance <= bound, first, chosen)


def semihard_bounds(distance: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """``'semihard'``, the paper's: 0 < D_an − D_ap ≤ margin. Farther than the positive, but not by more than margin."""
    return distance, largest_within_margin(distance, margin)


def hard_bounds(distance: Tensor, margin: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """``'hard'``: D_an ≤ D_ap. Only the negatives that violate the order, as near as the positive or nearer."""
    return torch.full_like(distance, -torch.inf), distance


def all_bounds(distance: Tensor, margin: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """``'all'``: every sample of another class, at any distance; nothing is mined and the margin is not used."""
    return torch.full_like(distance, -torch.inf), torch.full_like(distance, torch.inf)


MINING: Mapping[str, Bounds] = {"semihard": semihard_bounds, "hard": hard_bounds, "all": all_bounds}
