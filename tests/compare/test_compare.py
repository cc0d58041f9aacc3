import copy
import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.compare import grid as grid_module
from gkd_plugin.compare.compare import check_grid_folder
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.report import write_csv
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import read
from gkd_plugin.models import timm_model
from gkd_plugin.runner.run import evaluate_checkpoint
from gkd_plugin.runner.run_folder import locked, read_json, write_json
from tests.compare.conftest import METHODS
from tests.compare.fakes import FEW_SHOT, INCREMENTAL, RESULTS, TINY, write_config
from tests.runner.fakes import call, refused


def test_every_shipped_method_trains_where_the_classes_are_shared(grid):
    found = [(result.cell.method.name, result.status, result.reason) for result in grid.results]
    assert found == [(name, "finished", "") for name in METHODS]
    for result in grid.results:
        assert 0 <= result.score("top1") <= 100
        is_trained = result.cell.method.probe is None
        assert (result.cell.folder / "student.safetensors").exists() == is_trained
        epochs = [len(stage["epochs"]) for stage in result.summary["stages"].values()]
        assert sum(epochs) == (3 if is_trained else 0)  # as many updates for each method
    left = {"overlap100", "results.csv", "table.txt", "top1_of_methods.png", "top1_of_methods.svg"}
    assert {path.name for path in (grid.folder / "grid").iterdir()} == left
    assert (grid.folder / "grid/table.txt").read_text("utf-8") == grid.table + "\n"
    assert not (grid.folder / "somewhere").exists()  # the configuration's own checkpoint


