"""The engine as one torch operator: opaque to ``torch.compile``, with its gradient computed along with the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gkd_plugin.functional._engine import match_relationships
from gkd_plugin.functional._tile import Selection
from gkd_plugin.functional.mining import MINING

__all__ = ["relationship_operator"]

ALL_NEGATIVES = -1
SMALLEST = 0


@torch.library.custom_op("gkd_plugin::relationship", mutates_args=())
def relationship_operator(
    anchors: Tensor,
    student: Tensor | None,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    margin: float,
    mining: str,
    max_negatives: int,
    tiled: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, number of tuples, mean number of negatives, gradient) of anchors ``[B, D_s]``.

    ``student`` ``[Q, D_s]`` are embeddings besides the anchors', if any; ``teacher`` ``[B + Q, D_t]`` and ``labels``
    ``[B + Q]`` are of both. ``max_negatives`` is −1 for all, 0 for the smallest number of the batch.
    """
    limit: Any = {ALL_NEGATIVES: None, SMALLEST: "smallest"}.get(max_negatives, max_negatives)
    match = match_relationships(
        anchors if student is None else torch.cat([anchors, student]),
        teacher,
        labels,
        anchors.shape[0],
        Selection(temperature, margin, MINING[mining], limit),
        tiled=tiled,
        need_gradient=need_gradient,
    )
    count = match.tuples.clamp(min=1)
    return (
        (match.divergence / count).to(anchors.dtype),
        match.tuples,
        match.negatives / count,
        match.gradient.div_(count.to(anchors.dtype)),
    )


@relationship_operator.register_fake
def _shapes(anchors: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_gradient = settings[-1]
    gradient = torch.empty_like(anchors) if need_gradient else anchors.new_empty(0)
    scalar = anchors.new_empty(())
    return scalar, scalar.to(torch.int64), scalar.to(torch.float32), gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    ctx.save_for_backward(output[-1])
    ctx.settings = len(inputs) - 1


def _backward(ctx: Any, loss: Tensor, *counts: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG001
    (gradient,) = ctx.saved_tensors
    return loss * gradient, *([None] * ctx.settings)


relationship_operator.register_autograd(_backward, setup_context=_save)
