import csv
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.compare.compare import check_grid_folder, compare
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.report import write_csv
from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.run import evaluate_checkpoint
from tests.compare.conftest import METHODS
from tests.compare.fakes import CONFIG, RESULTS, write_config, write_few_shot, write_incremental

STUDENT_AT_AVGPOOL = "student: {forward_proc: 'forward_batch_only', forward_hook: {output: ['avgpool']}}"


def test_every_shipped_method_trains_where_the_classes_are_shared(grid):
    assert [(r.cell.method.name, r.status, r.reason) for r in grid.results] == [
        (name, "finished", "") for name in METHODS
    ]
    for result in grid.results:
        assert 0 <= result.score("top1") <= 100
        is_trained = result.cell.method.probe is None
        assert (result.cell.folder / "student.safetensors").exists() == is_trained
        epochs = [len(stage["epochs"]) for stage in result.summary["stages"].values()]
        assert sum(epochs) == (3 if is_trained else 0)  # as many updates for each method


def test_what_a_grid_leaves_behind(grid):
    folder = grid.folder / "grid"
    plots = {"top1_of_methods.png", "top1_of_methods.svg"}
    assert {path.name for path in folder.iterdir()} == {"overlap100", "results.csv", "table.txt", *plots}
    assert {path.name for path in (folder / "overlap100").iterdir()} == set(METHODS)
    assert (folder / "table.txt").read_text("utf-8") == grid.table + "\n"
    found = list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))
    assert [row["method"] for row in found] == METHODS
    for row, result in zip(found, grid.results, strict=True):
        assert float(row["top1"]) == round(result.score("top1"), 4)
    assert not (grid.folder / "somewhere").exists()


def test_the_whole_grid_again_trains_nothing(grid, monkeypatch, caplog):
    monkeypatch.chdir(grid.folder)
    monkeypatch.setattr("gkd_plugin.compare.grid.run_cell", None)
    with caplog.at_level(logging.INFO):
        table, results = compare(grid.comparison)
    assert table == grid.table
    assert [result.summary for result in results] == [result.summary for result in grid.results]
    assert f"cells: 0 to run, {len(grid.results)} finished already" in caplog.messages


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"methods": ["ce", "ce.yaml"]}, "--methods: 'ce' has the name of another method, 'ce'; rename the file"),
        ({"output": Path("tiny.yaml")}, r"^--output: tiny\.yaml is a file$"),
        ({"device": "cud"}, "--device: there is no device 'cud'"),
        ({"score": "harmonic_mean"}, "--score harmonic_mean: the test set does not tell old classes from new"),
        ({"score": "top5"}, "--score top5: is measured where there are more than 5 classes"),
        ({"score": "val_top1_last3"}, "--score val_top1_last3: no stage has a val_data_loader"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(compared, here, changes, reason):
    (here / "ce.yaml").write_text("stages: [{}]\n", encoding="utf-8")
    if changes.get("score") == "val_top1_last3":
        write_config(here, re.sub(r"    val_data_loader: *\n(      .*\n)+", "", CONFIG))
    with pytest.raises(ConfigError, match=reason):
        compared(**{"methods": ["ce"], **changes})
    assert not (here / "grid").exists()


@pytest.mark.parametrize("size", [12, 4])
def test_other_batches_in_the_second_stage_are_warned_of(compared, size, caplog, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    compared(["ce"], overrides=[f"train.stage2.train_data_loader.kwargs.batch_size={size}"])
    assert ("the two stages' train_data_loader differ" in caplog.text) == (size == 4)


def test_few_shot_tasks(compared, here):
    """Two tasks, one and two shots; what needs pairs of one class says so."""
    write_few_shot(here)
    table, results = compared(["ce", "refilled", "teacher-logreg"], ways=[3], shots=[1, 2], tasks=[0, 4])
    assert "3-way 1-shot" in table
    assert "mean ± 95 % confidence over tasks" in table
    for result in results:
        needs_pairs = result.cell.method.name == "refilled" and result.cell.setting.shots == 1
        assert result.status == ("not served" if needs_pairs else "finished"), result.reason
    folder = here / "grid" / "ways3_shots2" / "ce"
    assert {path.name for path in folder.iterdir()} == {"task0", "task4"}
    assert json.loads((folder / "task4/seed0/summary.json").read_text("utf-8"))["student"]["classes"] == 3
    rows = csv.DictReader((here / "grid/results.csv").open(encoding="utf-8"))
    assert {(row["ways"], row["shots"], row["task"], row["memory"]) for row in rows} == {
        ("3", shots, task, "") for shots in "12" for task in "04"
    }
    assert (here / "grid/top1_against_shots.png").exists()


def test_incremental_learning(compared, here):
    write_incremental(here)
    methods = ["refilled", "lwf", "joint-training", "teacher-ncm", "teacher-logreg"]
    table, results = compared(methods, memories=[0, 2], score="harmonic_mean")
    assert "harmonic_mean in %" in table
    for result in results:
        needs_memory = result.cell.method.name in ("refilled", "teacher-ncm") and result.cell.setting.memory == 0
        assert result.status == ("not served" if needs_memory else "finished"), result.reason
        assert (result.score("harmonic_mean") is None) == needs_memory


def test_a_student_that_starts_from_trained_weights(compared, here):
    """They are the teacher's, so that both have the same NCM accuracy before training."""
    weights = "    src_ckpt: 'teacher.pt'\n    src_ckpt_classifier: 'new'\n"
    write_config(here, CONFIG.replace("    dst_ckpt", f"{weights}    dst_ckpt", 1))
    torch.manual_seed(99)  # no seed of a run
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), "teacher.pt")
    _, results = compared(["scratch", "ce", "student-ncm", "teacher-ncm"], overlaps=[50.0])
    assert [result.reason for result in results] == [""] * 4
    assert results[2].score("top1") == results[3].score("top1")
    trained = (load_file(result.cell.folder / "student.safetensors") for result in results[:2])
    start = torch.load("teacher.pt")["stem.conv.weight"]
    moved = [(state["stem.conv.weight"] - start).norm() / start.norm() for state in trained]
    assert moved[1] < 0.5 < moved[0]


