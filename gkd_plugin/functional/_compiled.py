r"""The prefix-sum engine compiled for the CPU by Numba, where it is installed (extra ``fast``).

The same mathematics as ``_prefix_sums``, one anchor at a time in cache, about twice as fast. The ends of the windows are
sorted together with the anchor's negatives; a walk along the sorted sequence then meets every negative between the two
ends of each window that it lies in, so that running sums replace searches and prefix arrays. All in float64 but for
the distances.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from gkd_plugin.functional._tile import SMALLEST_DISTANCE, Selection, Tile, TileScore

__all__ = ["finish_distances_compiled", "score_compiled"]

Array = NDArray[np.generic]

_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.6931471803691238  # its product with a small integer is exact
_LN2_LOW = 1.9082149292705877e-10
_ROUND = 6755399441055744.0  # 1.5 · 2⁵²: adding and subtracting it rounds to an integer
_EXPONENT_BIAS = 1023.0 + 4503599627370496.0


def score_compiled(tile: Tile, selection: Selection, need_gradient: bool) -> TileScore:
    """As ``score_by_prefix_sums``, for float32 on the CPU; overwrites ``tile.student``, where ``pull`` is returned."""
    positives = tile.positives
    lower, upper = selection.bounds(tile.student.gather(1, positives.columns), selection.margin)
    anchors = tile.student.shape[0]
    divergence = torch.empty(anchors, dtype=torch.float64)
    tuples, negatives = torch.empty(anchors, dtype=torch.int64), torch.empty(anchors, dtype=torch.int64)
    _score(
        *(tensor.numpy() for tensor in (tile.student, tile.teacher, positives.columns, positives.exist, lower, upper)),
        1 / selection.temperature,
        need_gradient,
        torch.get_num_threads(),
        *(tensor.numpy() for tensor in (divergence, tuples, negatives)),
    )
    return TileScore(divergence.sum(), tuples.sum(), negatives.sum(), tile.student if need_gradient else None)


def finish_distances_compiled(inner: Tensor, squares: Tensor, anchor_squares: Tensor) -> Tensor:
    """As ``finish_distances``, in one pass."""
    _finish(inner.numpy(), squares.numpy(), anchor_squares.numpy(), torch.get_num_threads())
    return inner


@njit(cache=True, parallel=True)
def _finish(inner: Array, squares: Array, anchor_squares: Array, threads: int) -> None:
    for part in prange(threads):
        for row in range(part, inner.shape[0], threads):
            own, values = anchor_squares[row], inner[row]
            for column in range(values.shape[0]):
                square = squares[column] - np.float32(2) * values[column] + own
                values[column] = math.sqrt(max(square, np.float32(0)))


@njit(cache=True, fastmath={"contract"})
def _exponentials(distances: Array, scale: float, result: Array, powers: Array) -> None:
    """exp(−D·scale), by a polynomial on [−ln 2 / 2, ln 2 / 2] and a power of 2: loops that vectorise, as exp does not."""
    for i in range(distances.shape[0]):
        x = -distances[i] * scale
        power = (x * _LOG2_E + _ROUND) - _ROUND
        r = (x - power * _LN2_HIGH) - power * _LN2_LOW
        low = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800 + r / 479001600))))
        result[i] = 1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * low))))))
        powers[i] = power + _EXPONENT_BIAS
    bits = powers.view(np.int64)
    for i in range(distances.shape[0]):
        bits[i] <<= 52
    for i in range(distances.shape[0]):
        result[i] *= powers[i]


@njit(cache=True)
def _sort_with_ends(
    distances: Array, negative: Array, exist: Array, lower: Array, upper: Array, sequence: Array
) -> tuple[int, int]:
    """Sorts the negatives that some window may hold, and the ends of the windows: (half of ``sequence``, length).

    An element is the bits of a distance and, below them, a column, N + rank for a lower end or N + P + rank for an
    upper end. The sort is stable: a negative at an end comes before it, as belongs to the interval (lower, upper].
    A lower end below 0 is before everything and is left out.
    """
    width, most = distances.shape[0], exist.shape[0]
    keys, low_keys, high_keys = distances.view(np.uint32), lower.view(np.uint32), upper.view(np.uint32)
    elements = sequence[0]
    lowest, highest = np.float32(np.inf), np.float32(-1)
    for rank in range(most):
        if exist[rank]:
            lowest, highest = min(lowest, lower[rank]), max(highest, upper[rank])
    highest = min(highest, np.float32(4))  # above every distance
    top = np.array([highest], np.float32).view(np.uint32)[0]
    length = 0
    smallest = top
    for column in range(width):
        if negative[column] and lowest < distances[column] <= highest:
            elements[length] = (np.uint64(keys[column]) << np.uint64(32)) | np.uint64(column)
            smallest = min(smallest, keys[column])
            length += 1
    for rank in range(most):
        if exist[rank]:
            if lower[rank] >= 0:
                elements[length] = (np.uint64(low_keys[rank]) << np.uint64(32)) | np.uint64(width + rank)
                smallest = min(smallest, low_keys[rank])
                length += 1
            high = min(high_keys[rank], top)
            elements[length] = (np.uint64(high) << np.uint64(32)) | np.uint64(width + most + rank)
            smallest = min(smallest, high)
            length += 1
    passes = 1
    while np.int64(top - smallest) >> (9 * passes) > 0:
        passes += 1
    for step in range(passes):
        _sort_digit(sequence[step % 2], sequence[1 - step % 2], length, np.uint64(smallest), np.uint64(9 * step))
    return passes % 2, length


@njit(cache=True)
def _sort_digit(source: Array, target: Array, length: int, smallest: int, shift: int) -> None:
    """One pass of a radix sort, by nine bits of what a distance's bits exceed the smallest by."""
    places = np.zeros(513, np.int32)
    for i in range(length):
        places[1 + ((((source[i] >> np.uint64(32)) - smallest) >> shift) & np.uint64(511))] += 1
    for digit in range(512):
        places[digit + 1] += places[digit]
    for i in range(length):
        digit = (((source[i] >> np.uint64(32)) - smallest) >> shift) & np.uint64(511)
        target[places[digit]] = source[i]
        places[digit] += 1


