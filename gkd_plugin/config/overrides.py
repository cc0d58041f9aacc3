"""``--set key.path=value``: changes to a config's node graph, before anything is made from it."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.config.stages import STAGE_NAME
from gkd_plugin.config.tree import CORE, TEXT_NUMBER, compose, is_private, pairs, plain_tree
from gkd_plugin.errors import ConfigError, nearest, told_at

KeyPath = tuple[str, ...]


def apply_overrides(root: MappingNode, assignments: Sequence[str]) -> list[str]:
    """Applies ``key.path=YAML value`` assignments in order; changes the graph.

    An override changes only the path it names: a plain section that an anchor or a merge key shares is copied first.
    An object with a tag (``!import_call`` …), or a place that only holds an anchor (``x-…``, ``_…``), is one for all.

    List items go by index (``train.optimizer.kwargs.betas.0=0.8``). An empty value is null, and ``1e-3`` is a number
    here (in a YAML file it is text). Keys that the file lacks are added, with the sections above them.

    Returns:
        Notices for the user, one line each: where an override reaches further, or less far, than may be expected.

    Raises:
        ConfigError: no ``=``, no YAML, a path through a value, or a new data set, model, stage or anchor.
    """
    notices = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not all(name.split(".")):
            raise ConfigError(f"--set {assignment}: write key.path=value, e.g. train.num_epochs=10")
        value = compose(f"!!float {text}" if TEXT_NUMBER.fullmatch(text.strip()) else text, f"--set {name}")
        before = _read(root, name) if is_private(name) else None
        with told_at(f"--set {name}: "):
            given = [f"{name}: {notice}" for notice in _write(root, name.split("."), value)]
        if _read(root, name) == before and not given:  # in the config.yaml of a run each value is at its place
            raise ConfigError(f"--set {name}: nothing in this file uses it, so it would change nothing")
        notices += given
    return notices


def _read(root: MappingNode, name: str) -> dict[str, Any]:
    """The tree without places for anchors; fails where a section that '<<' merges is one no more."""
    return {key: value for key, value in plain_tree(root, f"--set {name}").items() if not is_private(key)}


def _write(root: MappingNode, names: Sequence[str], value: Node) -> list[str]:
    node: Node = root
    path: KeyPath = ()
    while names:
        step, names = _next(node, path, names)
        path = (*path, step)
        node = _descend(root, node, path) if names else node
    old = _children(node).get(step)
    users = _paths_to(root, old)
    if old is not None and _is_for_anchor(path, users):
        # The node itself becomes the value: wherever its anchor is used, it is this node.
        old.__class__, old.__dict__ = value.__class__, value.__dict__
        return _notice("changes {}, which use{} it", users, "path")
    _put(node, step, value)
    others = [other for other in _paths_to(root, value) if other != path]
    sharing = _notice("also changes {}, which share{} the object", others)
    return [*sharing, *_notice("{} keep{} the earlier value", _paths_to(root, old))]


def _next(node: Node, path: KeyPath, rest: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The key or index that the rest of the path starts with, one that can be added too; keys may contain dots."""
    keys = list(_children(node))
    for length in range(1, len(rest) + 1):
        if ".".join(rest[:length]) in keys:
            return ".".join(rest[:length]), rest[length:]
    where, name = ".".join(path) or "the config", rest[0]
    if isinstance(node, SequenceNode):
        raise ConfigError(f"{where} is a list of {len(keys)}, it has no item {name!r}; items count from 0")
    if isinstance(node, ScalarNode):
        raise ConfigError(f"{where} is a value ({node.value or 'null'}), it has no {name!r}")
    is_stage = path == ("train",) and STAGE_NAME.fullmatch(name)  # a new one, of one key, is a slip
    if path in (("datasets",), ("models",)) or is_private(name) or is_stage:
        raise ConfigError(f"no {name!r} in {where}; {nearest(name, keys)}")
    return name, rest[1:]


def _descend(root: Node, node: Node, path: KeyPath) -> Node:
    """The child at ``path``: a new section where there is none; a copy of a plain one, which others may share."""
    step = path[-1]
    child = _children(node).get(step)
    if child is None or child.tag == f"{CORE}null":
        _put(node, step, section := MappingNode(f"{CORE}map", []))
        return section
    is_plain = isinstance(child, CollectionNode) and not child.tag.startswith("!")
    if not is_plain or _is_for_anchor(path, _paths_to(root, child)):
        return child
    own = copy.copy(child)
    own.value = list(child.value)
    _put(node, step, own)
    return own


def _put(node: Node, step: str, child: Node) -> None:
    """Sets a child of the node itself; a merged key becomes a key of its own."""
    if isinstance(node, SequenceNode):
        node.value[int(step)] = child
        return
    node.value = [(key, child if key.value == step else value) for key, value in node.value]
    if not any(value is child for _, value in node.value):
        node.value.append((ScalarNode(f"{CORE}str", step), child))


def _children(node: Node) -> dict[str, Node]:
    """Keys or indexes with their nodes; nothing for a scalar."""
    if isinstance(node, MappingNode):
        return {str(key.value): value for key, value in pairs(node)}
    return {str(index): item for index, item in enumerate(node.value)} if isinstance(node, SequenceNode) else {}


def _paths_to(root: Node, target: Node | None) -> list[KeyPath]:
    """Every key path from ``root`` to ``target``: several where it has an anchor that is used."""
    found: list[KeyPath] = [()] if root is target else []
    for step, child in _children(root).items():
        found += [(step, *rest) for rest in _paths_to(child, target)]
    return found


def _is_for_anchor(path: KeyPath, users: Sequence[KeyPath]) -> bool:
    """Whether the path is a place for an anchor, and no alias of another."""
    return any(map(is_private, path)) and users[0] == path


def _notice(text: str, paths: Iterable[KeyPath], noun: str = "other path") -> list[str]:
    """A line about the paths that are read; none where there are none."""
    read = [path for path in paths if not any(map(is_private, path))]
    if not read:
        return []
    names = ", ".join(map(".".join, read[:3])) + (", …" if len(read) > 3 else "")
    count, plural, verb = len(read), "s" * (len(read) > 1), "s" * (len(read) == 1)
    return [text.format(f"{count} {noun}{plural} ({names})", verb)]
