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

from gkd_plugin.functional._accelerated import compiled_for, compiled_parts

__all__ = [
    "before_normalisation",
    "centred",
    "finish_distances",
    "full_precision_products",
    "normalised",
    "products",
    "squares",
]

_BLOCK = 256


def normalised(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 and the lengths ``[N, 1]`` they had; a row of zeros stays one."""
    lengths = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    return embedding / lengths.clamp(min=torch.finfo(embedding.dtype).tiny), lengths


def before_normalisation(gradient: Tensor, directions: Tensor, lengths: Tensor) -> Tensor:
    """From the gradient with respect to normalised rows to that of the embedding, in place; 0 for a row of zeros."""
    along = torch.linalg.vecdot(gradient, directions).unsqueeze(1)
    return gradient.addcmul_(directions, along, value=-1).div_(torch.where(lengths > 0, lengths, torch.inf))


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
        backends: Any = torch.backends
        with _ieee(backends.cuda.matmul), _ieee(backends.mkldnn.matmul):
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


def products(rows: Tensor, result: Tensor) -> Tensor:
    """XXᵀ into ``result`` ``[N, N]``: the blocks above the diagonal are computed, those below are their transposes."""
    for start in range(0, rows.shape[0], _BLOCK):
        stop = start + _BLOCK
        torch.mm(rows[start:stop], rows[start:].T, out=result[start:stop, start:])
        result[stop:, start:stop] = result[start:stop, stop:].T
    return result


def squares(rows: Tensor) -> Tensor:
    """``[N]``: ‖x_i‖², each from a matrix product as in the distances, so that D of equal rows comes out as 0."""
    blocks = [(block @ block.T).diagonal() for block in torch.split(rows, _BLOCK)]
    return torch.cat(blocks) if blocks else rows.new_zeros(0)


def finish_distances(inner: Tensor, squares: Tensor, anchor_squares: Tensor) -> Tensor:
    """D = √max(0, ‖x_a‖² + ‖x_n‖² − 2·x_a·x_n), in place.

    Args:
        inner: ``[R, N]``, x_a·x_n.
        squares: ``[N]``, ‖x_n‖².
        anchor_squares: ``[R]``, ‖x_a‖².
    """
    if compiled_for(inner):
        compiled: Tensor = compiled_parts().finish_distances_compiled(inner, squares, anchor_squares)
        return compiled
    return torch.sub(squares, inner, alpha=2, out=inner).add_(anchor_squares.unsqueeze(1)).clamp_(min=0).sqrt_()
