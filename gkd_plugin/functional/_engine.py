"""The loss of relationship matching and its gradient, tile by tile of anchors, as one torch operator.

An operator is opaque to ``torch.compile``, which then needs no graph break. It computes the gradient along with the
loss, in closed form. The host waits for no device, unless the dense form is needed.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gkd_plugin.functional._common import exact_dtype
from gkd_plugin.functional._distances import Distances, full_precision_products
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._tuples import MINING, ClassIndex, count_smallest, score_densely

SMALLEST = 0
LOWEST_PREFIX_TEMPERATURE = 0.15  # below it the prefix sums lose digits
_CPU_TILE = 2**17  # elements; a few arrays of this size stay in the cache
_DEVICE_TILE = 2**22

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("gkd_plugin::relationship", mutates_args=())
def relationship_operator(
    batch: Tensor,  # [B, D_s], the student's embeddings
    earlier: Tensor | None,  # [Q, D_s], those of earlier batches, if any
    teacher: Tensor,  # [B + Q, D_t], of the same type
    labels: Tensor,  # [B + Q] int64
    first_anchor: int,  # of the batch
    end_of_anchors: int,
    temperature: float,
    margin: float,
    mining: str,
    max_negatives: int | None,  # per tuple; SMALLEST: as many as the smallest tuple has
    tiled: bool,  # never hold a B × B matrix, at the price of two more matrix products
    need_gradient: bool,
) -> Outputs:
    """(mean KL, number of tuples, their negatives in all, the batch's gradient or an empty tensor)."""
    exact, on_cpu = exact_dtype(batch), labels.device.type == "cpu"
    is_dense = exact != torch.float64 or max_negatives is not None or temperature < LOWEST_PREFIX_TEMPERATURE
    classes = ClassIndex(labels, wait=is_dense or on_cpu)
    step = max((_CPU_TILE if on_cpu else _DEVICE_TILE) // max(len(labels), 1), 16)
    spans = _spans(first_anchor, end_of_anchors, step)

    def window(near: Tensor) -> tuple[Tensor, Tensor]:
        return MINING[mining](near, margin)

    with full_precision_products():
        hold = earlier is None and not tiled and end_of_anchors - first_anchor == len(batch)
        of_gradient = len(batch) if need_gradient else 0
        student = Distances(batch if earlier is None else torch.cat([batch, earlier]), hold, of_gradient)
        of_teacher = Distances(teacher, hold)
        if max_negatives == SMALLEST:
            every = _spans(0, len(batch), step)
            counts = [count_smallest(student.tile(*span), classes.positives(*span), window) for span in every]
            max_negatives = int(torch.stack(counts).min()) if counts else None
        form = partial(score_densely, max_negatives=max_negatives) if is_dense else score_by_prefix_sums
        score_tile = partial(form, window=window, temperature=temperature, need_gradient=need_gradient)
        divergence = 0 * (student.lengths.sum() + of_teacher.lengths.sum()).to(exact)  # keeps NaN and infinity
        tuples, negatives = labels.new_zeros(()), labels.new_zeros(())
        for span in spans:
            score = score_tile(student.tile(*span), of_teacher.tile(*span), classes.positives(*span))
            divergence, tuples, negatives = divergence + score[0], tuples + score[1], negatives + score[2]
            if score[3] is not None:
                student.add_pull(*span, score[3])
        del of_teacher  # as large as what the gradient needs next
        gradient = student.gradient() if need_gradient else batch.new_empty(0)
    count = tuples.clamp(min=1)
    return (divergence / count).to(batch.dtype), tuples, negatives, gradient.div_(count)


def _spans(first: int, end: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, end)) for start in range(first, end, step)]


@relationship_operator.register_fake
def _shapes(batch: Tensor, *settings: Any) -> Outputs:
    counts = [batch.new_empty((), dtype=torch.int64) for _ in range(2)]
    return batch.new_empty(()), counts[0], counts[1], batch.new_empty(batch.shape if settings[-1] else 0)


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
