"""The command: what it prints, what it returns, and that bad input is one clear line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gkd_plugin
from gkd_plugin.cli import main
from gkd_plugin.errors import ConfigError
from gkd_plugin.losses import ClassifierStage
from tests.runner.fakes import write_configs

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the configurations and a trained teacher."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs(folder)
        assert main(["run", "teacher.yaml", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The same configurations in a new folder, with a link to the teacher."""
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    (tmp_path / "runs/teacher").mkdir(parents=True)
    (tmp_path / "runs/teacher/teacher.pt").symlink_to(trained / "runs/teacher/teacher.pt")
    return tmp_path


def command(*words, folder=None, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


# --- what it does ----------------------------------------------------------------------------------------------------


def test_run_prints_each_epoch_and_ends_in_a_table(here, capsys):
    assert main(["run", "student.yaml", "--device", "cpu", "--set", "train.stage2.num_epochs=2", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"\nrun      student   parameters  classes  teacher +epochs  top-1 %\n-+\n"
        r"student  test_vit  300,356     4        NCM \d+\.\d %  1\+2     \d+\.\d\d\n",
        out,
    )
    for line in (
        r"student\.yaml → runs/student \(device cpu, precision no\)",
        r"teacher: NCM accuracy over the student's 4 classes \d+\.\d %",
        r"warning: the training set offers no evaluation view: .*",
        r"stage1 1/1  lr 0\.05  loss .*  relationship .*  ncm_top1 \d.*  \d+ img/s",
        r"stage2 2/2  lr 0\.05  loss .*  cross_entropy .*  top1 \d.*  \d+ img/s",
        r"final top-1 on the test set \d+\.\d\d %",
    ):
        assert re.search(f"^{line}$", err, re.MULTILINE), line
    assert "Advanced to stage" not in err
    made = json.loads((here / "runs/student/summary.json").read_text("utf-8"))
    assert made["seed"] == 3
    assert made["stages"]["stage2"]["num_epochs"] == 2
    assert re.search(r"stage2:\n    num_epochs: 2\n", (here / "runs/student/config.yaml").read_text("utf-8"))

    checkpoint = "runs/student/student.safetensors"
    assert main(["evaluate", "student.yaml", "--checkpoint", checkpoint, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{checkpoint}: top1 {made['final']['top1']:.2f} % on 24 test samples\n"


def test_two_commands_in_one_process_say_each_thing_once(here, capsys):
    for _ in range(2):
        capsys.readouterr()
        assert main(["run", "teacher.yaml", "--device", "cpu", "--output", "out"]) == 0
    assert capsys.readouterr().err.count("final top-1") == 1


@pytest.mark.parametrize("words", [[], ["run"], ["evaluate", "student.yaml"], ["run", "x", "--seed", "-1"], ["fly"]])
def test_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: refilled" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"refilled {gkd_plugin.__version__}\n"


def test_python_dash_m_is_the_same_command(tmp_path):
    result = command("-m", "gkd_plugin", "--version", folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"refilled {gkd_plugin.__version__}\n")


def test_modules_in_the_working_directory_can_be_named(here, monkeypatch):
    """As with python -m, which the console script is not."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (here / "my_local_data.py").write_text("from tests.fakes import TinyImages as MyImages\n")
    text = (here / "teacher.yaml").read_text("utf-8").replace("tests.fakes.TinyImages", "my_local_data.MyImages")
    (here / "teacher.yaml").write_text(text, encoding="utf-8")
    assert main(["run", "teacher.yaml", "--device", "cpu", "--output", "out"]) == 0


# --- bad input -------------------------------------------------------------------------------------------------------


def sets(*assignments):
    return ["run", "student.yaml", *(word for item in assignments for word in ("--set", item))]


BAD = {
    "unknown timm name": (
        sets("models.student_model.kwargs.model_name=resnet18x"),
        r"models\.student_model\.kwargs\.model_name: timm has no model 'resnet18x'; did you mean .*'resnet18'",
    ),
    "missing teacher checkpoint": (
        sets("models.teacher_model.src_ckpt=nowhere.pt"),
        r"models\.teacher_model\.src_ckpt: no such file: nowhere\.pt",
    ),
    "missing checkpoint to evaluate": (
        ["evaluate", "student.yaml", "--checkpoint", "nowhere.safetensors"],
        r"--checkpoint: no such file: nowhere\.safetensors",
    ),
    "checkpoint that is something else": (
        sets("models.teacher_model.src_ckpt=student.yaml"),
        r"models\.teacher_model\.src_ckpt: student\.yaml cannot be read as weights: ",
    ),
    "weights of another architecture": (
        sets("models.teacher_model.kwargs.model_name=test_efficientnet"),
        r"models\.teacher_model\.src_ckpt: runs/teacher/teacher\.pt does not fit EfficientNet: \d+ missing: ",
    ),
    "teacher of other channels than the data": (
        sets(
            "models.teacher_model.kwargs={model_name: test_resnet, in_chans: 1}", "models.teacher_model.src_ckpt=null"
        ),
        r"models\.teacher_model: the teacher takes images of 1 channels, the data has 3; its kwargs\.in_chans ",
    ),
    "image size that the student refuses": (
        sets("models.student_model.kwargs={model_name: deit_tiny_patch16_224, num_classes: 4}"),
        r"models\.student_model: cannot take images of shape \[2, 3, 32, 32\]: .* \(its kwargs\.img_size: 32 builds it",
    ),
    "encoder as student": (
        sets("models.student_model.kwargs={model_name: qwen3_vit_88m_enc, num_classes: 4, depth: 1, img_size: 32}"),
        r"models\.student_model: timm's 'qwen3_vit_88m_enc' is an encoder without a classifier",
    ),
    "preprocessing misspelt": (
        sets("train.stage2.teacher.auxiliary_model_wrapper={key: refilled_teacher, kwargs: {preprocessing: dat}}"),
        r"train\.stage2\.teacher\.auxiliary_model_wrapper\.kwargs\.preprocessing: there is no 'dat'; did you mean",
    ),
    "missing configuration": (["run", "nowhere.yaml"], r"nowhere\.yaml: No such file"),
    "unknown registry key": (
        sets("models.student_model.key=timm_modell"),
        r"models\.student_model\.key: 'timm_modell' is not registered; did you mean 'timm_model'",
    ),
    "unknown criterion": (
        sets("train.stage1.criterion.key=refiled"),
        r"train\.stage1\.criterion\.key: 'refiled' is not registered; did you mean 'refilled'",
    ),
    "hook path that does not exist": (
        sets("train.stage2.student.forward_hook.output=[embeding]"),
        r"train\.stage2\.student\.forward_hook\.output: VisionTransformer has no module 'embeding'; did you mean 'emb",
    ),
    "hook path that is not recorded": (
        sets("train.stage1.student.forward_hook.output=[blocks]"),
        r"train\.stage1\.student\.forward_hook\.output: stage 'embedding' reads 'embedding', which is not listed",
    ),
    "stage misspelt": (
        sets("train.stage1.criterion.kwargs.stage=emebdding"),
        r"there is no stage 'emebdding'; did you mean 'embedding'\?",
    ),
    "class index out of range": (
        sets("datasets.train.init.kwargs.classes=5"),
        r"datasets\.train: class index out of range: label 4, but models\.student_model has 4 classes",
    ),
    "one class only": (sets("datasets.train.init.kwargs.classes=1"), r"datasets\.train: holds one class only"),
    "one sample in every class": (
        sets("datasets.train.init.kwargs.per_class=1"),
        r"datasets\.train: every class has one sample: stage 'embedding' needs pairs",
    ),
    "path of --set that does not exist": (sets("train.stage1.num_epoch=1"), r"--set .*did you mean 'num_epochs'"),
    "device that does not exist": (
        ["run", "student.yaml", "--device", "cuda:99"],
        r"--device: there is no device 'cuda:99' here; this machine has: auto, cpu",
    ),
    "output that is a file": (["run", "student.yaml", "--output", "student.yaml"], r"student\.yaml is a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, here, capsys):
    words, message = BAD[name]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"refilled: error: .*{message}.*\n", err), err
    assert {path.name for path in here.iterdir()} == {"teacher.yaml", "student.yaml", "runs"}
    assert {path.name for path in (here / "runs").iterdir()} == {"teacher"}


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "no description"])
def test_a_damaged_cache_is_refused_before_anything_is_written(here, capsys, damage):
    (here / "student.yaml").write_text((here / "student.yaml").read_text("utf-8") + "\nteacher_cache: {views: 2}\n")
    assert main(["run", "student.yaml", "--device", "cpu"]) == 0
    shutil.rmtree(here / "runs" / "student")
    array = next((here / "runs" / "teacher_cache").glob("*.npy"))
    content = array.read_bytes()
    if damage == "no description":
        array.with_suffix(".json").unlink()
    else:
        array.write_bytes(content[:-1] if damage == "truncated" else content[:-4] + b"abcd")
    capsys.readouterr()
    assert main(["run", "student.yaml", "--device", "cpu"]) == 2
    assert re.fullmatch(
        r"refilled: error: student\.yaml: teacher_cache\.folder: .*delete .*\n", capsys.readouterr().err
    )
    assert not (here / "runs" / "student").exists()


def test_a_missing_dataset_file(here, capsys):
    text = (here / "teacher.yaml").read_text("utf-8")
    missing = "train: !import_call {key: 'numpy.load', init: {kwargs: {file: 'nowhere.npz'}}}\n"
    (here / "teacher.yaml").write_text(re.sub(r"train: !import_call .*\n", missing, text), encoding="utf-8")
    assert main(["run", "teacher.yaml", "--output", "out"]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"refilled: error: teacher\.yaml: datasets\.train \(line \d+\): .*'?nowhere\.npz'?\n", err), err
    assert not (here / "out").exists()


def test_yaml_that_does_not_parse_is_named_with_its_line(here, capsys):
    (here / "student.yaml").write_text("models: {a: 1\ntrain: 2\n", encoding="utf-8")
    assert main(["run", "student.yaml"]) == 2
    assert re.fullmatch(r"refilled: error: student\.yaml, line 2, .*\n", capsys.readouterr().err)


def test_several_problems_are_a_line_each(here, capsys):
    assert main(sets("train.stage1.num_epochs=0", "train.stage2.num_epochs=0")) == 2
    assert re.fullmatch(
        r"refilled: error: student\.yaml: 2 problems\n"
        r"refilled: error:   train\.stage1\.num_epochs: .*\nrefilled: error:   train\.stage2\.num_epochs: .*\n",
        capsys.readouterr().err,
    )


def test_batches_of_one_class_only(here, capsys):
    text = (here / "student.yaml").read_text("utf-8").replace("RandomSampler", "SequentialSampler")
    (here / "student.yaml").write_text(text.replace("batch_size: 12", "batch_size: 6"), encoding="utf-8")
    assert main(["run", "student.yaml", "--device", "cpu"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refilled: error:")]
    assert len(errors) == 1
    assert "student.yaml: stage1 1/1: no batch held two samples of one class and one of another" in errors[0]


def test_a_loss_that_is_not_finite(here, capsys, monkeypatch):
    forward = ClassifierStage.forward
    monkeypatch.setattr(ClassifierStage, "forward", lambda *args: forward(*args) * torch.nan)
    assert main(["run", "student.yaml", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.count("the loss is nan") == 1
    assert err.splitlines()[-1] == (
        "refilled: error: student.yaml: the loss is nan at stage2 1/1, step 1: stopped before the weights changed; the "
        "last good weights are runs/student/student.safetensors"
    )
    assert json.loads((here / "runs/student/summary.json").read_text("utf-8"))["status"] == "failed"
    assert main(["evaluate", "student.yaml", "--checkpoint", "runs/student/student.safetensors"]) == 0


def test_debug_shows_the_traceback(here):
    with pytest.raises(ConfigError, match="no such file: nowhere"):
        main([*sets("models.teacher_model.src_ckpt=nowhere.pt"), "--debug"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "x.npz"), "[Errno 13] Permission denied: 'x.npz'"),
        (OSError("Caught X in DataLoader worker\nTraceback:\n  File\nOSError: broken image"), "OSError: broken image"),
        (OSError(), "OSError"),
    ],
)
def test_files_that_cannot_be_read_or_written(here, capsys, monkeypatch, error, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("gkd_plugin.runner.batch.run_all", fail)
    assert main(["run", "student.yaml"]) == 2
    assert capsys.readouterr().err == f"refilled: error: {line}\n"
    with pytest.raises(OSError):
        main(["run", "student.yaml", "--debug"])


def test_ctrl_c(here, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("gkd_plugin.runner.batch.run_all", stop)
    assert main(["run", "student.yaml"]) == 130
    assert capsys.readouterr().err == "refilled: stopped\n"


# --- two processes ---------------------------------------------------------------------------------------------------


def test_two_gloo_processes_under_torchrun(here, capsys):
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_endpoint"]
    words += ["localhost:0", "--rdzv_backend", "c10d", "-m", "gkd_plugin", "run", "teacher.yaml", "student.yaml"]
    result = command(*words, "--device", "cpu", "--output", "out", folder=here)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("final top-1") == 2  # one for each configuration: the second process says nothing
    assert result.stdout.count("top-1 %") == 1
    assert {path.name for path in (here / "out").iterdir()} == {"teacher", "student"}
    for name in ("teacher", "student"):
        made = json.loads((here / f"out/{name}/summary.json").read_text("utf-8"))
        assert (made["status"], made["processes"]) == ("finished", 2)
        checkpoint = f"out/{name}/student.safetensors"
        assert main(["evaluate", f"{name}.yaml", "--checkpoint", checkpoint, "--device", "cpu"]) == 0
        assert capsys.readouterr().out == f"{checkpoint}: top1 {made['final']['top1']:.2f} % on 24 test samples\n"
