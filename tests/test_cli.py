"""The command: what it prints, what it returns, and that bad input is one clear line."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from gkd_plugin.cli import _console_log, _lines, main
from gkd_plugin.config.tree import dump
from gkd_plugin.errors import ConfigError
from gkd_plugin.losses import ClassifierStage
from gkd_plugin.runner.stopping import Stopped
from tests.compare.fakes import write_config
from tests.data.fakes import image_tree
from tests.runner.fakes import student_config, write_configs

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


def check_evaluation(name, folder, summary, capsys):
    checkpoint = f"{folder}/student.safetensors"
    capsys.readouterr()
    for words in ([f"{name}.yaml", "--checkpoint", checkpoint], [folder]):
        assert main(["evaluate", *words, "--device", "cpu"]) == 0
        assert capsys.readouterr().out == f"{checkpoint}: top1 {summary['final']['top1']:.2f} % on 24 test samples\n"


def test_run_prints_each_epoch_and_ends_in_a_table(here, capsys):
    assert main(["run", "student.yaml", "--device", "cpu", "--set", "train.stage2.num_epochs=2", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    header = r"\nrun           student   parameters  classes  teacher +epochs  top-1 %\n-+\n"
    row = r"runs/student  test_vit  300,356     4        NCM \d+\.\d %  1\+2     \d+\.\d\d\n"
    assert re.fullmatch(header + row, out)
    for line in (
        r"student\.yaml → runs/student \(device cpu, precision no\)",
        r"teacher: NCM accuracy over the student's 4 classes \d+\.\d ± \d+\.\d % of 24 images",
        r"stage1 1/1  lr 0\.05  loss .*  relationship .*  validation ncm_top1 \d.*  \d+ img/s, \d+ % waiting",
        r"stage2 2/2  lr 0\.05  loss .*  cross_entropy .*  validation top1 \d.*  \d+ img/s, \d+ % waiting",
    ):
        assert re.search(f"^{line}$", err, re.MULTILINE), line
    assert len(re.findall(r"^final top-1 on the test set \d+\.\d\d ± \d+\.\d\d % of 24 images$", err, re.M)) == 1
    assert "Advanced to stage" not in err
    assert "Advanced to stage 2" in (here / "runs/student/log.txt").read_text("utf-8")
    made = json.loads((here / "runs/student/summary.json").read_text("utf-8"))
    assert (made["seed"], made["stages"]["stage2"]["num_epochs"]) == (3, 2)
    check_evaluation("student", "runs/student", made, capsys)


def test_modules_in_the_working_directory_can_be_named(here, monkeypatch):
    """As with python -m, which the console script is not."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (here / "my_local_data.py").write_text("from tests.fakes import TinyImages as MyImages\n")
    words = ["--output", "out", "--set", "train.num_epochs=1", "--set", "datasets.val.key=my_local_data.MyImages"]
    assert main(["run", "teacher.yaml", "--device", "cpu", *words]) == 0


