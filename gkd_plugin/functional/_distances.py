r"""Distances between the rows of normalised embeddings by matrix products, and their gradient.

D²_ij = ‖x_i‖² + ‖x_j‖² − 2·x_i·x_j loses digits where D is small against ‖x‖. Distances do not change when a vector is
subtracted from every row, so the rows are centred first: embeddings behind a ReLU lie in a narrow cone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["centred", "finish_distances", "full_precision_products", "negative_products", "squared_lengths"]

_BLOCK = 256


def centred(rows: Tensor) -> Tensor:
    """The rows minus their mean; the same distances, with less cancellation."""
    return rows - rows.mean(dim=0, keepdim=True)


@contextmanager
def full_precision_products() -> Iterator[None]:
    """float32 matrix products in float32, not in TF32 or bf16, whatever the user allows for the networks.

    torch has two switches for it; reading the older one raises where the newer one was used.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        with _ieee(torch.backends.cuda.matmul), _ieee(torch.backends.mkldnn.matmul):
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _ieee(switch: Any) -> Iterator[None]:
    before = switch.fp32_precision
    switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def negative_products(rows: Tensor) -> Tensor:
    """−2·XXᵀ, ``[N, N]``: the blocks above the diagonal are computed, those below are their transposes."""
    count = rows.shape[0]
    result = rows.new_empty(count, count)
    for start in range(0, count, _BLOCK):
        stop = start + _BLOCK
        block = result[start:stop, start:]
        torch.addmm(block, rows[start:stop], rows[start:].T, beta=0, alpha=-2, out=block)
        result[stop:, start:stop] = result[start:stop, stop:].T
    return result


def squared_lengths(rows: Tensor) -> Tensor:
    """``[N]``: ‖x_i‖², each from a matrix product as in the distances, so that D of equal rows is exactly 0."""
    blocks = [(block @ block.T).diagonal() for block in rows.split(_BLOCK)]
    return torch.cat(blocks) if blocks else rows.new_zeros(0)


def finish_distances(products: Tensor, lengths: Tensor, anchor_lengths: Tensor) -> Tensor:
    """D = √max(0, ‖x_a‖² + ‖x_n‖² − 2·x_a·x_n), in place.

    Args:
        products: ``[R, N]``, −2·x_a·x_n.
        lengths: ``[N]``, ‖x_n‖².
        anchor_lengths: ``[R]``, ‖x_a‖².
    """
    return products.add_(lengths).add_(anchor_lengths.unsqueeze(1)).clamp_(min=0).sqrt_()