@njit(cache=True)
def _walk_sums(
    ordered: Array, student: Array, teacher: Array, scale: float, weights: Array, lower_sums: Array, upper_sums: Array
) -> None:
    """At either end of each window, of the negatives up to it: Σ e_T, Σ e_T·δ, Σ e_S and their number."""
    width, most = student.shape[0], lower_sums.shape[0]
    z_teacher, u, z_student, count = 0.0, 0.0, 0.0, 0.0
    for i in range(ordered.shape[0]):
        item = np.int64(ordered[i] & np.uint64(0xFFFFFFFF))
        if item < width:
            z_teacher += weights[0, item]
            u += weights[0, item] * (np.float64(student[item]) - teacher[item]) * scale
            z_student += weights[1, item]
            count += 1
        else:
            end = lower_sums[item - width] if item < width + most else upper_sums[item - width - most]
            end[0], end[1], end[2], end[3] = z_teacher, u, z_student, count


@njit(cache=True)
def _tuples(
    student: Array,
    teacher: Array,
    columns: Array,
    exist: Array,
    scale: float,
    weights: Array,
    sums: Array,
    upper_sums: Array,
) -> tuple[float, int, int]:
    """(sum of KL, tuples, negatives) of an anchor; ``sums`` [P, 4], the sums at the lower ends, becomes

    1/Z_T, 1/Z_S, the number of negatives and the pull of each positive, 0 where there is no tuple.
    """
    divergence, tuples, negatives = 0.0, 0, 0
    for rank in range(columns.shape[0]):
        members = upper_sums[rank, 3] - sums[rank, 3] if exist[rank] else 0.0
        if members > 0:
            p = columns[rank]
            z_teacher = weights[0, p] + upper_sums[rank, 0] - sums[rank, 0]
            gap = (np.float64(student[p]) - teacher[p]) * scale
            u = weights[0, p] * gap + upper_sums[rank, 1] - sums[rank, 1]
            z_student = weights[1, p] + upper_sums[rank, 2] - sums[rank, 2]
            divergence += u / z_teacher + math.log(z_student / z_teacher)
            tuples += 1
            negatives += int(members)
            pull = (weights[0, p] / z_teacher - weights[1, p] / z_student) * scale
            sums[rank, 0], sums[rank, 1] = scale / z_teacher, scale / z_student
            sums[rank, 3] = pull / student[p] if student[p] > SMALLEST_DISTANCE else 0.0
        else:
            sums[rank, 0], sums[rank, 1], sums[rank, 3] = 0.0, 0.0, 0.0
        sums[rank, 2] = members
    return divergence, tuples, negatives


