"""Runs of a tiny teacher and a tiny ReFilled student, and everything that they leave behind."""

import gc
import json
import logging
import re
import shutil
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchdistill.common.main_util import set_seed
from torchdistill.common.yaml_util import load_yaml_file
from torchdistill.core.distillation import get_distillation_box

from gkd_plugin.config.config import checked_config, load_config
from gkd_plugin.config.stages import student_entry
from gkd_plugin.config.tree import dump
from gkd_plugin.errors import ConfigError
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.losses import ClassifierStage, EmbeddingStage
from gkd_plugin.runner import run as run_module
from gkd_plugin.runner.models import build_model, start_at_centres
from gkd_plugin.runner.run import evaluate_checkpoint, run_all, run_config, run_probe
from gkd_plugin.runner.training import Training
from gkd_plugin.runner.weights import read_weights
from tests.fakes import TinyImages, cross_entropy, stage, train_box
from tests.runner.fakes import call, cpu, equal, loaders, refused, student_config, teacher_config, write_configs

FILES = {"config.yaml", "curves.png", "log.txt", "metrics.jsonl", "student.safetensors", "summary.json"}


def run(stem, output, *overrides, seed=0):
    return run_config(load_config(f"{stem}.yaml", overrides), Path(output), seed=seed, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with teacher.yaml, student.yaml and a run of each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs(folder)
        logging.getLogger().setLevel(logging.INFO)
        run("teacher", "runs/teacher")
        run("student", "runs/student", "train.val_freq=9", "train.stage2.num_epochs=4")
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
    assert (made["config"], made["status"]) == ("student.yaml", "finished")
    assert (made["seed"], made["device"], made["precision"], made["processes"]) == (0, "cpu", "no", 1)
    assert made["versions"]["torch"] in torch.__version__
    assert (made["student"]["kwargs"]["model_name"], made["student"]["classes"]) == ("test_vit", 4)
    assert made["student"]["parameters"] == 300_356
    assert 0 < made["preparation_seconds"] < made["wall_seconds"] < 60
    assert 0 <= made["teacher"]["ncm_top1"] <= 100
    assert 0 <= made["student"]["ncm_top1"] <= 100
    (first,), others = (made["stages"][name]["epochs"] for name in ("stage1", "stage2"))
    second = others[-1]
    common = {"stage", "epoch", "lr", "loss", "images_per_second", "waiting", "seconds"}
    assert first.keys() == common | {"relationship", "tuples", "negatives", "ncm_top1"}
    assert second.keys() == common | {"cross_entropy", "local_classifier", "emphasis", "top1"}
    assert first["loss"] == pytest.approx(1000 * first["relationship"], rel=1e-4)
    assert second["loss"] == pytest.approx(second["cross_entropy"] + second["local_classifier"], rel=1e-5)
    assert [row["epoch"] for row in others if "top1" in row] == [2, 3, 4]
    assert made["final"]["on"] == "test"
    assert made["final"]["val_top1_last3"] == pytest.approx(sum(row["top1"] for row in others[1:]) / 3)
    rows = [json.loads(line) for line in (runs / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert rows == [first, *others]
    assert "teacher" not in summary(runs / "runs/teacher")


def bare(folder, name, **kwargs):
    """A trained model with timm alone."""
    model = timm.create_model(name, num_classes=4, **kwargs)
    model.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
    return model.eval()


@torch.no_grad()
def figures_of(model):
    """Accuracy on the test set of a timm model's classifier, and of its embedding with centres of the training set."""
    train, test = TinyImages(seed=0), TinyImages(seed=2)
    known, rows = (model.forward_head(model.forward_features(x.images), pre_logits=True) for x in (train, test))
    centres = class_centres([(known, torch.tensor(train.targets))])
    scores = {"top1": model(test.images), "ncm_top1": nearest_class_mean(rows, centres)}
    right = {key: value.argmax(1) == torch.tensor(test.targets) for key, value in scores.items()}
    return {key: pytest.approx(100 * value.double().mean().item()) for key, value in right.items()}


def test_the_final_figures_are_of_the_student_in_its_file(runs):
    final = summary(runs / "runs/student")["final"]
    assert final == final | figures_of(bare(runs / "runs/student", "test_vit", img_size=32))


def test_evaluation_gives_the_final_figure(here):
    far = load_config("student.yaml", ["device={teacher: 'cuda:7'}"])  # a device that evaluation does not need
    found = evaluate_checkpoint(far, Path("runs/student/student.pt"), "cpu")
    assert found == {"top1": summary("runs/student")["final"]["top1"], "samples": 24}
    message = r"^--checkpoint: runs/teacher/teacher\.pt does not fit VisionTransformer: "
    refused(message, evaluate_checkpoint, far, Path("runs/teacher/teacher.pt"), "cpu")


def test_the_resolved_config_runs_again_to_the_same_bits(here):
    run("runs/student/config", "again")
    for name in ("config.yaml", "student.safetensors"):
        assert Path("again", name).read_bytes() == Path("runs/student", name).read_bytes()


def test_advice_leaves_the_training_as_it_is(here, monkeypatch):
    monkeypatch.setattr(run_module, "advise", lambda *_: {})
    run("runs/student/config", "silent")
    assert Path("silent/student.safetensors").read_bytes() == Path("runs/student/student.safetensors").read_bytes()


def with_more_images(tree):
    """The configuration in stage joint, with the validation set as images without a label."""
    labelled, unlabelled = (tree["datasets"][name] for name in ("train", "val"))
    made = call("gkd_plugin.data.with_unlabelled", labelled=labelled, unlabelled=unlabelled)
    section = stage("joint", **loaders())
    mixed = {"key": "MixedBatchSampler", "kwargs": {"labelled": 8, "unlabelled": 4}}
    section["train_data_loader"] |= {"batch_sampler": mixed, "kwargs": {}}
    return {**tree, "datasets": {**tree["datasets"], "train": made}, "train": {"stage1": section}}


@pytest.mark.parametrize("changed", [lambda tree: tree, with_more_images])
def test_the_same_weights_as_a_plain_torchdistill_loop(here, changed):
    tree = without(changed(student_config()), "test")
    for section in tree["train"].values():
        del section["val_data_loader"]
    Path("short.yaml").write_text(dump(tree), encoding="utf-8")
    made = run("short", "short", "device={channels_last: false}", seed=3)
    assert "ncm_top1" not in made["stages"]["stage1"]["epochs"][0]
    assert made["final"] == {}

    set_seed(3)
    config = load_yaml_file("short.yaml")
    student = build_model(*student_entry(config))
    teacher = build_model("models.teacher_model", config["models"]["teacher_model"])
    device = torch.device("cpu")
    train_box(get_distillation_box(teacher, student, config["datasets"], config["train"], device, None, False, 1))
    assert equal(load_file("short/student.safetensors"), student.state_dict())


def test_images_without_a_label_have_kept_answers_too(here):
    """To class centres, because another local classifier is fitted to the answers that are kept."""
    Path("mixed.yaml").write_text(dump(with_more_images(student_config())), encoding="utf-8")
    centres = "train.stage1.teacher.auxiliary_model_wrapper.kwargs.local_classifier=centres"
    made = [run("mixed", f"views_{len(cache)}", centres, *cache) for cache in ([], ["teacher_cache={views: 1}"])]
    asked, kept = (summary["stages"]["stage1"]["epochs"][-1] for summary in made)
    assert asked["loss"] == pytest.approx(kept["loss"], rel=1e-3)  # in float16
    assert made[0]["final"]["ncm_top1"] > 0


def test_bf16_runs_and_is_evaluated_alike(here):
    made = run("teacher", "out", "device.precision=bf16", "train.num_epochs=1")
    assert made["precision"] == "bf16"
    config = load_config("teacher.yaml", ["device.precision=bf16"])
    assert evaluate_checkpoint(config, Path("out/student.safetensors"), "cpu")["top1"] == made["final"]["top1"]
    assert torch.bfloat16 not in {value.dtype for value in load_file("out/student.safetensors").values()}
    assert cpu().mixed_precision == "no", "Accelerate's state is fresh for each run"


def test_old_and_new_classes_are_told_apart_and_memory_may_be_empty(here, caplog):
    """A plain training that never sees the old classes, as the control of incremental learning has it."""
    caplog.set_level(logging.INFO)
    tree = teacher_config()
    for name, memory in (("train", 0), ("val", None), ("test", None)):
        kwargs = {"old": 2, "new": 2, "memory": memory, "dataset": tree["datasets"][name]}
        tree["datasets"][name] = call("gkd_plugin.data.incremental_subset", **kwargs)
    made = run_config(checked_config(Path("changed.yaml"), tree), Path("out"), device="cpu")
    final = made["final"]
    assert final["top1"] == pytest.approx((final["old_top1"] + final["new_top1"]) / 2)
    assert final["old_top1"] == final["harmonic_mean"] == 0
    assert "ncm_top1" not in final
    assert "old_top1" in made["stages"]["train"]["epochs"][-1]
    log = Path("out/log.txt").read_text("utf-8")
    for part in ("old top-1 0.00 %", "harmonic mean 0.00 %", "final NCM accuracy: not measured, no training sample of"):
        assert part in log


def test_a_new_classifier_may_start_at_class_centres(here, caplog):
    """Again after stage ``embedding``, which leaves the classifier as it is."""
    caplog.set_level(logging.INFO)
    entry, told = "models.student_model", "the classifier 'head' starts at 4 class centres"
    sets = [f"{entry}.src_ckpt=runs/student/student.safetensors", f"{entry}.src_ckpt_classifier=centres"]
    run("student", "still", *sets, "train.stage2.optimizer.kwargs.lr=0.0")
    assert [line for line in caplog.messages if told in line] == [f"{entry}: {told}"] * 2
    made = load_file("still/stages/stage1.safetensors")
    config = load_config("student.yaml", sets).build()
    student = build_model(*student_entry(config))
    student.load_state_dict(made)
    start_at_centres(entry, student, DataLoader(config["datasets"]["train"], batch_size=12), cpu())
    last = load_file("still/student.safetensors")
    torch.testing.assert_close(last["head.weight"], student.head.weight.detach())
    assert equal(*({key: value for key, value in state.items() if key != "head.weight"} for state in (made, last)))
    assert not torch.allclose(made["head.weight"], student.head.weight)  # which stage embedding has moved
    assert torch.equal(made["head.bias"], torch.zeros(4))  # as at the start: the stage does not train it
    caplog.clear()
    kwargs = {"stage": "embedding", "sub_terms": {"labels": cross_entropy()}}  # trains the classifier, which stays
    run("student", "trained", *sets, f"train.stage1.criterion.kwargs={json.dumps(kwargs)}")
    assert caplog.text.count(told) == 1


def test_what_the_teachers_embedding_knows(here, caplog):
    caplog.set_level(logging.INFO)
    kwargs = "{preprocessing: data, local_classifier: probe}"  # another kind of probe, which this one does not read
    config = load_config("student.yaml", [f"train.stage1.teacher.auxiliary_model_wrapper.kwargs={kwargs}"])
    made = run_probe(config, Path("probed"), "ncm", seed=3, device="cpu")
    assert made["final"] == {"top1": figures_of(bare(here / "runs/teacher", "test_resnet"))["ncm_top1"], "on": "test"}
    assert (made["status"], made["seed"], made["probe"], made["stages"]) == ("finished", 3, "ncm", {})
    assert summary("probed") == made
    assert {path.name for path in Path("probed").iterdir()} == {"config.yaml", "log.txt", "summary.json"}
    assert "ncm on the frozen network: top-1 on the test set" in Path("probed/log.txt").read_text("utf-8")
    assert "held-out accuracy" not in caplog.text  # of the local classifier


def without(tree, *path):
    """The tree without the section at the path."""
    section = tree
    for key in path[:-1]:
        section = section[key]
    del section[path[-1]]
    return tree


NO_TEST_SET = r"has no test\.test_data_loader to evaluate on$"
WRAPPER = ("train", "stage1", "teacher", "auxiliary_model_wrapper")


@pytest.mark.parametrize(
    ("path", "measure", "args", "message"),
    [
        (["test"], evaluate_checkpoint, ["runs/student/student.safetensors"], NO_TEST_SET),
        (["test"], run_probe, ["out", "ncm"], NO_TEST_SET),
        (WRAPPER, run_probe, ["out", "ncm"], "the teacher has no wrapper 'refilled_teacher'"),
    ],
)
def test_what_cannot_be_measured(here, path, measure, args, message):
    config = checked_config(Path("x.yaml"), without(student_config(), *path))
    refused(rf"^x\.yaml: {message}", measure, config, Path(args[0]), *args[1:], device="cpu")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("stage", "at", "place", "kept"),
    [
        (ClassifierStage, 5, "stage2 2/3, step 2", "; the last good weights are out/student.safetensors"),
        (EmbeddingStage, 2, "stage1 1/1, step 1", ""),  # the first time is in the rehearsal
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(here, monkeypatch, stage, at, place, kept):
    forward, calls = stage.forward, count(1)

    def broken(self, *args):
        return forward(self, *args) * (float("nan") if next(calls) == at else 1)

    monkeypatch.setattr(stage, "forward", broken)
    with pytest.raises(ConfigError) as caught:
        run("student", "out", "train.stage2.num_epochs=3")
    reason = f"the loss is nan at {place}: the run stops, and its weights from here on are not saved"
    assert str(caught.value) == f"student.yaml: {reason}{kept}"
    made = summary("out")
    assert (made["status"], made["error"]) == ("failed", reason)
    assert "final" not in made
    assert f"ERROR\troot\t{reason}" in Path("out/log.txt").read_text("utf-8")
    if kept:
        assert len(made["stages"]["stage2"]["epochs"]) == 1
        assert read_weights("out/student.safetensors", "here").epochs == (2, 4)
    else:
        assert {path.name for path in Path("out").iterdir()} == {"config.yaml", "log.txt", "summary.json"}


@pytest.mark.parametrize(
    ("more", "last"),
    [("checkpoint={every_steps: 5}", 3), ("train.log_freq=3", 3), ("checkpoint=null", 4)],
)
def test_a_gpu_tells_of_it_some_steps_later_and_saves_nothing_of_them(here, monkeypatch, more, last):
    """Here the CPU reads as seldom as a GPU: the third of four steps has no finite loss."""
    forward, calls, begin, step, steps = ClassifierStage.forward, count(1), Training.__init__, Training._step, []

    def seldom(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.reads_each_step = False

    def broken(self, *args):
        return forward(self, *args) * (float("nan") if next(calls) == 4 else 1)  # the first time is in the rehearsal

    monkeypatch.setattr(ClassifierStage, "forward", broken)
    monkeypatch.setattr(Training, "__init__", seldom)
    monkeypatch.setattr(Training, "_step", lambda *args: (steps.append(args[1]), step(*args))[1])
    with pytest.raises(ConfigError, match=r"the loss is nan at stage2 1/1, step 3: .*last good weights are out/st"):
        run("student", "out", "train.stage2.train_data_loader.kwargs.batch_size=6", "train.log_freq=9", more)
    assert steps[-1] == f"stage2 1/1, step {last}"
    states = [load_file("out/student.safetensors")]
    states += [torch.load(file, weights_only=True) for file in Path("out/checkpoints").rglob("pytorch_model*.bin")]
    assert all(bool(value.isfinite().all()) for state in states for value in state.values())


def test_weights_that_are_not_finite_are_not_saved(here, monkeypatch):
    epochs = Training.epochs

    def spoiled(self):
        for found in epochs(self):
            self.student.fc.bias.data[0] = float("inf")
            yield found

    monkeypatch.setattr(Training, "epochs", spoiled)
    refused(r"^teacher\.yaml: the student's weights contain NaN or infinity and were not", run, "teacher", "out")
    assert not Path("out/student.safetensors").exists()
    assert summary("out")["status"] == "failed"


@pytest.mark.parametrize(
    ("sets", "epochs", "kept"),
    [
        (["train.keep=best"], 5, 2),
        (["train.keep=best", "train.patience=2"], 4, 2),
        (["train.patience=2"], 4, 4),
        (["train.patience=3"], 5, 5),
    ],
)
def test_the_epoch_is_chosen_on_the_validation_set(here, monkeypatch, sets, epochs, kept):
    figures, states = iter((30.0, 50.0, 50.0, 40.0, 45.0)), []

    def validated(self, stage, epoch):
        if stage.name == "stage1":
            return {}
        states.append({key: value.clone() for key, value in self.student.state_dict().items()})
        return {"top1": next(figures)}

    monkeypatch.setattr(Training, "_validate", validated)
    made = run("student", "out", "train.stage2.num_epochs=5", *sets)
    assert len(made["stages"]["stage2"]["epochs"]) == epochs
    assert equal(load_file("out/student.safetensors"), states[kept - 1])
    assert equal(torch.load("runs/student/student.pt", weights_only=False)["model"], states[kept - 1])
    chosen = {"stage": "stage2", "epoch": 2, "val_top1": 50.0}
    assert made.get("kept") == (chosen if "train.keep=best" in sets else None)
    assert not any("finish" in text for text in made["warnings"])
    done = read_weights("out/student.safetensors", "here").epochs
    assert done[0] == done[1] == 1 + epochs  # a student that is finished
    assert made["final"] == made["final"] | figures_of(bare(Path("out"), "test_vit", img_size=32))


def test_without_a_test_set_the_chosen_epochs_figure_is_the_final_one(here, monkeypatch):
    figures = iter((50.0, 40.0))
    monkeypatch.setattr(Training, "_validate", lambda *_: {"top1": next(figures)})
    config = checked_config(Path("x.yaml"), without(teacher_config(), "test"))
    config = checked_config(Path("x.yaml"), {**config.tree, "train": {**config.tree["train"], "keep": "best"}})
    final = run_config(config, Path("out"), device="cpu")["final"]
    assert (final["top1"], final["on"]) == (50.0, "validation")


def test_a_run_that_is_interrupted_says_so(here, monkeypatch):
    monkeypatch.setattr(run_module.Training, "epochs", Mock(side_effect=KeyboardInterrupt))
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
    monkeypatch.setattr(run_module, "run_config", lambda config, folder, **_: made.append((config, folder)) or {})
    return made


def rewrite_student(old, new):
    text = Path("student.yaml").read_text("utf-8")
    assert old in text
    Path("student.yaml").write_text(text.replace(old, new), encoding="utf-8")


def checkpoints(config):
    models, keys = config.tree["models"].items(), ("src_ckpt", "dst_ckpt")
    return {f"{name}.{key}": entry[key] for name, entry in models for key in keys if key in entry}


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
    rewrite_student("runs/teacher/teacher.pt", "./runs//../runs/teacher/teacher.pt")
    run_all(configs, output=Path("a dir: # 1"))
    assert checkpoints(planned[1][0])["teacher_model.src_ckpt"] == "a dir: # 1/teacher/teacher.pt"
    run_all(configs[:1], overrides=["models.model.dst_ckpt=elsewhere/w.pt"], output=Path("out"))
    assert checkpoints(planned[2][0]) == {"model.dst_ckpt": "elsewhere/w.pt"}
    earlier = "runs/teacher/teacher.pt"  # whose weights a run continues from, in a new folder
    Path(earlier).parent.mkdir(parents=True)
    Path(earlier).touch()
    run_all(configs[:1], overrides=[f"models.model.src_ckpt={earlier}"], output=Path("out"))
    assert checkpoints(planned[3][0]) == {"model.src_ckpt": earlier, "model.dst_ckpt": "out/teacher.pt"}
    Path("copy.yaml").write_text(Path("teacher.yaml").read_text("utf-8"), encoding="utf-8")
    run_all([Path("copy.yaml")])
    assert checkpoints(planned[4][0]) == {"model.dst_ckpt": "runs/copy/teacher.pt"}


def test_all_are_checked_before_the_first_one_runs(configs, planned):
    missing = r"student\.yaml: .*src_ckpt: no such file: runs/teacher"
    refused(missing, run_all, configs[1:])
    refused(missing, run_all, configs[::-1])
    rewrite_student("stage: classifier", "stage: clasifier")
    refused(r"student\.yaml: .*'clasifier'.*; did you mean 'classifier'", run_all, configs)
    refused(r"^teacher\.yaml: --device: there is no device 'gpu' here", run_all, configs, device="gpu")
    rewrite_student("stage: clasifier", "stage: classifier")
    rewrite_student("model_name: test_resnet", "model_name: test_efficientnet")
    refused(r"^student\.yaml: .*src_ckpt: runs/teacher/teacher\.pt does not fit", run_all, configs)
    assert planned == []


@pytest.mark.parametrize(
    ("earlier", "there", "folder"),
    [
        ("keep", [], "runs/teacher"),
        ("keep", ["runs/teacher"], "runs/teacher-2"),
        ("keep", ["runs/teacher", "runs/teacher-2"], "runs/teacher-3"),
        ("overwrite", ["runs/teacher", "runs/teacher-2"], "runs/teacher"),
        ("resume", [], "runs/teacher"),
        ("resume", ["runs/teacher", "runs/teacher-2"], "runs/teacher-2"),
    ],
)
def test_what_becomes_of_earlier_runs(earlier, there, folder, configs, planned):
    for path in map(Path, there):
        path.mkdir(parents=True)
        (path / "summary.json").write_text('{"status": "running"}')
    told = run_all(configs, earlier=earlier)
    (teacher, made), (student, _) = planned
    assert str(made) == told[0]["folder"] == folder
    assert checkpoints(teacher) == {"model.dst_ckpt": f"{folder}/teacher.pt"}
    assert checkpoints(student)["teacher_model.src_ckpt"] == f"{folder}/teacher.pt"


def test_a_series_that_was_stopped_leaves_what_an_earlier_one_finished(configs, planned):
    """The second one had begun its teacher when it was stopped; its student is not that of the first."""

    def begun(place, status):
        config, folder = planned[place]
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.text, encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps({"status": status, "seed": 0}))

    run_all(configs)
    begun(0, "finished")
    begun(1, "finished")
    run_all(configs, earlier="resume")
    assert [folder for _, folder in planned[2:]] == [folder for _, folder in planned[:2]]
    run_all(configs)
    begun(4, "running")
    run_all(configs, earlier="resume")
    (teacher, first), (student, second) = planned[6:]
    assert [str(first), str(second)] == ["runs/teacher-2", "runs/student-2"]
    assert checkpoints(student)["teacher_model.src_ckpt"] == checkpoints(teacher)["model.dst_ckpt"]
    assert checkpoints(student)["student_model.dst_ckpt"] == "runs/student-2/student.pt"


@pytest.mark.parametrize("error", [ConfigError("teacher.yaml: the loss is nan"), RuntimeError("out of memory\nat 3")])
def test_one_that_fails_while_it_runs_does_not_stop_the_others(error, configs, monkeypatch, caplog):
    def run(config, _folder, **_):
        if config.path.stem == "teacher":
            raise error
        return {"status": "finished"}

    monkeypatch.setattr(run_module, "run_config", run)
    assert [made["status"] for made in run_all(configs)] == ["failed", "finished"]
    assert re.search(
        r"teacher.yaml: (the loss is nan|out of memory \(RuntimeError in test_run.py, .*\))\n", caplog.text
    )
    with pytest.raises(type(error), match=str(error)):
        run_all(configs[:1])


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_done_while_a_run_is_built_is_told_as_it_happens_and_is_in_its_log(fails, here, monkeypatch, caplog):
    parts = run_module.Parts

    def build(*args):
        assert "student.yaml → new" in caplog.text
        assert not Path("new").exists()
        logging.getLogger("gkd_plugin.x").warning("asks the teacher")
        assert "asks the teacher" in caplog.text
        if fails:
            raise ConfigError("it fails")
        return parts(*args)

    caplog.set_level("INFO")
    monkeypatch.setattr(run_module, "Parts", build)
    if fails:
        refused("student.yaml: it fails", run, "student", "new")
        assert not Path("new").exists()
        return
    made, log = run("student", "new"), Path("new/log.txt").read_text("utf-8")
    assert "asks the teacher" in made["warnings"]
    for line in ("student.yaml → new", "asks the teacher", "24 samples of 4 classes", "final top-1"):
        assert log.count(line) == caplog.text.count(line) > 0


def test_folders_that_cannot_be_used(configs, planned):
    Path("file").write_text("")
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("precious")
    for output in (".", ".."):
        refused(r"^--output: \.+ holds the working directory", run_all, configs[:1], output=Path(output))
    for output, message in (("file", "file is a file"), ("mine", r"mine holds 'config\.yaml' and no earlier run")):
        refused(f"^--output: {message}", run_all, configs[:1], output=Path(output))
    refused("two configurations would write to runs/teacher", run_all, [configs[0], Path("elsewhere/teacher.yaml")])
    assert planned == []


def test_runs_leave_nothing_behind_in_their_process(here):
    """Tensors and open files; pytest keeps what is logged, and torchdistill logs its criteria."""
    logging.disable()
    counts = []
    for number in range(3):
        run("student", f"out{number}")
        gc.collect()
        tensors = sum(isinstance(found, torch.Tensor) for found in gc.get_objects())
        counts.append((tensors, len(psutil.Process().open_files())))
    logging.disable(logging.NOTSET)
    assert counts[1] == counts[2]


def test_a_second_seed_asks_nothing_that_a_cache_keeps(here):
    """Neither the teacher, but for a few rows, nor the student before its first step."""
    run("teacher", "weights", "train.num_epochs=1")
    kind = "models.student_model.kwargs={model_name: test_resnet, num_classes: 4}"
    student = [kind, "models.student_model.src_ckpt=weights/student.safetensors"]
    cached = [*student, "models.student_model.src_ckpt_classifier=centres", "teacher_cache={views: 2, folder: kept}"]
    found = []
    for seed in (0, 1):
        run("student", f"seed{seed}", *cached, seed=seed)
        found.append({path.name for path in Path("kept").iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 5  # answers, class centres of both, accuracies of both


def test_memory_that_is_full_is_a_line(here, monkeypatch):
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    monkeypatch.setattr(run_module, "Parts", full)
    refused("^student.yaml: CUDA out of memory; what needs less", run_all, [Path("student.yaml")], output=Path("out"))
    assert not Path("out").exists()
