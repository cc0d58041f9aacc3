"""Where the tiles of distances come from and where their gradients go."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gkd_plugin.functional._distances import finish_distances, negative_products, squared_lengths
from gkd_plugin.functional._positives import ClassIndex
from gkd_plugin.functional._tile import Tile

__all__ = ["Rows", "SymmetricRows", "TiledRows"]

_CPU_TILE = 2**17  # elements; a few arrays of this size stay in the cache
_DEVICE_TILE = 2**25


class Rows:
    """The distances of the first ``anchors`` rows to all rows, and the gradient with respect to the former.

    ∂L/∂x_i = Σ_j H_ij·(x_i − x_j), H the pull (∂L/∂D ÷ D) plus its transpose.

    Args:
        student: ``[N, D_s]``.
        teacher: ``[N, D_t]``, of the same type.
        labels: ``[N]``.
        anchors: B ≤ N.
    """

    def __init__(self, student: Tensor, teacher: Tensor, labels: Tensor, anchors: int) -> None:
        self.student = student
        self.teacher = teacher
        self.anchors = anchors
        self.classes = ClassIndex(labels)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each tile of anchors."""
        elements = _CPU_TILE if self.student.device.type == "cpu" else _DEVICE_TILE
        step = max(elements // max(self.student.shape[0], 1), 16)
        for first in range(0, self.anchors, step):
            yield first, min(first + step, self.anchors)

    def tile(self, first: int, last: int) -> Tile:
        """The distances of a tile of anchors; each tile is asked for once."""
        raise NotImplementedError

    def collect(self, first: int, last: int, pull: Tensor) -> None:
        """Takes the pull of a tile, ``[R, N]``."""
        raise NotImplementedError

    def gradient(self) -> Tensor:
        """``[B, D_s]``, of everything collected, once all tiles are in."""
        raise NotImplementedError


class SymmetricRows(Rows):
    """Holds two N × N matrices, computes half of either, and forms the gradient in one product. All rows are anchors."""

    def __init__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        super().__init__(student, teacher, labels, student.shape[0])
        self._student_products = negative_products(student)
        self._teacher_products = negative_products(teacher)
        self._student_lengths = self._student_products.diagonal() / -2
        self._teacher_lengths = self._teacher_products.diagonal() / -2

    def tile(self, first: int, last: int) -> Tile:
        """Finishes the rows of the tile in place."""
        student, teacher = self._student_lengths, self._teacher_lengths
        return Tile(
            finish_distances(self._student_products[first:last], student, student[first:last]),
            finish_distances(self._teacher_products[first:last], teacher, teacher[first:last]),
            self.classes.positives(first, last),
        )

    def collect(self, first: int, last: int, pull: Tensor) -> None:
        """Keeps the pull where the student's distances were."""
        self._student_products[first:last] = pull

    def gradient(self) -> Tensor:
        """One product; the teacher's matrix takes the transpose."""
        symmetric = self._teacher_products.copy_(self._student_products.T).add_(self._student_products)
        return symmetric.sum(dim=1, keepdim=True) * self.student - symmetric @ self.student


class TiledRows(Rows):
    """Holds one tile at a time, and forms the gradient in two products for each."""

    def __init__(self, student: Tensor, teacher: Tensor, labels: Tensor, anchors: int) -> None:
        super().__init__(student, teacher, labels, anchors)
        self._student_lengths = squared_lengths(student)
        self._teacher_lengths = squared_lengths(teacher)
        self._gradient = torch.zeros_like(student[:anchors])

    def tile(self, first: int, last: int) -> Tile:
        """Computes the rows of the tile."""
        return Tile(
            _distances(self.student, self._student_lengths, first, last),
            _distances(self.teacher, self._teacher_lengths, first, last),
            self.classes.positives(first, last),
        )

    def collect(self, first: int, last: int, pull: Tensor) -> None:
        """Adds both products of the tile."""
        rows = self.student[first:last]
        self._gradient[first:last] += pull.sum(dim=1, keepdim=True) * rows - pull @ self.student
        back = pull[:, : self.anchors].T
        self._gradient += back.sum(dim=1, keepdim=True) * self.student[: self.anchors] - back @ rows

    def gradient(self) -> Tensor:
        """What was added up."""
        return self._gradient


def _distances(rows: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
    products = (rows[first:last] @ rows.T).mul_(-2)
    return finish_distances(products, lengths, lengths[first:last])
