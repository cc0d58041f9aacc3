"""Runs of a tiny teacher and a tiny ReFilled student, and everything that they leave behind."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader
from torchdistill.common.main_util import set_seed
from torchdistill.common.yaml_util import load_yaml_file
from torchdistill.core.distillation import get_distillation_box

from gkd_plugin.config.config import checked_config, load_config
from gkd_plugin.config.stages import student_entry
from gkd_plugin.config.tree import Tagged, dump, read
from gkd_plugin.errors import ConfigError
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.losses import ClassifierStage, EmbeddingStage
from gkd_plugin.runner import run as run_module
from gkd_plugin.runner.accuracy import PROBES, student_ncm
from gkd_plugin.runner.models import build_model, start_at_centres
from gkd_plugin.runner.run import evaluate_checkpoint, run_all, run_config, run_probe
from gkd_plugin.runner.weights import load_weights
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages, cross_entropy, train_box
from tests.runner.fakes import REFILLED, TEST, cpu, equal, refused, write_configs

FILES = {"config.yaml", "log.txt", "metrics.jsonl", "student.safetensors", "summary.json"}


def run(config, output, *overrides, seed=0, device="cpu"):
    """Of a file by its stem, or of a tree."""
    if isinstance(config, str):
        config = load_config(f"{config}.yaml", overrides)
    else:
        config = checked_config(Path("changed.yaml"), config)
    return run_config(config, Path(output), seed=seed, device=device)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with teacher.yaml, student.yaml and a run of each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs(folder)
        logging.getLogger().setLevel(logging.INFO)
        run("teacher", "runs/teacher")
        run("student", "runs/student")
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text("utf-8"))


def test_the_files_of_a_run_folder(runs):
    assert {path.name for path in (runs / "runs/teacher").iterdir()} == {*FILES, "teacher.pt"}
    assert {path.name for path in (runs / "runs/student").iterdir()} == {*FILES, "student.pt", "stages"}
    assert [path.name for path in (runs / "runs/student/stages").iterdir()] == ["stage1.safetensors"]
    content = torch.load(runs / "runs/student/student.pt", weights_only=False)  # torchdistill's format
    assert content.keys() == {"model", "optimizer", "best_value", "lr_scheduler", "args"}
    assert equal(load_file(runs / "runs/student/student.safetensors"), content["model"])
    assert content["best_value"] == summary(runs / "runs/student")["stages"]["stage2"]["epochs"][-1]["top1"]


def test_summary_of_a_distillation(runs):
    made = summary(runs / "runs/student")
    assert (made["config"], made["status"], made["warnings"]) == ("student.yaml", "finished", made["warnings"])
    assert (made["seed"], made["device"], made["precision"], made["processes"]) == (0, "cpu", "no", 1)
    assert made["versions"]["torch"] in torch.__version__
    assert (made["student"]["kwargs"]["model_name"], made["student"]["classes"]) == ("test_vit", 4)
    assert made["student"]["parameters"] == sum(p.numel() for p in student_of(runs).parameters())
    assert 0 < made["wall_seconds"] < 60
    assert 0 <= made["teacher"]["ncm_top1"] <= 100
    (first,), (second,) = (made["stages"][name]["epochs"] for name in ("stage1", "stage2"))
    common = {"stage", "epoch", "lr", "loss", "images_per_second", "seconds"}
    assert first.keys() == common | {"relationship", "tuples", "negatives", "ncm_top1"}
    assert second.keys() == common | {"cross_entropy", "local_classifier", "emphasis", "top1"}
    assert first["loss"] == pytest.approx(1000 * first["relationship"], rel=1e-4)
    assert second["loss"] == pytest.approx(second["cross_entropy"] + second["local_classifier"], rel=1e-5)
    assert (made["final"]["on"], made["final"]["val_top1_last3"]) == ("test", second["top1"])
    rows = [json.loads(line) for line in (runs / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert rows == [first, second]


def test_summary_of_a_plain_training(runs):
    made = summary(runs / "runs/teacher")
    assert "teacher" not in made
    rows = made["stages"]["train"]["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert made["final"]["val_top1_last3"] == pytest.approx((rows[0]["top1"] + rows[1]["top1"]) / 2)


def student_of(runs):
    """With timm alone."""
    student = timm.create_model("test_vit", num_classes=4, img_size=32)
    student.load_state_dict(load_file(runs / "runs/student/student.safetensors"), strict=True)
    return student.eval()


@torch.no_grad()
def test_the_final_figures_are_of_the_student_in_its_file(runs):
    student, train, test = student_of(runs), TinyImages(seed=0), TinyImages(seed=2)
    final = summary(runs / "runs/student")["final"]

    def embed(images):
        return student.forward_head(student.forward_features(images), pre_logits=True)

    centres = class_centres([(embed(train.images), torch.tensor(train.targets))])
    shown = {"top1": student(test.images), "ncm_top1": nearest_class_mean(embed(test.images), centres)}
    for key, scores in shown.items():
        right = scores.argmax(1) == torch.tensor(test.targets)
        assert final[key] == pytest.approx(100 * right.double().mean().item()), key
    assert "ncm_top1" in summary(runs / "runs/teacher")["final"]


def test_evaluation_gives_the_final_figure(here):
    far = load_config("student.yaml", ["device={teacher: 'cuda:7'}"])  # a device that evaluation does not need
    found = evaluate_checkpoint(far, Path("runs/student/student.pt"), "cpu")
    assert found == {"top1": summary("runs/student")["final"]["top1"], "samples": 24}
    message = r"^--checkpoint: runs/teacher/teacher\.pt does not fit VisionTransformer: "
    refused(message, evaluate_checkpoint, far, Path("runs/teacher/teacher.pt"), "cpu")


def test_same_seed_same_bits_and_the_resolved_config_runs_again(here):
    for folder, seed in (("again", 0), ("other", 2)):
        run("runs/student/config", folder, seed=seed)
        assert Path(folder, "config.yaml").read_text("utf-8") == Path("runs/student/config.yaml").read_text("utf-8")
    files = [Path(folder, "student.safetensors").read_bytes() for folder in ("runs/student", "again", "other")]
    assert files[0] == files[1] != files[2]


def test_the_same_weights_as_a_plain_torchdistill_loop(here):
    tree = read("student.yaml")
    for section in tree["train"].values():
        del section["val_data_loader"]
    del tree["test"]
    Path("short.yaml").write_text(dump(tree), encoding="utf-8")
    made = run("short", "short", seed=3)
    assert "ncm_top1" not in made["stages"]["stage1"]["epochs"][0]
    assert made["final"] == {}

    set_seed(3)
    config = load_yaml_file("short.yaml")
    student = build_model(*student_entry(config))
    teacher = build_model("models.teacher_model", config["models"]["teacher_model"])
    device = torch.device("cpu")
    train_box(get_distillation_box(teacher, student, config["datasets"], config["train"], device, None, False, 1))
    assert equal(load_file("short/student.safetensors"), student.state_dict())


def test_stages_of_several_epochs(here, monkeypatch):
    """The student is kept at the end of each but the last; the teacher stays, and its centres are computed once."""
    trained, fits, used = {}, [], []
    save, fit, adopt = run_module.save_student, RefilledTeacher.fit_centres, RefilledTeacher.adopt_centres

    def noted(model, path, about):
        trained[path.name] = {key: value.clone() for key, value in model.state_dict().items()}
        save(model, path, about)

    monkeypatch.setattr(run_module, "save_student", noted)
    monkeypatch.setattr(RefilledTeacher, "fit_centres", lambda self, *b: (fits.append(self), fit(self, *b))[1])
    monkeypatch.setattr(RefilledTeacher, "adopt_centres", lambda self, o: (used.append((self, o)), adopt(self, o))[1])
    made = run("student", "out", "train.val_freq=9", "train.stage1.num_epochs=2", "train.stage2.num_epochs=5")
    assert load_config("out/config.yaml").tree["train"]["stage2"]["num_epochs"] == 5
    assert [row["epoch"] for row in made["stages"]["stage2"]["epochs"] if "top1" in row] == [3, 4, 5]
    assert trained.keys() == {"stage1.safetensors", "student.safetensors"}
    kept = load_file("out/stages/stage1.safetensors")
    assert equal(kept, trained["stage1.safetensors"])
    assert not equal(kept, load_file("out/student.safetensors"))
    student = build_model(*student_entry(load_config("student.yaml").tree))
    load_weights(student, "out/stages/stage1.safetensors", "stage1")
    loaders = [DataLoader(TinyImages(seed=seed), batch_size=12) for seed in (0, 1)]
    again = student_ncm(student.eval(), "embedding", *loaders, cpu())
    assert again.top1 == pytest.approx(made["stages"]["stage1"]["epochs"][-1]["ncm_top1"])
    (fitted,), ((second, adopted),) = fits, used
    assert adopted is fitted
    assert torch.equal(second.local_classifier.centres, fitted.local_classifier.centres)
    assert equal(load_file("runs/teacher/student.safetensors"), second.teacher.state_dict())


def test_bf16_runs_and_is_evaluated_alike(here):
    made = run("student", "out", "device.precision=bf16")
    assert made["precision"] == "bf16"
    config = load_config("student.yaml", ["device.precision=bf16"])
    assert evaluate_checkpoint(config, Path("out/student.safetensors"), "cpu")["top1"] == made["final"]["top1"]
    assert {value.dtype for value in load_file("out/student.safetensors").values()} == {torch.float32}
    assert cpu().mixed_precision == "no", "Accelerate's state is fresh for each run"


def test_old_and_new_classes_are_told_apart_and_memory_may_be_empty(here):
    """A plain training that never sees the old classes, as the control of incremental learning has it."""
    tree = read("teacher.yaml")
    for name, memory in (("train", 0), ("val", None), ("test", None)):
        kwargs = {"old": 2, "new": 2, "memory": memory, "dataset": tree["datasets"][name]}
        subset = {"key": "gkd_plugin.data.incremental_subset", "init": {"kwargs": kwargs}}
        tree["datasets"][name] = Tagged("!import_call", subset, "")
    made = run(tree, "out")
    final = made["final"]
    assert final["top1"] == pytest.approx((final["old_top1"] + final["new_top1"]) / 2)
    assert final["old_top1"] == final["harmonic_mean"] == 0
    assert "ncm_top1" not in final
    assert "old_top1" in made["stages"]["train"]["epochs"][-1]
    log = Path("out/log.txt").read_text("utf-8")
    for part in ("old top-1 0.00 %", "harmonic mean 0.00 %", "final NCM accuracy: not measured, no training sample of"):
        assert part in log
    del tree["test"]
    short = run(tree, "short")
    on_validation = short["final"]
    assert on_validation["top1"] == short["stages"]["train"]["epochs"][-1]["top1"]
    assert (on_validation["on"], on_validation["old_top1"], on_validation["harmonic_mean"]) == ("validation", 0, 0)
    x = checked_config(Path("x.yaml"), tree)
    message = r"^x\.yaml: has no test\.test_data_loader to evaluate on$"
    refused(message, evaluate_checkpoint, x, Path("short/student.safetensors"))


def test_a_new_classifier_may_start_at_class_centres(here, caplog):
    """Again after stage ``embedding``, which leaves the classifier as it is."""
    entry, told = "models.student_model", "the classifier 'head' starts at 4 class centres"
    sets = [f"{entry}.src_ckpt=runs/student/student.safetensors", f"{entry}.src_ckpt_classifier=centres"]
    run("student", "still", *sets, "train.stage2.optimizer.kwargs.lr=0.0")
    assert [line for line in caplog.messages if told in line] == [f"{entry}: {told}"] * 2
    made = load_file("still/stages/stage1.safetensors")
    config = load_config("student.yaml", sets).build()
    student = build_model(*student_entry(config))
    student.load_state_dict(made)
    start_at_centres(entry, student, DataLoader(config["datasets"]["train"], batch_size=12), cpu())
    torch.testing.assert_close(load_file("still/student.safetensors")["head.weight"], student.head.weight.detach())
    assert not torch.allclose(made["head.weight"], student.head.weight)  # which stage embedding has moved
    assert torch.equal(made["head.bias"], torch.zeros(4))  # as at the start: the stage does not train it
    caplog.clear()
    kwargs = {"stage": "embedding", "sub_terms": {"labels": cross_entropy()}}  # trains the classifier, which stays
    run("student", "trained", *sets, f"train.stage1.criterion.kwargs={json.dumps(kwargs)}")
    assert caplog.text.count(told) == 1


@torch.no_grad()
def unit_rows(folder, seed):
    """The teacher's embeddings of length 1, straight from timm, and the labels."""
    teacher, images = timm.create_model("test_resnet", num_classes=4).eval(), TinyImages(seed=seed)
    teacher.load_state_dict(load_file(folder / "runs/teacher/student.safetensors"))
    rows = teacher.forward_head(teacher.forward_features(images.images), pre_logits=True).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), np.array(images.targets)


