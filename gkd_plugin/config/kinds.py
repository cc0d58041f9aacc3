"""The kinds of things that a configuration holds: the words of the table in :mod:`gkd_plugin.config.schema`.

A kind is a function of a report, a key path and what was given there. It adds the problems to the report.
"""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from gkd_plugin.config.tree import Tagged, at, items, places, summary
from gkd_plugin.errors import is_number, nearest

_MISSING = object()
_WORDS = {True: "true", False: "false", None: "nothing"}


class Report:
    """Collects the problems, one line each."""

    def __init__(self, tree: Mapping[str, Any], produced: Collection[str] | None) -> None:
        self.tree = tree
        self.produced = produced  # checkpoints that will exist; None where they do not matter
        self.optimizer: Any = None  # the stage's, built on trial; later stages may keep it
        self.lines: list[str] = []

    def check(self, path: str, given: Any, kind: "Kind") -> None:
        """Checks what was given against its kind. An object, which is not built yet, may be anything."""
        if not isinstance(given, Tagged):
            kind(self, path, given)

    def add(self, path: str, message: str) -> None:
        """Notes a problem, once."""
        line = f"{path}: {message}"
        if line not in self.lines:
            self.lines.append(line)

    def refuse(self, path: str, given: Any, allowed: str) -> None:
        """Notes what was given and what is allowed, unless more is known of the path already."""
        if any(line.startswith(f"{path}: ") for line in self.lines):
            return
        text = "a section" if isinstance(given, Mapping) else repr(given)
        text = _WORDS[given] if given is None or isinstance(given, bool) else text
        self.add(path, f"missing; {allowed}" if given is _MISSING else f"{text} given; {allowed}")

    def is_clean(self, path: str, section: Any = None) -> bool:
        """Whether nothing was found at the path or below it, and ``section`` waits for no object to be built."""
        is_found = any(line.startswith((f"{path}:", f"{path}.")) for line in self.lines)
        return not is_found and not any(isinstance(part, Tagged) for _, part in places(section))

    @contextmanager
    def trial(self, path: str) -> Iterator[None]:
        """Around the building of a part: what it raises here it would raise later, perhaps after hours of training."""
        try:
            with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
                yield
        except Exception as error:  # a part may raise anything
            for line in summary(error).splitlines():
                self.add(path, line)


Kind: TypeAlias = Callable[[Report, str, Any], None]
Keys: TypeAlias = dict[str, Kind]
Rule: TypeAlias = Callable[[Report, str, Mapping[Any, Any]], None]


def value(allowed: str, fits: Callable[[Any], Any]) -> Kind:
    """A value that ``fits``; in words, what is ``allowed``."""
    return lambda report, path, given: None if fits(given) else report.refuse(path, given, f"must be {allowed}")


def is_of(kind: type) -> Callable[[Any], bool]:
    """A test of the type. ``true`` is no number."""
    return lambda given: isinstance(given, kind) and (kind is bool or not isinstance(given, bool))


def is_finite(given: Any) -> bool:
    """Whether it is a number, and neither infinite nor NaN."""
    return is_number(given) and abs(given) < math.inf


FLAG = value("true or false", is_of(bool))
WHOLE = value("a whole number", is_of(int))
NUMBER = value("a finite number", is_finite)


def number(low: float, high: float = math.inf) -> Kind:
    """A finite number from ``low`` up, to ``high``."""
    allowed = f"a finite number, {low} or more" if high == math.inf else f"a number from {low} to {high}"
    return value(allowed, lambda given: is_finite(given) and low <= given <= high)


def count(least: int = 1) -> Kind:
    """A whole number from ``least`` up."""
    return value(f"a whole number, {least} or more", lambda given: is_of(int)(given) and given >= least)


def text(allowed: str, pattern: str = ".*") -> Kind:
    """A text that matches the pattern."""
    return value(allowed, lambda given: isinstance(given, str) and re.fullmatch(pattern, given, re.DOTALL))


def list_of(allowed: str, kind: type) -> Kind:
    """A list of what is of a type."""
    return value(f"a list of {allowed}", lambda given: isinstance(given, list) and all(map(is_of(kind), given)))


def one_of(names: Collection[str], base: type = object) -> Kind:
    """A name: one of a few, or a key of a registry, of whose classes those below ``base`` are worth offering.

    (torchdistill registers every class that it finds in a module, ``Any`` and ``Counter`` too.)
    """

    def check(report: Report, path: str, given: Any) -> None:
        if isinstance(given, str) and given in names:
            return
        parts = names if isinstance(names, Mapping) else dict.fromkeys(names)
        known = [name for name, of in parts.items() if not inspect.isclass(of) or issubclass(of, base)]
        offered = nearest(given, known)
        if isinstance(given, str) and isinstance(names, Mapping):
            report.add(path, f"{given!r} is not registered; {offered}")
        else:
            report.refuse(path, given, offered)

    return check


