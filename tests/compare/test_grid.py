import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from gkd_plugin.compare.compare import compare
from gkd_plugin.compare.grid import Cell, inputs_of, run_cell, run_grid, stale_input
from gkd_plugin.compare.method import load_method
from gkd_plugin.errors import ConfigError
from tests.compare.fakes import CE, DIES, FULL, SLOW, run_by_seed, write_summary


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A cell that finished, with what it was made from."""
    monkeypatch.chdir(tmp_path)
    Path("teacher.pt").write_bytes(b"weights")
    Path("order.txt").write_text("0", encoding="utf-8")
    made = Cell(CE, FULL, 0, Path("config.yaml"), Path("run"))
    made.config.write_text(
        "models: {teacher_model: {src_ckpt: teacher.pt, dst_ckpt: not_there.pt}}\n"
        "datasets:\n"
        '  a: !import_call {key: x.y, init: {kwargs: {class_order: order.txt, sizes: [1, 2], text: "a\\0b"}}}\n',
        encoding="utf-8",
    )
    write_summary(made.folder, {"top1": 50.0}, seed=0)
    shutil.copy(made.config, made.folder)
    Path("run/inputs.json").write_text(json.dumps(inputs_of(made)), encoding="utf-8")
    return made


@pytest.fixture
def run(monkeypatch):
    """Stands in for the run of a cell, and says why it failed."""
    made = Mock(return_value="did nothing")
    monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", made)
    return made


def new_cells(folder, *seeds):
    return [Cell(CE, FULL, seed, folder / "config.yaml", folder / f"seed{seed}") for seed in seeds]


def test_a_cell_that_finished_or_cannot_be_served_is_not_run(cell, run):
    Path("not_there.pt").touch()  # a file that came later is not asked for
    assert "not_there.pt" in inputs_of(cell)
    finished, not_served = run_grid([cell, replace(cell, folder=Path("no"), reason="needs the same classes")])
    run.assert_not_called()
    assert (finished.status, finished.score("top1")) == ("finished", 50.0)
    assert (not_served.status, not_served.reason) == ("not served", "needs the same classes")


CHANGED, NO_RECORD = "its configuration has changed since it ran", "what it was made from is not on record"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("run/summary.json", '{"status": "running"}', None),
        ("run/summary.json", '{"status": "fini', None),
        ("run/summary.json", "[]", None),
        ("run/summary.json", '{"status": "finished", "seed": 1}', CHANGED),
        ("config.yaml", "models: {}", CHANGED),
        ("teacher.pt", "another", "teacher.pt has changed since it ran"),
        ("teacher.pt", None, "teacher.pt has changed since it ran"),
        ("order.txt", "1", "order.txt has changed since it ran"),
        ("run/inputs.json", None, NO_RECORD),
        ("run/inputs.json", "{}", NO_RECORD),
    ],
)
def test_what_did_not_finish_or_has_changed_runs_again(cell, run, caplog, file, content, reason):
    if content is None:
        Path(file).unlink()
    else:
        Path(file).write_text(content, encoding="utf-8")
    with caplog.at_level(logging.INFO):
        run_grid([cell])
    run.assert_called_once_with(cell, None)
    told = [line for line in caplog.messages if "runs again" in line]
    assert told == ([f"overlap 100 %, ce, seed 0: {reason}; it runs again"] if reason else [])


@pytest.mark.parametrize("name", ["probe", "gkd_plugin", "torch", "timm"])
def test_another_probe_or_version(cell, name):
    Path("run/inputs.json").write_text(json.dumps({**inputs_of(cell), name: "before"}), encoding="utf-8")
    assert stale_input(cell) == f"{name} has changed since it ran"
    assert inputs_of(replace(cell, method=load_method("teacher-ncm")))["probe"] == "ncm"


@pytest.mark.parametrize(("score", "shown"), [("val_top1_last3", "val_top1_last3 41.50 %"), ("top5", "no top5")])
def test_a_cell_that_fails_is_a_result_and_the_grid_goes_on(tmp_path, run, caplog, score, shown):
    """What has ended is on record each time, so that a stop loses nothing."""
    record = Mock()
    final = {"top1": 50.0, "val_top1_last3": 41.5}
    run.side_effect = lambda cell, _: write_summary(cell.folder, final) if cell.seed else "x.yaml: too small"
    with caplog.at_level(logging.INFO):
        failed, finished = run_grid(new_cells(tmp_path, 0, 1), score=score, record=record)
    assert [call.args for call in record.call_args_list] == [([],), ([failed],), ([failed, finished],)]
    assert (failed.status, failed.reason, failed.score("top1")) == ("failed", "x.yaml: too small", None)
    assert (finished.status, finished.score("top1")) == ("finished", 50.0)
    failure = "[1/2] overlap 100 %, ce, seed 0: failed: x.yaml: too small"
    assert caplog.messages == ["cells: 2 to run", failure, f"[2/2] overlap 100 %, ce, seed 1: {shown} (2 s)"]


def test_warnings_of_cells_are_told_once(tmp_path, run, caplog):
    """Texts that differ in their numbers alone are the same."""
    warnings = (["T_max: 3", "near: 25.5 %", "stage1.a"], ["T_max: 3", "near: 26.5 %", "stage2.a"])
    run.side_effect = lambda cell, _: write_summary(cell.folder, {}, warnings=warnings[cell.seed])
    run_grid(new_cells(tmp_path, 0, 1))
    told = [line.removeprefix("overlap 100 %, ce, seed ") for line in caplog.messages if line.startswith("overlap")]
    assert told == ["0: T_max: 3", "0: near: 25.5 %", "0: stage1.a", "1: stage2.a"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("x.yaml: too small\n  more"), "x.yaml: too small"),
        (RuntimeError("Caught it\nout of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_why_a_cell_failed_is_one_line(cell, monkeypatch, error, reason):
    monkeypatch.setattr("gkd_plugin.compare.grid.load_config", Mock(side_effect=error))
    assert run_cell(replace(cell, folder=Path("new")), None) == reason
    assert not Path("new/inputs.json").exists()


def test_a_cell_that_ends_its_process_fails_alone_and_ctrl_c_ends_the_processes(tmp_path, monkeypatch):
    """One process is busy; in the other's place comes a new one, whose cell finishes. Then there is Ctrl-C."""
    done = []

    def log(result, *_):
        done.append((result.cell.seed, result.status, result.reason))
        if result.status == "finished":
            raise KeyboardInterrupt

    monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", run_by_seed)
    monkeypatch.setattr("gkd_plugin.compare.grid._log", log)
    with pytest.raises(KeyboardInterrupt):
        run_grid(new_cells(tmp_path, SLOW, DIES, 0, 3), jobs=2)
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
    """However that ends, in the middle of a cell: the worker's end closes the output that it shares with its parent."""
    (tmp_path / "asks.py").write_text(ASKS_TWICE)
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "timeout": 300}
    asked = subprocess.run([sys.executable, "asks.py"], check=False, capture_output=True, **options)
    assert asked.returncode == -signal.SIGKILL, asked.stderr
