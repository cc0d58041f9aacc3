"""A method: what its stages do, as data; everything else (data, models, schedules) is the configuration's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from gkd_plugin.compare.sizes import PLACEHOLDERS
from gkd_plugin.config.yaml_nodes import compose
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError, nearest, told_at

__all__ = ["CONTROL", "EMBEDDING", "Method", "MethodStage", "load_method", "method_names"]

CONTROL = "ce"
"""The method that the others are tested against."""
EMBEDDING = "{student_embedding}"
"""Stands for the module path of the student's embedding."""

_KEYS = {"title", "classes", "stages", "student", "memory", "probe", "of"}
_PROBES = ("ncm", "logistic_regression")
_STAGE_KEYS = {"like", "epochs", "lr_factor", "max_grad_norm", "teacher", "student", "criterion", "train_data_loader"}
_STUDENTS = ("teacher", "untrained")
_CLASSES = ("any", "same", "incremental")
_BASES = ("embedding", "classifier")
_PLACEHOLDER = re.compile(r"\{\w+\}")


@dataclass(frozen=True)
class MethodStage:
    """One stage of a method.

    Attributes:
        like: the stage of the configuration whose data, optimizer and schedule it takes.
        takes_all: whether it runs for the epochs of all stages together, instead of those of ``like``.
        has_teacher: whether a teacher takes part.
        teacher: further keys of the ``teacher`` section, and of sections in it; ``forward_hook`` replaces that of the
            configuration.
        student: likewise.
        train_data_loader: likewise.
        criterion: the section; ``None`` keeps that of the configuration.
        lr_factor: times the configuration's learning rate.
        max_grad_norm: bound on the gradient's norm where the configuration has none of its own; ``None`` adds none.
    """

    like: str
    takes_all: bool
    has_teacher: bool
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    criterion: Mapping[str, Any] | None
    train_data_loader: Mapping[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0
    max_grad_norm: float | None = None


@dataclass(frozen=True, eq=False)
class Method:
    """A method to compare.

    Attributes:
        name: as on the command line.
        title: as in the table.
        classes: 'same' serves only a student with the teacher's own classes, 'incremental' only one with these and new
            ones; 'any' serves all.
        stages: in order; none for a probe.
        starts_from_teacher: whether the student is the teacher's network with its weights and a new classifier.
        starts_untrained: whether the student leaves out the weights that its configuration names.
        keeps_all_samples: whether old classes keep all their samples, whatever the memory: joint training.
        probe: what is fitted to the frozen teacher's embeddings, instead of training a student.
        probes_student: whether the student, as it would start, takes the teacher's place in that.
    """

    name: str
    title: str
    classes: str
    stages: tuple[MethodStage, ...]
    starts_from_teacher: bool = False
    starts_untrained: bool = False
    keeps_all_samples: bool = False
    probe: str | None = None
    probes_student: bool = False

    @property
    def has_teacher(self) -> bool:
        """Whether any stage has a teacher."""
        return any(stage.has_teacher for stage in self.stages)


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
    plain = to_plain(compose(path))
    with told_at(f"{path}: "):
        _check_keys("", plain, _KEYS)
        probe = plain.get("probe")
        if probe is not None and probe not in _PROBES:
            raise ConfigError(f"probe: {probe!r} given; {nearest(probe, _PROBES)}")
        if probe is not None and set(plain) & {"stages", "student"}:
            raise ConfigError("probe: trains nothing; remove stages and student")
        for text in _strings(plain.get("stages")):
            for part in _PLACEHOLDER.findall(text):
                if part != EMBEDDING and not (part == text and part in PLACEHOLDERS):
                    raise ConfigError(f"stages: {part!r} in {text!r}; {nearest(part, [*PLACEHOLDERS, EMBEDDING])}")
        stages = [] if probe else plain.get("stages")
        if not isinstance(stages, list) or not (stages or probe):
            raise ConfigError("stages: must be a list of stages")
        student = plain.get("student")
        if "student" in plain and student not in _STUDENTS:
            raise ConfigError(f"student: {student!r} given; {nearest(student, _STUDENTS)}, or leave it out")
        if "of" in plain and not probe:
            raise ConfigError("of: says whose embedding a probe reads, and there is no probe; remove it")
        if plain.get("of", "student") != "student":
            raise ConfigError(f"of: {plain['of']!r} given; 'student', or leave it out for the teacher")
        if plain.get("memory") is not None:
            raise ConfigError(f"memory: {plain['memory']!r} given; null for all samples, or leave it out")
        classes = plain.get("classes", "any")
        if classes not in _CLASSES:
            raise ConfigError(f"classes: {classes!r} given; {nearest(classes, _CLASSES)}")
        return Method(
            name=name,
            title=str(plain.get("title", name)),
            classes=classes,
            stages=tuple(_stage(f"stages.{index}", stage) for index, stage in enumerate(stages)),
            starts_from_teacher=student == "teacher",
            starts_untrained=student == "untrained",
            keeps_all_samples="memory" in plain,
            probe=probe,
            probes_student="of" in plain,
        )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _stage(where: str, stage: object) -> MethodStage:
    if not isinstance(stage, Mapping):
        raise ConfigError(f"{where}: must be a mapping, got {stage!r}")
    _check_keys(f"{where}.", stage, _STAGE_KEYS)
    like, epochs = stage.get("like", "classifier"), stage.get("epochs")
    if like not in _BASES:
        raise ConfigError(f"{where}.like: {like!r} given; {nearest(like, _BASES)}")
    if epochs not in (None, "all"):
        raise ConfigError(f"{where}.epochs: {epochs!r} given; 'all', or leave it out for those of the stage {like!r}")
    for key in ("teacher", "student", "criterion", "train_data_loader"):
        if stage.get(key) is not None and not isinstance(stage[key], Mapping):
            raise ConfigError(f"{where}.{key}: must be a mapping, got {stage[key]!r}")
    bound = stage.get("max_grad_norm")
    return MethodStage(
        like=like,
        takes_all=epochs == "all",
        has_teacher=stage.get("teacher", {}) is not None,
        teacher=stage.get("teacher") or {},
        student=stage.get("student") or {},
        criterion=stage.get("criterion"),
        train_data_loader=stage.get("train_data_loader") or {},
        lr_factor=_positive(f"{where}.lr_factor", stage.get("lr_factor", 1.0)),
        max_grad_norm=None if bound is None else _positive(f"{where}.max_grad_norm", bound),
    )


def _positive(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: {value!r} given; must be a finite number above 0")
    return float(value)


def _check_keys(where: str, mapping: Mapping[Any, Any], allowed: set[str]) -> None:
    for key in mapping:
        if key not in allowed:
            raise ConfigError(f"{where}{key}: is not a key of a method; {nearest(key, allowed)}")
