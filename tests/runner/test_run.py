"""One run: a tiny teacher and a tiny ReFilled student, and everything that they leave behind."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from gkd_plugin.losses import ClassifierStage, EmbeddingStage
from gkd_plugin.runner import run as run_module
from gkd_plugin.runner.accuracy import student_ncm
from gkd_plugin.runner.classifier_start import start_at_centres
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.models import build_model, student_entry
from gkd_plugin.runner.run import RunOptions, evaluate_checkpoint, run_config
from gkd_plugin.runner.weights import load_weights
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages, cross_entropy
from tests.runner.fakes import write_configs


def run(name, output, *overrides, seed=0, device="cpu"):
    return run_config(load_config(f"{name}.yaml", overrides), RunOptions(Path(output), seed, device))


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
    return json.loads((folder / "summary.json").read_text("utf-8"))


FILES = {"config.yaml", "log.txt", "metrics.jsonl", "student.safetensors", "summary.json"}


def test_the_files_of_a_run_folder(runs):
    assert {path.name for path in (runs / "runs/teacher").iterdir()} == {*FILES, "teacher.pt"}
    assert {path.name for path in (runs / "runs/student").iterdir()} == {*FILES, "student.pt", "stages"}
    assert [path.name for path in (runs / "runs/student/stages").iterdir()] == ["stage1.safetensors"]


def test_summary_of_a_distillation(runs):
    made = summary(runs / "runs/student")
    assert made["config"] == "student.yaml"
    assert made["status"] == "finished"
    assert (made["seed"], made["device"], made["precision"], made["processes"]) == (0, "cpu", "no", 1)
    assert made["versions"]["torch"] == torch.__version__.split("+")[0] or made["versions"]["torch"]
    assert made["student"]["kwargs"]["model_name"] == "test_vit"
    assert made["student"]["classes"] == 4
    assert made["student"]["parameters"] == sum(p.numel() for p in student_of(runs).parameters())
    assert 0 < made["wall_seconds"] < 60
    assert 0 <= made["teacher"]["ncm_top1"] <= 100
    (first,), (second,) = (made["stages"][name]["epochs"] for name in ("stage1", "stage2"))
    common = {"stage", "epoch", "lr", "loss", "images_per_second", "seconds"}
    assert first.keys() == common | {"relationship", "tuples", "negatives", "ncm_top1"}
    assert second.keys() == common | {"cross_entropy", "local_classifier", "emphasis", "top1"}
    assert first["loss"] == pytest.approx(1000 * first["relationship"], rel=1e-4)
    assert second["loss"] == pytest.approx(second["cross_entropy"] + second["local_classifier"], rel=1e-5)
    assert made["final"]["on"] == "test"
    assert made["final"]["val_top1_last3"] == second["top1"]


def test_the_embedding_of_the_final_student_is_measured_too(runs):
    from gkd_plugin.functional import class_centres, nearest_class_mean
    from tests.fakes import TinyImages

    student, train, test = student_of(runs).eval(), TinyImages(seed=0), TinyImages(seed=2)

    def embed(images):
        with torch.no_grad():
            return student.forward_head(student.forward_features(images), pre_logits=True)

    centres = class_centres([(embed(train.images), torch.tensor(train.targets))])
    right = nearest_class_mean(embed(test.images), centres).argmax(1) == torch.tensor(test.targets)
    assert summary(runs / "runs/student")["final"]["ncm_top1"] == pytest.approx(100 * right.double().mean().item())
    assert "ncm_top1" in summary(runs / "runs/teacher")["final"]


INCREMENTAL = """
  {name}: !import_call
    key: 'gkd_plugin.data.incremental_subset'
    init:
      kwargs:
        old: 2
        new: 2
        memory: {memory}
        dataset: !import_call {{key: 'tests.fakes.TinyImages', init: {{kwargs: {{per_class: 6, seed: {seed}}}}}}}
