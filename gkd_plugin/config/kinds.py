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
from typing import Any, TypeAlias, get_args, get_origin

import torch

from gkd_plugin.config.tree import Tagged, at, is_private, items, places, summary
from gkd_plugin.errors import is_number, nearest

LARGEST = 1e9
"""No setting of a training is larger, unless a hand slipped."""
_MISSING = object()
_WORDS = {"True": "true", "False": "false", "None": "nothing"}


def is_absurd(given: Any) -> bool:
    """Whether it is a number that nobody means: NaN, or too large."""
    return is_number(given) and not abs(given) <= LARGEST


class Report:
    """Collects the problems, one line each."""

    def __init__(
        self,
        tree: Mapping[str, Any],
        produced: Collection[str] | None,
        has_anchors: bool = True,
        *,
        imports: bool = True,
    ) -> None:
        self.tree = tree
        self.produced = produced  # checkpoints that will exist; None where they do not matter
        self.has_anchors = has_anchors  # whether keys may be mere places for them
        self.imports = imports  # whether what the tree names may be imported
        self.unknown: list[str] = []  # paths of parts that may be registered by what is not imported
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
        text = "a section" if isinstance(given, Mapping) else _WORDS.get(repr(given), repr(given))
        self.add(path, f"missing; {allowed}" if given is _MISSING else f"{text} given; {allowed}")

    def is_clean(self, path: str, section: Any = None) -> bool:
        """Whether nothing was found at the path or below it, and ``section`` holds no object and no absurd number."""
        is_found = any(line.startswith((f"{path}:", f"{path}.")) for line in (*self.lines, *self.unknown))
        return not is_found and not any(isinstance(part, Tagged) or is_absurd(part) for _, part in places(section))

    @contextmanager
    def trial(self, path: str) -> Iterator[None]:
        """Around the building of a part: what it raises here it would raise later, perhaps after hours of training."""
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                yield
        except Exception as error:  # a part may raise anything
            for line in summary(error).splitlines():
                self.add(path, line)

    def bind(
        self,
        path: str,
        function: Callable[..., Any],
        section: Mapping[Any, Any],
        *,
        supplied: int = 0,
        names: Collection[str] = (),
        values: Mapping[str, "Kind"] | None = None,
        read: Collection[str] | None = None,
    ) -> None:
        """Checks a section's ``args`` and ``kwargs`` against a signature: unknown, doubled, missing, of the wrong type.

        torchdistill passes ``supplied`` arguments first, and those with these ``names``. ``values`` are kinds that
        torch's annotations do not tell. torchdistill's losses ignore keywords that they do not read: all are refused
        where it is known what they ``read``, otherwise those near to a parameter. No signature takes everything.
        """
        args = [] if section.get("args") is None else section["args"]
        kwargs, path = {} if section.get("kwargs") is None else section["kwargs"], at(path, "kwargs")
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
            self.add(path, f"{len(args)} positional arguments given, at most {len(positional) - supplied} fit")
        known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        unknown = kwargs.keys() - known
        if inspect.Parameter.VAR_KEYWORD in kinds:
            known |= {*(read or ())}
            is_loss, cutoff = module.startswith("torchdistill.losses."), 0.6 if read is None else 0.0
            near = {name for name in unknown - known if get_close_matches(str(name), known, cutoff=cutoff)}
            unknown = near if is_loss else set()
        for name in kwargs:
            if name in filled:
                self.add(at(path, name), "given already, by torchdistill or by position; remove it")
            elif name in unknown:
                self.add(at(path, name), f"unknown argument; {nearest(name, known - filled)}")
        for p in parameters:
            is_needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            if is_needed and p.name not in filled and p.name not in kwargs:
                self.add(path, f"argument {p.name!r} is missing")
        is_typed = module.startswith(("torch.", "gkd_plugin."))
        annotated = {p.name: _annotated(p.annotation) for p in parameters} if is_typed else {}
        for name, kind in {**annotated, **(values or {})}.items():
            if kind is not None and name in kwargs and name not in filled:
                self.check(at(path, name), kwargs[name], kind)


Kind: TypeAlias = Callable[[Report, str, Any], None]


