"""The epoch loop over a torchdistill box, stage by stage."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from gkd_plugin.box.upstream import clip_unscaled, torchdistill_errors
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import FixedViews
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.accuracy import evaluate, student_ncm
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["LAST_EPOCHS", "EpochRow", "train_epochs"]

logger = logging.getLogger(__name__)

LAST_EPOCHS = 3
"""Always validated; ``final.val_top1_last3`` is their mean."""
EpochRow = dict[str, Any]


def train_epochs(
    box: Any,
    student: nn.Module,
    stages: Sequence[Stage],
    accelerator: Accelerator,
    cache: TeacherCache | None = None,
    *,
    val_freq: int = 1,
) -> Iterator[tuple[Stage, EpochRow]]:
    """Trains the box to the end; yields a stage and a row of metrics after every epoch.

    A row holds ``stage``, ``epoch`` (from 1, within the stage), ``lr``, the means of the loss and its terms,
    ``images_per_second``, ``seconds``, and on the validation set, after the epochs that ``val_freq`` names, ``top1`` /
    ``top5``, or ``ncm_top1`` after the last epoch of a stage ``embedding`` (whose classifier is untrained).

    Args:
        box: torchdistill's box of these stages, built with the accelerator.
        student: the model itself, unwrapped.
        stages: in order.
        accelerator: device and precision.
        cache: what the teacher answers from, in place of running.
        val_freq: n validates after every n-th epoch of a stage, and after its last three.

    Raises:
        ConfigError: the loss is not finite (names the step), or an epoch of stage ``embedding`` had nothing to
            compare.
    """
    done = 0
    for stage in stages:
        _autocast_teacher(box, accelerator)
        clip_unscaled(box, accelerator)
        if cache is not None:
            cache.attach(box, accelerator)
        for number in range(1, stage.epochs + 1):
            is_end = number == stage.epochs
            row: EpochRow = {"stage": stage.name, "epoch": number}
            row |= _train_epoch(box, stage, f"{stage.name} {number}/{stage.epochs}", done, accelerator)
            if number % val_freq == 0 or number > stage.epochs - LAST_EPOCHS:
                with torch.random.fork_rng(devices=[]):  # loaders draw a seed: training is the same without validation
                    row |= _validate(box, student, stage, is_end, accelerator)
            if is_end and row.get("tuples") == 0:
                logger.warning(
                    "%s: its last epoch had no tuple: no negative within the margin, or no pair of one class",
                    stage.name,
                )
            done += 1
            yield stage, row
            _finish_epoch(box, is_end, accelerator)


def _train_epoch(box: Any, stage: Stage, title: str, epoch: int, accelerator: Accelerator) -> EpochRow:
    box.pre_epoch_process(epoch=epoch)
    if isinstance(box.train_data_loader.dataset, FixedViews):
        box.train_data_loader.dataset.set_epoch(epoch)
    lr = box.optimizer.param_groups[0]["lr"]
    has_pairs = stage.kind != "embedding"
    disable = None if accelerator.is_main_process else True
    with tqdm(box.train_data_loader, desc=title, disable=disable, leave=False, dynamic_ncols=True) as bar:
        means = _Means()
        for step, batch in enumerate(bar, start=1):
            images, labels, *rest = batch
            images, labels = images.to(accelerator.device), labels.to(accelerator.device)
            with _failing_at(f"{title}, step {step}", len(images)):
                loss = box.forward_process(images, labels, rest[0] if rest else None)
            value = loss.item()
            if not math.isfinite(value):
                raise ConfigError(f"the loss is {value} at {title}, step {step}: stopped before the weights changed")
            box.post_forward_process(loss=loss)
            means.add({"loss": value, **getattr(box.criterion, "terms", {})}, len(images))
            if not bar.disable:
                shown = {name: f"{value:.4g}" for name, value in means().items()}
                lr_now = f"{box.optimizer.param_groups[0]['lr']:.2g}"
                bar.set_postfix({**shown, "lr": lr_now, "img/s": f"{means.speed:.0f}"})
            has_pairs = has_pairs or _can_compare(labels)
    if not has_pairs:
        raise ConfigError(
            f"{title}: no batch held two samples of one class and one of another, so stage 'embedding' has nothing to "
            "compare: shuffle the training set, enlarge the batch, or sample with ClassBalancedBatchSampler"
        )
    return {"lr": lr, **means(), "images_per_second": means.speed, "seconds": means.seconds}


class _Means:
    """The running means of an epoch's loss and terms, and its speed on this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._batches = 0
        self._images = 0
        self._start = time.perf_counter()

    def add(self, terms: Mapping[str, Tensor | float], images: int) -> None:
        """Adds one batch."""
        self._batches += 1
        self._images += images
        self.seconds = time.perf_counter() - self._start
        for name, value in terms.items():
            self._sums[name] += float(value)

    def __call__(self) -> dict[str, float]:
        return {name: value / self._batches for name, value in self._sums.items()}

    @property
    def speed(self) -> float:
        """Images per second."""
        return self._images / max(self.seconds, 1e-9)


