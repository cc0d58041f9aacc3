"""Criterion sections and the trial build."""

from __future__ import annotations

import pytest
from torch import nn
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.validation import problems
from gkd_plugin.config.yaml_nodes import compose_value
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError
from tests.config.validation.samples import PLAIN_TRAINING, TERM, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.criterion.kwarg={}", "train.criterion.kwarg: unknown key; did you mean 'kwargs'"),
        (f"{TERM}.factor=1", f"{TERM}.factor: unknown key; allowed: 'criterion', 'criterion_wrapper', 'weight'"),
        (f"{TERM}.weight=", f"{TERM}.weight: nothing given; must be a number"),
        (f"{TERM}.criterion_wrapper=", f"{TERM}.criterion_wrapper: missing; 'CrossEntropyLoss' needs one"),
        ("train.criterion.key=WeightedSum", "'WeightedSum' is not registered; did you mean 'WeightedS"),
        ("train.criterion.func2extract_model_loss=x", "func2extract_model_loss: 'x' is not registered"),
        (f"{TERM}.criterion.key=CrossEntropyLos", "did you mean 'CrossEntropyLoss'"),
        (f"{TERM}.criterion_wrapper.key=SimpleLoss", "did you mean 'SimpleLossWrapper'"),
        (f"{TERM}.criterion.kwargs.reduce_to=1", f"{TERM}.criterion.kwargs.reduce_to: unknown argument"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("train.criterion", "train.criterion: missing"),
        (f"{TERM}.criterion", f"{TERM}.criterion: missing"),
        (f"{TERM}.criterion.kwargs", f"{TERM}.criterion.kwargs: missing"),
    ],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


class TestCriterion:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (ConfigError("temperature: 0 given"), "train.criterion: temperature: 0 given"),
            (ConfigError("one\ntwo"), "train.criterion: two"),
            (TypeError("no such argument"), "train.criterion: TypeError: no such argument"),
            (KeyError("io"), "train.criterion: KeyError: 'io'"),
            (ZeroDivisionError(), "train.criterion: ZeroDivisionError"),
        ],
    )
    def test_checks_its_own_arguments(self, monkeypatch, error, line):
        def dummy(**kwargs):
            raise error

        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
        assert line in found(PLAIN_TRAINING, "train.criterion={key: dummy, kwargs: {a: 1}}")

    def test_gets_a_copy_and_leaves_the_seed(self, monkeypatch):
        import torch

        def dummy(terms):
            terms.clear()
            return nn.Linear(1, 1)

        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
        root = compose_value(PLAIN_TRAINING, "--test")
        apply_overrides(root, ["train.criterion={key: dummy, kwargs: {terms: {a: 1}}}"])
        plain = to_plain(root)
        state = torch.random.get_rng_state()
        assert problems(plain) == []
        assert plain["train"]["criterion"]["kwargs"] == {"terms": {"a": 1}}
        assert torch.equal(state, torch.random.get_rng_state())

    def test_is_not_built_where_it_holds_objects(self, monkeypatch):
        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", lambda **kwargs: 1 / 0)
        assert found(PLAIN_TRAINING, "train.criterion={key: dummy, kwargs: {a: !import_get {key: os.sep}}}") == []
