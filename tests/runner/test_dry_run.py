"""Configurations that are checked one after the other, without training any of them."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from gkd_plugin.config.config import load_config
from gkd_plugin.runner import dry_run as dry_run_module
from gkd_plugin.runner import parts as parts_module
from gkd_plugin.runner.dry_run import dry_runs
from tests.runner.fakes import refused, write_configs

TEACHER = "models.teacher_model"
FOLDERS = [Path("runs/teacher"), Path("runs/student")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)


def lines(*overrides):
    produced = [str(Path("runs/teacher/teacher.pt").absolute())]
    configs = [load_config("teacher.yaml"), load_config("student.yaml", overrides, produced=produced)]
    with dry_runs("cpu") as dry_run:
        return [dry_run(config, folder) for config, folder in zip(configs, FOLDERS, strict=True)]


def test_what_is_found_fine_and_nothing_is_written():
    sizes = "stage1 1 epoch of 24 images, stage2 1 epoch of 24 images, test 24 images"
    assert lines("teacher_cache={views: 2}") == [
        "teacher.yaml: fine: train 2 epochs of 24 images, test 24 images",
        f"student.yaml: fine: {sizes}; runs/teacher/teacher.pt is yet to be written by teacher.yaml",
    ]
    assert {path.name for path in Path().iterdir()} == {"teacher.yaml", "student.yaml"}


@pytest.mark.parametrize("name", ["teacher.pt", "student.safetensors"])
def test_files_of_an_earlier_run_would_be_written_anew(name):
    file = Path("runs/teacher", name)
    file.parent.mkdir(parents=True)
    file.write_text("of another network")
    assert lines(f"{TEACHER}.src_ckpt={file}")[1].endswith(f"; {file} is yet to be written by teacher.yaml")


def test_weights_that_would_not_fit_are_told_by_their_name():
    message = r"student\.yaml: models\.teacher_model\.src_ckpt: runs/teacher/teacher\.pt does not fit EfficientNet: "
    refused(f"^{message}", lines, f"{TEACHER}.kwargs.model_name=test_efficientnet")


def test_memory_that_is_full_is_a_line(monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    monkeypatch.setattr(dry_run_module, "Parts", Mock(side_effect=full))
    refused("^teacher.yaml: CUDA out of memory; what needs less", lines)


def test_no_pass_over_the_training_set(monkeypatch):
    monkeypatch.setattr(parts_module, "start_at_centres", Mock(side_effect=AssertionError))
    assert len(lines("models.student_model.src_ckpt_classifier=centres")) == 2
