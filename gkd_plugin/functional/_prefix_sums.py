r"""Relationship matching of a tile of anchors by one sort and prefix sums: O(N log N) per anchor.

Sort the negatives of an anchor by D^S. The window of a positive is then a run of positions [lo, hi), and a sum over the
window is a difference of two prefix sums. With e = exp(−D^T/τ), δ = (D^S − D^T)/τ, summed over a tuple's members:

    Z_T = Σ e,   U = Σ e·δ,   V = Σ e·(exp(−δ) − 1),   Z_S = Z_T + V,   KL = U/Z_T + ln(1 + V/Z_T).

U and V rather than Z_S: in KL the first-order parts of U/Z_T and ln(1 + V/Z_T) cancel, whatever rounding e has. All but
the distances is float64: what is left after that cancellation is of second order in δ. The gradient for a member is
(e/Z_T − exp(−D^S/τ)/Z_S)/τ; summed over the windows that a negative lies in, it is

    e·(A − (exp(−δ) − 1)·A′)/τ,   A = Σ V/(Z_T·Z_S),   A′ = Σ 1/Z_S,

and A, A′ are prefix sums of arrays with +value at lo and −value at hi.

The error is about 2⁻⁵³·N·exp(2/τ), from the prefix sums; below τ = 0.15 use ``score_densely``.
"""

import numpy as np
import torch
from torch import Tensor

from gkd_plugin.functional._tuples import SMALLEST_DISTANCE, Positives, Score, Window

_BEYOND = 4.0  # a key above every distance: the anchor's own class sorts behind all negatives
_BEFORE = -1.0  # a key below every distance: the anchor itself sorts first


def score_by_prefix_sums(
    student: Tensor, teacher: Tensor, positives: Positives, window: Window, temperature: float, *, need_gradient: bool
) -> Score:
    """What a tile of the distances ``[R, N]`` adds to the loss; overwrites ``student``."""
    scale = 1 / temperature
    near, near_teacher = student.gather(1, positives.columns), teacher.gather(1, positives.columns)
    lower, upper = window(near)
    keys, order = _sort_rows(student.scatter_(1, positives.columns, _BEYOND).scatter_(1, positives.own, _BEFORE))
    lo = torch.searchsorted(keys, lower, right=True).clamp_(min=1)
    hi = torch.searchsorted(keys, upper, right=True).minimum(positives.negatives + 1).clamp_(min=1)
    exist, before, last = positives.exist & (hi > lo), lo - 1, hi - 1

    def window_sum(summand: Tensor) -> Tensor:
        sums = summand.cumsum(1)
        return sums.gather(1, last).sub_(sums.gather(1, before))

    distance = keys.double()
    weight, gap, growth = _terms(distance, teacher.gather(1, order).double(), scale)
    weight[:, 0] = 0  # the anchor itself, in no window: in the prefix sums it would only cost digits
    own_weight, own_gap, own_growth = _terms(near.double(), near_teacher.double(), scale)
    z_teacher = window_sum(weight).add_(own_weight)
    u = window_sum(gap.mul_(weight)).add_(own_gap.mul_(own_weight))
    v = window_sum(weight * growth).add_(own_growth * own_weight)
    ratio = v / z_teacher
    divergence = torch.where(exist, u.div_(z_teacher).add_(ratio.log1p()), 0).sum()
    tuples, negatives = exist.sum(), torch.where(exist, hi - lo, 0).sum()
    pull = None
    if need_gradient:
        second = torch.where(exist, scale / z_teacher.add_(v), 0)
        first = ratio.mul_(second)
        lo, hi = (ends.clamp_(max=keys.shape[1] - 1) for ends in (lo, hi))  # changes no tuple that exists
        of_second = _between(second, lo, hi, distance).mul_(growth)
        sorted_pull = _between(first, lo, hi, distance).sub_(of_second).mul_(weight)
        sorted_pull = sorted_pull.div_(torch.threshold_(distance, SMALLEST_DISTANCE, torch.inf)).to(near.dtype)
        own_pull = first.sub_(own_growth.mul_(second)).mul_(own_weight).to(near.dtype)
        own_pull = own_pull.div_(torch.threshold_(near, SMALLEST_DISTANCE, torch.inf))
        pull = student.scatter_(1, order, sorted_pull).scatter_(1, positives.columns, own_pull)
    return divergence, tuples, negatives, pull


def _terms(student: Tensor, teacher: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """e, δ and exp(−δ) − 1; overwrites ``teacher``."""
    weight = (teacher * -scale).exp_()
    gap = teacher.sub_(student).mul_(-scale)
    return weight, gap, torch.expm1(-gap)


def _between(values: Tensor, lo: Tensor, hi: Tensor, like: Tensor) -> Tensor:
    """``[R, N]``: at each position k the sum of the ``values`` ``[R, P]`` with lo ≤ k < hi."""
    steps = torch.zeros_like(like)
    for columns, change in ((lo, values), (hi, -values)):
        if values.device.type == "cpu":
            steps.scatter_add_(1, columns, change)
        else:
            _add_in_order(steps, columns, change)
    return steps.cumsum_(1)


def _add_in_order(target: Tensor, columns: Tensor, values: Tensor) -> None:
    """``scatter_add_`` in a fixed order on a GPU, where that has none; the CPU would take four times as long."""
    rows = torch.arange(len(target), device=target.device).unsqueeze(1)
    target.index_put_((rows, columns), values, accumulate=True)


def _sort_rows(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Each row ascending, and where its elements were, as ``keys.sort(dim=1)``; for keys of −1 or at least 0.

    On the CPU NumPy's vectorised sort takes a tenth of the time of torch's, which would be half of the loss's. It sorts
    integers that hold the bits of a float32 key, whose order is that of the keys, above the number of the column.
    """
    if keys.device.type != "cpu" or keys.dtype != torch.float32:
        return keys.sort(dim=1)
    packed = keys.numpy().view(np.int32).astype(np.int64)
    packed <<= 32
    packed |= np.arange(keys.shape[1])
    packed.sort(axis=1)  # in one thread: two would fight with torch's own, which wait busily
    columns = packed & 0xFFFFFFFF
    packed >>= 32
    return torch.from_numpy(packed.astype(np.int32)).view(torch.float32), torch.from_numpy(columns)
