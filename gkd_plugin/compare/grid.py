"""The grid: every cell a run folder of its own, finished ones kept, failed ones shown."""

import functools
import hashlib
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock, Thread
from typing import Any

import torch
from tqdm import tqdm

from gkd_plugin.cache.fingerprint import digest
from gkd_plugin.compare.method import Method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import read, walk
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.devices import cores
from gkd_plugin.runner.run import run_config, run_probe
from gkd_plugin.runner.run_folder import FAILED, FINISHED, package_versions, read_json, write_json
from gkd_plugin.runner.stopping import handled_by

logger = logging.getLogger(__name__)

NOT_SERVED = "not served"
_INPUTS, _PACKAGE = "inputs.json", "gkd_plugin"


@dataclass(frozen=True)
class Cell:
    """One training run of the grid: a method in a setting with a seed."""

    method: Method
    setting: Setting
    seed: int
    config: Path  # file of its configuration
    folder: Path  # of its run
    reason: str = ""  # why the method cannot serve the setting
    task: int | None = None  # number of the few-shot task; None for that of the configuration
    teacher: "Cell | None" = None  # whose student is its teacher, and is trained first

    @property
    def title(self) -> str:
        """For the log."""
        task = "" if self.task is None else f", task {self.task}"
        return f"{self.setting.title}, {self.method.name}{task}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What became of a cell: the ``summary`` of its run, or the ``reason`` in one line why there is none."""

    cell: Cell
    status: str  # FINISHED, FAILED or NOT_SERVED
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def score(self, name: str) -> float | None:
        """A figure of ``summary.final``."""
        value = self.summary.get("final", {}).get(name)
        return None if value is None else float(value)

    @property
    def seconds(self) -> tuple[float, float]:
        """Before the first update of its stages, and all; in both those of the teacher's cell."""
        teacher = {} if self.cell.teacher is None else read_json(self.cell.teacher.folder / "summary.json")
        before = float(teacher.get("wall_seconds", 0))
        return before + self.summary.get("preparation_seconds", 0), before + self.summary.get("wall_seconds", 0)


def run_grid(
    cells: Sequence[Cell],
    device: str | None = None,
    jobs: int = 1,
    score: str = "top1",
    record: Callable[[list[Result]], object] = lambda _: None,
) -> list[Result]:
    """Runs what is not finished yet, ``jobs`` cells at once; a result for each cell. A cell that fails is one, too.

    Cells whose students are others' teachers come first, whether or not they are asked for. ``record`` is given the
    results there are, before a cell runs and whenever one has ended.
    """
    results: dict[Path, Result] = {}

    def there() -> list[Result]:
        return [results[cell.folder] for cell in cells if cell.folder in results]

    told = set[str]()
    first = {cell.folder: cell for cell in cells if cell.teacher is None}
    first |= {cell.teacher.folder: cell.teacher for cell in cells if cell.teacher is not None and not cell.reason}
    for wave in filter(None, (list(first.values()), [cell for cell in cells if cell.teacher is not None])):
        known = {cell.folder: result for cell in wave if (result := _known(cell, results)) is not None}
        waiting = [cell for cell in wave if cell.folder not in known]
        counts = Counter(result.status for result in known.values())
        parts = {"to run": len(waiting), "finished already": counts[FINISHED], "not served": counts[NOT_SERVED]}
        logger.info("cells: %s", ", ".join(f"{n} {what}" for what, n in parts.items() if n or what == "to run"))
        for result in known.values():
            _log_warnings(result, told)
        results |= known
        record(there())
        in_turn = ((cell, run_cell(cell, device)) for cell in waiting)
        with closing(in_turn if jobs == 1 else _at_once(waiting, device, jobs)) as running:
            for place, (cell, reason) in enumerate(running, 1):
                summary = {} if reason else read_json(cell.folder / "summary.json")
                results[cell.folder] = result = Result(cell, FAILED if reason else FINISHED, summary, reason)
                _log(result, score, f"[{place}/{len(waiting)}]")
                _log_warnings(result, told)
                record(there())
    return there()


def _known(cell: Cell, results: Mapping[Path, Result]) -> Result | None:
    """The result of a cell that needs no run: not served, without its teacher, or finished with nothing changed since.

    ``results`` are those of the cells before it, by folder.
    """
    if cell.reason:
        return Result(cell, NOT_SERVED, reason=cell.reason)
    teacher = cell.teacher and results[cell.teacher.folder]
    if teacher and teacher.status != FINISHED:
        return Result(cell, FAILED, reason=f"its teacher ({teacher.cell.title}): {teacher.reason}")
    summary, config_file = read_json(cell.folder / "summary.json"), cell.folder / "config.yaml"
    if summary.get("status") != FINISHED or not config_file.exists():
        return None
    is_same = config_file.read_text("utf-8") == cell.config.read_text("utf-8") and summary.get("seed") == cell.seed
    reason = stale_input(cell) if is_same else "its configuration has changed since it ran"
    if reason:
        logger.info("%s: %s; it runs again", cell.title, reason)
        return None
    return Result(cell, FINISHED, summary)