"""


def test_old_and_new_classes_are_told_apart_and_memory_may_be_empty(here):
    """A plain training that never sees the old classes, as the control of incremental learning has it."""
    text = Path("teacher.yaml").read_text("utf-8")
    head, tail = text[: text.index("datasets:")], text[text.index("models:") :]
    given = {"train": ("0", 0), "val": ("null", 1), "test": ("null", 2)}
    sets = [INCREMENTAL.format(name=name, memory=memory, seed=seed) for name, (memory, seed) in given.items()]
    Path("incremental.yaml").write_text(f"{head}datasets:{''.join(sets)}{tail}", encoding="utf-8")
    made = run("incremental", "out")
    final = made["final"]
    assert final["top1"] == pytest.approx((final["old_top1"] + final["new_top1"]) / 2)
    assert final["old_top1"] == final["harmonic_mean"] == 0
    assert "ncm_top1" not in final
    assert "old_top1" in made["stages"]["train"]["epochs"][-1]
    log = Path("out/log.txt").read_text("utf-8")
    assert "old top-1 0.00 %" in log
    assert "harmonic mean 0.00 %" in log
    assert "final NCM accuracy: not measured, no training sample of class 0, 1" in log
    cut = Path("incremental.yaml").read_text("utf-8")
    Path("short.yaml").write_text(cut[: cut.index("\ntest:")], encoding="utf-8")
    on_validation = run("short", "short")["final"]
    assert (on_validation["on"], on_validation["old_top1"], on_validation["harmonic_mean"]) == ("validation", 0, 0)


def test_summary_of_a_plain_training(runs):
    made = summary(runs / "runs/teacher")
    assert "teacher" not in made
    assert [row["epoch"] for row in made["stages"]["train"]["epochs"]] == [1, 2]
    assert all("top1" in row for row in made["stages"]["train"]["epochs"])
    mean = sum(row["top1"] for row in made["stages"]["train"]["epochs"]) / 2
    assert made["final"]["val_top1_last3"] == pytest.approx(mean)


def test_metrics_are_the_rows_of_the_summary(runs):
    rows = [json.loads(line) for line in (runs / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert rows == [row for stage in summary(runs / "runs/student")["stages"].values() for row in stage["epochs"]]


def test_log_holds_our_lines_and_torchdistills(runs):
    text = (runs / "runs/student/log.txt").read_text("utf-8")
    for part in ("student.yaml → runs/student", "NCM accuracy over the student's 4 classes", "Advanced to stage 2"):
        assert part in text
    assert re.search(r"stage1 1/1  lr 0\.05  loss .*  ncm_top1 .* img/s", text)
    assert re.search(r"final top-1 on the test set \d+\.\d\d %", text)


def student_of(runs):
    """With timm alone."""
    student = timm.create_model("test_vit", num_classes=4, img_size=32)
    student.load_state_dict(load_file(runs / "runs/student/student.safetensors"), strict=True)
    return student


def test_the_student_alone_is_in_its_file(runs):
    data = TinyImages(seed=2)
    right = student_of(runs).eval()(data.images).argmax(1) == torch.tensor(data.targets)
    assert summary(runs / "runs/student")["final"]["top1"] == pytest.approx(100 * right.double().mean().item())


def test_the_student_is_kept_at_the_end_of_each_stage_but_the_last(here, monkeypatch):
    trained = {}
    save = run_module.save_student

    def noted(model, path, *args, **kwargs):
        trained[path.name] = {key: value.clone() for key, value in model.state_dict().items()}
        save(model, path, *args, **kwargs)

    monkeypatch.setattr(run_module, "save_student", noted)
    made = run("student", "out", "train.stage1.num_epochs=2")
    assert trained.keys() == {"stage1.safetensors", "student.safetensors"}
    kept, final = load_file("out/stages/stage1.safetensors"), load_file("out/student.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in trained["stage1.safetensors"].items())
    assert any(not torch.equal(kept[key], final[key]) for key in kept)
    student = build_model(*student_entry(load_config("student.yaml").tree))
    load_weights(student, "out/stages/stage1.safetensors", "stage1")
    box_loaders = [torch.utils.data.DataLoader(TinyImages(seed=seed), batch_size=12) for seed in (0, 1)]
    accelerator = make_accelerator(Placement(torch.device("cpu"), None, "no"))
    again = student_ncm(student.eval(), "embedding", *box_loaders, accelerator)
    assert again.top1 == pytest.approx(made["stages"]["stage1"]["epochs"][-1]["ncm_top1"])


def test_dst_ckpt_is_torchdistills_and_holds_the_same_weights(runs):
    content = torch.load(runs / "runs/student/student.pt", weights_only=False)
    assert content.keys() == {"model", "optimizer", "best_value", "lr_scheduler", "args"}
    weights = load_file(runs / "runs/student/student.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in content["model"].items())


def test_the_teacher_was_loaded_and_not_changed(here, monkeypatch):
    wrappers = []
    build = RefilledTeacher.__init__
    monkeypatch.setattr(
        RefilledTeacher, "__init__", lambda self, *a, **k: (wrappers.append(self), build(self, *a, **k))[1]
    )
    run("student", "out")
    saved = load_file("runs/teacher/student.safetensors")
    trained = wrappers[-1].teacher.state_dict()
    assert all(torch.equal(saved[key], trained[key]) for key in saved)


def test_same_seed_same_bits(here):
    run("student", "again")
    run("student", "other", seed=1)
    first, again, other = (
        Path(folder, "student.safetensors").read_bytes() for folder in ("runs/student", "again", "other")
    )
    assert first == again
    assert first != other


def test_bf16_runs_and_is_evaluated_alike(here):
    made = run("student", "out", "device.precision=bf16")
    assert made["precision"] == "bf16"
    result = evaluate_checkpoint(
        load_config("student.yaml", ["device.precision=bf16"]), Path("out/student.safetensors"), "cpu"
    )
    assert result["top1"] == made["final"]["top1"]
    weights = load_file("out/student.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_the_resolved_config_has_the_overrides_and_runs_again(here):
    run("student", "out", "train.stage2.num_epochs=2", "models.student_model.kwargs.num_classes=4")
    text = Path("out/config.yaml").read_text("utf-8")
    assert load_config("out/config.yaml").tree["train"]["stage2"]["num_epochs"] == 2
    run("out/config", "again")
    assert Path("again/config.yaml").read_text("utf-8") == text
    states = [load_file(f"{folder}/student.safetensors") for folder in ("out", "again")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_centres_are_computed_once(here, monkeypatch):
    fits, used = [], []
    fit, forward = RefilledTeacher.fit_centres, ClassifierStage.forward
    monkeypatch.setattr(
        RefilledTeacher, "fit_centres", lambda self, *batches: (fits.append(self), fit(self, *batches))[1]
    )
    adopt = RefilledTeacher.adopt_centres
    monkeypatch.setattr(
        RefilledTeacher, "adopt_centres", lambda self, other: (used.append((self, other)), adopt(self, other))[1]
    )
    run("student", "out", "train.stage1.num_epochs=2", "train.stage2.num_epochs=2")
    assert len(fits) == 1
    assert len(used) == 1
    assert used[0][1] is fits[0]
    assert torch.equal(used[0][0].local_classifier.centres, fits[0].local_classifier.centres)
    assert forward is ClassifierStage.forward


def test_validation_may_be_rare(here):
    text = Path("student.yaml").read_text("utf-8")
    Path("rare.yaml").write_text(text.replace("\ntrain:\n", "\ntrain:\n  val_freq: 9\n"), encoding="utf-8")
    rows = run("rare", "out", "train.stage2.num_epochs=5")["stages"]["stage2"]["epochs"]
    assert [row["epoch"] for row in rows if "top1" in row] == [3, 4, 5]


def test_without_test_set_the_final_figure_is_of_the_validation_set(here):
    text = Path("student.yaml").read_text("utf-8")
    Path("short.yaml").write_text(text[: text.index("\ntest:")], encoding="utf-8")
    made = run("short", "out")
    assert made["final"]["on"] == "validation"
    assert made["final"]["top1"] == made["stages"]["stage2"]["epochs"][-1]["top1"]
    with pytest.raises(ConfigError, match=r"^short\.yaml: has no test\.test_data_loader to evaluate on$"):
        evaluate_checkpoint(load_config("short.yaml"), Path("out/student.safetensors"))


def without_validation(text):
    """The configuration without any val_data_loader."""
    config = yaml.compose(text)
    for _, section in next(value for key, value in config.value if key.value == "train").value:
        section.value = [pair for pair in section.value if pair[0].value != "val_data_loader"]
    return yaml.serialize(config)


def test_the_same_weights_as_a_plain_torchdistill_loop(here):
    Path("short.yaml").write_text(without_validation(Path("student.yaml").read_text("utf-8")), encoding="utf-8")
    made = run("short", "out", seed=3)
    assert "ncm_top1" not in made["stages"]["stage1"]["epochs"][0]

    from torchdistill.common.main_util import set_seed
    from torchdistill.common.yaml_util import load_yaml_file
    from torchdistill.core.distillation import get_distillation_box

    set_seed(3)
    config = load_yaml_file("short.yaml")
    student = build_model(*student_entry(config))
    teacher = build_model("models.teacher_model", config["models"]["teacher_model"])
    cpu = torch.device("cpu")
    box = get_distillation_box(teacher, student, config["datasets"], config["train"], cpu, None, False, 1)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplementary in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(images, labels, supplementary))
        box.post_epoch_process()
    ours = load_file("out/student.safetensors")
    assert all(torch.equal(ours[key], value) for key, value in student.state_dict().items())


def break_the_loss(monkeypatch, stage, at):
    """The loss of a stage is NaN in its ``at``-th batch."""
    forward, calls = stage.forward, []

    def broken(self, *args: Tensor):
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) == at else 1)

    monkeypatch.setattr(stage, "forward", broken)


def test_a_loss_that_is_not_finite_stops_the_run(here, monkeypatch):
    break_the_loss(monkeypatch, ClassifierStage, at=4)
    with pytest.raises(ConfigError) as caught:
        run("student", "out", "train.stage2.num_epochs=3")
    reason = "the loss is nan at stage2 2/3, step 2: stopped before the weights changed"
    assert str(caught.value) == f"student.yaml: {reason}; the last good weights are out/student.safetensors"
    made = summary(Path("out"))
    assert (made["status"], made["error"]) == ("failed", reason)
    assert len(made["stages"]["stage2"]["epochs"]) == 1
    assert "final" not in made
    assert f"ERROR\troot\t{reason}" in Path("out/log.txt").read_text("utf-8")
    kept, same = (load_file(f"{folder}/student.safetensors") for folder in ("out", "runs/student"))
    assert kept.keys() == same.keys()
    assert all(torch.equal(kept[key], same[key]) for key in kept)


def test_nothing_is_claimed_to_be_kept_where_nothing_is(here, monkeypatch):
    break_the_loss(monkeypatch, EmbeddingStage, at=1)
    with pytest.raises(ConfigError, match=r"^student\.yaml: the loss is nan at stage1 1/1, step 1: .*changed$"):
        run("student", "out")
    assert {path.name for path in Path("out").iterdir()} == {"config.yaml", "log.txt", "summary.json"}


def test_a_run_that_is_interrupted_says_so(here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddingStage, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("student", "out")
    assert summary(Path("out"))["status"] == "stopped (KeyboardInterrupt)"


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("student", "models.teacher_model.kwargs.num_classes=5", r"teacher_model\.src_ckpt: .* of another shape: "),
        ("student", "models.student_model.kwargs.num_classes=3", r"datasets\.\w+: class index out of range: label 3"),
        ("student", "models.student_model.kwargs.num_classes=5", r"no sample of class 4: stage 'classifier' needs"),
        ("student", "train.stage2.teacher.forward_hook.output=[embedding]", r"train\.stage2\.teacher\.forward_hook"),
        ("student", "train.stage2.student.forward_hook.output=[layer1]", r"train\.stage2\..* has no module 'layer1'"),
        ("student", "datasets.train.init.kwargs.classes=1", r"datasets\.train: holds one class only"),
        ("student", "datasets.train.init.kwargs.per_class=1", r"datasets\.train: every class has one sample"),
        ("student", "datasets.train.init.kwargs.per_class=many", r"datasets\.train \(line \d+\): TypeError: "),
        ("teacher", "models.model.kwargs.num_classes=nine", r"models\.model: "),
        ("teacher", "device.default=cuda:99", r"device\.default: there is no device 'cuda:99' here"),
    ],
)
def test_what_cannot_be_used_leaves_no_folder(here, name, override, message):
    with pytest.raises(ConfigError, match=rf"^{name}\.yaml: .*{message}") as caught:
        run(name, "out", override, device=None)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_a_checkpoint_that_does_not_fit(here):
    with pytest.raises(ConfigError, match=r"^--checkpoint: runs/teacher/teacher\.pt does not fit VisionTransformer: "):
        evaluate_checkpoint(load_config("student.yaml"), Path("runs/teacher/teacher.pt"), "cpu")


def test_evaluation_gives_the_final_figure(here):
    final = summary(Path("runs/student"))["final"]["top1"]
    for name in ("student.safetensors", "student.pt"):
        result = evaluate_checkpoint(load_config("student.yaml"), Path("runs/student") / name, "cpu")
        assert result == {"top1": final, "samples": 24}


def test_the_state_of_accelerate_is_fresh_for_each_run(here):
    run("student", "out", "device.precision=bf16")
    assert make_accelerator(Placement(torch.device("cpu"), None, "no")).mixed_precision == "no"


def test_weights_that_are_not_finite_are_not_saved(here):
    with pytest.raises(ConfigError, match=r"weights are not finite any more: they are not saved|the loss is (nan|inf)"):
        run("teacher", "out", "train.optimizer.kwargs.lr=1.0e+38")
    assert not Path("out/student.safetensors").exists()
    assert summary(Path("out"))["status"] == "failed"


def test_the_mean_is_over_the_last_three_epochs(here):
    made = run("teacher", "out", "train.num_epochs=5")
    rows = [row["top1"] for row in made["stages"]["train"]["epochs"]]
    assert made["final"]["val_top1_last3"] == pytest.approx(sum(rows[-3:]) / 3)
    assert sum(rows[-3:]) / 3 != sum(rows) / 5


def test_images_that_the_student_cannot_take_leave_no_folder(here):
    with pytest.raises(ConfigError, match=r"models\.student_model: cannot take images of shape \[2, 3, 32, 32\]: "):
        run("student", "out", "models.student_model.kwargs={model_name: deit_tiny_patch16_224, num_classes: 4}")
    assert not Path("out").exists()


def test_evaluation_does_not_need_the_teachers_device(here):
    Path("far.yaml").write_text(
        Path("student.yaml").read_text("utf-8") + "\ndevice: {teacher: 'cuda:7'}\n", encoding="utf-8"
    )
    assert (
        evaluate_checkpoint(load_config("far.yaml"), Path("runs/student/student.safetensors"), "cpu")["samples"] == 24
    )


class Command:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_stages_own_checkpoint_is_read_safely(here):
    torch.save({"model": Command()}, "evil.pt")
    text = Path("student.yaml").read_text("utf-8")
    stage = "    teacher:\n      forward_proc: 'forward_batch_only'\n"
    assert stage in text
    Path("evil.yaml").write_text(text.replace(stage, stage + "      src_ckpt: 'evil.pt'\n", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.stage1\.teacher\.src_ckpt: evil\.pt cannot be read as weights"):
        run("evil", "out")
    assert not Path("touched").exists()
    assert not Path("out").exists()


def test_a_new_classifier_may_begin_at_class_centres(here, caplog):
    """Again after stage ``embedding``, which leaves the classifier as it is."""
    shutil.copy("runs/student/student.safetensors", "trained.safetensors")
    text = Path("student.yaml").read_text("utf-8")
    for name, value in (("new", "new"), ("begun", "centres")):
        section = f"    src_ckpt: 'trained.safetensors'\n    src_ckpt_classifier: '{value}'\n    dst_ckpt"
        Path(f"{name}.yaml").write_text(text.replace("    dst_ckpt", section, 1), encoding="utf-8")
        run(name, name)
    lines = [line for line in caplog.messages if "begins at 4 class centres" in line]
    assert lines == ["models.student_model: the classifier 'head' begins at 4 class centres"] * 2
    made, random = (load_file(f"{name}/stages/stage1.safetensors") for name in ("begun", "new"))
    run("begun", "still", "train.stage2.optimizer.kwargs.lr=0.0")
    config = load_config("begun.yaml").build()
    student = build_model(*student_entry(config))
    student.load_state_dict(made)
    loader = DataLoader(config["datasets"]["train"], batch_size=12)
    start_at_centres(
        "models.student_model", student, loader, make_accelerator(Placement(torch.device("cpu"), None, "no"))
    )
    torch.testing.assert_close(load_file("still/student.safetensors")["head.weight"], student.head.weight.detach())
    assert not torch.allclose(made["head.weight"], student.head.weight)  # which stage embedding has moved
    assert torch.equal(made["head.bias"], torch.zeros(4))  # as at the start: the stage does not train it
    assert not torch.equal(made["head.weight"], random["head.weight"])
    backbone = [key for key in made if not key.startswith("head.")]
    assert all(torch.equal(made[key], random[key]) for key in backbone)


def test_a_classifier_that_stage_embedding_has_trained_stays(here, caplog):
    shutil.copy("runs/student/student.safetensors", "trained.safetensors")
    section = "    src_ckpt: 'trained.safetensors'\n    src_ckpt_classifier: 'centres'\n    dst_ckpt"
    text = Path("student.yaml").read_text("utf-8").replace("    dst_ckpt", section, 1)
    Path("begun.yaml").write_text(text, encoding="utf-8")
    kwargs = {"stage": "embedding", "sub_terms": {"labels": cross_entropy()}}
    run("begun", "begun", f"train.stage1.criterion.kwargs={json.dumps(kwargs)}")
    assert caplog.text.count("begins at 4 class centres") == 1
