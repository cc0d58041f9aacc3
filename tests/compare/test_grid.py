import json
import logging
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest

from gkd_plugin.compare.compare import compare
from gkd_plugin.compare.grid import Cell, Result, run_grid
from gkd_plugin.errors import ConfigError
from tests.compare.fakes import run_or_die, run_slowly


def cell_of(grid, name):
    return next(result.cell for result in grid.results if result.cell.method.name == name)


@pytest.fixture
def ran(grid, monkeypatch):
    """The folders of the cells that are run, which is made to do nothing, where the grid ran."""
    monkeypatch.chdir(grid.folder)
    folders = []

    def run(config, folder, seed, device, probe):
        folders.append(folder)
        return {"final": {"top1": 1.0}, "wall_seconds": 0.0}

    monkeypatch.setattr("gkd_plugin.compare.grid._run", run)
    return folders


def test_finished_cells_are_not_run_again(grid, ran, caplog):
    cells = [result.cell for result in grid.results]
    with caplog.at_level(logging.INFO):
        again = run_grid(cells)
    assert ran == []
    assert [result.summary for result in again] == [json.loads(json.dumps(result.summary)) for result in grid.results]
    assert f"cells: 0 to run, {len(cells)} finished already" in caplog.messages


@pytest.mark.parametrize("status", ["running", "failed", "stopped (KeyboardInterrupt)"])
def test_a_cell_that_did_not_finish_runs_again(grid, ran, status):
    cell = cell_of(grid, "ce")
    path = cell.folder / "summary.json"
    text = path.read_text("utf-8")
    try:
        path.write_text(text.replace('"status": "finished"', f'"status": "{status}"'), encoding="utf-8")
        run_grid([cell])
    finally:
        path.write_text(text, encoding="utf-8")
    assert ran == [cell.folder]