NET = {"model_name": "test_byobnet", "num_classes": 4}
SMALL = "datasets.train.init.kwargs.dataset.init.kwargs.classes=7"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"methods": ["refiled"]}, "^--methods: there is no method 'refiled' or YAML file; did you mean 'ref"),
        ({"overrides": ["models.teacher_model.src_ckpt=no.pt"]}, r"tiny\.yaml: .*\.src_ckpt: no such file: no\.pt"),
        ({"overrides": ["train.stage1.criterion.kwargs.stage=classifier"]}, r"tiny\.yaml: train: .* stage 'embedding'"),
        ({"overlaps": [0], "overrides": [SMALL]}, r"overlap 0 %: datasets\.train.*: .*=4 need 8 classes, there are 7"),
        ({"methods": ["ce", "bad.yaml"], "overlaps": [0], "overrides": [SMALL]}, r"tiny\.yaml: method 'bad': "),
        ({"methods": ["ce", "ce.yaml"]}, "--methods: 'ce' has the name of another method, 'ce'; rename the file"),
        ({"output": Path("tiny.yaml")}, r"^--output: tiny\.yaml is a file$"),
        ({"device": "cud"}, "--device: there is no device 'cud'"),
        ({"score": "harmonic_mean"}, "--score harmonic_mean: no test set tells old classes from new"),
        ({"score": "top5"}, "--score top5: is measured where there are more than 5 classes"),
        ({"score": "val_top1_last3"}, "--score val_top1_last3: no stage has a val_data_loader"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(compared, here, changes, reason):
    for name, text in (("ce.yaml", "{}"), ("bad.yaml", "{student: {requires: 1}}")):
        (here / name).write_text(f"stages: [{text}]\n", encoding="utf-8")
    if changes.get("score") == "val_top1_last3":
        tree = copy.deepcopy(TINY)
        for stage in tree["train"].values():
            del stage["val_data_loader"]
        write_config(here, tree)
    refused(reason, compared, **{"methods": ["ce"], **changes})
    assert not (here / "grid").exists()


def test_a_grid_has_one_writer(compared, here):
    with locked(Path("grid")):
        refused("^grid: another run writes there", compared, ["ce"], output=Path("grid"))
    assert list(Path("grid").iterdir()) == []


@pytest.mark.parametrize("size", [12, 4])
def test_other_batches_in_the_second_stage_are_warned_of(compared, size, caplog, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    compared(["ce"], overrides=[f"train.stage2.train_data_loader.kwargs.batch_size={size}"])
    assert ("the two stages' train_data_loader differ" in caplog.text) == (size == 4)


def test_few_shot_tasks(compared, here):
    """Two tasks, one and two shots; what needs pairs of one class says so."""
    write_config(here, FEW_SHOT)
    table, results = compared(
        ["ce", "refilled", "teacher-logreg", "finetuned-kd"], ways=[3], shots=[1, 2], tasks=[0, 4]
    )
    assert "3-way 1-shot" in table
    assert "mean ± 95 % confidence over tasks" in table
    for result in results:
        needs_pairs = result.cell.method.name == "refilled" and result.cell.setting.shots == 1
        assert result.status == ("not served" if needs_pairs else "finished"), result.reason
    assert results[1].cell.folder == here / "grid/ways3_shots1/ce/task4/seed0"
    assert results[1].summary["student"]["classes"] == 3
    rows = csv.DictReader((here / "grid/results.csv").open(encoding="utf-8"))
    found = {(row["ways"], row["shots"], row["task"], row["memory"]) for row in rows}
    assert found == {("3", shots, task, "") for shots in "12" for task in "04"}


def test_incremental_learning(compared, here):
    write_config(here, INCREMENTAL)
    methods = ["refilled", "lwf", "joint-training", "teacher-ncm", "teacher-logreg", "finetuned-kd"]
    table, results = compared(methods, memories=[0, 2], score="harmonic_mean")
    assert "harmonic_mean in %" in table
    for result in results:
        needs_memory = result.cell.method.name in ("refilled", "teacher-ncm") and result.cell.setting.memory == 0
        assert result.status == ("not served" if needs_memory else "finished"), result.reason
        assert (result.score("harmonic_mean") is None) == needs_memory


def test_a_method_whose_teacher_another_method_trains(compared, monkeypatch):
    """Trained first, for each seed; kept, unless it did not finish; a student of other weights is trained again."""
    ran, fails, run_cell = [], [], grid_module.run_cell

    def run(cell, device):
        ran.append(f"{cell.method.name} {cell.seed}")
        return "too small" if cell.method.name in fails else run_cell(cell, device)

    def again(methods=("finetuned-kd",)):
        ran.clear()
        return compared(methods, overlaps=[0.0], seeds=[0, 1])[1]

    monkeypatch.setattr(grid_module, "run_cell", run)
    results = again()
    assert ran == ["finetune 0", "finetune 1", "finetuned-kd 0", "finetuned-kd 1"]
    for result in results:
        assert (result.status, result.reason) == ("finished", "")
        made = read(result.cell.folder / "config.yaml")
        teacher, folder = made["models"]["teacher_model"], result.cell.teacher.folder
        assert teacher == {"key": "timm_model", "kwargs": NET, "src_ckpt": str(folder / "student.safetensors")}
        assert folder == result.cell.folder.parents[1] / "finetune" / f"seed{result.cell.seed}"
        assert result.summary["teacher"]["ncm_top1"] > 0
        fine_tuning = read_json(folder / "summary.json")["wall_seconds"]
        assert result.seconds[0] == result.summary["preparation_seconds"] + fine_tuning
    assert [result.status for result in again(["finetuned-kd", "finetune"])] == ["finished"] * 4
    assert ran == []

    write_json(folder / "summary.json", {"status": "running"})  # interrupted; its weights are the same, bit for bit
    again()
    assert ran == ["finetune 1"]
    weights = load_file(folder / "student.safetensors")
    save_file({key: 2 * value for key, value in weights.items()}, folder / "student.safetensors")
    again()
    assert ran == ["finetuned-kd 1"]
    write_json(folder / "summary.json", {"status": "running"})
    fails.append("finetune")
    kept, lost = again()
    assert (kept.status, lost.status, ran) == ("finished", "failed", ["finetune 1"])
    assert lost.reason == "its teacher (overlap 0 %, finetune, seed 1): too small"


def test_a_method_whose_teacher_cannot_be_trained_there_says_so(compared, here):
    (here / "mine.yaml").write_text("teacher: kd\nstages: [{}]\n", encoding="utf-8")
    _, (result,) = compared(["mine.yaml"], overlaps=[0.0])
    assert (result.status, result.reason) == ("not served", "its teacher kd needs the same classes")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("teacher-ncm", "'teacher-ncm' trains nothing"),
        ("mine.yaml", "'mine.yaml' has a trained teacher"),
        ("other/ce.yaml", "'other/ce.yaml' has the name of another method, 'ce'; rename the file"),
        ("none.yaml", "none.yaml: "),
    ],
)
def test_a_teacher_that_no_method_can_train(compared, here, source, why):
    (here / "other").mkdir()
    for name, text in (("mine.yaml", f"teacher: {source}\n"), ("other/ce.yaml", "student: teacher\n")):
        (here / name).write_text(f"{text}stages: [{{}}]\n", encoding="utf-8")
    refused(f"method 'mine': teacher: {why}", compared, ["ce", "mine.yaml"])


