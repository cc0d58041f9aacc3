"""The loss of relationship matching and its gradient, tile by tile of anchors; the host waits for no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.functional._dense import count_smallest, score_densely
from gkd_plugin.functional._distances import centred, full_precision_products
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._precision import exact_dtype
from gkd_plugin.functional._rows import Rows, SymmetricRows, TiledRows
from gkd_plugin.functional._tile import Selection, Tile, TileScore

__all__ = ["Match", "match_relationships"]

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
    tiled: bool,
    need_gradient: bool,
) -> Match:
    """Matches the first ``anchors`` rows with all rows; the rows after them carry no gradient.

    Args:
        student: ``[N, D_s]`` normalised rows.
        teacher: ``[N, D_t]`` normalised rows, of the same type.
        labels: ``[N]``.
        anchors: B ≤ N.
        selection: how tuples are formed.
        tiled: never hold a B × N matrix, at the price of two more matrix products.
        need_gradient: otherwise only the loss.
    """
    with full_precision_products():
        student, teacher = centred(student), centred(teacher)
        rows = _rows(student, teacher, labels, anchors, tiled)
        if selection.max_negatives == "smallest":
            everything = selection._replace(max_negatives=None)
            smallest = [count_smallest(rows.tile(*span), everything) for span in rows.spans()]
            selection = selection._replace(max_negatives=torch.stack(smallest).min())
            rows = _rows(student, teacher, labels, anchors, tiled)
        return _sum_tiles(rows, selection, _scorer(selection, student), need_gradient)


def _rows(student: Tensor, teacher: Tensor, labels: Tensor, anchors: int, tiled: bool) -> Rows:
    if tiled or anchors < student.shape[0]:
        return TiledRows(student, teacher, labels, anchors)
    return SymmetricRows(student, teacher, labels)


def _scorer(selection: Selection, student: Tensor) -> Callable[[Tile, Selection, bool], TileScore]:
    """Decided on the host, by the settings alone."""
    exact = exact_dtype(student) == torch.float64
    if exact and selection.max_negatives is None and selection.temperature >= LOWEST_PREFIX_TEMPERATURE:
        return score_by_prefix_sums
    return score_densely


def _sum_tiles(
    rows: Rows, selection: Selection, scorer: Callable[[Tile, Selection, bool], TileScore], need_gradient: bool
) -> Match:
    device = rows.student.device
    divergence = torch.zeros((), dtype=exact_dtype(rows.student), device=device)
    tuples = torch.zeros((), dtype=torch.int64, device=device)
    negatives = torch.zeros((), dtype=torch.int64, device=device)
    for first, last in rows.spans():
        score = scorer(rows.tile(first, last), selection, need_gradient)
        divergence += score.divergence
        tuples += score.tuples
        negatives += score.negatives
        if score.pull is not None:
            rows.collect(first, last, score.pull)
    return Match(divergence, tuples, negatives, rows.gradient() if need_gradient else rows.student.new_empty(0))
