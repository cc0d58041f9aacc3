"""The teacher's accuracy on the student's task, before anything is trained."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from gkd_plugin.data import labels_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.functional import nearest_class_mean
from gkd_plugin.runner.accuracy import Accuracy, evaluate, near_chance
from gkd_plugin.teacher import RefilledTeacher, fit_class_centres

__all__ = ["check_teacher", "classes_without_sample"]

logger = logging.getLogger(__name__)


def check_teacher(box: Any, num_classes: int | None, accelerator: Accelerator) -> dict[str, Any]:
    """Measures the teacher on the validation set, logs it, and warns where it is near chance.

    NCM over the student's classes always works; the class centres it needs are kept in the teacher wrapper for
    stage ``classifier``. Where the student's classes are the teacher's own, as the training set or the names of the
    classes show, its own top-1 is a figure too. Where nothing shows it, they are taken to be its own if there are as
    many and its classifier is right more often than guessing explains and at least half as often as NCM. A teacher
    without the wrapper ``refilled_teacher`` is there for its logits: as many classes are then shared classes.

    NCM needs a training sample of each class; where one has none (incremental learning without a memory), a line of
    the log says so instead.

    Returns:
        A row with ``ncm_top1`` and ``top1`` as far as they apply; empty without a validation set.
    """
    teacher, loader = box.teacher_model, box.val_data_loader
    if loader is None:
        logger.warning("there is no validation set (val_data_loader): the teacher's accuracy is not measured")
        return {}
    teacher.eval()
    row: dict[str, Any] = {}
    relation = teacher.class_map.relation if isinstance(teacher, RefilledTeacher) else None
    own = best = _own_accuracy(teacher, loader, num_classes, accelerator)  # draws from torch's random state: always
    if relation not in ("same", None):
        own = best = None
    missing = classes_without_sample(teacher, box.train_data_loader.dataset)
    if missing:
        logger.info("teacher: no training sample of class %s: no NCM accuracy", ", ".join(map(str, missing[:10])))
    elif isinstance(teacher, RefilledTeacher):
        fit_class_centres(teacher, box.train_data_loader)
        centres = teacher.local_classifier.centres
        ncm = evaluate(
            lambda images: nearest_class_mean(teacher.embed(images), centres), loader, accelerator, "teacher NCM"
        )
        row |= ncm.as_dict("ncm_")
        is_poor = own is not None and (near_chance(own) or own.top1 < ncm.top1 / 2)
        own = None if is_poor and relation is None else own
        best = max((ncm, own), key=lambda accuracy: -1 if accuracy is None else accuracy.top1) or ncm
        logger.info("teacher: NCM accuracy over the student's %d classes %.1f %%", ncm.classes, ncm.top1)
    if own is not None:
        row |= own.as_dict()
        logger.info("teacher: top-1 of its own classifier %.1f %% (the classes are shared)", own.top1)
    if best is not None and near_chance(best):
        logger.warning(
            "the teacher's accuracy, %.1f %%, is near chance (%.1f %%): are its weights loaded "
            "(models.teacher_model.src_ckpt, or kwargs.pretrained)?",
            best.top1,
            100 / best.classes,
        )
    return row


def classes_without_sample(teacher: Any, dataset: Any) -> list[int]:
    """The classes that the wrapper could compute no centre of; none where the labels cannot be read ahead."""
    try:
        present = set(labels_of(dataset)) if isinstance(teacher, RefilledTeacher) else set()
    except ConfigError:
        return []
    count = (teacher.num_classes or max(present) + 1) if present else 0
    return [label for label in range(count) if label not in present]


def _own_accuracy(teacher: Any, loader: Any, num_classes: int | None, accelerator: Accelerator) -> Accuracy | None:
    """Top-1 of the teacher's own classifier, where it has as many classes as the student."""
    if isinstance(teacher, RefilledTeacher) and not teacher.has_classifier:
        return None
    images = next(iter(loader))[0].to(accelerator.device)
    logits = None if num_classes is None else teacher(images[:2])
    if not isinstance(logits, Tensor) or logits.shape[-1] != num_classes:
        return None
    return evaluate(teacher, loader, accelerator, "teacher")
