"""Checks of built models against every stage, before the first one trains.

torchdistill meets a stage when it begins, so that a misspelling in stage 2 would cost the whole of stage 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchdistill.losses.mid_level import SimpleLossWrapper
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin.box.hooks import check_module_path
from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.config.stages import Role, Stage
from gkd_plugin.errors import ConfigError, first_line, nearest, told_at
from gkd_plugin.losses import RefilledStage
from gkd_plugin.models import ProjectedStudent
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["check_forward", "check_hooks", "first_images"]

_WRAPPERS = {"refilled_teacher": RefilledTeacher, "projected_student": ProjectedStudent}
_MOVES = {"teacher_device", "teacher_dtype"}  # of the wrapper: a check changes nothing
_UPSTREAM_ONLY = re.compile(r"instance\(|\+|(.*\.)?-\d+(\..*)?$")
"""Paths beyond module names: 'instance(BatchNorm2d)', '+name' of a redesigned model, '-1' from a list's end."""


def check_hooks(stages: Sequence[Stage], teacher: nn.Module | None, student: nn.Module) -> None:
    """Checks every stage's ``forward_hook`` and ``frozen_modules`` against the models, and its losses against hooks.

    What an auxiliary wrapper that is not ours makes of a model is not known ahead and not checked.

    Raises:
        ConfigError: a path that does not exist, or one that a loss reads and nothing records.
    """
    for stage in stages:
        _check_paths(stage.student, student)
        roles = {"student": stage.student}
        if teacher is not None and stage.teacher is not None:
            _check_paths(stage.teacher, teacher)
            roles["teacher"] = stage.teacher
        _check_losses(stage, roles)


def _check_paths(role: Role, model: nn.Module) -> None:
    if role.wrapper is not None:
        if role.wrapper not in _WRAPPERS or role.section["auxiliary_model_wrapper"].get("sequential"):
            return
        kwargs = {key: value for key, value in role.wrapper_kwargs.items() if key not in _MOVES}
        with told_at(f"{role.path}."), torch.random.fork_rng(devices=[]):
            model = _WRAPPERS[role.wrapper](model, **kwargs)
    paths = {f"forward_hook.{io}": role.hooks(io) for io in ("input", "output")}
    if not role.section.get("sequential"):
        paths["frozen_modules"] = role.section.get("frozen_modules") or []
    for key, names in paths.items():
        for name in names:
            if not _UPSTREAM_ONLY.match(name):
                check_module_path(model, name, f"{role.path}.{key}")


def _check_losses(stage: Stage, roles: Mapping[str, Role]) -> None:
    """torchdistill's losses end in a bare KeyError in the first batch where what they read is not recorded."""
    with torchdistill_errors(stage.path), torch.random.fork_rng(devices=[]):
        criterion = get_high_level_loss(stage.criterion)
    losses = {name: term[0] for name, term in getattr(criterion, "term_dict", {}).items()}
    if isinstance(criterion, RefilledStage):
        losses = {f"stage {criterion.stage!r}": criterion, **losses}
    for name, loss in losses.items():
        for model, path, io in _reads(loss):
            if model not in roles:
                raise ConfigError(
                    f"{stage.path}.criterion: {name} reads the teacher, but there is no models.teacher_model"
                )
            recorded = roles[model].hooks(io)
            if path not in recorded and (path, io) != (".", "output"):
                raise ConfigError(
                    f"{roles[model].path}.forward_hook.{io}: {name} reads {path!r}, which is not listed; "
                    f"{nearest(path, recorded)}"
                )


def _reads(loss: Any) -> Iterator[tuple[str, str, str]]:
    """(model, module path, 'input' or 'output') of what a loss reads, as far as it shows that."""
    if isinstance(loss, SimpleLossWrapper):
        yield "teacher" if loss.is_input_from_teacher else "student", loss.input_module_path, loss.input_key
        if loss.target_module_path is not None:
            yield "teacher" if loss.is_target_from_teacher else "student", loss.target_module_path, loss.target_key
    elif hasattr(loss, "hooks"):
        yield from loss.hooks
    else:
        for model in ("student", "teacher"):
            path, io = (getattr(loss, f"{model}_module_{kind}", None) for kind in ("path", "io"))
            if isinstance(path, str) and isinstance(io, str):
                yield model, path, io


def first_images(dataset: Any) -> Tensor:
    """The first two images of a data set as a batch; random states stay as they were."""
    with torch.random.fork_rng(devices=[]):
        loader = DataLoader(Subset(dataset, range(min(2, len(dataset)))), batch_size=2)
        images: Tensor = next(iter(loader))[0]
    return images


@torch.no_grad()
def check_forward(where: str, model: Callable[[Tensor], Any], images: Tensor, accelerator: Accelerator) -> None:
    """Runs images through a model (in eval mode); random states stay as they were.

    Args:
        where: key path of the model.
        model: on the accelerator's device.
        images: ``[B, …]``.
        accelerator: whose device and precision are used.

    Raises:
        ConfigError: the model refuses the images (names the model, their shape, the reason, and where the model is
            built for one size, how to build it for this one).
    """
    try:
        with told_at(f"{where}: "), torch.random.fork_rng(devices=[]), accelerator.autocast():
            model(images.to(accelerator.device))
    except ConfigError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        reason = first_line(error) + _size_hint(model, images)
        raise ConfigError(f"{where}: cannot take images of shape {list(images.shape)}: {reason}") from error


def _size_hint(model: Any, images: Tensor) -> str:
    """Where timm's model is built for one size and the images have another."""
    cfg = getattr(getattr(model, "teacher", model), "pretrained_cfg", None) or {}
    size = list(images.shape[2:])
    if not cfg.get("fixed_input_size") or list(cfg.get("input_size", ())[1:]) == size:
        return ""
    given = size[0] if len(set(size)) == 1 else size
    return f" (its kwargs.img_size: {given} builds it for this size)"
