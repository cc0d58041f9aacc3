"""``--set key.path=value``: changes to a config's node graph, before anything is built from it."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Sequence

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.config.schema import is_private
from gkd_plugin.config.yaml_nodes import KeyPath, compose_value, entries, is_tagged, paths_to, put, steps
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["OPTIONAL_PATHS", "apply_overrides"]

OPTIONAL_PATHS = frozenset({"device", "device.default", "device.teacher", "device.precision"})
"""Paths that may be set although the file does not have them."""

_STR, _MAP, _NULL, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("str", "map", "null", "float"))
_EXPONENT = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")


def apply_overrides(
    root: MappingNode, assignments: Sequence[str], *, optional: Collection[str] = OPTIONAL_PATHS
) -> list[str]:
    """Applies ``key.path=YAML value`` assignments in order; changes the graph.

    An override changes only the path it names: a plain section that an anchor or a merge key shares is copied first,
    its other users keep what they had. An object with a tag (``!import_call`` …) is one object for all its
    users, so what is set inside it holds for all of them. A place that only holds an anchor (``x-…``, ``_…``) is there
    for its users, so what is set in it holds for all of them too.

    Args:
        root: the config.
        assignments: list items go by index (``train.stage1.optimizer.kwargs.betas.0=0.8``); the value may hold ``=``;
            an empty value is null. ``1e-3`` is a number here (in a YAML file it is text).
        optional: paths that may be created.

    Returns:
        Notices for the user, one line each: where an override reaches further, or less far, than may be expected.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a path that does not exist (names the missing part, its
            parent and the nearest keys).
    """
    return [notice for assignment in assignments for notice in _apply(root, assignment, optional)]


def _apply(root: MappingNode, assignment: str, optional: Collection[str]) -> list[str]:
    name, equals, text = assignment.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {assignment}: write key.path=value, e.g. train.num_epochs=10")
    value = _number(compose_value(text, f"--set {name}"))
    if name in optional:
        _create(root, name.split("."))
    elif name.partition(".")[0] in optional and name.partition(".")[0] not in entries(root):
        raise ConfigError(f"--set {name}: is not there and cannot be created; {nearest(name, optional)}")
    return _Override(root, name).write(value)


def _number(node: Node) -> Node:
    """``1e-3`` as the number it is meant to be: YAML 1.1 asks for a point and a sign."""
    if isinstance(node, ScalarNode) and node.tag == _STR and node.style is None:
        match = _EXPONENT.fullmatch(node.value)
        if match:
            digits, fraction, sign, exponent = match.groups()
            text = f"{digits}{fraction or '.0'}e{sign or '+'}{exponent}"
            return ScalarNode(_FLOAT, text, node.start_mark, node.end_mark)
    return node


def _create(root: MappingNode, parts: Sequence[str]) -> None:
    """Makes sure that an optional path exists."""
    mapping = root
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        found = entries(mapping).get(part)
        if found is None or (not last and found.tag == _NULL):
            found = ScalarNode(_NULL, "") if last else MappingNode(_MAP, [])
            put(mapping, part, found)
        if last or not isinstance(found, MappingNode):
            return
        mapping = found


class _Override:
    """One assignment on its way down the graph."""

    def __init__(self, root: MappingNode, name: str) -> None:
        self._root = root
        self._name = name

    def write(self, value: Node) -> list[str]:
        node: Node = self._root
        rest = self._name.split(".")
        path: KeyPath = ()
        while True:
            step, rest = self._next(node, path, rest)
            path = (*path, step)
            if not rest:
                break
            node = self._descend(node, path)
        old = dict(steps(node))[step]
        before = paths_to(self._root, old)
        if _is_anchor_place(path) and before[0] == path:  # the anchor itself, not an alias of another
            return self._write_for_users(old, value)
        put(node, step, value)
        return self._notices(path, value, [other for other in before if other in paths_to(self._root, old)])

    def _next(self, node: Node, path: KeyPath, rest: list[str]) -> tuple[str, list[str]]:
        """The key or index that the rest of the path starts with; keys may contain dots.

        Raises:
            ConfigError: there is none.
        """
        keys = list(dict(steps(node)))
        for length in range(1, len(rest) + 1):
            if ".".join(rest[:length]) in keys:
                return ".".join(rest[:length]), rest[length:]
        where = ".".join(path) or "the config"
        if isinstance(node, ScalarNode):
            reason = f"{where} is a value ({node.value or 'null'}), it has no {rest[0]!r}"
        elif isinstance(node, SequenceNode):
            reason = f"{where} is a list of {len(keys)}, it has no item {rest[0]!r}; items count from 0"
        else:
            reason = f"no {rest[0]!r} in {where}; {nearest(rest[0], keys)}; what is new is written into the file"
        raise ConfigError(f"--set {self._name}: {reason}")

    def _descend(self, node: Node, path: KeyPath) -> Node:
        """The child at ``path``, after a copy of its own where other paths share a plain section."""
        step = path[-1]
        child, owned = dict(steps(node))[step], _owns(node, step)
        shared = not owned or (len(_parents(self._root, child)) > 1 and not _is_anchor_place(path))
        if isinstance(child, ScalarNode) or is_tagged(child) or not shared:
            return child
        own = copy.copy(child)
        own.value = list(child.value)
        put(node, step, own)
        return own

    def _write_for_users(self, old: Node, value: Node) -> list[str]:
        """Replaces a node that is there for its anchor wherever it is used."""
        users = _public(paths_to(self._root, old))
        for parent in _parents(self._root, old):
            _replace(parent, old, value)
        return [f"{self._name}: changes {_places(users, 'path')}, which use{_s(users)} it"] if users else []

    def _notices(self, path: KeyPath, value: Node, unchanged: list[KeyPath]) -> list[str]:
        others = _public(other for other in paths_to(self._root, value) if other != path)
        unchanged = _public(unchanged)
        notices = []
        if others:
            notices.append(f"{self._name}: also changes {_places(others)}, which share{_s(others)} the object")
        if unchanged:
            notices.append(f"{self._name}: {_places(unchanged)} keep{_s(unchanged)} the earlier value")
        return notices


def _public(paths: Iterable[KeyPath]) -> list[KeyPath]:
    """Without the places that only hold anchors."""
    return [path for path in paths if not _is_anchor_place(path)]


def _is_anchor_place(path: KeyPath) -> bool:
    return any(is_private(step) for step in path)


def _s(paths: Sequence[KeyPath]) -> str:
    return "s" if len(paths) == 1 else ""


def _places(paths: Sequence[KeyPath], noun: str = "other path") -> str:
    names = ", ".join(".".join(path) for path in paths[:3])
    count = f"1 {noun}" if len(paths) == 1 else f"{len(paths)} {noun}s"
    return f"{count} ({names}{', …' if len(paths) > 3 else ''})"


def _owns(node: Node, step: str) -> bool:
    """Whether the child is the node's own, not one that a merge key brings."""
    return not isinstance(node, MappingNode) or any(key.value == step for key, _ in node.value)


def _replace(parent: Node, old: Node, new: Node) -> None:
    """Puts ``new`` wherever the parent holds ``old``."""
    if isinstance(parent, MappingNode):
        parent.value = [(key, new if value is old else value) for key, value in parent.value]
    else:
        parent.value = [new if item is old else item for item in parent.value]


def _parents(root: Node, target: Node) -> list[Node]:
    """The nodes that hold ``target``, once for each place in them."""
    parents: list[Node] = []
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, ScalarNode):
            continue
        seen.add(id(node))
        children = [value for _, value in node.value] if isinstance(node, MappingNode) else node.value
        parents += [node for child in children if child is target]
        waiting += children
    return parents
