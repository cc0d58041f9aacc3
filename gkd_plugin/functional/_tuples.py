r"""The tuples (a, p, N) of a tile of anchors, and their loss as the paper has it: one softmax per tuple, in float64.

It serves where prefix sums lose digits (τ < 0.15) or do not apply (truncated tuples). With P positives and N columns an
anchor takes O(P·N) time, O(N) memory.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.functional._common import exact_dtype, log_softmax_without

SMALLEST_DISTANCE = 1e-6  # up to it the gradient is 0: the direction between equal points is not defined

Window = Callable[[Tensor], tuple[Tensor, Tensor]]
"""D_ap → (lower, upper), of the same shape, such that N(a, p) are the negatives with lower < D_an ≤ upper."""

Score = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of a tile ``[R, N]``: Σ KL(q^T ‖ q^S) in float64, the number of tuples and of their negatives in all (scalars), and
the pull ``[R, N]``, ∂ΣKL/∂D^S_an ÷ D^S_an, where a gradient is needed."""


def largest_within_margin(distance: Tensor, margin: float) -> Tensor:
    r"""θ(d): the largest representable x for which the difference x − d, rounded, is at most ``margin``; for d ≥ 0.

    ``d + margin`` may be off by one unit in the last place; ``x <= θ(d)`` selects what ``x - d <= margin`` selects.
    """
    bound, above = (torch.full_like(distance, value) for value in (margin, torch.inf))
    first = torch.nextafter(distance + bound, above)
    second = torch.nextafter(first, -above)
    chosen = torch.where(second - distance <= bound, second, torch.nextafter(second, -above))
    return torch.where(first - distance <= bound, first, chosen)


MINING: Mapping[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    "semihard": lambda near, margin: (near, largest_within_margin(near, margin)),
    "hard": lambda near, _: (torch.full_like(near, -torch.inf), near),
    "all": lambda near, _: (torch.full_like(near, -torch.inf), torch.full_like(near, torch.inf)),
}
"""A strategy's window from D_ap and the margin; being an interval, it lets one sort per anchor serve all its positives.
``'semihard'``, the paper's: 0 < D_an − D_ap ≤ margin, farther than the positive but not by more than the margin.
``'hard'``: D_an ≤ D_ap, the negatives that violate the order. ``'all'``: every sample of another class; nothing is
mined and the margin is not used (other libraries call 'all' what is semi-hard or hard here)."""


class Positives(NamedTuple):
    """The positives of R anchors, at most P each, as columns of the distances."""

    own: Tensor  # [R, 1], the column of the anchor itself
    columns: Tensor  # [R, P], of the anchor's class; padded with the anchor's own
    exist: Tensor  # [R, P], False for the padding and the anchor itself
    negatives: Tensor  # [R, 1], the number of columns of other classes


class ClassIndex:
    """Finds positives by one sort of the labels ``[N]`` of the columns; the batch is the first columns."""

    def __init__(self, labels: Tensor, wait: bool) -> None:
        ordered, self._order = labels.sort(stable=True)
        self._start = torch.searchsorted(ordered, labels)
        self._size = torch.searchsorted(ordered, labels, right=True) - self._start
        # P: the size of the largest class where the host may wait for the device to learn it, otherwise N
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


def score_densely(
    student: Tensor,
    teacher: Tensor,
    positives: Positives,
    window: Window,
    temperature: float,
    *,
    need_gradient: bool,
    max_negatives: int | None = None,
) -> Score:
    """As ``score_by_prefix_sums``, for at most so many negatives per tuple, the first in batch order."""
    exact = exact_dtype(student)
    student_logits, teacher_logits = student.to(exact) / -temperature, teacher.to(exact) / -temperature
    divergence = student_logits.new_zeros(())
    tuples = negatives = torch.zeros((), dtype=torch.int64, device=student.device)
    gradient = torch.zeros_like(student_logits)
    for rank in range(positives.columns.shape[1]):
        members = _negatives(student, positives, rank, window)
        if max_negatives is not None:
            members &= members.cumsum(dim=1) <= max_negatives
        exist = members.any(dim=1, keepdim=True)
        tuples, negatives = tuples + exist.sum(), negatives + members.sum()
        absent = ~members.scatter(1, positives.columns[:, rank, None], exist)
        student_log, teacher_log = (log_softmax_without(logits, absent) for logits in (student_logits, teacher_logits))
        q_teacher = teacher_log.exp().masked_fill_(absent, 0)
        divergence = divergence + (q_teacher * (teacher_log - student_log)).sum()
        if need_gradient:
            gradient += q_teacher - student_log.exp().masked_fill_(absent, 0)
    if not need_gradient:
        return divergence, tuples, negatives, None
    pull = torch.where(student > SMALLEST_DISTANCE, gradient.div_(temperature) / student, 0).to(student.dtype)
    return divergence, tuples, negatives, pull


def count_smallest(student: Tensor, positives: Positives, window: Window) -> Tensor:
    """Scalar, the smallest number of negatives of a tuple in the tile; N + 1 where there are no tuples."""
    ranks = range(positives.columns.shape[1])
    counts = torch.stack([_negatives(student, positives, rank, window).sum(dim=1) for rank in ranks])
    return counts.masked_fill_(counts == 0, student.shape[1] + 1).min()


def _negatives(student: Tensor, positives: Positives, rank: int, window: Window) -> Tensor:
    """``[R, N]`` bool, N(a, p) of the positive number ``rank`` of each anchor."""
    lower, upper = window(student.gather(1, positives.columns[:, rank, None]))
    members = (student > lower) & (student <= upper) & positives.exist[:, rank, None]
    return members.scatter_(1, positives.columns, False)
