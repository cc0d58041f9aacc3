"""The command ``refilled diagnose``: its files, its table, and bad input in one line."""

import json
import re
import sys
from pathlib import Path

import pytest

from gkd_plugin.cli import main
from gkd_plugin.diagnose.emphasis import SCORES
from gkd_plugin.diagnose.run import diagnose, figures_table
from gkd_plugin.errors import ConfigError

PARTS = ("emphasis", "tuples", "embedding", "confusion")
PICTURES = {f"{part}.{suffix}" for part in PARTS for suffix in ("png", "svg")}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_and_table(here, capsys):
    assert main(["diagnose", "runs/student", "--device", "cpu", "--known", "0,1"]) == 0
    made = json.loads(Path("runs/student/diagnostics/diagnostics.json").read_text("utf-8"))
    assert {path.name for path in Path("runs/student/diagnostics").iterdir()} == {*PICTURES, "diagnostics.json"}
    assert (made["run"], made["seed"], made["left_out"]) == ("runs/student", 3, {})
    summary = json.loads(Path("runs/student/summary.json").read_text("utf-8"))
    percent = r" +\d+\.\d\d %\n"
    area = r" +[01]\.\d{3} +[01]\.\d{3}\n"
    assert re.fullmatch(
        r"\n +train +validation +test\n-+\n"
        rf"NCM before training{percent}NCM after embedding{percent}NCM final{percent}NCM teacher{percent}"
        rf"top-1 final +{summary['final']['top1']:.2f} %\n"
        rf"AUC confidence −u{area}AUC max logit{area}AUC energy \(logsumexp\){area}"
        rf"AUC label agreement{area}AUC emphasis ω{area}AUC local mass of known classes{area}",
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
    made = json.loads(Path("out/diagnostics.json").read_text("utf-8"))
    assert made["left_out"].keys() == {"emphasis"}
    names = {path.name for path in Path("out").iterdir()}
    assert names == {*PICTURES, "diagnostics.json"} - {"emphasis.png", "emphasis.svg"}
    assert not Path("runs/student/diagnostics").exists()


def test_a_table_of_what_there_is():
    table = figures_table({"confusion": {"top1": 50.0, "on": "test"}})
    assert table == "             test\n--------------------\ntop-1 final  50.00 %"
    assert figures_table({}) == ""
    images = {"train": {"auc": dict.fromkeys(SCORES)}}
    assert "–" in figures_table({"emphasis": {"images": images}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"nowhere is not a run folder: it has no config\.yaml and no summary"),
        (["runs/student", "--output", "student.yaml"], r"--output: student\.yaml is a file"),
    ],
)
def test_bad_input_is_one_line(here, capsys, words, message):
    assert main(["diagnose", *words, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    (error,) = [line for line in err.splitlines() if line.startswith("refilled: error: ")]
    assert out == ""
    assert re.search(message, error), err


@pytest.mark.parametrize("words", [[], ["runs/student", "--known", "0,x"], ["runs/student", "--projection", "umap"]])
def test_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", *words])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("refilled: error: ")


def test_without_the_extra(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["diagnose", "runs/student"]) == 2
    assert capsys.readouterr().err == ("refilled: error: diagnose needs matplotlib: pip install 'gkd-plugin[report]'\n")


def test_an_unusable_option_leaves_the_run_and_the_last_look_as_they_are(here):
    before = contents(here)
    diagnose(Path("runs/student"), output=Path("look"), device="cpu", known=[0])
    after = contents(here)
    assert {path: after[path] for path in after if "look" not in path.parts} == before
    with pytest.raises(ConfigError, match=r"^--known: .* 0 … 3, got 9$"):
        diagnose(Path("runs/student"), output=Path("look"), device="cpu", known=[9])
    with pytest.raises(ConfigError, match=r"^--projection: 'tsn' is unknown; did you mean 'tsne'"):
        diagnose(Path("runs/student"), output=Path("look"), device="cpu", projection="tsn")
    assert contents(here) == after
