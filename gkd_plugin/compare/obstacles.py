"""Why a method cannot serve a setting: told in the table, not a failure."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_plugin.compare.cell import is_trained
from gkd_plugin.compare.method import Method
from gkd_plugin.compare.setting import is_few_shot, is_incremental, training_memory, training_shots
from gkd_plugin.compare.sizes import training_set
from gkd_plugin.config.config import RunConfig
from gkd_plugin.config.stages import student_entry
from gkd_plugin.runner.models import TEACHER
from gkd_plugin.runner.weights import read_weights
from gkd_plugin.teacher import ClassMap

__all__ = ["different_classes", "obstacle", "untrained_student"]

logger = logging.getLogger(__name__)

NOT_SAME = "needs the same classes"
_REASONS = {"same": "", "reordered": "needs the same class order", "different": NOT_SAME}


def untrained_student(method: Method, tree: dict[str, Any]) -> str:
    """Why a method that is about a student's trained weights has nothing to do; empty where it has.

    Args:
        method: the method.
        tree: the configuration that the cells are made from.
    """
    if not (method.student == "untrained" or method.of == "student") or is_trained(tree):
        return ""
    return (
        "is the same as ce: random weights" if method.student == "untrained" else "needs a student with trained weights"
    )


def obstacle(method: Method, config: RunConfig) -> str:
    """Why the method cannot serve the configuration of its cell; empty where nothing is in the way.

    Warns of a method for the teacher's own classes where nothing shows whether the student's are these.

    Raises:
        ConfigError: the training set cannot be built, or the classes cannot be what the configuration says.
    """
    if method.classes == "same" and (reason := _of_classes(method, config)):
        return reason
    if method.classes == "incremental" and not is_incremental(config.tree):
        return "needs old and new classes"
    refilled = [] if method.probe else [stage for stage in config.stages if stage.kind is not None]
    if training_memory(config.tree) == 0 and (refilled or method.probe == "ncm"):
        return "needs a sample of each class"
    has_no_pairs = [stage for stage in refilled if stage.batch_sampler.get("samples_per_class", 1) == 1]
    if training_shots(config.tree) == 1 and any(stage.kind in ("embedding", "joint") for stage in has_no_pairs):
        return "needs two shots or ClassBalancedBatchSampler"
    return ""


def _of_classes(method: Method, config: RunConfig) -> str:
    reason = different_classes(config)
    if reason is None:
        logger.warning(
            "%s: nothing shows whether the student's classes are the teacher's, in the same order (no overlap_subset, "
            "no names of classes on both sides); they are taken to be",
            method.name,
        )
    return reason or ""


def different_classes(config: RunConfig) -> str | None:
    """Why a method that needs the teacher's own classes cannot serve the configuration.

    The teacher wrapper's ``class_map`` goes first. Then the names decide: the teacher's in ``teacher_classes`` or in
    its checkpoint, where this package wrote it, the student's in its training set. Names that have nothing in common
    may be spelt otherwise where the training set says that the classes are the teacher's.

    Returns:
        Empty where nothing is in the way, ``None`` where nothing shows it.
    """
    stage, teacher = config.stages[-1], config.tree["models"]["teacher_model"]
    kwargs = stage.teacher.wrapper_kwargs if stage.teacher else {}
    dataset = training_set(config.tree, stage)
    theirs = kwargs.get("teacher_classes") or _trained_classes(teacher)
    size, written = (teacher.get("kwargs") or {}).get("num_classes"), kwargs.get("class_map", "auto")
    found = ClassMap.of(dataset, None if written == "auto" else written, theirs, size)  # null: nothing is refused
    relation, has_other_names = found.relation, bool(found.student_names and theirs)
    has_other_size = (student_entry(config.tree)[1].get("kwargs") or {}).get("num_classes") != size
    if relation is None and (has_other_names or has_other_size or is_few_shot(config.tree)):
        return NOT_SAME
    return None if relation is None else _REASONS[relation]


def _trained_classes(teacher: Mapping[str, Any]) -> list[str] | None:
    """The classes that the teacher's checkpoint names; ``None`` where it has no file, or the file names none."""
    path = str(teacher.get("src_ckpt") or "")
    written = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0  # a file written anew is read anew
    return _of_checkpoint(path if not written else str(Path(path).resolve()), written) if path else None


@functools.lru_cache(maxsize=8)
def _of_checkpoint(path: str, written: int) -> list[str] | None:  # noqa: ARG001
    return read_weights(path, f"{TEACHER}.src_ckpt").classes
