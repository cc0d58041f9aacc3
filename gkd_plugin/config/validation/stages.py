"""The ``train`` section: one training, or stages that follow each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.validation.criterion import check_criterion
from gkd_plugin.config.validation.loaders import check_loader
from gkd_plugin.config.validation.models import has_teacher
from gkd_plugin.config.validation.optimizers import check_optimizer, check_scheduler
from gkd_plugin.config.validation.registries import registered_key
from gkd_plugin.config.validation.report import Report, at
from gkd_plugin.config.validation.roles import check_role
from gkd_plugin.config.validation.sections import check_count, check_keys, optional_section, required_section

__all__ = ["check_train"]


def check_train(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``train`` section."""
    train = required_section(report, "", plain, "train")
    if train is None:
        return
    for key in schema.EVERY_STAGE & set(train):
        check_count(report, at("train", key), train[key])
    roles = ("teacher", "student") if has_teacher(plain) else ("model",)
    numbers = sorted(int(match[1]) for key in train if (match := schema.STAGE_NAME.fullmatch(str(key))))
    if not numbers:
        _stage(report, "train", train, plain, roles, first=True, extra={*schema.EVERY_STAGE, "stage1"})
        return
    _stage_names(report, train, numbers, roles)
    for number in numbers:
        name = f"stage{number}"
        stage = optional_section(report, "train", train, name)
        if stage is not None:
            _stage(report, at("train", name), stage, plain, roles, first=number == numbers[0])


def _stage_names(report: Report, train: Mapping[Any, Any], numbers: list[int], roles: tuple[str, ...]) -> None:
    """With stages, torchdistill reads nothing else of ``train`` than a checkpoint path for each model."""
    stages = {f"stage{number}" for number in numbers}
    for key in train:
        if key in schema.STAGE:
            report.add(at("train", key), f"is not read where there are stages; put it into {', '.join(sorted(stages))}")
    check_keys(report, "train", train, stages | schema.STAGE | schema.EVERY_STAGE | {*roles})
    for role in roles:
        optional_section(report, "train", train, role, schema.STAGE_ROLE)
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        given = ", ".join(f"stage{number}" for number in numbers)
        report.add("train", f"stage{missing[0]} is missing; stages count from 1 without gaps, given: {given}")


def _stage(
    report: Report,
    path: str,
    stage: Mapping[Any, Any],
    plain: Mapping[str, Any],
    roles: tuple[str, ...],
    *,
    first: bool,
    extra: Collection[str] = (),
) -> None:
    """One stage; later stages may keep the data loaders and the optimizer of the one before."""
    _stage_keys(report, path, stage, roles, {*schema.STAGE, *roles, *extra})
    if "num_epochs" in stage:
        check_count(report, at(path, "num_epochs"), stage["num_epochs"])
    else:
        report.add(at(path, "num_epochs"), "missing; must be a whole number, 1 or more")
    for key in ("train_data_loader", "val_data_loader"):
        needed = first and key == "train_data_loader"
        loader = (required_section if needed else optional_section)(report, path, stage, key, schema.LOADER)
        if loader is not None:
            check_loader(report, at(path, key), loader, plain)
    for role in roles:
        section = required_section(report, path, stage, role, schema.ROLE)
        if section is not None:
            check_role(report, at(path, role), section, "teacher_model" if role == "teacher" else "student_model")
    check_optimizer(report, path, stage, first=first, teacher=len(roles) == 2)
    check_scheduler(report, path, stage)
    check_criterion(report, path, stage)
    for process in schema.PROCESSES:
        if process in stage:
            registered_key(report, at(path, process), stage[process], schema.process_registry(process))


def _stage_keys(
    report: Report, path: str, stage: Mapping[Any, Any], roles: tuple[str, ...], allowed: Collection[str]
) -> None:
    for key in ("teacher", "student", "model"):
        if key in stage and key not in roles:
            why = "no models.teacher_model" if roles == ("model",) else "a models.teacher_model"
            report.add(at(path, key), f"is not read where there is {why}; write {' and '.join(roles)}")
    check_keys(report, path, stage, {*allowed, *(key for key in ("teacher", "student", "model") if key in stage)})
