"""Colours and files of every picture; matplotlib's object-oriented interface, so that no window is ever opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["GROUPS", "PALETTE", "SUFFIXES", "new_figure", "save_figure"]

# Petroff's ten colours ("Accessible color sequences for data visualization", 2021), told apart by the colour-blind
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
GROUPS = {"known": PALETTE[0], "unknown": PALETTE[1]}  # classes that the teacher knows, and does not
SUFFIXES = ("png", "svg")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure of so many inches, and its axes as rows of a grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name.png`` and ``name.svg``; the same picture gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": name}):
        for suffix in SUFFIXES:
            metadata: Any = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=metadata)
