"""Optimizers and schedulers."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import PLAIN_TRAINING, STAGES, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.optimizer.args=[]", "train.optimizer.args: unknown key; did you mean 'kwargs'"),
        ("train.scheduler.step=1", "train.scheduler.step: unknown key"),
        ("train.optimizer.kwargs.lr=[1]", "train.optimizer.kwargs.lr: [1] given; must be a number"),
        ("train.optimizer.grad_accum_step=0", "train.optimizer.grad_accum_step: 0 given"),
        *(
            (f"train.optimizer.max_grad_norm={bound}", f"max_grad_norm: {shown} given; must be a number above 0")
            for bound, shown in (("two", "'two'"), ("-2.0", "-2.0"), ("0", "0"), ("true", "true"), (".nan", "nan"))
        ),
        ("train.optimizer.module_wise_kwargs.0=fc", "train.optimizer.module_wise_kwargs.0: 'fc' given"),
        ("train.optimizer.module_wise_kwargs.0.module=", "module_wise_kwargs.0.module: nothing given"),
        ("train.optimizer={}", "train.optimizer: is empty"),
        ("train.scheduler.scheduling_step=-1", "train.scheduler.scheduling_step: -1 given"),
        ("train.optimizer.module_wise_configs=[]", "unknown key; did you mean 'module_wise_kwargs'"),
        ("train.optimizer.key=SDG", "train.optimizer.key: 'SDG' is not registered; did you mean 'SGD'"),
        ("train.scheduler.key=SepLR", "train.scheduler.key: 'SepLR' is not registered; did you mean 'StepLR'"),
        ("train.optimizer.kwargs.mometum=1", "kwargs.mometum: unknown argument; did you mean 'momentum'"),
        ("train.optimizer.kwargs.params=1", "train.optimizer.kwargs.params: given already"),
        ("train.scheduler.kwargs={}", "train.scheduler.kwargs: argument 'step_size' is missing"),
        ("train.scheduler.kwargs=", "train.scheduler.kwargs: nothing given; must be a section"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [("train.optimizer", "train.optimizer: missing"), ("train.optimizer.kwargs", "train.optimizer.kwargs: missing")],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["train.scheduler"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


@pytest.mark.parametrize("change", ["train.scheduler="])
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []


@pytest.mark.parametrize(
    ("change", "line"), [("train.stage1.optimizer.module_wise_kwargs=[]", "module_wise_kwargs: unknown key")]
)
def test_rules_in_stages(change, line):
    lines = found(STAGES, change)
    assert any(line in given for given in lines), lines
