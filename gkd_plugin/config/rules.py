"""What no table holds: rules of single sections, and what is built on trial.

Losses, optimizers, schedules and data loaders check what they are given: one of each is built, and thrown away.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torchdistill.losses import registry as losses
from torchdistill.models.registry import MODEL_DICT
from torchdistill.optim.registry import get_optimizer, get_scheduler
from torchvision import models as torchvision_models

from gkd_plugin.config.kinds import Kind, Report, bind, count, is_private, one_of
from gkd_plugin.config.stages import stage_names
from gkd_plugin.config.tree import Tagged, at, places, resolve_target
from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.models.timm_model import check_model_name, unknown_keyword

_STEPS = 1000
"""At most so many epochs of a schedule are tried."""
_LOADED: Mapping[str, Kind] = {"batch_size": count(), "num_workers": count(0)}


def datasets(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Objects, all of them: nothing would be built of anything else."""
    for key, given in section.items():
        if not isinstance(given, Tagged) and not is_private(key):
            report.refuse(at(path, key), given, "must be a data set, e.g. !import_call {key: …}")
    if all(is_private(key) for key in section):
        report.add(path, "is empty; name at least one data set")


def models(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """One of them is trained."""
    if not {"student_model", "model"} & section.keys():
        report.add(at(path, "student_model"), "missing; name the model to train")


def model(report: Report, path: str, entry: Mapping[Any, Any]) -> None:
    """What torchdistill would call: torchvision's function of that name, otherwise the registered one."""
    _checkpoint(report, path, entry)
    if entry.get("src_ckpt_classifier") == "extended" and not entry.get("src_ckpt"):
        report.add(at(path, "src_ckpt_classifier"), "'extended' given; needs the src_ckpt whose classifier it extends")
    if entry.get("repo_or_dir") is not None:
        return
    module = torchvision_models.quantization if entry.get("quantized") is True else torchvision_models
    names = [name.removeprefix("quantized_") for name in torchvision_models.list_models(module=module)]
    functions = {name: getattr(module, name) for name in names}
    functions |= {name: part for name, part in MODEL_DICT.items() if name not in vars(module)}
    key, kwargs = entry.get("key"), entry.get("kwargs")
    report.check(at(path, "key"), key, one_of(functions))
    if isinstance(key, str) and key in functions and report.is_clean(at(path, "kwargs")):
        bind(report, at(path, "kwargs"), functions[key], [], kwargs)
    if key == "timm_model" and isinstance(kwargs, Mapping) and isinstance(kwargs.get("model_name"), str):
        with report.trial(at(path, "kwargs.model_name")):
            check_model_name(kwargs["model_name"])
            if found := unknown_keyword(kwargs["model_name"], kwargs):
                report.add(at(path, f"kwargs.{found[0]}"), f"unknown argument; {found[1]}")


def _checkpoint(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """A ``src_ckpt`` must exist: torchdistill would go on with random weights."""
    name = section.get("src_ckpt") or ""
    if report.produced is None or not isinstance(name, str) or name.startswith(("http://", "https://")):
        return
    if name and not Path(name).is_file() and absolute(name) not in report.produced:
        report.add(at(path, "src_ckpt"), f"no such file: {name}; train it first, or leave src_ckpt empty")


def absolute(path: str) -> str:
    """The path of a checkpoint as it is compared with others."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute() keeps '..'


def loader(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Its data set must exist, and what torchdistill gives the DataLoader excludes some arguments."""
    given, sets = section.get("dataset_id"), report.tree.get("datasets")
    if isinstance(sets, Mapping) and given not in list(sets):
        text = "missing" if given is None else f"{given!r} is not in datasets"
        report.add(at(path, "dataset_id"), f"{text}; {nearest(given, map(str, sets))}")
    kwargs, where = section.get("kwargs"), at(path, "kwargs")
    if not isinstance(kwargs, Mapping):
        return
    names = ("sampler", "batch_sampler", "collate_fn")
    bind(report, where, DataLoader, [], kwargs, supplied=1, names=names, values=_LOADED)
    batches: dict[str, Any] = {"sampler": [0]}
    if section.get("batch_sampler") is not None:
        batches = {"batch_sampler": [[0]]}
        for key in sorted({"batch_size", "shuffle", "drop_last"} & kwargs.keys()):
            report.add(at(where, key), "cannot be given beside a batch_sampler; remove it")
    elif kwargs.get("shuffle"):
        report.add(at(where, "shuffle"), "excludes a sampler, and torchdistill always gives one; remove it")
    if report.is_clean(where) and not _holds_object(kwargs):
        with report.trial(where):
            DataLoader(range(1), **batches, **kwargs)  # type: ignore[arg-type]


def sampler(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """torchdistill calls the class itself: a name would not do."""
    target = section.get("class_or_func")
    if not isinstance(target, Tagged):
        example = "write class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}"
        report.refuse(at(path, "class_or_func"), target, example)
    elif target.tag == "!import_get":
        with contextlib.suppress(ConfigError):  # reported where all tags are
            bind(report, at(path, "kwargs"), resolve_target(target), [], section.get("kwargs"), supplied=1)


def role(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """``teacher``, ``student`` or ``model`` of a stage."""
    if "forward_proc" not in section:
        report.add(at(path, "forward_proc"), "missing; write forward_proc: 'forward_batch_only'")
    _checkpoint(report, path, section)
    redesign(report, path, section)


def redesign(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Modules that a redesigned model adds (``+name``) must be described."""
    steps, added = section.get("sequential"), section.get("adaptations") or {}
    for step in steps if isinstance(steps, list) and isinstance(added, Mapping) else []:
        if isinstance(step, str) and step.startswith("+") and step[1:] not in added:
            report.add(at(path, "sequential"), f"{step!r} is not in adaptations; {nearest(step[1:], added)}")


def sub_term(report: Report, path: str, term: Mapping[Any, Any]) -> None:
    """A loss of torch needs a wrapper that picks its inputs."""
    section = term.get("criterion")
    key = section.get("key") if isinstance(section, Mapping) else None
    is_low = key in [*losses.LOSS_DICT, *losses.LOW_LEVEL_LOSS_DICT] and key not in losses.MIDDLE_LEVEL_LOSS_DICT
    if is_low and not term.get("criterion_wrapper"):
        wrappers = nearest("", losses.LOSS_WRAPPER_DICT)
        report.add(at(path, "criterion_wrapper"), f"missing; {key!r} needs one to pick its inputs ({wrappers})")


def criterion(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Builds the loss on trial."""
    if report.is_clean(path) and not _holds_object(section):
        with report.trial(path):
            losses.get_high_level_loss(copy.deepcopy(section))


def optimizer(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Builds it on trial for one weight, or one in each of the module-wise groups."""
    report.optimizer = None
    if not report.is_clean(path) or _holds_object(section):
        return
    name = "module_wise_configs" if section.get("module_wise_configs") else "module_wise_kwargs"
    settings = [entry.get("kwargs") or {} for entry in section.get(name) or []]
    groups = [{**own, "params": [nn.Parameter(torch.zeros(2, 2))]} for own in settings]
    weights = nn.ModuleList([nn.ParameterList([torch.zeros(2, 2)])])
    kwargs = {"filters_params": section.get("filters_params", True), **copy.deepcopy(section["kwargs"])}
    with report.trial(path):
        report.optimizer = get_optimizer(groups or weights, section["key"], **kwargs)
        for index, own in enumerate(settings):
            for key in own.keys() - report.optimizer.defaults.keys():
                where = at(path, f"{name}.{index}.kwargs.{key}")
                report.add(where, f"unknown argument; {nearest(key, report.optimizer.defaults)}")


def stage(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Builds the schedule of the learning rate on trial; where an epoch is one step of it, it runs its course.

    A stage of ReFilled needs its own optimizer: an earlier one leaves out what was frozen there.
    """
    loss, where = section.get("criterion"), at(path, "optimizer")
    is_refilled = isinstance(loss, Mapping) and loss.get("key") == "refilled"
    if is_refilled and not section.get("optimizer") and report.is_clean(where):
        report.add(where, "missing; every stage with criterion 'refilled' needs its own")
    scheduler, where = section.get("scheduler"), at(path, "scheduler")
    if not scheduler or report.optimizer is None or not report.is_clean(where) or _holds_object(scheduler):
        return
    is_by_epoch = not scheduler.get("scheduling_step") and "post_epoch_process" not in section
    epochs = section["num_epochs"] if is_by_epoch and report.is_clean(at(path, "num_epochs")) else 1
    with report.trial(where):
        kwargs = copy.deepcopy(scheduler["kwargs"])
        schedule = get_scheduler(copy.deepcopy(report.optimizer), scheduler["key"], **kwargs)
        for _ in range(min(epochs, _STEPS)):
            schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) else []))


def stages(report: Report, path: str, train: Mapping[Any, Any]) -> None:
    """They count from 1 without gaps."""
    given = stage_names(train)
    for number in range(1, len(given) + 1):
        if f"stage{number}" not in given:
            names = ", ".join(given)
            report.add(path, f"stage{number} is missing; stages count from 1 without gaps, given: {names}")
            break


def _holds_object(value: object) -> bool:
    """Whether an object would be built anywhere in it."""
    return any(isinstance(part, Tagged) for _, part in places(value))