def test_other_methods_serve_any_teacher_and_student(compared, here):
    """A teacher of 10 classes, a student of 4 that is not timm's; what is saved and read out is the student alone."""
    wide = "depth: 10, k: 1, dropout_p: 0.0, pretrained: False, progress: False, num_classes: 4"
    teacher, student = CONFIG.split("student_model:")
    teacher = teacher.replace("num_classes: 4}\n    src_ckpt: 'teacher.pt'", "num_classes: 10}")
    for old, new in (
        ("'timm_model'", "'wide_resnet'"),
        ("model_name: 'test_byobnet', num_classes: 4", wide),
        ("student: {forward_proc: 'forward_batch_only', forward_hook: {output: ['embedding']}}", STUDENT_AT_AVGPOOL),
        ("{stage: 'embedding'}", "{stage: 'embedding', student_embedding: 'avgpool'}"),
    ):
        assert old in student
        student = student.replace(old, new)
    write_config(here, f"{teacher}student_model:{student}".replace("fakes.TinyImages", "fakes.ViewedImages"))
    *_, (first, *others) = compared(["srd", "cckd", "crd", "pkt", "rkd", "spkd"])
    assert (first.status, first.reason) == ("not served", "needs the same classes")
    plain = wide_resnet(10, 1, 0.0, num_classes=4, pretrained=False, progress=False)
    for result in others:
        assert (result.status, result.reason) == ("finished", "")
        has_projection = result.cell.method.name in ("cckd", "crd", "pkt")  # which names the embedding
        assert result.summary["final"].keys() >= ({"top1", "ncm_top1"} if has_projection else {"top1"})
        weights = result.cell.folder / "student.safetensors"
        plain.load_state_dict(load_file(weights))
        assert result.summary["student"]["parameters"] == sum(p.numel() for p in plain.parameters())
        checked = evaluate_checkpoint(load_config(result.cell.config), weights, "cpu")
        assert checked["top1"] == result.score("top1")


# --- the folder of a grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ([], None),
        (["console.log"], None),
        (["overlap50/ce/config.yaml", "notes.md"], None),  # an interrupted grid
        (["ways5/ce/task3/config.yaml"], None),
        (["results.csv of a grid", "table.txt", "notes.md"], None),
        (["overlap50/ce/config.yaml", "notes.md", "results.csv"], "'results.csv' and 2 more"),
        (["thesis.tex"], "'thesis.tex'"),
        (["results.csv"], "'results.csv'"),
        (["photos/1.jpg"], "'photos'"),
        (["config.yaml"], "'config.yaml'"),
        (["digits/config.yaml", "x.log"], "'digits'"),
    ],
)
def test_only_the_folder_of_a_grid_is_written_again(files, refused, tmp_path):
    check_grid_folder(tmp_path / "new")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "results.csv of a grid":
            write_csv(RESULTS, tmp_path / "results.csv")
        else:
            (tmp_path / name).write_text("mine,1")
    if refused is None:
        check_grid_folder(tmp_path)
    else:
        with pytest.raises(ConfigError, match=f"^--output: .* holds {refused}, which refilled compare did not write; "):
            check_grid_folder(tmp_path)