@pytest.mark.parametrize("has_cache", [True, False])
def test_methods_of_a_configuration_of_stage_joint(compared, here, has_cache):
    """With a teacher cache, and with images that have no label: these have no part in cross-entropy."""
    tree = copy.deepcopy(TINY)
    tree["train"] = {**tree["train"]["stage2"], "criterion": {"key": "refilled", "kwargs": {"stage": "joint"}}}
    if not has_cache:
        data, more = tree["datasets"], call("tests.fakes.TinyImages", classes=1, per_class=9, seed=3)
        data["train"] = call("gkd_plugin.data.with_unlabelled", labelled=data["train"], unlabelled=more)
        mixed = {"key": "MixedBatchSampler", "kwargs": {"labelled": 8, "unlabelled": 8}}
        tree["train"]["train_data_loader"] |= {"batch_sampler": mixed, "kwargs": {"num_workers": 0}}
    write_config(here, {**tree, "teacher_cache": {"views": 2} if has_cache else None})
    projected = ["vkd", "srd-features", "inverted-projector", "queue-kl"]
    methods = ["finetuned-kd", "kd", "kd-ls", "refilled-joint-random-teacher", *projected]
    for result in compared(methods, overlaps=[100.0], overrides=[])[1]:
        assert (result.status, result.reason) == ("finished", "")
        assert len(result.summary.get("teacher_cache", [])) == has_cache


def test_a_student_that_starts_from_trained_weights(compared, here):
    """They are the teacher's, so that both have the same NCM accuracy before training."""
    start = ["models.student_model.src_ckpt=teacher.pt", "models.student_model.src_ckpt_classifier=new"]
    torch.manual_seed(99)  # no seed of a run
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), "teacher.pt")
    changes = [*start, "train.stage2.num_epochs=1"]
    _, results = compared(["scratch", "ce", "student-ncm", "teacher-ncm"], overlaps=[50.0], overrides=changes)
    assert [result.status for result in results] == ["finished"] * 4
    assert results[2].score("top1") == results[3].score("top1")
    trained = (load_file(result.cell.folder / "student.safetensors") for result in results[:2])
    start = torch.load("teacher.pt")["stem.conv.weight"]
    moved = [(state["stem.conv.weight"] - start).norm() / start.norm() for state in trained]
    assert moved[1] < 0.5 < moved[0]


def test_other_methods_serve_any_teacher_and_student(compared, here):
    """A teacher of 10 classes, a student of 4 that is not timm's; what is saved and read out is the student alone."""
    wide = "depth: 10, k: 1, dropout_p: 0.0, pretrained: False, progress: False, num_classes: 4"
    changes = [
        "models.teacher_model={key: timm_model, kwargs: {model_name: test_byobnet, num_classes: 10}}",
        f"models.student_model={{key: wide_resnet, kwargs: {{{wide}}}, dst_ckpt: somewhere/student.pt}}",
        *(f"train.stage{number}.student.forward_hook.output=[avgpool]" for number in (1, 2)),
        "train.stage1.criterion.kwargs.student_embedding=avgpool",
        "train.stage2.num_epochs=1",
        *(f"datasets.{name}.init.kwargs.dataset.key=tests.fakes.ViewedImages" for name in ("train", "val", "test")),
    ]
    with_projection = ["cckd", "crd", "pkt", "vkd", "srd-features", "inverted-projector", "queue-kl"]
    *_, (first, *others) = compared(["srd", "rkd", "spkd", *with_projection], overrides=changes)
    assert (first.status, first.reason) == ("not served", "needs the same classes")
    plain = wide_resnet(10, 1, 0.0, num_classes=4, pretrained=False, progress=False)
    for result in others:
        assert (result.status, result.reason) == ("finished", "")
        has_projection = result.cell.method.name in with_projection  # which names the embedding
        assert result.summary["final"].keys() >= ({"top1", "ncm_top1"} if has_projection else {"top1"})
        weights = result.cell.folder / "student.safetensors"
        plain.load_state_dict(load_file(weights))
        assert result.summary["student"]["parameters"] == sum(p.numel() for p in plain.parameters())
        checked = evaluate_checkpoint(load_config(result.cell.config), weights, "cpu")
        assert checked["top1"] == result.score("top1")


@pytest.mark.parametrize(
    ("files", "held"),
    [
        (["console.log"], None),
        (["results.csv of a grid", "overlap50/ce/config.yaml", "notes.md"], None),
        (["overlap50/ce/config.yaml", "notes.md", "results.csv"], "'results.csv' and 2 more"),
        (["thesis.tex"], "'thesis.tex'"),
        (["results.csv"], "'results.csv'"),
        (["digits/config.yaml", "x.log"], "'digits'"),
    ],
)
def test_only_the_folder_of_a_grid_is_written_again(files, held, tmp_path):
    check_grid_folder(tmp_path / "new")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "results.csv of a grid":
            write_csv(RESULTS, tmp_path / "results.csv")
        else:
            (tmp_path / name).write_text("mine,1")
    if held is None:
        check_grid_folder(tmp_path)
    else:
        refused(f"^--output: .* holds {held}, which refilled compare did not write; ", check_grid_folder, tmp_path)
