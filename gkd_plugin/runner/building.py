"""Builds what the stages of a YAML name: data loaders, the training box."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader

from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.checkpoints import read_weights
from gkd_plugin.runner.devices import Placement

__all__ = [
    "build_box",
    "build_test_loader",
    "section_name",
    "stage_configs",
    "told_as_config_error",
]


def stage_configs(train_config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage name → its section, in order; a single-stage config has one, ``train``.

    A stage without a loader of its own keeps that of the stage before, as torchdistill has it.
    """
    names = sorted((key for key in train_config if key.startswith("stage")), key=lambda key: int(key[5:]))
    stages = {name: dict(train_config[name]) for name in names} or {"train": dict(train_config)}
    loaders: dict[str, Any] = {}
    for stage in stages.values():
        loaders |= {key: stage[key] for key in ("train_data_loader", "val_data_loader") if stage.get(key)}
        stage.update(loaders)
    return stages


def section_name(stage: str) -> str:
    """Key path of a stage that :func:`stage_configs` gave."""
    return "train" if stage == "train" else f"train.{stage}"


def build_box(
    config: Mapping[str, Any],
    teacher: nn.Module | None,
    student: nn.Module,
    placement: Placement,
    accelerator: Accelerator,
) -> Any:
    """torchdistill's training or distillation box for the config.

    The box changes its configuration in place (it scales learning rates), so it gets a copy.

    Raises:
        ConfigError: torchdistill refuses the configuration.
    """
    train_config = copy.deepcopy(config["train"])
    if teacher is not None:
        _place_teacher(train_config, placement)
    common = (config["datasets"], train_config, accelerator.device, None, False, 1, accelerator)
    _check_stage_checkpoints(train_config)
    with told_as_config_error(section_name(next(iter(stage_configs(train_config))))):
        if teacher is None:
            return get_training_box(student, *common)
        return get_distillation_box(teacher, student, *common)


@contextmanager
def told_as_config_error(where: str) -> Iterator[None]:
    """Around torchdistill's building of a stage: what it raises is about the section at ``where``."""
    try:
        with told_at(f"{where}."):
            yield
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: torchdistill cannot build this stage: {reason}") from error


def build_test_loader(config: Mapping[str, Any], accelerator: Accelerator) -> Any:
    """The loader of ``test.test_data_loader``, prepared; ``None`` where the config has none."""
    section = (config.get("test") or {}).get("test_data_loader")
    if section is None:
        return None
    loader = build_data_loader(config["datasets"][section["dataset_id"]], section, False, accelerator)
    return accelerator.prepare(loader)


def _check_stage_checkpoints(train_config: Mapping[str, Any]) -> None:
    """Reads every stage's own ``src_ckpt`` safely before torchdistill unpickles it without restraint."""
    for name, stage in stage_configs(train_config).items():
        for role in ("teacher", "student", "model"):
            path = (stage.get(role) or {}).get("src_ckpt")
            if path is not None:
                read_weights(path, f"{section_name(name)}.{role}.src_ckpt")


def _place_teacher(train_config: Mapping[str, Any], placement: Placement) -> None:
    """Hands ``device.teacher`` and ``device.teacher_dtype`` to every stage's teacher wrapper, in place."""
    given = {
        "teacher": (placement.teacher and str(placement.teacher), "teacher_device"),
        "teacher_dtype": (placement.teacher_dtype, "teacher_dtype"),
    }
    for key, (value, argument) in given.items():
        for name, stage in stage_configs(train_config).items():
            wrapper = stage["teacher"].get("auxiliary_model_wrapper") or {}
            if value is not None and wrapper.get("key") != "refilled_teacher":
                raise ConfigError(
                    f"device.{key}: only the wrapper 'refilled_teacher' can be on a device or in a precision of its "
                    f"own; set {section_name(name)}.teacher.auxiliary_model_wrapper.key to it"
                )
            if value is not None:
                wrapper["kwargs"] = {argument: value, **(wrapper.get("kwargs") or {})}
    dtypes = {
        (((stage.get("teacher") or {}).get("auxiliary_model_wrapper") or {}).get("kwargs") or {}).get("teacher_dtype")
        for stage in stage_configs(train_config).values()
    }
    if len(dtypes) > 1:
        raise ConfigError(
            "train: the stages' teacher_dtype differ, but they share one teacher; device.teacher_dtype sets it for all"
        )
