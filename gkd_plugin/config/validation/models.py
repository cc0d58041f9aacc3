"""The ``models`` section, and checkpoint paths wherever they occur."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.registries import registered_key
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import check_flag, optional_section, required_section
from gkd_plugin.config.validation.signatures import check_arguments
from gkd_plugin.errors import nearest

__all__ = ["check_checkpoints", "check_models", "has_teacher"]


def has_teacher(plain: Mapping[str, Any]) -> bool:
    """Whether the config names a teacher model."""
    models = plain.get("models")
    return isinstance(models, Mapping) and models.get("teacher_model") is not None


def check_models(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``models`` section."""
    models = required_section(report, "", plain, "models", schema.MODELS)
    if models is None:
        return
    if "student_model" not in models and "model" not in models:
        report.add("models.student_model", "missing; name the model to train")
    for name in sorted(schema.MODELS & models.keys()):
        if name == "teacher_model" and models[name] is None:
            continue
        entry = optional_section(report, "models", models, name, schema.MODEL)
        if entry is not None:
            _model(report, at("models", name), entry)


def _model(report: Report, path: str, entry: Mapping[Any, Any]) -> None:
    check_checkpoints(report, path, entry)
    if "src_ckpt_classifier" in entry:
        _classifier(report, path, entry)
    for flag in ("quantized", "sync_bn"):
        check_flag(report, path, entry, flag)
    kwargs = required_section(report, path, entry, "kwargs")
    if entry.get("repo_or_dir") is not None:
        return
    part = _model_function(report, at(path, "key"), entry.get("key"), quantized=entry.get("quantized") is True)
    if part is None or kwargs is None:
        return
    check_arguments(report, at(path, "kwargs"), part, (), kwargs)
    if entry["key"] == "timm_model":
        _timm_name(report, at(path, "kwargs.model_name"), kwargs.get("model_name"))


_CLASSIFIERS = ("new", "extended", "centres")


def _classifier(report: Report, path: str, entry: Mapping[Any, Any]) -> None:
    value, where = entry["src_ckpt_classifier"], at(path, "src_ckpt_classifier")
    if value is not None and value not in _CLASSIFIERS:
        report.add(where, f"{shown(value)} given; {nearest(value, _CLASSIFIERS)}")
    elif value == "centres" and path == "models.teacher_model":
        report.add(where, "'centres' is how a student's classifier begins; the teacher's would be a random one")


def _model_function(report: Report, path: str, key: object, *, quantized: bool) -> Callable[..., Any] | None:
    """What torchdistill would call: torchvision's function of that name, otherwise the registered one."""
    from torchdistill.models.registry import MODEL_DICT
    from torchvision import models

    module = models.quantization if quantized else models
    listed = [name.removeprefix("quantized_") for name in models.list_models(module=module)]
    official = {name: getattr(module, name) for name in listed}
    held = vars(module).get(key) if isinstance(key, str) else None
    if held is not None and not callable(held):
        report.add(path, f"{key!r} is a module of torchvision, not a model; {nearest(key, official)}")
        return None
    if held is not None:
        function: Callable[..., Any] = held
        return function
    return registered_key(report, path, key, {**official, **MODEL_DICT})


def _timm_name(report: Report, path: str, name: object) -> None:
    import timm
    from timm.models import get_arch_name, is_model, parse_model_name

    if not isinstance(name, str) or parse_model_name(name)[0] or is_model(name):
        return
    report.add(path, f"timm has no model {name!r}; {nearest(get_arch_name(name), timm.list_models())}")


def check_checkpoints(report: Report, parent: str, section: Mapping[Any, Any]) -> None:
    """``src_ckpt`` must exist (torchdistill would go on with random weights); ``dst_ckpt`` must be a path."""
    for key in ("src_ckpt", "dst_ckpt"):
        value, path = section.get(key), at(parent, key)
        if value is None or isinstance(value, Tagged):
            continue
        if not isinstance(value, str) or not value:
            report.add(path, f"{shown(value)} given; must be the path of a file")
        elif key == "src_ckpt" and report.needs_checkpoints and not report.will_exist(value):
            report.add(path, f"no such file: {value}; train it first, or leave src_ckpt empty")
