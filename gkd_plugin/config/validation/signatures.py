"""Whether a call with the arguments of a config fits a function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.errors import nearest

__all__ = ["check_arguments", "check_call"]


def check_call(
    path: str,
    function: Callable[..., Any],
    args: Collection[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    supplied: int = 0,
    names: Collection[str] = (),
) -> list[str]:
    """Whether a call fits a signature: unknown, doubled and missing arguments, one line each.

    Args:
        path: key path of the keyword arguments.
        function: what will be called; one without a signature passes.
        args: positional arguments from the config.
        kwargs: keyword arguments from the config.
        supplied: number of positional arguments that torchdistill puts first.
        names: keyword arguments that torchdistill adds.

    Example:
        >>> check_call('optimizer.kwargs', lambda params, lr, momentum=0.0: None, kwargs={'mometum': 1}, supplied=1)
        ["optimizer.kwargs.mometum: unknown argument; did you mean 'momentum'? (allowed: 'lr', 'momentum')", \
"optimizer.kwargs: argument 'lr' is missing"]
    """
    given = kwargs or {}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = {p.name for p in positional[: supplied + len(args)]} | set(names)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_names = [p.name for p in by_name if p.name not in filled]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    lines = []
    for name in given:
        if name in filled:
            lines.append(f"{at(path, name)}: given already, by torchdistill or by position; remove it")
        elif name not in open_names and not anything:
            lines.append(f"{at(path, name)}: unknown argument; {nearest(name, open_names)}")
    if supplied + len(args) > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        lines.append(f"{path}: {len(args)} positional arguments given, at most {len(positional) - supplied} fit")
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in needed if p.name not in filled and p.name not in given]
    return lines + [f"{path}: argument {name!r} is missing" for name in missing]


def check_arguments(
    report: Report, path: str, function: Callable[..., Any], args: Collection[Any], kwargs: Any, **more: Any
) -> None:
    """Reports what :func:`check_call` finds, and keyword arguments that are no section."""
    if not isinstance(kwargs, Mapping):
        if not isinstance(kwargs, Tagged):
            report.add(path, f"{shown(kwargs)} given; must be a section (key: value)")
        return
    for line in check_call(path, function, args, kwargs, **more):
        report.add("", line)
