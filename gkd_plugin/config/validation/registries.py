"""Sections whose ``key`` names a part of a torchdistill registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.signatures import check_arguments
from gkd_plugin.errors import nearest

__all__ = ["check_registered", "registered_key"]


def registered_key(
    report: Report, path: str, value: object, registry: Mapping[str, Any], base: type | None = None
) -> Callable[..., Any] | None:
    """What a registry holds under ``value``; ``None`` where that is nothing (which is reported)."""
    if isinstance(value, str) and value in registry:
        part: Callable[..., Any] = registry[value]
        return part
    given = f"{value!r} is not registered" if isinstance(value, str) else f"{shown(value)} given, must be a name"
    report.add(path, f"{given}; {nearest(value, schema.usable(registry, base))}")
    return None


def check_registered(
    report: Report,
    path: str,
    section: Mapping[Any, Any],
    registry: Mapping[str, Any],
    *,
    base: type | None = None,
    supplied: int = 0,
    names: Collection[str] = (),
) -> None:
    """Checks ``key`` and the call with ``args`` and ``kwargs`` of a section."""
    part = registered_key(report, at(path, "key"), section.get("key"), registry, base)
    args, kwargs = section.get("args") or [], section.get("kwargs") or {}
    if part is not None and isinstance(args, list) and isinstance(kwargs, Mapping):
        check_arguments(report, at(path, "kwargs"), part, args, kwargs, supplied=supplied, names=names)
