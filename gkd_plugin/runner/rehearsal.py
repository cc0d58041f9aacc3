"""A rehearsal on copies: every stage takes one batch before the first one trains, for no stage to fail after hours."""

import copy
import logging
import math
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import FixedStream, FixedViews, Stream, first_batch, seeded
from gkd_plugin.errors import ConfigError, first_line, raised_in
from gkd_plugin.teacher import Answers, RefilledTeacher

_PARTS = {name: name for name in ("criterion", "optimizer", "model")}  # attribute of a box → key of its stage
_PARTS |= {"lr_scheduler": "scheduler", "teacher_model": "teacher", "student_model": "student"}
_FEW = 8  # images that are scored
_OWN_STEPS = {"post_forward_process", "post_epoch_process"}  # of a stage: who knows when they step its scheduler?


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What happens inside leaves no trace in the random states of the CPU and of the ``device``, nor in the log."""
    before, devices = logging.root.manager.disable, [device] if device.type == "cuda" else []
    logging.disable(logging.CRITICAL)
    try:
        with seeded("rehearsal"), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def copies(
    teacher: nn.Module | None, student: nn.Module, stages: Sequence[Stage]
) -> tuple[nn.Module | None, nn.Module]:
    """Both models anew; a teacher that no stage can change, and may be large, with the same tensors as weights.

    A divided teacher is itself: there is no room for another, and FSDP does not copy.
    """
    roles = [stage.teacher for stage in stages]
    is_fixed = all(role and role.wrapper == "refilled_teacher" and not role.section.get("src_ckpt") for role in roles)
    kept = {id(weight): weight for weight in teacher.parameters()} if teacher is not None and is_fixed else {}
    if hasattr(teacher, "home"):
        return teacher, copy.deepcopy(student)
    return copy.deepcopy((teacher, student), kept)


def rehearse(
    box: Any,
    student: nn.Module,
    stages: Sequence[Stage],
    test_loader: Any,
    *,
    where: str,
    num_classes: int | None,
    accelerator: Accelerator,
) -> None:
    """Walks a box that Accelerate has not prepared through its stages, which has to be :func:`undisturbed`.

    Each stage is built, takes the first batch of its training set forward and backward, steps its optimizer and its
    scheduler (for the first and the last time), and scores a few images of its validation set; at the end a few of
    the test set are scored. Every process does so by itself. Raises ConfigError with the key path of what fails.
    """
    scored: list[Any] = [None]
    for stage in stages:
        if stage is not stages[0]:
            for role in ("teacher", "student", "model"):  # their dst_ckpt would be written
                box.train_config.pop(role, None)
            box.accelerator = None
            with torchdistill_errors(stage.path):
                box.advance_to_next_stage()
        box.accelerator = accelerator  # a process of the stage may use it; until here it would prepare the models
        before = getattr(box.lr_scheduler, "last_epoch", 0)  # a stage may go on with that of an earlier one
        _check_batches(f"{stage.path}.train_data_loader", box.train_data_loader, accelerator)
        _step(box, stage, where, num_classes, accelerator)
        if stage.val_loader not in scored:
            _score(f"{stage.path}.val_data_loader", box.val_data_loader, student, accelerator)
        scored.append(stage.val_loader)
        _end(box, stage, before, accelerator)
    if test_loader is not None:
        _score("test.test_data_loader", test_loader, student, accelerator)


def _check_batches(place: str, loader: Any, accelerator: Accelerator) -> None:
    """Several processes take a batch each, and all of one size: the losses put them together."""
    sampler = loader.batch_sampler
    if accelerator.num_processes > 1 and sampler is not None and getattr(sampler, "batch_size", None) is None:
        lacks = f"{type(sampler).__name__} does not say its batch_size"
        raise ConfigError(f"{place}.batch_sampler: {lacks}; several processes need batches of one size")


def _step(box: Any, stage: Stage, where: str, num_classes: int | None, accelerator: Accelerator) -> None:
    """One step of training, as ``training.train_epochs`` makes it."""
    for name in ("student_forward_proc", "model_forward_proc", "teacher_forward_proc"):
        if hasattr(box, name):
            forward = accelerator.autocast()(getattr(box, name))
            setattr(box, name, forward if name.startswith("teacher") else convert_outputs_to_fp32(forward))
    with _told(f"{stage.path}.train_data_loader", "fails on its first batch"):
        images, labels, *rest = _first_batch(box.train_data_loader)
        images, labels = images.to(box.device), labels.to(box.device)
        if num_classes is not None and (label := int(labels.max())) >= num_classes:
            allows = f"{where}.kwargs.num_classes: {num_classes} allows 0 … {num_classes - 1}"
            raise ConfigError(f"it holds label {label}, but {allows}")
    with _told(stage.path, "fails on the first batch", box):
        teacher: Any = getattr(box, "teacher_model", None)
        is_asked = isinstance(teacher, RefilledTeacher)
        few = teacher.fields(images[:2]) if is_asked else {}
        if is_asked and "local_classifier" in box.teacher_io_dict:
            count = teacher.num_classes or num_classes or 1 + int(labels.max())
            rows = torch.randn(count, few["embedding"].shape[1], device=teacher.device)
            teacher.local_classifier.kind = "centres"  # random ones: to fit it to the training set may take minutes
            teacher.local_classifier.fit([(Answers(rows), torch.arange(count))], count)
        if is_asked and isinstance(box.train_data_loader.dataset, (FixedViews, FixedStream)):  # answers will be kept
            row = torch.arange(len(images)) % min(2, len(images))
            teacher.answer_with(Answers(**{name: values[row] for name, values in few.items()}))
        box.pre_epoch_process(epoch=0)
        loss = box.forward_process(images, labels, *rest[:1])
        box.stage_grad_count = box.grad_accum_step - 1  # for the optimizer to step now
        box.post_forward_process(loss=loss)


def _end(box: Any, stage: Stage, before: int, accelerator: Accelerator) -> None:
    """The end of its first epoch, and the last step of its scheduler, which has made some ``before`` this stage."""
    box.current_epoch = -1  # the box itself would move to the next stage
    with _told(stage.path, "fails at the end of an epoch", box):
        box.post_epoch_process(metrics=0.0)  # of ReduceLROnPlateau
    if box.lr_scheduler is None or isinstance(box.lr_scheduler, ReduceLROnPlateau) or _OWN_STEPS & stage.section.keys():
        return
    steps = stage.epochs
    if box.scheduling_step > 0:
        is_shared = not isinstance(box.train_data_loader.dataset, Stream)  # which is a process's part already
        batches = -(-len(box.train_data_loader) // (accelerator.num_processes if is_shared else 1))
        steps = stage.epochs * batches // math.lcm(box.scheduling_step, box.grad_accum_step)
    with _told(f"{stage.path}.scheduler", f"fails at step {steps}, its last"):
        box.lr_scheduler.last_epoch = before + max(steps - 1, 0)
        box.lr_scheduler.step()


@torch.no_grad()
def _score(place: str, loader: Any, student: nn.Module, accelerator: Accelerator) -> None:
    """Compares the student's scores of a few images with their labels, as ``accuracy.evaluate`` does."""
    with _told(place, "fails on its first batch"), accelerator.autocast():
        images, labels, *_ = _first_batch(loader, at_most=_FEW)
        scores = student.eval()(images.to(accelerator.device)).float()
        scores.topk(1, dim=1).indices.eq(labels.to(scores.device).unsqueeze(1))


def _first_batch(loader: Any, at_most: int | None = None) -> Any:
    """Made here, by no worker: starting those takes longer."""
    return first_batch(loader.dataset, next(iter(loader.batch_sampler))[:at_most], loader.collate_fn)


@contextmanager
def _told(place: str, doing: str, box: Any = None) -> Iterator[None]:
    """Makes a ConfigError of whatever is raised: with the key path ``place``, or that of the box's part that raised."""
    try:
        yield
    except Exception as error:  # losses, models and data sets may raise anything
        owners = {id(part): key for name, key in _PARTS.items() if (part := getattr(box, name, None)) is not None}
        found = (owners.get(id(frame.f_locals.get("self"))) for frame, _ in traceback.walk_tb(error.__traceback__))
        place = ".".join([place, *filter(None, found)][:2])
        reason = error if isinstance(error, ConfigError) else f"{first_line(error)} ({raised_in(error)})"
        raise ConfigError(f"{place}: {doing}: {reason}") from error
