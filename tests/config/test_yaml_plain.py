"""Plain data from the node graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_plugin.config.yaml_nodes import compose, compose_value
from gkd_plugin.config.yaml_plain import Tagged, to_plain
from gkd_plugin.errors import ConfigError
from tests.runner.yaml_samples import RICH, write


def test_plain_data_resolves_aliases_merges_and_scalars(tmp_path):
    plain = to_plain(compose(write(tmp_path, RICH)))
    train = plain["datasets"]["pets/train"]
    assert train == Tagged(
        "!import_call",
        {
            "_root": "~/data/pets",
            "key": "tests.runner.yaml_samples.Built",
            "init": {"kwargs": {"root": "~/data/pets", "mean": [0.5, 0.001]}},
        },
    )
    assert plain["datasets"]["pets/again"] is train
    assert plain["merged"] == {**plain["_base"], "size": 5, "more": 1, "flag": False}
    assert plain["id"] == "pets/train"
    assert plain["empty"] is None


def test_plain_data_builds_nothing(tmp_path):
    plain = to_plain(compose(write(tmp_path, "a: !import_call {key: tests.runner.yaml_samples.fail}\n")))
    assert plain["a"].tag == "!import_call"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("!pathjoin ['a', 'b', 3]", "a/b/3"),
        ("!expanduser '~/x'", str(Path("~/x").expanduser())),
        ("!abspath 'x'", str(Path("x").absolute())),
        ("!join ['a', !import_get {key: os.sep}]", Tagged("!join", ["a", Tagged("!import_get", {"key": "os.sep"})])),
        ("!join a", Tagged("!join", "a")),
        ("!!python/tuple [1, 2]", Tagged("tag:yaml.org,2002:python/tuple", [1, 2])),
    ],
)
def test_text_tags_are_evaluated(text, expected):
    assert to_plain(compose_value(text, "--set a")) == expected


def test_plain_data_refuses_impossible_scalars_and_keys(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.day \(line 1\): '2024-99-99' is not a timestamp"):
        to_plain(compose(write(tmp_path, "a: {day: 2024-99-99}\n")))
    with pytest.raises(ConfigError, match="a key must be a name"):
        to_plain(compose(write(tmp_path, "a: {[1, 2]: 3}\n")))
