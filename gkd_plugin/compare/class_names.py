"""Whether a student's classes are the teacher's own, by their names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode

from gkd_plugin.compare.obstacles import NOT_SAME
from gkd_plugin.compare.setting import shares_classes
from gkd_plugin.data import class_names_of
from gkd_plugin.runner.building import stage_configs
from gkd_plugin.runner.checkpoints import read_weights
from gkd_plugin.runner.config import RunConfig
from gkd_plugin.runner.models import TEACHER
from gkd_plugin.runner.yaml_construct import construct
from gkd_plugin.runner.yaml_nodes import compose_value, dump, entries, put

__all__ = ["are_compared", "different_classes"]


def different_classes(config: RunConfig) -> str:
    """Why a method that needs the teacher's own classes cannot serve the configuration, by the names of the classes.

    The teacher's are in its checkpoint, where this package wrote it, the student's in its training set. Names that have
    nothing in common may only be spelt otherwise where the configuration's text says that the classes are the same.

    Returns:
        Empty where nothing is in the way, or the names are not known.
    """
    ours, theirs = _names(config)
    if ours is None or theirs is None or ours == theirs:
        return ""
    if not set(ours) & set(theirs):
        return "" if shares_classes(config.root) else NOT_SAME
    return "needs the same class order" if set(ours) == set(theirs) else NOT_SAME


def are_compared(config: RunConfig) -> bool:
    """Whether anything shows if the classes are the same: the configuration's text, or names on both sides."""
    return shares_classes(config.root) is not None or None not in _names(config)


def _names(config: RunConfig) -> tuple[list[str] | None, list[str] | None]:
    """Of the student's and of the teacher's classes, in the order of their labels."""
    path = (config.plain["models"].get("teacher_model") or {}).get("src_ckpt")
    theirs = None if path is None else _of_checkpoint(Path(path).resolve(), Path(path).stat().st_mtime_ns)
    last = list(stage_configs(config.plain["train"]).values())[-1]
    section = compose_value("datasets: null", "datasets")
    put(section, "datasets", entries(config.root)["datasets"])
    assert isinstance(section, MappingNode)
    return _of_training_set(dump(section), last["train_data_loader"]["dataset_id"]), theirs


@functools.lru_cache(maxsize=8)
def _of_checkpoint(path: Path, written: int) -> list[str] | None:  # noqa: ARG001  # a file written anew is read anew
    return read_weights(path, f"{TEACHER}.src_ckpt").classes


@functools.lru_cache(maxsize=64)
def _of_training_set(datasets: str, dataset_id: str) -> list[str] | None:
    section: Any = compose_value(datasets, "datasets")
    return class_names_of(construct(section)["datasets"][dataset_id])
