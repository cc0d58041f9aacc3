"""Hints of error messages."""

import pytest

from gkd_plugin.errors import ConfigError, nearest


@pytest.mark.parametrize(
    ("given", "allowed", "want"),
    [
        ("stge", ["stage", "margin"], "did you mean 'stage'? (allowed: 'margin', 'stage')"),
        ("zzz", ["stage"], "allowed: 'stage'"),
        ("zzz", [f"name{i}" for i in range(20)], "none of the 20 known names is close"),
        ("name1x", [f"name{i}" for i in range(20)], "did you mean"),
        (5, ["6"], "allowed: '6'"),
    ],
)
def test_nearest(given, allowed, want):
    assert nearest(given, allowed).startswith(want)


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)
