"""The table that ends a command: one line per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["aligned", "results_table"]

HEADER = ("run", "student", "parameters", "classes", "teacher", "epochs", "top-1 %")


def results_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The finished runs side by side, as aligned text.

    Args:
        summaries: as ``summary.json``.
    """
    return aligned([HEADER, *(_row(summary) for summary in summaries)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first row underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    student = summary["student"]
    top1 = summary["final"].get("top1")
    return (
        Path(summary["config"]).stem,
        str(student["kwargs"].get("model_name", student["key"])),
        f"{student['parameters']:,}",
        str(student["classes"] or "?"),
        _teacher(summary),
        "+".join(str(stage["num_epochs"]) for stage in summary["stages"].values()),
        "–" if top1 is None else f"{top1:.2f}",
    )


def _teacher(summary: Mapping[str, Any]) -> str:
    if "teacher" not in summary:
        return "none"
    ncm = summary["teacher"].get("ncm_top1")
    return "yes" if ncm is None else f"NCM {ncm:.1f} %"
