"""How much stage ``embedding`` had to compare, epoch by epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from gkd_plugin.diagnose.figures import PALETTE, LeftOut, new_figure, save_figure

__all__ = ["report_tuples"]

_TITLES = {"tuples": "tuples (a, p, N) in a batch", "negatives": "semi-hard negatives in a tuple"}


def report_tuples(metrics: Path, folder: Path) -> dict[str, list[float]]:
    """``epoch`` (from 1, over all such stages), ``tuples`` and ``negatives``, and the picture ``tuples``.

    Args:
        metrics: a run's ``metrics.jsonl``, with means over each epoch's batches.
        folder: where the picture goes.

    Raises:
        LeftOut: no stage counted tuples.
    """
    text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    rows = [row for row in rows if _TITLES.keys() <= row.keys()]
    if not rows:
        raise LeftOut(
            f"no epoch in {metrics} counts tuples: only the criterion 'refilled', stages 'embedding' and 'joint', does"
        )
    epochs: list[float] = list(range(1, len(rows) + 1))
    counts = {key: [row[key] for row in rows] for key in _TITLES}
    figure, ((*axes,),) = new_figure(8, 3.2, columns=2)
    for axis, (key, title) in zip(axes, _TITLES.items(), strict=True):
        axis.plot(epochs, counts[key], color=PALETTE[0], marker="." if len(epochs) < 30 else None)
        axis.set(title=title, xlabel="epoch", ylim=(0, 1.1 * max(*counts[key], 1)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, folder, "tuples")
    return {"epoch": epochs, **counts}
