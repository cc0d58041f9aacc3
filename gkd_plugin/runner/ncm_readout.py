"""What the student's embedding knows without its classifier: NCM accuracy of the final weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn

from gkd_plugin.data import evaluation_view, labels_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.accuracy import student_ncm

__all__ = ["final_ncm", "student_embedding_path"]

logger = logging.getLogger(__name__)


def student_embedding_path(entry: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The module path of the student's embedding; ``None`` where the configuration does not show it.

    Args:
        entry: the student's section under ``models``.
        stages: stage name → its section.
    """
    if entry.get("key") == "timm_model":
        return "embedding"
    for stage in stages.values():
        criterion = stage.get("criterion") or {}
        kwargs = criterion.get("kwargs") or {}
        if criterion.get("key") == "refilled" and kwargs.get("stage") in ("embedding", "joint"):
            return str(kwargs.get("student_embedding", "embedding"))
        wrapper = (stage.get("student") or {}).get("auxiliary_model_wrapper") or {}
        if wrapper.get("key") == "projected_student":
            return str((wrapper.get("kwargs") or {}).get("embedding", "embedding"))
    return None


def final_ncm(
    student: nn.Module,
    path: str | None,
    train_loader: Any,
    test_loader: Iterable[Any],
    accelerator: Accelerator,
    *,
    num_classes: int | None,
) -> dict[str, float]:
    """NCM accuracy on the test set: centres from the training set of the last stage (its evaluation view).

    Args:
        student: the model itself, in eval mode.
        path: module path of its embedding.
        train_loader: of the last stage.
        test_loader: prepared by Accelerate.
        accelerator: of the run.
        num_classes: C; ``None`` counts the classes of the training set.

    Returns:
        ``ncm_top1`` and what else :class:`~gkd_plugin.runner.accuracy.Accuracy` tells, for ``summary.json``; empty
        where the embedding is not known, the training set has no evaluation view or a class no training sample, and
        one log line says why.
    """
    reason = _obstacle(path, num_classes, train_loader)
    if path is None or reason:
        logger.info("final NCM accuracy: not measured, %s", reason)
        return {}
    accuracy = student_ncm(student, path, train_loader, test_loader, accelerator)
    return accuracy.as_dict("ncm_")


def _obstacle(path: str | None, num_classes: int | None, train_loader: Any) -> str:
    """Why there is no NCM accuracy; empty where nothing is in the way."""
    if path is None:
        return "the configuration does not show which module gives the student's embedding"
    try:
        present = set(labels_of(train_loader.dataset))
    except ConfigError as error:
        return str(error)
    missing = [label for label in range(num_classes or max(present) + 1) if label not in present]
    if missing:
        return f"no training sample of class {', '.join(map(str, missing[:10]))}"
    return "" if evaluation_view(train_loader.dataset)[1] else "the training set offers no evaluation view"
