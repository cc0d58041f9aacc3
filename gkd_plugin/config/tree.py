"""A configuration as a plain tree: dicts, lists, scalars, and :class:`Tagged` where ``!import_call`` would build.

Aliases are one object in the tree and stay one when it is built or written. Change a tree as any nested dict. Before it
is a tree it is PyYAML's graph of nodes (:func:`compose`): only there ``--set`` can see which values share an anchor.
"""

import contextlib
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from torchdistill.common.yaml_util import load_yaml_file
from yaml.constructor import ConstructorError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.errors import ConfigError, first_line, nearest

CORE = "tag:yaml.org,2002:"
"""What the tags of plain data start with."""
TEXT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers that YAML 1.1 reads as text, without a point or a sign: ``1e-3``."""
LARGEST_TREE, DEEPEST = 100_000, 100
"""Values and levels that a config may have, aliases written out; torchdistill's and ours have up to 823 and 20."""
_TEXT_TAGS = ("!join", "!pathjoin", "!expanduser", "!abspath")

load_yaml_file(os.devnull)  # torchdistill adds its tags to FullLoader when it first loads a file


@dataclass(frozen=True)
class Tagged:
    """A value under a tag as written (``!import_call`` …), and its place: ``line 7``, or ``--set key.path``."""

    tag: str
    value: Any
    line: str = field(default="", compare=False, repr=False)


def read(path: str | Path) -> dict[str, Any]:
    """The tree of a file; builds nothing. Raises ConfigError as :func:`compose_file`."""
    return dict(plain_tree(compose_file(path), str(path)))


