"""A run folder: everything that one run leaves behind; the table of several."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from torchdistill.common.constant import LOGGING_FORMAT

from gkd_plugin.config.tree import read
from gkd_plugin.errors import ConfigError

PACKAGES = ["gkd-plugin", "torch", "torchvision", "torchdistill", "timm", "accelerate", "safetensors", "numpy"]
PACKAGES += ["scikit-learn"]
_CONFIG, _SUMMARY, _METRICS, _LOG = "config.yaml", "summary.json", "metrics.jsonl", "log.txt"
_FILES = {_CONFIG, _SUMMARY, _METRICS, _LOG, "student.safetensors", "inputs.json"}
_FOLDERS = {"stages": {".safetensors"}, "diagnostics": {".json", ".png", ".svg"}}
"""What runs write into their folders, besides checkpoints that their configurations name."""
logger = logging.getLogger(__name__)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; ``None`` for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary file beside ``path``, then puts it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")  # torch.save keeps what is before the last dot
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Empty where the file holds no object, or is not there."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_run_folder(folder: Path, checkpoint: Path | None = None) -> None:
    """Refuses a file, and a folder without an earlier run that holds more than ``*.log`` and the ``checkpoint``."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    paths = [path for path in folder.iterdir() if path.suffix != ".log"] if folder.exists() else []
    names = sorted(path.name for path in paths if path != checkpoint)
    if names and "status" not in read_json(folder / _SUMMARY):
        shown = f"{', '.join(map(repr, names[:3]))}{', …' if len(names) > 3 else ''}"
        raise ConfigError(f"--output: {folder} holds {shown} and no earlier run; name a new folder")


class RunFolder:
    """Writes ``config.yaml``, ``summary.json``, ``metrics.jsonl`` and ``log.txt`` of one run, on the main process.

    The last run there is kept as ``<folder>.previous``; one before it goes, unless it holds a file that no run wrote.
    """

    def __init__(self, path: Path, is_main: bool = True) -> None:
        self.path = path
        self.is_main = is_main
        self.warnings: list[str] = []

    @property
    def student(self) -> Path:
        """The student's weights."""
        return self.path / "student.safetensors"

    def student_after(self, stage: str) -> Path:
        """The student's weights at the end of a stage that others follow."""
        return self.path / "stages" / f"{stage}.safetensors"

    def create(self, config_text: str) -> None:
        """Makes the folder and writes the resolved configuration."""
        if not self.is_main:
            return
        if "status" in read_json(self.path / _SUMMARY):
            previous = self.path.with_name(f"{self.path.name}.previous")
            if previous.exists():
                _make_room(previous)
            self.path.rename(previous)
            logger.info("the earlier run in %s is kept as %s", self.path, previous)
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in (self.path / _METRICS, *(self.path / "stages").glob("stage*.safetensors")):
            stale.unlink(missing_ok=True)
        (self.path / _CONFIG).write_text(config_text, encoding="utf-8")

    @contextmanager
    def log_file(self) -> Iterator[None]:
        """Everything logged inside goes to ``log.txt``, torchdistill's lines too; warnings are kept in ``warnings``."""
        root, path = logging.getLogger(), self.path / _LOG
        handler = logging.FileHandler(path, mode="w", encoding="utf-8") if self.is_main else logging.NullHandler()
        handler.setFormatter(logging.Formatter(LOGGING_FORMAT))
        handler.addFilter(self._keep_warning)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def _keep_warning(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno == logging.WARNING and record.name.startswith("gkd_plugin") and text not in self.warnings:
            self.warnings.append(text)
        return True

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row to ``metrics.jsonl``."""
        if self.is_main:
            with (self.path / _METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces ``summary.json``."""
        if self.is_main:
            write_json(self.path / _SUMMARY, summary)


def _make_room(previous: Path) -> None:
    """Deletes an older run, or renames it where it holds a file that no run has written."""
    try:
        models = read(previous / _CONFIG)["models"].values()
    except (ConfigError, KeyError):
        models = ()
    checkpoints = [model.get("dst_ckpt") for model in models if isinstance(model, Mapping)]
    ours = _FILES | {Path(str(path)).name for path in checkpoints if path}
    files = [path.relative_to(previous) for path in sorted(previous.rglob("*")) if path.is_file()]
    in_folder = {path: path.suffix in _FOLDERS.get(path.parts[0], ()) for path in files if len(path.parts) == 2}
    others = [path for path in files if not in_folder.get(path, path.name in ours)]
    if not others:
        shutil.rmtree(previous)
        return
    free = next(path for n in count(2) if not (path := previous.with_name(f"{previous.name}{n}")).exists())
    previous.rename(free)
    logger.info("%s holds %r, which no run has written: it is kept as %s", previous, str(others[0]), free)


def results_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Finished runs (their ``summary.json``) side by side, as aligned text."""
    rows: list[Sequence[str]] = [("run", "student", "parameters", "classes", "teacher", "epochs", "top-1 %")]
    for summary in summaries:
        student, top1 = summary["student"], summary["final"].get("top1")
        name, classes = str(student["kwargs"].get("model_name", student["key"])), str(student["classes"] or "?")
        ncm = summary.get("teacher", {}).get("ncm_top1")
        teacher = "yes" if "teacher" in summary else "none"
        if ncm is not None:
            teacher = f"NCM {ncm:.1f} %"
        epochs = "+".join(str(stage["num_epochs"]) for stage in summary["stages"].values())
        models = Path(summary["config"]).stem, name, f"{student['parameters']:,}", classes, teacher
        rows.append((*models, epochs, "–" if top1 is None else f"{top1:.2f}"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first row underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
