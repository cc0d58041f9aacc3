"""Whether a student's classes are the teacher's own, by their names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode

from gkd_plugin.compare.obstacles import NOT_SAME
from gkd_plugin.compare.setting import shares_classes
from gkd_plugin.config.config import RunConfig
from gkd_plugin.config.yaml_construct import construct
from gkd_plugin.config.yaml_nodes import compose_value, dump, entries, put
from gkd_plugin.data import class_names_of
from gkd_plugin.runner.building import stage_configs
from gkd_plugin.runner.checkpoints import read_weights
from gkd_plugin.runner.models import TEACHER
from gkd_plugin.teacher import ClassMap

__all__ = ["different_classes"]


def different_classes(config: RunConfig) -> str | None:
    """Why a method that needs the teacher's own classes cannot serve the configuration, by the names of the classes.

    What the teacher wrapper's ``class_map`` and ``teacher_classes`` say goes first. Otherwise the teacher's names are
    those in its checkpoint, where this package wrote it, the student's those of its training set. Names that have
    nothing in common may only be spelt otherwise where the configuration's text says that the classes are the same.

    Returns:
        Empty where nothing is in the way, ``None`` where neither names nor the text show whether something is.
    """
    asked = _asked(config)
    if asked is not None:
        own = list(range(len(asked)))
        return _verdict(asked == own, set(asked) == set(own))
    ours, theirs = _names(config)
    says_so = shares_classes(config.root)
    if ours is None or theirs is None:
        return "" if says_so else None
    if not set(ours) & set(theirs):
        return "" if says_so else NOT_SAME
    return _verdict(ours == theirs, set(ours) == set(theirs))


def _verdict(are_same: bool, are_other_order: bool) -> str:
    return "" if are_same else "needs the same class order" if are_other_order else NOT_SAME


def _asked(config: RunConfig) -> list[int | None] | None:
    """For each class of the student the teacher's label of it, where the wrapper's class map says so."""
    kwargs, stage = _wrapper(config)
    class_map = kwargs.get("class_map", "auto")
    if class_map in ("auto", None):
        return None
    dataset = _training_set(config, stage)
    return list(ClassMap.of(dataset, class_map, _teacher_names(config, kwargs)).said or ())


def _names(config: RunConfig) -> tuple[list[str] | None, list[str] | None]:
    """Of the student's and of the teacher's classes, in the order of their labels."""
    kwargs, stage = _wrapper(config)
    return class_names_of(_training_set(config, stage)), _teacher_names(config, kwargs)


def _wrapper(config: RunConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The keywords of the teacher wrapper of the last stage, and that stage."""
    stage = list(stage_configs(config.tree["train"]).values())[-1]
    wrapper = (stage.get("teacher") or {}).get("auxiliary_model_wrapper") or {}
    return wrapper.get("kwargs") or {}, stage


def _teacher_names(config: RunConfig, kwargs: Mapping[str, Any]) -> list[str] | None:
    if kwargs.get("teacher_classes") is not None:
        return list(kwargs["teacher_classes"])
    path = str((config.tree["models"].get("teacher_model") or {}).get("src_ckpt") or "")
    written = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0  # a file written anew is read anew
    return _of_checkpoint(path if not written else str(Path(path).resolve()), written) if path else None


def _training_set(config: RunConfig, stage: Mapping[str, Any]) -> Any:
    section = compose_value("datasets: null", "datasets")
    put(section, "datasets", entries(config.root)["datasets"])
    return _built(dump(section))[stage["train_data_loader"]["dataset_id"]]


@functools.lru_cache(maxsize=8)
def _of_checkpoint(path: str, written: int) -> list[str] | None:  # noqa: ARG001
    return read_weights(path, f"{TEACHER}.src_ckpt").classes


@functools.lru_cache(maxsize=4)
def _built(datasets: str) -> dict[str, Any]:
    section = compose_value(datasets, "datasets")
    assert isinstance(section, MappingNode)
    built: dict[str, Any] = construct(section)["datasets"]
    return built
