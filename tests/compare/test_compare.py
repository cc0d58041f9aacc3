import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.compare.compare import Comparison, check_grid_folder, compare
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.plot import plot_names
from gkd_plugin.compare.report import write_csv
from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.run import evaluate_checkpoint
from tests.compare.conftest import METHODS
from tests.compare.fakes import CONFIG, write_config, write_few_shot, write_incremental
from tests.compare.results import RESULTS


def test_every_shipped_method_trains_where_the_classes_are_shared(grid):
    assert [(r.cell.method.name, r.status, r.reason) for r in grid.results] == [
        (name, "finished", "") for name in METHODS
    ]
    for result in grid.results:
        assert 0 <= result.score("top1") <= 100
        assert (result.cell.folder / "student.safetensors").exists() == (result.cell.method.probe is None)


def test_every_method_makes_the_same_number_of_updates(grid):
    for result in (result for result in grid.results if not result.cell.method.probe):
        assert sum(stage["num_epochs"] for stage in result.summary["stages"].values()) == 3
        assert sum(len(stage["epochs"]) for stage in result.summary["stages"].values()) == 3


def test_what_a_grid_leaves_behind(grid, rows):
    folder = grid.folder / "grid"
    plots = {"top1_of_methods.png", "top1_of_methods.svg"}
    assert {path.name for path in folder.iterdir()} == {"overlap100", "results.csv", "table.txt", *plots}
    assert {path.name for path in (folder / "overlap100").iterdir()} == set(METHODS)
    assert (folder / "table.txt").read_text("utf-8") == grid.table + "\n"
    found = rows(folder / "results.csv")
    assert [row["method"] for row in found] == METHODS
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


def test_a_device_that_is_not_there_is_told_before_anything_runs(here):
    wanted = Comparison(here / "tiny.yaml", methods=["ce"], seeds=[0], output=here / "grid", device="cud")
    with pytest.raises(ConfigError, match="--device: there is no device 'cud'"):
        compare(wanted)
    assert not (here / "grid").exists()


def test_few_shot_tasks(here, rows):
    """Two tasks, one and two shots; what needs pairs of one class says so."""
    wanted = Comparison(
        write_few_shot(here),
        methods=["ce", "refilled", "teacher-logreg"],
        seeds=[0],
        output=here / "grid",
        ways=[3],
        shots=[1, 2],
        tasks=[0, 4],
        overrides=["train.stage2.num_epochs=1"],
        device="cpu",
    )
    table, results = compare(wanted)
    assert "3-way 1-shot" in table
    assert "mean ± 95 % confidence over tasks" in table
    for result in results:
        needs_pairs = result.cell.method.name == "refilled" and result.cell.setting.shots == 1
        expected = ("not served", "needs two shots or ClassBalancedBatchSampler") if needs_pairs else ("finished", "")
        assert (result.status, result.reason) == expected
    folder = here / "grid" / "ways3_shots2" / "ce"
    assert {path.name for path in folder.iterdir()} == {"task0", "task4"}
    assert json.loads((folder / "task4/seed0/summary.json").read_text("utf-8"))["student"]["classes"] == 3
    found = rows(here / "grid/results.csv")
    assert {(row["ways"], row["shots"], row["task"], row["memory"]) for row in found} == {
        ("3", shots, task, "") for shots in "12" for task in "04"
    }
    assert (here / "grid/top1_against_shots.png").exists()


def test_a_student_that_starts_from_trained_weights(here):
    """They are the teacher's, so that both have the same NCM accuracy before training."""
    text = CONFIG.replace("    dst_ckpt", "    src_ckpt: 'teacher.pt'\n    src_ckpt_classifier: 'new'\n    dst_ckpt", 1)
    config = write_config(here, text)
    torch.manual_seed(99)  # no seed of a run
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), "teacher.pt")
    wanted = Comparison(
        config,
        methods=["scratch", "ce", "student-ncm", "teacher-ncm"],
        seeds=[0],
        output=here / "grid",
        overlaps=[50.0],
        overrides=["train.stage2.num_epochs=1"],
        device="cpu",
    )
    _, results = compare(wanted)
    assert [result.reason for result in results] == [""] * 4
    assert results[2].score("top1") == results[3].score("top1")
    trained = (load_file(result.cell.folder / "student.safetensors") for result in results[:2])
    start = torch.load("teacher.pt")["stem.conv.weight"]
    moved = [(weights["stem.conv.weight"] - start).norm() / start.norm() for weights in trained]
    assert moved[1] < 0.5 < moved[0]


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("harmonic_mean", "the test set does not tell old classes from new"),
        ("top5", "is measured where there are more than 5 classes"),
        ("val_top1_last3", "no stage has a val_data_loader"),
    ],
)
def test_a_score_that_no_cell_would_have_is_told_before_anything_trains(here, score, reason):
    text = re.sub(r"    val_data_loader: *\n(      .*\n)+", "", CONFIG) if score.startswith("val") else CONFIG
    config = write_config(here, text)
    wanted = Comparison(config, methods=["ce"], seeds=[0], output=here / "grid", score=score, device="cpu")
    with pytest.raises(ConfigError, match=f"--score {score}: {reason}"):
        compare(wanted)
    assert not (here / "grid").exists()


