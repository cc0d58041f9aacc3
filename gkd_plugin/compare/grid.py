"""The grid: every cell a run folder of its own, finished ones kept, failed ones shown."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from gkd_plugin.compare.inputs import inputs_of, keep_inputs, stale_input
from gkd_plugin.compare.method import Method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.errors import ConfigError

__all__ = ["Cell", "Result", "run_grid"]

logger = logging.getLogger(__name__)

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
    run = _in_turn if jobs == 1 else _at_once
    with closing(run(waiting, device, jobs)) as running:
        for done, result in enumerate(running, 1):
            results[id(result.cell)] = result
            _log(result, score, f"[{done}/{len(waiting)}]")
            _log_warnings(result, warned)
    return [results[id(cell)] for cell in cells]


def _known(cell: Cell) -> Result | None:
    """The result of a cell that needs no run: not served, or finished with all that it was made from the very same."""
    if cell.reason:
        return Result(cell, NOT_SERVED, reason=cell.reason)
    summary_file, config_file = cell.folder / "summary.json", cell.folder / "config.yaml"
    if not (summary_file.exists() and config_file.exists()):
        return None
    try:
        summary = json.loads(summary_file.read_text("utf-8"))
    except json.JSONDecodeError:
        return None
    if not isinstance(summary, dict) or summary.get("status") != "finished":
        return None
    is_same = config_file.read_text("utf-8") == cell.config.read_text("utf-8") and summary.get("seed") == cell.seed
    config = "its configuration has changed since it ran"
    reason = stale_input(inputs_of(cell.config, cell.method.probe), cell.folder) if is_same else config
    if reason:
        logger.info("%s: %s; it runs again", cell.title, reason)
        return None
    return Result(cell, FINISHED, summary)


def _in_turn(cells: Sequence[Cell], device: str | None, jobs: int) -> Generator[Result, None, None]:  # noqa: ARG001
    for cell in cells:
        yield _result(cell, partial(_run, *_arguments(cell, device)))


def _at_once(cells: Sequence[Cell], device: str | None, jobs: int) -> Generator[Result, None, None]:
    workers, threads = _Workers(jobs), ThreadPoolExecutor(jobs)
    try:
        futures = {threads.submit(workers.run, *_arguments(cell, device)): cell for cell in cells}
        for future in as_completed(futures):
            yield _result(futures[future], future.result)
        workers.close()
    finally:  # after Ctrl-C too: neither the cells that wait are started nor those that run finished
        threads.shutdown(wait=False, cancel_futures=True)
        workers.stop()


class _Workers:
    """Processes that run one cell after another; a new one where a cell took its own down, which the others outlive."""

    def __init__(self, jobs: int) -> None:
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(jobs):
            self._idle.put(self._new())
        self._started: set[BaseProcess] = set()
        self._lock, self._is_stopped = Lock(), False

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), _start_worker, (self._threads,))

    def run(self, *arguments: Any) -> dict[str, Any]:
        """What :func:`_run` returns, in a process that is free; waits for one.

        Raises:
            CancelledError: the workers are stopped.
            BrokenProcessPool: the process ended.
        """
        pool = self._idle.get()
        try:
            with self._lock:
                if self._is_stopped:
                    raise CancelledError
                before = set(active_children())
                future = pool.submit(_run, *arguments)
                self._started |= set(active_children()) - before
            return future.result()
        except BrokenProcessPool:
            pool = self._new()
            raise
        finally:
            self._idle.put(pool)

    def close(self) -> None:
        """Lets the idle processes end; without that, Python warns of the semaphores that they leave."""
        while not self._idle.empty():
            self._idle.get().shutdown()

    def stop(self) -> None:
        """Ends the processes; none is started any more."""
        with self._lock:
            self._is_stopped = True
        for process in self._started:
            process.terminate()


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    logging.getLogger().setLevel(logging.INFO)
    # several progress bars in one console; each run's log.txt has what they say
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _arguments(cell: Cell, device: str | None) -> tuple[Any, ...]:
    return cell.config, cell.folder, cell.seed, device, cell.method.probe


def _run(config: Path, folder: Path, seed: int, device: str | None, probe: str | None) -> dict[str, Any]:
    from gkd_plugin.config.config import load_config
    from gkd_plugin.runner.probe import run_probe
    from gkd_plugin.runner.run import RunOptions, run_config

    options, inputs = RunOptions(output=folder, seed=seed, device=device), inputs_of(config, probe)
    run = run_config if probe is None else partial(run_probe, probe=probe)
    summary = run(load_config(config), options)
    keep_inputs(inputs, folder)
    return summary


def _result(cell: Cell, run: Callable[[], dict[str, Any]]) -> Result:
    """The cell's result; whatever it raises is shown in the table, and the other cells go on."""
    try:
        return Result(cell, FINISHED, run())
    except Exception as error:
        if not isinstance(error, ConfigError):
            logger.debug("%s", cell.title, exc_info=True)
        lines = str(error).strip().splitlines() or [""]
        reason = lines[0] if isinstance(error, ConfigError) else f"{type(error).__name__}: {lines[-1]}"
        return Result(cell, FAILED, reason=reason)


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