def test_a_summary_cut_short_runs_again(grid, ran):
    cell = cell_of(grid, "ce")
    path = cell.folder / "summary.json"
    text = path.read_text("utf-8")
    try:
        path.write_text(text[: len(text) // 2], encoding="utf-8")
        run_grid([cell])
    finally:
        path.write_text(text, encoding="utf-8")
    assert ran == [cell.folder]


def test_another_configuration_or_seed_runs_again(grid, ran, tmp_path, caplog):
    cell = cell_of(grid, "ce")
    changed = tmp_path / "config.yaml"
    changed.write_text(cell.config.read_text("utf-8").replace("lr: 0.01", "lr: 0.02"), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        run_grid([replace(cell, config=changed), replace(cell, seed=1)])
    assert ran == [cell.folder] * 2
    assert (
        caplog.messages.count("overlap 100 %, ce, seed 0: its configuration has changed since it ran; it runs again")
        == 1
    )


@pytest.mark.parametrize("content", ["[]", "3"])
def test_a_summary_that_is_none_runs_again(grid, ran, content):
    cell = cell_of(grid, "ce")
    path = cell.folder / "summary.json"
    text = path.read_text("utf-8")
    try:
        path.write_text(content, encoding="utf-8")
        run_grid([cell])
    finally:
        path.write_text(text, encoding="utf-8")
    assert ran == [cell.folder]


def test_another_teacher_at_the_same_place_runs_again(grid, ran, caplog):
    cells = [cell_of(grid, "kd"), cell_of(grid, "ce")]
    weights = Path("teacher.pt").read_bytes()
    try:
        Path("teacher.pt").write_bytes(weights + b"0")
        with caplog.at_level(logging.INFO):
            run_grid(cells)
    finally:
        Path("teacher.pt").write_bytes(weights)
    assert ran == [cells[0].folder]  # cross-entropy has no teacher
    assert "overlap 100 %, kd, seed 0: teacher.pt has changed since it ran; it runs again" in caplog.messages


def test_another_probe_under_the_same_name_runs_again(grid, ran):
    cell = cell_of(grid, "teacher-ncm")
    run_grid([replace(cell, method=replace(cell.method, probe="logistic_regression"))])
    assert ran == [cell.folder]


def assert_no_process_is_left():
    """Ending takes a moment."""
    for process in active_children():
        process.join(60)
    assert active_children() == []


def test_a_cell_that_takes_its_process_down_fails_alone(grid, tmp_path, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.grid._run", run_or_die)
    cells = [replace(cell_of(grid, "ce"), seed=seed, folder=tmp_path / f"seed{seed}") for seed in range(4)]
    results = run_grid(cells, jobs=2)
    assert [result.status for result in results] == ["finished", "failed", "finished", "finished"]
    assert "BrokenProcessPool" in results[1].reason
    assert_no_process_is_left()


def test_ctrl_c_ends_the_processes_and_starts_no_other_cell(grid, tmp_path, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.grid._run", run_slowly)
    monkeypatch.setattr("gkd_plugin.compare.grid._log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    cells = [replace(cell_of(grid, "ce"), seed=seed, folder=tmp_path / f"seed{seed}") for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells, jobs=2)
    assert_no_process_is_left()
    assert not (tmp_path / "seed4").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("x.yaml: too small\n  more"), "x.yaml: too small"),
        (RuntimeError("Caught it\nout of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_cell_that_fails_is_a_result_and_the_grid_goes_on(grid, tmp_path, monkeypatch, caplog, error, reason):
    def run(config, folder, seed, device, probe):
        if seed == 0:
            raise error
        return {"final": {"top1": 50.0}, "wall_seconds": 2.0}

    monkeypatch.setattr("gkd_plugin.compare.grid._run", run)
    cells = [replace(cell_of(grid, "ce"), seed=seed, folder=tmp_path / f"seed{seed}") for seed in (0, 1)]
    with caplog.at_level(logging.INFO):
        failed, finished = run_grid(cells)
    assert (failed.status, failed.reason, failed.score("top1")) == ("failed", reason, None)
    assert (finished.status, finished.score("top1")) == ("finished", 50.0)
    assert caplog.messages == [
        "cells: 2 to run",
        f"[1/2] overlap 100 %, ce, seed 0: failed: {reason}",
        "[2/2] overlap 100 %, ce, seed 1: top1 50.00 % (2 s)",
    ]


@pytest.mark.parametrize(
    ("score", "shown"), [("val_top1_last3", "val_top1_last3 41.50 %"), ("ncm_top1", "no ncm_top1")]
)
def test_the_log_shows_the_score_of_the_table(grid, tmp_path, monkeypatch, caplog, score, shown):
    summary = {"final": {"top1": 50.0, "val_top1_last3": 41.5}, "wall_seconds": 2.0}
    monkeypatch.setattr("gkd_plugin.compare.grid._run", lambda *given: summary)
    with caplog.at_level(logging.INFO):
        run_grid([replace(cell_of(grid, "ce"), folder=tmp_path / "seed0")], score=score)
    assert caplog.messages == ["cells: 1 to run", f"[1/1] overlap 100 %, ce, seed 0: {shown} (2 s)"]


def test_warnings_of_cells_are_told_once(grid, tmp_path, monkeypatch, caplog):
    def run(config, folder, seed, device, probe):
        return {"final": {}, "wall_seconds": 2.0, "warnings": ["T_max: 3", f"near chance: {25 + seed}.5 %", "ab"[seed]]}

    monkeypatch.setattr("gkd_plugin.compare.grid._run", run)
    run_grid([replace(cell_of(grid, "ce"), seed=seed, folder=tmp_path / f"seed{seed}") for seed in (0, 1)])
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    told = [line.removeprefix("overlap 100 %, ce, seed ") for line in told]
    assert told == ["0: T_max: 3", "0: near chance: 25.5 %", "0: a", "1: b"]


def test_a_cell_that_cannot_be_served_is_not_run(grid, ran):
    cell = replace(cell_of(grid, "kd"), reason="needs the same classes")
    (result,) = run_grid([cell])
    assert ran == []
    assert (result.status, result.reason) == ("not served", "needs the same classes")


def test_scores_of_a_run():
    result = Result(None, "finished", {"final": {"top1": 3, "on": "test"}})
    assert result.score("top1") == 3.0
    assert result.score("ncm_top1") is None


def test_two_processes_give_the_results_of_one(grid, here):
    """Bit for bit: the grid of one process ran with as many threads as each of these has."""
    wanted = replace(
        grid.comparison,
        methods=["ce", "refilled-stage2-only"],
        output=here / "grid",
        jobs=2,
        config=Path("tiny.yaml"),
    )
    _, results = compare(wanted)
    alone = {result.cell.method.name: result for result in grid.results}
    for result in results:
        assert result.status == "finished", result.reason
        before = alone[result.cell.method.name]
        assert result.summary["final"] == before.summary["final"]
        name = "student.safetensors"
        assert (result.cell.folder / name).read_bytes() == (before.cell.folder / name).read_bytes()


def test_a_cell_names_itself(grid):
    assert isinstance(grid.results[0].cell, Cell)
    assert cell_of(grid, "ce").title == "overlap 100 %, ce, seed 0"
