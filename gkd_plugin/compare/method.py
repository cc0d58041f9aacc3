"""A method: what its stages do, as data. Everything else (data, models, schedules) is the configuration's."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gkd_plugin.compare.sizes import EMBEDDING, PLACEHOLDERS
from gkd_plugin.config.kinds import Kind, Report, each, maybe, section, value
from gkd_plugin.config.tree import Tagged, places, read
from gkd_plugin.data import UNLABELLED
from gkd_plugin.errors import ConfigError, is_number, nearest

CONTROL = "ce"  # the method that the others are tested against

_FOLDER = Path(__file__).parent / "methods"
_SUFFIXES = (".yaml", ".yml")
_PLACEHOLDER = re.compile(r"\{\w+\}")
_LOGITS = {"is_from_teacher": False, "module_path": ".", "io": "output"}
_CROSS_ENTROPY: Mapping[str, Any] = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {"ignore_index": UNLABELLED}},
    "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": {"input": _LOGITS, "target": {"uses_label": True}}},
}


@dataclass(frozen=True)
class MethodStage:
    """One stage of a method; the names are those of its YAML, which docs/compare.md explains."""

    like: str = "classifier"
    epochs: str | None = None
    teacher: Mapping[str, Any] | None = field(default_factory=dict)  # None: a stage without a teacher
    student: Mapping[str, Any] = field(default_factory=dict)
    train_data_loader: Mapping[str, Any] = field(default_factory=dict)
    criterion: Mapping[str, Any] | None = None  # None: the configuration's
    lr_factor: float = 1.0
    max_grad_norm: float | None = None


@dataclass(frozen=True, eq=False)
class Method:
    """A method to compare; the names are those of its YAML, which docs/compare.md explains."""

    name: str
    title: str
    stages: tuple[MethodStage, ...] = ()
    classes: str = "any"
    student: str | None = None
    teacher: str | None = None  # "untrained", or the method whose student it is
    memory: str | None = "as configured"
    probe: str | None = None
    of: str | None = None

    @property
    def has_trained_teacher(self) -> bool:
        """Whether its teacher is the student of another method."""
        return self.teacher not in (None, "untrained")

    @property
    def is_as_configured(self) -> bool:
        """Whether its stages have the criteria of the configuration."""
        return bool(self.stages) and all(stage.criterion is None for stage in self.stages)


def _check_method(report: Report, path: str, given: Mapping[Any, Any]) -> None:  # noqa: ARG001
    """What no key shows alone, and placeholders."""
    probe, stages = given.get("probe"), given.get("stages")
    if probe and given.keys() & {"stages", "student", "teacher"}:
        report.add("probe", "trains nothing; remove stages, student and teacher")
    if "of" in given and not probe:
        report.add("of", "says whose embedding a probe reads, and there is no probe; remove it")
    if not (stages or probe):
        report.refuse("stages", stages, "must be a list of stages")
    for place, found in places(stages, "stages"):
        for part in _PLACEHOLDER.findall(found) if isinstance(found, str) else ():
            if part != EMBEDDING and not (part == found and part in PLACEHOLDERS):
                report.add(place, f"{part!r} in {found!r}; {nearest(part, [*PLACEHOLDERS, EMBEDDING])}")


def _choice(*names: str | None) -> Kind:
    """One of a few names; or the key is left out."""
    shown = ["null" if name is None else name for name in names]
    return lambda report, path, given: (
        None if given in names else report.refuse(path, given, f"{nearest(given, shown)}, or leave it out")
    )


def _check_teacher(report: Report, path: str, given: Any) -> None:
    """A file is read later."""
    if Path(str(given)).suffix not in _SUFFIXES:
        _choice("untrained", *method_names())(report, path, given)


_FACTOR = maybe(value("a finite number above 0", lambda given: is_number(given) and 0 < given < math.inf))
_STAGE = section(
    {
        "like": _choice("embedding", "classifier"),
        "epochs": _choice(None, "all"),
        **dict.fromkeys(("teacher", "student", "train_data_loader", "criterion"), maybe(section({}, has_others=True))),
        **dict.fromkeys(("lr_factor", "max_grad_norm"), _FACTOR),
    }
)
_METHOD = section(
    {
        "title": value("a text", of=str),
        "stages": each(_STAGE, list),
        "classes": _choice("any", "same", "incremental"),
        "student": _choice("teacher", "untrained"),
        "teacher": _check_teacher,
        "memory": _choice(None),
        "probe": _choice("ncm", "logistic_regression"),
        "of": _choice("student"),
    },
    then=_check_method,
)


def method_names() -> list[str]:
    """The methods that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_method(name: str) -> Method:
    """A method that comes with the package, or a file like theirs (``my_method.yaml``)."""
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        if name not in method_names():
            raise ConfigError(f"--methods: there is no method {name!r} or YAML file; {nearest(name, method_names())}")
        path = _FOLDER / f"{name}.yaml"
    given, report = read(path), Report({}, None, has_anchors=False)
    for place, found in places(given):  # tags may only be inside the sections of a stage
        if isinstance(found, Tagged) and place.count(".") < 3:
            report.refuse(place, found.tag, "must be plain")
    report.check("", given, _METHOD)
    if report.lines:
        raise ConfigError(f"{path}: {report.lines[0]}")
    stages = tuple(_stage(stage) for stage in given.get("stages", ()))
    return Method(**{"title": path.stem, **given, "name": path.stem, "stages": stages})


def _stage(given: Mapping[str, Any]) -> MethodStage:
    """The stage, with the sub-term ``cross_entropy: WEIGHT`` written out: the loss of the student's own logits."""
    changes = {key: item for key, item in given.items() if item is not None or key == "teacher"}
    changes |= {key: float(changes[key]) for key in ("lr_factor", "max_grad_norm") if key in changes}
    match changes.get("criterion"):
        case {"kwargs": {"sub_terms": {"cross_entropy": int() | float() as weight} as terms} as kwargs}:
            terms = {**terms, "cross_entropy": {**_CROSS_ENTROPY, "weight": weight}}
            changes["criterion"] = {**changes["criterion"], "kwargs": {**kwargs, "sub_terms": terms}}
    return MethodStage(**changes)
