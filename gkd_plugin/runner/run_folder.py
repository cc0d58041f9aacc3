"""A run folder: everything that one run leaves behind."""

from __future__ import annotations

import json
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchdistill.common.constant import LOGGING_FORMAT

from gkd_plugin.runner.checkpoints import write_atomically

__all__ = ["RunFolder", "package_versions"]

PACKAGES = ("gkd-plugin", "torch", "torchvision", "torchdistill", "timm", "accelerate", "safetensors", "numpy")
logger = logging.getLogger(__name__)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; Numba's is ``None`` where it is not installed."""
    compiled = version("numba") if find_spec("numba") else None
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "numba": compiled}


class RunFolder:
    """Writes ``config.yaml``, ``summary.json``, ``metrics.jsonl`` and ``log.txt`` of one run, on the main process.

    An earlier run in the same place is kept as ``<folder>.previous`` (one such).

    Args:
        path: the folder.
        is_main: whether this process writes.
    """

    def __init__(self, path: Path, is_main: bool = True) -> None:
        self.path = path
        self.is_main = is_main

    @property
    def student(self) -> Path:
        """The student's weights, and nothing else."""
        return self.path / "student.safetensors"

    def student_after(self, stage: str) -> Path:
        """The student's weights at the end of a stage that others follow."""
        return self.path / "stages" / f"{stage}.safetensors"

    def create(self, config_text: str) -> None:
        """Makes the folder and writes the resolved configuration."""
        if not self.is_main:
            return
        if (self.path / "summary.json").exists():
            previous = self.path.with_name(f"{self.path.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            self.path.rename(previous)
            logger.info("the earlier run in %s is kept as %s", self.path, previous)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "metrics.jsonl").unlink(missing_ok=True)
        for stale in (self.path / "stages").glob("stage*.safetensors"):
            stale.unlink()
        (self.path / "config.yaml").write_text(config_text, encoding="utf-8")

    @contextmanager
    def log_file(self) -> Iterator[None]:
        """Everything logged inside goes to ``log.txt``, torchdistill's lines too."""
        if not self.is_main:
            yield
            return
        handler = logging.FileHandler(self.path / "log.txt", mode="w", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LOGGING_FORMAT))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends one row to ``metrics.jsonl``."""
        if self.is_main:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces ``summary.json``."""
        if self.is_main:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.path / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
