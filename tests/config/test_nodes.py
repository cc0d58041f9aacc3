"""Reading the node graph and looking at it."""

from __future__ import annotations

import pytest

from gkd_plugin.config.nodes import compose, compose_value, paths_to, put, steps
from gkd_plugin.errors import ConfigError
from tests.config.yaml_samples import write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"x\.yaml, line 3, column 2: "),
        ("a:\n\t- 1\n", r"x\.yaml, line 2, column 1: "),
        ("a: *nobody\n", r"line 1, column 4: found undefined alias 'nobody'"),
        ("train:\n  lr: 1\n  wd: 2\n  lr: 3\n", r"line 4, column 3: key 'lr' twice in one mapping \(first in line 2\)"),
        ("a: {b: {c: 1, c: 2}}\n", "key 'c' twice"),
        ("a: !import_cal {key: x.y}\n", r"unknown tag '!import_cal'; did you mean '!import_call'"),
        ("a: &a [1, *a]\n", "used inside itself"),
        ("a: {<<: 3}\n", "'<<' takes a mapping"),
        ("a: {[1, 2]: 3}\n", "a key must be a name"),
        ("- 1\n", "a config is a mapping .* this file is a list"),
        ("", "this file is empty"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: \x01\n", "special characters are not allowed"),
    ],
)
def test_refuses_unusable_files_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_refuses_missing_files_folders_and_other_encodings(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        compose(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        compose(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: größer".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        compose(tmp_path / "latin.yaml")


def test_paths_to_finds_every_use(tmp_path):
    root = compose(write(tmp_path, "a: &a {x: 1}\nb: [*a]\nc: {<<: *a}\nd: {e: *a}\n"))
    shared = root.value[0][1]
    assert paths_to(root, shared) == [("a",), ("b", "0"), ("d", "e")]
    assert paths_to(root, shared.value[0][1]) == [("a", "x"), ("b", "0", "x"), ("c", "x"), ("d", "e", "x")]


def test_put_replaces_in_place_and_gives_a_merged_key_a_place_of_its_own(tmp_path):
    root = compose(write(tmp_path, "a: &a {x: 1}\nb: {<<: *a}\nc: [1]\n"))
    new = compose_value("7", "--test")
    children = dict(steps(root))
    put(root, "a", new)
    put(children["b"], "x", new)
    put(children["c"], "0", new)
    assert [key.value for key, _ in root.value] == ["a", "b", "c"]
    assert [dict(steps(node)) for node in (children["b"], children["c"])] == [{"x": new}, {"0": new}]
    assert dict(steps(children["a"]))["x"] is not new
