"""docs/examples: whole scripts, each under forty lines, that train."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs/examples"


def run(name, folder, monkeypatch):
    """What the script leaves behind; it runs in an empty folder."""
    monkeypatch.chdir(folder)
    return runpy.run_path(str(FOLDER / name))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short(path):
    assert len(path.read_text("utf-8").splitlines()) < 40


def test_a_bare_loop(tmp_path, monkeypatch, capsys):
    made = run("bare_loop.py", tmp_path, monkeypatch)
    assert made["accuracy"] > 0.5  # of four classes
    assert made["relationship"].terms["tuples"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_lightning_module(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    made = run("lightning_module.py", tmp_path, monkeypatch)
    module = made["module"]
    assert module.trainer.callback_metrics["loss"] < 1.3  # log 4 is 1.39
    assert module.relationship.terms["tuples"] > 0
    assert not module.teacher.training


def test_a_task_of_timm(tmp_path, monkeypatch):
    made = run("timm_task.py", tmp_path, monkeypatch)
    result = made["result"]
    assert (result["output"].argmax(1) == made["labels"]).float().mean() > 0.5
    assert not made["task"].teacher.model.training
    assert made["task"].get_trainable_module().projection is None
