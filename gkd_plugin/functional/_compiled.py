r"""The prefix-sum engine compiled for the CPU by Numba, where it is installed (extra ``fast``).

The mathematics of ``_prefix_sums``, one anchor at a time in cache. The ends of the windows are sorted together with
the anchor's negatives; a walk along the sorted sequence then meets every negative between the two ends of each window
that it lies in, so that running sums replace searches and prefix arrays. All in float64 but for the distances.

As many threads as torch uses. Where that is one, as in the forked workers of a DataLoader, no thread pool is touched.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gkd_plugin.functional import _kernels
from gkd_plugin.functional._tile import Selection, Tile, TileScore

__all__ = ["finish_distances_compiled", "score_compiled"]


def score_compiled(tile: Tile, selection: Selection, need_gradient: bool) -> TileScore:
    """As ``score_by_prefix_sums``, for float32 on the CPU; overwrites ``tile.student``, where ``pull`` is returned."""
    anchors, classes = tile.student.shape[0], tile.classes
    divergence = torch.empty(anchors, dtype=torch.float64)
    counts = torch.empty(2, anchors, dtype=torch.int64)
    arguments = (
        tile.student.numpy(),
        tile.teacher.numpy(),
        classes.order.numpy(),
        classes.start.numpy(),
        classes.size.numpy(),
        tile.first,
        classes.width,
        (selection.window.beyond_positive, int(selection.window.reach), np.float32(selection.margin)),
        1 / selection.temperature,
        need_gradient,
        divergence.numpy(),
        counts.numpy(),
    )
    threads = torch.get_num_threads()
    if threads > 1:
        _kernels.score(*arguments, threads)
    else:
        _kernels.score_rows(*arguments, 0, 1)
    tuples, negatives = counts.sum(dim=1).unbind()
    return TileScore(divergence.sum(), tuples, negatives, tile.student if need_gradient else None)


def finish_distances_compiled(inner: Tensor, squares: Tensor, anchor_squares: Tensor) -> Tensor:
    """As ``finish_distances``, in one pass."""
    threads = torch.get_num_threads()
    if threads > 1:
        _kernels.finish(inner.numpy(), squares.numpy(), anchor_squares.numpy(), threads)
    else:
        _kernels.finish_rows(inner.numpy(), squares.numpy(), anchor_squares.numpy(), 0, 1)
    return inner
