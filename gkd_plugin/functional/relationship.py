r"""Relationship matching: the loss of stage ``embedding`` (TPAMI 2023, section 4.1).

For every positive pair (a, p) the *student* pushes forward its semi-hard negatives N(a, p); the tuple
(a, p, N) is a distribution in either space, and the student's is matched to the teacher's.

One sort and prefix sums serve all tuples of an anchor (``_prefix_sums``), O(B² log B) for the batch; the form of the
paper, one softmax per tuple, is in ``_dense``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.errors import is_number
from gkd_plugin.functional._common import check_temperature, no_autocast
from gkd_plugin.functional._engine import SMALLEST, relationship_operator
from gkd_plugin.functional.mining import MINING

__all__ = ["RelationshipMatch", "check_matching", "relationship_matching"]

TILED_FROM = 8192
"""Batches (with earlier embeddings) larger than this never hold a B × B matrix, unless ``tiled`` says otherwise."""

LARGEST_MARGIN = 4.0
"""Distances are at most 2, so that a wider window holds nothing more."""

Embeddings = tuple[Tensor, Tensor, Tensor]


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


def relationship_matching(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    margin: float = 0.2,
    mining: str = "semihard",
    max_negatives: int | str | None = None,
    earlier: Embeddings | None = None,
    tiled: bool | None = None,
) -> RelationshipMatch:
    r"""Mean over the tuples of KL(q^T(a, p) ‖ q^S(a, p)), TPAMI section 4.1.

    In either space q(a, p) = softmax([−D_ap, (−D_an) for n ∈ N(a, p)] / τ₁), D the distance of the normalised
    embeddings; N(a, p) are the student's semi-hard negatives, {n : y_n ≠ y_a, 0 < D_an − D_ap ≤ margin}. Pairs with no
    such negative are dropped. The gradient flows through the student's distances only; the selection carries none.

    The mean is over tuples, with no factor τ₁² and no class-dependent reduction; the published weight w = 1000 is
    the caller's. Widths may differ: only distances meet.

    Deviation from the authors' code, which cuts every tuple to the smallest |N| of the batch (1–2 of about a
    hundred): all negatives are used, as in the paper. ``max_negatives`` brings the cut back.

    Distances are float32 for embeddings of float32 or less, float64 for float64, whatever autocast or TF32 say; sums
    are float64. Distances up to 1e-6 have gradient 0. The gradient is computed with the loss, in closed form: it can
    be taken once, not twice. The result is deterministic on the CPU. An embedding with NaN or infinity gives NaN.

    Args:
        student_embedding: ``[B, D_s]``.
        teacher_embedding: ``[B, D_t]``; treated as constant.
        labels: ``[B]``, integers of any value.
        temperature: τ₁ > 0, in units of distance. Below 0.15 the dense engine is used, O(B³/C) time.
        margin: width of the semi-hard window, ≥ 0, in units of distance.
        mining: ``'semihard'``; ``'hard'``: the violators D_an ≤ D_ap; ``'all'``: every negative. See
            :mod:`gkd_plugin.functional.mining`.
        max_negatives: ``None`` uses all of N; an integer k ≥ 1 keeps at most the first k in batch order;
            ``'smallest'`` keeps as many as the smallest non-empty N of the batch, as published (dense engine).
        earlier: embeddings ``[Q, D_s]``, ``[Q, D_t]`` and labels ``[Q]`` of earlier batches (cross-batch memory).
            They are positives and negatives of the batch's anchors, no anchors themselves, and constant. A queue that
            fills gives a new Q each time: compile with ``dynamic=True``, or once it is full.
        tiled: never hold a B × B matrix; takes two more matrix products. ``None``: from B + Q > 8192 on.

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
    check_matching(temperature, margin, mining, max_negatives)
    with no_autocast(student_embedding):
        dtype = torch.promote_types(student_embedding.dtype, torch.float32)
        anchors, earlier_student = student_embedding.to(dtype), None
        teacher, all_labels = teacher_embedding.detach().to(anchors), labels.to(torch.int64).contiguous()
        if earlier is not None:
            _check_earlier(earlier, student_embedding, teacher_embedding)
            earlier_student = earlier[0].detach().to(anchors)
            teacher = torch.cat([teacher, earlier[1].detach().to(teacher)])
            all_labels = torch.cat([all_labels, earlier[2].to(all_labels)])
        loss, tuples, negatives, _ = relationship_operator(
            anchors,
            earlier_student,
            teacher,
            all_labels,
            float(temperature),
            min(float(margin), LARGEST_MARGIN),
            mining,
            SMALLEST if isinstance(max_negatives, str) else max_negatives,
            all_labels.shape[0] > TILED_FROM if tiled is None else tiled,
            torch.is_grad_enabled() and anchors.requires_grad,
        )
    return RelationshipMatch(loss, tuples, (negatives / tuples.clamp(min=1)).float())


def _check_batch(student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    shapes = f"{list(student.shape)}, {list(teacher.shape)} and {list(labels.shape)}"
    if student.ndim != 2 or teacher.ndim != 2 or labels.ndim != 1:
        raise ValueError(f"relationship matching takes embeddings [B, D_s] and [B, D_t] and labels [B], got {shapes}")
    if not student.shape[0] == teacher.shape[0] == labels.shape[0]:
        raise ValueError(f"relationship matching takes one batch, got embeddings and labels {shapes}")
    _check_labels(labels)


def _check_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"relationship matching takes integer labels, got {labels.dtype}")


def _check_earlier(earlier: Embeddings, student: Tensor, teacher: Tensor) -> None:
    if not isinstance(earlier, tuple) or len(earlier) != 3:
        raise ValueError(
            f"earlier must be three tensors, as EmbeddingQueue.content() gives them, got {type(earlier).__name__}"
        )
    _check_labels(earlier[2])
    count = len(earlier[2])
    shapes = [list(tensor.shape) for tensor in earlier]
    if shapes != [[count, student.shape[1]], [count, teacher.shape[1]], [count]]:
        raise ValueError(
            f"earlier embeddings must be [Q, {student.shape[1]}], [Q, {teacher.shape[1]}] and [Q], got "
            + ", ".join(map(str, shapes))
        )


def check_matching(temperature: float, margin: float, mining: str, max_negatives: int | str | None) -> None:
    """Checks the settings of :func:`relationship_matching`, each message beginning with the keyword's name.

    Raises:
        ValueError: one is of another type or out of range.
    """
    check_temperature("temperature", temperature)
    if not is_number(margin) or not margin >= 0:
        raise ValueError(f"margin: must be a number, at least 0, got {margin!r}")
    if not isinstance(mining, str) or mining not in MINING:
        raise ValueError(f"mining: must be one of {', '.join(MINING)}, got {mining!r}")
    is_count = isinstance(max_negatives, int) and not isinstance(max_negatives, bool) and max_negatives >= 1
    if max_negatives is not None and max_negatives != "smallest" and not is_count:
        raise ValueError(f"max_negatives: must be None, 'smallest' or an integer ≥ 1, got {max_negatives!r}")
