"""What can be known of the data before training: labels that do not fit, stages that could learn nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gkd_plugin.data import labels_of
from gkd_plugin.errors import ConfigError

__all__ = ["check_labels"]

logger = logging.getLogger(__name__)


def check_labels(
    dataset_id: str, dataset: Any, where: str, num_classes: int | None, stages: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks a training set against the student and the stages that it trains in.

    Args:
        dataset_id: its name in ``datasets``.
        dataset: the training set; one without readable labels is not checked.
        where: key path of the student.
        num_classes: size of the student's classifier, ``None`` where unknown.
        stages: the stages that train on it.

    Raises:
        ConfigError: a label out of range; one class only, or no class with two samples, in stage ``embedding``;
            a class of the student without a sample in stage ``classifier``.
    """
    try:
        counts = Counter(labels_of(dataset))
    except ConfigError:
        logger.info("datasets.%s: its labels cannot be read ahead (no `targets`), so they are not checked", dataset_id)
        return
    name = f"datasets.{dataset_id}"
    if not counts:
        raise ConfigError(f"{name}: holds no sample")
    if min(counts) < 0 or (num_classes is not None and max(counts) >= num_classes):
        bad = min(counts) if min(counts) < 0 else max(counts)
        raise ConfigError(
            f"{name}: class index out of range: label {bad}, but {where} has {num_classes} classes (0 … "
            f"{(num_classes or 0) - 1})"
        )
    kinds = {_refilled_stage(stage) for stage in stages.values()}
    if "embedding" in kinds:
        _check_pairs(name, counts)
    if "classifier" in kinds:
        _check_centres(name, counts, where, num_classes)


def _refilled_stage(stage: Mapping[str, Any]) -> str | None:
    criterion = stage.get("criterion") or {}
    return (criterion.get("kwargs") or {}).get("stage") if criterion.get("key") == "refilled" else None


def _check_pairs(name: str, counts: Counter[int]) -> None:
    if len(counts) == 1:
        raise ConfigError(f"{name}: holds one class only: stage 'embedding' compares classes and needs at least two")
    single = sorted(label for label, count in counts.items() if count == 1)
    if len(single) == len(counts):
        raise ConfigError(f"{name}: every class has one sample: stage 'embedding' needs pairs of the same class")
    if single:
        logger.warning("%s: classes %s have one sample: they form no positive pair", name, single[:10])


def _check_centres(name: str, counts: Counter[int], where: str, num_classes: int | None) -> None:
    classes = num_classes or max(counts) + 1
    missing = [label for label in range(classes) if label not in counts]
    if missing:
        raise ConfigError(
            f"{name}: no sample of class {', '.join(map(str, missing[:10]))}: stage 'classifier' needs a class centre "
            f"for each of the {classes} classes of {where}"
        )
