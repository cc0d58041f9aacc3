"""The setting of a cell: what ``--overlap``, ``--ways``, ``--shots``, ``--tasks`` and ``--memory`` set in a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gkd_plugin.config.stages import student_entry
from gkd_plugin.config.tree import Tagged, walk
from gkd_plugin.data import overlap_classes
from gkd_plugin.errors import ConfigError, told_at

__all__ = [
    "Setting",
    "apply_setting",
    "is_few_shot",
    "is_incremental",
    "keep_all_samples",
    "training_memory",
    "training_shots",
]

_OVERLAP = "gkd_plugin.data.overlap_subset"
_FEW_SHOT = "gkd_plugin.data.few_shot_task"
_INCREMENTAL = "gkd_plugin.data.incremental_subset"
_BALANCED = "ClassBalancedBatchSampler"

Tree = dict[str, Any]


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


def apply_setting(tree: Tree, setting: Setting, task: int | None = None) -> None:
    """Sets what the setting says in a configuration, in place.

    Args:
        tree: the configuration.
        setting: the setting.
        task: number of the few-shot task; ``None`` leaves it.

    Raises:
        ConfigError: the configuration has nothing to set, or cannot have it so.
    """
    if setting.overlap is not None:
        _set_overlap(tree, setting.overlap)
    few_shot = {"ways": setting.ways, "shots": setting.shots, "task": task}
    _set_few_shot(tree, {key: value for key, value in few_shot.items() if value is not None})
    if setting.memory is not None:
        _set_memory(tree, setting.memory, "--memory")
        if setting.memory == 0:  # only the new classes have samples
            _balance(tree, min(kwargs["new"] for kwargs in _with_memory(tree)))


def keep_all_samples(tree: Tree) -> None:
    """Joint training: every training ``incremental_subset`` keeps all samples of the old classes, in place.

    Raises:
        ConfigError: there is none.
    """
    _set_memory(tree, None, "memory")


def is_few_shot(tree: Tree) -> bool:
    """Whether the student learns few-shot tasks."""
    return next(_calls(tree, _FEW_SHOT), None) is not None


def is_incremental(tree: Tree) -> bool:
    """Whether the student's first classes are the teacher's own, as those of an ``incremental_subset`` are."""
    return next(_calls(tree, _INCREMENTAL), None) is not None


def training_memory(tree: Tree) -> int | None:
    """The smallest memory of an ``incremental_subset``; ``None`` where all samples are kept, or there is none."""
    return min((kwargs["memory"] for kwargs in _with_memory(tree)), default=None)


def training_shots(tree: Tree) -> int | None:
    """The smallest number of shots of a support set; ``None`` where there is none."""
    return min((kwargs["shots"] for kwargs in _calls(tree, _FEW_SHOT) if kwargs.get("role") == "support"), default=None)


def _set_overlap(tree: Tree, overlap: float) -> None:
    found = [kwargs for kwargs in _calls(tree, _OVERLAP) if kwargs.get("role") == "student"]
    if not found:
        raise ConfigError(f"--overlap: no data set is a {_OVERLAP} with role 'student', so there is no overlap to set")
    for kwargs in found:
        kwargs.pop("shift", None)
        kwargs["overlap"] = overlap / 100
        with told_at(f"--overlap {overlap:g}: "):  # whether there are so many classes shows when it is built
            overlap_classes(kwargs["num_classes"], "student", overlap=kwargs["overlap"])


def _set_few_shot(tree: Tree, values: Mapping[str, int]) -> None:
    """Sets them in every task; ``shots: 0``, which leaves no image to a support set cut elsewhere, stays."""
    if not values:
        return
    found = list(_calls(tree, _FEW_SHOT))
    if not found:
        options = ", ".join("--tasks" if key == "task" else f"--{key}" for key in values)
        raise ConfigError(f"{options}: no data set is a {_FEW_SHOT}, so there is nothing to set")
    for kwargs in found:
        kwargs |= {key: value for key, value in values.items() if key != "shots" or kwargs.get("shots") != 0}
    if "ways" in values:
        student = student_entry(tree)[1]
        before = student["kwargs"].get("num_classes")
        student["kwargs"] = {**student["kwargs"], "num_classes": values["ways"]}
        _balance(tree, values["ways"], before)


def _set_memory(tree: Tree, memory: int | None, where: str) -> None:
    found = list(_with_memory(tree))
    if not found:
        raise ConfigError(f"{where}: no data set is a {_INCREMENTAL} with a memory, so there is none to set")
    for kwargs in found:
        kwargs["memory"] = memory


def _balance(tree: Tree, present: int, before: int | None = None) -> None:
    """Balanced batches have no more classes than have samples, and stay as large as before.

    Batches that held all of the classes that there were ``before`` hold all, with as many samples of each.
    """
    for sampler in walk(tree["train"]):
        if isinstance(sampler, dict) and sampler.get("key") == _BALANCED and "kwargs" in sampler:
            kwargs = sampler["kwargs"]
            classes, samples = kwargs["classes_per_batch"], kwargs["samples_per_class"]
            if classes > present:
                kwargs |= {"classes_per_batch": present, "samples_per_class": max(1, classes * samples // present)}
            elif classes == before:
                kwargs["classes_per_batch"] = present


def _with_memory(tree: Tree) -> list[Tree]:
    """The incremental subsets that keep a memory; ``memory: null`` is a test set, or joint training."""
    return [kwargs for kwargs in _calls(tree, _INCREMENTAL) if kwargs.get("memory") is not None]


def _calls(tree: Tree, key: str) -> Iterator[Tree]:
    """The ``kwargs`` of every data set that calls ``key``, once each."""
    for call in walk(tree["datasets"]):
        if isinstance(call, Tagged) and isinstance(call.value, dict) and call.value.get("key") == key:
            kwargs = (call.value.get("init") or {}).get("kwargs")
            if isinstance(kwargs, dict):
                yield kwargs
