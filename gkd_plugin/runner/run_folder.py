"""A run folder: everything that one run leaves behind; the table of several."""

import json
import logging
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torchdistill.common.constant import LOGGING_FORMAT

from gkd_plugin.data.files import first_difference, told_unwritten, write_atomically
from gkd_plugin.errors import ConfigError

PACKAGES = ["gkd-plugin", "torch", "torchvision", "torchdistill", "timm", "accelerate", "safetensors", "numpy"]
PACKAGES += ["scikit-learn"]
FINISHED, FAILED = "finished", "failed"
_CONFIG, _SUMMARY, _METRICS, _LOG = "config.yaml", "summary.json", "metrics.jsonl", "log.txt"
CURVES, REPORT = "curves.png", "report.html"
STUDENT = "student.safetensors"
_FILES = {_CONFIG, _SUMMARY, _METRICS, _LOG, CURVES, REPORT, STUDENT, "inputs.json"}
FOLDER = "checkpoints"
LOCK = ".lock"
TENSORBOARD = "tensorboard"
_FOLDERS = {"stages": {".safetensors"}, "diagnostics": {".json", ".png", ".svg", ".html"}}
_FOLDERS["export"] = {".json", ".safetensors", ".md", ".onnx", ".data", ".pt2"}
"""What runs write into their folders, besides checkpoints that their configurations name."""
logger = logging.getLogger(__name__)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; ``None`` for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Empty where the file holds no object, or is not there."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_run_folder(folder: Path, checkpoint: Path | None = None) -> None:
    """Refuses a file, and a folder without an earlier run that holds more than ``*.log`` and the ``checkpoint``."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    paths = [path for path in folder.iterdir() if path != checkpoint] if folder.exists() else []
    names = sorted(p.name for p in paths if p.name not in (LOCK, FOLDER) and not p.suffix.startswith((".log", ".tmp")))
    if names and not holds_run(folder):
        shown = f"{', '.join(map(repr, names[:3]))}{', …' if len(names) > 3 else ''}"
        raise ConfigError(f"--output: {folder} holds {shown} and no earlier run; name a new folder")


def holds_run(folder: Path) -> bool:
    """Whether a run has begun there."""
    return "status" in read_json(folder / _SUMMARY)


def numbered(folder: Path) -> Iterator[Path]:
    """The folder itself, then those of later runs: ``x``, ``x-2``, ``x-3``."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out; ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        advice = "wait for its end, or name another --output"
        raise ConfigError(f"{folder}: another run writes there; {advice}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps it while it is open
            (folder / LOCK).unlink()
        lock.release()


class RunFolder:
    """Writes ``config.yaml``, ``summary.json``, ``metrics.jsonl`` and ``log.txt`` of one run, on the main process.

    ``earlier`` says what becomes of a run that is there: ``'aside'``, it is kept as ``<folder>.previous`` (then
    ``.previous-2`` …); ``'overwrite'``, its files are deleted; ``'resume'``, it goes on.
    """

    def __init__(self, path: Path, is_main: bool = True, earlier: str = "aside") -> None:
        self.path = path
        self.is_main = is_main
        self.earlier = earlier
        self.warnings: list[str] = []

    @property
    def summary(self) -> dict[str, Any]:
        """That of the run that is there."""
        return read_json(self.path / _SUMMARY)

    @property
    def student(self) -> Path:
        """The student's weights."""
        return self.path / STUDENT

    def student_after(self, stage: str) -> Path:
        """The student's weights at the end of a stage that others follow."""
        return self.path / "stages" / f"{stage}.safetensors"

    @property
    def is_finished(self) -> bool:
        """Whether a run has come to its end there."""
        return bool(self.summary.get("status") == FINISHED)

    def other_than(self, config_text: str, seed: int) -> str:
        """What is not as in the run that is there, a configuration or a seed; empty where there is none, or nothing."""
        if not holds_run(self.path):
            return ""
        config, begun = self.path / _CONFIG, self.summary.get("seed")
        if config.exists() and (differs := first_difference(config, config_text)):
            return f"{self.path} was begun with another configuration: {differs} ({config})"
        return "" if begun == seed else f"{self.path} was begun with --seed {begun}, not {seed}"

    @contextmanager
    def opened(self, config_text: str, seed: int = 0, before: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
        """Makes the folder that of this run, writes the resolved configuration, and keeps other processes out.

        What was logged ``before`` and is logged inside goes to ``log.txt``, torchdistill's lines too; warnings are kept
        in ``warnings``.
        """
        with ExitStack() as open_there:
            if self.is_main:
                if self.earlier == "aside" and holds_run(self.path):
                    self._move_aside()
                open_there.enter_context(locked(self.path))
                self._make_room(seed)
                write_atomically(self.path / _CONFIG, lambda file: file.write_text(config_text, encoding="utf-8"))
            handler = open_there.enter_context(self._log_file())
            for record in before:
                handler.handle(record)
            yield

    def check_is_seen(self, seconds: float = 60) -> None:
        """Refuses a folder that the main process, perhaps of another machine, has opened and this one does not see.

        A disk of the network may show it later than it is there.
        """
        end = time.monotonic() + seconds
        while not holds_run(self.path):
            if time.monotonic() > end:
                advice = "processes of several machines share one folder, on a disk that all of them see"
                raise ConfigError(f"--output: {self.path} is not where the main process writes; {advice}")
            time.sleep(0.1)

    def _move_aside(self) -> None:
        with locked(self.path):  # nobody is writing there
            pass
        names = numbered(self.path.with_name(f"{self.path.name}.previous"))
        aside = next(path for path in names if not path.exists())
        self.path.rename(aside)
        logger.info("the earlier run in %s is kept as %s", self.path, aside)

    def _make_room(self, seed: int) -> None:
        """Deletes what an earlier run wrote, unless it goes on; a summary makes the folder that of a run at once."""
        for half in self.path.rglob(".*.tmp[0-9a-f]*"):  # of write_atomically() in a process that was killed
            half.unlink(missing_ok=True)
        if self.earlier == "resume":
            if self.is_finished:
                raise ConfigError(f"--resume: {self.path} has finished meanwhile")
            if holds_run(self.path):
                return
        shutil.rmtree(self.path / FOLDER, ignore_errors=True)
        self.write_summary({"status": "running", "seed": seed})
        files = [self.path / name for name in _FILES - {_SUMMARY}]
        for name, suffixes in _FOLDERS.items():
            files += [file for file in (self.path / name).glob("*") if file.suffix in suffixes]
        for file in [*files, *(self.path / TENSORBOARD).glob("events.out.tfevents.*")]:
            file.unlink(missing_ok=True)

    @contextmanager
    def _log_file(self) -> Iterator[logging.Handler]:
        root, path = logging.getLogger(), self.path / _LOG
        mode = "a" if self.earlier == "resume" else "w"
        handler = logging.FileHandler(path, mode, encoding="utf-8") if self.is_main else logging.NullHandler()
        handler.setFormatter(logging.Formatter(LOGGING_FORMAT))
        handler.addFilter(self._keep_warning)
        root.addHandler(handler)
        try:
            yield handler
        finally:
            root.removeHandler(handler)
            handler.close()

    def _keep_warning(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno == logging.WARNING and record.name.startswith("gkd_plugin") and text not in self.warnings:
            self.warnings.append(text)
        return True

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces ``metrics.jsonl``."""
        if self.is_main:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self.path / _METRICS, lambda file: file.write_text(text, encoding="utf-8"))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row to ``metrics.jsonl``."""
        if self.is_main:
            path = self.path / _METRICS
            with told_unwritten(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces ``summary.json``."""
        if self.is_main:
            write_json(self.path / _SUMMARY, summary)


def results_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Runs (their ``summary.json``, and the ``folder``) side by side, as aligned text."""
    rows: list[Sequence[str]] = [("run", "student", "parameters", "classes", "teacher", "epochs", "top-1 %")]
    for summary in summaries:
        if "final" not in summary:
            rows.append((summary["folder"], summary["status"], *[""] * 5))
            continue
        student, top1 = summary["student"], summary["final"].get("top1")
        name, classes = str(student["kwargs"].get("model_name", student["key"])), str(student["classes"] or "?")
        ncm = summary.get("teacher", {}).get("ncm_top1")
        teacher = "yes" if "teacher" in summary else "none"
        if ncm is not None:
            teacher = f"NCM {ncm:.1f} %"
        epochs = "+".join(str(stage["num_epochs"]) for stage in summary["stages"].values())
        models = summary["folder"], name, f"{student['parameters']:,}", classes, teacher
        rows.append((*models, epochs, "–" if top1 is None else f"{top1:.2f}"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first row underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
