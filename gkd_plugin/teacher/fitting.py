"""Fitting the teacher's local classifier to a training set, before the first epoch that needs it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func
from tqdm import tqdm

from gkd_plugin.box.registry import register
from gkd_plugin.data import evaluation_view, labels_of, seeded
from gkd_plugin.data.labels import length_of, unwrapped
from gkd_plugin.errors import ConfigError
from gkd_plugin.teacher.local_classifier import MAX_ROWS, first_of_each
from gkd_plugin.teacher.wrapper import RefilledTeacher

__all__ = ["clean_loader", "fit_class_centres", "refilled_pre_epoch_process"]

logger = logging.getLogger(__name__)

MAX_VIEWS = 4
"""Augmented images of each sample that a readout is fitted to, where there are few samples."""


@register(PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func, "refilled")
def refilled_pre_epoch_process(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
    """torchdistill's default, then: teacher in eval mode; local classifier fitted where the stage reads it.

    It is fitted once, before the first epoch of the first stage whose ``forward_hook`` records the teacher's
    ``local_classifier``.

    Args:
        self: the ``DistillationBox``.
        epoch: epoch number, for distributed samplers.
        kwargs: passed on.

    Raises:
        ConfigError: a class has no training sample.
    """
    default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)
    teacher = self.teacher_model
    teacher.eval()
    if not isinstance(teacher, RefilledTeacher) or "local_classifier" not in self.teacher_io_dict:
        return
    if not teacher.local_classifier.is_ready:
        fit_class_centres(teacher, self.train_data_loader)


def fit_class_centres(teacher: RefilledTeacher, train_data_loader: Any) -> None:
    """Fits the teacher's local classifier, and with it the class centres, in passes with a progress bar.

    The centres take one pass over the training set without augmentation. A readout that wants images as the student
    sees them gets up to :data:`MAX_VIEWS` passes more, one where there are samples enough.

    Raises:
        ConfigError: a class has no sample.
    """
    views = _views(train_data_loader) if teacher.local_classifier.wants_views else None
    teacher.fit_centres(_batches(clean_loader(train_data_loader)), views)
    classes, width = teacher.local_classifier.centres.shape
    logger.info("class centres: %d classes, %d-dimensional", classes, width)


def clean_loader(train_data_loader: Any) -> DataLoader[Any]:
    """The training samples once each, in order, on the evaluation view where the dataset offers one.

    Args:
        train_data_loader: a loader made by torchdistill (or prepared by Accelerate); its workers are used again.
    """
    dataset, is_clean = evaluation_view(train_data_loader.dataset)
    if not is_clean:
        logger.warning(
            "the training set offers no evaluation view: class centres are computed on its training transform "
            "(gkd_plugin.data.with_evaluation_view attaches a view)"
        )
    return _in_order(dataset, train_data_loader)


def _in_order(dataset: Any, train_data_loader: Any) -> DataLoader[Any]:
    sampler = train_data_loader.batch_sampler
    return DataLoader(
        dataset,
        batch_size=train_data_loader.batch_size or getattr(sampler, "batch_size", None) or 128,
        num_workers=train_data_loader.num_workers,
    )


def _batches(loader: DataLoader[Any], title: str = "class centres") -> Iterator[tuple[Tensor, Tensor]]:
    for batch in tqdm(loader, desc=title, leave=False, disable=None):
        yield batch[0], batch[1]


def _views(train_data_loader: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, numbers of the samples), augmented as in training but the same in every run.

    Leaves the random states as they were.
    """
    dataset = _first_samples(unwrapped(train_data_loader.dataset))
    count = length_of(dataset)
    with seeded("local classifier"):
        for _ in range(min(max(MAX_ROWS // count, 1), MAX_VIEWS)):
            samples = torch.arange(count)
            for images, labels in _batches(_in_order(dataset, train_data_loader), "local classifier"):
                yield images, labels, samples[: len(labels)]
                samples = samples[len(labels) :]


def _first_samples(dataset: Any) -> Any:
    """At most about :data:`MAX_ROWS` samples, the first of each class; all where labels are not known."""
    try:
        labels = labels_of(dataset) if length_of(dataset) > MAX_ROWS else None
    except ConfigError:
        return dataset
    return dataset if labels is None else Subset(dataset, first_of_each(torch.tensor(labels), MAX_ROWS).tolist())