def test_check_says_what_is_fine(here, capsys):
    assert main(["check", "teacher.yaml", "student.yaml", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[:2] for line in out.splitlines()] == [["teacher.yaml", " fine"], ["student.yaml", " fine"]]
    assert err == ""
    assert main(["check", "student.yaml", "--set", "models.teacher_model.kwargs.num_classes=7"]) == 2
    assert re.match(r"refilled: error: student\.yaml: models\.teacher_model\.src_ckpt: ", capsys.readouterr().err)
    assert {path.name for path in (here / "runs").iterdir()} == {"teacher"}


def test_check_goes_on_after_a_file_that_is_bad(here, capsys):
    bad = (here / "student.yaml").read_text("utf-8").replace("stage: classifier", "stage: clasifier")
    (here / "bad.yaml").write_text(bad, encoding="utf-8")
    few = (here / "teacher.yaml").read_text("utf-8").replace("num_classes: 4", "num_classes: 3")
    (here / "misfit.yaml").write_text(few, encoding="utf-8")
    words = ["check", "bad.yaml", "nowhere.yaml", "misfit.yaml", "student.yaml", "teacher.yaml", "--device", "cpu"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out.startswith("teacher.yaml: fine")
    assert out.count("\n") == 1
    told = [line.removeprefix("refilled: error: ") for line in err.splitlines()]
    for line, start in zip(told[:3], ("bad.yaml: .*'clasifier'", "nowhere.yaml: ", "misfit.yaml: "), strict=True):
        assert re.match(start, line)
    assert re.match("student.yaml: not checked: .*runs/teacher/teacher.pt.*misfit.yaml", told[-1])


def test_check_without_building_imports_nothing_that_is_named(here, capsys):
    (here / "unsafe.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    text = (here / "student.yaml").read_text("utf-8")
    for old, new in (
        ("- name: gkd_plugin", "- name: gkd_plugin\n- name: unsafe"),
        ("tests.fakes.ViewedImages", "unsafe.images"),
        ("torch.utils.data.RandomSampler", "unsafe.Sampler"),
        ("key: SGD", "key: of_unsafe"),
    ):
        assert old in text
        text = text.replace(old, new)
    (here / "student.yaml").write_text(text, encoding="utf-8")
    assert main(["check", "--no-build", "student.yaml"]) == 0
    assert capsys.readouterr().out == "student.yaml: valid, not built\n"
    assert main(["check", "--no-build", "student.yaml", "--set", "train.stage2.num_epochs=0"]) == 2
    assert "train.stage2.num_epochs: 0 given" in capsys.readouterr().err
    assert main(["check", "student.yaml"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere.yaml"], r"nowhere\.yaml: No such file"),
        (["run", "student.yaml", "--device", "cuda:99"], r"--device: .*'cuda:99' .*: auto, cpu"),
        (["evaluate", "student.yaml", "--checkpoint", "nowhere.pt"], r"--checkpoint: no such file: nowhere\.pt"),
        (["evaluate", "student.yaml"], r"RUN: student\.yaml is a file; .*--checkpoint"),
        (["evaluate", "broken"], r"RUN: broken/student\.safetensors cannot be read as weights: it is empty"),
        (["predict", "runs/teacher", "x.png"], r"RUN: runs/teacher is not a run folder: it has no config\.yaml"),
        (
            ["run", "student.yaml", "--set", "train.stage2.student.forward_hook.output=[embeding]"],
            r"train\.stage2\.student\.forward_hook\.output: .* no module 'embeding'; did you mean 'embedding'",
        ),
    ],
)
def test_bad_input_is_one_clear_line(words, message, here, capsys):
    (here / "broken").mkdir()
    (here / "broken/student.safetensors").touch()
    (here / "broken/config.yaml").write_text((here / "student.yaml").read_text("utf-8"), encoding="utf-8")
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *built, last = err.splitlines()
    assert re.fullmatch(rf"refilled: error: .*{message}.*", last), err
    assert (len(built) > 0) == ("forward_hook" in words[-1])  # what was done until then is told
    assert {path.name for path in here.iterdir()} == {"teacher.yaml", "student.yaml", "runs", "broken"}
    assert {path.name for path in (here / "runs").iterdir()} == {"teacher"}
    with pytest.raises((ConfigError, OSError)):
        main([*words, "--debug"])


def test_photos_are_told_and_measured(trained, tmp_path, capsys):
    run, table = str(trained / "runs/teacher"), tmp_path / "table.csv"
    image_tree(tmp_path / "photos", "01", 1)
    assert main(["predict", run, f"{tmp_path}/photos", "nowhere.png", "--topk", "2", "--csv", str(table)]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"(.*photos/[01]/0\.png: \d \d+\.\d\d %, \d \d+\.\d\d %\n){2}", out)
    assert re.search(r"^warning: .*: nowhere\.png$", err, re.MULTILINE)
    head, *rows = csv.reader(table.open(encoding="utf-8"))
    assert head == ["path", "rank", "class", "probability"]
    assert [row[:2] for row in rows] == [[f"{tmp_path}/photos/{k}/0.png", rank] for k in "01" for rank in "12"]
    assert [f"{row[2]} {100 * float(row[3]):.2f} %" in out for row in rows] == [True] * 4
    assert main(["predict", run, "nowhere.png"]) == 2
    assert capsys.readouterr().err.count("nowhere.png") == 1
    assert main(["evaluate", run, "--data", f"{tmp_path}/photos", "--device", "cpu"]) == 0
    assert re.fullmatch(rf"{run}: top1 \d+\.00 % on 2 images of {tmp_path}/photos\n", capsys.readouterr().out)


def test_a_loss_that_is_not_finite_is_told_once(here, capsys, monkeypatch):
    forward = ClassifierStage.forward
    monkeypatch.setattr(ClassifierStage, "forward", lambda *args: forward(*args) * torch.nan)
    assert main(["run", "student.yaml", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.count("the loss is nan") == 1
    assert re.fullmatch(r"refilled: error: student\.yaml: the loss is nan at stage2 .*", err.splitlines()[-1])


IN_WORKER = "Caught an error in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  …\n"


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (PermissionError(13, "Permission denied", "x.npz"), ["[Errno 13] Permission denied: 'x.npz'"]),
        (OSError(f"{IN_WORKER}OSError: broken"), ["OSError: broken"]),
        (OSError(), ["OSError"]),
        (ConfigError(f"{IN_WORKER}gkd_plugin.errors.ConfigError: a.png: it is damaged\n"), ["a.png: it is damaged"]),
        (ConfigError("x.yaml: 2 problems\n  one\n  two"), ["x.yaml: 2 problems", "  one", "  two"]),
    ],
)
def test_the_lines_of_an_error(error, lines):
    assert _lines(error) == lines


@pytest.mark.parametrize(
    ("stop", "name", "code"),
    [
        (KeyboardInterrupt(), "SIGINT", 130),
        (Stopped("SIGTERM"), "SIGTERM", 143),
        (Stopped("SIGUSR1"), "SIGUSR1", 138),
        (KeyboardInterrupt("SIGTERM"), "SIGTERM", 143),  # the second one
    ],
)
def test_the_code_of_a_stop(here, capsys, monkeypatch, stop, name, code):
    monkeypatch.setattr("gkd_plugin.runner.run.run_all", Mock(side_effect=stop))
    assert main(["run", "student.yaml"]) == code
    assert re.fullmatch(f"refilled: stopped by {name}; .*--resume.*\n", capsys.readouterr().err)


def test_a_student_of_photos_that_stops_says_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gkd_plugin.recipe.write_recipe", Mock(return_value="written"))
    monkeypatch.setattr("gkd_plugin.runner.run.run_all", Mock(side_effect=Stopped("SIGTERM")))
    words = ["--teacher", "x", "--student", "y", "--seed", "3", "--device", "cpu", "--output", "my runs"]
    assert main(["distill", "photos", *words]) == 143
    told = capsys.readouterr().err.partition("refilled run ")[2]
    assert "--output 'my runs' --seed 3 --device cpu --resume" in told


def grid_of(*words):
    return ["compare", "tiny.yaml", "--output", "grid", "--device", "cpu", *words]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with a configuration to compare with."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    return tmp_path


def test_a_grid_of_methods_overlaps_and_seeds(tiny, capsys):
    words = grid_of("--methods", "ce,kd", "--overlap", "0,100", "--seeds", "0,1", "--set", "train.stage2.num_epochs=1")
    assert main(words) == 0
    out, err = capsys.readouterr()
    header, _, ce, kd, note, teacher, _, page = out.strip().splitlines()
    assert note.startswith("top1 in %, mean ± standard error over seeds (the teacher is the same in all); − ce: paired")
    assert re.fullmatch(r"the teacher's NCM accuracy before training in %: overlap 100 % \d+\.\d", teacher)
    assert re.fullmatch(r"method +overlap 0 % +− ce +overlap 100 % +− ce +preparation \+ training", header)
    mean, seconds = r"\d+\.\d ± \d+\.\d", r" +\d+\.\d \+ \d+\.\d s"
    assert re.fullmatch(rf"cross-entropy +{mean} +{mean}{seconds}", ce)
    assert re.fullmatch(rf"KD +needs the same classes +{mean} +[+-]{mean}(?: \(p [\d.]+\))?{seconds}", kd)
    assert re.search(r"^\[6/6\] overlap 100 %, kd, seed 1: top1 \d+\.\d\d % \(\d+ s\)$", err, re.MULTILINE)
    assert page == str(Path("grid/report.html"))
    made = {"overlap0", "overlap100", "report.html", "results.csv", "table.txt"}
    made |= {"top1_against_overlap.png", "top1_against_overlap.svg"}
    assert {path.name for path in (tiny / "grid").iterdir()} == made
    assert len((tiny / "grid/results.csv").read_text("utf-8").splitlines()) == 9
    assert {path.name for path in (tiny / "grid/overlap0").iterdir()} == {"ce"}
    assert main(words) == 0
    again, err = capsys.readouterr()
    assert (again, "cells: 0 to run, 6 finished already, 2 not served" in err) == (out, True)
    (tiny / "grid/report.html").unlink()
    (tiny / "grid/report.html/x").mkdir(parents=True)
    assert main(words) == 2
    without, err = capsys.readouterr()
    assert (without.split("\n"), "report.html" in err) == ([*out.split("\n")[:-2], ""], True)  # the table is shown


def test_a_grid_goes_on_after_a_cell_that_fails(tiny, capsys):
    (tiny / "fails.yaml").write_text("stages: [{student: {forward_hook: {output: ['embeding']}}}]\n", encoding="utf-8")
    assert main(grid_of("--methods", "fails.yaml,ce")) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^failed: as configured, fails, seed 0: .*'embeding'.*$", out, re.MULTILINE)
    assert re.search(r"^error: \[1/2\] as configured, fails, seed 0: failed: .*'embeding'", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models"], "the following arguments are required: PATTERN"),
        (["distil", "x"], "argument COMMAND: 'distil' is unknown; did you mean 'distill'"),
        (["zzz"], "argument COMMAND: 'zzz' is unknown; allowed: 'run', 'check', "),
        (grid_of("--score", "top2"), "argument --score: 'top2' is unknown; did you mean 'top"),
        (["run"], "the following arguments are required: CONFIG"),
        (
            ["evaluate", "x", "--data", "x", "--checkpoint", "x"],
            "argument --checkpoint: not allowed with argument --data",
        ),
        (["predict", "x"], "the following arguments are required: IMAGE|DIR"),
        (["run", "x", "--seed", "-1"], "argument --seed: '-1' is not a whole number from 0 to 4294967295"),
        (["diagnose", "x", "--known", "0,a"], "argument --known: 'a' is not a class index; give a list such as 0,1,2"),
        (grid_of("--seeds", "0,1,0"), "argument --seeds: '0,1,0' names something twice"),
        (grid_of("--seeds", ","), "argument --seeds: names nothing"),
        (grid_of("--overlap", "101"), "argument --overlap: '101' is not a percentage from 0 to 100"),
        (grid_of("--overlap", "half"), "argument --overlap: 'half' is not a percentage from 0 to 100"),
        (grid_of("--tasks", "0"), "argument --tasks: '0' is not a whole number of at least 1"),
        (grid_of("--tasks", "1,x"), "argument --tasks: 'x' is not a whole number from 0"),
        *((["run", "x", "--seed", n], f"argument --seed: {n!r} is not a whole") for n in ("1_0", " 5 ", "+3")),
        (grid_of("--ways", "0"), "argument --ways: '0' is not a whole number of at least 1"),
        (grid_of("--shots", "1,1"), "argument --shots: '1,1' names something twice"),
        (grid_of("--memory", "-1"), "argument --memory: '-1' is not a whole number from 0"),
        (grid_of("--jobs", "0"), "argument --jobs: '0' is not a whole number of at least 1"),
    ],
)
def test_usage_errors(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"refilled: error: {re.escape(message)}.* \(options: refilled.* --help\)", line)
    assert list(tmp_path.iterdir()) == []


def test_two_gloo_processes_under_torchrun_train_as_one_with_their_batches_together(here, capsys):
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_endpoint"]
    words += ["localhost:0", "--rdzv_backend", "c10d", "-m", "gkd_plugin", "run", "teacher.yaml", "student.yaml"]
    config = {**student_config(), "teacher_cache": {"views": 2, "folder": "shared"}, "device": {"teacher": "sharded"}}
    config["train"]["stage2"]["teacher"]["auxiliary_model_wrapper"]["kwargs"]["local_classifier"] = "probe"
    Path("student.yaml").write_text(dump(config), "utf-8")
    words += ["--device", "cpu", "--output", "out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run([sys.executable, *words], cwd=here, env=env, check=False, **options)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("final top-1") == 2  # one for each configuration: the second process says nothing
    assert result.stdout.count("top-1 %") == 1
    assert {path.name for path in (here / "out").iterdir()} == {"teacher", "student"}
    for name in ("teacher", "student"):
        made = json.loads((here / f"out/{name}/summary.json").read_text("utf-8"))
        assert (made["status"], made["processes"]) == ("finished", 2)
        check_evaluation(name, f"out/{name}", made, capsys)
    sizes = [f"--set=train.stage{number}.train_data_loader.kwargs.batch_size=24" for number in (1, 2)]
    sizes += ["--set=teacher_cache.folder=of_one", "--set=device.teacher=null"]
    teacher = "--set=models.teacher_model.src_ckpt=out/teacher/teacher.pt"
    assert main(["run", "student.yaml", "--device", "cpu", "--output", "alone", teacher, *sizes]) == 0
    shared, alone = (load_file(here / f"{folder}/student.safetensors") for folder in ("out/student", "alone"))
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-4)  # no batch norm; answers are kept in float16
    summaries = [here / folder / "summary.json" for folder in ("out/student", "alone")]
    found = [json.loads(path.read_text("utf-8")) for path in summaries]
    assert [made["teacher_device"] for made in found] == ["sharded", None]
    assert found[0]["teacher_weights"] == found[1]["teacher_weights"]
    stages = [made["stages"] for made in found]
    for name in stages[0]:
        (row,), (want,) = (of[name]["epochs"] for of in stages)
        for figure in ("loss", "relationship" if name == "stage1" else "local_classifier"):
            rel = 1e-4 if name == "stage1" else 1e-2  # a probe of 24 images magnifies what float16 rounds
            assert row[figure] == pytest.approx(want[figure], rel=rel)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_not_told_what_its_bars_show(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with _console_log("gkd_plugin", logging.INFO):
        logging.getLogger("gkd_plugin.x").info("step 3", extra={"is_on_bar": True})
        logging.getLogger("gkd_plugin.x").info("epoch 1")
    assert [logging.getLogger(name).level for name in ("root", "gkd_plugin")] == [logging.WARNING, logging.NOTSET]
    assert capsys.readouterr().err.split() == (["epoch", "1"] if is_terminal else ["step", "3", "epoch", "1"])
