"""Shape checks: sections with known keys, counts, flags, lists of module paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.errors import nearest

__all__ = ["check_count", "check_flag", "check_keys", "check_module_paths", "optional_section", "required_section"]


def check_keys(report: Report, path: str, section: Mapping[Any, Any], allowed: Collection[str]) -> None:
    """Refuses keys that nobody reads."""
    for key in section:
        if key not in allowed and not schema.is_private(key):
            if key == "cache_output" and section[key] is None:
                continue  # torchdistill's own sample configs still carry the empty key
            report.add(at(path, key), f"unknown key; {nearest(key, allowed)}")


def optional_section(
    report: Report, parent: str, holder: Mapping[Any, Any], key: str, allowed: Collection[str] | None = None
) -> Mapping[Any, Any] | None:
    """The sub-section, after its keys were checked; ``None`` where it is absent, tagged or wrong (then reported)."""
    path = at(parent, key)
    if key not in holder or isinstance(holder[key], Tagged):
        return None
    value = holder[key]
    if not isinstance(value, Mapping):
        expected = f"a section with {', '.join(sorted(allowed))}" if allowed else "a section (key: value)"
        report.add(path, f"{shown(value)} given; must be {expected}")
        return None
    if allowed is not None:
        check_keys(report, path, value, allowed)
    return value


def required_section(
    report: Report, parent: str, holder: Mapping[Any, Any], key: str, allowed: Collection[str] | None = None
) -> Mapping[Any, Any] | None:
    """As :func:`optional_section`, for one that must be there."""
    if key not in holder:
        report.add(at(parent, key), "missing; must be a section")
    return optional_section(report, parent, holder, key, allowed)


def check_count(report: Report, path: str, value: object, *, least: int = 1) -> None:
    """Wants a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        report.add(path, f"{shown(value)} given; must be a whole number, {least} or more")


def check_module_paths(report: Report, path: str, value: object, example: str = "['layer4', 'fc']") -> None:
    """Wants a list of module paths."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        report.add(path, f"{shown(value)} given; must be a list of module paths, e.g. {example}, or []")


def check_flag(report: Report, path: str, section: Mapping[Any, Any], key: str) -> None:
    """Wants true or false where the key is given."""
    if key in section and not isinstance(section[key], bool):
        report.add(at(path, key), f"{shown(section[key])} given; must be true or false")
