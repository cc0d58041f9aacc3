"""Reading, plain data, construction and writing back of the node graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.yaml_nodes import (
    Tagged,
    compose,
    compose_value,
    construct,
    dump,
    paths_to,
    resolve_target,
    to_plain,
)


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class Built:
    """Something a config builds."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs


def refuse(**kwargs):
    raise ConfigError("the images are missing; download them first")


def fail(message=""):
    raise FileNotFoundError(message)


RICH = """\
_name: &name 'pets'
_base: &base {size: 3, flag: yes, nothing: , day: 2024-01-02}
datasets:
  &train pets/train: &object !import_call
    _root: &root !join ['~/data/', *name]
    key: 'tests.runner.test_yaml_nodes.Built'
    init:
      kwargs: &kwargs {root: *root, mean: [0.5, 1.0e-3]}
  pets/again: *object
  pets/val: !import_call
    key: 'tests.runner.test_yaml_nodes.Built'
    init: {kwargs: *kwargs}
merged:
  <<: [{size: 5, more: 1}, *base]
  flag: no
id: *train
text: 'größer: ok'
empty:
"""


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


def test_plain_data_resolves_aliases_merges_and_scalars(tmp_path):
    plain = to_plain(compose(write(tmp_path, RICH)))
    train = plain["datasets"]["pets/train"]
    assert train == Tagged(
        "!import_call",
        {
            "_root": "~/data/pets",
            "key": "tests.runner.test_yaml_nodes.Built",
            "init": {"kwargs": {"root": "~/data/pets", "mean": [0.5, 0.001]}},
        },
    )
    assert plain["datasets"]["pets/again"] is train
    assert plain["merged"] == {**plain["_base"], "size": 5, "more": 1, "flag": False}
    assert plain["id"] == "pets/train"
    assert plain["empty"] is None


def test_plain_data_builds_nothing(tmp_path):
    plain = to_plain(compose(write(tmp_path, "a: !import_call {key: tests.runner.test_yaml_nodes.fail}\n")))
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


def test_construct_equals_torchdistill(tmp_path):
    path = write(tmp_path, RICH)
    root = compose(path)
    built, expected = construct(root), load_yaml_file(str(path))
    assert built["datasets"]["pets/train"] is built["datasets"]["pets/again"]
    assert built["datasets"]["pets/train"] is not built["datasets"]["pets/val"]
    assert comparable(built) == comparable(expected)
    assert comparable(construct(root)) == comparable(expected), "the graph is left as it was"


def test_dump_loads_again_with_torchdistill(tmp_path):
    original = write(tmp_path, RICH)
    text = dump(compose(original))
    again = load_yaml_file(str(write(tmp_path, text, "again.yaml")))
    assert text.isascii()
    assert comparable(again) == comparable(load_yaml_file(str(original)))
    assert again["datasets"]["pets/train"] is again["datasets"]["pets/again"]
    assert again["datasets"]["pets/train"] is not again["datasets"]["pets/val"]


def comparable(value):
    if isinstance(value, Built):
        return ("Built", comparable(value.kwargs))
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_data_survives_reading_and_writing(data):
    root = compose_value(yaml.safe_dump({"a": data}), "--set a")
    assert to_plain(root) == {"a": data}
    assert yaml.load(dump(root), Loader=yaml.FullLoader) == {"a": data}
    assert construct(root) == {"a": data}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{key: gkd_plugin.functional.centres.class_centers}",
            (
                r"datasets\.train \(line 3\): gkd_plugin\.functional\.centres\.class_centers: no such name in "
                r"gkd_plugin\.functional\.centres; did you mean 'class_centres'"
            ),
        ),
        ("{key: class_centers, package: gkd_plugin.functional.centres}", "did you mean 'class_centres'"),
        ("{key: gkd_plugin.functionl.centres}", r"no module named 'gkd_plugin\.functionl'; did you mean 'functional'"),
        ("{key: nothing_of_this_name.x}", "no module named 'nothing_of_this_name'"),
        ("{key: ImageFolder}", "'ImageFolder' must be a full dotted name"),
        ("{kee: os.sep}", "takes a mapping with 'key'"),
        ("{key: os.sep}", r"\(line 3\): TypeError: 'str' object is not callable"),
        ("{key: tests.runner.test_yaml_nodes.refuse}", r"\(line 3\): the images are missing; download them first$"),
        ('{key: tests.runner.test_yaml_nodes.fail, init: {args: ["pets\\nmore"]}}', "FileNotFoundError: pets$"),
        ("{key: tests.runner.test_yaml_nodes.fail}", r"\(line 3\): FileNotFoundError$"),
        (
            "{key: tests.runner.test_yaml_nodes.fail, init: {kwargs: {mesage: 1}}}",
            "unexpected keyword argument 'mesage'",
        ),
        (
            "{key: builtins.dict, init: {kwargs: {t: !import_call {key: builtins.int, init: {args: [a]}}}}}",
            r"^datasets\.train\.init\.kwargs\.t \(line 3\): ValueError: invalid literal",
        ),
    ],
)
def test_construct_names_the_innermost_object_that_failed(tmp_path, entry, message):
    root = compose(write(tmp_path, f"a: 1\ndatasets:\n  train: !import_call {entry}\n"))
    with pytest.raises(ConfigError, match=message) as caught:
        construct(root)
    assert caught.value.__cause__ is not None


def test_construct_explains_other_tags(tmp_path):
    with pytest.raises(ConfigError, match=r"a \(line 1\): AttributeError: .*sepp"):
        construct(compose(write(tmp_path, "a: !getattr [!import_get {key: sys.modules}, sepp]\n")))
    text = "a: !import_call_method {package: builtins.dict.fromkey, init: {args: [[1]]}}\n"
    with pytest.raises(ConfigError, match=r"no such name in builtins\.dict; did you mean 'fromkeys'"):
        construct(compose(write(tmp_path, text)))


def test_module_that_fails_to_import(tmp_path, monkeypatch):
    write(tmp_path, "import module_nobody_has\n", "breaks_on_import.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"breaks_on_import cannot be imported: ModuleNotFoundError: .*nobody_has"):
        resolve_target(Tagged("!import_get", {"key": "breaks_on_import.x"}))


def test_paths_to_finds_every_use(tmp_path):
    root = compose(write(tmp_path, "a: &a {x: 1}\nb: [*a]\nc: {<<: *a}\nd: {e: *a}\n"))
    shared = root.value[0][1]
    assert paths_to(root, shared) == [("a",), ("b", "0"), ("d", "e")]
    assert paths_to(root, shared.value[0][1]) == [("a", "x"), ("b", "0", "x"), ("c", "x"), ("d", "e", "x")]
