"""The compiled engine's loops. Every function here is Numba's: no tensors, no objects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

__all__ = [
    "REACH_ANY",
    "REACH_MARGIN",
    "SMALLEST_DISTANCE",
    "exponentials",
    "finish",
    "finish_rows",
    "score",
    "score_rows",
]

Array = NDArray[Any]
Scalar = Any
Window = tuple[bool, int, Any]
Interval = tuple[Any, Any]

# Numba keeps what it compiled until this file changes: these repeat ``_tile`` and ``mining``, and a test compares them.
SMALLEST_DISTANCE = 1e-6
REACH_MARGIN, REACH_ANY = 1, 2

_BEFORE, _BEYOND = -1.0, 4.0  # distances are in [0, 2]

_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.6931471803691238  # its product with a small integer is exact
_LN2_LOW = 1.9082149292705877e-10
_ROUND = 6755399441055744.0  # 1.5 · 2⁵²: adding and subtracting it rounds to an integer
_EXPONENT_BIAS = 1023.0 + 4503599627370496.0


def _compile(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``njit``, with what it compiles kept on disk where Numba finds a folder that it may write to."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no such folder
            return njit(**options)(function)

    return decorate


@_compile()
def finish_rows(inner: Array, squares: Array, anchor_squares: Array, part: int, parts: int) -> None:
    """√max(0, ‖x_a‖² + ‖x_n‖² − 2·x_a·x_n) in place, in every row of a part."""
    for row in range(part, inner.shape[0], parts):
        own, values = anchor_squares[row], inner[row]
        for column in range(values.shape[0]):
            square = squares[column] - np.float32(2) * values[column] + own
            values[column] = math.sqrt(max(square, np.float32(0)))


@_compile(parallel=True)
def finish(inner: Array, squares: Array, anchor_squares: Array, threads: int) -> None:
    """Each part in a thread of its own."""
    for part in prange(threads):
        finish_rows(inner, squares, anchor_squares, part, threads)


@_compile(fastmath={"contract"})
def exponentials(distances: Array, scale: Scalar, result: Array, powers: Array) -> None:
    """exp(−D·scale), by a polynomial on ±ln 2 / 2 and a power of 2: loops that vectorise, as a call of exp does not."""
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


@_compile()
def _ends(distances: Array, columns: Array, own: Scalar, window: Window, ends: Array) -> Interval:
    """Writes (lower, upper) of each positive to ``ends`` [2, P], as ``Window.ends``; returns the widest interval."""
    beyond_positive, reach, margin = window
    lowest, highest = np.float32(_BEYOND), np.float32(_BEFORE)
    for rank in range(columns.shape[0]):
        if columns[rank] != own:
            distance = distances[columns[rank]]
            ends[0, rank] = distance if beyond_positive else np.float32(_BEFORE)
            ends[1, rank] = distance
            if reach == REACH_ANY:
                ends[1, rank] = _BEYOND
            elif reach == REACH_MARGIN:
                ends[1, rank] = min(_largest_within(distance, margin), np.float32(_BEYOND))
            lowest, highest = min(lowest, ends[0, rank]), max(highest, ends[1, rank])
    return lowest, highest


@_compile()
def _largest_within(distance: Scalar, margin: Scalar) -> Scalar:
    """θ(d), as ``largest_within_margin``."""
    found = np.nextafter(distance + margin, np.float32(np.inf))
    while np.float32(found - distance) > margin:
        found = np.nextafter(found, np.float32(-np.inf))
    return found


@_compile()
def _sort_with_ends(
    distances: Array, negative: Array, columns: Array, own: Scalar, ends: Array, widest: Interval, sequence: Array
) -> tuple[int, int]:
    """Sorts the negatives that some window may hold, and the ends of the windows: (half of ``sequence``, length).

    An element is the bits of a distance and, below them, a column, N + rank for a lower end or N + P + rank for an
    upper end. The sort is stable: a negative at an end comes before it, as belongs to the interval (lower, upper].
    A lower end below 0 is before everything and is left out.
    """
    width, most = distances.shape[0], columns.shape[0]
    keys, end_keys = distances.view(np.uint32), ends.view(np.uint32)
    elements = sequence[0]
    length = 0
    smallest, largest = np.uint32(0xFFFFFFFF), np.uint32(0)
    for column in range(width):
        if negative[column] and widest[0] < distances[column] <= widest[1]:
            elements[length] = (np.uint64(keys[column]) << np.uint64(32)) | np.uint64(column)
            smallest, largest = min(smallest, keys[column]), max(largest, keys[column])
            length += 1
    for rank in range(most):
        for end in range(2):
            if columns[rank] != own and ends[end, rank] >= 0:
                key = end_keys[end, rank]
                elements[length] = (np.uint64(key) << np.uint64(32)) | np.uint64(width + end * most + rank)
                smallest, largest = min(smallest, key), max(largest, key)
                length += 1
    passes = 1
    while length > 0 and np.int64(largest - smallest) >> (9 * passes) > 0:
        passes += 1
    for step in range(passes):
        _sort_digit(sequence[step % 2], sequence[1 - step % 2], length, np.uint64(smallest), np.uint64(9 * step))
    return passes % 2, length


@_compile()
def _sort_digit(source: Array, target: Array, length: int, smallest: Scalar, shift: Scalar) -> None:
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


@_compile()
def _walk_sums(
    ordered: Array, student: Array, teacher: Array, scale: Scalar, weights: Array, lower_sums: Array, upper_sums: Array
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


@_compile()
def _tuples(
    student: Array,
    teacher: Array,
    columns: Array,
    own: Scalar,
    scale: Scalar,
    weights: Array,
    sums: Array,
    upper_sums: Array,
) -> tuple[float, int, int]:
    """Gives (sum of KL, tuples, negatives) of an anchor.

    Replaces ``sums`` [P, 4], those at the lower ends, by 1/(τ·Z_T), 1/(τ·Z_S), the number of negatives and the pull of
    each positive; 0 where there is no tuple.
    """
    divergence, tuples, negatives = 0.0, 0, 0
    for rank in range(columns.shape[0]):
        members = upper_sums[rank, 3] - sums[rank, 3] if columns[rank] != own else 0.0
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


@_compile()
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


@_compile()
def score_rows(
    student: Array,
    teacher: Array,
    order: Array,
    start: Array,
    size: Array,
    first: int,
    most: int,
    window: Window,
    scale: Scalar,
    need_gradient: bool,
    divergence: Array,
    counts: Array,
    part: int,
    parts: int,
) -> None:
    """Every anchor of a part: its sums, and its pull in place of its distances."""
    width = student.shape[1]
    weights, powers = np.empty((2, width)), np.empty(width)
    sequence = np.empty((2, width + 2 * most), np.uint64)
    all_ends, all_sums = np.empty((2, most), np.float32), np.empty((2, most, 4))
    negative = np.ones(width, np.bool_)
    for row in range(part, student.shape[0], parts):
        near, far, own = student[row], teacher[row], first + row
        columns = order[start[own] : start[own] + size[own]]
        ends, sums = all_ends[:, : size[own]], all_sums[:, : size[own]]
        exponentials(far, scale, weights[0], powers)
        exponentials(near, scale, weights[1], powers)
        widest = _ends(near, columns, own, window, ends)
        negative[columns] = False
        half, length = _sort_with_ends(near, negative, columns, own, ends, widest, sequence)
        negative[columns] = True
        ordered = sequence[half, :length]
        sums[:] = 0
        _walk_sums(ordered, near, far, scale, weights, sums[0], sums[1])
        divergence[row], counts[0, row], counts[1, row] = _tuples(
            near, far, columns, own, scale, weights, sums[0], sums[1]
        )
        if need_gradient:
            near[:] = 0
            _walk_pull(ordered, ends[0], weights, sums[0], near)
            for rank in range(columns.shape[0]):
                near[columns[rank]] = sums[0, rank, 3]


@_compile(parallel=True)
def score(
    student: Array,
    teacher: Array,
    order: Array,
    start: Array,
    size: Array,
    first: int,
    most: int,
    window: Window,
    scale: Scalar,
    need_gradient: bool,
    divergence: Array,
    counts: Array,
    threads: int,
) -> None:
    """Each part in a thread of its own."""
    for part in prange(threads):
        score_rows(
            student,
            teacher,
            order,
            start,
            size,
            first,
            most,
            window,
            scale,
            need_gradient,
            divergence,
            counts,
            part,
            threads,
        )