def _log(result: Result, score: str, place: str) -> None:
    if result.status == FAILED:
        logger.error("%s %s: %s: %s", place, result.cell.title, result.status, result.reason)
        return
    value = result.score(score)
    shown = f"no {score}" if value is None else f"{score} {value:.2f} %"
    logger.info("%s %s: %s (%.0f s)", place, result.cell.title, shown, result.summary["wall_seconds"])


def _log_warnings(result: Result, told: set[str]) -> None:
    """What the log of a cell warns of; of texts that are equal but for their numbers the first."""
    for text in result.summary.get("warnings", []):
        kind = re.sub(r"(?<![\w.])\d+(\.\d+)?", "0", text)  # not those of key paths
        if kind not in told:
            told.add(kind)
            logger.warning("%s: %s", result.cell.title, text)


def run_cell(cell: Cell, device: str | None) -> str:
    """Trains a cell into its run folder, or fits its probe; says in one line why it failed, empty where it finished."""
    try:
        inputs = inputs_of(cell)
        if cell.method.probe is None:
            run_config(load_config(cell.config), cell.folder, seed=cell.seed, device=device, keeps_checkpoints=False)
        else:
            run_probe(load_config(cell.config), cell.folder, cell.method.probe, seed=cell.seed, device=device)
        write_json(cell.folder / _INPUTS, inputs)
    except Exception as error:  # whatever it is, the other cells go on
        lines = str(error).strip().splitlines() or [""]
        return lines[0] if isinstance(error, ConfigError) else f"{type(error).__name__}: {lines[-1]}"
    return ""


def _at_once(cells: Sequence[Cell], device: str | None, jobs: int) -> Generator[tuple[Cell, str], None, None]:
    """In one process for each job, with its share of the cores; in a new one where a cell took its process down."""
    waiting, threads = list(reversed(cells)), max(1, cores() // jobs)
    processes: dict[Any, BaseProcess] = {}  # by the connection to each
    running: dict[Any, Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                idle = processes.keys() - running.keys()
                connection = idle.pop() if idle else _start_worker(threads, processes)
                running[connection] = waiting.pop()
                connection.send((run_cell, running[connection], device))
            ready: list[Any] = wait(list(running))
            for connection in ready:
                cell = running.pop(connection)
                try:
                    reason = connection.recv()
                except (EOFError, OSError):
                    process = processes.pop(connection)
                    process.join()
                    reason = f"its process ended with exit code {process.exitcode}"
                yield cell, reason
        for connection, process in processes.items():
            connection.close()  # nothing more to run
            process.join(30)
    finally:  # after Ctrl-C too
        for process in processes.values():
            process.kill()
            process.join()


def _start_worker(threads: int, processes: dict[Any, BaseProcess]) -> Connection:
    """The connection to a new process, which calls what it is sent (function, arguments) and sends the answer back."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads))
    with handled_by(signal.SIG_IGN, [signal.SIGINT]):  # Ctrl-C is for the comparison, which ends its workers
        process.start()  # inherits it, while it still imports, too
    theirs.close()  # so that the end of the process is the end of what can be read
    processes[ours] = process
    return ours


def _work(connection: Connection, threads: int) -> None:
    Thread(target=_end_with_parent, daemon=True).start()  # however that ends, in the middle of a cell too
    tqdm.set_lock(RLock())  # its own is a semaphore of the system, left behind where this process is killed
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(logging.INFO)
    # several progress bars in one console; each run's log.txt has what they say
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    with suppress(EOFError):  # nothing more to run
        while True:
            run, *arguments = connection.recv()
            connection.send(run(*arguments))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def inputs_of(cell: Cell) -> dict[str, str | None]:
    """Input → what tells whether it is the same: the files that a configuration names, this package, others, the probe.

    Folders of images, modules of the user's own and weights that a library downloads are not looked into.
    """
    found: dict[str, str | None] = {_PACKAGE: _package(), "probe": cell.method.probe, **package_versions()}
    for text in sorted({value for value in walk(read(cell.config)) if isinstance(value, str)}):
        try:
            file = Path(text).expanduser()
            is_file = file.is_file()
        except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL, no home
            continue
        if is_file:
            found[text] = _digest(file, file.stat().st_mtime_ns, file.stat().st_size)
    return found


def stale_input(cell: Cell) -> str:
    """Says which input has changed since the cell's run began, but for files that came later; empty where none has."""
    kept, now = read_json(cell.folder / _INPUTS), inputs_of(cell)
    if _PACKAGE not in kept:
        return "what it was made from is not on record"
    return next((f"{name} has changed since it ran" for name in kept if now.get(name) != kept[name]), "")


@functools.lru_cache(maxsize=256)
def _digest(file: Path, modified: int, size: int) -> str:  # noqa: ARG001  # a changed file is read again
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()


@functools.cache
def _package() -> str:
    root = Path(__file__).parent.parent
    names = sorted(file.relative_to(root) for file in root.rglob("*.py"))
    without = ("cli.py", "compare", "diagnose")  # which only make configurations or look at results
    return digest([(name.as_posix(), (root / name).read_bytes()) for name in names if name.parts[0] not in without])
