"""Module paths that stages hook and losses read: all checked before the first stage trains.

torchdistill meets them stage by stage, so that a misspelling in stage 2 would cost the whole of stage 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torchdistill.losses.mid_level import SimpleLossWrapper
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin.box.hooks import check_module_path
from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.errors import ConfigError, nearest, told_at
from gkd_plugin.losses import RefilledStage, Term
from gkd_plugin.models.student import ProjectedStudent
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["check_hooks"]

_WRAPPERS = {"refilled_teacher": RefilledTeacher, "projected_student": ProjectedStudent}
_MOVES = {"teacher_device", "teacher_dtype"}  # of the wrapper: a check changes nothing

_UPSTREAM_ONLY = re.compile(r"\+|(.*\.)?-\d+(\..*)?$")  # '+name': of a redesigned model; '-1': from a list's end


def check_hooks(stages: Mapping[str, Mapping[str, Any]], teacher: nn.Module | None, student: nn.Module) -> None:
    """Checks every stage's ``forward_hook`` and ``frozen_modules`` against the models, and its losses against hooks.

    What an auxiliary wrapper that is not ours makes of a model is not known ahead and not checked.

    Args:
        stages: key path → section.
        teacher: the model itself; ``None`` without one.
        student: the model itself.

    Raises:
        ConfigError: a path that does not exist, or one that a loss reads and nothing records.
    """
    for where, stage in stages.items():
        student_role = "model" if teacher is None else "student"
        models = {student_role: _hooked(student, stage.get(student_role) or {}, f"{where}.{student_role}")}
        if teacher is not None:
            models["teacher"] = _hooked(teacher, stage.get("teacher") or {}, f"{where}.teacher")
        for role, model in models.items():
            if model is not None:
                for io, path in _hook_paths(stage, role):
                    check_module_path(model, path, f"{where}.{role}.forward_hook.{io}")
                for path in _frozen_paths(stage, role):
                    check_module_path(model, path, f"{where}.{role}.frozen_modules")
        _check_losses(stage, where, student_role, teacher is not None)


def _hooked(model: nn.Module, section: Mapping[str, Any], where: str) -> nn.Module | None:
    """What torchdistill would resolve the section's hook paths in; ``None`` where that cannot be known."""
    wrapper = section.get("auxiliary_model_wrapper") or {}
    if wrapper.get("key") is None:
        return model
    if wrapper["key"] not in _WRAPPERS or wrapper.get("sequential"):
        return None
    kwargs = {k: v for k, v in (wrapper.get("kwargs") or {}).items() if k not in _MOVES}
    with told_at(f"{where}."), torch.random.fork_rng(devices=[]):
        wrapped: nn.Module = _WRAPPERS[wrapper["key"]](model, **kwargs)
    return wrapped


def _hook_paths(stage: Mapping[str, Any], role: str) -> Iterator[tuple[str, str]]:
    """(io, module path) that the model's own modules must have."""
    for io, paths in ((stage.get(role) or {}).get("forward_hook") or {}).items():
        for path in paths or ():
            if not _UPSTREAM_ONLY.match(path):
                yield io, path


def _frozen_paths(stage: Mapping[str, Any], role: str) -> list[str]:
    """Module paths to freeze; torchdistill also takes 'instance(BatchNorm2d)'."""
    section = stage.get(role) or {}
    paths = [] if section.get("sequential") else section.get("frozen_modules") or []
    return [path for path in paths if not (path.startswith("instance(") or _UPSTREAM_ONLY.match(path))]


def _check_losses(stage: Mapping[str, Any], where: str, student_role: str, has_teacher: bool) -> None:
    """torchdistill's losses end in a bare KeyError in the first batch where what they read is not recorded."""
    with torchdistill_errors(where), torch.random.fork_rng(devices=[]):
        criterion = get_high_level_loss(stage["criterion"])
    terms = {name: term[0] for name, term in getattr(criterion, "term_dict", {}).items()}
    if isinstance(criterion, RefilledStage):
        terms = {f"stage {criterion.stage!r}": criterion, **terms}
    for name, loss in terms.items():
        for is_teacher, path, io in _reads(loss):
            if is_teacher and not has_teacher:
                raise ConfigError(f"{where}.criterion: {name} reads the teacher, but there is no models.teacher_model")
            role = "teacher" if is_teacher else student_role
            recorded = ((stage.get(role) or {}).get("forward_hook") or {}).get(io) or []
            if path not in recorded and (path, io) != (".", "output"):
                raise ConfigError(
                    f"{where}.{role}.forward_hook.{io}: {name} reads {path!r}, which is not listed; "
                    f"{nearest(path, recorded)}"
                )


def _reads(loss: Any) -> Iterator[tuple[bool, str, str]]:
    """(of the teacher?, module path, 'input' or 'output') of what a mid-level loss reads, as far as it shows that."""
    if isinstance(loss, SimpleLossWrapper):
        yield bool(loss.is_input_from_teacher), loss.input_module_path, loss.input_key
        if loss.target_module_path is not None:
            yield bool(loss.is_target_from_teacher), loss.target_module_path, loss.target_key
    elif isinstance(loss, RefilledStage | Term):
        for role, path, io in loss.hooks:
            yield role == "teacher", path, io
    else:
        for role in ("student", "teacher"):
            hook = [getattr(loss, f"{role}_module_{kind}", None) for kind in ("path", "io")]
            if all(isinstance(part, str) for part in hook):
                yield role == "teacher", str(hook[0]), str(hook[1])
