"""Class centres of a training set in the teacher's space, from torchdistill's data loader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from gkd_plugin.data import evaluation_view
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["clean_loader", "fit_class_centres"]

logger = logging.getLogger(__name__)


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
    sampler = train_data_loader.batch_sampler
    return DataLoader(
        dataset,
        batch_size=train_data_loader.batch_size or getattr(sampler, "batch_size", None) or 128,
        num_workers=train_data_loader.num_workers,
    )


def fit_class_centres(teacher: RefilledTeacher, train_data_loader: Any) -> None:
    """One pass of the teacher over the training set, with a progress bar; the teacher keeps the class centres.

    Raises:
        ConfigError: a class has no sample.
    """
    teacher.fit_centres(_batches(clean_loader(train_data_loader)))
    classes, width = teacher.local_classifier.centres.shape
    logger.info("class centres: %d classes, %d-dimensional", classes, width)


def _batches(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in tqdm(loader, desc="class centres", leave=False, disable=None):
        yield batch[0], batch[1]
