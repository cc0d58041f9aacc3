"""What ``!import_call`` and its kind name and call, and numbers that YAML reads as text: anywhere in a config."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged, resolve_target
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import check_keys
from gkd_plugin.config.validation.signatures import check_arguments
from gkd_plugin.errors import ConfigError

__all__ = ["check_tags", "check_text_numbers", "holds_tag", "tag_target"]

_TEXT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _items(value: object) -> Iterator[tuple[object, Any]]:
    """Keys or indexes with their values; nothing for a scalar or an object."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def holds_tag(value: object) -> bool:
    """Whether an object would be built anywhere in it."""
    return isinstance(value, Tagged) or any(holds_tag(item) for _, item in _items(value))


def tag_target(tagged: Tagged) -> Callable[..., Any] | None:
    """What a tag names; ``None`` where that fails (which :func:`check_tags` reports)."""
    try:
        target = resolve_target(tagged)
    except ConfigError:
        return None
    return target if callable(target) else None


def check_tags(report: Report, path: str, value: object, seen: set[int]) -> None:
    """Checks everything that construction would import and call, once each."""
    if id(value) in seen:
        return
    if isinstance(value, (Tagged, Mapping, list)):
        seen.add(id(value))
    if isinstance(value, Tagged):
        _tag(report, path, value)
        value = value.value
    for key, item in _items(value):
        check_tags(report, at(path, key), item, seen)


def _tag(report: Report, path: str, tagged: Tagged) -> None:
    entry, allowed = tagged.value, schema.TAG_KEYS.get(tagged.tag)
    if allowed is None:
        return
    try:
        target = resolve_target(tagged)
    except ConfigError as error:
        report.add(path, str(error))
        target = None
    if not isinstance(entry, Mapping):
        return
    check_keys(report, path, entry, allowed)
    init = entry.get("init")
    if init is None:
        init = {}
    if not isinstance(init, Mapping):
        if not isinstance(init, Tagged):
            report.add(at(path, "init"), f"{shown(init)} given; must be a section with args, kwargs")
        return
    check_keys(report, at(path, "init"), init, ("args", "kwargs"))
    _init(report, at(path, "init"), init, target if tagged.tag == "!import_call" else None)


def _init(report: Report, path: str, init: Mapping[Any, Any], target: Any) -> None:
    args, kwargs = init.get("args", []), init.get("kwargs", {})
    if not isinstance(args, (list, Tagged)):
        report.add(at(path, "args"), f"{shown(args)} given; must be a list")
    elif not isinstance(kwargs, (Mapping, Tagged)):
        report.add(at(path, "kwargs"), f"{shown(kwargs)} given; must be a section (key: value)")
    elif callable(target) and isinstance(args, list):
        check_arguments(report, at(path, "kwargs"), target, args, kwargs)


def check_text_numbers(report: Report, path: str, value: object) -> None:
    """``1e-3`` is text in YAML 1.1."""
    if isinstance(value, str) and _TEXT_NUMBER.fullmatch(value):
        report.add(path, f"{value!r} is text to YAML, not a number; write {float(value)!r} as e.g. 1.0e-3")
    inner = value.value if isinstance(value, Tagged) else value
    for key, item in _items(inner):
        check_text_numbers(report, at(path, key), item)
