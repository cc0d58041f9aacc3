"""All rules on a whole config, in the order of the file's sections."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.validation.datasets import check_datasets, check_dependencies
from gkd_plugin.config.validation.models import check_models
from gkd_plugin.config.validation.report import Report
from gkd_plugin.config.validation.sections import check_keys
from gkd_plugin.config.validation.stages import check_train
from gkd_plugin.config.validation.tags import check_tags, check_text_numbers
from gkd_plugin.config.validation.top_level import check_device, check_teacher_cache, check_test, check_tracker

__all__ = ["problems"]


def problems(plain: Mapping[str, Any], *, produced: Collection[str] = (), needs_checkpoints: bool = True) -> list[str]:
    """Checks a config that :func:`~gkd_plugin.config.yaml_plain.to_plain` gave; imports its dependencies.

    Args:
        plain: the config; nothing in it is changed.
        produced: paths of checkpoints that do not exist yet but will when this config runs.
        needs_checkpoints: whether a ``src_ckpt`` that does not exist is a problem.

    Returns:
        One line per problem: key path, what was given, what is allowed.
    """
    report = Report(produced, needs_checkpoints=needs_checkpoints)
    import gkd_plugin  # noqa: F401  # registers its parts

    check_dependencies(report, plain.get("dependencies"))
    check_keys(report, "", plain, schema.TOP)
    check_models(report, plain)
    check_datasets(report, plain)
    check_train(report, plain)
    check_test(report, plain)
    check_device(report, plain)
    check_teacher_cache(report, plain)
    check_tracker(report, plain)
    check_tags(report, "", plain, set())
    check_text_numbers(report, "train", plain.get("train"))
    return report.lines
