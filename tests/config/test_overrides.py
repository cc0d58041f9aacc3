"""``--set`` on the node graph."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.tree import build, compose, dump, items, places, plain_tree
from tests.config.samples import parse
from tests.runner.fakes import refused

CONFIG = """\
datasets:
  &train_id d/train: &object !import_call
    key: builtins.dict
    init: {kwargs: &kwargs {root: here, sizes: [1, 2, 3]}}
  d/again: *object
  d/val: !import_call
    key: builtins.dict
    init: {kwargs: *kwargs}
models: {student_model: {}}
train:
  stage1: &stage1
    num_epochs: 3
    optimizer: &optimizer {key: SGD, kwargs: {lr: 0.1, betas: [0.9, 0.99]}}
    scheduler: {key: StepLR}
  stage2:
    <<: *stage1
    scheduler: {key: ExponentialLR}
  stage3:
    optimizer: *optimizer
    id: *train_id
    cls: 10
    empty:
"""


def override(*assignments, text=CONFIG):
    """The tree after the assignments, and the notices."""
    root = compose(text, "--test")
    notices = apply_overrides(root, assignments)
    tree = plain_tree(root, "--test")
    assert parse(dump(tree)) == tree
    return tree, notices


def changed(*assignments, text=CONFIG):
    """The paths that differ after the assignments, and the notices."""
    tree, notices = override(*assignments, text=text)
    before, after = ({path: item for path, item in places(of) if not list(items(item))} for of in (parse(text), tree))
    differing = {path for path in before.keys() | after.keys() if before.get(path, "none") != after.get(path, "gone")}
    return {path: after.get(path, "gone") for path in differing}, notices


ASSIGNMENTS = """
train.stage3.cls=7 train.stage3.cls=null train.stage3.cls= train.stage3.cls='7' train.stage3.cls=a=b=c
train.stage3.cls='1e-3' train.stage3.empty=x train.stage3.optimizer.kwargs.betas.0=0.5 train.stage1.num_epochs=9
train.stage2.num_epochs=9 train.stage2.optimizer.kwargs.lr=9 train.stage1.optimizer.kwargs.lr=9 train.stage3.id=d/val
train.stage2.scheduler.key=StepLR datasets.d/again={} datasets.d/val.init.kwargs.root=there
train.stage1.optimizer.kwargs.wd=3 train.stage2.optimizer.kwargs.wd=3 train.stage3.scheduler.kwargs.gamma=0.5
train.stage3.empty.x=3 trian.stage1=3 datasets.d/val.init.args=here
"""
"""Each gives its path the value as YAML has it; the file lacks the last six paths."""


@pytest.mark.parametrize(
    ("assignment", "value"),
    [(assignment, yaml.safe_load(assignment.partition("=")[2])) for assignment in ASSIGNMENTS.split()]
    + [("train.stage3.cls=1e-3", 1e-3), ("train.stage3.cls=1.5e3", 1500.0), (" train.stage3.cls =7", 7)],
)
def test_changes_only_the_path_it_names(assignment, value):
    left = {path: item for path, item in changed(assignment)[0].items() if item != "gone"}
    assert left == {assignment.partition("=")[0].strip(): value}


def test_lists_mappings_and_tags_are_values():
    differing, _ = changed("train.stage3.cls=[1, {a: 2, b.c: 3}]", "train.stage3.cls.1.b.c=4")
    below = {"train.stage3.cls.0": 1, "train.stage3.cls.1.a": 2, "train.stage3.cls.1.b.c": 4}
    assert differing == {"train.stage3.cls": "gone", **below}
    tree, _ = override("train.stage3.cls=!import_call {key: builtins.int, init: {args: ['12']}}")
    assert build(tree)["train"]["stage3"]["cls"] == 12


PLACES = "x-lr: &lr 1\nx-o: &o {lr: *lr, n: [1]}\na: *o\nb: [*o]\nc: {<<: *o, n: 0}\nd: {<<: *o, lr: 7}\n"
MERGED = "a: &a {lr: 1, o: {k: 1}}\nx-b: &b {<<: *a}\nc: *b\n"
TAKEN = "x-k: &k 0\na: !import_call {key: builtins.dict, init: {kwargs: {k: *k}}}\nb: *k\n"


@pytest.mark.parametrize(
    ("text", "assignment", "paths", "notices"),
    [
        (CONFIG, "train.stage3.cls=2", "", []),
        (CONFIG, "train.stage1.optimizer.kwargs.wd=2", "", []),
        (CONFIG, "train.stage3.optimizer.kwargs.lr=2", "",
         ["2 other paths (train.stage1.optimizer.kwargs.lr, train.stage2.optimizer.kwargs.lr) keep the earlier"]),
        (CONFIG, "datasets.d/train.key=2", "datasets.d/again.key",
         ["also changes 1 other path (datasets.d/again.key), which shares the object"]),
        (CONFIG, "datasets.d/train.init.kwargs.x=2", "datasets.d/again.init.kwargs.x",
         ["also changes 1 other path (datasets.d/again.init.kwargs.x), which shares the object"]),
        (CONFIG, "datasets.d/again.init.kwargs.sizes.2=2", "datasets.d/train.init.kwargs.sizes.2",
         ["also changes 1 other path (datasets.d/train.init.kwargs.sizes.2), which shares the object",
          "1 other path (datasets.d/val.init.kwargs.sizes.2) keeps the earlier value"]),
        ("_o: &o {lr: 1}\nx-o: *o\na: *o\n", "a.lr=2", "", []),
        (PLACES, "x-lr=2", "x-o.lr a.lr b.0.lr c.lr", ["changes 3 paths (a.lr, b.0.lr, c.lr), which use it"]),
        (PLACES, "x-o.lr=2", "a.lr b.0.lr c.lr", ["also changes 3 other paths (a.lr, b.0.lr, c.lr), which share the"]),
        (PLACES, "x-o={lr: 2, n: [1]}", "x-o.lr a.lr b.0.lr c.lr", ["changes 2 paths (a, b.0), which use it"]),
        (MERGED, "x-b.lr=2", "c.lr", ["also changes 1 other path (c.lr)", "1 other path (a.lr) keeps the earlier"]),
        (MERGED, "x-b.o.k=2", "c.o.k", ["also changes 1 other path (c.o.k)", "1 other path (a.o.k) keeps"]),
        (TAKEN, "b=2", "", ["1 other path (a.init.kwargs.k) keeps the earlier value"]),
        (TAKEN, "x-k=2", "a.init.kwargs.k b", ["changes 2 paths (a.init.kwargs.k, b), which use it"]),
    ],
)  # fmt: skip
def test_what_is_shared(text, assignment, paths, notices):
    name = assignment.partition("=")[0]
    differing, given = changed(assignment, text=text)
    assert differing == dict.fromkeys([name, *paths.split()] if name != "x-o" else paths.split(), 2)
    assert len(given) == len(notices)
    assert all(line.startswith(f"{name}: {notice}") for line, notice in zip(given, notices, strict=True))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.num_epochs", r"--set train\.num_epochs: write key\.path=value"),
        ("=3", "write key.path=value"),
        ("train..x=3", "write key.path=value"),
        ("datasets.d/trian.key=3", r"no 'd/trian' in datasets; did you mean 'd/train'"),
        ("x-overlap=3", r"no 'x-overlap' in the config"),
        ("train.stage1.optimizer._kwargs.lr=3", r"no '_kwargs' in train\.stage1\.optimizer"),
        ("train.stage4.num_epochs=3", r"no 'stage4' in train; .*'stage1'"),
        ("models.student.kwargs.num_classes=3", r"no 'student' in models; .*'student_model'"),
        ("train.stage1.optimizer.kwargs.betas.2=3", r"betas is a list of 2, it has no item '2'"),
        ("train.stage1.optimizer.kwargs.betas.x=3", "it has no item 'x'"),
        ("train.stage1.num_epochs.x=3", r"train\.stage1\.num_epochs is a value \(3\), it has no 'x'"),
        ("train.stage1.num_epochs=[1, 2", r"--set train\.stage1\.num_epochs, line 1, column 6"),
        ("train.stage1.num_epochs={a: 1, a: 2}", "key 'a' twice"),
        ("train.stage1.num_epochs=!import_cal {}", "unknown tag"),
    ],
)
def test_refuses_what_does_not_apply(assignment, message):
    refused(message, override, assignment)


def test_names_the_option_where_its_value_does_not_work():
    text = "x-o: &o {lr: 1}\na: {<<: *o}\n"
    refused("^--set x-o, line 1, column 1: '<<' takes a mapping", override, "x-o=3", text=text)
    refused("^--set x-n: nothing in this file uses it", override, "x-n=3", text="x-n: &n 1\nx-m: *n\na: 1\n")
    tree, _ = override("train.stage3.cls=!import_call {key: builtins.nix}")
    refused(r"^train\.stage3\.cls \(--set train\.stage3\.cls\): builtins\.nix: no such", build, tree)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_value_arrives(value):
    tree, _ = override(f"train.stage2.optimizer.kwargs.lr={yaml.safe_dump(value, default_flow_style=True)}")
    assert tree["train"]["stage2"]["optimizer"]["kwargs"]["lr"] == value
    assert tree["train"]["stage1"]["optimizer"]["kwargs"]["lr"] == 0.1
