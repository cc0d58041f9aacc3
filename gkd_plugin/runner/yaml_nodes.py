"""A torchdistill YAML as a graph of nodes: read, checked, shown as plain data, constructed, written back.

torchdistill's tags (``!import_call`` …) build datasets while the file is being parsed. Overrides and validation come
before that, so they work on the graph that ``yaml.compose`` gives; only :func:`construct` builds anything.
"""

from __future__ import annotations

import copy
import functools
import importlib
import io
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.errors import ConfigError, nearest

__all__ = [
    "KeyPath",
    "Tagged",
    "compose",
    "compose_value",
    "construct",
    "dump",
    "is_tagged",
    "merged_pairs",
    "paths_to",
    "resolve_target",
    "summary",
    "to_plain",
]

KeyPath = tuple[str, ...]

_CORE = "tag:yaml.org,2002:"
_MERGE, _NULL = f"{_CORE}merge", f"{_CORE}null"
_CORE_TAGS = {
    f"{_CORE}{name}"
    for name in ("null", "bool", "int", "float", "binary", "timestamp", "str", "seq", "map", "merge", "value")
}


@dataclass(frozen=True)
class Tagged:
    """A node with a tag of its own in plain data: what ``!import_call`` and its kind would build.

    Attributes:
        tag: the tag as written, e.g. ``!import_call``.
        value: the plain data under it.
    """

    tag: str
    value: Any


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
        place = _place(error.problem_mark or error.context_mark) or source
        raise ConfigError(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    if root is not None:
        _check(root, set(), set())
    return root


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"


def _check(node: Node, active: set[int], done: set[int]) -> None:
    """Refuses recursion, duplicate keys and unknown tags in everything below ``node``."""
    if id(node) in active:
        raise ConfigError(f"{_place(node.start_mark)}: this anchor is used inside itself")
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
    _register_tags()
    known = [tag for tag in yaml.FullLoader.yaml_constructors if tag]
    prefixes = [prefix for prefix in yaml.FullLoader.yaml_multi_constructors if prefix]
    if node.tag in _CORE_TAGS or node.tag in known or node.tag.startswith(tuple(prefixes)):
        return
    custom = [tag for tag in known if tag.startswith("!")]
    raise ConfigError(f"{_place(node.start_mark)}: unknown tag {node.tag!r}; {nearest(node.tag, custom)}")


def _check_keys(node: MappingNode) -> None:
    seen: dict[tuple[str, str], Node] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            _merge_sources(value)
        elif isinstance(key, ScalarNode):
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                line = "" if first.start_mark is None else f" (first in line {first.start_mark.line + 1})"
                raise ConfigError(f"{_place(key.start_mark)}: key {key.value!r} twice in one mapping{line}")


# --- looking ---------------------------------------------------------------------------------------------------------


def is_tagged(node: Node) -> bool:
    """Whether the node has a tag of its own (``!import_call`` …), so that it becomes one constructed object."""
    return node.tag not in _CORE_TAGS


def _merge_sources(node: Node) -> list[MappingNode]:
    """The mappings that ``<<: node`` merges, the least important first.

    Raises:
        ConfigError: ``<<`` names something other than mappings.
    """
    sources = reversed(node.value) if isinstance(node, SequenceNode) else [node]
    mappings = []
    for source in sources:
        if not isinstance(source, MappingNode):
            raise ConfigError(f"{_place(source.start_mark)}: '<<' takes a mapping or a list of mappings")
        mappings.append(source)
    return mappings


def merged_pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Keys and values as the constructed mapping will have them: merge keys resolved, own keys over merged ones."""
    merged: dict[object, tuple[Node, Node]] = {}
    own: dict[object, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            for source in _merge_sources(value):
                merged |= {_identity(pair[0]): pair for pair in merged_pairs(source)}
        else:
            own[_identity(key)] = (key, value)
    return list((merged | own).values())


def _identity(key: Node) -> object:
    return (key.tag, key.value) if isinstance(key, ScalarNode) else id(key)


def _steps(node: Node) -> Iterator[tuple[str, Node]]:
    if isinstance(node, MappingNode):
        yield from ((str(key.value), value) for key, value in merged_pairs(node))
    elif isinstance(node, SequenceNode):
        yield from ((str(index), item) for index, item in enumerate(node.value))


def paths_to(root: Node, target: Node) -> list[KeyPath]:
    """Every key path that leads from ``root`` to ``target``: several where it has an anchor that is used."""
    found: list[KeyPath] = [()] if root is target else []
    for step, child in _steps(root):
        found += [(step, *rest) for rest in paths_to(child, target)]
    return found


# --- plain data ------------------------------------------------------------------------------------------------------


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
        _register_tags()
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
            raise ConfigError(f"{_place(key.start_mark)}: a key must be a name or a number")
        return self.convert(key)

    def _scalar(self, node: Node) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            where = _located(node, _first_paths(self._root))
            raise ConfigError(f"{where}: {node.value!r} is not a {node.tag.removeprefix(_CORE)}") from error


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


def summary(error: BaseException) -> str:
    """One line for an exception: a ConfigError's own message, otherwise the type and the first line."""
    if isinstance(error, ConfigError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --- constructing ----------------------------------------------------------------------------------------------------


@functools.cache
def _register_tags() -> None:
    """Adds the tags to FullLoader: torchdistill does it when it first loads a file."""
    from torchdistill.common.yaml_util import load_yaml_file

    load_yaml_file(os.devnull)


def construct(node: Node) -> dict[str, Any]:
    """Builds the config with torchdistill's tags: datasets and whatever else they name come to life here.

    An object that several aliases name is built once. The graph is left as it was.

    Raises:
        ConfigError: an object could not be built; names the key path, the line and the reason. The exception itself
            is the cause.
    """
    _register_tags()
    node = copy.deepcopy(node)  # FullLoader writes the merged keys into the mappings
    loader = _Loader(_first_paths(node))
    try:
        built: dict[str, Any] = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{_place(error.problem_mark or error.context_mark)}: {error.problem}") from error
    return built


class _LocatedError(ConfigError):
    """Carries the key path of the innermost object that failed: outer objects pass it through."""


class _Loader(yaml.FullLoader):
    """torchdistill's loader, for a graph that is already composed."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__("")
        self._paths = paths

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _LocatedError:
            raise
        except Exception as error:
            if not is_tagged(node):
                raise
            raise _LocatedError(f"{_located(node, self._paths)}: {_explained(node, error)}") from error


def _first_paths(root: Node) -> dict[int, str]:
    """The first key path to each node, by the node's id."""
    paths: dict[int, str] = {}

    def visit(node: Node, path: KeyPath) -> None:
        if id(node) not in paths:
            paths[id(node)] = ".".join(path)
            for step, child in _steps(node):
                visit(child, (*path, step))

    visit(root, ())
    return paths


def _located(node: Node, paths: Mapping[int, str]) -> str:
    path, mark = paths.get(id(node), ""), node.start_mark
    if mark is None:
        return path
    line = mark.name if mark.name.startswith("--") else f"line {mark.line + 1}"
    return f"{path} ({line})" if path else f"{mark.name}, {line}"


def _explained(node: Node, error: Exception) -> str:
    """Why the object failed; for a name that cannot be imported, which part of it and the nearest names."""
    if isinstance(error, yaml.MarkedYAMLError):
        return str(error.problem)
    if not isinstance(error, ConfigError):
        try:
            resolve_target(to_plain(node))
        except ConfigError as reason:
            return str(reason)
    return summary(error)


def resolve_target(tagged: Tagged) -> Any:
    """What ``!import_get`` / ``!import_call`` / ``!import_call_method`` names; ``None`` for other tags.

    Raises:
        ConfigError: the module or the name does not exist; the nearest names are offered.
    """
    tag, entry = tagged.tag, tagged.value
    if tag not in ("!import_get", "!import_call", "!import_call_method"):
        return None
    name = "package" if tag == "!import_call_method" else "key"
    if not isinstance(entry, Mapping) or not isinstance(entry.get(name), str):
        raise ConfigError(f"{tag} takes a mapping with {name!r}, a dotted name")
    dotted = [part for part in (entry.get("package"), entry.get("key")) if part]
    if tag == "!import_call_method":
        dotted = [entry[part] for part in ("package", "class_name", "method_name") if entry.get(part)]
    *modules, name = ".".join(dotted).split(".")
    members = [modules.pop(), name] if tag == "!import_call_method" and modules else [name]
    return _member(".".join(modules), members)


def _member(module_name: str, members: list[str]) -> Any:
    dotted = ".".join([module_name, *members])
    if not module_name:
        raise ConfigError(f"{dotted.strip('.')!r} must be a full dotted name: module.{dotted.strip('.')}")
    found, holder = _import(module_name, dotted), module_name
    for name in members:
        if not hasattr(found, name):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise ConfigError(f"{dotted}: no such name in {holder}; {nearest(name, known)}")
        found, holder = getattr(found, name), f"{holder}.{name}"
    return found


def _import(module_name: str, dotted: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(f"{dotted}: {module_name} cannot be imported: {summary(error)}") from error
        _raise_missing(missing, dotted, error)


def _raise_missing(missing: str, dotted: str, error: Exception) -> NoReturn:
    """Raises the ConfigError for a module that does not exist, with the nearest of its siblings."""
    parent, _, name = missing.rpartition(".")
    search = getattr(importlib.import_module(parent), "__path__", None) if parent else None
    siblings = [module.name for module in pkgutil.iter_modules(search)] if search else []
    hint = f"; {nearest(name, siblings)}" if siblings else ""
    raise ConfigError(f"{dotted}: no module named {missing!r}{hint}") from error


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
