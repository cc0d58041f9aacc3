"""A configuration as a plain tree: dicts, lists, scalars, and :class:`Tagged` where ``!import_call`` would build.

Aliases are one object in the tree and stay one when it is built or written. Change a tree as any nested dict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from gkd_plugin.config.nodes import CORE, compose, compose_value, known_tags, line_of, merged_pairs
from gkd_plugin.config.tagged import Tagged, resolve_target, summary
from gkd_plugin.errors import ConfigError

__all__ = ["Tagged", "at", "build", "dump", "items", "parse", "plain_tree", "read", "walk"]


def read(path: str | Path) -> dict[str, Any]:
    """The tree of a file; builds nothing.

    Raises:
        ConfigError: as :func:`~gkd_plugin.config.nodes.compose`, or a scalar that does not fit its tag.
    """
    tree: dict[str, Any] = plain_tree(compose(path))
    return tree


def parse(text: str, source: str) -> Any:
    """The tree of a YAML text; ``source`` names it in messages."""
    return plain_tree(compose_value(text, source))


def plain_tree(root: Node) -> Any:
    """A node graph as a tree: merge keys resolved, scalars as PyYAML's FullLoader makes them.

    The tags that only join text (``!join``, ``!pathjoin``, ``!expanduser``, ``!abspath``) are evaluated.
    """
    return _Reader().convert(root)


class _Reader:
    def __init__(self) -> None:
        self._loader = yaml.FullLoader("")
        self._memo: dict[Node, Any] = {}

    def convert(self, node: Node) -> Any:
        if node not in self._memo:
            value = self._content(node)
            self._memo[node] = _evaluated(node, value) if node.tag.startswith("!") else value
        return self._memo[node]

    def _content(self, node: Node) -> Any:
        is_ours = node.tag.startswith("!")
        if is_ours and isinstance(node, ScalarNode):
            return node.value
        if is_ours or node.tag in (f"{CORE}map", f"{CORE}seq", f"{CORE}python/tuple"):
            if isinstance(node, MappingNode):
                return {self._scalar(key): self.convert(value) for key, value in merged_pairs(node)}
            items = [self.convert(item) for item in node.value]
            return tuple(items) if node.tag.endswith("tuple") else items
        return self._scalar(node)

    def _scalar(self, node: Node) -> Any:
        """A scalar, or what another ``!!python/…`` tag makes of the nodes below."""
        try:
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            name = node.tag.removeprefix(CORE)
            raise ConfigError(f"{line_of(node)}: {node.value!r} is not a {name}") from error


_TEXT_TAGS: Mapping[str, Callable[[Any], str]] = {
    "!join": lambda parts: "".join(str(part) for part in parts),
    "!pathjoin": lambda parts: os.path.expanduser(os.path.join(*[str(part) for part in parts])),  # noqa: PTH111, PTH118
    "!expanduser": os.path.expanduser,
    "!abspath": os.path.abspath,
}


def _evaluated(node: Node, value: Any) -> Any:
    evaluate = _TEXT_TAGS.get(node.tag)
    parts = value if isinstance(value, list) else [value]
    expected = list if node.tag in ("!join", "!pathjoin") else str
    if evaluate and value and isinstance(value, expected) and not any(isinstance(part, Tagged) for part in parts):
        return evaluate(value)
    return Tagged(node.tag, value, line_of(node))


def at(path: str, key: object) -> str:
    """The key path of a part."""
    return f"{path}.{key}" if path else str(key)


def items(value: object) -> Iterator[tuple[object, Any]]:
    """Keys or indexes with their values, through a tag; nothing for a scalar."""
    value = value.value if isinstance(value, Tagged) else value
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def walk(tree: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The tree and everything below it, parents first; shared sections and objects once."""
    seen = set() if seen is None else seen
    if isinstance(tree, dict | list | Tagged):
        if id(tree) in seen:
            return
        seen.add(id(tree))
    yield tree
    for _, item in items(tree):
        yield from walk(item, seen)


def dump(tree: Any) -> str:
    """The tree as YAML that torchdistill's ``load_yaml_file`` loads to the same config; ASCII only, without comments.

    Shared sections and objects stay shared, but for plain sections inside an object, which are written out: FullLoader
    fills an alias of these too late for the object that takes it, which would get an empty one.
    """
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=110)
    return text


class _Dumper(yaml.Dumper):
    pass


def _represent(dumper: _Dumper, tagged: Tagged) -> Node:
    value = _unshared(tagged.value)
    if isinstance(value, dict):
        return dumper.represent_mapping(tagged.tag, value)
    if isinstance(value, list):
        return dumper.represent_sequence(tagged.tag, value)
    return ScalarNode(tagged.tag, str(value))


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


_Dumper.add_representer(Tagged, _represent)


def build(tree: Any, path: str = "") -> Any:
    """The config with everything that its tags name: datasets come to life here, and nowhere else.

    An object that several aliases name is built once. The tree is left as it was; of a part of one, messages name
    the key path ``path``.

    Raises:
        ConfigError: an object could not be built; names its key path, the line and the reason. The exception itself
            is the cause.
    """
    known_tags()
    return _Builder().build(tree, path)


class _LocatedError(ConfigError):
    """Carries the key path of the innermost object that failed: outer objects pass it through."""


@dataclass
class _Builder:
    made: dict[int, Any] = field(default_factory=dict)

    def build(self, value: Any, path: str) -> Any:
        if not isinstance(value, Tagged | dict | list | tuple):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = self._object(value, path) if isinstance(value, Tagged) else self._plain(value, path)
        return self.made[id(value)]

    def _plain(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: self.build(item, at(path, key)) for key, item in value.items()}
        return type(value)(self.build(item, at(path, index)) for index, item in enumerate(value))

    def _object(self, tagged: Tagged, path: str) -> Any:
        try:
            return yaml.FullLoader.yaml_constructors[tagged.tag](_Complete(), self._inside(tagged.value, path))
        except _LocatedError:
            raise
        except Exception as error:
            where = f"{path} ({tagged.line})" if tagged.line else path
            raise _LocatedError(f"{where}: {_explained(tagged, error)}") from error

    def _inside(self, value: Any, path: str) -> Any:
        return self._plain(value, path) if isinstance(value, dict | list) else value


class _Complete:
    """Stands for PyYAML's loader: torchdistill's functions ask it for what is under their tag, which is there."""

    def construct_mapping(self, value: Any, deep: bool = False) -> Any:  # noqa: ARG002
        return _expected(value, dict, "a section (key: value)")

    def construct_sequence(self, value: Any, deep: bool = False) -> Any:  # noqa: ARG002
        return _expected(value, list, "a list")

    def construct_scalar(self, value: Any) -> Any:
        return _expected(value, str, "a text")

    construct_python_str = construct_scalar


def _expected(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{value!r} given; takes {name}")
    return value


def _explained(tagged: Tagged, error: Exception) -> str:
    """Why the object failed; for a name that cannot be imported, which part of it and the nearest names."""
    if not isinstance(error, ConfigError):
        try:
            resolve_target(tagged)
        except ConfigError as reason:
            return str(reason)
    return summary(error)
