"""The ``optimizer`` and ``scheduler`` sections of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.registries import check_registered
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import (
    check_count,
    check_flag,
    check_keys,
    optional_section,
    required_section,
)

__all__ = ["check_optimizer", "check_scheduler"]


def check_optimizer(report: Report, parent: str, stage: Mapping[Any, Any], *, first: bool, teacher: bool) -> None:
    """The optimizer of a stage: required in the first one, kept from the stage before otherwise."""
    from torch.optim import Optimizer
    from torchdistill.optim.registry import OPTIM_DICT

    module_wise = "module_wise_configs" if teacher else "module_wise_kwargs"  # each box reads its own
    optimizer = (required_section if first else optional_section)(
        report, parent, stage, "optimizer", {*schema.OPTIMIZER, module_wise}
    )
    if not optimizer:  # an empty section keeps the optimizer of the stage before
        if first and optimizer is not None:
            report.add(at(parent, "optimizer"), "is empty; give key and kwargs")
        return
    path = at(parent, "optimizer")
    kwargs = required_section(report, path, optimizer, "kwargs")
    check_registered(report, path, optimizer, OPTIM_DICT, base=Optimizer, supplied=1)
    lr = (kwargs or {}).get("lr", 0.0)
    if isinstance(lr, bool) or not isinstance(lr, (int, float, str, Tagged)):
        report.add(f"{path}.kwargs.lr", f"{shown(lr)} given; must be a number")
    if "grad_accum_step" in optimizer:
        check_count(report, f"{path}.grad_accum_step", optimizer["grad_accum_step"])
    bound = optimizer.get("max_grad_norm")
    if bound is not None and (
        isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < math.inf
    ):
        report.add(f"{path}.max_grad_norm", f"{shown(bound)} given; must be a number above 0, or null for no bound")
    check_flag(report, path, optimizer, "filters_params")
    for index, entry in enumerate(optimizer.get(module_wise) or []):
        _module_wise(report, f"{path}.{module_wise}.{index}", entry, teacher=teacher)


def _module_wise(report: Report, path: str, entry: object, *, teacher: bool) -> None:
    if not isinstance(entry, Mapping):
        report.add(path, f"{shown(entry)} given; must be a section with module and kwargs")
        return
    check_keys(report, path, entry, {"module", "kwargs", *(["is_teacher"] if teacher else [])})
    if not isinstance(entry.get("module"), str):
        report.add(at(path, "module"), f"{shown(entry.get('module'))} given; must be a module path")


def check_scheduler(report: Report, parent: str, stage: Mapping[Any, Any]) -> None:
    """The learning rate scheduler of a stage; there need not be one."""
    from torch.optim.lr_scheduler import LRScheduler
    from torchdistill.optim.registry import SCHEDULER_DICT

    if not stage.get("scheduler"):
        return
    scheduler = optional_section(report, parent, stage, "scheduler", schema.SCHEDULER)
    if scheduler is None:
        return
    path = at(parent, "scheduler")
    required_section(report, path, scheduler, "kwargs")
    check_registered(report, path, scheduler, SCHEDULER_DICT, base=LRScheduler, supplied=1)
    if "scheduling_step" in scheduler:
        check_count(report, f"{path}.scheduling_step", scheduler["scheduling_step"], least=0)
