"""A method: what its stages do, as data. Everything else (data, models, schedules) is the configuration's."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from gkd_plugin.compare.sizes import EMBEDDING, PLACEHOLDERS
from gkd_plugin.config.tree import read, walk
from gkd_plugin.errors import ConfigError, is_number, nearest, told_at

__all__ = ["CONTROL", "Method", "MethodStage", "load_method", "method_names"]

CONTROL = "ce"
"""The method that the others are tested against."""

_CHOICES: Mapping[str, Collection[str | None]] = {
    "classes": ("any", "same", "incremental"),
    "student": ("teacher", "untrained"),
    "memory": (None,),
    "probe": ("ncm", "logistic_regression"),
    "of": ("student",),
}
_STAGE_CHOICES: Mapping[str, Collection[str | None]] = {"like": ("embedding", "classifier"), "epochs": (None, "all")}
_PLACEHOLDER = re.compile(r"\{\w+\}")
_CROSS_ENTROPY: Mapping[str, Any] = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
    "criterion_wrapper": {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"uses_label": True},
        },
    },
}


@dataclass(frozen=True)
class MethodStage:
    """One stage of a method; the names are those of its YAML.

    Attributes:
        like: the stage of the configuration whose data, optimizer and schedule it takes.
        epochs: 'all' for those of all stages together; ``None`` for those of ``like``.
        teacher: put over the configuration's section ``teacher``, key by key, where ``None`` takes a key away;
            ``None`` for a stage without a teacher.
        student: put over the section ``student``.
        train_data_loader: put over the section ``train_data_loader``.
        criterion: replaces that of the configuration; ``None`` keeps it.
        lr_factor: times the configuration's learning rate.
        max_grad_norm: bound on the gradient's norm where the configuration has none of its own; ``None`` adds none.
    """

    like: str = "classifier"
    epochs: str | None = None
    teacher: Mapping[str, Any] | None = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    train_data_loader: Mapping[str, Any] = field(default_factory=dict)
    criterion: Mapping[str, Any] | None = None
    lr_factor: float = 1.0
    max_grad_norm: float | None = None


@dataclass(frozen=True, eq=False)
class Method:
    """A method to compare; the names are those of its YAML.

    Attributes:
        name: as on the command line.
        title: as in the table.
        stages: in order; none for a probe.
        classes: 'same' serves only a student with the teacher's own classes, 'incremental' only one with these and new
            ones; 'any' serves all.
        student: 'teacher' is the teacher's network with its weights and a new classifier, 'untrained' leaves out the
            weights that the configuration names; ``None`` takes it as it is.
        memory: ``None`` keeps all samples of old classes (joint training); 'as configured'.
        probe: what is fitted to the frozen teacher's embeddings, instead of training a student.
        of: 'student' for a probe that reads the student, as it would start, in the teacher's place.
    """

    name: str
    title: str
    stages: tuple[MethodStage, ...] = ()
    classes: str = "any"
    student: str | None = None
    memory: str | None = "as configured"
    probe: str | None = None
    of: str | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether any stage has a teacher."""
        return any(stage.teacher is not None for stage in self.stages)


def method_names() -> list[str]:
    """The methods that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_method(name: str) -> Method:
    """A method that comes with the package, or a file like theirs (``my_method.yaml``).

    Raises:
        ConfigError: there is no such method or file, or the file does not describe one.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name).stem, Path(name))
    if name not in method_names():
        raise ConfigError(
            f"--methods: there is no method {name!r}; {nearest(name, method_names())}; or name a YAML file"
        )
    with resources.as_file(_folder() / f"{name}.yaml") as path:
        return _read(name, path)


def _folder() -> Any:
    return resources.files("gkd_plugin.compare") / "methods"


def _read(name: str, path: Path) -> Method:
    given = read(path)
    with told_at(f"{path}: "):
        _check("", given, Method, _CHOICES)
        probe, stages = given.get("probe"), given.get("stages", [])
        if probe and given.keys() & {"stages", "student"}:
            raise ConfigError("probe: trains nothing; remove stages and student")
        if "of" in given and not probe:
            raise ConfigError("of: says whose embedding a probe reads, and there is no probe; remove it")
        if not isinstance(stages, list) or not (stages or probe):
            raise ConfigError("stages: must be a list of stages")
        _check_placeholders(stages)
        made = tuple(_stage(f"stages.{index}", stage) for index, stage in enumerate(stages))
        return Method(**{"title": name, **given, "name": name, "stages": made})


def _stage(where: str, given: object) -> MethodStage:
    given = dict(_mapping(where, given))
    _check(f"{where}.", given, MethodStage, _STAGE_CHOICES)
    for key in ("teacher", "student", "train_data_loader", "criterion"):
        if given.get(key) is not None:
            given[key] = _mapping(f"{where}.{key}", given[key])
    for key in ("lr_factor", "max_grad_norm"):
        if given.get(key) is not None:
            given[key] = _positive(f"{where}.{key}", given[key])
    if given.get("criterion") is not None:
        given["criterion"] = _with_cross_entropy(given["criterion"])
    return MethodStage(**{key: value for key, value in given.items() if value is not None or key == "teacher"})


def _with_cross_entropy(criterion: dict[str, Any]) -> dict[str, Any]:
    """The criterion with the sub-term ``cross_entropy: WEIGHT`` written out, the loss of the student's own logits."""
    match criterion:
        case {"kwargs": {"sub_terms": {"cross_entropy": int() | float() as weight}}}:
            terms = {**criterion["kwargs"]["sub_terms"], "cross_entropy": {**_CROSS_ENTROPY, "weight": weight}}
            return {**criterion, "kwargs": {**criterion["kwargs"], "sub_terms": terms}}
    return criterion


def _check(where: str, given: Mapping[Any, Any], kind: type, choices: Mapping[str, Collection[str | None]]) -> None:
    """Refuses keys that nobody reads, and values that are none of a key's choices."""
    keys = [field.name for field in fields(kind) if field.name != "name"]
    for key, value in given.items():
        if key not in keys:
            raise ConfigError(f"{where}{key}: is not a key of a method; {nearest(key, keys)}")
        if key in choices and value not in choices[key]:
            names = ["null" if choice is None else choice for choice in choices[key]]
            raise ConfigError(f"{where}{key}: {value!r} given; {nearest(value, names)}, or leave it out")


def _check_placeholders(stages: list[Any]) -> None:
    for text in (value for value in walk(stages) if isinstance(value, str)):
        for part in _PLACEHOLDER.findall(text):
            if part != EMBEDDING and not (part == text and part in PLACEHOLDERS):
                raise ConfigError(f"stages: {part!r} in {text!r}; {nearest(part, [*PLACEHOLDERS, EMBEDDING])}")


def _mapping(where: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: must be a mapping, got {given!r}")
    return given


def _positive(where: str, value: object) -> float:
    if not is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: {value!r} given; must be a finite number above 0")
    return float(value)