def compose_file(path: str | Path) -> MappingNode:
    """The nodes of a config file.

    Raises:
        ConfigError: no such file, not YAML (with line and column), not a mapping, a key twice in one mapping (YAML
            would take the last), an unknown tag, a scalar that does not fit its tag, an alias that contains itself,
            aliases that stand for more than a memory holds.
    """
    try:
        with Path(path).open("rb") as stream:
            root = compose(stream, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not isinstance(root, MappingNode) or root.tag.startswith("!"):
        given = "a list" if isinstance(root, SequenceNode) else "something else" if root.value else "empty"
        raise ConfigError(f"{path}: a config is a mapping (datasets, models, train, …), this file is {given}")
    return root


def compose(text: str | IO[bytes], source: str) -> Node:
    """The nodes of a YAML text, which messages call ``source``; empty text is null. Raises as :func:`compose_file`."""
    with _one_line(source):
        loader = _Loader(text)
        loader.name = source  # of the marks
        root: Node = loader.get_single_node() or ScalarNode(f"{CORE}null", "")
    plain_tree(root, source)
    return root


def plain_tree(root: Node, source: str) -> Any:
    """The tree of nodes; tags that only join text (``!join``, ``!pathjoin`` …) are evaluated. Raises ConfigError."""
    with _one_line(source):
        size, depth = _extent(root, {})
        if size > LARGEST_TREE or depth > DEEPEST:
            allowed = f"at most {LARGEST_TREE:,} values in {DEEPEST} levels, with every alias written out"
            raise _error(root, f"too large, or nested too deep: {allowed}")
        return _Loader("").construct_object(root, deep=True)


@contextlib.contextmanager
def _one_line(source: str) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deep, or an anchor is used inside itself") from error


def _extent(node: Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Numbers of values and of levels, with every alias written out; ``known`` ones by the ``id`` of their node."""
    if id(node) not in known:
        known[id(node)] = 1, 1  # of an anchor inside itself, which is told when the tree is made
        inner = node.value if isinstance(node, CollectionNode) else []
        parts = [_extent(part, known) for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    return known[id(node)]


class _Loader(yaml.FullLoader):
    """Keeps what is under a tag as :class:`Tagged`, and refuses a key that is given twice."""

    yaml_constructors = {  # noqa: RUF012  # PyYAML's
        tag: make for tag, make in yaml.FullLoader.yaml_constructors.items() if not str(tag).startswith("!")
    }

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], Node] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag.startswith("!"):
                raise _error(key, "a key must be a name or a number")
            other = first.setdefault((key.tag, key.value), key)
            if other is not key and key.tag != f"{CORE}merge":
                raise _error(key, f"key {key.value!r} twice in one mapping (first in {_line(other)})")
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise _error(node, "this anchor is used inside itself")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            raise _error(node, f"{node.value!r} is no {node.tag.removeprefix(CORE)}") from error

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {self.construct_object(key): self.construct_object(value, deep) for key, value in pairs(node)}

    def construct_tagged(self, _: str, node: Node) -> Any:
        tag, value, makers = node.tag, node.value, yaml.FullLoader.yaml_constructors
        if tag not in makers:
            known = [name for name in makers if name and name.startswith("!")]
            raise _error(node, f"unknown tag {tag!r}; {nearest(tag, known)}")
        if isinstance(node, MappingNode):
            value = self.construct_mapping(node)
        elif isinstance(node, SequenceNode):
            value = self.construct_sequence(node)
        if tag in _TEXT_TAGS and value and not any(isinstance(part, Tagged) for part in value):
            with contextlib.suppress(ConfigError):  # told where the object is built
                return makers[tag](_Complete(), value)
        return Tagged(tag, value, _line(node))


_Loader.add_multi_constructor("!", _Loader.construct_tagged)


def pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Keys with values; keys of its own replace those that ``<<`` merges, where the first of several sources wins."""
    merged: dict[object, tuple[Node, Node]] = {}
    own: dict[object, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag != f"{CORE}merge":
            own[key.tag, key.value] = (key, value)
            continue
        for source in reversed(value.value) if isinstance(value, SequenceNode) else [value]:
            if not isinstance(source, MappingNode):
                raise _error(source, "'<<' takes a mapping or a list of mappings")
            merged |= {(pair[0].tag, pair[0].value): pair for pair in pairs(source)}
    return list((merged | own).values())


def _error(node: Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def _line(node: Node) -> str:
    mark = node.start_mark
    return mark.name if mark.name.startswith("--") else f"line {mark.line + 1}"


def at(path: str, key: object) -> str:
    """The key path of a part."""
    return f"{path}.{key}" if path else str(key)


def items(value: object) -> Iterable[tuple[object, Any]]:
    """Keys or indexes with their values, through a tag; nothing for a scalar."""
    value = value.value if isinstance(value, Tagged) else value
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def is_private(key: object) -> bool:
    """Whether a key is only a place for an anchor: it starts with ``_`` or ``x-``."""
    return isinstance(key, str) and key.startswith(("_", "x-"))


def places(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tree and everything below it with its key path, parents first."""
    yield path, tree
    for key, item in items(tree):
        yield from places(item, at(path, key))


def walk(tree: Any) -> list[Any]:
    """The tree and everything below it, parents first; what is shared once."""
    found: dict[int, Any] = {}
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if id(value) not in found:
            found[id(value)] = value
            waiting += [item for _, item in reversed(list(items(value)))]
    return list(found.values())


def dump(tree: Any) -> str:
    """The tree as YAML that torchdistill's ``load_yaml_file`` loads to the same config; ASCII only, without comments.

    Shared sections and objects stay shared, but for plain sections inside an object, which are written out: FullLoader
    fills an alias of these too late for the object that takes it, which would get an empty one.
    """
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=110))


class _Dumper(yaml.Dumper):
    def represent_tagged(self, tagged: Tagged) -> Node:
        node: Node = self.represent_data(_unshared(tagged.value))
        node.tag = tagged.tag
        self.represented_objects[id(tagged)] = node
        return node


_Dumper.add_representer(Tagged, _Dumper.represent_tagged)


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def build(tree: Any, path: str = "", made: dict[int, Any] | None = None) -> Any:
    """The config with everything that its tags name: datasets come to life here, and nowhere else.

    The tree is left as it was. An object that several aliases name is built once: ``made`` keeps what was built by the
    ``id`` of its part. Of a part of a config, messages name the key path ``path``.

    Raises:
        ConfigError: an object could not be built; names its key path, the line and the reason, which is the cause.
    """
    made = {} if made is None else made
    if id(tree) in made:
        return made[id(tree)]
    built = tree
    if isinstance(tree, Tagged):
        value = build(tree.value, path, made)
        try:
            resolve_target(tree)  # tells which part of a name cannot be imported
            built = yaml.FullLoader.yaml_constructors[tree.tag](_Complete(), value)
        except Exception as error:  # an object may raise anything
            where = f"{path} ({tree.line})" if tree.line else path
            raise ConfigError(f"{where}: {summary(error)}") from error
    elif isinstance(tree, dict):
        built = {key: build(item, at(path, key), made) for key, item in tree.items()}
    elif isinstance(tree, list | tuple):
        built = type(tree)(build(item, at(path, index), made) for index, item in enumerate(tree))
    made[id(tree)] = built
    return built


def _takes(kind: type, name: str) -> Callable[..., Any]:
    def construct(_: "_Complete", value: Any, deep: bool = False) -> Any:  # noqa: ARG001
        if not isinstance(value, kind):
            raise ConfigError(f"{value!r} given; takes {name}")
        return value

    return construct


class _Complete:
    """Stands for PyYAML's loader: torchdistill's functions ask it for what is under their tag, which is there."""

    construct_mapping = _takes(dict, "a section (key: value)")
    construct_sequence = _takes(list, "a list")
    construct_scalar = construct_python_str = _takes(str, "a text")


def resolve_target(tagged: Tagged) -> Any:
    """What ``!import_get`` / ``!import_call`` / ``!import_call_method`` names; ``None`` for other tags.

    Raises:
        ConfigError: the module or the name does not exist; the nearest names are offered.
    """
    if tagged.tag not in ("!import_get", "!import_call", "!import_call_method"):
        return None
    entry, is_method = tagged.value, tagged.tag == "!import_call_method"
    needed = "package" if is_method else "key"
    if not isinstance(entry, Mapping) or not isinstance(entry.get(needed), str):
        raise ConfigError(f"{tagged.tag} takes a section with {needed!r}, a dotted name, which is missing or no text")
    keys = ("package", "class_name", "method_name") if is_method else ("package", "key")
    dotted = ".".join(entry[key] for key in keys if entry.get(key))
    parts = dotted.split(".")
    depth = len(parts) - (2 if is_method else 1)
    if depth < 1:
        raise ConfigError(f"{dotted!r} must be a full dotted name: module.{dotted}")
    found = _module(".".join(parts[:depth]), dotted)
    for index, name in enumerate(parts[depth:], depth):
        if not hasattr(found, name):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise ConfigError(f"{dotted}: no such name in {'.'.join(parts[:index])}; {nearest(name, known)}")
        found = getattr(found, name)
    return found


def _module(name: str, dotted: str) -> Any:
    """The module of a dotted name; for one that does not exist, the nearest of its siblings are offered."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module may raise anything while it is imported
        missing = str(error.name) if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise ConfigError(f"{dotted}: {name} cannot be imported: {summary(error)}") from error
        parent, _, last = missing.rpartition(".")
        search = getattr(importlib.import_module(parent), "__path__", None) if parent else None
        hint = f"; {nearest(last, [module.name for module in pkgutil.iter_modules(search)])}" if search else ""
        raise ConfigError(f"{dotted}: no module named {missing!r}{hint}") from error


def summary(error: BaseException) -> str:
    """One line for an exception: a ConfigError's own message, otherwise the type and the first line."""
    if isinstance(error, ConfigError):
        return str(error)
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