@pytest.mark.parametrize("size", [12, 4])
def test_other_batches_in_the_second_stage_are_warned_of(here, size, caplog, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    path = f"train.stage2.train_data_loader.kwargs.batch_size={size}"
    compare(Comparison(write_config(here), ["ce"], seeds=[0], output=here / "grid", overrides=[path]))
    assert ("the two stages' train_data_loader differ" in caplog.text) == (size == 4)


def test_incremental_learning(here):
    wanted = Comparison(
        write_incremental(here),
        methods=["refilled", "lwf", "joint-training", "teacher-ncm", "teacher-logreg"],
        seeds=[0],
        output=here / "grid",
        memories=[0, 2],
        overrides=["train.stage2.num_epochs=1"],
        device="cpu",
        score="harmonic_mean",
    )
    table, results = compare(wanted)
    assert "harmonic_mean in %" in table
    for result in results:
        needs_memory = result.cell.method.name in ("refilled", "teacher-ncm") and result.cell.setting.memory == 0
        reason = "needs a sample of each class" if needs_memory else ""
        assert (result.status, result.reason) == ("not served" if needs_memory else "finished", reason)
        assert result.score("harmonic_mean") is not None or needs_memory


def test_other_methods_serve_any_teacher_and_student(here):
    """A teacher of 10 classes, a student of 4 that is not timm's; what is saved and read out is the student alone."""
    text = CONFIG.replace("num_classes: 4}\n    src_ckpt: 'teacher.pt'", "num_classes: 10}")
    wide = "depth: 10, k: 1, dropout_p: 0.0, pretrained: False, progress: False, num_classes: 4"
    before, after = text.split("student_model:")
    after = after.replace("'timm_model'", "'wide_resnet'", 1).replace(
        "model_name: 'test_byobnet', num_classes: 4", wide
    )
    text = f"{before}student_model:{after}".replace("tests.fakes.TinyImages", "tests.fakes.ViewedImages")
    text = text.replace(
        "student: {forward_proc: 'forward_batch_only', forward_hook: {output: ['embedding']}}",
        "student: {forward_proc: 'forward_batch_only', forward_hook: {output: ['avgpool']}}",
    )
    text = text.replace("{stage: 'embedding'}", "{stage: 'embedding', student_embedding: 'avgpool'}")
    wanted = Comparison(
        write_config(here, text),
        methods=["srd", "cckd", "crd", "pkt", "rkd", "spkd"],
        seeds=[0],
        output=here / "grid",
        overrides=["train.stage2.num_epochs=1"],
        device="cpu",
    )
    *_, (first, *others) = compare(wanted)
    assert (first.status, first.reason) == ("not served", "needs the same classes")
    plain = wide_resnet(10, 1, 0.0, num_classes=4, pretrained=False, progress=False)
    for result in others:
        assert (result.status, result.reason) == ("finished", "")
        has_projection = result.cell.method.name in ("cckd", "crd", "pkt")  # which names the embedding
        assert result.summary["final"].keys() >= ({"top1", "ncm_top1"} if has_projection else {"top1"})
        plain.load_state_dict(load_file(result.cell.folder / "student.safetensors"))
        assert result.summary["student"]["parameters"] == sum(p.numel() for p in plain.parameters())
        checked = evaluate_checkpoint(
            load_config(result.cell.config), result.cell.folder / "student.safetensors", "cpu"
        )
        assert checked["top1"] == result.score("top1")


# --- the folder of a grid ---------------------------------------------------------------------------------------------


def test_what_a_comparison_has_written_may_be_written_again(tmp_path):
    check_grid_folder(tmp_path / "new")
    check_grid_folder(tmp_path)
    write_csv(RESULTS, tmp_path / "results.csv")
    for name in ("table.txt", plot_names()[0]):
        (tmp_path / name).write_text("")
    for cell in ("overlap50/ce", "ways5/ce/task3"):
        (tmp_path / cell).mkdir(parents=True)
        (tmp_path / cell / "config.yaml").write_text("")
    check_grid_folder(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "results.csv").unlink()
    check_grid_folder(tmp_path)  # still that of a grid
    (tmp_path / "results.csv").write_text("mine,1")
    with pytest.raises(ConfigError, match=r"holds 'results\.csv', which is of no comparison"):
        check_grid_folder(tmp_path)


def test_a_log_may_be_there_already(tmp_path):
    (tmp_path / "console.log").touch()
    check_grid_folder(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "results.csv", "photos/1.jpg", "config.yaml", "digits/config.yaml"])
def test_a_folder_of_something_else_is_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine,1")
    first = name.partition("/")[0]
    with pytest.raises(ConfigError, match=f"^--output: .* holds '{first}', which is of no comparison; name a new fold"):
        check_grid_folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--output: .*file is a file$"):
        check_grid_folder(tmp_path / "file")
