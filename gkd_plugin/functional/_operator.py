"""The engine as an autograd function, and as a torch operator where a graph is being compiled.

Both compute the gradient along with the loss. The function is what eager code pays least for; the operator is opaque to
``torch.compile``, which then needs no graph break.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor

from gkd_plugin.functional._engine import match_relationships
from gkd_plugin.functional._tile import Selection
from gkd_plugin.functional.mining import MINING

__all__ = ["ALL_NEGATIVES", "SMALLEST", "relationship_loss", "relationship_operator"]

ALL_NEGATIVES = -1
SMALLEST = 0

_ONE_AT_A_TIME = Lock()  # the precision of matrix products and Numba's threads are the process's, not the caller's

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def relationship_loss(anchors: Tensor, *arguments: Any) -> Outputs:
    """(loss, number of tuples, mean number of negatives, gradient) of anchors ``[B, D_s]``; see :func:`_evaluate`."""
    settings = (*arguments, torch.is_grad_enabled() and anchors.requires_grad)
    if torch.compiler.is_compiling():
        compiled: Outputs = relationship_operator(anchors, *settings)
        return compiled
    eager: Outputs = _RelationshipFunction.apply(anchors, *settings)
    return eager


def _evaluate(
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
) -> Outputs:
    """The outputs, without autograd.

    ``student`` ``[Q, D_s]`` are embeddings besides the anchors', if any; ``teacher`` ``[B + Q, D_t]`` and ``labels``
    ``[B + Q]`` are of both. ``max_negatives`` is −1 for all, 0 for the smallest number of the batch.
    """
    limit = max_negatives if max_negatives > 0 else None
    with _ONE_AT_A_TIME:
        match = match_relationships(
            anchors if student is None else torch.cat([anchors, student]),
            teacher,
            labels,
            anchors.shape[0],
            Selection(temperature, margin, MINING[mining], limit),
            cut_to_smallest=max_negatives == SMALLEST,
            tiled=tiled,
            need_gradient=need_gradient,
        )
    count = match.tuples.clamp(min=1)
    return (
        (match.divergence / count).to(anchors.dtype),
        match.tuples,
        (match.negatives / count).float(),
        match.gradient.div_(count),
    )


class _RelationshipFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Outputs:
        loss, tuples, negatives, gradient = _evaluate(*arguments)
        _save(ctx, arguments, (loss, tuples, negatives, gradient))
        ctx.mark_non_differentiable(tuples, negatives, gradient)
        return loss, tuples, negatives, gradient

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *gradients)


class _OnlyOnce(torch.autograd.Function):
    """The identity, which refuses to be differentiated: a term that went missing in silence would be worse."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchors: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ARG004
        raise RuntimeError("relationship matching can be differentiated once, not twice")


relationship_operator = torch.library.custom_op("gkd_plugin::relationship", _evaluate, mutates_args=())


@relationship_operator.register_fake
def _shapes(anchors: Tensor, *settings: Any) -> Outputs:
    need_gradient = settings[-1]
    return (
        anchors.new_empty(()),
        anchors.new_empty((), dtype=torch.int64),
        anchors.new_empty((), dtype=torch.float32),
        anchors.new_empty(anchors.shape if need_gradient else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(output[-1], inputs[0])
    ctx.settings = len(inputs) - 1


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    gradient, anchors = ctx.saved_tensors
    product = gradients[0] * gradient
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        product = _OnlyOnce.apply(product, anchors)
    return product, *([None] * ctx.settings)


relationship_operator.register_autograd(_backward, setup_context=_save)
