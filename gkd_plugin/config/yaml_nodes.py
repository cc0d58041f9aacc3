"""A torchdistill YAML as a graph of nodes: read, checked, looked at and written back.

torchdistill's tags (``!import_call`` …) build datasets while the file is being parsed. Overrides and validation come
before that, so they work on the graph that ``yaml.compose`` gives, or on plain data made from it
(:mod:`~gkd_plugin.config.yaml_plain`); only :mod:`~gkd_plugin.config.yaml_construct` builds anything.
"""

from __future__ import annotations

import copy
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.errors import ConfigError, nearest

__all__ = [
    "CORE",
    "KeyPath",
    "as_node",
    "compose",
    "compose_value",
    "dump",
    "entries",
    "first_paths",
    "is_tagged",
    "located",
    "merge_sources",
    "merged_pairs",
    "paths_to",
    "place",
    "put",
    "register_tags",
    "remove",
    "steps",
]

KeyPath = tuple[str, ...]

CORE = "tag:yaml.org,2002:"
"""What the tags of plain data start with."""

_MERGE, _NULL = f"{CORE}merge", f"{CORE}null"
_CORE_TAGS = {
    f"{CORE}{name}"
    for name in ("null", "bool", "int", "float", "binary", "timestamp", "str", "seq", "map", "merge", "value")
}


# --- reading ---------------------------------------------------------------------------------------------------------


