"""A config's node graph as plain data: what validation reads, with nothing built."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.yaml_nodes import CORE, first_paths, is_tagged, located, merged_pairs, place, register_tags
from gkd_plugin.errors import ConfigError

__all__ = ["Tagged", "to_plain"]


def to_plain(node: Node) -> Any:
    """Plain Python data: dicts, lists and scalars, with :class:`Tagged` where an object would be built.

    Merge keys and aliases are resolved (an aliased mapping is one dict), scalars are what FullLoader makes of them, and
    the tags that only join text (``!join``, ``!pathjoin``, ``!expanduser``, ``!abspath``) are evaluated.

    Raises:
        ConfigError: a scalar that does not fit its tag, or a key that is not a scalar.
    """
    return _Plain(node).convert(node)


class _Plain:
    def __init__(self, root: Node) -> None:
        register_tags()
        self._loader = yaml.FullLoader("")
        self._root = root
        self._memo: dict[int, Any] = {}

    def convert(self, node: Node) -> Any:
        if id(node) not in self._memo:
            value = self._content(node)
            self._memo[id(node)] = _evaluated(node.tag, value) if is_tagged(node) else value
        return self._memo[id(node)]

    def _content(self, node: Node) -> Any:
        if isinstance(node, MappingNode):
            return {self._key(key): self.convert(value) for key, value in merged_pairs(node)}
        if isinstance(node, SequenceNode):
            return [self.convert(item) for item in node.value]
        if is_tagged(node):
            return node.value
        return self._scalar(node)

    def _key(self, key: Node) -> Any:
        if not isinstance(key, ScalarNode) or is_tagged(key):
            raise ConfigError(f"{place(key.start_mark)}: a key must be a name or a number")
        return self.convert(key)

    def _scalar(self, node: Node) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            where = located(first_paths(self._root).get(id(node), ""), node.start_mark)
            raise ConfigError(f"{where}: {node.value!r} is not a {node.tag.removeprefix(CORE)}") from error


_TEXT_TAGS: Mapping[str, Callable[[Any], str]] = {
    "!join": lambda parts: "".join(str(part) for part in parts),
    "!pathjoin": lambda parts: os.path.expanduser(os.path.join(*[str(part) for part in parts])),  # noqa: PTH111, PTH118
    "!expanduser": os.path.expanduser,
    "!abspath": os.path.abspath,
}


def _evaluated(tag: str, value: Any) -> Any:
    evaluate = _TEXT_TAGS.get(tag)
    parts = value if isinstance(value, list) else [value]
    expected = list if tag in ("!join", "!pathjoin") else str
    if evaluate and value and isinstance(value, expected) and not any(isinstance(part, Tagged) for part in parts):
        return evaluate(value)
    return Tagged(tag, value)
