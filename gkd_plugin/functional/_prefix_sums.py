r"""Relationship matching of a tile of anchors by one sort and prefix sums: O(N log N) per anchor.

Sort the negatives of an anchor by D^S. The window of a positive is then a run of positions [lo, hi), and a sum over the
window is a difference of two prefix sums. With e = exp(−D^T/τ), δ = (D^S − D^T)/τ, summed over a tuple's members:

    Z_T = Σ e,   U = Σ e·δ,   V = Σ e·(exp(−δ) − 1),   Z_S = Z_T + V,   KL = U/Z_T + ln(1 + V/Z_T).

U and V rather than Z_S: in KL the first-order parts of U/Z_T and ln(1 + V/Z_T) cancel, whatever rounding e has. All but
the distances is float64: what is left after that cancellation is of second order in δ. The gradient for a member is
(e/Z_T − exp(−D^S/τ)/Z_S)/τ; summed over the windows that a negative lies in, it is

    e·(A − (exp(−δ) − 1)·A′)/τ,   A = Σ V/(Z_T·Z_S),   A′ = Σ 1/Z_S,

and A, A′ are prefix sums of arrays with +value at lo and −value at hi.

The error is about 2⁻⁵³·N·exp(2/τ), from the prefix sums; below τ = 0.15 use the dense engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_plugin.functional._precision import exact_dtype
from gkd_plugin.functional._sort import sort_rows
from gkd_plugin.functional._tile import SMALLEST_DISTANCE, Selection, Tile, TileScore

__all__ = ["score_by_prefix_sums"]

_BEYOND = 4.0  # a key above every distance: the anchor's own class sorts behind all negatives
_BEFORE = -1.0  # a key below every distance: the anchor itself sorts first


def score_by_prefix_sums(tile: Tile, selection: Selection, need_gradient: bool) -> TileScore:
    """See the module; overwrites ``tile.student``, where ``pull`` is returned."""
    scale = 1 / selection.temperature
    positives = tile.positives()
    near = tile.student.gather(1, positives.columns)
    near_teacher = tile.teacher.gather(1, positives.columns)
    lower, upper = selection.window.ends(near, selection.margin)

    keys = tile.student.scatter_(1, positives.columns, _BEYOND).scatter_(1, positives.own, _BEFORE)
    keys, order = sort_rows(keys)
    gap = tile.teacher.gather(1, order).double()
    weight = (gap * -scale).exp_()
    weight[:, 0] = 0
    gap = gap.sub_(keys).mul_(-scale)
    growth = torch.expm1(-gap)

    lo = torch.searchsorted(keys, lower, right=True).clamp_(min=1)
    hi = torch.searchsorted(keys, upper, right=True)
    hi = torch.minimum(hi, positives.negatives + 1)
    exist = positives.exist & (hi > lo)

    def window_sum(summand: Tensor) -> Tensor:
        sums = summand.cumsum(1)
        return sums.gather(1, (hi - 1).clamp_(min=0)).sub_(sums.gather(1, lo - 1))

    exact = exact_dtype(keys)
    own_weight = (near_teacher.to(exact) * -scale).exp_()
    own_gap = (near.to(exact) - near_teacher.to(exact)).mul_(scale)
    own_growth = torch.expm1(-own_gap)
    z_teacher = own_weight + window_sum(weight)
    u = own_weight * own_gap + window_sum(weight * gap)
    v = own_weight * own_growth + window_sum(weight * growth)
    divergence = torch.where(exist, u / z_teacher + torch.log1p(v / z_teacher), 0)
    count = torch.where(exist, hi - lo, 0)

    pull = None
    if need_gradient:
        z_student = z_teacher + v
        second = torch.where(exist, scale / z_student, 0)
        first = second * (v / z_teacher)
        pull_sorted = _between(first, lo, hi, keys).sub_(growth.mul_(_between(second, lo, hi, keys))).mul_(weight)
        pull_sorted = pull_sorted.div_(keys.clamp_(min=SMALLEST_DISTANCE)).to(keys.dtype)
        own_pull = (own_weight * (first - own_growth * second)).to(keys.dtype)
        own_pull = torch.where(near > SMALLEST_DISTANCE, own_pull / near, 0)
        pull = tile.student.scatter_(1, order, pull_sorted).scatter_(1, positives.columns, own_pull)
    return TileScore(divergence.sum(), exist.sum(), count.sum(), pull)


def _between(values: Tensor, lo: Tensor, hi: Tensor, like: Tensor) -> Tensor:
    """``[R, N]``: at each position k the sum of the ``values`` ``[R, P]`` with lo ≤ k < hi, float64."""
    steps = values.new_zeros(like.shape)
    last = like.shape[1] - 1
    add = _add_in_order if values.device.type == "cpu" else _add_sorted
    add(steps, lo.clamp(max=last), values)
    add(steps, hi.clamp(max=last), -values)
    return steps.cumsum_(1)


def _add_in_order(target: Tensor, columns: Tensor, values: Tensor) -> None:
    """Adds values to columns of each row: on the CPU one after the other."""
    target.scatter_add_(1, columns, values)


def _add_sorted(target: Tensor, columns: Tensor, values: Tensor) -> None:
    """The same by sorting the indices: deterministic on a GPU, where ``scatter_add_`` is not."""
    rows = torch.arange(target.shape[0], device=target.device).unsqueeze(1).expand_as(columns)
    target.index_put_((rows, columns), values, accumulate=True)
