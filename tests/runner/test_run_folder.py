"""What a run leaves behind, and what becomes of an earlier one."""

import json
import logging
from itertools import count
from pathlib import Path

import pytest

from gkd_plugin.data.files import write_atomically
from gkd_plugin.runner import run_folder
from gkd_plugin.runner.run_folder import RunFolder, check_run_folder, package_versions, results_table
from tests.runner.fakes import refused


def finished_run(path, text="a", **settings):
    folder = RunFolder(path, **settings)
    with folder.opened(text):
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


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail\nat line 3")])
def test_nothing_is_left_of_a_write_that_fails(error, tmp_path):
    path = tmp_path / "sub" / "file"

    def fail(temporary):
        temporary.write_text("half")
        raise error

    message = rf"^{path} cannot be written: .*(No space left|enforce fail)"
    refused(message, write_atomically, path, fail)
    assert names(tmp_path / "sub") == []
    write_atomically(path, lambda temporary: temporary.write_text("good"))
    refused(message, write_atomically, path, fail)
    assert names(tmp_path / "sub") == ["file"]
    assert path.read_text() == "good"


def test_files_of_a_run_and_earlier_runs_that_are_kept(tmp_path):
    path = tmp_path / "runs" / "x"
    for text in ("first", "second", "third"):
        folder = finished_run(path, text)
        folder.student_after("stage1").parent.mkdir()
        folder.student_after("stage1").write_text(text)
    folder = RunFolder(path)
    with folder.opened("fourth"):
        for row in ({"loss": 1.0}, {"loss": 0.5, "top1": 3}):
            folder.add_metrics(row)
        folder.write_summary({"status": "λ"})
    assert (path / "config.yaml").read_text() == "fourth"
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"loss": 1.0}, {"loss": 0.5, "top1": 3}]
    assert folder.summary == {"status": "λ"}
    assert names(path) == ["config.yaml", "log.txt", "metrics.jsonl", "summary.json"]
    assert names(tmp_path / "runs") == ["x", "x.previous", "x.previous-2", "x.previous-3"]
    for number, text in (("", "first"), ("-2", "second"), ("-3", "third")):
        for name in ("config.yaml", "stages/stage1.safetensors"):
            assert (tmp_path / f"runs/x.previous{number}" / name).read_text() == text


def test_overwriting_deletes_what_runs_write_and_going_on_deletes_nothing(tmp_path):
    path = tmp_path / "x"
    written = ("stages/stage1.safetensors", "student.safetensors", "checkpoints/1/state", "diagnostics/a.png")
    written += ("export/student.onnx",)
    own = ("teacher.pt", "stages/mine.txt", "notes.txt")
    finished_run(path)
    for name in (*written, *own):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    finished_run(path, "resumed", earlier="resume")
    assert all((path / name).exists() for name in (*written, *own))
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 2
    finished_run(path, "new", earlier="overwrite")
    assert [name for name in (*written, *own) if (path / name).exists()] == list(own)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 1
    assert names(tmp_path) == ["x"]


def test_a_folder_has_one_writer(tmp_path):
    """Other processes and other runs of this one; until the lock's holder has ended."""

    def opened(earlier):
        with RunFolder(tmp_path / "x", earlier=earlier).opened("b"):
            pass

    with RunFolder(tmp_path / "x").opened("a"):
        RunFolder(tmp_path / "x").write_summary({"status": "running"})
        for earlier in ("aside", "overwrite", "resume"):
            refused(r"x: another run writes there; wait for its end", opened, earlier)
        assert (tmp_path / "x/config.yaml").read_text() == "a"
    opened("resume")


@pytest.mark.parametrize(
    ("text", "seed", "differs"),
    [
        ("a: 1\nb: 2\n", 3, ""),
        ("a: 1\nb: 4\n", 3, "line 2 says 'b: 2', not 'b: 4'"),
        ("a: 1\n", 3, "line 2 says 'b: 2', not ''"),
        ("a: 1\nb: 2\n", 0, "x was begun with --seed 3, not 0"),
    ],
)
def test_only_the_same_run_goes_on(text, seed, differs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("x"))
    assert folder.other_than("nothing is there yet", 0) == ""
    with folder.opened("a: 1\nb: 2\n"):
        folder.write_summary({"status": "running", "seed": 3})
    found = folder.other_than(text, seed)
    assert (differs in found, bool(found)) == (True, bool(differs))


def test_a_run_that_another_process_has_finished_does_not_go_on(tmp_path):
    folder = finished_run(tmp_path, "finished", earlier="resume")
    refused("has finished meanwhile", folder.opened("finished").__enter__)
    assert folder.summary == {"status": "finished"}


@pytest.mark.parametrize("earlier", ["aside", "overwrite", "resume"])
@pytest.mark.parametrize("writes", range(2))
def test_a_run_that_ends_as_it_begins_can_begin_again(writes, earlier, tmp_path, monkeypatch):
    run, calls, write = tmp_path / "x", count(), run_folder.write_atomically

    def killed(*args):
        if next(calls) == writes:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(run, earlier=earlier).opened("a", 3).__enter__()
    for name in (".lock", ".summary.json.tmp12"):
        (run / name).touch()
    check_run_folder(run)
    assert RunFolder(run).other_than("a", 3) == ""
    finished_run(run, earlier=earlier)
    assert names(run) == ["config.yaml", "log.txt", "metrics.jsonl", "summary.json"]


@pytest.mark.parametrize("summary", [None, "no JSON", "[]", '{"mine": 1}'])
def test_a_folder_that_is_not_a_run_is_not_moved(summary, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine.txt").write_text("keep")
    if summary is not None:
        (tmp_path / "x/summary.json").write_text(summary)
    finished_run(tmp_path / "x")
    assert (tmp_path / "x/mine.txt").read_text() == "keep"
    assert not (tmp_path / "x.previous").exists()


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
    with folder.opened("a"):
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
    with folder.opened("a"):
        folder.add_metrics({})
        folder.write_metrics([])
        folder.write_summary({})
        logging.getLogger("gkd_plugin").warning("x")
    assert names(tmp_path) == []


def summary(name, top1, teacher=None, **student):
    made = {
        "folder": f"runs/{name}",
        "student": {"key": "timm_model", "kwargs": {}, "classes": 5, "parameters": 1234567, **student},
        "stages": {"stage1": {"num_epochs": 10}, "stage2": {"num_epochs": 30}},
        "final": {} if top1 is None else {"top1": top1},
    }
    return made if teacher is None else {**made, "teacher": teacher}


def test_the_table_has_one_line_per_run():
    student = summary("student", 87.654, {"ncm_top1": 62.36}, key="wide_resnet", classes=None)
    made = [summary("teacher", 99.0, kwargs={"model_name": "resnet10t"}), student, summary("other", None, {})]
    made.append({"folder": "runs/broken", "status": "failed"})
    assert results_table(made).splitlines() == [
        "run           student      parameters  classes  teacher     epochs  top-1 %",
        "---------------------------------------------------------------------------",
        "runs/teacher  resnet10t    1,234,567   5        none        10+30   99.00",
        "runs/student  wide_resnet  1,234,567   ?        NCM 62.4 %  10+30   87.65",
        "runs/other    timm_model   1,234,567   5        yes         10+30   –",
        "runs/broken   failed",
    ]


def test_a_folder_that_another_machine_does_not_see_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run", is_main=False)
    refused(r"^--output: .*run is not where the main process writes; ", folder.check_is_seen, seconds=0)
    with RunFolder(tmp_path / "run").opened(""):
        folder.check_is_seen(seconds=0)