def probed(probe, *sets):
    kwargs = "{preprocessing: data, local_classifier: discriminant}"  # fitted to no probe
    sets = [f"train.stage1.teacher.auxiliary_model_wrapper.kwargs={kwargs}", *sets]
    return run_probe(load_config("student.yaml", sets), Path(probe), probe, seed=3, device="cpu")


@pytest.mark.parametrize("probe", PROBES)
def test_what_the_teachers_embedding_knows(here, caplog, probe):
    caplog.set_level(logging.INFO)
    (rows, labels), (test_rows, test_labels) = (unit_rows(here, seed) for seed in (0, 2))
    if probe == "ncm":
        centres = np.stack([rows[labels == k].mean(0) for k in range(4)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        expected = ((test_rows @ centres.T).argmax(1) == test_labels).mean()
    else:
        fitted = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced").fit(rows, labels)
        expected = fitted.score(test_rows, test_labels)
    made = probed(probe)
    assert made["final"] == {"top1": pytest.approx(100 * expected), "on": "test"}
    assert (made["status"], made["seed"], made["probe"], made["stages"]) == ("finished", 3, probe, {})
    assert summary(probe) == made
    assert {path.name for path in Path(probe).iterdir()} == {"config.yaml", "log.txt", "summary.json"}
    assert f"{probe} on the frozen network: top-1 on the test set" in Path(probe, "log.txt").read_text("utf-8")
    assert "held-out accuracy" not in caplog.text  # of a discriminant


def test_a_class_without_a_sample_is_never_the_answer_of_logistic_regression(here):
    assert 0 <= probed("logistic_regression", "datasets.train.init.kwargs.classes=3")["final"]["top1"] <= 75


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (TEST, r"has no test\.test_data_loader"),
        ("auxiliary_model_wrapper: {key: 'refilled_teacher'}", "the teacher has no wrapper 'refilled_teacher'"),
    ],
)
def test_what_cannot_be_probed(here, old, message):
    assert old in REFILLED
    Path("other.yaml").write_text(REFILLED.replace(old, ""), encoding="utf-8")
    refused(rf"^other\.yaml: {message}", run_probe, load_config("other.yaml"), Path("out"), "ncm", device="cpu")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("stage", "at", "place", "kept"),
    [
        (ClassifierStage, 4, "stage2 2/3, step 2", "; the last good weights are out/student.safetensors"),
        (EmbeddingStage, 1, "stage1 1/1, step 1", ""),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(here, monkeypatch, stage, at, place, kept):
    forward, calls = stage.forward, []

    def broken(self, *args: Tensor):
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) == at else 1)

    monkeypatch.setattr(stage, "forward", broken)
    with pytest.raises(ConfigError) as caught:
        run("student", "out", "train.stage2.num_epochs=3")
    reason = f"the loss is nan at {place}: stopped before the weights changed"
    assert str(caught.value) == f"student.yaml: {reason}{kept}"
    made = summary("out")
    assert (made["status"], made["error"]) == ("failed", reason)
    assert "final" not in made
    assert f"ERROR\troot\t{reason}" in Path("out/log.txt").read_text("utf-8")
    if kept:
        assert len(made["stages"]["stage2"]["epochs"]) == 1
        assert equal(load_file("out/student.safetensors"), load_file("runs/student/student.safetensors"))
    else:
        assert {path.name for path in Path("out").iterdir()} == {"config.yaml", "log.txt", "summary.json"}


