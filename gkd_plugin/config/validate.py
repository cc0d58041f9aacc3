"""Checks a configuration before anything of it is built: all that can be known from the text, all problems together."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torchdistill.common.main_util import import_dependencies

from gkd_plugin.config.kinds import Report, bind
from gkd_plugin.config.rules import absolute
from gkd_plugin.config.schema import TAGS, configuration
from gkd_plugin.config.stages import has_teacher, stage_names
from gkd_plugin.config.tagged import Tagged, resolve_target
from gkd_plugin.config.tree import at, items
from gkd_plugin.errors import ConfigError

__all__ = ["problems"]

_TEXT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_LARGEST = 1e9
"""No setting of a training is larger, unless a hand slipped."""


def problems(tree: Mapping[str, Any], *, produced: Collection[str] = (), needs_checkpoints: bool = True) -> list[str]:
    """Checks a config with the table in :mod:`gkd_plugin.config.schema`; imports what it names, builds no data.

    Args:
        tree: the config as :func:`gkd_plugin.config.tree.read` gives it; nothing in it is changed.
        produced: paths of checkpoints that do not exist yet but will when this config runs.
        needs_checkpoints: whether a ``src_ckpt`` that does not exist is a problem.

    Returns:
        One line per problem: key path, what was given, what is allowed.
    """
    import gkd_plugin  # noqa: F401  # registers its parts

    report = Report(tree, {absolute(path) for path in produced} if needs_checkpoints else None)
    listed = tree.get("dependencies") or []
    for index, dependency in enumerate(listed if isinstance(listed, list) else [listed]):
        with report.trial(at("dependencies", index)):
            import_dependencies([dependency])
    _text_numbers(report, "train", tree.get("train"))  # first: the table would only say that it is no number
    configuration(stage_names(tree.get("train")), has_teacher=has_teacher(tree))(report, "", tree)
    _tags(report, "", tree, set())
    _numbers(report, "train", tree.get("train"))
    return report.lines


def _tags(report: Report, path: str, value: object, seen: set[int]) -> None:
    """Checks everything that construction would import and call, once each."""
    if id(value) in seen:
        return
    if isinstance(value, Tagged | Mapping | list):
        seen.add(id(value))
    if isinstance(value, Tagged) and value.tag in TAGS:
        _tag(report, path, value)
    for key, item in items(value):
        _tags(report, at(path, key), item, seen)


def _tag(report: Report, path: str, tagged: Tagged) -> None:
    target = None
    try:
        target = resolve_target(tagged)
    except ConfigError as error:
        report.add(path, str(error))
    if not isinstance(tagged.value, Mapping):
        return
    TAGS[tagged.tag](report, path, tagged.value)
    init = tagged.value.get("init") or {}
    if callable(target) and tagged.tag != "!import_get" and isinstance(init, Mapping):
        bind(report, at(path, "init.kwargs"), target, init.get("args"), init.get("kwargs"))


def _text_numbers(report: Report, path: str, value: object) -> None:
    """Numbers that YAML 1.1 reads as text (``1e-3``)."""
    if isinstance(value, str) and _TEXT_NUMBER.fullmatch(value):
        report.add(path, f"{value!r} is text to YAML, not a number; write {float(value)!r} as e.g. 1.0e-3")
    for key, item in items(value):
        _text_numbers(report, at(path, key), item)


def _numbers(report: Report, path: str, value: object) -> None:
    """Numbers that nobody means."""
    if isinstance(value, int | float) and not abs(value) <= _LARGEST and report.is_clean(path):
        report.add(path, f"{value!r} given; must be a finite number, at most {_LARGEST:.0e}")
    for key, item in items(value):
        _numbers(report, at(path, key), item)
