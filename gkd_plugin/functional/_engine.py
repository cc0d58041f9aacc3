"""The loss of relationship matching and its gradient, tile by tile of anchors, as one torch operator.

An operator is opaque to ``torch.compile``, which then needs no graph break. It computes the gradient along with the
loss, in closed form. The host waits for no device, unless the dense form is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gkd_plugin.functional._common import exact_dtype
from gkd_plugin.functional._dense import count_smallest, score_densely
from gkd_plugin.functional._distances import Distances, Normalised, Pulls, full_precision_products
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._tuples import ClassIndex, Selection
from gkd_plugin.functional.mining import MINING

__all__ = ["SMALLEST", "relationship_operator"]

SMALLEST = 0
LOWEST_PREFIX_TEMPERATURE = 0.15
"""Below it the prefix sums lose digits."""

_CPU_TILE = 2**17  # elements; a few arrays of this size stay in the cache
_DEVICE_TILE = 2**22

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("gkd_plugin::relationship", mutates_args=())
def relationship_operator(
    anchors: Tensor,
    earlier: Tensor | None,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    margin: float,
    mining: str,
    max_negatives: int | None,
    tiled: bool,
    need_gradient: bool,
) -> Outputs:
    """(mean KL, number of tuples, their negatives in all, its gradient with respect to the anchors or an empty tensor).

    Args:
        anchors: ``[B, D_s]``, the student's embeddings.
        earlier: ``[Q, D_s]``, those of earlier batches, if any.
        teacher: ``[B + Q, D_t]``, of the same type.
        labels: ``[B + Q]`` int64.
        temperature: τ₁.
        margin: width of the window.
        mining: a key of ``MINING``.
        max_negatives: per tuple; ``None`` for all, ``SMALLEST`` for as many as the smallest tuple has.
        tiled: never hold a B × B matrix, at the price of two more matrix products.
        need_gradient: otherwise only the loss.
    """
    exact = exact_dtype(anchors)
    is_dense = exact != torch.float64 or max_negatives is not None or temperature < LOWEST_PREFIX_TEMPERATURE
    score_tile = score_densely if is_dense else score_by_prefix_sums
    selection = Selection(temperature, margin, MINING[mining], max_negatives)
    classes = ClassIndex(labels, wait=is_dense or labels.device.type == "cpu")
    spans = _spans(len(anchors), labels)
    with full_precision_products():
        student = Normalised.of(anchors if earlier is None else torch.cat([anchors, earlier]))
        of_teacher = Normalised.of(teacher)
        hold = earlier is None and not tiled
        student_distances, teacher_distances = Distances(student.rows, hold), Distances(of_teacher.rows, hold)
        if max_negatives == SMALLEST:
            selection = _cut_to_smallest(selection, student_distances, classes, spans)
        pulls = Pulls(student_distances, len(anchors))
        divergence = 0 * (student.lengths.sum() + of_teacher.lengths.sum()).to(exact)  # keeps NaN and infinity
        tuples, negatives = labels.new_zeros(()), labels.new_zeros(())
        for span in spans:
            score = score_tile(
                student_distances.tile(*span),
                teacher_distances.tile(*span),
                classes.positives(*span),
                selection,
                need_gradient,
            )
            divergence = divergence + score.divergence
            tuples, negatives = tuples + score.tuples, negatives + score.negatives
            if score.pull is not None:
                pulls.add(*span, score.pull)
        del teacher_distances  # as large as what the gradient needs next
        gradient = student.embedding_gradient(pulls.gradient()) if need_gradient else anchors.new_empty(0)
    count = tuples.clamp(min=1)
    return (divergence / count).to(anchors.dtype), tuples, negatives, gradient.div_(count)


def _spans(anchors: int, labels: Tensor) -> list[tuple[int, int]]:
    """(first, last) of each tile of anchors."""
    elements = _CPU_TILE if labels.device.type == "cpu" else _DEVICE_TILE
    step = max(elements // max(len(labels), 1), 16)
    return [(first, min(first + step, anchors)) for first in range(0, anchors, step)]


def _cut_to_smallest(
    selection: Selection, student: Distances, classes: ClassIndex, spans: list[tuple[int, int]]
) -> Selection:
    """As many negatives of each tuple as the smallest tuple of the batch has."""
    selection = selection._replace(max_negatives=None)
    counts = [count_smallest(student.tile(*span), classes.positives(*span), selection) for span in spans]
    return selection._replace(max_negatives=int(torch.stack(counts).min()) if counts else None)


@relationship_operator.register_fake
def _shapes(anchors: Tensor, *settings: Any) -> Outputs:
    need_gradient = settings[-1]
    counts = [anchors.new_empty((), dtype=torch.int64) for _ in range(2)]
    return anchors.new_empty(()), counts[0], counts[1], anchors.new_empty(anchors.shape if need_gradient else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(output[-1])
    ctx.set_materialize_grads(False)
    ctx.settings = len(inputs) - 1


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    of_loss, *_, of_gradient = gradients
    if of_gradient is not None:  # a term that went missing in silence would be worse
        raise RuntimeError("relationship matching can be differentiated once, not twice")
    (gradient,) = ctx.saved_tensors
    return (None if of_loss is None else of_loss * gradient), *([None] * ctx.settings)


relationship_operator.register_autograd(_backward, setup_context=_save)
