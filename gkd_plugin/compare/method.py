"""A method: what its stages do, as data. Everything else (data, models, schedules) is the configuration's."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gkd_plugin.compare.sizes import EMBEDDING, PLACEHOLDERS
from gkd_plugin.config.tree import read, walk
from gkd_plugin.errors import ConfigError, is_number, nearest, told_at

CONTROL = "ce"
"""The method that the others are tested against."""

_FOLDER = Path(__file__).parent / "methods"
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
    memory: str | None = "as configured"
    probe: str | None = None
    of: str | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether any stage has a teacher."""
        return any(stage.teacher is not None for stage in self.stages)


def method_names() -> list[str]:
    """The methods that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_method(name: str) -> Method:
    """A method that comes with the package, or a file like theirs (``my_method.yaml``)."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in method_names():
            raise ConfigError(
                f"--methods: there is no method {name!r}; {nearest(name, method_names())}; or name a YAML file"
            )
        path = _FOLDER / f"{name}.yaml"
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
        return Method(**{"title": path.stem, **given, "name": path.stem, "stages": made})


def _stage(where: str, given: Any) -> MethodStage:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: must be a mapping, got {given!r}")
    _check(f"{where}.", given, MethodStage, _STAGE_CHOICES)
    given = {key: value for key, value in given.items() if value is not None or key == "teacher"}
    for key in ("teacher", "student", "train_data_loader", "criterion"):
        if not isinstance(given.get(key), dict | None):
            raise ConfigError(f"{where}.{key}: must be a mapping, got {given[key]!r}")
    for key, value in [(key, given[key]) for key in ("lr_factor", "max_grad_norm") if key in given]:
        if not is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f"{where}.{key}: {value!r} given; must be a finite number above 0")
        given[key] = float(value)
    if "criterion" in given:
        given["criterion"] = _with_cross_entropy(given["criterion"])
    return MethodStage(**given)


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