@contextmanager
def _failing_at(place: str, images: int) -> Iterator[None]:
    """Says in which batch a model or loss refused its input."""
    try:
        yield
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(
            f"{place}: nothing is recorded under {error}: is it a module path that is missing in a forward_hook?"
        ) from error
    except (ValueError, IndexError) as error:
        hint = " (the batch has one image; kwargs.drop_last: True leaves it out)" if images == 1 else ""
        raise ConfigError(f"{place}: {error}{hint}") from error


def _can_compare(labels: Tensor) -> bool:
    """Whether the batch has a positive pair and a negative."""
    present = len(set(labels.tolist()))
    return 1 < present < len(labels)


def _validate(box: Any, student: nn.Module, stage: Stage, is_end: bool, accelerator: Accelerator) -> EpochRow:
    loader = box.val_data_loader
    if loader is None:
        return {}
    student.eval()
    _share_buffers(student, accelerator)
    if stage.kind != "embedding":
        with accelerator.autocast():  # of a student in a wrapper, Accelerate prepared the wrapper
            return dict(evaluate(student, loader, accelerator, "validation").as_dict())
    if not is_end:
        return {}
    path = box.criterion.student_embedding
    return dict(student_ncm(student, path, box.train_data_loader, loader, accelerator).as_dict("ncm_"))


def _share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the batch-norm statistics of the main one, which are those that are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def _finish_epoch(box: Any, is_stage_end: bool, accelerator: Accelerator) -> None:
    """torchdistill's post-epoch process, which moves to the next stage after the last epoch of one."""
    teacher, dataset = getattr(box, "teacher_model", None), box.train_data_loader.dataset
    if is_stage_end:
        # Accelerate wraps forward() anew in every stage: undo it, or the wrappers would pile up.
        accelerator.unwrap_model(getattr(box, "student_model", None) or box.model, keep_fp32_wrapper=False)
        accelerator.free_memory()
    with torchdistill_errors("train"):
        box.post_epoch_process()
    new = getattr(box, "teacher_model", None)
    if new is teacher or not isinstance(new, RefilledTeacher) or not isinstance(teacher, RefilledTeacher):
        return
    loads_weights = box.train_config[f"stage{box.stage_number}"]["teacher"].get("src_ckpt")
    is_same_data = unwrapped(box.train_data_loader.dataset) is unwrapped(dataset)
    if is_same_data and not loads_weights and teacher.local_classifier.is_ready:
        new.adopt_centres(teacher)


def _autocast_teacher(box: Any, accelerator: Accelerator) -> None:
    """Runs the teacher in the student's precision: Accelerate prepares only models that train."""
    forward: Callable[..., Any] | None = getattr(box, "teacher_forward_proc", None)
    if forward is None:
        return

    @functools.wraps(forward)
    def in_precision(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    box.teacher_forward_proc = in_precision
