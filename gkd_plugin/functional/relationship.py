r"""Relationship matching: the loss of stage ``embedding`` (TPAMI 2023, section 4.1), and embeddings of earlier batches.

Prefix sums serve all tuples of an anchor (``_prefix_sums``), O(B² log B) a batch; ``_tuples`` has the paper's form.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_plugin.errors import is_number, one_of, whole_number
from gkd_plugin.functional._common import check_temperature, result_dtype
from gkd_plugin.functional._engine import SMALLEST, relationship_operator
from gkd_plugin.functional._tuples import MINING

__all__ = ["MINING", "EmbeddingQueue", "RelationshipMatch", "check_matching", "relationship_matching"]

TILED_FROM = 8192  # batches (with earlier embeddings) larger than this never hold a B × B matrix, if not told to
LARGEST_MARGIN = 4.0  # distances are at most 2, so that a wider window holds nothing more

Embeddings = tuple[Tensor, Tensor, Tensor]


class RelationshipMatch(NamedTuple):
    """The loss of one batch and what it was computed from, scalars."""

    loss: Tensor  # mean over the tuples of KL(teacher ‖ student), in nats; 0 (with a graph) where there are none
    tuples: Tensor  # int64, the number of tuples: positive pairs that have at least one negative
    negatives: Tensor  # float, mean number of negatives per tuple; 0 where there are no tuples


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
    anchors: tuple[int, int] | None = None,
    tiled: bool | None = None,
) -> RelationshipMatch:
    r"""Mean over the tuples of KL(q^T(a, p) ‖ q^S(a, p)), TPAMI section 4.1.

    In either space q(a, p) = softmax([−D_ap, (−D_an) for n ∈ N(a, p)] / τ₁), D the distance of the normalised
    embeddings; N(a, p) are the student's semi-hard negatives, {n : y_n ≠ y_a, 0 < D_an − D_ap ≤ margin}. Pairs with no
    such negative are dropped. The gradient flows through the student's distances only; the selection carries none.
    There is no factor τ₁² and no weight (published: w = 1000). Widths may differ: only distances meet.

    Deviation from the authors' code, which cuts every tuple to the smallest |N| of the batch (1–2 of about a
    hundred): all negatives are used, as in the paper. ``max_negatives`` brings the cut back.

    Distances and loss are float64 for embeddings of float64, otherwise float32, whatever autocast or TF32 say; sums are
    float64. Distances up to 1e-6 have gradient 0. The gradient comes in closed form and can be taken once, not twice.
    The result is deterministic on the CPU. An embedding with NaN or infinity gives NaN.

    Args:
        student_embedding: ``[B, D_s]``.
        teacher_embedding: ``[B, D_t]``; treated as constant.
        labels: ``[B]``, integers of any value.
        temperature: τ₁ > 0, in units of distance. Below 0.15 the dense form is used, O(B³/C) time.
        margin: width of the semi-hard window, ≥ 0, in units of distance.
        mining: a key of ``MINING``. ``'semihard'``; ``'hard'``: the violators D_an ≤ D_ap; ``'all'``: every negative.
        max_negatives: ``None`` uses all of N; an integer k ≥ 1 keeps at most the first k in batch order;
            ``'smallest'`` keeps as many as the smallest non-empty N of the batch, as published (dense form).
        earlier: embeddings ``[Q, D_s]``, ``[Q, D_t]`` and labels ``[Q]`` of earlier batches (cross-batch memory).
            They are positives and negatives of the batch's anchors, no anchors themselves, and constant. While a queue
            fills, Q changes: compile with ``dynamic=True``, or once it is full.
        anchors: (first, end): only these rows are anchors, and the mean is over their tuples; the gradient flows to all
            rows. So the processes that share a batch each score a part of it. ``None``: every row.
        tiled: never hold a B × B matrix; takes two more matrix products. ``None``: from B + Q > 8192 on.

    Raises:
        ValueError: shapes do not fit, labels are not integers, or a hyper-parameter is out of range.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> relationship_matching(x, x, y).loss.item()  # all distances equal: no semi-hard negative
        0.0
    """
    _check_batch((student_embedding, teacher_embedding, labels), "relationship matching")
    check_matching(temperature, margin, mining, max_negatives)
    with torch.autocast(student_embedding.device.type, enabled=False):
        batch, earlier_student = student_embedding.to(result_dtype(student_embedding)), None
        teacher, all_labels = teacher_embedding.detach().to(batch), labels.to(torch.int64).contiguous()
        first, end = (0, len(batch)) if anchors is None else anchors
        if not 0 <= first <= end <= len(batch):
            raise ValueError(f"anchors must be (first, end) of {len(batch)} rows, got {anchors!r}")
        if earlier is not None:
            if not isinstance(earlier, tuple) or len(earlier) != 3:
                kind = type(earlier).__name__
                raise ValueError(f"earlier must be three tensors, as EmbeddingQueue.content() gives them, got {kind}")
            _check_batch(earlier, "earlier", (batch.shape[1], teacher.shape[1]))
            earlier_student = earlier[0].detach().to(batch)
            teacher = torch.cat([teacher, earlier[1].detach().to(teacher)])
            all_labels = torch.cat([all_labels, earlier[2].to(all_labels)])
        tensors = batch, earlier_student, teacher, all_labels, first, end
        count = SMALLEST if isinstance(max_negatives, str) else max_negatives
        choices = float(temperature), min(float(margin), LARGEST_MARGIN), mining, count
        is_tiled = len(all_labels) > TILED_FROM if tiled is None else tiled
        need_gradient = torch.is_grad_enabled() and batch.requires_grad
        loss, tuples, negatives, _ = relationship_operator(*tensors, *choices, is_tiled, need_gradient)
    return RelationshipMatch(loss, tuples, (negatives / tuples.clamp(min=1)).float())


def _check_batch(batch: Embeddings, name: str, widths: tuple[int, int] | None = None) -> None:
    student, teacher, labels = batch
    fits = student.ndim == teacher.ndim == 2 and student.shape[:1] == teacher.shape[:1] == labels.shape
    if not fits or (widths is not None and widths != (student.shape[1], teacher.shape[1])):
        of_student, of_teacher = widths or ("D_s", "D_t")
        wanted = f"embeddings [B, {of_student}] and [B, {of_teacher}] and labels [B]"
        shapes = ", ".join(str(list(tensor.shape)) for tensor in batch)
        raise ValueError(f"{name} takes {wanted}, got {shapes}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} takes integer labels, got {labels.dtype}")


def check_matching(temperature: float, margin: float, mining: str, max_negatives: int | str | None) -> None:
    """Checks the settings of :func:`relationship_matching`, each message beginning with the keyword's name.

    Raises:
        ValueError: one is of another type or out of range.
    """
    check_temperature("temperature", temperature)
    if not is_number(margin) or not margin >= 0:
        raise ValueError(f"margin: must be a number, at least 0, got {margin!r}")
    one_of("mining", mining, MINING)
    is_count = isinstance(max_negatives, int) and not isinstance(max_negatives, bool) and max_negatives >= 1
    if max_negatives is not None and max_negatives != "smallest" and not is_count:
        raise ValueError(f"max_negatives: must be None, 'smallest' or an integer ≥ 1, got {max_negatives!r}")


class EmbeddingQueue:
    """The last ``size`` ≥ 1 samples' embeddings of both networks and their labels, first in, first out.

    Reading it waits for no device.

    Example:
        >>> import torch
        >>> queue = EmbeddingQueue(3)
        >>> queue.push(torch.eye(2), torch.ones(2, 5), torch.tensor([0, 1]))
        >>> queue.push(torch.eye(2), torch.ones(2, 5), torch.tensor([2, 3]))
        >>> student, teacher, labels = queue.content()
        >>> labels
        tensor([1, 2, 3])
    """

    def __init__(self, size: int) -> None:
        self.size = whole_number("size", size, low=1)
        self._content: Embeddings | None = None

    def __len__(self) -> int:
        return 0 if self._content is None else len(self._content[2])

    def push(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Adds a batch, ``[B, D_s]``, ``[B, D_t]`` and ``[B]``, detached; the oldest samples leave.

        Raises:
            ValueError: shapes do not fit, or labels are not integers.
        """
        _check_batch((student, teacher, labels), "a queue")
        batch = student.detach(), teacher.detach(), labels
        before = self._content or tuple(tensor[:0] for tensor in batch)
        pairs = zip(before, batch, strict=True)
        student, teacher, labels = (torch.cat([old.to(new.device), new])[-self.size :].clone() for old, new in pairs)
        self._content = student, teacher, labels

    def content(self) -> Embeddings | None:
        """Embeddings of student ``[Q, D_s]`` and teacher ``[Q, D_t]`` and labels ``[Q]``, oldest first, or ``None``."""
        return self._content

    def clear(self) -> None:
        """Forgets everything."""
        self._content = None
