"""``--set`` on the node graph."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.tree import build, compose, dump
from gkd_plugin.config.tree import plain_tree as tree_of
from gkd_plugin.errors import ConfigError

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


def plain_tree(root):
    return tree_of(root, "--test")


def root_of(text=CONFIG):
    return compose(text, "--test")


def changed(*assignments, text=CONFIG):
    """The plain config after the overrides, and the paths that differ from before."""
    before, root = plain_tree(root_of(text)), root_of(text)
    notices = apply_overrides(root, assignments)
    after = plain_tree(root)
    flat_before, flat_after = dict(leaves(before)), dict(leaves(after))
    differing = {
        path: flat_after.get(path, "gone")
        for path in flat_before.keys() | flat_after.keys()
        if flat_before.get(path, "none") != flat_after.get(path, "gone")
    }
    assert plain_tree(root_of(dump(plain_tree(root)))) == after
    return differing, notices


def leaves(value, path=()):
    value = getattr(value, "value", value)
    if isinstance(value, (dict, list)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, str(key)))
    else:
        yield ".".join(path), value


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("train.stage3.cls=7", "train.stage3.cls", 7),
        ("train.stage3.cls=null", "train.stage3.cls", None),
        ("train.stage3.cls=", "train.stage3.cls", None),
        ("train.stage3.cls='7'", "train.stage3.cls", "7"),
        ("train.stage3.cls=a=b=c", "train.stage3.cls", "a=b=c"),
        ("train.stage3.cls=1e-3", "train.stage3.cls", 1e-3),
        ("train.stage3.cls=1.5e3", "train.stage3.cls", 1500.0),
        ("train.stage3.cls='1e-3'", "train.stage3.cls", "1e-3"),
        ("train.stage3.empty=x", "train.stage3.empty", "x"),
        (" train.stage3.cls =7", "train.stage3.cls", 7),
        ("train.stage3.optimizer.kwargs.betas.0=0.5", "train.stage3.optimizer.kwargs.betas.0", 0.5),
        ("train.stage1.num_epochs=9", "train.stage1.num_epochs", 9),
        ("train.stage2.num_epochs=9", "train.stage2.num_epochs", 9),
        ("train.stage2.optimizer.kwargs.lr=9", "train.stage2.optimizer.kwargs.lr", 9),
        ("train.stage1.optimizer.kwargs.lr=9", "train.stage1.optimizer.kwargs.lr", 9),
        ("train.stage2.scheduler.key=StepLR", "train.stage2.scheduler.key", "StepLR"),
        ("datasets.d/val.init.kwargs.root=there", "datasets.d/val.init.kwargs.root", "there"),
        ("train.stage3.id=d/val", "train.stage3.id", "d/val"),
    ],
)
def test_changes_only_the_path_it_names(assignment, path, value):
    differing, _ = changed(assignment)
    assert differing == {path: value}


def test_lists_mappings_and_tags_are_values():
    differing, _ = changed("train.stage3.cls=[1, {a: 2}]")
    assert differing == {"train.stage3.cls": "gone", "train.stage3.cls.0": 1, "train.stage3.cls.1.a": 2}
    root = root_of()
    apply_overrides(root, ["train.stage3.cls=!import_call {key: builtins.int, init: {args: ['12']}}"])
    assert build(plain_tree(root))["train"]["stage3"]["cls"] == 12


def test_notice_where_other_users_keep_their_value():
    _, notices = changed("train.stage3.optimizer.kwargs.lr=9")
    assert notices == [
        (
            "train.stage3.optimizer.kwargs.lr: 2 other paths (train.stage1.optimizer.kwargs.lr, "
            "train.stage2.optimizer.kwargs.lr) keep the earlier value"
        )
    ]
    assert changed("train.stage3.cls=7")[1] == []


def test_an_object_is_one_for_all_its_users():
    differing, notices = changed("datasets.d/train.key=builtins.list")
    assert differing == {"datasets.d/train.key": "builtins.list", "datasets.d/again.key": "builtins.list"}
    assert notices == [
        "datasets.d/train.key: also changes 1 other path (datasets.d/again.key), which shares the object"
    ]


def test_a_section_inside_a_shared_object_is_not_shared_with_other_objects():
    differing, notices = changed("datasets.d/again.init.kwargs.sizes.2=8")
    assert differing == {"datasets.d/train.init.kwargs.sizes.2": 8, "datasets.d/again.init.kwargs.sizes.2": 8}
    assert "also changes 1 other path (datasets.d/train.init.kwargs.sizes.2)" in notices[0]
    assert "1 other path (datasets.d/val.init.kwargs.sizes.2) keeps the earlier value" in notices[1]


def test_replacing_a_whole_object_changes_one_path():
    root = root_of()
    apply_overrides(root, ["datasets.d/again={}"])
    built = build(plain_tree(root))["datasets"]
    assert built["d/again"] == {}
    assert built["d/train"]["root"] == "here"


def test_places_for_anchors_are_not_reported():
    text = "_o: &o {lr: 1}\nx-o: *o\na: *o\n"
    assert changed("a.lr=2", text=text) == ({"a.lr": 2}, [])


@pytest.mark.parametrize(
    ("assignment", "also"), [("x-lr=2", {"x-lr"}), ("x-o.lr=2", set()), ("x-o={lr: 2, n: [1]}", set())]
)
def test_a_place_for_an_anchor_is_set_for_all_its_users(assignment, also):
    text = "x-lr: &lr 1\nx-o: &o {lr: *lr, n: [1]}\na: *o\nb: [*o]\nc: {<<: *o, n: 0}\nd: {<<: *o, lr: 7}\n"
    differing, notices = changed(assignment, text=text)
    assert differing == dict.fromkeys({"x-o.lr", "a.lr", "b.0.lr", "c.lr"} | also, 2)
    assert len(notices) == 1
    assert notices[0].startswith(f"{assignment.partition('=')[0]}: ")
    assert "(a" in notices[0]


def test_a_place_for_an_anchor_keeps_what_it_merges_from():
    text = "a: &a {lr: 1, o: {k: 1}}\nx-b: &b {<<: *a}\nc: *b\n"
    assert changed("x-b.lr=2", text=text)[0] == {"x-b.lr": 2, "c.lr": 2}
    assert changed("x-b.o.k=2", text=text)[0] == {"x-b.o.k": 2, "c.o.k": 2}


def test_a_value_that_was_taken_from_an_anchor_is_set_alone():
    call = "!import_call {key: builtins.dict, init: {kwargs: {overlap: *overlap}}}"
    text = f"x-overlap: &overlap 0.0\na: {call}\nb: *overlap\n"
    assert changed("b=0.4", text=text)[0] == {"b": 0.4}
    root = root_of(text)
    assert apply_overrides(root, ["x-overlap=0.4"]) == [
        "x-overlap: changes 2 paths (a.init.kwargs.overlap, b), which use it"
    ]
    assert build(plain_tree(root)) == {"x-overlap": 0.4, "a": {"overlap": 0.4}, "b": 0.4}


def test_keys_may_contain_dots():
    assert changed("a.layer4.1.lr=2", text="a: {layer4.1: {lr: 1}}\n")[0] == {"a.layer4.1.lr": 2}


def test_later_assignments_see_earlier_ones():
    differing, _ = changed("train.stage3.cls={a: 1}", "train.stage3.cls.a=2")
    assert differing["train.stage3.cls.a"] == 2


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("train.stage1.optimizer.kwargs.wd=3", "train.stage1.optimizer.kwargs.wd", 3),
        ("train.stage2.optimizer.kwargs.wd=3", "train.stage2.optimizer.kwargs.wd", 3),
        ("train.stage3.scheduler.kwargs.gamma=0.5", "train.stage3.scheduler.kwargs.gamma", 0.5),
        ("train.stage3.empty.x=3", "train.stage3.empty.x", 3),
        ("trian.stage1=3", "trian.stage1", 3),
        ("datasets.d/val.init.args=[1]", "datasets.d/val.init.args.0", 1),
    ],
)
def test_keys_that_the_file_lacks_are_added(assignment, path, value):
    differing, notices = changed(assignment)
    assert {key: item for key, item in differing.items() if item != "gone"} == {path: value}
    assert notices == []


def test_a_key_added_in_a_shared_object_is_told():
    differing, notices = changed("datasets.d/train.init.kwargs.x=1")
    assert differing == {"datasets.d/train.init.kwargs.x": 1, "datasets.d/again.init.kwargs.x": 1}
    assert "datasets.d/again.init.kwargs.x" in notices[0]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.num_epochs", r"--set train\.num_epochs: write key\.path=value"),
        ("=3", "write key.path=value"),
        ("train..x=3", "write key.path=value"),
        ("datasets.d/trian.key=3", r"no 'd/trian' in datasets; did you mean 'd/train'"),
        ("x-overlap=3", r"no 'x-overlap' in the config"),
        ("train.x-lr=3", r"no 'x-lr' in train"),
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
    with pytest.raises(ConfigError, match=message):
        apply_overrides(root_of(), [assignment])


def test_refuses_a_value_where_a_section_is_merged():
    with pytest.raises(ConfigError, match=r"^--set x-o, line 1, column 1: '<<' takes a mapping"):
        apply_overrides(root_of("x-o: &o {lr: 1}\na: {<<: *o}\n"), ["x-o=3"])


def test_an_object_given_on_the_command_line_names_it_when_it_fails():
    root = root_of()
    apply_overrides(root, ["train.stage3.cls=!import_call {key: builtins.nix}"])
    with pytest.raises(ConfigError, match=r"^train\.stage3\.cls \(--set train\.stage3\.cls\): builtins\.nix: no such"):
        build(plain_tree(root))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_value_arrives(value):
    root = root_of()
    apply_overrides(root, [f"train.stage2.optimizer.kwargs.lr={yaml.safe_dump(value, default_flow_style=True)}"])
    for plain in (plain_tree(root), plain_tree(root_of(dump(plain_tree(root))))):
        assert plain["train"]["stage2"]["optimizer"]["kwargs"]["lr"] == value
        assert plain["train"]["stage1"]["optimizer"]["kwargs"]["lr"] == 0.1
