"""Checkpoints, and what is built on trial."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT
from torchdistill.optim.registry import OPTIM_DICT

from gkd_plugin.config.config import problems
from gkd_plugin.errors import ConfigError
from tests.config.samples import PLAIN_TRAINING, STAGES, changed, found, parse


def test_checkpoints_that_exist_or_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("models.model.src_ckpt", "train.model.src_ckpt"):
        change = f"{path}=./runs/teacher.pt"
        assert [line.partition(";")[0] for line in found(PLAIN_TRAINING, change)] == [
            f"{path}: no such file: ./runs/teacher.pt"
        ]
        assert found(PLAIN_TRAINING, change, produced=["runs/teacher.pt"]) == []
        assert found(PLAIN_TRAINING, change, needs_checkpoints=False) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher.pt").touch()
    assert found(PLAIN_TRAINING, change) == []


def test_batch_sampler_excludes_what_it_decides_itself():
    sampler = "train.train_data_loader.batch_sampler={key: BatchSampler, kwargs: {batch_size: 2, drop_last: true}}"
    lines = found(PLAIN_TRAINING, sampler, "train.train_data_loader.kwargs.shuffle=true")
    assert [line.partition(":")[0] for line in lines] == [
        f"train.train_data_loader.kwargs.{key}" for key in ("batch_size", "shuffle")
    ]
    assert found(PLAIN_TRAINING, sampler, drop=["train.train_data_loader.kwargs.batch_size"]) == []
    lines = found(PLAIN_TRAINING, sampler.replace(", drop_last: true", ""))
    assert "train.train_data_loader.batch_sampler.kwargs: argument 'drop_last' is missing" in lines
    lines = found(PLAIN_TRAINING, sampler.replace("BatchSampler", "BatchSamplr"))
    assert any(
        ".batch_sampler.key: 'BatchSamplr' is not registered; did you mean 'BatchSampler'" in line for line in lines
    )
    assert any(
        ".batch_sampler.kwargs.batch_size: 0 given" in line for line in found(PLAIN_TRAINING, sampler.replace("2", "0"))
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("temperature: 0 given"), "temperature: 0 given"),
        (ConfigError("one\ntwo"), "two"),
        (TypeError("no such argument"), "TypeError: no such argument"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_loss_checks_its_own_arguments(monkeypatch, error, line):
    def dummy(**kwargs):
        raise error

    monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
    change = "train.criterion={key: dummy, kwargs: {a: 1}}"
    assert f"train.criterion: {line}" in found(PLAIN_TRAINING, change)
    assert found(PLAIN_TRAINING, change.replace("a: 1", "a: !import_get {key: os.sep}")) == []


def test_trials_change_neither_the_tree_nor_the_seed(monkeypatch):
    def loss(terms):
        terms.clear()
        return nn.Linear(1, 1)

    def optimizer(params, lr, bounds):
        bounds.clear()
        return torch.optim.SGD([*params, nn.Linear(1, 1).weight], lr)

    monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", loss)
    monkeypatch.setitem(OPTIM_DICT, "dummy", optimizer)
    tree = parse(PLAIN_TRAINING, "test")
    for path, value in (
        ("train.criterion", {"key": "dummy", "kwargs": {"terms": {"a": 1}}}),
        ("train.optimizer", {"key": "dummy", "kwargs": {"lr": 0.1, "bounds": [1, 2]}}),
    ):
        tree = changed(tree, path.split("."), value)
    before, state = copy.deepcopy(tree), torch.random.get_rng_state()
    assert problems(tree) == []
    assert tree == before
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_later_stage_schedules_the_optimizer_that_it_keeps():
    change = "train.stage2.scheduler={key: OneCycleLR, kwargs: {max_lr: [0.1, 0.2], total_steps: 9}}"
    [line] = found(STAGES, change)
    assert line.startswith("train.stage2.scheduler: ValueError: ")
    assert found(STAGES, change.replace("[0.1, 0.2]", "[0.1]")) == []


def test_a_schedule_is_not_tried_with_the_optimizer_of_an_earlier_stage():
    changes = (
        "train.stage2.optimizer={key: SDG, kwargs: {}}",
        "train.stage2.scheduler={key: StepLR, kwargs: {step_size: 0}}",
    )
    assert [line.partition(":")[0] for line in found(STAGES, *changes)] == ["train.stage2.optimizer.key"]


def test_a_stage_of_refilled_needs_an_optimizer_of_its_own():
    change = "train.stage2.criterion={key: refilled, kwargs: {stage: classifier}}"
    [line] = found(STAGES, change)
    assert line.startswith("train.stage2.optimizer: missing")
    assert found(STAGES, change, "train.stage2.optimizer={key: SGD, kwargs: {}}") == []
