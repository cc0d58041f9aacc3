"""Why a method cannot serve a setting, as far as its configuration's text shows: told in the table, not a failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yaml.nodes import MappingNode

from gkd_plugin.compare.method import Method
from gkd_plugin.compare.setting import is_incremental, is_trained, shares_classes, training_memory, training_shots
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.runner.building import stage_configs

__all__ = ["NOT_SAME", "obstacle", "untrained_student"]

NOT_SAME = "needs the same classes"


def untrained_student(method: Method, root: MappingNode) -> str:
    """Why a method that is about a student's trained weights has nothing to do; empty where it has.

    Args:
        method: the method.
        root: the configuration that the cells are made from.
    """
    if not (method.starts_untrained or method.probes_student) or is_trained(root):
        return ""
    return "is the same as ce: random weights" if method.starts_untrained else "needs a student with trained weights"


def obstacle(method: Method, root: MappingNode) -> str:
    """Empty where nothing is in the way.

    Args:
        method: the method.
        root: the configuration of its cell.
    """
    if method.classes == "same" and shares_classes(root) is False:
        return NOT_SAME
    if method.classes == "incremental" and not is_incremental(root):
        return "needs old and new classes"
    stages = {} if method.probe else dict(_refilled_stages(to_plain(root)["train"]))
    if training_memory(root) == 0 and (stages or method.probe == "ncm"):
        return "needs a sample of each class"
    if training_shots(root) == 1 and any(stages.get(stage) == 1 for stage in ("embedding", "joint")):
        return "needs two shots or ClassBalancedBatchSampler"
    return ""


def _refilled_stages(train: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Each stage of ReFilled, and how often a batch may hold one sample."""
    for stage in stage_configs(train).values():
        if stage["criterion"]["key"] == "refilled":
            batches = (stage["train_data_loader"].get("batch_sampler") or {}).get("kwargs") or {}
            yield stage["criterion"]["kwargs"]["stage"], batches.get("samples_per_class", 1)
