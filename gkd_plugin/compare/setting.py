"""What ``--overlap``, ``--ways``, ``--shots``, ``--tasks`` and ``--memory`` set, and why a method cannot serve it."""

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_plugin.compare.method import Method
from gkd_plugin.compare.sizes import training_set
from gkd_plugin.config.config import RunConfig
from gkd_plugin.config.stages import names_weights, stages_of, student_entry
from gkd_plugin.config.tree import Tagged, walk
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.models import TEACHER
from gkd_plugin.runner.weights import read_weights
from gkd_plugin.teacher import ClassMap

logger = logging.getLogger(__name__)

_OVERLAP = "gkd_plugin.data.overlap_subset"
_FEW_SHOT = "gkd_plugin.data.few_shot_task"
_INCREMENTAL = "gkd_plugin.data.incremental_subset"
_UNLABELLED = "gkd_plugin.data.with_unlabelled"
NOT_SAME = "needs the same classes"
_REASONS = {"same": "", "reordered": "needs the same class order", "different": NOT_SAME}

Tree = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One column of the comparison; ``None`` leaves the configuration as it is."""

    overlap: float | None = None  # share of classes in common, in per cent
    ways: int | None = None  # classes of a few-shot task
    shots: int | None = None  # labelled images of each
    memory: int | None = None  # exemplars of each old class

    @property
    def name(self) -> str:
        """For folders."""
        return "_".join(f"{key}{value:g}" for key, value in self._given.items()) or "as_configured"

    @property
    def title(self) -> str:
        """For tables."""
        texts = {"overlap": "overlap {:g} %", "ways": "{}-way", "shots": "{}-shot", "memory": "memory {}"}
        return " ".join(texts[key].format(value) for key, value in self._given.items()) or "as configured"

    @property
    def _given(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


def apply_setting(tree: Tree, setting: Setting, task: int | None = None) -> None:
    """Sets what the setting says, and the number of the few-shot task, in a configuration in place."""
    if setting.overlap is not None:
        students = [kwargs for kwargs in _calls(tree, _OVERLAP) if kwargs.get("role") == "student"]
        for kwargs in _needed("--overlap", students, f"{_OVERLAP} with role 'student'"):
            kwargs.pop("shift", None)
            kwargs["overlap"] = setting.overlap / 100
    few_shot = {"ways": setting.ways, "shots": setting.shots, "task": task}
    if values := {key: value for key, value in few_shot.items() if value is not None}:
        options = ", ".join("--tasks" if key == "task" else f"--{key}" for key in values)
        for kwargs in _needed(options, _calls(tree, _FEW_SHOT), _FEW_SHOT):
            # ``shots: 0``, which leaves no image to a support set cut elsewhere, stays
            kwargs |= {key: value for key, value in values.items() if key != "shots" or kwargs.get("shots") != 0}
    if setting.ways is not None:
        student = student_entry(tree)[1]
        before = student["kwargs"].get("num_classes")
        student["kwargs"] = {**student["kwargs"], "num_classes": setting.ways}
        _balance(tree, setting.ways, before)
    if setting.memory is not None:
        found = _needed("--memory", with_memory(tree), f"{_INCREMENTAL} with a memory")
        for kwargs in found:
            kwargs["memory"] = setting.memory
        if setting.memory == 0:  # only the new classes have samples
            _balance(tree, min(kwargs["new"] for kwargs in found))


def _needed(option: str, found: Iterable[Tree], what: str) -> list[Tree]:
    needed = list(found)
    if not needed:
        raise ConfigError(f"{option}: no data set is a {what}, so there is nothing to set")
    return needed


def is_incremental(tree: Tree) -> bool:
    """Whether the student's first classes are the teacher's own, as those of an ``incremental_subset`` are."""
    return next(_calls(tree, _INCREMENTAL), None) is not None


def _balance(tree: Tree, present: int, before: int | None = None) -> None:
    """Balanced batches have no more classes than have samples, and stay as large as before."""
    for sampler in walk(tree["train"]):
        if isinstance(sampler, dict) and sampler.get("key") == "ClassBalancedBatchSampler" and "kwargs" in sampler:
            kwargs = sampler["kwargs"]
            classes, samples = kwargs["classes_per_batch"], kwargs["samples_per_class"]
            if classes > present:
                kwargs |= {"classes_per_batch": present, "samples_per_class": max(1, classes * samples // present)}
            elif classes == before:  # they held all classes, and still do, with as many samples of each
                kwargs["classes_per_batch"] = present


def with_memory(tree: Tree) -> list[Tree]:
    """Keywords of the incremental subsets that keep a memory; ``memory: null`` is a test set, or joint training."""
    return [kwargs for kwargs in _calls(tree, _INCREMENTAL) if kwargs.get("memory") is not None]


def _calls(tree: Tree, key: str) -> Iterator[Tree]:
    """The ``kwargs`` of every data set that calls ``key``, once each."""
    for call in walk(tree["datasets"]):
        match call:
            case Tagged(value={"key": found, "init": {"kwargs": dict() as kwargs}}) if found == key:
                yield kwargs


def cannot_be_made(method: Method, tree: Tree) -> str:
    """Why the method has nothing to work with in the configuration; empty where it has."""
    if not names_weights(student_entry(tree)[1]):
        if method.student == "untrained":
            return "is the same as ce: random weights"
        if method.of == "student":
            return "needs a student with trained weights"
    has_one = len(stages_of(tree)) == 1
    return "needs both stages" if has_one and len(method.stages) > 1 and not method.is_as_configured else ""


def obstacle(method: Method, config: RunConfig) -> str:
    """Why the method cannot serve the configuration of its cell; empty where nothing is in the way."""
    if method.classes == "same" and not method.has_trained_teacher:
        if reason := different_classes(config):
            return reason
        if reason is None:
            unknown = "nothing shows whether the student's classes are the teacher's, in the same order"
            looked = "no overlap_subset, no names of classes on both sides"
            logger.warning("%s: %s (%s); they are taken to be", method.name, unknown, looked)
    if method.classes == "incremental" and not is_incremental(config.tree):
        return "needs old and new classes"
    has_no_memory = any(kwargs["memory"] == 0 for kwargs in with_memory(config.tree))
    refilled = [] if method.probe else [stage for stage in config.stages if stage.kind is not None]
    if has_no_memory and (refilled or method.probe == "ncm"):
        return "needs a sample of each class"
    wrappers = [(stage.loader.get("dataset_wrapper") or {}).get("key") for stage in config.stages]
    if "CRDDatasetWrapper" in wrappers and next(_calls(config.tree, _UNLABELLED), None) is not None:
        return "needs a label of each image"
    tasks = [(kwargs.get("role"), kwargs.get("shots")) for kwargs in _calls(config.tree, _FEW_SHOT)]
    paired = [stage for stage in refilled if stage.kind in ("embedding", "joint")]
    has_no_pairs = any(stage.batch_sampler.get("samples_per_class", 1) == 1 for stage in paired)
    return "needs two shots or ClassBalancedBatchSampler" if has_no_pairs and ("support", 1) in tasks else ""


def different_classes(config: RunConfig) -> str | None:
    """Why a method for the teacher's own classes cannot serve the configuration; ``None`` where nothing shows it.

    The teacher wrapper's ``class_map`` goes first. Then the names decide: the teacher's in ``teacher_classes`` or in
    its checkpoint, where this package wrote it, the student's in its training set. Names that have nothing in common
    may be spelt otherwise where the training set says that the classes are the teacher's.
    """
    stage, teacher = config.stages[-1], config.tree["models"]["teacher_model"]
    kwargs = stage.teacher.wrapper_kwargs if stage.teacher else {}
    theirs = kwargs.get("teacher_classes") or _trained_classes(teacher)
    size, written = (teacher.get("kwargs") or {}).get("num_classes"), kwargs.get("class_map", "auto")
    class_map = None if written == "auto" else written  # null: nothing is refused
    found = ClassMap.of(training_set(config.tree, stage), class_map, theirs, size)
    if found.relation is not None:
        return _REASONS[found.relation]
    has_other_names = bool(found.student_names and theirs)
    has_other_size = (student_entry(config.tree)[1].get("kwargs") or {}).get("num_classes") != size
    return NOT_SAME if has_other_names or has_other_size or list(_calls(config.tree, _FEW_SHOT)) else None


def _trained_classes(teacher: Mapping[str, Any]) -> list[str] | None:
    """The classes that the teacher's checkpoint names; ``None`` where it has no file, or the file names none."""
    path = str(teacher.get("src_ckpt") or "")
    written = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0  # a file written anew is read anew
    return _of_checkpoint(path, written) if path else None


@functools.lru_cache(maxsize=8)
def _of_checkpoint(path: str, written: int) -> list[str] | None:  # noqa: ARG001
    return read_weights(path, f"{TEACHER}.src_ckpt").classes
