"""What a run leaves behind, and what it keeps of an earlier one."""

import json
import logging

from gkd_plugin.runner.run_folder import RunFolder, package_versions


def test_versions_of_what_decides_a_result():
    versions = package_versions()
    assert {"python", "torch", "timm", "torchdistill", "gkd-plugin"} <= versions.keys()
    assert all(versions.values())


def finished_run(path, text):
    folder = RunFolder(path)
    folder.create(text)
    folder.add_metrics({"loss": 1.0})
    folder.write_summary({"status": text})
    return folder


def test_files(tmp_path):
    folder = finished_run(tmp_path / "runs" / "x", "a: 1\n")
    folder.add_metrics({"loss": 0.5, "top1": 3})
    assert (folder.path / "config.yaml").read_text() == "a: 1\n"
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"loss": 1.0}, {"loss": 0.5, "top1": 3}]
    assert json.loads((folder.path / "summary.json").read_text()) == {"status": "a: 1\n"}
    assert folder.student == folder.path / "student.safetensors"


def test_the_earlier_run_is_kept_and_one_only(tmp_path):
    path = tmp_path / "x"
    for text in ("first", "second", "third"):
        finished_run(path, text)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["x", "x.previous"]
    assert (path / "config.yaml").read_text() == "third"
    assert (tmp_path / "x.previous" / "config.yaml").read_text() == "second"
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 1


def test_students_after_stages_of_an_earlier_run_do_not_stay(tmp_path):
    folder = RunFolder(tmp_path / "x")
    for first in ("stopped before its summary", "with one"):
        folder.create(first)
        folder.student_after("stage1").parent.mkdir(exist_ok=True)
        folder.student_after("stage1").write_bytes(b"weights")
        if first == "with one":
            folder.write_summary({})
        folder.create("second")
        assert not folder.student_after("stage1").exists()
    assert (tmp_path / "x.previous/stages/stage1.safetensors").read_bytes() == b"weights"


def test_a_folder_that_is_not_a_run_is_not_moved(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("keep")
    finished_run(tmp_path / "x", "a")
    assert (tmp_path / "x" / "mine.txt").read_text() == "keep"
    assert not (tmp_path / "x.previous").exists()


def test_everything_logged_goes_to_the_file_while_it_is_open(tmp_path):
    folder = finished_run(tmp_path / "x", "a")
    logging.getLogger().setLevel(logging.INFO)
    count = len(logging.getLogger().handlers)
    with folder.log_file():
        logging.getLogger("torchdistill.core").info("theirs")
        logging.getLogger("gkd_plugin.runner").warning("ours – λ")
    logging.getLogger("gkd_plugin.runner").warning("later")
    lines = (folder.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1:] for line in lines] == [
        ["INFO", "torchdistill.core", "theirs"],
        ["WARNING", "gkd_plugin.runner", "ours – λ"],
    ]
    assert len(logging.getLogger().handlers) == count


def test_other_processes_write_nothing(tmp_path):
    folder = RunFolder(tmp_path / "x", is_main=False)
    folder.create("a")
    folder.add_metrics({})
    folder.write_summary({})
    with folder.log_file():
        logging.getLogger("gkd_plugin").warning("x")
    assert list(tmp_path.iterdir()) == []
