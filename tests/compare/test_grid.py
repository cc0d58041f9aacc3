import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gkd_plugin.compare.compare import compare
from gkd_plugin.compare.grid import Cell, inputs_of, run_cell, run_grid, stale_input
from gkd_plugin.compare.setting import Setting
from gkd_plugin.errors import ConfigError
from tests.compare.fakes import CE, DIES, SLOW, run_by_seed, write_summary


@pytest.fixture
def ran(grid, monkeypatch):
    """The folders of the cells that are run, which is made to do little, where the grid ran."""
    monkeypatch.chdir(grid.folder)
    folders = []

    def run(cell, device):
        folders.append(cell.folder)
        return "did nothing"

    monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", run)
    return folders


def cell_of(grid, name="ce", **changes):
    return replace(next(result.cell for result in grid.results if result.cell.method.name == name), **changes)


def new_cells(grid, folder, *seeds):
    return [cell_of(grid, seed=seed, folder=folder / f"seed{seed}") for seed in seeds]


# --- what need not run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text.replace('"status": "finished"', '"status": "running"'),
        lambda text: text.replace('"status": "finished"', '"status": "stopped (KeyboardInterrupt)"'),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "3",
    ],
)
def test_a_cell_that_did_not_finish_runs_again(grid, ran, changed):
    cell = cell_of(grid)
    path = cell.folder / "summary.json"
    text = path.read_text("utf-8")
    try:
        path.write_text(changed(text), encoding="utf-8")
        run_grid([cell])
    finally:
        path.write_text(text, encoding="utf-8")
    assert ran == [cell.folder]


def test_another_configuration_seed_or_probe_runs_again(grid, ran, tmp_path, caplog):
    cell, probe = cell_of(grid), cell_of(grid, "teacher-ncm")
    changed = tmp_path / "config.yaml"
    changed.write_text(cell.config.read_text("utf-8").replace("lr: 0.01", "lr: 0.02"), encoding="utf-8")
    other = replace(probe, method=replace(probe.method, probe="logistic_regression"))
    with caplog.at_level(logging.INFO):
        run_grid([replace(cell, config=changed), replace(cell, seed=1), other])
    assert ran == [cell.folder, cell.folder, probe.folder]
    again = [line for line in caplog.messages if line.endswith("; it runs again")]
    assert again[0] == "overlap 100 %, ce, seed 0: its configuration has changed since it ran; it runs again"
    assert "probe" in again[2]


