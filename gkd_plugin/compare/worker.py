"""Runs a cell: in this process, or in one of several that are handed one cell after another."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock, Thread

import torch
from tqdm import tqdm

from gkd_plugin.compare.inputs import inputs_of, keep_inputs
from gkd_plugin.errors import ConfigError

__all__ = ["run_cell", "start_worker"]


def run_cell(config: Path, folder: Path, seed: int, device: str | None, probe: str | None) -> str:
    """Trains a cell into its run folder, or fits its probe.

    Args:
        config: file of its configuration.
        folder: its run folder.
        seed: of every random number.
        device: goes before ``device.default``.
        probe: what is fitted to the teacher instead of training.

    Returns:
        In one line why it failed; empty where it finished.
    """
    from gkd_plugin.config.config import load_config
    from gkd_plugin.runner.probe import run_probe
    from gkd_plugin.runner.run import run_config

    try:
        inputs = inputs_of(config, probe)
        run = run_config if probe is None else partial(run_probe, probe=probe)
        run(load_config(config), folder, seed=seed, device=device)
        keep_inputs(inputs, folder)
    except Exception as error:  # whatever it is, the other cells go on
        lines = str(error).strip().splitlines() or [""]
        return lines[0] if isinstance(error, ConfigError) else f"{type(error).__name__}: {lines[-1]}"
    return ""


def start_worker(run: Callable[..., str], threads: int) -> tuple[Connection, BaseProcess]:
    """A process that calls ``run`` with the arguments that it is sent and sends back what that returns.

    It ends with this process, however that ends, in the middle of a cell too.

    Args:
        run: a function that the new process can import.
        threads: of torch.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, run, threads))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the comparison, which ends its workers
    try:
        process.start()  # inherits it, while it still imports, too
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()  # so that the end of the process is the end of what can be read
    return ours, process


def _work(connection: Connection, run: Callable[..., str], threads: int) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(RLock())  # its own is a semaphore of the system, left behind where this process is killed
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(logging.INFO)
    # several progress bars in one console; each run's log.txt has what they say
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    with suppress(EOFError):  # nothing more to run
        while True:
            connection.send(run(*connection.recv()))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
