"""The ``test``, ``device`` and ``tracker`` sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.validation.loaders import check_loader
from gkd_plugin.config.validation.models import has_teacher
from gkd_plugin.config.validation.report import Report, shown
from gkd_plugin.config.validation.sections import check_count, check_flag, optional_section, required_section
from gkd_plugin.errors import nearest
from gkd_plugin.runner.devices import COMPILE
from gkd_plugin.teacher import DTYPES

__all__ = ["check_device", "check_teacher_cache", "check_test", "check_tracker"]

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_test(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``test`` section."""
    test = optional_section(report, "", plain, "test", schema.TEST)
    if test is None:
        return
    if "log_freq" in test:
        check_count(report, "test.log_freq", test["log_freq"])
    loader = required_section(report, "test", test, "test_data_loader", schema.LOADER)
    if loader is not None:
        check_loader(report, "test.test_data_loader", loader, plain)


def check_device(report: Report, plain: Mapping[str, Any]) -> None:
    """The form of the section; whether such a device exists is found out where it is used."""
    if plain.get("device") is None:
        return
    device = optional_section(report, "", plain, "device", schema.DEVICE) or {}
    for key in ("default", "teacher"):
        value = device.get(key)
        if value is not None and not (isinstance(value, str) and _DEVICE.fullmatch(value)):
            report.add(f"device.{key}", f"{shown(value)} given; allowed: auto, cpu, cuda, cuda:<number>, mps")
    precision = device.get("precision", "no")
    if precision not in ("no", "bf16", "fp16", False, None):  # YAML reads a bare no as false
        report.add("device.precision", f"{shown(precision)} given; {nearest(precision, ('no', 'bf16', 'fp16'))}")
    for key, allowed in (("teacher_dtype", DTYPES), ("compile", COMPILE)):
        value = device.get(key)
        if value is not None and value not in tuple(allowed):
            report.add(f"device.{key}", f"{shown(value)} given; {nearest(value, allowed)}")
    check_flag(report, "device", device, "channels_last")


def check_teacher_cache(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``teacher_cache`` section."""
    if plain.get("teacher_cache") is None:
        return
    cache = optional_section(report, "", plain, "teacher_cache", schema.TEACHER_CACHE)
    if cache is None:
        return
    if "views" not in cache:
        report.add("teacher_cache.views", "missing; the number of fixed views of each sample")
    else:
        check_count(report, "teacher_cache.views", cache["views"])
    if "seed" in cache:
        check_count(report, "teacher_cache.seed", cache["seed"], least=0)
    folder = cache.get("folder")
    if folder is not None and (not isinstance(folder, str) or not folder or "\0" in folder):
        report.add("teacher_cache.folder", f"{shown(folder)} given; must be the path of a folder")
    if not has_teacher(plain):
        report.add("teacher_cache", "there is no models.teacher_model whose answers could be kept; remove it")


def check_tracker(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``tracker`` section."""
    if plain.get("tracker") is None:
        return
    tracker = optional_section(report, "", plain, "tracker", schema.TRACKER) or {}
    engine = tracker.get("engine")
    if engine not in (None, "trackio", "wandb"):
        report.add("tracker.engine", f"{shown(engine)} given; {nearest(engine, ('trackio', 'wandb'))}")
