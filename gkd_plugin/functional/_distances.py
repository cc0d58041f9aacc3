r"""Distances between the rows of normalised embeddings, by matrix products, and the way back to the embeddings.

D²_ij = ‖x_i‖² + ‖x_j‖² − 2·x_i·x_j loses digits where D is small against ‖x‖, as behind a ReLU, where embeddings lie in
a narrow cone. Subtracting one vector from every row changes no distance, so the rows are centred first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_BLOCK = 256
_ONE_AT_A_TIME = Lock()  # the switches are the process's: of two threads each would restore what the other has set


@contextmanager
def full_precision_products() -> Iterator[None]:
    """float32 matrix products in float32, not in TF32 or bf16, whatever the user allows for the networks."""
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


class Distances:
    """The distances between N embeddings of one network, in tiles of consecutive anchors; takes back their gradients.

    ``hold`` computes all inner products at once, and only half of them; then every row is an anchor. Otherwise no
    N × N matrix is ever held. The first ``batch`` rows get a gradient. A row of zeros stays one when it is normalised.
    """

    def __init__(self, embedding: Tensor, hold: bool, batch: int = 0) -> None:
        limits = torch.finfo(embedding.dtype)
        largest = embedding.abs().amax(dim=1, keepdim=True).clamp_(min=limits.tiny / limits.eps**2)
        # A power of two, which takes a row's largest element to [2, 4), changes no digit and keeps squares in range.
        self._scale = torch.exp2(1 - largest.log2_().floor_())
        scaled = embedding * self._scale
        self.lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        self._directions = scaled.div_(self.lengths.clamp(min=limits.tiny))
        self._rows = self._directions - self._directions.mean(dim=0, keepdim=True)
        self._products = _products(self._rows) if hold else None
        self._squares = _squares(self._rows) if self._products is None else self._products.diagonal().clone()
        self._gradient = self._rows.new_zeros(0 if hold else batch, self._rows.shape[1])

    def tile(self, first: int, last: int) -> Tensor:
        """``[last - first, N]``, D of the anchors to all rows, a new tensor."""
        inner = self._rows[first:last] @ self._rows.T if self._products is None else self._products[first:last]
        squares = self._squares
        return torch.sub(squares, inner, alpha=2).add_(squares[first:last, None]).clamp_(min=0).sqrt_()

    def add_pull(self, first: int, last: int, pull: Tensor) -> None:
        """Takes ∂L/∂D ÷ D of a tile, which is not read again."""
        if self._products is not None:
            self._products[first:last] = pull
            return
        tile, batch = self._rows[first:last], len(self._gradient)
        self._gradient[first:last] += _differences(pull, tile, self._rows)
        self._gradient += _differences(pull[:, :batch].T, self._rows[:batch], tile)

    def gradient(self) -> Tensor:
        """``[B, D]``, ∂L/∂embedding of the batch, once all pulls are in; 0 for rows of (nearly) zeros.

        For a centred row it is Σ_j H_ij·(x_i − x_j), H the pull plus its transpose: one product, or two for each tile.
        """
        gradient = self._gradient
        if self._products is not None:
            gradient = _differences(self._products + self._products.T, self._rows, self._rows)
        directions, lengths, scale = (value[: len(gradient)] for value in (self._directions, self.lengths, self._scale))
        along = torch.linalg.vecdot(gradient, directions).unsqueeze(1)
        lengths = torch.where(lengths > 1, lengths, torch.inf)
        return gradient.addcmul_(directions, along, value=-1).div_(lengths / scale)


def _differences(pull: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Σ_j pull_ij·(x_i − x_j)."""
    return (pull @ others).neg_().addcmul_(pull.sum(dim=1, keepdim=True), rows)


def _products(rows: Tensor) -> Tensor:
    """XXᵀ: the blocks above the diagonal are computed, those below are their transposes."""
    result = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), _BLOCK):
        stop = start + _BLOCK
        torch.mm(rows[start:stop], rows[start:].T, out=result[start:stop, start:])
        result[stop:, start:stop] = result[start:stop, stop:].T
    return result


def _squares(rows: Tensor) -> Tensor:
    """``[N]``, ‖x_i‖² from a matrix product as in the distances, so that equal rows have distance 0."""
    return torch.cat([(block @ block.T).diagonal() for block in torch.split(rows, _BLOCK)])
