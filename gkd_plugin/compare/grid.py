"""The grid: every cell a run folder of its own, finished ones kept, failed ones shown."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gkd_plugin.compare.inputs import inputs_of, stale_input
from gkd_plugin.compare.method import Method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.compare.worker import run_cell, start_worker

__all__ = ["Cell", "Result", "run_grid"]

logger = logging.getLogger(__name__)

_PATIENCE = 30
"""Seconds that an idle process has to end by itself."""
_NUMBER = re.compile(r"\d+(\.\d+)?")
FINISHED, FAILED, NOT_SERVED = "finished", "failed", "not served"


@dataclass(frozen=True)
class Cell:
    """One training run of the grid.

    Attributes:
        method: what is trained.
        setting: the setting.
        seed: of every random number.
        config: file of the cell's configuration.
        folder: its run folder.
        reason: why the method cannot serve the setting; empty where it can.
        task: number of the few-shot task; ``None`` for that of the configuration.
    """

    method: Method
    setting: Setting
    seed: int
    config: Path
    folder: Path
    reason: str = ""
    task: int | None = None

    @property
    def title(self) -> str:
        """For the log."""
        task = "" if self.task is None else f", task {self.task}"
        return f"{self.setting.title}, {self.method.name}{task}, seed {self.seed}"

    @property
    def repetition(self) -> tuple[int, int | None]:
        """Seed and task: what pairs cells of two methods."""
        return self.seed, self.task


@dataclass(frozen=True)
class Result:
    """What became of a cell.

    Attributes:
        cell: the cell.
        status: 'finished', 'failed' or 'not served'.
        summary: of the run, where finished.
        reason: in one line, where not.
    """

    cell: Cell
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def score(self, name: str) -> float | None:
        """A figure of ``summary.final``."""
        value = self.summary.get("final", {}).get(name)
        return None if value is None else float(value)


def run_grid(cells: Sequence[Cell], device: str | None = None, jobs: int = 1, score: str = "top1") -> list[Result]:
    """Runs what is not finished yet; a cell that fails is a result, and the grid goes on.

    Args:
        cells: in the order of the report.
        device: goes before ``device.default`` of every cell.
        jobs: processes at once, each with its share of the processor's cores.
        score: figure of ``summary.final`` that the log shows of a cell.

    Returns:
        A result for each cell, in order.
    """
    results = {id(cell): result for cell in cells if (result := _known(cell)) is not None}
    waiting = [cell for cell in cells if id(cell) not in results]
    _log_plan(list(results.values()), len(waiting))
    warned: set[str] = set()
    for known in results.values():
        _log_warnings(known, warned)
    with closing(_in_turn(waiting, device) if jobs == 1 else _at_once(waiting, device, jobs)) as running:
        for place, (cell, reason) in enumerate(running, 1):
            result = Result(cell, FAILED, reason=reason) if reason else Result(cell, FINISHED, _summary(cell) or {})
            results[id(cell)] = result
            _log(result, score, f"[{place}/{len(waiting)}]")
            _log_warnings(result, warned)
    return [results[id(cell)] for cell in cells]


def _known(cell: Cell) -> Result | None:
    """The result of a cell that needs no run: not served, or finished with nothing changed since."""
    if cell.reason:
        return Result(cell, NOT_SERVED, reason=cell.reason)
    summary, config_file = _summary(cell), cell.folder / "config.yaml"
    if summary is None or summary.get("status") != "finished" or not config_file.exists():
        return None
    is_same = config_file.read_text("utf-8") == cell.config.read_text("utf-8") and summary.get("seed") == cell.seed
    reason = "its configuration has changed since it ran"
    if is_same:
        reason = stale_input(inputs_of(cell.config, cell.method.probe), cell.folder) or ""
    if reason:
        logger.info("%s: %s; it runs again", cell.title, reason)
        return None
    return Result(cell, FINISHED, summary)


def _summary(cell: Cell) -> dict[str, Any] | None:
    """What ``summary.json`` in the cell's folder says; ``None`` where there is none."""
    try:
        summary = json.loads((cell.folder / "summary.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return summary if isinstance(summary, dict) else None


def _in_turn(cells: Sequence[Cell], device: str | None) -> Generator[tuple[Cell, str], None, None]:
    for cell in cells:
        yield cell, run_cell(*_arguments(cell, device))


def _at_once(cells: Sequence[Cell], device: str | None, jobs: int) -> Generator[tuple[Cell, str], None, None]:
    """In one process for each job, with its share of the cores; in a new one where a cell took its process down."""
    waiting, threads = list(reversed(cells)), max(1, (os.cpu_count() or 1) // jobs)
    processes: dict[Any, BaseProcess] = {}  # by the connection to each
    running: dict[Any, Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                if len(processes) == len(running):  # none is idle
                    connection, process = start_worker(run_cell, threads)
                    processes[connection] = process
                connection = next(iter(processes.keys() - running.keys()))
                running[connection] = waiting.pop()
                connection.send(_arguments(running[connection], device))
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
            process.join(_PATIENCE)
    finally:  # after Ctrl-C too
        for process in processes.values():
            process.kill()
            process.join()


def _arguments(cell: Cell, device: str | None) -> tuple[Any, ...]:
    return cell.config, cell.folder, cell.seed, device, cell.method.probe


def _log(result: Result, score: str, place: str) -> None:
    if result.status == FINISHED:
        value = result.score(score)
        shown = f"no {score}" if value is None else f"{score} {value:.2f} %"
        logger.info("%s %s: %s (%.0f s)", place, result.cell.title, shown, result.summary["wall_seconds"])
    else:
        logger.error("%s %s: %s: %s", place, result.cell.title, result.status, result.reason)


def _log_plan(known: Sequence[Result], waiting: int) -> None:
    """How many cells there are, and what becomes of them."""
    counts = Counter(result.status for result in known)
    parts = [f"{waiting} to run"]
    parts += [f"{counts[FINISHED]} finished already"] if counts[FINISHED] else []
    parts += [f"{counts[NOT_SERVED]} not served"] if counts[NOT_SERVED] else []
    logger.info("cells: %s", ", ".join(parts))


def _log_warnings(result: Result, told: set[str]) -> None:
    """What the log of a cell warns of; of texts that are equal but for their numbers the first."""
    for text in result.summary.get("warnings", []):
        kind = _NUMBER.sub("0", text)
        if kind not in told:
            told.add(kind)
            logger.warning("%s: %s", result.cell.title, text)
