"""The loss of relationship matching and its gradient, tile by tile of anchors.

The host waits for no device, unless the dense engine is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.functional._accelerated import compiled_for, compiled_parts
from gkd_plugin.functional._dense import count_smallest, score_densely
from gkd_plugin.functional._distances import before_normalisation, centred, full_precision_products, normalised
from gkd_plugin.functional._positives import ClassIndex
from gkd_plugin.functional._precision import exact_dtype
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._rows import Rows, SymmetricRows, TiledRows
from gkd_plugin.functional._tile import Selection, Tile, TileScore

__all__ = ["Match", "match_relationships"]

Scorer = Callable[[Tile, Selection, bool], TileScore]

LOWEST_PREFIX_TEMPERATURE = 0.15
"""Below it the prefix sums lose digits, and the dense engine takes over."""


class Match(NamedTuple):
    """The result of a batch.

    Attributes:
        divergence: scalar float64, the sum of KL(q^T ‖ q^S) over the tuples.
        tuples: scalar int64.
        negatives: scalar int64, over all tuples.
        gradient: ``[B, D_s]``, of ``divergence`` with respect to the anchors; empty where none was asked for.
    """

    divergence: Tensor
    tuples: Tensor
    negatives: Tensor
    gradient: Tensor


def match_relationships(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    anchors: int,
    selection: Selection,
    *,
    cut_to_smallest: bool,
    tiled: bool,
    need_gradient: bool,
) -> Match:
    """Matches the first ``anchors`` rows with all rows; the rows after them carry no gradient.

    Args:
        student: ``[N, D_s]`` embeddings, not normalised.
        teacher: ``[N, D_t]`` embeddings, not normalised, of the same type.
        labels: ``[N]``.
        anchors: B ≤ N.
        selection: how tuples are formed.
        cut_to_smallest: keep as many negatives of each tuple as the smallest tuple has.
        tiled: never hold a B × N matrix, at the price of two more matrix products.
        need_gradient: otherwise only the loss.
    """
    with full_precision_products():
        directions, lengths = normalised(student)
        teacher_directions, teacher_lengths = normalised(teacher)
        student, teacher, classes = centred(directions), centred(teacher_directions), ClassIndex(labels)
        if cut_to_smallest:
            rows = _rows(student, teacher, classes, anchors, tiled)
            smallest = [count_smallest(rows.tile(*span), selection) for span in rows.spans()]
            selection = selection._replace(max_negatives=torch.stack(smallest).min() if smallest else None)
        rows = _rows(student, teacher, classes, anchors, tiled)
        divergence, tuples, negatives = _sum_tiles(rows, selection, _scorer(selection, student), need_gradient)
        divergence = divergence + 0 * (lengths.sum() + teacher_lengths.sum())  # NaN and infinity are not dropped
        gradient = student.new_empty(0)
        if need_gradient:
            gradient = before_normalisation(rows.gradient(), directions[:anchors], lengths[:anchors])
        return Match(divergence, tuples, negatives, gradient)


def _rows(student: Tensor, teacher: Tensor, classes: ClassIndex, anchors: int, tiled: bool) -> Rows:
    if tiled or anchors < student.shape[0]:
        return TiledRows(student, teacher, classes, anchors)
    return SymmetricRows(student, teacher, classes)


def _scorer(selection: Selection, student: Tensor) -> Scorer:
    """Decided on the host, by the settings alone."""
    exact = exact_dtype(student) == torch.float64
    if not exact or selection.max_negatives is not None or selection.temperature < LOWEST_PREFIX_TEMPERATURE:
        return score_densely
    compiled: Scorer | None = compiled_parts().score_compiled if compiled_for(student) else None
    return compiled or score_by_prefix_sums


def _sum_tiles(rows: Rows, selection: Selection, scorer: Scorer, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(divergence, tuples, negatives); hands the pulls to ``rows``."""
    scores = []
    for first, last in rows.spans():
        score = scorer(rows.tile(first, last), selection, need_gradient)
        if score.pull is not None:
            rows.collect(first, last, score.pull)
        scores.append(score[:3])
    if len(scores) == 1:
        return scores[0]
    if not scores:
        nothing = torch.zeros((), dtype=torch.int64, device=rows.student.device)
        return nothing.to(exact_dtype(rows.student)), nothing, nothing
    divergence, tuples, negatives = (torch.stack(parts).sum() for parts in zip(*scores, strict=True))
    return divergence, tuples, negatives
