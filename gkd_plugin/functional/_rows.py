"""Where the tiles of distances come from and where their gradients go."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gkd_plugin.functional._accelerated import compiled_for
from gkd_plugin.functional._distances import finish_distances, products, squares
from gkd_plugin.functional._positives import ClassIndex
from gkd_plugin.functional._tile import Tile

__all__ = ["Rows", "SymmetricRows", "TiledRows"]

_CPU_TILE = 2**17  # elements; a few arrays of this size stay in the cache
_COMPILED_TILE = 2**20  # works row by row, so that only the number of calls matters
_DEVICE_TILE = 2**22


class Rows:
    """The distances of the first ``anchors`` rows to all rows, and the gradient with respect to the former.

    ∂L/∂x_i = Σ_j H_ij·(x_i − x_j), H the pull (∂L/∂D ÷ D) plus its transpose.

    Args:
        student: ``[N, D_s]``.
        teacher: ``[N, D_t]``, of the same type.
        classes: those of the rows.
        anchors: B ≤ N.
    """

    def __init__(self, student: Tensor, teacher: Tensor, classes: ClassIndex, anchors: int) -> None:
        self.student = student
        self.teacher = teacher
        self.anchors = anchors
        self.classes = classes

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each tile of anchors."""
        on_host = _COMPILED_TILE if compiled_for(self.student) else _CPU_TILE
        elements = on_host if self.student.device.type == "cpu" else _DEVICE_TILE
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
    """Holds two N × N matrices, computes half of either, forms the gradient in one product; all rows are anchors."""

    def __init__(self, student: Tensor, teacher: Tensor, classes: ClassIndex) -> None:
        super().__init__(student, teacher, classes, student.shape[0])
        both = student.new_empty(2, self.anchors, self.anchors)  # one block: allocators hand it out again faster
        self._student_products = products(student, both[0])
        self._teacher_products = products(teacher, both[1])
        self._student_squares = self._student_products.diagonal().clone()
        self._teacher_squares = self._teacher_products.diagonal().clone()
        self._handed_out: Tensor | None = None

    def tile(self, first: int, last: int) -> Tile:
        """Finishes the rows of the tile in place."""
        self._handed_out = _finish(self._student_products, self._student_squares, first, last)
        teacher = _finish(self._teacher_products, self._teacher_squares, first, last)
        return Tile(self._handed_out, teacher, self.classes, first)

    def collect(self, first: int, last: int, pull: Tensor) -> None:
        """Keeps the pull where the student's distances were, and where an engine may have put it already."""
        if pull is not self._handed_out:
            self._student_products[first:last] = pull

    def gradient(self) -> Tensor:
        """One product; the teacher's matrix takes the transpose."""
        symmetric = self._teacher_products.copy_(self._student_products.T).add_(self._student_products)
        return _difference(symmetric, self.student, self.student)


class TiledRows(Rows):
    """Holds one tile at a time, and forms the gradient in two products for each."""

    def __init__(self, student: Tensor, teacher: Tensor, classes: ClassIndex, anchors: int) -> None:
        super().__init__(student, teacher, classes, anchors)
        self._student_squares = squares(student)
        self._teacher_squares = squares(teacher)
        self._gradient = torch.zeros_like(student[:anchors])

    def tile(self, first: int, last: int) -> Tile:
        """Computes the rows of the tile."""
        return Tile(
            _distances(self.student, self._student_squares, first, last),
            _distances(self.teacher, self._teacher_squares, first, last),
            self.classes,
            first,
        )

    def collect(self, first: int, last: int, pull: Tensor) -> None:
        """Adds both products of the tile."""
        rows = self.student[first:last]
        self._gradient[first:last] += _difference(pull, rows, self.student)
        self._gradient += _difference(pull[:, : self.anchors].T, self.student[: self.anchors], rows)

    def gradient(self) -> Tensor:
        """What was added up."""
        return self._gradient


def _finish(inner: Tensor, squared: Tensor, first: int, last: int) -> Tensor:
    return finish_distances(inner[first:last], squared, squared[first:last])


def _distances(rows: Tensor, squared: Tensor, first: int, last: int) -> Tensor:
    return finish_distances(rows[first:last] @ rows.T, squared, squared[first:last])


def _difference(pull: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Σ_j pull_ij·(x_i − x_j)."""
    return (pull @ others).neg_().addcmul_(pull.sum(dim=1, keepdim=True), rows)
