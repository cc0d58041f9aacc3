"""What a run leaves behind, and what it keeps of an earlier one."""

import json
import logging

import pytest

from gkd_plugin.runner import run_folder
from gkd_plugin.runner.run_folder import RunFolder, check_run_folder, package_versions, results_table, write_atomically
from tests.runner.fakes import refused


def finished_run(path, text="a"):
    folder = RunFolder(path)
    folder.create(text)
    folder.add_metrics({"loss": 1.0})
    folder.write_summary({"status": text})
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_versions_of_what_decides_a_result(monkeypatch):
    assert all(package_versions().values())
    assert {"python", "torch", "timm", "torchdistill", "gkd-plugin"} <= package_versions().keys()
    monkeypatch.setattr(run_folder, "PACKAGES", ("torch", "not-installed"))
    assert package_versions()["not-installed"] is None


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    path = tmp_path / "sub" / "file"

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert names(tmp_path / "sub") == []
    write_atomically(path, lambda temporary: temporary.write_text("good"))
    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert names(tmp_path / "sub") == ["file"]
    assert path.read_text() == "good"


def test_files_and_the_one_earlier_run_that_is_kept(tmp_path):
    path = tmp_path / "runs" / "x"
    for text in ("first", "second", "third"):
        folder = finished_run(path, text)
        folder.student_after("stage1").parent.mkdir(exist_ok=True)
        folder.student_after("stage1").write_text(text)
    folder.create("stopped before its summary")
    assert not folder.student_after("stage1").exists()
    assert not (path / "metrics.jsonl").exists()
    folder.create("fourth")
    for row in ({"loss": 1.0}, {"loss": 0.5, "top1": 3}):
        folder.add_metrics(row)
    folder.write_summary({"status": "λ"})
    assert (path / "config.yaml").read_text() == "fourth"
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"loss": 1.0}, {"loss": 0.5, "top1": 3}]
    assert json.loads((path / "summary.json").read_text("utf-8")) == {"status": "λ"}
    assert names(tmp_path / "runs") == ["x", "x.previous"]
    for name in ("config.yaml", "stages/stage1.safetensors"):
        assert (tmp_path / "runs/x.previous" / name).read_text() == "third"


@pytest.mark.parametrize("summary", [None, "no JSON", "[]", '{"mine": 1}'])
def test_a_folder_that_is_not_a_run_is_not_moved(summary, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine.txt").write_text("keep")
    if summary is not None:
        (tmp_path / "x/summary.json").write_text(summary)
    finished_run(tmp_path / "x")
    assert (tmp_path / "x/mine.txt").read_text() == "keep"
    assert not (tmp_path / "x.previous").exists()


def test_what_no_run_has_written_is_never_deleted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for number in range(5):
        finished_run(tmp_path / "x", f"models: {{model: {{dst_ckpt: {tmp_path}/x/teacher.pt}}}}")
        (tmp_path / "x/teacher.pt").write_text(str(number))
        if number == 1:
            (tmp_path / "x/dst_ckpt").write_text(str(number))  # a word of its configuration
        if number == 2:
            (tmp_path / "x/stages").mkdir()
            (tmp_path / "x/stages/mine.txt").write_text(str(number))
            (tmp_path / "x/stages/stage1.safetensors").touch()
    assert names(tmp_path) == ["x", "x.previous", "x.previous2", "x.previous3"]
    for name, kept in (("2/dst_ckpt", "1"), ("3/stages/mine.txt", "2"), ("/teacher.pt", "3")):
        assert (tmp_path / f"x.previous{name}").read_text() == kept
    assert caplog.text.count("which no run has written: it is kept as") == 2


def test_only_an_empty_folder_or_that_of_a_run_is_written_to(tmp_path):
    """A checkpoint of torchdistill's script and logs may be there."""
    run, other, checkpoint = tmp_path / "x", tmp_path / "y", tmp_path / "y/student.pt"
    check_run_folder(run)
    check_run_folder(tmp_path)
    finished_run(run)
    (run / "notes.txt").touch()
    check_run_folder(run)
    refused(r"^--output: .* holds 'x' and no earlier run; name a new folder$", check_run_folder, tmp_path)
    refused(r"notes\.txt is a file$", check_run_folder, run / "notes.txt")
    other.mkdir()
    (other / "console.log").touch()
    checkpoint.touch()
    check_run_folder(other, checkpoint)
    for given in (None, other / "other.pt", tmp_path / "elsewhere/student.pt"):
        refused(r"holds 'student\.pt' and no earlier run", check_run_folder, other, given)


def test_everything_logged_goes_to_the_file_while_it_is_open(tmp_path):
    folder = finished_run(tmp_path / "x")
    logging.getLogger().setLevel(logging.INFO)
    ours, theirs = logging.getLogger("gkd_plugin.runner"), logging.getLogger("torchdistill.core")
    count = len(logging.getLogger().handlers)
    with folder.log_file():
        theirs.info("theirs")
        theirs.warning("theirs")
        for _ in range(2):
            ours.warning("%s near chance – λ", "teacher")
        ours.error("not a warning")
    ours.warning("later")
    lines = (folder.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1:] for line in lines] == [
        ["INFO", "torchdistill.core", "theirs"],
        ["WARNING", "torchdistill.core", "theirs"],
        *[["WARNING", "gkd_plugin.runner", "teacher near chance – λ"]] * 2,
        ["ERROR", "gkd_plugin.runner", "not a warning"],
    ]
    assert folder.warnings == ["teacher near chance – λ"]
    assert len(logging.getLogger().handlers) == count


def test_other_processes_write_nothing(tmp_path):
    folder = RunFolder(tmp_path / "x", is_main=False)
    folder.create("a")
    folder.add_metrics({})
    folder.write_summary({})
    with folder.log_file():
        logging.getLogger("gkd_plugin").warning("x")
    assert names(tmp_path) == []


def summary(name, top1, teacher=None, **student):
    made = {
        "config": f"configs/{name}.yaml",
        "student": {"key": "timm_model", "kwargs": {}, "classes": 5, "parameters": 1234567, **student},
        "stages": {"stage1": {"num_epochs": 10}, "stage2": {"num_epochs": 30}},
        "final": {} if top1 is None else {"top1": top1},
    }
    return made if teacher is None else {**made, "teacher": teacher}


def test_the_table_has_one_line_per_run():
    student = summary("student", 87.654, {"ncm_top1": 62.36}, key="wide_resnet", classes=None)
    made = [summary("teacher", 99.0, kwargs={"model_name": "resnet10t"}), student, summary("other", None, {})]
    assert results_table(made).splitlines() == [
        "run      student      parameters  classes  teacher     epochs  top-1 %",
        "----------------------------------------------------------------------",
        "teacher  resnet10t    1,234,567   5        none        10+30   99.00",
        "student  wide_resnet  1,234,567   ?        NCM 62.4 %  10+30   87.65",
        "other    timm_model   1,234,567   5        yes         10+30   –",
    ]