def test_a_cell_that_cannot_be_served_is_not_run(grid, ran):
    (result,) = run_grid([cell_of(grid, reason="needs the same classes")])
    assert ran == []
    assert (result.status, result.reason) == ("not served", "needs the same classes")


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A cell of which inputs.json says what there is."""
    monkeypatch.chdir(tmp_path)
    Path("teacher.pt").write_bytes(b"weights")
    Path("order.txt").write_text("0", encoding="utf-8")
    made = Cell(CE, Setting(), 0, Path("config.yaml"), Path())
    made.config.write_text(
        "models: {teacher_model: {src_ckpt: teacher.pt, dst_ckpt: not_there.pt}}\n"
        "datasets:\n"
        '  a: !import_call {key: x.y, init: {kwargs: {class_order: order.txt, sizes: [1, 2], text: "a\\0b"}}}\n',
        encoding="utf-8",
    )
    Path("inputs.json").write_text(json.dumps(inputs_of(made)), encoding="utf-8")
    return made


def test_inputs_are_files_anywhere_in_the_configuration_the_package_and_the_probe(cell):
    probe = replace(cell, method=replace(cell.method, probe="ncm"))
    assert set(inputs_of(probe)) >= {"gkd_plugin", "probe", "torch", "timm", "teacher.pt", "order.txt"}
    assert inputs_of(probe)["probe"] == "ncm"
    assert stale_input(cell) == ""
    Path("not_there.pt").touch()  # a file that came later is not asked for
    assert "not_there.pt" in inputs_of(cell)
    assert stale_input(cell) == ""


@pytest.mark.parametrize("name", ["teacher.pt", "order.txt"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("another"), Path.unlink])
def test_another_content_or_a_file_that_is_gone(cell, name, change):
    change(Path(name))
    assert stale_input(cell) == f"{name} has changed since it ran"


@pytest.mark.parametrize("name", ["probe", "gkd_plugin", "torch"])
def test_another_probe_or_version(cell, name):
    Path("inputs.json").write_text(json.dumps({**inputs_of(cell), name: "before"}), encoding="utf-8")
    assert stale_input(cell) == f"{name} has changed since it ran"


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_run_folder_that_does_not_say(cell, content):
    Path("inputs.json").unlink()
    if content is not None:
        Path("inputs.json").write_text(content, encoding="utf-8")
    assert stale_input(cell) == "what it was made from is not on record"


# --- what the log says -----------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch):
    """Gives cells what their seeds say: a reason why they failed, or figures and warnings."""

    def give(by_seed):
        def run(cell, device):
            given = by_seed[cell.seed]
            return given if isinstance(given, str) else write_summary(cell.folder, **given)

        monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", run)

    return give


@pytest.mark.parametrize(
    ("score", "shown"),
    [("top1", "top1 50.00 %"), ("val_top1_last3", "val_top1_last3 41.50 %"), ("ncm_top1", "no ncm_top1")],
)
def test_a_cell_that_fails_is_a_result_and_the_grid_goes_on(grid, tmp_path, runs, caplog, score, shown):
    runs(["x.yaml: too small", {"final": {"top1": 50.0, "val_top1_last3": 41.5}}])
    with caplog.at_level(logging.INFO):
        failed, finished = run_grid(new_cells(grid, tmp_path, 0, 1), score=score)
    assert (failed.status, failed.reason, failed.score("top1")) == ("failed", "x.yaml: too small", None)
    assert (finished.status, finished.score("top1")) == ("finished", 50.0)
    assert caplog.messages == [
        "cells: 2 to run",
        "[1/2] overlap 100 %, ce, seed 0: failed: x.yaml: too small",
        f"[2/2] overlap 100 %, ce, seed 1: {shown} (2 s)",
    ]


def test_warnings_of_cells_are_told_once(grid, tmp_path, runs, caplog):
    """Texts that differ in their numbers alone are the same."""
    runs([{"final": {}, "warnings": ["T_max: 3", f"near chance: {25 + seed}.5 %", "ab"[seed]]} for seed in (0, 1)])
    run_grid(new_cells(grid, tmp_path, 0, 1))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    told = [line.removeprefix("overlap 100 %, ce, seed ") for line in told]
    assert told == ["0: T_max: 3", "0: near chance: 25.5 %", "0: a", "1: b"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("x.yaml: too small\n  more"), "x.yaml: too small"),
        (RuntimeError("Caught it\nout of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_why_a_cell_failed_is_one_line(cell, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    Path("inputs.json").unlink()
    monkeypatch.setattr("gkd_plugin.compare.grid.load_config", fail)
    assert run_cell(cell, None) == reason
    assert not Path("inputs.json").exists()


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_cell_that_ends_its_process_fails_alone_and_ctrl_c_ends_the_processes(grid, tmp_path, monkeypatch):
    """One process is busy; in the other's place comes a new one, whose cell finishes. Then there is Ctrl-C."""
    done = []

    def log(result, *_):
        done.append((result.cell.seed, result.status, result.reason))
        if result.status == "finished":
            raise KeyboardInterrupt

    monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", run_by_seed)
    monkeypatch.setattr("gkd_plugin.compare.grid._log", log)
    with pytest.raises(KeyboardInterrupt):
        run_grid(new_cells(grid, tmp_path, SLOW, DIES, 0, 3), jobs=2)
    assert done == [(DIES, "failed", "its process ended with exit code 7"), (0, "finished", "")]
    pids = {path.parent.name: int(path.read_text()) for path in tmp_path.glob("*/pid")}
    assert pids.keys() == {f"seed{seed}" for seed in (SLOW, DIES, 0)}
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_two_processes_give_the_results_of_one(grid, here):
    """Bit for bit: the grid of one process ran with as many threads as each of these has."""
    methods = ["ce", "refilled-stage2-only", "teacher-ncm"]
    _, results = compare(replace(grid.comparison, methods=methods, output=here / "grid", jobs=2))
    alone = {result.cell.method.name: result for result in grid.results}
    for result in results:
        assert result.status == "finished", result.reason
        before = alone[result.cell.method.name]
        assert result.summary["final"] == before.summary["final"]
        if result.cell.method.probe is None:
            weights = [cell.folder / "student.safetensors" for cell in (result.cell, before.cell)]
            assert weights[0].read_bytes() == (grid.folder / weights[1]).read_bytes()


ASKS_TWICE = """
import os, signal, time
from pathlib import Path
from gkd_plugin.compare.grid import Cell, _start_worker
from tests.compare.fakes import CE, HALF, SLOW, run_by_seed
if __name__ == "__main__":
    processes = {}
    connection = _start_worker(1, processes)
    connection.send((run_by_seed, Cell(CE, HALF, 0, Path(), Path("first")), None))
    assert connection.recv() == ""
    os.kill(processes[connection].pid, signal.SIGINT)
    connection.send((run_by_seed, Cell(CE, HALF, SLOW, Path(), Path("slow")), None))
    while not Path("slow/pid").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_outlives_ctrl_c_and_ends_with_its_parent(tmp_path):
    """However that ends, in the middle of a cell."""
    (tmp_path / "asks.py").write_text(ASKS_TWICE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = subprocess.run([sys.executable, "asks.py"], check=False, cwd=tmp_path, env=environment, timeout=300)
    assert asked.returncode == -signal.SIGKILL
    worker = int((tmp_path / "slow/pid").read_text())
    for _ in range(600):
        if not is_alive(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()
