"""Colours, pictures and their files; matplotlib's object-oriented interface, so that no window is ever opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["GROUPS", "PALETTE", "SUFFIXES", "LeftOut", "add_legend", "new_figure", "save_figure"]

# Petroff's ten colours ("Accessible color sequences for data visualization", 2021), told apart by the colour-blind
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
GROUPS = {"known": PALETTE[0], "unknown": PALETTE[1]}  # classes that the teacher knows, and does not
SUFFIXES = ("png", "svg")
_LONGEST = 40  # characters of a name in a legend


class LeftOut(Exception):  # noqa: N818  # not an error: the other parts go on
    """A run has nothing for a part of the diagnostics; the message says why, and what would bring it in."""


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure of so many inches, and its axes as rows of a grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def add_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend below the axes with as many columns as there is room for; the figure grows by its further rows."""
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    options: dict[str, Any] = {"loc": "outside lower center", "markerscale": 2, "columnspacing": 0.8}
    single, canvas = figure.legend(handles, shown, ncols=1, **options), FigureCanvasAgg(figure)
    width = single.get_window_extent(canvas.get_renderer()).width  # type: ignore[no-untyped-call]
    single.remove()
    rows = math.ceil(len(names) / max(int(figure.bbox.width / width), 1))
    figure.set_figheight(figure.get_figheight() + 0.2 * (rows - 1))
    figure.legend(handles, shown, ncols=math.ceil(len(names) / rows), **options)


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name.png`` and ``name.svg``; the same picture gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": name}):
        for suffix in SUFFIXES:
            metadata: Any = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=metadata)
