"""Fitting the teacher's local classifier to a training set, before the first epoch that needs it."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func
from tqdm import tqdm

from gkd_plugin.box import register
from gkd_plugin.box.schedule import tell_schedule
from gkd_plugin.data import UNLABELLED, FixedViews, evaluation_view, labelled_part, seeded, unwrapped
from gkd_plugin.teacher.readouts import Answers
from gkd_plugin.teacher.wrapper import RefilledTeacher

logger = logging.getLogger(__name__)

MAX_ROWS = 10_000  # images that a readout is fitted to: about as many of each class, the first ones
MAX_VIEWS = 4  # augmented images of each sample that a readout is fitted to, where there are few samples


@register(PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func, "refilled")
def refilled_pre_epoch_process(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
    """torchdistill's default, then: teacher in eval mode; local classifier fitted, once, where the stage hooks it.

    A criterion with ``weigh`` is then told what the local classifier knows.
    """
    default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)
    tell_schedule(self)
    teacher = self.teacher_model
    teacher.eval()
    is_read = isinstance(teacher, RefilledTeacher) and "local_classifier" in self.teacher_io_dict
    if is_read and not teacher.local_classifier.is_ready:
        fit_class_centres(teacher, self.train_data_loader)
    if is_read and hasattr(self.criterion, "weigh"):
        self.criterion.weigh(teacher.local_classifier.knowledge)


def fit_class_centres(teacher: RefilledTeacher, train_data_loader: Any) -> None:
    """Fits the teacher's local classifier, and with it the class centres, in passes with a progress bar.

    The centres take one pass over the training set without augmentation. A readout that wants images as the student
    sees them gets up to :data:`MAX_VIEWS` passes more, one where there are samples enough, over about
    :data:`MAX_ROWS` samples; or, without a pass, what a teacher cache keeps of these. Raises ConfigError where a class
    has no sample.
    """
    labels: list[Tensor] = []  # of all samples, when the first pass is over
    views: Iterator[tuple[Any, Tensor, Tensor]] | None = None
    if teacher.local_classifier.wants_views:
        kept = teacher.kept
        views = _views(train_data_loader, labels) if kept is None else _kept_views(kept, train_data_loader)
    teacher.fit_centres(_batches(clean_loader(train_data_loader), "class centres", labels), views)
    classes, width = teacher.local_classifier.centres.shape
    logger.info("class centres: %d classes, %d-dimensional", classes, width)


def clean_loader(train_data_loader: Any) -> DataLoader[Any]:
    """The labelled training samples once each, in order, on the evaluation view where the dataset offers one."""
    dataset, is_clean = evaluation_view(train_data_loader.dataset)
    if not is_clean:
        lacks = "no evaluation view: class centres are computed on its training transform"
        logger.warning("the training set offers %s (gkd_plugin.data.with_evaluation_view attaches a view)", lacks)
    return in_order(dataset, train_data_loader)


def in_order(dataset: Any, train_data_loader: Any) -> DataLoader[Any]:
    """The samples once each, in batches as large and with as many workers as in training."""
    size = train_data_loader.batch_size or getattr(train_data_loader.batch_sampler, "batch_size", None) or 128
    return DataLoader(dataset, batch_size=size, num_workers=train_data_loader.num_workers)


def _batches(loader: DataLoader[Any], title: str, labels: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels); the labels are kept too."""
    for batch in tqdm(loader, desc=title, leave=False, disable=None):
        labels.append(batch[1])
        yield batch[0], batch[1]


def _views(train_data_loader: Any, labels: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, numbers of the samples), augmented as in training but the same in every run."""
    dataset, count = unwrapped(labelled_part(train_data_loader.dataset)), sum(map(len, labels))
    if count > MAX_ROWS:
        chosen = first_of_each(torch.cat(labels), MAX_ROWS)
        dataset, count = Subset(dataset, chosen.tolist()), len(chosen)
    with seeded("local classifier"):
        for _ in range(min(max(MAX_ROWS // count, 1), MAX_VIEWS)):
            numbers = torch.arange(count)
            for images, of in _batches(in_order(dataset, train_data_loader), "local classifier", []):
                yield images, of, numbers[: len(of)]
                numbers = numbers[len(of) :]


def _kept_views(kept: Callable[[Tensor], Answers], train_data_loader: Any) -> Iterator[tuple[Answers, Tensor, Tensor]]:
    """(answers, labels, numbers of the samples) of the first fixed views, as they are kept."""
    fixed: FixedViews = train_data_loader.dataset
    all_labels = torch.tensor(fixed.targets)
    chosen = (all_labels != UNLABELLED).nonzero().flatten()
    if len(chosen) > MAX_ROWS:
        chosen = chosen[first_of_each(all_labels[chosen], MAX_ROWS)]
    for view in range(min(max(MAX_ROWS // len(chosen), 1), MAX_VIEWS, fixed.views)):
        yield kept(chosen * fixed.views + view), all_labels[chosen], torch.arange(len(chosen))


def first_of_each(labels: Tensor, at_most: int) -> Tensor:
    """Positions, in order, of the first samples of each class: as many of each, at least two, about ``at_most``."""
    by_class, counts = labels.argsort(stable=True), torch.bincount(labels)
    places = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    room = max(at_most // int((counts > 0).sum()), 2)
    return by_class[places < room].sort().values
