"""The problems found so far, and how they name a place and a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from gkd_plugin.config.tagged import Tagged

__all__ = ["Report", "at", "shown"]

_WORD = {True: "true", False: "false", None: "nothing"}


class Report:
    """Collects the problems; a line is kept once."""

    def __init__(self, produced: Collection[str], *, needs_checkpoints: bool) -> None:
        self.needs_checkpoints = needs_checkpoints
        self.lines: list[str] = []
        self.produced = {_absolute(path) for path in produced}

    def add(self, path: str, message: str) -> None:
        """Notes a problem at a key path; an empty path for a line that names it already."""
        line = f"{path}: {message}" if path else message
        if line not in self.lines:
            self.lines.append(line)

    def will_exist(self, checkpoint: str) -> bool:
        """Whether the checkpoint is a file, an address, or written by an earlier config."""
        address = checkpoint.startswith(("http://", "https://"))
        return address or Path(checkpoint).is_file() or _absolute(checkpoint) in self.produced

    def ok_since(self, mark: int) -> bool:
        """Whether nothing was added since ``mark = len(report.lines)``."""
        return len(self.lines) == mark


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def at(path: str, key: object) -> str:
    """The key path of a part."""
    return f"{path}.{key}" if path else str(key)


def shown(value: object) -> str:
    """A value as an error message names it."""
    if isinstance(value, Tagged):
        return value.tag
    if isinstance(value, Mapping):
        return "a section"
    return _WORD[value] if value is None or isinstance(value, bool) else repr(value)
