r"""Relationship matching of a tile of anchors, written as the paper has it: one softmax per tuple, in float64.

The readable reference, and the engine where prefix sums would lose digits (τ < 0.15) or do not apply (truncated
tuples). O(P·N) time per anchor with P positives, O(R·N) memory for R anchors. On a GPU the host waits once for P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_plugin.functional._positives import Positives
from gkd_plugin.functional._precision import exact_dtype
from gkd_plugin.functional._tile import SMALLEST_DISTANCE, Selection, Tile, TileScore

__all__ = ["count_smallest", "score_densely"]


def score_densely(tile: Tile, selection: Selection, need_gradient: bool) -> TileScore:
    """Sums the KL of the tuples, positive by positive; overwrites nothing."""
    exact = exact_dtype(tile.student)
    student = tile.student.to(exact) / -selection.temperature
    teacher = tile.teacher.to(exact) / -selection.temperature
    positives = tile.positives()
    own_class = _own_class(tile, positives)
    divergence = student.new_zeros(())
    tuples = negatives = torch.zeros((), dtype=torch.int64, device=student.device)
    gradient = torch.zeros_like(student) if need_gradient else None
    for rank in range(tile.classes.largest()):
        column = positives.columns[:, rank, None]
        members = _negatives(tile.student, own_class, positives, rank, selection)
        exist = members.any(dim=1, keepdim=True)
        tuples, negatives = tuples + exist.sum(), negatives + members.sum()
        members = members.scatter(1, column, exist)
        student_log = _masked_log_softmax(student, members)
        teacher_log = _masked_log_softmax(teacher, members)
        probability = teacher_log.exp().masked_fill_(~members, 0)
        divergence = divergence + (probability * (teacher_log - student_log)).sum()
        if gradient is not None:
            gradient += probability.sub_(student_log.exp().masked_fill_(~members, 0))
    pull = None if gradient is None else _pull(gradient.div_(selection.temperature), tile.student)
    return TileScore(divergence, tuples, negatives, pull)


def count_smallest(tile: Tile, selection: Selection) -> Tensor:
    """Scalar int64: the smallest number of negatives of a tuple in the tile, N + 1 where there are no tuples."""
    positives = tile.positives()
    own_class = _own_class(tile, positives)
    none = tile.student.shape[1] + 1
    smallest = torch.full((), none, device=tile.student.device)
    for rank in range(tile.classes.largest()):
        count = _negatives(tile.student, own_class, positives, rank, selection).sum(dim=1)
        smallest = torch.minimum(smallest, torch.where(count > 0, count, none).min())
    return smallest


def _own_class(tile: Tile, positives: Positives) -> Tensor:
    """``[R, N]`` bool, the columns of the anchor's class."""
    return torch.zeros_like(tile.student, dtype=torch.bool).scatter_(1, positives.columns, True)


def _negatives(distances: Tensor, own_class: Tensor, positives: Positives, rank: int, selection: Selection) -> Tensor:
    """``[R, N]`` bool, N(a, p) of the positive number ``rank`` of each anchor."""
    near = distances.gather(1, positives.columns[:, rank, None])
    lower, upper = selection.window.ends(near, selection.margin)
    members = (distances > lower) & (distances <= upper) & ~own_class & positives.exist[:, rank, None]
    if selection.max_negatives is None:
        return members
    return members & (members.cumsum(dim=1) <= selection.max_negatives)


def _masked_log_softmax(logits: Tensor, members: Tensor) -> Tensor:
    """Log-softmax of each row over its members; 0 elsewhere, so that nothing is ever NaN."""
    return logits.masked_fill(~members, -torch.inf).log_softmax(dim=1).masked_fill_(~members, 0)


def _pull(gradient: Tensor, distances: Tensor) -> Tensor:
    return torch.where(distances > SMALLEST_DISTANCE, gradient / distances, 0).to(distances.dtype)
