"""The plain tree: read, built as torchdistill builds it, and written back."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.config.tree import Tagged, build, dump, read, resolve_target, walk
from gkd_plugin.errors import ConfigError
from tests.config.samples import RICH, parse, write
from tests.runner.fakes import refused

SNAPSHOT = "tests.config.samples.snapshot"


def bomb(line, levels=18):
    """``a`` is 1, and each level names the one before it several times."""
    return "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {line.replace('*', f'*a{n - 1}')}\n" for n in range(1, levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[*, *]"), "at most 100,000 values in 100 levels"),
        (bomb("{x: *, y: *}"), "at most 100,000 values"),
        (bomb("{<<: [*, *], x: 1}"), "at most 100,000 values"),
        (bomb("[[[[[[[[*]]]]]]]]"), "nested too deep"),  # none of them by itself
        (f"a: {'[' * 5000}", "nested too deep"),
        ("a:" + "\n".join(f"{' ' * n}a:" for n in range(2000)), "nested too deep"),
        ("a: 1\nb: [1, 2\nc: 3\n", ", line 3, column 2: "),
        ("a:\n\t- 1\n", ", line 2, column 1: "),
        ("a: *nobody\n", r"line 1, column 4: found undefined alias 'nobody'"),
        ("train:\n  lr: 1\n  wd: 2\n  lr: 3\n", r"line 4, column 3: key 'lr' twice in one mapping \(first in line 2\)"),
        ("a: !import_cal {key: x.y}\n", r"unknown tag '!import_cal'; did you mean '!import_call'"),
        ("a: &a [1, *a]\n", "used inside itself"),
        ("a: &a {<<: *a}\n", "used inside itself"),
        ("a: {<<: 3}\n", "'<<' takes a mapping"),
        ("a: {[1, 2]: 3}\n", "a key must be a name"),
        ("- 1\n", "a config is a mapping .* this file is a list"),
        ("", "this file is empty"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: {day: 2024-99-99}\n", "line 1, column 10: '2024-99-99' is no timestamp"),
        ("a: \x01\n", "special characters are not allowed"),
    ],
)
def test_refuses_unusable_files_in_one_line(tmp_path, text, message):
    refused(rf"x\.yaml.*{message}", read, write(tmp_path, text))


def test_refuses_missing_files_folders_and_other_encodings(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("a: größer".encode("latin-1"))
    for name, message in (("no.yaml", r"no\.yaml: No such file"), (".", ": Is a directory"), ("latin.yaml", "latin")):
        refused(message, read, tmp_path / name)


def test_a_large_list_and_many_aliases_are_read():
    assert parse(bomb("[*, *]", levels=12))["a11"][0][1][0] == parse(bomb("[*, *]", levels=12))["a8"]
    assert len(parse(f"a: {[0] * 20000}")["a"]) == 20000


def test_aliases_merges_and_scalars(tmp_path):
    tree = read(write(tmp_path, RICH))
    train = tree["datasets"]["pets/train"]
    init = {"kwargs": {"root": "~/data/pets", "mean": [0.5, 0.001]}}
    assert train == Tagged("!import_call", {"_root": "~/data/pets", "key": "types.SimpleNamespace", "init": init})
    assert train.line == "line 4"
    assert tree["datasets"]["pets/again"] is train
    assert tree["merged"] == {**tree["_base"], "length": 5, "more": 1, "flag": False}
    assert tree["id"] == "pets/train"
    assert tree["empty"] is None


def test_the_first_of_several_merged_sections_wins():
    text = "a: &a {size: 3}\nb: {<<: [{size: 5}, *a]}\n"
    assert parse(text, "x.yaml")["b"] == {"size": 5}, "as YAML says"
    assert yaml.load(text, Loader=yaml.FullLoader)["b"] == {"size": 3}, "PyYAML 6.0.4 takes the last, since mended?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("!pathjoin ['a', 'b', 3]", "a/b/3"),
        ("!expanduser '~/x'", str(Path("~/x").expanduser())),
        ("!abspath 'x'", str(Path("x").absolute())),
        ("!join ['a', !import_get {key: os.sep}]", Tagged("!join", ["a", Tagged("!import_get", {"key": "os.sep"})])),
        ("!join a", Tagged("!join", "a")),
        ("!!python/tuple [1, [2]]", (1, [2])),
        ("!!set {a}", {"a"}),
    ],
)
def test_text_tags_are_evaluated(text, expected):
    assert parse(text, "--set a") == expected


def test_what_is_built_and_what_is_written_is_what_torchdistill_builds(tmp_path):
    path = write(tmp_path, RICH)
    tree, expected = read(path), load_yaml_file(str(path))
    text = dump(tree)
    assert text.isascii()
    for built in (build(tree), build(tree), load_yaml_file(str(write(tmp_path, text, "again.yaml")))):
        assert built == expected
        assert list(built) == list(expected), "keys keep their order"
        assert built["datasets"]["pets/train"] is built["datasets"]["pets/again"]
        assert built["datasets"]["pets/train"] is not built["datasets"]["pets/val"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{key: gkd_plugin.functionl.x}", r"no module named 'gkd_plugin\.functionl'; did you mean 'functional'"),
        ("{key: os.path.basname}", r"^datasets\.train \(line 3\): os\.path\.basname: no .*; did you mean 'basename'"),
        ("{key: basname, package: os.path}", "did you mean 'basename'"),
        ("{key: nothing_of_this_name.x}", "no module named 'nothing_of_this_name'"),
        ("{key: ImageFolder}", "'ImageFolder' must be a full dotted name"),
        ("{kee: [!import_get {key: os.sep}]}", r"3\): !import_call takes a section with 'key', a dotted name, which"),
        ("[os.sep]", "takes a section"),
        ("{key: os.sep}", r"\(line 3\): TypeError: 'str' object is not callable"),
        ("{key: tests.config.samples.refuse}", r"\(line 3\): the images are missing; download them first$"),
        ('{key: tests.config.samples.fail, init: {args: ["pets\\nmore"]}}', "FileNotFoundError: pets$"),
        ("{key: tests.config.samples.fail}", r"\(line 3\): FileNotFoundError$"),
        ("{key: tests.config.samples.fail, init: {kwargs: {mesage: 1}}}", "unexpected keyword argument 'mesage'"),
        ("{key: builtins.dict, init: {kwargs: {t: !import_call {key: builtins.int, init: {args: [a]}}}}}",
         r"^datasets\.train\.init\.kwargs\.t \(line 3\): ValueError: invalid literal"),
        ("!getattr [!import_get {key: sys.modules}, sepp]", r"\.train \(line 3\): AttributeError: .*sepp"),
        ("!import_call_method {package: builtins.dict.fromkey}", r"in builtins\.dict; did you mean 'fromkeys'"),
    ],
)  # fmt: skip
def test_names_the_innermost_object_that_failed(tmp_path, entry, message):
    tag = "" if entry.startswith("!") else "!import_call"
    tree = read(write(tmp_path, f"a: 1\ndatasets:\n  train: {tag} {entry}\n"))
    with pytest.raises(ConfigError, match=message) as caught:
        build(tree)
    assert caught.value.__cause__ is not None


def test_module_that_fails_to_import(tmp_path, monkeypatch):
    write(tmp_path, "import module_nobody_has\n", "breaks_on_import.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = "breaks_on_import cannot be imported: ModuleNotFoundError: .*nobody_has"
    refused(message, resolve_target, Tagged("!import_get", {"key": "breaks_on_import.x"}))


def test_what_aliases_share_is_walked_once():
    tree: object = "x"
    for _ in range(60):
        tree = [tree, tree]
    assert len(walk(tree)) == 61


def test_torchdistill_still_passes_a_late_alias_as_an_empty_list(tmp_path):
    """The day this fails, PyYAML or torchdistill has mended it, and ``dump`` need not write such sections out."""
    late = f"!import_call\n    key: {SNAPSHOT}\n    init:\n      kwargs:\n        mean: *mean\n"
    text = f"_pixels: {{mean: &mean [0.5], size: 3}}\ndatasets:\n  x: {late}"
    assert load_yaml_file(str(write(tmp_path, text)))["datasets"]["x"] == ("snapshot", (), {"mean": []})
    assert build(parse(text))["datasets"]["x"] == ("snapshot", (), {"mean": [0.5]})


def expected(tree):
    """What a tree should build."""
    if isinstance(tree, Tagged):
        init = expected(tree.value["init"])
        return ("snapshot", tuple(init["args"]), init["kwargs"])
    if isinstance(tree, dict):
        return {key: expected(item) for key, item in tree.items()}
    return [expected(item) for item in tree] if isinstance(tree, list) else tree


def written(random):
    """A random config with anchors, aliases, merge keys and objects."""
    anchors, mappings = [], []

    def value(depth):
        kind = random.choice(["scalar", "alias", "list", "mapping", "mapping", "object"])
        if kind == "alias" and anchors:
            return f"*{random.choice(anchors)} "
        if kind in ("scalar", "alias") or depth == 0:
            return str(random.randint(0, 9))
        text = {"list": sequence, "mapping": mapping, "object": call}[kind](depth - 1)
        anchors.append(f"a{len(anchors)}")
        if kind == "mapping":
            mappings.append(anchors[-1])
        return f"&{anchors[-1]} {text}"

    def sequence(depth):
        return f"[{', '.join(value(depth) for _ in range(random.randint(0, 3)))}]"

    def mapping(depth):
        merge = f"<<: *{random.choice(mappings)} , " if mappings and random.random() < 0.3 else ""
        keys = random.sample(("ka", "kb", "kc", "kd"), random.randint(0, 3))
        return "{" + merge + ", ".join(f"{key}: {value(depth)}" for key in keys) + "}"

    def call(depth):
        return f"!import_call {{key: {SNAPSHOT}, init: {{args: {sequence(depth)}, kwargs: {mapping(depth)}}}}}"

    return "\n".join(f"k{number}: {value(4)}" for number in range(6))


@given(st.randoms(use_true_random=False))
def test_objects_get_complete_values_here_and_from_what_is_written(random):
    tree = parse(written(random))
    assert build(tree) == expected(tree)
    text = dump(tree)
    assert parse(text) == tree
    assert yaml.load(text, Loader=yaml.FullLoader) == expected(tree)
