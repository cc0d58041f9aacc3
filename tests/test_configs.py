"""Every shipped configuration: starts with its own command, is valid, builds, and takes a step in every stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gkd_plugin.runner.building import build_box, stage_configs
from gkd_plugin.runner.config import load_config
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import build_model, student_entry
from tests.upstream_driver import drive

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def stand_in_npz(tmp_path_factory):
    """Black images with the keys and classes of the measurement set, four of each; no test may need the set itself."""
    labels = {split: np.repeat(np.arange(80), 4) for split in ("train", "test")}
    path = tmp_path_factory.mktemp("data") / "stand_in.npz"
    images = {f"x_{split}": np.zeros((len(y), 32, 32, 3), np.uint8) for split, y in labels.items()}
    names = np.array([f"n{k:03d}" for k in range(80)])
    np.savez_compressed(path, class_names=names, **{f"y_{split}": y for split, y in labels.items()}, **images)
    return path


def overrides_for(path, stand_in):
    """What makes the configuration buildable here: stand-in data, a teacher without its checkpoint."""
    plain = load_config(path, needs_checkpoints=False).plain
    sets = ["device.default=cpu"]
    if "tiny100" in path.parts:
        for name in plain["datasets"]:
            sets.append(f"datasets.{name}.init.kwargs.dataset.init.kwargs.path={stand_in}")
            sets.append(f"datasets.{name}.init.kwargs.per_class=4")
    if "teacher_model" in plain["models"]:
        sets.append("models.teacher_model.src_ckpt=null")
    return sets


def test_there_are_configurations():
    assert {path.parts[1] for path in CONFIGS} == {"digits", "tiny100"}


def test_run_folders_do_not_collide():
    assert len({path.stem for path in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_starts_with_its_own_command(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# refilled run ")
    assert first.split()[-1] == str(path)
    assert all(Path(word).is_file() for word in first.split()[3:])


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_checkpoints_it_loads_are_written_by_the_configurations_of_its_command(path):
    words = path.read_text(encoding="utf-8").splitlines()[0].split()[3:]
    written = [student_entry(load_config(word, needs_checkpoints=False).plain)[1]["dst_ckpt"] for word in words]
    teacher = load_config(path, needs_checkpoints=False).plain["models"].get("teacher_model")
    assert teacher is None or teacher["src_ckpt"] in (None, *written[:-1])
    assert Path(written[-1]).parent == Path("runs") / path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_builds_and_steps_in_every_stage(path, stand_in_npz):
    config = load_config(path, overrides_for(path, stand_in_npz))
    placement = read_placement(config.plain)
    accelerator = make_accelerator(placement)
    built = config.build()
    where, entry = student_entry(built)
    teacher = built["models"].get("teacher_model")
    teacher = None if teacher is None else build_model("models.teacher_model", teacher)
    student = build_model(where, entry)
    stages = stage_configs(built["train"])
    box = build_box(built, teacher, student, placement, accelerator)
    for number in range(len(stages)):
        box.pre_epoch_process(epoch=0)
        images, labels, supplementary = next(iter(box.train_data_loader))
        loss = box.forward_process(images, labels, supplementary)
        box.post_forward_process(loss=loss)
        assert torch.isfinite(loss)
        assert len(next(iter(box.val_data_loader))) == 2
        if number + 1 < len(stages):
            box.advance_to_next_stage()


@pytest.mark.parametrize("name", ["digits_refilled", "digits_standard"])
def test_runs_unmodified_under_torchdistills_own_script(name, tmp_path, monkeypatch):
    """The teacher's configuration, then the student's: only the numbers of epochs are cut, to save time."""
    monkeypatch.chdir(tmp_path)
    texts = {stem: (ROOT / "configs/digits" / f"{stem}.yaml").read_text("utf-8") for stem in ("digits_teacher", name)}
    results = {}
    for stem, text in texts.items():
        path = tmp_path / f"{stem}.yaml"
        lines = [
            f"{line.split(':')[0]}: 1" if line.strip().startswith("num_epochs:") else line for line in text.splitlines()
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        assert yaml.compose(path.read_text("utf-8")) is not None
        results[stem] = drive(path)
    assert results["digits_teacher"]["student"] > 0
    assert results[name]["student"] > 0
    assert {"best", "student", "teacher"} == set(results[name])
