r"""Adaptive emphasis: how much each sample of a batch weighs in stage ``classifier`` (TPAMI 2023, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_plugin.functional._common import exact_dtype, no_autocast

__all__ = ["confidence_cost", "emphasis_weights"]


def confidence_cost(logits: Tensor) -> Tensor:
    r"""u_i = −log max_c softmax(logits_i)_c, in nats: 0 where the classifier is certain.

    Args:
        logits: ``[B, C_t]`` of the teacher's own classifier.

    Returns:
        ``[B]`` ≥ 0, float64 (float32 on MPS).
    """
    with no_autocast(logits):
        exact = logits.to(exact_dtype(logits))
        top, index = exact.max(dim=1, keepdim=True)
        others = (exact - top).exp().scatter(1, index, 0)  # log1p keeps the digits of a certain classifier
        return others.sum(dim=1).log1p()


def emphasis_weights(logits: Tensor) -> Tensor:
    r"""ω_i = 2·sigmoid(−û_i) ∈ (0.53, 1], û the min–max normalised :func:`confidence_cost` of the batch.

    Samples that the teacher knows weigh more. When all u_i are equal, ω_i = 1. No gradient is taken.

    Args:
        logits: ``[B, C_t]`` of the teacher's own classifier, which may have other classes than the student.

    Returns:
        ``[B]`` float32 (float64 for float64 input).

    Example:
        >>> import torch
        >>> emphasis_weights(torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
        tensor([1.0000, 0.5379])
    """
    cost = confidence_cost(logits.detach())
    if not len(cost):
        return cost.to(torch.promote_types(logits.dtype, torch.float32))
    low, high = torch.aminmax(cost)
    spread = high - low
    scaled = torch.where(spread > 0, (cost - low) / torch.where(spread > 0, spread, 1), 0)
    return (2 * torch.sigmoid(-scaled)).to(torch.promote_types(logits.dtype, torch.float32))
