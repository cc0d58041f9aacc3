"""The parts of a run: models, data, box and cache, built from a configuration and checked against each other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader

from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import Stage, stages_of, student_embedding, student_entry
from gkd_plugin.data import ImageInput, class_names_of, normalisation_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.checks import check_forward, check_hooks, first_images
from gkd_plugin.runner.data_checks import check_data
from gkd_plugin.runner.devices import Placement
from gkd_plugin.runner.models import TEACHER, build_model, start_at_centres
from gkd_plugin.runner.weights import read_weights

__all__ = ["Parts", "build_box", "build_test_loader", "compile_models"]

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """The built objects of a run; see :meth:`build`."""

    stages: list[Stage]
    box: Any
    student: nn.Module
    student_path: str
    student_entry: Mapping[str, Any]
    num_classes: int | None
    class_names: list[str] | None
    image_input: ImageInput
    embedding_path: str | None
    val_freq: int
    test_loader: Any
    accelerator: Accelerator
    cache: TeacherCache | None

    @classmethod
    def build(
        cls, built: Mapping[str, Any], placement: Placement, accelerator: Accelerator, cache: TeacherCache | None
    ) -> Parts:
        """Builds and checks everything that the run of a built configuration needs; writes nothing.

        Raises:
            ConfigError: something cannot be built, or does not fit the rest.
        """
        stages = stages_of(built)
        first, last = stages[0].dataset(built), stages[-1].dataset(built)
        where, entry = student_entry(built)
        student = build_model(where, entry)
        num_classes = _num_classes(student, entry)
        check_data(built, where, num_classes, stages)
        teacher_entry = built["models"].get("teacher_model")
        teacher = None if teacher_entry is None else build_model(TEACHER, teacher_entry)
        check_hooks(stages, teacher, student)
        images = first_images(first)
        check_forward(where, student.to(accelerator.device).eval(), images, accelerator)
        if entry.get("src_ckpt_classifier") == "centres":
            start_at_centres(where, student, _plain_loader(first, stages[0]), accelerator)
        if placement.channels_last:
            for model in filter(None, (student, teacher)):
                model.to(memory_format=torch.channels_last)
        if cache is not None:
            built = cache.fix_views(built, {stage.path: stage.section for stage in stages})
        box = build_box(built, teacher, student, placement, accelerator)
        if teacher is not None:
            check_forward(TEACHER, box.teacher_model.eval(), images, accelerator)
        if cache is not None:
            cache.open(box, accelerator)
        compile_models(placement.compile, student, teacher)
        for warning in _warnings(built, stages):
            logger.warning("%s", warning)
        return cls(
            stages=stages,
            box=box,
            student=student,
            student_path=where,
            student_entry=entry,
            num_classes=num_classes,
            class_names=_names_of_all(num_classes, last),
            image_input=replace(normalisation_of(last), size=(images.shape[-2], images.shape[-1])),
            embedding_path=student_embedding(built),
            val_freq=built["train"].get("val_freq", 1),
            test_loader=build_test_loader(built, accelerator),
            accelerator=accelerator,
            cache=cache,
        )


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
    stages = stages_of({"train": train_config})
    if teacher is not None:
        _place_teacher(stages, placement)
    for role in (role for stage in stages for role in stage.roles):
        if role.section.get("src_ckpt") is not None:  # read safely, before torchdistill unpickles it
            read_weights(role.section["src_ckpt"], f"{role.path}.src_ckpt")
    common = (config["datasets"], train_config, accelerator.device, None, False, 1, accelerator)
    with torchdistill_errors(stages[0].path):
        if teacher is None:
            return get_training_box(student, *common)
        return get_distillation_box(teacher, student, *common)


def _place_teacher(stages: Sequence[Stage], placement: Placement) -> None:
    """Hands ``device.teacher`` and ``device.teacher_dtype`` to every stage's teacher wrapper, in place."""
    given = {
        "teacher": ("teacher_device", placement.teacher_device and str(placement.teacher_device)),
        "teacher_dtype": ("teacher_dtype", placement.teacher_dtype),
    }
    for key, (argument, value) in given.items():
        for stage in stages if value is not None else ():
            if stage.teacher is None or stage.teacher.wrapper != "refilled_teacher":
                raise ConfigError(
                    f"device.{key}: only the wrapper 'refilled_teacher' can have a device or precision of its own; set "
                    f"{stage.path}.teacher.auxiliary_model_wrapper.key to it"
                )
            wrapper = stage.teacher.section["auxiliary_model_wrapper"]
            wrapper["kwargs"] = {argument: value, **stage.teacher.wrapper_kwargs}
    if len({stage.teacher and stage.teacher.wrapper_kwargs.get("teacher_dtype") for stage in stages}) > 1:
        raise ConfigError(
            "train: the stages' teacher_dtype differ, but they share one teacher; device.teacher_dtype sets it for all"
        )


def build_test_loader(config: Mapping[str, Any], accelerator: Accelerator) -> Any:
    """The loader of ``test.test_data_loader``, prepared; ``None`` where the config has none."""
    section = (config.get("test") or {}).get("test_data_loader")
    if section is None:
        return None
    loader = build_data_loader(config["datasets"][section["dataset_id"]], section, False, accelerator)
    return accelerator.prepare(loader)


def compile_models(which: str | None, student: nn.Module, teacher: nn.Module | None) -> None:
    """``torch.compile`` in place for 'student', 'teacher' or 'both': names, hooks and checkpoints stay the same."""
    for name, model in (("student", student), ("teacher", teacher)):
        if which in (name, "both") and model is not None:
            logger.info("torch.compile: the first batches of the %s may take minutes", name)
            model.compile()


def _num_classes(student: nn.Module, entry: Mapping[str, Any]) -> int | None:
    value = getattr(student, "num_classes", None) or (entry.get("kwargs") or {}).get("num_classes")
    return value if isinstance(value, int) and value > 0 else None


def _names_of_all(num_classes: int | None, dataset: Any) -> list[str] | None:
    """The names of the student's classes, where its training set has one for each."""
    names = class_names_of(dataset)
    return names if names is not None and len(names) == num_classes else None


def _plain_loader(dataset: Any, stage: Stage) -> DataLoader[Any]:
    """A data set in batches and workers like the stage's own."""
    kwargs = stage.loader.get("kwargs") or {}
    return DataLoader(dataset, batch_size=kwargs.get("batch_size") or 128, num_workers=kwargs.get("num_workers", 0))


def _warnings(built: Mapping[str, Any], stages: Sequence[Stage]) -> Iterator[str]:
    """What this runner does not read, and schedulers whose cycle does not end with their stage."""
    where, entry = student_entry(built)
    if built.get("tracker"):
        yield "tracker: not read by refilled; metrics.jsonl holds the figures"
    if entry.get("sync_bn"):
        yield f"{where}.sync_bn: not read by refilled"
    for stage in stages:
        scheduler = stage.section.get("scheduler") or {}
        name = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}.get(str(scheduler.get("key")), "")
        length = (scheduler.get("kwargs") or {}).get(name)
        if length is not None and not scheduler.get("scheduling_step") and length != stage.epochs:
            yield f"{stage.path}.scheduler.kwargs.{name}: {length}, but the stage has {stage.epochs} epochs"
