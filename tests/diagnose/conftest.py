"""A tiny finished run that all tests of the diagnostics look at."""

import copy
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from gkd_plugin.config.config import load_config
from gkd_plugin.diagnose.restore import RestoredRun
from gkd_plugin.runner import parts as parts_module
from gkd_plugin.runner.run import run_config
from tests.runner.fakes import write_configs


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """``folder`` with the runs of a teacher and its student, and the student's ``initial`` weights."""
    folder = tmp_path_factory.mktemp("diagnosed")
    initial = {}
    check_hooks = parts_module.check_hooks

    def noted(stages, teacher, student):
        initial.update({key: value.clone() for key, value in student.state_dict().items()})
        return check_hooks(stages, teacher, student)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs(folder)
        logging.getLogger().setLevel(logging.INFO)
        run_config(load_config("teacher.yaml"), Path("runs/teacher"), device="cpu")
        patch.setattr(parts_module, "check_hooks", noted)
        config = load_config("student.yaml", ["train.stage1.num_epochs=2"])
        run_config(config, Path("runs/student"), seed=3, device="cpu")
    return SimpleNamespace(folder=folder, initial=initial)


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A copy of the folder to work in."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def run(finished):
    """The student's run, restored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.folder)
        return RestoredRun(finished.folder / "runs/student", "cpu")


@pytest.fixture
def changed(run):
    """The restored run with other attributes."""

    def make(**values):
        other = copy.copy(run)
        vars(other).update(values)
        return other

    return make
