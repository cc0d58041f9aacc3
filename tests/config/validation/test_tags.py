"""Tags, what they call, and numbers that are text."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import PLAIN_TRAINING, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("datasets.d/train.inti={}", "datasets.d/train.inti: unknown key; did you mean 'init'"),
        ("datasets.d/train.init.kwarg={}", "datasets.d/train.init.kwarg: unknown key; did you mean 'kwargs'"),
        ("train.optimizer.kwargs.lr='1e-3'", "train.optimizer.kwargs.lr: '1e-3' is text to YAML"),
        ("datasets.d/train.key=builtins.dikt", "datasets.d/train: builtins.dikt: no such name in builtins; did"),
        ("datasets.d/train.key=torch.utils.data.Subset", "datasets.d/train.init.kwargs.a: unknown argument"),
        ("datasets.d/train.init=3", "datasets.d/train.init: 3 given"),
        ("datasets.d/train.init.args=3", "datasets.d/train.init.args: 3 given; must be a list"),
        ("datasets.d/train.init.kwargs=", "datasets.d/train.init.kwargs: nothing given"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize("change", ["train.optimizer.kwargs.lr=1e-3"])
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []
