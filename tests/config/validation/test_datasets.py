"""Dependencies and datasets."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import PLAIN_TRAINING, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("datasets={}", "datasets: is empty"),
        ("datasets.d/x=", "datasets.d/x: nothing given; must be a dataset"),
        ("dependencies=[{name: gkd_plugn}]", "dependencies.0: 'gkd_plugn' cannot be imported: ModuleNotFoundError"),
        ("dependencies=[3]", "dependencies.0: 3 cannot be imported: TypeError"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(("path", "line"), [("datasets", "datasets: missing")])
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["dependencies"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


@pytest.mark.parametrize("change", ["dependencies=gkd_plugin", "dependencies="])
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []
