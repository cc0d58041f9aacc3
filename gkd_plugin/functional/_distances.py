r"""Distances between the rows of normalised embeddings, by matrix products.

D²_ij = ‖x_i‖² + ‖x_j‖² − 2·x_i·x_j loses digits where D is small against ‖x‖. Embeddings behind a ReLU are such: they
lie in a narrow cone. Subtracting one vector from every row changes no distance, so the rows are centred first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Distances", "Normalised", "Pulls", "full_precision_products"]

_BLOCK = 256
_ONE_AT_A_TIME = Lock()


@contextmanager
def full_precision_products() -> Iterator[None]:
    """float32 matrix products in float32, not in TF32 or bf16, whatever the user allows for the networks.

    The switches belong to the process: without the lock, two threads would each restore what the other has set.
    """
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.mkldnn.matmul)
    with _ONE_AT_A_TIME:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision


class Normalised(NamedTuple):
    """The rows of an embedding at length 1.

    Attributes:
        rows: ``[N, D]``; a row of zeros stays one.
        lengths: ``[N, 1]``, of the embedding's rows times ``scale``.
        scale: ``[N, 1]``, powers of two that take the largest element of a row to [2, 4), unless it is below 1e-24
            (for float32). They change no digit, and the squares can neither overflow nor vanish.
    """

    rows: Tensor
    lengths: Tensor
    scale: Tensor

    @classmethod
    def of(cls, embedding: Tensor) -> Normalised:
        """Normalises ``[N, D]``."""
        limits = torch.finfo(embedding.dtype)
        largest = embedding.abs().amax(dim=1, keepdim=True).clamp_(min=limits.tiny / limits.eps**2)
        scale = torch.exp2(1 - largest.log2_().floor_())
        rows = embedding * scale
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return cls(rows.div_(lengths.clamp(min=limits.tiny)), lengths, scale)

    def embedding_gradient(self, gradient: Tensor) -> Tensor:
        """From the gradient of the first rows to that of the embedding, in place; 0 for rows of (nearly) zeros."""
        rows, lengths, scale = (value[: len(gradient)] for value in self)
        along = torch.linalg.vecdot(gradient, rows).unsqueeze(1)
        lengths = torch.where(lengths > 1, lengths, torch.inf)
        return gradient.addcmul_(rows, along, value=-1).div_(lengths / scale)


class Distances:
    """The distances between N rows, given out in tiles of consecutive anchors.

    Args:
        rows: ``[N, D]``.
        hold: compute all inner products at once, and only half of them; otherwise never hold an N × N matrix.

    Attributes:
        rows: ``[N, D]``, centred.
        products: ``[N, N]`` where they are held.
    """

    def __init__(self, rows: Tensor, hold: bool) -> None:
        self.rows = rows - rows.mean(dim=0, keepdim=True)
        self.products = _products(self.rows) if hold else None
        self._squares = _squares(self.rows) if self.products is None else self.products.diagonal().clone()

    def tile(self, first: int, last: int) -> Tensor:
        """``[last - first, N]``, D of the anchors to all rows, a new tensor."""
        inner = self.rows[first:last] @ self.rows.T if self.products is None else self.products[first:last]
        squares = self._squares
        return torch.sub(squares, inner, alpha=2).add_(squares[first:last, None]).clamp_(min=0).sqrt_()


class Pulls:
    """Collects the pulls ∂L/∂D ÷ D of tiles of anchors, the first rows of ``distances``.

    ∂L/∂x_i = Σ_j H_ij·(x_i − x_j), H the pull plus its transpose: one product where all distances are held, otherwise
    two for each tile.
    """

    def __init__(self, distances: Distances, anchors: int) -> None:
        self._rows = distances.rows
        self._held = distances.products  # a tile that has been scored is not read again
        self._gradient = self._rows.new_zeros(anchors if self._held is None else 0, self._rows.shape[1])

    def add(self, first: int, last: int, pull: Tensor) -> None:
        """Takes the pull ``[last - first, N]`` of a tile."""
        if self._held is not None:
            self._held[first:last] = pull
            return
        tile, anchors = self._rows[first:last], len(self._gradient)
        self._gradient[first:last] += _differences(pull, tile, self._rows)
        self._gradient += _differences(pull[:, :anchors].T, self._rows[:anchors], tile)

    def gradient(self) -> Tensor:
        """``[B, D]``, ∂L/∂x of the anchors, once all tiles are in."""
        if self._held is None:
            return self._gradient
        return _differences(self._held + self._held.T, self._rows, self._rows)


def _differences(pull: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Σ_j pull_ij·(x_i − x_j)."""
    return (pull @ others).neg_().addcmul_(pull.sum(dim=1, keepdim=True), rows)


def _products(rows: Tensor) -> Tensor:
    """XXᵀ: the blocks above the diagonal are computed, those below are their transposes."""
    result = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), _BLOCK):
        stop = start + _BLOCK
        torch.mm(rows[start:stop], rows[start:].T, out=result[start:stop, start:])
        if stop < len(rows):
            result[stop:, start:stop] = result[start:stop, stop:].T
    return result


def _squares(rows: Tensor) -> Tensor:
    """``[N]``, ‖x_i‖² from a matrix product as in the distances, so that equal rows have distance 0."""
    blocks = [(block @ block.T).diagonal() for block in torch.split(rows, _BLOCK)]
    return torch.cat(blocks) if blocks else rows.new_zeros(0)
