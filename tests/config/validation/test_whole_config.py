"""All rules together."""

from __future__ import annotations

import pytest

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.validation import problems
from gkd_plugin.config.yaml_nodes import compose_value
from gkd_plugin.config.yaml_plain import to_plain
from tests.config.validation.samples import PLAIN_TRAINING, STAGES, found, make


@pytest.mark.parametrize(("change", "line"), [("trian=1", "trian: unknown key; did you mean 'train'")])
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize("text", [PLAIN_TRAINING, STAGES])
def test_valid_configs_pass(text):
    assert found(text) == []
    assert problems(to_plain(compose_value(text, "--test"))) == []


def test_all_problems_together_in_a_stable_order():
    changes = ["trian=1", "train.num_epochs=0", "train.optimizer.key=SDG", "device={default: gpu}"]
    root = compose_value(PLAIN_TRAINING, "--test")
    for change in changes:
        make(root, change.partition("=")[0])
    apply_overrides(root, changes)
    assert [line.partition(":")[0] for line in problems(to_plain(root))] == [
        "trian", "train.num_epochs", "train.optimizer.key", "device.default"
    ]  # fmt: skip
