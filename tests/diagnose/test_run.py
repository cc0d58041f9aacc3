"""The command ``refilled diagnose``: its files, its table, and bad input in one line."""

import re
import sys
from pathlib import Path

import pytest

from gkd_plugin.cli import main
from gkd_plugin.diagnose.emphasis import SCORES
from gkd_plugin.diagnose.run import diagnose, figures_table
from gkd_plugin.runner.run_folder import read_json
from tests.runner.fakes import refused

PARTS = ("emphasis", "tuples", "embedding", "confusion")
PICTURES = {f"{part}.{suffix}" for part in PARTS for suffix in ("png", "svg")}


def test_files_and_table(here, capsys):
    assert main(["diagnose", "runs/student", "--device", "cpu", "--known", "0,1"]) == 0
    made = read_json(Path("runs/student/diagnostics/diagnostics.json"))
    folder = Path("runs/student/diagnostics")
    assert {path.name for path in folder.iterdir()} == {*PICTURES, "diagnostics.json", "report.html"}
    assert len(re.findall(r'<img [^>]* alt="(?:What|How|Does) ', (folder / "report.html").read_text("utf-8"))) == 4
    assert (made["run"], made["seed"], made["left_out"]) == ("runs/student", 3, {})
    summary = read_json(Path("runs/student/summary.json"))
    percent, areas = r" +\d+\.\d\d %\n", r" +[01]\.\d{3} +[01]\.\d{3}\n"
    assert re.fullmatch(
        r"\n +train +validation +test\n-+\n"
        rf"NCM before training{percent}NCM after embedding{percent}NCM final{percent}NCM teacher{percent}"
        rf"top-1 final +{summary['final']['top1']:.2f} %\n"
        + "".join(f"AUC {re.escape(title)}{areas}" for title in SCORES.values())
        + "\nruns/student/diagnostics/report.html\n",
        capsys.readouterr().out,
    )


def test_without_known_classes_a_line_says_how_to_name_them(here, capsys):
    words = ["diagnose", "runs/student", "--device", "cpu", "--output", "out"]
    assert main([*words, "--known", "1"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^warning: emphasis is left out: .* --known 0,1,2$", err, re.MULTILINE)
    assert "AUC" not in out
    assert read_json(Path("out/diagnostics.json"))["left_out"].keys() == {"emphasis"}
    names = {path.name for path in Path("out").iterdir()}
    assert names == {*PICTURES, "diagnostics.json", "report.html"} - {"emphasis.png", "emphasis.svg"}
    assert not Path("runs/student/diagnostics").exists()


def test_a_table_of_what_there_is():
    table = figures_table({"confusion": {"top1": 50.0, "on": "test"}})
    assert table == "             test\n--------------------\ntop-1 final  50.00 %"
    assert figures_table({}) == ""
    assert "–" in figures_table({"emphasis": {"images": {"train": {"auc": dict.fromkeys(SCORES)}}}})


def test_without_the_extra(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["diagnose", "runs/student"]) == 2
    assert capsys.readouterr().err == ("refilled: error: diagnose needs matplotlib: pip install 'gkd-plugin[report]'\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": [9]}, r"^--known: .* 0 … 3, got 9$"),
        ({"projection": "tsn"}, "^--projection: 'tsn' is unknown; did you mean 'tsne'"),
        ({"output": Path("student.yaml")}, r"^--output: student\.yaml is a file"),
    ],
)
def test_an_unusable_option_leaves_all_as_it_is(here, options, message):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    refused(message, diagnose, Path("runs/student"), **{"output": Path("look"), "device": "cpu", **options})
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
