"""Fitting the teacher's local classifier to a training set, before the first epoch that needs it."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func
from tqdm import tqdm

from gkd_plugin.box import register
from gkd_plugin.box.schedule import tell_schedule
from gkd_plugin.data import (
    UNLABELLED,
    FixedViews,
    Stream,
    evaluation_view,
    labelled_part,
    length_of,
    seeded,
    unwrapped,
)
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
    if isinstance(stream := self.train_data_loader.dataset, Stream):  # torchdistill's script tells it nothing
        stream.set_epoch(epoch or 0)
    tell_schedule(self)
    teacher = self.teacher_model
    teacher.eval()
    is_read = isinstance(teacher, RefilledTeacher) and "local_classifier" in self.teacher_io_dict
    if is_read and not teacher.local_classifier.is_ready:
        fit_class_centres(teacher, self.train_data_loader, getattr(self, "accelerator", None))
    if is_read and hasattr(self.criterion, "weigh"):
        self.criterion.weigh(teacher.local_classifier.knowledge)


def fit_class_centres(teacher: RefilledTeacher, train_data_loader: Any, accelerator: Accelerator | None = None) -> None:
    """Fits the teacher's local classifier, and with it the class centres, in passes with a progress bar.

    The centres take one pass over the training set without augmentation. A readout that wants images as the student
    sees them gets up to :data:`MAX_VIEWS` passes more, one where there are samples enough, over about
    :data:`MAX_ROWS` samples; or, without a pass, what a teacher cache keeps of these. Where it keeps the fit of an
    earlier run too, nothing is asked. Raises ConfigError where a class has no sample.
    """
    stream: Any = unwrapped(train_data_loader.dataset)
    loader, kept, local = clean_loader(train_data_loader), teacher.kept, teacher.local_classifier

    def fit() -> dict[str, Tensor]:
        labels: list[int] | _Counts = _Counts() if isinstance(stream, Stream) else []  # when the first pass is over
        clean = _batches(loader, "class centres", labels, teacher, accelerator)
        views: Iterator[tuple[Answers, Tensor, Tensor]] | None = None
        if local.wants_views:
            if isinstance(labels, _Counts):
                views = _stream_views(stream, train_data_loader, labels, teacher, accelerator)
            elif kept is None:
                views = _views(train_data_loader, labels, teacher, accelerator)
            else:
                views = _kept_views(kept.answers, train_data_loader)
        teacher.fit_centres(clean, views)
        if isinstance(labels, _Counts):
            labels.tell(stream)
        return local.tensors()

    with torch.random.fork_rng(devices=[]):  # loaders draw seeds; training is the same whether it is fitted or kept
        if kept is None:
            fit()
        else:
            decides, before = (*local.fitted_by, teacher.class_map.shared, MAX_ROWS, MAX_VIEWS), local.centres
            tensors = kept.once("local classifier", fit, *decides, images=loader.dataset)
            if local.centres is before:  # an earlier run's
                local.keep(tensors, teacher.device)
                teacher.class_map.tell_use(is_used=local.wants_views)
    classes, width = local.centres.shape
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


def asked(
    ask: Callable[[Tensor], Any], loader: DataLoader[Any], accelerator: Accelerator | None, title: str
) -> Iterator[tuple[Any, Tensor]]:
    """(what ``ask`` says of the images, labels) of each batch of an unprepared loader, in order, with a progress bar.

    What it says are tensors with a row for each image. Of several processes each asks about its share of the batches
    and is given what all have found.
    """
    if accelerator is None and isinstance(loader.dataset, Stream):  # torchdistill's script
        loader.dataset.whole()
    if accelerator is None or accelerator.num_processes == 1:
        for images, labels, *_ in _bar(loader, title):
            yield ask(images if accelerator is None else images.to(accelerator.device)), labels
        return
    if isinstance(loader.dataset, Stream):
        yield from _asked_of_parts(ask, iter(_bar(loader, title, accelerator)), accelerator)
        return
    for images, labels, *_ in _bar(prepare_data_loader(loader), title, accelerator):
        found = ask(images.to(accelerator.device)), labels
        yield accelerator.gather_for_metrics(send_to_device(found, accelerator.device))


def _bar(loader: Iterable[Any], title: str, accelerator: Accelerator | None = None) -> Iterable[Any]:
    """With a progress bar of the main process; where no terminal shows it, a line every half minute."""
    is_shown = accelerator is None or accelerator.is_main_process
    seconds = 0.1 if sys.stderr.isatty() else 30.0
    bar: Any = tqdm(loader, title, leave=False, disable=not is_shown, mininterval=seconds, delay=seconds)
    return cast("Iterable[Any]", bar)


def _asked_of_parts(
    ask: Callable[[Tensor], Any], batches: Iterator[Any], accelerator: Accelerator
) -> Iterator[tuple[Any, Tensor]]:
    """As :func:`asked`, of a stream, of which processes read parts that may have different numbers of batches."""
    while True:
        batch = next(batches, None)
        own = None if batch is None else (ask(batch[0].to(accelerator.device)), batch[1])
        found = [one for one in gather_object([send_to_device(own, "cpu")]) if one is not None]
        if not found:
            return
        yield from (send_to_device(one, accelerator.device) for one in found)


def _batches(
    loader: DataLoader[Any],
    title: str,
    labels: "list[int] | _Counts",
    teacher: RefilledTeacher,
    accelerator: Accelerator | None,
) -> Iterator[tuple[Answers, Tensor]]:
    """(answers, labels); the labels are kept too."""
    for fields, of in asked(teacher.fields, loader, accelerator, title):
        labels.extend(of.tolist())  # small tensors that stay would keep the heap in pieces
        yield Answers(**fields), of


class _View(Dataset[Any]):
    """The samples, each augmented in a way that depends on its number and the view's alone."""

    def __init__(self, dataset: Dataset[Any], view: int) -> None:
        self.dataset, self.view = dataset, view

    def __len__(self) -> int:
        return length_of(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with seeded(f"local classifier {self.view}, {index}"):
            return self.dataset[index]


def _views(
    train_data_loader: Any, labels: list[int], teacher: RefilledTeacher, accelerator: Accelerator | None
) -> Iterator[tuple[Answers, Tensor, Tensor]]:
    """(answers, labels, numbers of the samples) of images augmented as in training, but the same in every run."""
    dataset, count = unwrapped(labelled_part(train_data_loader.dataset)), len(labels)
    if count > MAX_ROWS:
        chosen = first_of_each(torch.tensor(labels), MAX_ROWS)
        dataset, count = Subset(dataset, chosen.tolist()), len(chosen)
    for view in range(min(max(MAX_ROWS // count, 1), MAX_VIEWS)):
        loader, numbers = in_order(_View(dataset, view), train_data_loader), torch.arange(count)
        for answers, of in _batches(loader, "local classifier", [], teacher, accelerator):
            yield answers, of, numbers[: len(of)]
            numbers = numbers[len(of) :]


class _Counts(Counter[int]):
    """The number of samples of each class, of a stream, whose labels would fill the memory."""

    def extend(self, labels: list[int]) -> None:
        self.update(labels)

    def tell(self, stream: Stream) -> None:
        """The log says what the stream holds."""
        text = "the stream holds %d samples of %d classes, %d of the smallest"
        logger.info(text, self.total(), len(self), min(self.values()))
        if self.total() != stream.reader.num_samples:
            text = "the stream holds %d samples, but %d are given as its number: epochs are as long as that"
            logger.warning(text, self.total(), stream.reader.num_samples)


def _stream_views(
    stream: Any, train_data_loader: Any, counts: _Counts, teacher: RefilledTeacher, accelerator: Accelerator | None
) -> Iterator[tuple[Answers, Tensor, Tensor]]:
    """As :func:`_views`; a stream is read until there are enough samples of each class, and no more are kept."""
    total = counts.total()
    room = total if total <= MAX_ROWS else max(MAX_ROWS // len(counts), 2)
    for view in range(min(max(MAX_ROWS // total, 1), MAX_VIEWS)):
        left, number = {label: min(count, room) for label, count in counts.items()}, 0
        loader = in_order(stream.in_order(stream.transform), train_data_loader)
        with seeded(f"local classifier {view}"):
            for answers, of in _batches(loader, "local classifier", _Counts(), teacher, accelerator):
                chosen = []
                for place, label in enumerate(of.tolist()):
                    left[label] -= 1
                    chosen += [place] if left[label] >= 0 else []
                yield (
                    Answers._make(x if x is None else x[chosen] for x in answers),
                    of[chosen],
                    torch.arange(number, number + len(chosen)),
                )
                number += len(chosen)
                if max(left.values()) <= 0:
                    break


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
