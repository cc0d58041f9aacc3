"""Aliases that PyYAML fills too late: found exactly where torchdistill's loader passes them empty."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.yaml_aliases import late_aliases
from gkd_plugin.config.yaml_construct import construct
from gkd_plugin.config.yaml_nodes import compose, compose_value, dump
from gkd_plugin.config.yaml_plain import Tagged, to_plain
from tests.runner.yaml_samples import write

SNAPSHOT = "tests.runner.yaml_samples.snapshot"
LATE = f"""\
_pixels: {{mean: &mean [0.5], size: 3}}
datasets:
  x: !import_call
    key: {SNAPSHOT}
    init:
      kwargs:
        size: 3
        mean: *mean
"""


def call(kwargs, name="x", more=""):
    return f"  {name}: !import_call {{{more}key: {SNAPSHOT}, init: {{kwargs: {kwargs}}}}}\n"


def test_torchdistill_still_passes_an_empty_list(tmp_path):
    """The day this fails, PyYAML or torchdistill has mended it, and the check can go."""
    config = load_yaml_file(str(write(tmp_path, LATE)))
    assert config["datasets"]["x"] == ("snapshot", (), {"size": 3, "mean": []})
    assert config["_pixels"]["mean"] == [0.5]


def test_names_the_place_the_line_and_the_way_out():
    [line] = late_aliases(compose_value(LATE, "x.yaml"))
    assert line == (
        "datasets.x.init.kwargs.mean (line 8): an alias of a plain list inside !import_call reaches torchdistill empty "
        "(PyYAML fills it too late); write the list out here, or put its anchor where the first !import_call uses it"
    )


@pytest.mark.parametrize(
    ("before", "datasets", "places"),
    [
        ("_k: &k {mean: [0.5]}", call("*k"), ["datasets.x.init.kwargs.mean (line 3)"]),
        ("_k: &k {mean: [0.5]}", call("{<<: *k}"), ["datasets.x.init.kwargs.mean (line 3)"]),
        ("_k: {k: &k {mean: [0.5]}}", call("*k"), ["datasets.x.init.kwargs (line 3)"]),
        ("_k: {k: &k {a}}", call("*k"), ["datasets.x.init.kwargs (line 3)"]),
        ("_k: {k: &k !!set {a}}", call("{a: *k}"), ["datasets.x.init.kwargs.a (line 3)"]),
        (
            "_k: {k: &k [1]}",
            call("{a: [2, *k], b: *k}"),
            [f"datasets.x.init.kwargs.{k} (line 3)" for k in ("a.1", "b")],
        ),
        ("_k: {k: &k [1]}", call("{a: !join [*k]}"), ["datasets.x.init.kwargs.a.0 (line 3)"]),
        ("_k: [&k !!python/tuple [[1]]]", call("{a: *k}"), ["datasets.x.init.kwargs.a.0 (line 3)"]),
        ("_k: 1", call("{a: &k [1]}") + "_other: *k\n", ["datasets.x.init.kwargs.a (line 3)"]),
    ],
)
def test_late(tmp_path, before, datasets, places):
    path = write(tmp_path, f"{before}\ndatasets:\n{datasets}")
    root = compose(path)
    lines = late_aliases(root)
    assert [line.partition(":")[0] for line in lines] == places
    built = load_yaml_file(str(path))["datasets"]["x"]
    assert built != expected(to_plain(root)["datasets"]["x"]), "torchdistill has the fault here"
    assert late_aliases(compose_value(dump(root), "again")) != [], "the resolved config has it too"


@pytest.mark.parametrize(
    ("before", "datasets"),
    [
        ("_k: 1", call("{mean: &k [0.5]}") + call("{mean: *k}", "y")),
        ("_k: 1", call("{mean: *k}", more="_mean: &k [0.5], ") + call("{mean: *k}", "y")),
        ("_k: 1", call("&k {mean: [0.5]}") + call("*k", "y") + call("{<<: *k, std: [1]}", "z")),
        ("_k: &k [0.5]", call("{mean: *k}")),
        ("_k: {deeper: {k: &k [0.5]}}", call("{mean: *k}")),
        ("_k: {k: &k []}", call("{mean: *k}")),
        ("_k: {k: &k 0.5}", call("{mean: *k}")),
        ("_k: {k: &k !!python/tuple [1, 2]}", call("{mean: *k}")),
        (f"_k: {{k: &k !import_call {{key: {SNAPSHOT}, init: {{args: [[1]]}}}}}}", call("{a: *k}")),
        ("_k: &k {mean: [0.5], size: 3}", call("{<<: *k, mean: [0.1]}")),
        ("_k: {k: &k [1]}", "  x: [*k]\n"),
    ],
)
def test_in_time(tmp_path, before, datasets):
    path = write(tmp_path, f"{before}\ndatasets:\n{datasets}")
    root = compose(path)
    assert late_aliases(root) == []
    assert load_yaml_file(str(path)) == construct(root) == expected(to_plain(root))


def test_an_override_can_mend_it():
    root = compose_value(LATE, "x.yaml")
    apply_overrides(root, ["datasets.x.init.kwargs.mean=[0.1]"])
    assert late_aliases(root) == []


def expected(plain):
    """What a config should give where nothing comes too late."""
    if isinstance(plain, Tagged) and plain.tag == "!import_call":
        init = expected(plain.value.get("init") or {})
        return ("snapshot", tuple(init.get("args", ())), init.get("kwargs", {}))
    if isinstance(plain, Tagged):
        return tuple(plain.value) if "tuple" in plain.tag else plain.value
    if isinstance(plain, dict):
        return {key: expected(item) for key, item in plain.items()}
    return [expected(item) for item in plain] if isinstance(plain, list) else plain


class Writer:
    """A random config with anchors, aliases, merge keys and objects."""

    def __init__(self, random):
        self.random = random
        self.count = 0
        self.anchors = []
        self.mappings = []

    def value(self, depth):
        kind = self.random.choice(["scalar", "alias", "list", "mapping", "mapping", "object"])
        if kind == "alias" and self.anchors:
            return f"*{self.random.choice(self.anchors)} "
        if kind in ("scalar", "alias") or depth == 0:
            return str(self.random.randint(0, 9))
        self.count += 1
        name = f"a{self.count}"
        text = getattr(self, kind)(depth - 1)
        self.anchors.append(name)
        if kind == "mapping":
            self.mappings.append(name)
        return f"&{name} {text}"

    def list(self, depth):
        return f"[{', '.join(self.value(depth) for _ in range(self.random.randint(0, 3)))}]"

    def mapping(self, depth):
        merge = f"<<: *{self.random.choice(self.mappings)} , " if self.mappings and self.random.random() < 0.3 else ""
        # not of one letter: in a merge of a merge PyYAML 6.0.4 takes two such keys for one, by the identity of texts
        keys = self.random.sample(("ka", "kb", "kc", "kd"), self.random.randint(0, 3))
        return "{" + merge + ", ".join(f"{key}: {self.value(depth)}" for key in keys) + "}"

    def object(self, depth):
        return f"!import_call {{key: {SNAPSHOT}, init: {{args: {self.list(depth)}, kwargs: {self.mapping(depth)}}}}}"


@given(st.randoms(use_true_random=False))
def test_finds_exactly_what_torchdistill_gets_wrong(random):
    writer = Writer(random)
    text = "\n".join(f"k{number}: {writer.value(4)}" for number in range(6))
    root = compose_value(text, "--test")
    late = late_aliases(root)
    built = construct(root)
    assert built == yaml.load(text, Loader=yaml.FullLoader)
    assert (built == expected(to_plain(root))) == (late == [])
