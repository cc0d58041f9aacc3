import json
from dataclasses import replace

import pytest

from gkd_plugin.compare.compare import Comparison, compare
from gkd_plugin.compare.method import method_names
from gkd_plugin.errors import ConfigError


def test_every_shipped_method_trains_where_the_classes_are_shared(grid):
    assert [(r.cell.method.name, r.status, r.reason) for r in grid.results] == [
        (name, "finished", "") for name in method_names()
    ]
    for result in grid.results:
        assert 0 <= result.score("top1") <= 100
        assert (result.cell.folder / "student.safetensors").exists()


def test_every_method_makes_the_same_number_of_updates(grid):
    for result in grid.results:
        assert sum(stage["num_epochs"] for stage in result.summary["stages"].values()) == 3
        assert sum(len(stage["epochs"]) for stage in result.summary["stages"].values()) == 3


def test_what_a_grid_leaves_behind(grid, rows):
    folder = grid.folder / "grid"
    assert {path.name for path in folder.iterdir()} == {"overlap100", "results.csv", "table.txt"}
    assert {path.name for path in (folder / "overlap100").iterdir()} == set(method_names())
    assert (folder / "table.txt").read_text("utf-8") == grid.table + "\n"
    found = rows(folder / "results.csv")
    assert [row["method"] for row in found] == method_names()
    for row, result in zip(found, grid.results, strict=True):
        assert float(row["top1"]) == round(result.score("top1"), 4)
    assert not (grid.folder / "somewhere").exists()


def test_the_whole_grid_again_trains_nothing(grid, monkeypatch):
    monkeypatch.chdir(grid.folder)
    before = {r.cell.folder: (r.cell.folder / "summary.json").stat().st_mtime_ns for r in grid.results}
    table, results = compare(grid.comparison)
    assert table == grid.table
    assert {r.cell.folder: (r.cell.folder / "summary.json").stat().st_mtime_ns for r in results} == before


def test_a_changed_value_runs_again_and_keeps_the_earlier_run(grid, here):
    wanted = replace(grid.comparison, methods=["ce"], output=here / "grid", overlaps=(), seeds=[0, 1])
    (first, second), (changed, _) = (
        compare(replace(wanted, overrides=sets))[1] for sets in ((), ("train.stage2.optimizer.kwargs.lr=0.02",))
    )
    assert first.cell.folder == changed.cell.folder == here / "grid/as_configured/ce/seed0"
    assert first.summary["stages"] != changed.summary["stages"]
    assert first.summary["stages"] != second.summary["stages"]
    previous = first.cell.folder.with_name("seed0.previous") / "summary.json"
    assert json.loads(previous.read_text("utf-8"))["stages"] == first.summary["stages"]


def test_a_method_of_a_file_beside_one_of_its_name(here):
    (here / "ce.yaml").write_text("stages: [{}]\n", encoding="utf-8")
    wanted = Comparison(here / "tiny.yaml", methods=["ce", "ce.yaml"], seeds=[0], output=here / "grid")
    with pytest.raises(ConfigError, match="--methods: 'ce' has the name of another method, 'ce'; rename the file"):
        compare(wanted)
    assert not (here / "grid").exists()
