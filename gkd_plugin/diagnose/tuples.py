"""How much stage ``embedding`` had to compare, epoch by epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from gkd_plugin.diagnose.figures import PALETTE, new_figure, save_figure
from gkd_plugin.diagnose.left_out import LeftOut

__all__ = ["report_tuples", "tuple_counts"]

_TITLES = {"tuples": "tuples (a, p, N) in a batch", "negatives": "semi-hard negatives in a tuple"}


def report_tuples(metrics: Path, folder: Path) -> dict[str, list[float]]:
    """The figures, and the picture ``tuples``.

    Args:
        metrics: a run's ``metrics.jsonl``.
        folder: where the picture goes.

    Raises:
        LeftOut: no stage counted tuples.
    """
    counts = tuple_counts(metrics)
    figure, ((*axes,),) = new_figure(8, 3.2, columns=2)
    for axis, (key, title) in zip(axes, _TITLES.items(), strict=True):
        axis.plot(counts["epoch"], counts[key], color=PALETTE[0], marker="." if len(counts["epoch"]) < 30 else None)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(0, 1.1 * max(*counts[key], 1))
    save_figure(figure, folder, "tuples")
    return counts


def tuple_counts(metrics: Path) -> dict[str, list[float]]:
    """``epoch`` (from 1, over all such stages), ``tuples`` and ``negatives``: mean over the epoch's batches.

    Raises:
        LeftOut: no row has them.
    """
    text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    rows = [row for row in rows if all(key in row for key in _TITLES)]
    if not rows:
        raise LeftOut(
            f"no epoch in {metrics} counts tuples: only the criterion 'refilled', stages 'embedding' and 'joint', does"
        )
    return {"epoch": list(range(1, len(rows) + 1)), **{key: [row[key] for row in rows] for key in _TITLES}}
