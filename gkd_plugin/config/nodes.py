"""A torchdistill YAML as PyYAML's graph of nodes: read and checked, and where ``--set`` finds its way.

Only the graph knows which values share an anchor, numbers and names among them. Everything else works on the plain
tree (:mod:`~gkd_plugin.config.tree`).
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.errors import ConfigError, nearest

__all__ = ["CORE", "compose", "compose_value", "known_tags", "line_of", "merged_pairs", "paths_to", "put", "steps"]

CORE = "tag:yaml.org,2002:"
"""What the tags of plain data start with."""


def compose(path: str | Path) -> MappingNode:
    """Reads a config file; builds nothing.

    Raises:
        ConfigError: no such file, not YAML (with line and column), not a mapping, a key twice in one mapping (YAML
            would silently take the last), an unknown tag, or an alias that contains itself.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory, not a config file")
    try:
        with path.open("rb") as stream:
            root = _compose(stream, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not isinstance(root, MappingNode) or root.tag.startswith("!"):
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
    stream = io.StringIO(text)
    stream.name = source  # PyYAML's marks take it from here
    return _compose(stream, source) or ScalarNode(f"{CORE}null", "")


def _compose(stream: Any, source: str) -> Node | None:
    try:
        root: Node | None = yaml.compose(stream, Loader=yaml.FullLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{_place(mark) if mark else source}: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    if root is not None:
        _check(root, set(), set())
    return root


def _place(mark: yaml.Mark) -> str:
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"


def line_of(node: Node) -> str:
    """Where a node was written: a line of the file, or the option ``--set …``."""
    mark = node.start_mark
    return "" if mark is None else mark.name if mark.name.startswith("--") else f"line {mark.line + 1}"


def _check(node: Node, active: set[Node], done: set[Node]) -> None:
    """Refuses recursion, duplicate keys and unknown tags in everything below ``node``."""
    if node in done:
        return
    if node in active:
        raise ConfigError(f"{_place(node.start_mark)}: this anchor is used inside itself")
    if node.tag.startswith("!") and node.tag not in known_tags():
        raise ConfigError(f"{_place(node.start_mark)}: unknown tag {node.tag!r}; {nearest(node.tag, known_tags())}")
    if isinstance(node, MappingNode):
        _check_keys(node)
    for child in _children(node):
        _check(child, active | {node}, done)
    done.add(node)


def _children(node: Node) -> list[Node]:
    """The nodes directly below; the mappings that ``<<`` merges among them."""
    if isinstance(node, MappingNode):
        return [value for _, value in node.value]
    return list(node.value) if isinstance(node, SequenceNode) else []


def known_tags() -> list[str]:
    """The tags that build something: torchdistill's, and whatever else was registered with PyYAML."""
    _register_tags()
    return [tag for tag in yaml.FullLoader.yaml_constructors if tag and tag.startswith("!")]


@functools.cache
def _register_tags() -> None:
    """torchdistill adds its tags to FullLoader when it first loads a file."""
    from torchdistill.common.yaml_util import load_yaml_file

    load_yaml_file(os.devnull)


def _check_keys(node: MappingNode) -> None:
    first: dict[tuple[str, str], Node] = {}
    for key, value in node.value:
        if _is_merge(key):
            _merge_sources(value)
        elif not isinstance(key, ScalarNode) or key.tag.startswith("!"):
            raise ConfigError(f"{_place(key.start_mark)}: a key must be a name or a number")
        elif (key.tag, key.value) in first:
            line = line_of(first[key.tag, key.value])
            raise ConfigError(f"{_place(key.start_mark)}: key {key.value!r} twice in one mapping (first in {line})")
        else:
            first[key.tag, key.value] = key


def _is_merge(key: Node) -> bool:
    return bool(key.tag == f"{CORE}merge")


def _merge_sources(node: Node) -> list[MappingNode]:
    """The mappings that ``<<: node`` merges, the least important first."""
    sources = []
    for source in reversed(node.value) if isinstance(node, SequenceNode) else [node]:
        if not isinstance(source, MappingNode):
            raise ConfigError(f"{_place(source.start_mark)}: '<<' takes a mapping or a list of mappings")
        sources.append(source)
    return sources


def merged_pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Keys and values with merge keys resolved; own keys go before merged ones."""
    merged: dict[object, tuple[Node, Node]] = {}
    own: dict[object, tuple[Node, Node]] = {}
    for key, value in node.value:
        if _is_merge(key):
            for source in _merge_sources(value):
                merged |= {(pair[0].tag, pair[0].value): pair for pair in merged_pairs(source)}
        else:
            own[key.tag, key.value] = (key, value)
    return list((merged | own).values())


def steps(node: Node) -> Iterator[tuple[str, Node]]:
    """Keys or indexes with their nodes; nothing for a scalar."""
    if isinstance(node, MappingNode):
        yield from ((str(key.value), value) for key, value in merged_pairs(node))
    else:
        yield from ((str(index), item) for index, item in enumerate(_children(node)))


def paths_to(root: Node, target: Node) -> list[tuple[str, ...]]:
    """Every key path from ``root`` to ``target``: several where it has an anchor that is used."""
    found: list[tuple[str, ...]] = [()] if root is target else []
    for step, child in steps(root):
        found += [(step, *rest) for rest in paths_to(child, target)]
    return found


def put(node: Node, step: str, child: Node) -> None:
    """Sets a child of the node itself; a merged key becomes a key of its own."""
    if isinstance(node, SequenceNode):
        node.value[int(step)] = child
        return
    own = [key for key, _ in node.value if key.value == step]
    node.value = [(key, child if key in own else value) for key, value in node.value]
    node.value += [] if own else [(ScalarNode(f"{CORE}str", step), child)]
