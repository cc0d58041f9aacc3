"""The parts of a run: models, data, box and cache, built from a configuration and checked against each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.data import ImageInput, class_names_of, normalisation_of
from gkd_plugin.runner.building import build_box, build_test_loader, section_name, stage_configs
from gkd_plugin.runner.classifier_start import is_asked_for, start_at_centres
from gkd_plugin.runner.compiling import compile_models
from gkd_plugin.runner.crd_check import check_crd
from gkd_plugin.runner.data_checks import check_data
from gkd_plugin.runner.devices import Placement
from gkd_plugin.runner.forward_check import check_forward, first_images
from gkd_plugin.runner.hook_checks import check_hooks
from gkd_plugin.runner.models import TEACHER, build_model, student_entry
from gkd_plugin.runner.ncm_readout import student_embedding_path

__all__ = ["Parts"]

logger = logging.getLogger(__name__)

_LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}
"""Keyword of a scheduler that says in how many epochs it runs its course."""


@dataclass
class Parts:
    """The built objects of a run; see :meth:`build`."""

    box: Any
    student: nn.Module
    student_path: str
    student_entry: Mapping[str, Any]
    num_classes: int | None
    stages: dict[str, int]
    val_freq: int
    test_loader: Any
    accelerator: Accelerator
    dst_ckpt: Path | None
    image_input: ImageInput
    class_names: list[str] | None
    cache: TeacherCache | None
    embedding_path: str | None

    @classmethod
    def build(
        cls, built: Mapping[str, Any], placement: Placement, accelerator: Accelerator, cache: TeacherCache | None
    ) -> Parts:
        """Builds and checks everything that the run needs; writes nothing.

        Args:
            built: the configuration with its data sets built.
            placement: devices and precision.
            accelerator: of the run.
            cache: of the teacher's answers, or ``None``.

        Raises:
            ConfigError: something cannot be built, or does not fit the rest.
        """
        where, entry = student_entry(built)
        student = build_model(where, entry)
        num_classes = _num_classes(student, entry)
        stages = stage_configs(built["train"])
        check_data(built, where, num_classes, stages)
        teacher_entry = built["models"].get("teacher_model")
        teacher = None if teacher_entry is None else build_model(TEACHER, teacher_entry)
        sections = {section_name(name): stage for name, stage in stages.items()}
        check_crd(sections, built["datasets"])
        check_hooks(sections, teacher, student)
        dataset = built["datasets"][next(iter(stages.values()))["train_data_loader"]["dataset_id"]]
        images = first_images(dataset)
        check_forward(where, student.to(accelerator.device).eval(), images, accelerator)
        if is_asked_for(entry):
            start_at_centres(where, student, _plain_loader(dataset, next(iter(stages.values()))), accelerator)
        destination = entry.get("dst_ckpt")
        if placement.channels_last:
            for model in filter(None, (student, teacher)):
                model.to(memory_format=torch.channels_last)
        box = build_box(cache.fix_views(built, sections) if cache else built, teacher, student, placement, accelerator)
        if teacher is not None:
            check_forward(TEACHER, box.teacher_model.eval(), images, accelerator)
        if cache is not None:
            cache.open(box, accelerator)
        compile_models(placement.compile, student, teacher)
        _warn_of_unread(built, where, entry)
        _warn_of_schedules(sections)
        return cls(
            box=box,
            student=student,
            student_path=where,
            student_entry=entry,
            num_classes=num_classes,
            stages={name: stage["num_epochs"] for name, stage in stages.items()},
            val_freq=built["train"].get("val_freq", 1),
            test_loader=build_test_loader(built, accelerator),
            accelerator=accelerator,
            dst_ckpt=None if destination is None else Path(destination),
            image_input=replace(
                normalisation_of(_last_training_set(built, stages)), size=(images.shape[-2], images.shape[-1])
            ),
            class_names=_names_of_all(num_classes, _last_training_set(built, stages)),
            cache=cache,
            embedding_path=student_embedding_path(entry, stages),
        )


def _num_classes(student: nn.Module, entry: Mapping[str, Any]) -> int | None:
    value = getattr(student, "num_classes", None) or (entry.get("kwargs") or {}).get("num_classes")
    return value if isinstance(value, int) and value > 0 else None


def _names_of_all(num_classes: int | None, dataset: Any) -> list[str] | None:
    """The names of the student's classes, where its training set has one for each."""
    names = class_names_of(dataset)
    return names if names is not None and len(names) == num_classes else None


def _plain_loader(dataset: Any, stage: Mapping[str, Any]) -> DataLoader[Any]:
    """The stage's training set in batches and workers like the stage's own."""
    kwargs = stage["train_data_loader"].get("kwargs") or {}
    return DataLoader(dataset, batch_size=kwargs.get("batch_size") or 128, num_workers=kwargs.get("num_workers", 0))


def _last_training_set(built: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> Any:
    return built["datasets"][list(stages.values())[-1]["train_data_loader"]["dataset_id"]]


def _warn_of_unread(built: Mapping[str, Any], where: str, entry: Mapping[str, Any]) -> None:
    """What torchdistill's scripts read and this runner does not (yet)."""
    if built.get("tracker"):
        logger.warning("tracker: not read by refilled; metrics.jsonl holds the figures")
    if entry.get("sync_bn"):
        logger.warning("%s.sync_bn: not read by refilled", where)


def _warn_of_schedules(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """A cycle that does not end with its stage leaves the learning rate somewhere, or takes it up again."""
    for section, stage in sections.items():
        scheduler, epochs = stage.get("scheduler") or {}, stage["num_epochs"]
        name = _LENGTHS.get(str(scheduler.get("key")), "")
        length = (scheduler.get("kwargs") or {}).get(name)
        if length is not None and not scheduler.get("scheduling_step") and length != epochs:
            logger.warning("%s.scheduler.kwargs.%s: %s, but the stage has %s epochs", section, name, length, epochs)
