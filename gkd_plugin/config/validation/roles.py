"""``teacher``, ``student`` or ``model`` in a stage: forward process, hooks, redesign, wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.validation.models import check_checkpoints
from gkd_plugin.config.validation.registries import check_registered, registered_key
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import check_flag, check_keys, check_module_paths, optional_section
from gkd_plugin.errors import nearest

__all__ = ["check_role"]


def check_role(report: Report, path: str, section: Mapping[Any, Any], supplied: str) -> None:
    """``teacher``, ``student`` or ``model`` of a stage."""
    from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT
    from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT

    if "forward_proc" not in section:
        report.add(at(path, "forward_proc"), "missing; write forward_proc: 'forward_batch_only'")
    else:
        registered_key(report, at(path, "forward_proc"), section["forward_proc"], FORWARD_PROC_FUNC_DICT)
    check_flag(report, path, section, "requires_grad")
    check_checkpoints(report, path, section)
    _redesign(report, path, section)
    _module_wrapper(report, at(path, "wrapper"), section.get("wrapper"))
    hooks = optional_section(report, path, section, "forward_hook", schema.FORWARD_HOOK)
    for key, paths in (hooks or {}).items():
        if key in schema.FORWARD_HOOK:
            check_module_paths(report, at(path, f"forward_hook.{key}"), paths, "['embedding']")
    auxiliary = optional_section(report, path, section, "auxiliary_model_wrapper", schema.AUXILIARY_WRAPPER)
    if auxiliary is not None and auxiliary.get("key") is not None:
        where = at(path, "auxiliary_model_wrapper")
        _redesign(report, where, auxiliary)
        names = (supplied, "device", "device_ids", "distributed")
        check_registered(report, where, auxiliary, AUXILIARY_MODEL_WRAPPER_DICT, names=names)


def _redesign(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    from torchdistill.models.registry import ADAPTATION_MODULE_DICT, MODULE_DICT

    if "frozen_modules" in section:
        check_module_paths(report, at(path, "frozen_modules"), section["frozen_modules"])
    sequential, adaptations = section.get("sequential") or [], section.get("adaptations") or {}
    check_module_paths(report, at(path, "sequential"), sequential)
    if not isinstance(adaptations, Mapping):
        report.add(at(path, "adaptations"), f"{shown(adaptations)} given; must be a section")
        return
    for name in adaptations:
        entry = optional_section(report, at(path, "adaptations"), adaptations, name, schema.ADAPTATION)
        if entry is not None:
            check_registered(report, at(path, f"adaptations.{name}"), entry, {**MODULE_DICT, **ADAPTATION_MODULE_DICT})
    for step in sequential if isinstance(sequential, list) else []:
        if isinstance(step, str) and step.startswith("+") and step[1:] not in adaptations:
            report.add(at(path, "sequential"), f"{step!r} is not in adaptations; {nearest(step[1:], adaptations)}")


def _module_wrapper(report: Report, path: str, wrapper: object) -> None:
    key = wrapper.get("key") if isinstance(wrapper, Mapping) else wrapper
    if isinstance(wrapper, Mapping):
        check_keys(report, path, wrapper, schema.KEY_KWARGS)
    if key is not None and key not in schema.MODULE_WRAPPERS:
        report.add(path, f"{shown(key)} given; {nearest(key, schema.MODULE_WRAPPERS)}")
