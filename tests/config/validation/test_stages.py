"""The train section and its stages."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import PLAIN_TRAINING, STAGES, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.optimiser={}", "train.optimiser: unknown key; did you mean 'optimizer'"),
        ("train.stages={}", "train.stages: unknown key; did you mean 'stage1'"),
        ("train=3", "train: 3 given; must be a section"),
        ("train.num_epochs=0", "train.num_epochs: 0 given; must be a whole number, 1 or more"),
        ("train.num_epochs=1.5", "train.num_epochs: 1.5 given"),
        ("train.num_epochs=true", "train.num_epochs: true given"),
        ("train.log_freq=-1", "train.log_freq: -1 given"),
        ("train.val_freq=0", "train.val_freq: 0 given; must be a whole number, 1 or more"),
        ("train.val_frequ=2", "train.val_frequ: unknown key; did you mean 'val_freq'"),
        ("train.teacher={}", "train.teacher: is not read where there is no models.teacher_model; write model"),
        ("train.pre_epoch_process=x", "train.pre_epoch_process: 'x' is not registered"),
        ("train.post_epoch_process=", "train.post_epoch_process: nothing given"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("train", "train: missing"),
        ("train.num_epochs", "train.num_epochs: missing"),
        ("train.model", "train.model: missing"),
    ],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["train.log_freq"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.stage2.num_epoch=1", "train.stage2.num_epoch: unknown key; did you mean 'num_epochs'"),
        ("train.optimizer={}", "train.optimizer: is not read where there are stages; put it into stage1, stage2"),
        (
            "train.stage4={}",
            "train: stage3 is missing; stages count from 1 without gaps, given: stage1, stage2, stage4",
        ),
        ("train.stage01={}", "train.stage01: unknown key; did you mean 'stage1'"),
        ("train.stage2=", "train.stage2: nothing given; must be a section"),
        ("train.student.forward_proc=x", "train.student.forward_proc: unknown key; allowed: 'dst_ckpt'"),
        ("train.stage2.model={}", "train.stage2.model: is not read where there is a models.teacher_model"),
    ],
)
def test_rules_in_stages(change, line):
    lines = found(STAGES, change)
    assert any(line in given for given in lines), lines


def test_each_stage_needs_its_own_sections():
    lines = found(STAGES, drop=["train.stage2.teacher", "train.stage2.student", "train.stage2.criterion"])
    assert [line.partition(":")[0] for line in lines] == [
        f"train.stage2.{name}" for name in ("teacher", "student", "criterion")
    ]
    assert any(line.startswith("train: stage1 is missing") for line in found(STAGES, drop=["train.stage1"]))
