"""The folder of a grid: what is written there may take the place of an earlier grid's, and of nothing else."""

from __future__ import annotations

from pathlib import Path

from gkd_plugin.compare.plot import plot_names
from gkd_plugin.compare.report import COLUMNS
from gkd_plugin.errors import ConfigError

__all__ = ["RESULTS", "TABLE", "check_grid_folder"]

RESULTS, TABLE = "results.csv", "table.txt"


def check_grid_folder(folder: Path) -> None:
    """Refuses a folder that holds something and no earlier grid, before anything is written there.

    Where there are cells of a grid, other things may lie beside them (notes, logs), but for files of the names that a
    comparison writes.

    Raises:
        ConfigError: it is a file, or holds something that no comparison has written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    paths = sorted(folder.iterdir()) if folder.exists() else []
    others = [path.name for path in paths if not _is_ours(path) and path.suffix != ".log"]
    if any(path.is_dir() and _is_ours(path) for path in paths):
        others = [name for name in others if name == RESULTS]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(f"--output: {folder} holds {others[0]!r}{more}, which is of no comparison; name a new folder")


def _is_ours(path: Path) -> bool:
    if path.is_dir():  # a setting: <method>/config.yaml, of few-shot tasks <method>/task0/config.yaml
        return any(next(path.glob(cell), None) for cell in ("*/config.yaml", "*/task*/config.yaml"))
    if path.name == RESULTS:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(",".join(COLUMNS[:3]))
    return path.name == TABLE or path.name in plot_names()
