"""``--set key.path=value``: changes to a config's node graph, before anything is made from it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.config.kinds import is_private
from gkd_plugin.config.nodes import CORE, compose_value, paths_to, put, steps
from gkd_plugin.config.stages import STAGE_NAME
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["apply_overrides"]

KeyPath = tuple[str, ...]
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def apply_overrides(root: MappingNode, assignments: Sequence[str]) -> list[str]:
    """Applies ``key.path=YAML value`` assignments in order; changes the graph.

    An override changes only the path it names: a plain section that an anchor or a merge key shares is copied first,
    its other users keep what they had. An object with a tag (``!import_call`` …) is one object for all its users, so
    what is set inside it holds for all of them. A place that only holds an anchor (``x-…``, ``_…``) is set for all its
    users, too.

    Args:
        root: the config.
        assignments: list items go by index (``train.stage1.optimizer.kwargs.betas.0=0.8``); the value may hold ``=``;
            an empty value is null. ``1e-3`` is a number here (in a YAML file it is text). Keys that the file lacks are
            added, with the sections above them; validation refuses those that nobody reads.

    Returns:
        Notices for the user, one line each: where an override reaches further, or less far, than may be expected.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, a path through a value, or a new data set, model, stage or
            anchor place (names the nearest keys).
    """
    return [notice for assignment in assignments for notice in _apply(root, assignment)]


def _apply(root: MappingNode, assignment: str) -> list[str]:
    name, equals, text = assignment.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {assignment}: write key.path=value, e.g. train.num_epochs=10")
    return _Override(root, name).write(_number(compose_value(text, f"--set {name}")))


def _number(node: Node) -> Node:
    """``1e-3`` as the number it is meant to be: YAML 1.1 asks for a point and a sign."""
    is_text = isinstance(node, ScalarNode) and node.tag == f"{CORE}str" and node.style is None
    if is_text and _EXPONENT.fullmatch(node.value):
        return ScalarNode(f"{CORE}float", node.value, node.start_mark, node.end_mark)
    return node


class _Override:
    """One assignment on its way down the graph."""

    def __init__(self, root: MappingNode, name: str) -> None:
        self._root = root
        self._name = name

    def write(self, value: Node) -> list[str]:
        node: Node = self._root
        path: KeyPath = ()
        step, rest = self._next(node, path, self._name.split("."))
        while rest:
            path = (*path, step)
            node = self._descend(node, path)
            step, rest = self._next(node, path, rest)
        path = (*path, step)
        old = dict(steps(node)).get(step)
        before = [] if old is None else paths_to(self._root, old)
        if old is not None and _is_private(path) and before[0] == path:  # the anchor itself, not an alias of another
            return self._write_for_users(old, value)
        put(node, step, value)
        kept = [] if old is None else paths_to(self._root, old)
        return self._notices(path, value, [other for other in before if other in kept])

    def _next(self, node: Node, path: KeyPath, rest: list[str]) -> tuple[str, list[str]]:
        """The key or index that the rest of the path starts with; keys may contain dots.

        Raises:
            ConfigError: there is none, and none can be added.
        """
        keys = list(dict(steps(node)))
        for length in range(1, len(rest) + 1):
            if ".".join(rest[:length]) in keys:
                return ".".join(rest[:length]), rest[length:]
        where = ".".join(path) or "the config"
        if isinstance(node, SequenceNode):
            reason = f"{where} is a list of {len(keys)}, it has no item {rest[0]!r}; items count from 0"
        elif isinstance(node, ScalarNode):
            reason = f"{where} is a value ({node.value or 'null'}), it has no {rest[0]!r}"
        elif path in (("datasets",), ("models",)) or is_private(rest[0]) or _is_stage(path, rest[0]):
            reason = f"no {rest[0]!r} in {where}; {nearest(rest[0], keys)}"
        else:
            return rest[0], rest[1:]
        raise ConfigError(f"--set {self._name}: {reason}")

    def _descend(self, node: Node, path: KeyPath) -> Node:
        """The child at ``path``: a new section where there is none, a copy where other paths share a plain one."""
        step = path[-1]
        child = dict(steps(node)).get(step)
        if child is None or child.tag == f"{CORE}null":
            put(node, step, section := MappingNode(f"{CORE}map", []))
            return section
        is_own = not isinstance(node, MappingNode) or any(key.value == step for key, _ in node.value)
        is_shared = not is_own or (len(_parents(self._root, child)) > 1 and not _is_private(path))
        if isinstance(child, ScalarNode) or child.tag.startswith("!") or not is_shared:
            return child
        own = copy.copy(child)
        own.value = list(child.value)
        put(node, step, own)
        return own

    def _write_for_users(self, old: Node, value: Node) -> list[str]:
        """Replaces a node that is there for its anchor wherever it is used."""
        users = _public(paths_to(self._root, old))
        for parent in _parents(self._root, old):
            if isinstance(parent, MappingNode):
                parent.value = [(key, value if child is old else child) for key, child in parent.value]
            else:
                parent.value = [value if child is old else child for child in parent.value]
        return [f"{self._name}: changes {_places(users, 'path')}, which use{_s(users)} it"] if users else []

    def _notices(self, path: KeyPath, value: Node, kept: list[KeyPath]) -> list[str]:
        others = _public(other for other in paths_to(self._root, value) if other != path)
        kept = _public(kept)
        notices = []
        if others:
            notices.append(f"{self._name}: also changes {_places(others)}, which share{_s(others)} the object")
        if kept:
            notices.append(f"{self._name}: {_places(kept)} keep{_s(kept)} the earlier value")
        return notices


def _is_stage(path: KeyPath, name: str) -> bool:
    """Whether it would be a new stage, of one key: like a new data set or anchor, a slip."""
    return path == ("train",) and bool(STAGE_NAME.fullmatch(name))


def _public(paths: Iterable[KeyPath]) -> list[KeyPath]:
    """Without the places that only hold anchors."""
    return [path for path in paths if not _is_private(path)]


def _is_private(path: KeyPath) -> bool:
    return any(is_private(step) for step in path)


def _s(paths: Sequence[KeyPath]) -> str:
    return "s" if len(paths) == 1 else ""


def _places(paths: Sequence[KeyPath], noun: str = "other path") -> str:
    names = ", ".join(".".join(path) for path in paths[:3])
    count = f"1 {noun}" if len(paths) == 1 else f"{len(paths)} {noun}s"
    return f"{count} ({names}{', …' if len(paths) > 3 else ''})"


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
