"""The setting of a cell: what ``--overlap``, ``--ways``, ``--shots``, ``--tasks`` and ``--memory`` set in a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yaml.nodes import MappingNode, Node

from gkd_plugin.config.yaml_nodes import as_node, entries, put, remove, steps
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.data import overlap_classes
from gkd_plugin.errors import ConfigError, told_at

__all__ = [
    "WEIGHTS",
    "Setting",
    "apply_setting",
    "is_incremental",
    "is_trained",
    "keep_all_samples",
    "shares_classes",
    "training_memory",
    "training_shots",
]

_OVERLAP = "gkd_plugin.data.overlap_subset"
_FEW_SHOT = "gkd_plugin.data.few_shot_task"
_INCREMENTAL = "gkd_plugin.data.incremental_subset"
_BALANCED = "ClassBalancedBatchSampler"
WEIGHTS = ("weights", "checkpoint_path")
"""Keywords of torchvision's and timm's models that name trained weights."""


@dataclass(frozen=True)
class Setting:
    """One column of the comparison; ``None`` leaves the configuration as it is.

    Attributes:
        overlap: share of classes in common, in per cent.
        ways: classes of a few-shot task.
        shots: labelled images of each.
        memory: exemplars of each old class.
    """

    overlap: float | None = None
    ways: int | None = None
    shots: int | None = None
    memory: int | None = None

    @property
    def name(self) -> str:
        """For folders."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return "_".join(f"{key}{value:g}" for key, value in given.items()) or "as_configured"

    @property
    def title(self) -> str:
        """For tables."""
        texts = {"overlap": "overlap {:g} %", "ways": "{}-way", "shots": "{}-shot", "memory": "memory {}"}
        given = {key: value for key, value in vars(self).items() if value is not None}
        return " ".join(texts[key].format(value) for key, value in given.items()) or "as configured"


def apply_setting(root: MappingNode, setting: Setting, task: int | None = None) -> None:
    """Sets what the setting says in a configuration's node graph, in place.

    Args:
        root: the configuration.
        setting: the setting.
        task: number of the few-shot task; ``None`` leaves it.

    Raises:
        ConfigError: the configuration has nothing to set, or cannot have it so.
    """
    if setting.overlap is not None:
        _apply_overlap(root, setting.overlap)
    few_shot = {"ways": setting.ways, "shots": setting.shots, "task": task}
    _apply_few_shot(root, {key: value for key, value in few_shot.items() if value is not None})
    if setting.memory is not None:
        _set_memory(root, setting.memory, "--memory")
        if setting.memory == 0:  # only the new classes have samples
            _balance(root, min(to_plain(kwargs)["new"] for kwargs in _with_memory(root)))


def keep_all_samples(root: MappingNode) -> None:
    """Joint training: every training ``incremental_subset`` keeps all samples of the old classes.

    Raises:
        ConfigError: there is none.
    """
    _set_memory(root, None, "memory")


def shares_classes(root: MappingNode) -> bool | None:
    """Whether the student's classes are the teacher's own; ``None`` where the configuration's text does not show it.

    An ``overlap_subset`` of the student shows it; few-shot tasks are of other classes, and so are those of a student
    whose ``num_classes`` is not written as the teacher's is.
    """
    found = list(_student_subsets(root))
    if found:
        return all(_classes_of(plain, "teacher") == _classes_of(plain) for plain in map(to_plain, found))
    if any(_calls(root, _FEW_SHOT)):
        return False
    models = to_plain(root)["models"]
    counts = [((models.get(name) or {}).get("kwargs") or {}).get("num_classes") for name in _MODELS]
    return None if counts[0] == counts[1] else False


def is_trained(root: MappingNode) -> bool:
    """Whether the student starts from trained weights (``src_ckpt``, or those that its ``kwargs`` name)."""
    models = to_plain(root)["models"]
    student = models.get("student_model") or models["model"]
    kwargs = student.get("kwargs") or {}
    return bool(student.get("src_ckpt") or kwargs.get("pretrained") or any(kwargs.get(key) for key in WEIGHTS))


def is_incremental(root: MappingNode) -> bool:
    """Whether the student's first classes are the teacher's own, as those of an ``incremental_subset`` are."""
    return any(_calls(root, _INCREMENTAL))


def training_memory(root: MappingNode) -> int | None:
    """The smallest memory of an ``incremental_subset``; ``None`` where all samples are kept, or there is none."""
    return min((to_plain(kwargs)["memory"] for kwargs in _with_memory(root)), default=None)


