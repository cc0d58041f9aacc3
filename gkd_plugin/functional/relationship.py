r"""Relationship matching: the loss of stage ``embedding`` (TPAMI 2023, section 4.1).

For every positive pair (a, p) the *student* pushes forward its semi-hard negatives N(a, p); the tuple
(a, p, N) is a distribution in either space, and the student's is matched to the teacher's.

This is the dense, readable form: memory is O(P·B) for P positive pairs, P ≈ B²/C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._precision import exact_dtype, no_autocast

__all__ = ["RelationshipMatch", "pairwise_distances", "relationship_matching", "semihard_negatives"]


class RelationshipMatch(NamedTuple):
    """The loss of one batch and what it was computed from.

    Attributes:
        loss: scalar, mean over the tuples of KL(teacher ‖ student), in nats; 0 (with a graph) where there are none.
        tuples: scalar int64, the number of tuples: positive pairs that have at least one semi-hard negative.
        negatives: scalar float, mean number of negatives per tuple; 0 where there are no tuples.
    """

    loss: Tensor
    tuples: Tensor
    negatives: Tensor


def pairwise_distances(embedding: Tensor) -> Tensor:
    r"""Euclidean distances between the L2-normalised rows, D_ij = ‖x_i/‖x_i‖ − x_j/‖x_j‖‖₂ ∈ [0, 2].

    Computed from differences, not from 2 − 2·XXᵀ: small distances keep their digits, and a distance of 0
    (equal rows) has gradient 0 instead of NaN. A row of zeros stays a row of zeros, at distance 1 of the others.

    Args:
        embedding: ``[B, D]``, any floating type.

    Returns:
        ``[B, B]`` in float64 (float32 on MPS).
    """
    with no_autocast(embedding):
        rows = functional.normalize(embedding.to(exact_dtype(embedding)), dim=1)
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def semihard_negatives(distances: Tensor, labels: Tensor, anchors: Tensor, positives: Tensor, margin: float) -> Tensor:
    r"""The semi-hard negatives of each positive pair, N(a, p) = {n : y_n ≠ y_a, 0 < D_an − D_ap ≤ margin}.

    Args:
        distances: ``[B, B]`` distances between the *student's* embeddings; no gradient is taken.
        labels: ``[B]``, integers of any value.
        anchors: ``[P]`` index of the anchor of each pair.
        positives: ``[P]`` index of the positive of each pair.
        margin: width of the window in units of distance.

    Returns:
        ``[P, B]`` bool, row (a, p) marks N(a, p).
    """
    distances = distances.detach()
    gap = distances[anchors] - distances[anchors, positives].unsqueeze(1)
    is_negative = labels.unsqueeze(0) != labels[anchors].unsqueeze(1)
    return is_negative & (gap > 0) & (gap <= margin)


def relationship_matching(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    margin: float = 0.2,
    max_negatives: int | str | None = None,
) -> RelationshipMatch:
    r"""Mean over the tuples of KL(q^T(a, p) ‖ q^S(a, p)), TPAMI section 4.1.

    In either space q(a, p) = softmax([−D_ap, (−D_an) for n ∈ N(a, p)] / τ₁), D the distance of the normalised
    embeddings; N(a, p) are the student's semi-hard negatives (:func:`semihard_negatives`). Pairs with no such
    negative are dropped. The gradient flows through the student's distances only; the selection carries none.

    The mean is over tuples, with no factor τ₁² and no class-dependent reduction; the published weight w = 1000 is
    the caller's. Widths may differ: only distances meet.

    Deviation from the authors' code, which cuts every tuple to the smallest |N| of the batch (1–2 of about a
    hundred): all negatives are used, as in the paper. ``max_negatives`` brings the cut back.

    Args:
        student_embedding: ``[B, D_s]``.
        teacher_embedding: ``[B, D_t]``; treated as constant.
        labels: ``[B]``, integers of any value.
        temperature: τ₁ > 0, in units of distance.
        margin: width of the semi-hard window, ≥ 0, in units of distance.
        max_negatives: ``None`` uses all of N; an integer k ≥ 1 keeps at most the first k in batch order;
            ``'smallest'`` keeps as many as the smallest non-empty N of the batch, as published.

    Returns:
        The loss (a float32 scalar, float64 for float64 input), the number of tuples, the mean number of negatives.

    Raises:
        ValueError: shapes do not fit, labels are not integers, or a hyper-parameter is out of range.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> relationship_matching(x, x, y).loss.item()  # all distances equal: no semi-hard negative
        0.0
    """
    _check_batch(student_embedding, teacher_embedding, labels)
    _check_hyperparameters(temperature, margin, max_negatives)
    with no_autocast(student_embedding):
        student = pairwise_distances(student_embedding)
        teacher = pairwise_distances(teacher_embedding.detach()).to(student)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        anchors, positives = torch.where(same.fill_diagonal_(False))
        negatives = semihard_negatives(student, labels, anchors, positives, margin)
        valid = negatives.any(dim=1)
        anchors, positives, negatives = anchors[valid], positives[valid], negatives[valid]
        negatives = _truncate(negatives, max_negatives)

        members = negatives.scatter(1, positives.unsqueeze(1), torch.ones_like(negatives[:, :1]))
        student_log = _masked_log_softmax(-student[anchors] / temperature, members)
        teacher_log = _masked_log_softmax(-teacher[anchors] / temperature, members)
        terms = (teacher_log.exp() * (teacher_log - student_log)).masked_fill(~members, 0)
        tuples = valid.sum()
        loss = terms.sum() / tuples.clamp(min=1)
        return RelationshipMatch(
            loss=loss.to(torch.promote_types(student_embedding.dtype, torch.float32)),
            tuples=tuples,
            negatives=negatives.sum() / tuples.clamp(min=1),
        )


def _masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the entries of each row that the mask keeps; 0 elsewhere, so that nothing is ever NaN."""
    kept = logits.masked_fill(~mask, -torch.inf).log_softmax(dim=1)
    return kept.masked_fill(~mask, 0)


def _truncate(negatives: Tensor, max_negatives: int | str | None) -> Tensor:
    """Keeps the first negatives of each row in batch order."""
    if max_negatives is None or negatives.shape[0] == 0:
        return negatives
    keep = negatives.sum(dim=1).min() if isinstance(max_negatives, str) else max_negatives
    return negatives & (negatives.cumsum(dim=1) <= keep)


def _check_batch(student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            "relationship matching takes embeddings [B, D_s] and [B, D_t] and labels [B], got "
            f"{list(student.shape)}, {list(teacher.shape)} and {list(labels.shape)}"
        )
    if not student.shape[0] == teacher.shape[0] == labels.shape[0]:
        raise ValueError(
            f"relationship matching takes one batch, got {student.shape[0]} student embeddings, "
            f"{teacher.shape[0]} teacher embeddings and {labels.shape[0]} labels"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"relationship matching takes integer labels, got {labels.dtype}")


def _check_hyperparameters(temperature: float, margin: float, max_negatives: int | str | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    is_count = isinstance(max_negatives, int) and not isinstance(max_negatives, bool) and max_negatives >= 1
    if max_negatives is not None and max_negatives != "smallest" and not is_count:
        raise ValueError(f"max_negatives must be None, 'smallest' or an integer ≥ 1, got {max_negatives!r}")