def refused(reason: str) -> Kind:
    """A key that would not be read."""
    return lambda report, path, _: report.add(path, reason)


def or_else(kind: Kind, *others: Any) -> Kind:
    """As ``kind``, or one of the ``others``; without them null."""
    return lambda report, path, given: None if given in (others or (None,)) else kind(report, path, given)


def each(kind: Kind, of: type = Mapping) -> Kind:
    """A section whose names are the user's own (or a list), and what each of its entries may be."""

    def check(report: Report, path: str, given: Any) -> None:
        if not isinstance(given, of):
            report.refuse(path, given, "must be a list" if of is list else "must be a section (key: value)")
            return
        for key, item in items(given):
            report.check(at(path, key), item, kind)

    return check


def section(
    keys: Mapping[str, Kind], needs: Collection[str] = (), then: Rule | None = None, *, has_others: bool = False
) -> Kind:
    """A section with these keys, some of which it ``needs``, and a rule for what else must hold."""

    def check(report: Report, path: str, given: Any) -> None:
        if not isinstance(given, Mapping):
            names = f"with {', '.join(sorted(needs or keys))}" if keys else "(key: value)"
            report.refuse(path, given, f"must be a section {names}")
            return
        for key in given:
            if not (key in keys or has_others or is_private(key)):
                report.add(at(path, key), f"unknown key; {nearest(key, keys)}")
        for key, kind in keys.items():
            if key in given or key in needs:
                report.check(at(path, key), given.get(key, _MISSING), kind)
        if then is not None:
            then(report, path, given)

    return check


def is_private(key: object) -> bool:
    """Whether a key is only a place for an anchor: it starts with ``_`` or ``x-``."""
    return isinstance(key, str) and key.startswith(("_", "x-"))


def part(
    registry: Mapping[str, Any],
    keys: Mapping[str, Kind],
    needs: Collection[str] = ("key",),
    then: Rule | None = None,
    *,
    base: type = object,
    **call: Any,
) -> Kind:
    """A section whose ``key`` names a registered part, and whose ``args`` and ``kwargs`` fit it (:func:`bind`)."""

    def check_call(report: Report, path: str, given: Mapping[Any, Any]) -> None:
        where, key = at(path, "kwargs"), given.get("key")
        if isinstance(key, str) and key in registry and report.is_clean(where):
            bind(report, where, registry[key], given.get("args"), given.get("kwargs"), **call)
        if then is not None:
            then(report, path, given)

    return section({"key": one_of(registry, base), **keys}, needs, check_call)


def bind(
    report: Report,
    path: str,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    supplied: int = 0,
    names: Collection[str] = (),
    values: Mapping[str, Kind] = MappingProxyType({}),
    read: Collection[str] | None = None,
) -> None:
    """Checks a call against the signature: unknown, doubled and missing arguments, and values that must be numbers.

    What torchdistill passes itself are ``supplied`` positional arguments, which go first, and those with these
    ``names``. ``values`` may be held where torch's annotations do not say it. Losses of torchdistill ignore keywords
    that they do not read: where it is known what they ``read``, all others are refused, otherwise those that are near
    to a parameter. What has no signature takes everything.
    """
    args, kwargs = [] if args is None else args, {} if kwargs is None else kwargs
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return
    if not isinstance(args, list) or not isinstance(kwargs, Mapping):
        return
    module, kinds = getattr(function, "__module__", ""), {p.kind for p in parameters}
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = {*positional[: supplied + len(args)], *names}
    if supplied + len(args) > len(positional) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        report.add(path, f"{len(args)} positional arguments given, at most {len(positional) - supplied} fit")
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = {name for name in kwargs if name not in known}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        known |= {*(read or ())}
        is_loss, cutoff = module.startswith("torchdistill.losses."), 0.6 if read is None else 0.0
        unknown = {name for name in unknown - known if is_loss and get_close_matches(str(name), known, cutoff=cutoff)}
    for name in kwargs:
        if name in filled:
            report.add(at(path, name), "given already, by torchdistill or by position; remove it")
        elif name in unknown:
            report.add(at(path, name), f"unknown argument; {nearest(name, known - filled)}")
    for p in parameters:
        is_needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if is_needed and p.name not in filled and p.name not in kwargs:
            report.add(path, f"argument {p.name!r} is missing")
    annotated = {p.name: _annotated(p.annotation) for p in parameters} if module.startswith("torch.") else {}
    for name, kind in {**annotated, **values}.items():
        if kind is not None and name in kwargs and name not in filled:
            report.check(at(path, name), kwargs[name], kind)


_ANNOTATIONS = {"bool": FLAG, "int": WHOLE, "float": NUMBER, "Iterable[int]": list_of("whole numbers", int)}


def _annotated(annotation: Any) -> Kind | None:
    """What torch's annotation of a parameter allows, where it is a number, a flag or null."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = _ANNOTATIONS.get(re.sub(r" \| (None|torch\.Tensor)", "", text))
    return or_else(kind) if kind and "None" in text else kind
