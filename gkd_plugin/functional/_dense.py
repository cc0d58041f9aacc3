r"""Relationship matching of a tile of anchors, written as the paper has it: one softmax per tuple, in float64.

It serves where prefix sums lose digits (τ < 0.15) or do not apply (truncated tuples). With P positives and N columns it
takes O(P·N) time for an anchor, O(N) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_plugin.functional._common import exact_dtype
from gkd_plugin.functional._tuples import SMALLEST_DISTANCE, Positives, Score, Selection

__all__ = ["count_smallest", "score_densely"]


def score_densely(
    student: Tensor, teacher: Tensor, positives: Positives, selection: Selection, need_gradient: bool
) -> Score:
    """As ``score_by_prefix_sums``, for any selection; overwrites nothing."""
    exact, temperature = exact_dtype(student), selection.temperature
    student_logits, teacher_logits = student.to(exact) / -temperature, teacher.to(exact) / -temperature
    divergence = student_logits.new_zeros(())
    tuples = negatives = torch.zeros((), dtype=torch.int64, device=student.device)
    gradient = torch.zeros_like(student_logits)
    for rank in range(positives.columns.shape[1]):
        members = _negatives(student, positives, rank, selection)
        exist = members.any(dim=1, keepdim=True)
        tuples, negatives = tuples + exist.sum(), negatives + members.sum()
        members = members.scatter(1, positives.columns[:, rank, None], exist)
        student_log, teacher_log = (_log_softmax(logits, members) for logits in (student_logits, teacher_logits))
        q_teacher = teacher_log.exp().masked_fill_(~members, 0)
        divergence = divergence + (q_teacher * (teacher_log - student_log)).sum()
        if need_gradient:
            gradient += q_teacher - student_log.exp().masked_fill_(~members, 0)
    if not need_gradient:
        return Score(divergence, tuples, negatives, None)
    pull = torch.where(student > SMALLEST_DISTANCE, gradient.div_(temperature) / student, 0).to(student.dtype)
    return Score(divergence, tuples, negatives, pull)


def count_smallest(student: Tensor, positives: Positives, selection: Selection) -> Tensor:
    """Scalar, the smallest number of negatives of a tuple in the tile; N + 1 where there are no tuples."""
    none = student.shape[1] + 1
    smallest = torch.full((), none, device=student.device)
    for rank in range(positives.columns.shape[1]):
        count = _negatives(student, positives, rank, selection).sum(dim=1)
        smallest = torch.minimum(smallest, torch.where(count > 0, count, none).min())
    return smallest


def _negatives(student: Tensor, positives: Positives, rank: int, selection: Selection) -> Tensor:
    """``[R, N]`` bool, N(a, p) of the positive number ``rank`` of each anchor."""
    near = student.gather(1, positives.columns[:, rank, None])
    lower, upper = selection.window.ends(near, selection.margin)
    members = (student > lower) & (student <= upper) & positives.exist[:, rank, None]
    members.scatter_(1, positives.columns, False)
    if selection.max_negatives is None:
        return members
    return members & (members.cumsum(dim=1) <= selection.max_negatives)


def _log_softmax(logits: Tensor, members: Tensor) -> Tensor:
    """Log-softmax of each row over its members; 0 elsewhere, so that nothing is ever NaN."""
    return logits.masked_fill(~members, -torch.inf).log_softmax(dim=1).masked_fill_(~members, 0)
