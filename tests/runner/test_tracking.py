"""Figures of a run in experiment trackers."""

import importlib
import logging
import sys
from pathlib import Path

import pytest

from gkd_plugin.config.config import load_config
from gkd_plugin.runner.run import run_config
from tests.runner.fakes import refused, write_configs

FAKE = """
calls = []

def init(project, **kwargs):
    calls.append(("init", {"project": project, **kwargs}))

def log(metrics, step):
    calls.append((step, metrics))

def finish():
    calls.append(("finish", None))
"""
LAST = 4 * 2  # epochs × steps of the teacher's training


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)


def run(*overrides, output="out"):
    return run_config(load_config("teacher.yaml", ["train.num_epochs=4", *overrides]), Path(output), device="cpu")


def trackio(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return importlib.import_module("trackio").calls


def test_torchdistills_tracker_gets_figures_of_steps_epochs_and_the_test_set(tmp_path, monkeypatch):
    calls = trackio(tmp_path, monkeypatch)
    made = run("tracker={engine: trackio, kwargs: {project: mine}}", "train.log_freq=2")
    (_, begun), *logged, (last, _) = calls
    assert (begun["project"], begun["name"], last) == ("mine", "out", "finish")
    assert begun["config"]["train"]["num_epochs"] == 4
    assert begun["config"]["datasets"]["train"]["!import_call"]["key"] == "tests.fakes.ViewedImages"
    steps = [step for step, figures in logged if "train/loss" in figures]
    assert steps == list(range(2, LAST + 1, 2))
    rows = made["stages"]["train"]["epochs"]
    epochs = [figures for _, figures in logged if "epoch" in figures]
    assert [found["epoch/lr"] for found in epochs] == [row["lr"] for row in rows]
    assert [found["val/top1"] for found in epochs] == [row["top1"] for row in rows]
    assert {"epoch/loss", "epoch/images_per_second", "epoch/waiting"} <= epochs[0].keys()
    assert logged[-1] == (LAST, {"test/top1": made["final"]["top1"], "test/ncm_top1": made["final"]["ncm_top1"]})


def test_a_tracker_that_is_not_there_or_does_not_start_is_told(tmp_path, monkeypatch):
    trackio(tmp_path, monkeypatch)
    refused(r"^teacher\.yaml: tracker: trackio does not start: .*'project'", run, "tracker={engine: trackio}")
    monkeypatch.setitem(sys.modules, "trackio", None)
    message = r"^teacher\.yaml: tracker\.engine: 'trackio' needs trackio: pip install 'gkd-plugin\[trackio\]'"
    refused(message, run, "tracker={engine: trackio}", output="other")
    assert not Path("other").exists()


@pytest.mark.parametrize("part", ["log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(part, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    calls = trackio(tmp_path, monkeypatch)
    monkeypatch.setattr(sys.modules["trackio"], part, fail)
    made = run("tracker={engine: trackio, kwargs: {project: mine}}")
    assert made["status"] == "finished"
    assert [text for text in made["warnings"] if "tracker" in text] == ["tracker: trackio: no route"]
    assert calls[0][0] == "init"


def test_tensorboard_is_written_into_the_run_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = run("tracker={engine: tensorboard}")
    read = EventAccumulator("out/tensorboard").Reload()
    rows = made["stages"]["train"]["epochs"]
    assert [event.value for event in read.Scalars("val/top1")] == pytest.approx([row["top1"] for row in rows])
    logging.getLogger().setLevel(logging.INFO)
    config = load_config("teacher.yaml")
    run_config(config, Path("out"), device="cpu", earlier="overwrite")
    assert not list(Path("out").glob("tensorboard/*"))
