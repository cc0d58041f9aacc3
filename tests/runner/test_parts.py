"""What a run is built from; whole runs are in test_run."""

from pathlib import Path

import pytest
import torch

from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.parts import Parts
from tests.runner.fakes import write_configs

CPU = Placement(torch.device("cpu"), None, "no")


@pytest.fixture(autouse=True)
def _configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)


def parts(*overrides, name="teacher"):
    return Parts.build(load_config(f"{name}.yaml", overrides).build(), CPU, make_accelerator(CPU), None)


def test_what_a_plain_training_is_built_from():
    made = parts()
    assert (made.num_classes, made.student_path, made.embedding_path) == (4, "models.model", "embedding")
    assert (made.stages, made.val_freq, made.dst_ckpt) == ({"train": 2}, 1, Path("runs/teacher/teacher.pt"))
    assert made.image_input.size == (32, 32)
    assert made.class_names is None
    assert not hasattr(made.box, "teacher_model")
    assert not Path("runs").exists()


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match=r"datasets\.train: class index out of range: label 3, but models"):
        parts("models.model.kwargs.num_classes=3")


@pytest.mark.parametrize(("epochs", "warned"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    ("key", "kwargs", "name"),
    [
        ("CosineAnnealingLR", "{T_max: 1}", "T_max"),
        ("OneCycleLR", "{max_lr: 0.1, total_steps: 1, cycle_momentum: False}", "total_steps"),
    ],
)
def test_a_cycle_that_does_not_end_with_its_stage_is_told(caplog, key, kwargs, name, epochs, warned):
    text = Path("teacher.yaml").read_text("utf-8")
    at = text.index("  criterion:")
    section = f"  scheduler: {{key: '{key}', kwargs: {kwargs}}}\n"
    Path("cycle.yaml").write_text(f"{text[:at]}{section}{text[at:]}", encoding="utf-8")
    parts(f"train.num_epochs={epochs}", name="cycle")
    line = f"train.scheduler.kwargs.{name}: 1, but the stage has {epochs} epochs"
    assert (line in caplog.text) is warned


@pytest.mark.parametrize("has_tracker", [True, False])
def test_what_only_torchdistill_reads_is_told(caplog, has_tracker):
    built = load_config("teacher.yaml").build()
    if has_tracker:
        built["tracker"] = {"key": "x"}
    Parts.build(built, CPU, make_accelerator(CPU), None)
    assert ("tracker: not read by refilled" in caplog.text) == has_tracker
