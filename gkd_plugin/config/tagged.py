"""A value under a tag (``!import_call`` …), and the object that the tag names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NoReturn

from gkd_plugin.errors import ConfigError, first_line, nearest

__all__ = ["Tagged", "resolve_target", "summary"]


@dataclass(frozen=True)
class Tagged:
    """A value with a tag of its own: what ``!import_call`` and its kind would build.

    Attributes:
        tag: the tag as written, e.g. ``!import_call``.
        value: the plain data under it.
        line: where it was written: ``line 7``, or ``--set key.path``.
    """

    tag: str
    value: Any
    line: str = field(default="", compare=False, repr=False)


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


def summary(error: BaseException) -> str:
    """One line for an exception: a ConfigError's own message, otherwise the type and the first line."""
    if isinstance(error, ConfigError):
        return str(error)
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