@njit(cache=True)
def _walk_pull(ordered: Array, lower: Array, weights: Array, sums: Array, pull: Array) -> None:
    """Sets the pull of each negative: the sum over the windows that are open where it stands."""
    width, most = pull.shape[0], sums.shape[0]
    distances = ordered.view(np.float32)[1::2]
    of_teacher, of_student, open_windows = 0.0, 0.0, 0
    for rank in range(most):
        if lower[rank] < 0 and sums[rank, 2] > 0:
            of_teacher, of_student = of_teacher + sums[rank, 0], of_student + sums[rank, 1]
            open_windows += 1
    for i in range(ordered.shape[0]):
        item = np.int64(ordered[i] & np.uint64(0xFFFFFFFF))
        if item < width:
            if open_windows > 0:
                gradient = weights[0, item] * of_teacher - weights[1, item] * of_student
                pull[item] = gradient / max(np.float64(distances[i]), SMALLEST_DISTANCE)
        else:
            opens = item < width + most
            rank = item - width if opens else item - width - most
            if sums[rank, 2] > 0:
                sign = 1 if opens else -1
                open_windows += sign
                of_teacher, of_student = of_teacher + sign * sums[rank, 0], of_student + sign * sums[rank, 1]


@njit(cache=True, parallel=True)
def _score(
    student: Array,
    teacher: Array,
    columns: Array,
    exist: Array,
    lower: Array,
    upper: Array,
    scale: float,
    need_gradient: bool,
    threads: int,
    divergence: Array,
    tuples: Array,
    negatives: Array,
) -> None:
    """Every anchor, ``threads`` at a time."""
    width, most = student.shape[1], columns.shape[1]
    for part in prange(threads):
        weights, powers = np.empty((2, width)), np.empty(width)
        sequence = np.empty((2, width + 2 * most), np.uint64)
        lower_sums, upper_sums = np.empty((most, 4)), np.empty((most, 4))
        negative = np.ones(width, np.bool_)
        for row in range(part, student.shape[0], threads):
            near, far = student[row], teacher[row]
            _exponentials(far, scale, weights[0], powers)
            _exponentials(near, scale, weights[1], powers)
            for rank in range(most):
                negative[columns[row, rank]] = False
            half, length = _sort_with_ends(near, negative, exist[row], lower[row], upper[row], sequence)
            for rank in range(most):
                negative[columns[row, rank]] = True
            ordered = sequence[half, :length]
            lower_sums[:] = 0
            _walk_sums(ordered, near, far, scale, weights, lower_sums, upper_sums)
            divergence[row], tuples[row], negatives[row] = _tuples(
                near, far, columns[row], exist[row], scale, weights, lower_sums, upper_sums
            )
            if need_gradient:
                near[:] = 0
                _walk_pull(ordered, lower[row], weights, lower_sums, near)
                for rank in range(most):  # the padding is the anchor itself, whose pull is 0
                    near[columns[row, rank]] = lower_sums[rank, 3]