def training_shots(root: MappingNode) -> int | None:
    """The smallest number of shots of a support set; ``None`` where there is none."""
    plain = [to_plain(kwargs) for kwargs in _calls(root, _FEW_SHOT)]
    return min((kwargs["shots"] for kwargs in plain if kwargs.get("role") == "support"), default=None)


_MODELS = ("teacher_model", "student_model")


def _apply_overlap(root: MappingNode, overlap: float) -> None:
    found = list(_student_subsets(root))
    if not found:
        raise ConfigError(f"--overlap: no data set is a {_OVERLAP} with role 'student', so there is no overlap to set")
    for kwargs in found:
        remove(kwargs, "shift")
        put(kwargs, "overlap", _node(overlap / 100))
        with told_at(f"--overlap {overlap:g}: "):
            _classes_of(to_plain(kwargs))


def _apply_few_shot(root: MappingNode, values: Mapping[str, int]) -> None:
    """Sets them in every task; ``shots: 0``, which leaves no image to a support set cut elsewhere, stays."""
    if not values:
        return
    found = list(_calls(root, _FEW_SHOT))
    if not found:
        options = ", ".join("--tasks" if key == "task" else f"--{key}" for key in values)
        raise ConfigError(f"{options}: no data set is a {_FEW_SHOT}, so there is nothing to set")
    for kwargs in found:
        for key, value in values.items():
            if not (key == "shots" and to_plain(kwargs).get("shots") == 0):
                put(kwargs, key, _node(value))
    if "ways" in values:
        student = entries(entries(entries(root)["models"])["student_model"])
        before = to_plain(student["kwargs"]).get("num_classes")
        put(student["kwargs"], "num_classes", _node(values["ways"]))
        _balance(root, values["ways"], before)


def _set_memory(root: MappingNode, memory: int | None, where: str) -> None:
    found = list(_with_memory(root))
    if not found:
        raise ConfigError(f"{where}: no data set is a {_INCREMENTAL} with a memory, so there is none to set")
    for kwargs in found:
        put(kwargs, "memory", _node(memory))


def _balance(root: MappingNode, present: int, before: int | None = None) -> None:
    """Balanced batches have no more classes than have samples, and stay as large as before.

    Those that held all of the classes that there were ``before`` hold all, with as many samples of each.
    """
    for node in _nodes(entries(root)["train"]):
        sampler = entries(node)
        if getattr(sampler.get("key"), "value", None) == _BALANCED and "kwargs" in sampler:
            section = sampler["kwargs"]
            kwargs = to_plain(section)
            classes, samples = kwargs["classes_per_batch"], kwargs["samples_per_class"]
            if classes > present:
                put(section, "classes_per_batch", _node(present))
                put(section, "samples_per_class", _node(max(1, classes * samples // present)))
            elif classes == before:
                put(section, "classes_per_batch", _node(present))


def _with_memory(root: MappingNode) -> list[MappingNode]:
    """The incremental subsets that keep a memory; ``memory: null`` is a test set, or joint training."""
    return [kwargs for kwargs in _calls(root, _INCREMENTAL) if to_plain(kwargs).get("memory") is not None]


def _classes_of(kwargs: Mapping[str, Any], role: str = "student") -> list[int]:
    """Positions in the class order; whether there are so many classes shows when the data set is built."""
    names = ("num_classes", "shift", "overlap")
    return overlap_classes(**{name: kwargs[name] for name in names if name in kwargs}, role=role)


def _student_subsets(root: MappingNode) -> Iterator[MappingNode]:
    for kwargs in _calls(root, _OVERLAP):
        if to_plain(kwargs).get("role") == "student":
            yield kwargs


def _calls(root: MappingNode, key: str) -> Iterator[MappingNode]:
    """The ``kwargs`` of every data set that calls ``key``, once each."""
    for node in _nodes(entries(root).get("datasets", root)):
        call = entries(node)
        if getattr(call.get("key"), "value", None) == key and "init" in call:
            kwargs = entries(call["init"]).get("kwargs")
            if isinstance(kwargs, MappingNode):
                yield kwargs


def _nodes(root: Node) -> Iterator[Node]:
    """Every node below, once each, parents first."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += [child for _, child in steps(node)]


def _node(value: float | None) -> Node:
    return as_node(value, "a setting")