def value(allowed: str, fits: Callable[[Any], Any] = lambda _: True, *, of: Any = object) -> Kind:
    """A value of a type, ``str`` or ``list[int]``, that ``fits``; in words, what is ``allowed``."""

    def check(report: Report, path: str, given: Any) -> None:
        if not (_is_of(given, of) and fits(given)):
            report.refuse(path, given, f"must be {allowed}")

    return check


def _is_of(given: Any, kind: Any) -> bool:
    """Whether it is of a type. ``true`` is no number."""
    if get_origin(kind) is list:
        return isinstance(given, list) and all(_is_of(item, *get_args(kind)) for item in given)
    return isinstance(given, kind) and not (kind is int and isinstance(given, bool))


FLAG = value("true or false", of=bool)
_ANY = value("anything")


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """A finite number from ``low`` up, to ``high``."""
    allowed = "a finite number" if low == -math.inf else f"a finite number, {low} or more"
    allowed = allowed if high == math.inf else f"a number from {low} to {high}"
    return value(allowed, lambda given: is_number(given) and low <= given <= high and abs(given) < math.inf)


def count(least: int = 1, most: float = math.inf) -> Kind:
    """A whole number from ``least`` up, to ``most``."""
    allowed = f", {least} or more" if most == math.inf else f" from {least} to {most}"
    return value(f"a whole number{allowed}", lambda given: least <= given <= most, of=int)


def one_of(names: Collection[str], base: type = object) -> Kind:
    """A name: one of a few, or a key of a registry, of whose classes those below ``base`` are worth offering."""

    def check(report: Report, path: str, given: Any) -> None:
        if isinstance(given, str) and given in names:
            return
        parts = names if isinstance(names, Mapping) else dict.fromkeys(names)  # torchdistill registers even Counter
        known = [name for name, of in parts.items() if not inspect.isclass(of) or issubclass(of, base)]
        offered = nearest(given, known)
        only_ours = report.tree.get("dependencies") == [{"name": "gkd_plugin"}]
        if isinstance(given, str) and isinstance(names, Mapping) and not (report.imports or only_ours):
            report.unknown.append(f"{path}:")
        elif isinstance(given, str) and isinstance(names, Mapping):
            report.add(path, f"{given!r} is not registered; {offered}")
        else:
            report.refuse(path, given, offered)

    return check


def never(reason: str) -> Kind:
    """A key that would not be read."""
    return lambda report, path, _: report.add(path, reason)


def maybe(kind: Kind, *others: Any) -> Kind:
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


def section(keys: Mapping[str, Kind], needs: Collection[str] = (), then: Kind = _ANY, has_others: bool = False) -> Kind:
    """A section with these keys, some of which it ``needs``, and a rule for what else must hold."""

    def check(report: Report, path: str, given: Any) -> None:
        if not isinstance(given, Mapping):
            names = f"with {', '.join(sorted(needs or keys))}" if keys else "(key: value)"
            report.refuse(path, given, f"must be a section {names}")
            return
        for key in given:
            if not (key in keys or has_others or (report.has_anchors and is_private(key))):
                report.add(at(path, key), f"unknown key; {nearest(key, keys)}")
        for key, kind in keys.items():
            if key in given or key in needs:
                report.check(at(path, key), given.get(key, _MISSING), kind)
        then(report, path, given)

    return check


def part(
    registry: Mapping[str, Any],
    keys: Mapping[str, Kind],
    needs: Collection[str] = ("key",),
    then: Kind = _ANY,
    *,
    base: type = object,
    **call: Any,
) -> Kind:
    """A section whose ``key`` names a registered part, with ``args`` and ``kwargs`` that fit it (``Report.bind``)."""

    def check_call(report: Report, path: str, given: Mapping[Any, Any]) -> None:
        key = given.get("key")
        if isinstance(key, str) and key in registry and report.is_clean(at(path, "kwargs")):
            report.bind(path, registry[key], given, **call)
        then(report, path, given)

    return section({"key": one_of(registry, base), **keys}, needs, check_call)


_ANNOTATIONS = {
    "bool": FLAG,
    "int": value("a whole number", of=int),
    "float": number(),
    "Iterable[int]": value("a list of whole numbers", of=list[int]),
}


def _annotated(annotation: Any) -> Kind | None:
    """What torch's annotation of a parameter, or ours, allows, where it is a number, a flag or null."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = _ANNOTATIONS.get(re.sub(r" \| (None|torch\.Tensor)", "", text))
    return maybe(kind) if kind and "None" in text else kind
