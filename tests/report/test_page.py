"""The page: one file without a network, with what there is; what is gone is said."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from gkd_plugin import cli
from gkd_plugin.cli import main
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import dump
from gkd_plugin.report import page
from gkd_plugin.report.page import report, write_grid_page
from gkd_plugin.runner.run import run_config, run_probe
from tests.compare.fakes import RESULTS
from tests.fakes import cross_entropy
from tests.runner.fakes import refused, student_config

STUDENT = Path("runs/student")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags in balance; the sources of images, the words, and what leads out of the page."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.words, self.outside = [], [], [], []
        self.size = path.stat().st_size
        self.feed(path.read_text("utf-8"))
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag == "img":
            self.images.append((given["alt"], given["src"]))
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        self.outside += [tag] if tag in ("script", "link", "iframe") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def checked(path):
    found = Page(path)
    assert found.outside == []
    assert found.size < 3_000_000
    return found


@pytest.fixture(scope="module")
def control(finished):
    """A run of the same student on the same images without a teacher, in the folder of the others."""
    tree = student_config()
    section = {key: value for key, value in tree["train"]["stage2"].items() if key not in ("teacher", "student")}
    section |= {"model": {"forward_proc": "forward_batch_only"}, "pre_epoch_process": None}
    section["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"cross_entropy": cross_entropy()}}}
    student = {key: value for key, value in tree["models"]["student_model"].items() if key != "dst_ckpt"}
    tree |= {"models": {"model": student}, "train": {key: value for key, value in section.items() if value is not None}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.folder)
        Path("ce.yaml").write_text(dump(tree), encoding="utf-8")
        run_config(load_config("ce.yaml"), Path("runs/ce"), device="cpu")
    return "runs/ce"


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text("utf-8"))


def test_runs_side_by_side_with_a_control(control, here, capsys):
    assert main(["report", "runs/student", control, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "runs/report.html\n"
    found = checked(Path("runs/report.html"))
    ours, theirs = summary(STUDENT), summary(control)
    for one in (ours, theirs):
        assert f"{one['final']['top1']:.1f} ± " in found.text
    assert "(ce) in 1 instead of 3 epochs: a difference" in found.text
    assert f"difference of {ours['final']['top1'] - theirs['final']['top1']:+.1f} points ± " in found.text
    assert f"{ours['teacher']['ncm_top1']:.1f} % (nearest class mean)" in found.text
    kinds = Counter(alt for alt, _ in found.images)
    assert kinds["Loss, accuracy and learning rate over the epochs"] == 1
    assert kinds["What is taken for what"] == kinds["What the networks tell apart"] == 2
    assert sum(kinds[name] for name in "0123") == 4 * 4  # both were trained on the same images: shown once
    assert found.text.count("Accuracy of each class") == 1


def test_a_probe_is_no_student_without_a_teacher(here):
    run_probe(load_config(STUDENT / "config.yaml"), Path("runs/probe"), "ncm", device="cpu")
    found = checked(report([STUDENT, Path("runs/probe")], device="cpu"))
    assert f"{summary('runs/probe')['final']['top1']:.1f} %" in found.text
    assert "difference of" not in found.text
    assert "trained without a teacher" not in found.text


def test_accuracy_of_each_class_and_the_mistakes_are_those_of_the_student(here):
    shown = page.Shown("own", STUDENT)
    from gkd_plugin.diagnose.restore import RestoredRun
    from gkd_plugin.diagnose.run import look

    run = RestoredRun(STUDENT, "cpu")
    shown.add(run, look(run, here / "pictures", ("confusion",)), here / "pictures")
    run.load_student(run.folder.student)
    batches = [(run.student(images).argmax(1), labels) for images, labels, *_ in run.test.loader]
    predicted, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    found = checked(page.write_page([shown], here / "own.html"))
    for label in range(4):
        share = 100 * float((predicted == label)[labels == label].double().mean())
        assert f"{label} 6 {share:.0f} %" in found.text
    for pair in shown.confused:
        wrong = (labels == int(pair["true"])) & (predicted == int(pair["predicted"]))
        assert (pair["samples"], len(pair["images"])) == (int(wrong.sum()), min(int(wrong.sum()), 4))


@pytest.mark.parametrize("lost", ["runs/teacher/teacher.pt", "runs/student/student.safetensors"])
def test_what_is_gone_is_said_and_the_rest_is_there(here, lost, capsys):
    Path(lost).unlink()
    assert main(["report", "runs/student", "--output", "some/page.html", "--device", "cpu"]) == 0
    found = checked(Path("some/page.html"))
    assert "Not shown" in found.text
    assert lost in found.text
    assert f"{summary(STUDENT)['final']['top1']:.1f} ± " in found.text
    assert [alt for alt, _ in found.images] == ["Loss, accuracy and learning rate over the epochs"]


def test_what_cannot_be_shown(here):
    shutil.copytree(STUDENT, "runs/half")
    text = Path("runs/half/summary.json").read_text("utf-8")
    Path("runs/half/summary.json").write_text(text.replace('"finished"', '"running"'), encoding="utf-8")
    for folders, message in (
        (["runs/student", "runs/half"], r"^runs/half: .* not finished \(status: running\)"),
        (["runs"], "^runs is not a run folder: it has no config.yaml"),
        (["runs/student", "runs/../runs/student"], "^RUN: .*runs/student is given twice$"),
    ):
        refused(message, report, list(map(Path, folders)))
    assert not list(here.rglob("report.html"))


def test_names_tell_folders_apart():
    folders = [Path("grid", method, "seed0") for method in ("ce", "joint")]
    assert page._names(folders) == ["ce/seed0", "joint/seed0"]
    assert page._names(folders[:1]) == ["ce/seed0"]
    assert page._names([Path("runs/joint"), Path("grid/way5/ce/task3/seed0")]) == ["joint", "ce/task3/seed0"]


def test_it_opens_in_the_browser(here, monkeypatch):
    opened = []
    monkeypatch.setattr(page, "report", lambda *_: Path("own.html"))
    monkeypatch.setattr(cli.webbrowser, "open", opened.append)
    assert main(["report", "runs/student", "--open"]) == 0
    assert opened == [(here / "own.html").as_uri()]


def test_the_page_of_a_comparison(tmp_path):
    from gkd_plugin.compare.report import comparison_rows, draw_settings

    draw_settings(RESULTS, "top1", tmp_path)
    (tmp_path / "top1_of_another.png").touch()  # which the comparison did not write
    found = checked(write_grid_page(RESULTS, "top1", tmp_path))
    rows, notes = comparison_rows(RESULTS, "top1")
    for text in [*notes, *(cell for row in rows for cell in row)]:
        assert " ".join(text.split()) in found.text
    assert len(found.images) == 1
    for result in RESULTS:
        assert re.sub(" +", " ", result.cell.title) in found.text