def test_weights_that_are_not_finite_are_not_saved(here, monkeypatch):
    train_epochs = run_module.train_epochs

    def spoiled(box, student, *args, **kwargs):
        for found in train_epochs(box, student, *args, **kwargs):
            student.fc.bias.data[0] = float("inf")
            yield found

    monkeypatch.setattr(run_module, "train_epochs", spoiled)
    refused(r"^teacher\.yaml: the student's weights contain NaN or infinity and were not", run, "teacher", "out")
    assert not Path("out/student.safetensors").exists()
    assert summary("out")["status"] == "failed"


def test_a_run_that_is_interrupted_says_so(here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddingStage, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("student", "out")
    assert summary("out")["status"] == "stopped (KeyboardInterrupt)"


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_configs(tmp_path)


@pytest.fixture
def planned(monkeypatch):
    """The runs that would be made, none of which is."""
    made = []
    monkeypatch.setattr(run_module, "run_config", lambda config, folder, **_: made.append((config, folder)))
    return made


def rewrite(name, old, new):
    path = Path(f"{name}.yaml")
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def checkpoints(config):
    models, keys = config.tree["models"].items(), ("src_ckpt", "dst_ckpt")
    return {f"{name}.{key}": entry[key] for name, entry in models for key in keys if key in entry}


def test_output_moves_the_checkpoints_along(configs):
    summaries = run_all(configs, output=Path("out"), device="cpu", seed=7)
    assert [(made["status"], made["seed"]) for made in summaries] == [("finished", 7)] * 2
    assert not Path("runs").exists()
    assert Path("out/teacher/teacher.pt").is_file()
    assert Path("out/student/student.pt").is_file()
    moved = load_config("out/student/config.yaml").tree["models"]["teacher_model"]["src_ckpt"]
    assert moved == "out/teacher/teacher.pt"


def test_where_each_configuration_would_write(configs, planned):
    run_all(configs)
    run_all(configs, output=Path("out"))
    run_all(configs[:1], output=Path("one"))
    folders = ["runs/teacher", "runs/student", "out/teacher", "out/student", "one"]
    assert [str(folder) for _, folder in planned] == folders
    assert [checkpoints(config) for config, _ in planned] == [
        {"model.dst_ckpt": "runs/teacher/teacher.pt"},
        {"teacher_model.src_ckpt": "runs/teacher/teacher.pt", "student_model.dst_ckpt": "runs/student/student.pt"},
        {"model.dst_ckpt": "out/teacher/teacher.pt"},
        {"teacher_model.src_ckpt": "out/teacher/teacher.pt", "student_model.dst_ckpt": "out/student/student.pt"},
        {"model.dst_ckpt": "one/teacher.pt"},
    ]
    assert all(config.notices == () for config, _ in planned)


def test_paths_are_one_however_they_are_spelt_and_one_elsewhere_stays(configs, planned):
    rewrite("student", "'runs/teacher/teacher.pt'", "'./runs//../runs/teacher/teacher.pt'")
    run_all(configs, output=Path("a dir: # 1"))
    assert checkpoints(planned[1][0])["teacher_model.src_ckpt"] == "a dir: # 1/teacher/teacher.pt"
    run_all(configs[:1], overrides=["models.model.dst_ckpt=elsewhere/w.pt"], output=Path("out"))
    assert checkpoints(planned[2][0]) == {"model.dst_ckpt": "elsewhere/w.pt"}


def test_a_run_does_not_load_what_it_is_going_to_write(configs, planned):
    """Continuing from an earlier run's weights, in a new folder."""
    Path("runs/teacher").mkdir(parents=True)
    Path("runs/teacher/teacher.pt").write_bytes(b"")
    rewrite("teacher", "dst_ckpt:", "src_ckpt: 'runs/teacher/teacher.pt'\n    dst_ckpt:")
    run_all(configs[:1], output=Path("out"))
    moved = {"model.src_ckpt": "runs/teacher/teacher.pt", "model.dst_ckpt": "out/teacher.pt"}
    assert checkpoints(planned[0][0]) == moved


def test_all_are_checked_before_the_first_one_runs(configs, planned):
    missing = r"student\.yaml: .*src_ckpt: no such file: runs/teacher"
    refused(missing, run_all, configs[1:])
    refused(missing, run_all, configs[::-1])
    rewrite("student", "stage: 'classifier'", "stage: 'clasifier'")
    refused(r"student\.yaml: .*'clasifier'.*; did you mean 'classifier'", run_all, configs)
    refused(r"^teacher\.yaml: --device: there is no device 'gpu' here", run_all, configs, device="gpu")
    assert planned == []


def test_folders_that_cannot_be_used(configs, planned):
    Path("file").write_text("")
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("precious")
    for output, message in (
        ("file", "file is a file"),
        (".", r"\. holds the working directory"),
        ("..", "holds the w"),
        ("mine", r"mine holds 'config\.yaml' and no earlier run"),
    ):
        refused(f"^--output: .*{message}", run_all, configs[:1], output=Path(output))
    twins = [configs[0], Path("elsewhere/teacher.yaml")]
    refused("two configurations would write to runs/teacher", run_all, twins)
    assert planned == []