def compose(path: str | Path) -> MappingNode:
    """Reads a config file into its node graph; builds nothing.

    Raises:
        ConfigError: no such file, not YAML (with line and column), not a mapping, a key twice in one mapping (YAML
            would silently take the last), a tag nobody knows, or an alias that contains itself.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory, not a config file")
    try:
        with path.open("rb") as stream:
            root = _compose(stream, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not isinstance(root, MappingNode) or is_tagged(root):
        given = "empty" if root is None else "a list" if isinstance(root, SequenceNode) else "something else"
        raise ConfigError(f"{path}: a config is a mapping (datasets, models, train, …), this file is {given}")
    return root


def compose_value(text: str, source: str) -> Node:
    """Reads one YAML value, e.g. of ``--set key=value``; empty text is null.

    Args:
        text: YAML; lists, mappings, numbers and tags all work.
        source: what error messages call the place it came from.

    Raises:
        ConfigError: as :func:`compose`.
    """
    root = _compose(_NamedText(text, source), source)
    return ScalarNode(_NULL, "") if root is None else root


class _NamedText(io.StringIO):
    """Text with a name: PyYAML's marks take it from here."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def _compose(stream: Any, source: str) -> Node | None:
    try:
        root: Node | None = yaml.compose(stream, Loader=yaml.FullLoader)
    except yaml.MarkedYAMLError as error:
        where = place(error.problem_mark or error.context_mark) or source
        raise ConfigError(f"{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    if root is not None:
        _check(root, set(), set())
    return root


def place(mark: yaml.Mark | None) -> str:
    """File, line and column; empty for a node that no file holds."""
    return "" if mark is None else f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"


def _check(node: Node, active: set[int], done: set[int]) -> None:
    """Refuses recursion, duplicate keys and unknown tags in everything below ``node``."""
    if id(node) in active:
        raise ConfigError(f"{place(node.start_mark)}: this anchor is used inside itself")
    if id(node) in done:
        return
    active.add(id(node))
    _check_tag(node)
    if isinstance(node, MappingNode):
        _check_keys(node)
    for child in _children(node):
        _check(child, active, done)
    active.remove(id(node))
    done.add(id(node))


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _check_tag(node: Node) -> None:
    register_tags()
    known = [tag for tag in yaml.FullLoader.yaml_constructors if tag]
    prefixes = [prefix for prefix in yaml.FullLoader.yaml_multi_constructors if prefix]
    if node.tag in _CORE_TAGS or node.tag in known or node.tag.startswith(tuple(prefixes)):
        return
    custom = [tag for tag in known if tag.startswith("!")]
    raise ConfigError(f"{place(node.start_mark)}: unknown tag {node.tag!r}; {nearest(node.tag, custom)}")


@functools.cache
def register_tags() -> None:
    """Adds the tags to FullLoader: torchdistill does it when it first loads a file."""
    from torchdistill.common.yaml_util import load_yaml_file

    load_yaml_file(os.devnull)


def _check_keys(node: MappingNode) -> None:
    seen: dict[tuple[str, str], Node] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            merge_sources(value)
        elif isinstance(key, ScalarNode):
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                line = "" if first.start_mark is None else f" (first in line {first.start_mark.line + 1})"
                raise ConfigError(f"{place(key.start_mark)}: key {key.value!r} twice in one mapping{line}")


# --- looking ---------------------------------------------------------------------------------------------------------


def is_tagged(node: Node) -> bool:
    """Whether the node has a tag of its own (``!import_call`` …), so that it becomes one constructed object."""
    return node.tag not in _CORE_TAGS


def merge_sources(node: Node) -> list[MappingNode]:
    """The mappings that ``<<: node`` merges, the least important first.

    Raises:
        ConfigError: ``<<`` names something other than mappings.
    """
    sources = reversed(node.value) if isinstance(node, SequenceNode) else [node]
    mappings = []
    for source in sources:
        if not isinstance(source, MappingNode):
            raise ConfigError(f"{place(source.start_mark)}: '<<' takes a mapping or a list of mappings")
        mappings.append(source)
    return mappings


def merged_pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Keys and values as the constructed mapping will have them: merge keys resolved, own keys over merged ones."""
    merged: dict[object, tuple[Node, Node]] = {}
    own: dict[object, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            for source in merge_sources(value):
                merged |= {_identity(pair[0]): pair for pair in merged_pairs(source)}
        else:
            own[_identity(key)] = (key, value)
    return list((merged | own).values())


def _identity(key: Node) -> object:
    return (key.tag, key.value) if isinstance(key, ScalarNode) else id(key)


def steps(node: Node) -> Iterator[tuple[str, Node]]:
    """Keys or indexes with their nodes, merge keys resolved; nothing for a scalar."""
    if isinstance(node, MappingNode):
        yield from ((str(key.value), value) for key, value in merged_pairs(node))
    elif isinstance(node, SequenceNode):
        yield from ((str(index), item) for index, item in enumerate(node.value))


def entries(node: Node) -> dict[str, Node]:
    """A mapping's nodes by their keys, merge keys resolved; nothing for other nodes."""
    return dict(steps(node)) if isinstance(node, MappingNode) else {}


def paths_to(root: Node, target: Node) -> list[KeyPath]:
    """Every key path that leads from ``root`` to ``target``: several where it has an anchor that is used."""
    found: list[KeyPath] = [()] if root is target else []
    for step, child in steps(root):
        found += [(step, *rest) for rest in paths_to(child, target)]
    return found


def first_paths(root: Node) -> dict[int, str]:
    """The first key path to each node, by the node's id."""
    paths: dict[int, str] = {}

    def visit(node: Node, path: KeyPath) -> None:
        if id(node) not in paths:
            paths[id(node)] = ".".join(path)
            for step, child in steps(node):
                visit(child, (*path, step))

    visit(root, ())
    return paths


def located(path: str, mark: yaml.Mark | None) -> str:
    """A key path with its line in the file, as the start of an error message."""
    if mark is None:
        return path
    line = mark.name if mark.name.startswith("--") else f"line {mark.line + 1}"
    return f"{path} ({line})" if path else f"{mark.name}, {line}"


# --- changing ---------------------------------------------------------------------------------------------------------


def as_node(value: Any, source: str) -> Node:
    """Plain data as a node, for :func:`put`; ``source`` names it in messages."""
    return compose_value(yaml.safe_dump(value), source)


def put(node: Node, step: str, child: Node) -> None:
    """Sets a child of the node itself; a merged key becomes a key of its own."""
    if isinstance(node, SequenceNode):
        node.value[int(step)] = child
        return
    for index, (key, _) in enumerate(node.value):
        if key.value == step:
            node.value[index] = (key, child)
            return
    node.value.append((ScalarNode(f"{CORE}str", step), child))


def remove(node: MappingNode, key: str) -> None:
    """Takes a key of the node itself away, if it is there; resolves merge keys first."""
    node.value = [pair for pair in merged_pairs(node) if pair[0].value != key]


# --- writing ---------------------------------------------------------------------------------------------------------


def dump(node: Node) -> str:
    """The graph as YAML that torchdistill's ``load_yaml_file`` loads to the same config.

    ASCII only, comments gone. Sections and objects that are shared stay shared, under new anchor names; aliased
    names and numbers are written out.
    """
    text: str = yaml.serialize(_without_shared_scalars(node, {}), width=110)
    return text


def _without_shared_scalars(node: Node, memo: dict[int, Node]) -> Node:
    if isinstance(node, ScalarNode) and not is_tagged(node):
        return copy.copy(node)
    if id(node) not in memo:
        memo[id(node)] = own = copy.copy(node)
        if isinstance(node, MappingNode):
            own.value = [tuple(_without_shared_scalars(child, memo) for child in pair) for pair in node.value]
        elif isinstance(node, SequenceNode):
            own.value = [_without_shared_scalars(child, memo) for child in node.value]
    return memo[id(node)]
