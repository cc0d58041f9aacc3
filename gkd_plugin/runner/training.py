"""The epoch loop over a torchdistill box, stage by stage."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from gkd_plugin.box.upstream import clip_unscaled, torchdistill_errors
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import UNLABELLED, FixedViews
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.accuracy import LAST_EPOCHS, evaluate, student_ncm
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)


def train_epochs(
    box: Any,
    student: nn.Module,
    stages: Sequence[Stage],
    accelerator: Accelerator,
    cache: TeacherCache | None = None,
    *,
    val_freq: int = 1,
) -> Iterator[tuple[Stage, dict[str, Any]]]:
    """Trains torchdistill's box to the end; yields a stage and a row of metrics after every epoch.

    A row holds ``stage``, ``epoch`` (from 1, within the stage), ``lr``, the means of the loss and its terms,
    ``images_per_second``, ``seconds``, and on the validation set, after every ``val_freq``-th epoch of a stage and its
    last three, ``top1`` / ``top5``, or ``ncm_top1`` after the last epoch of a stage ``embedding``. The first of a stage
    has ``preparation_seconds``, those before its first step. ``student`` is the model itself, unwrapped. With a cache
    the teacher answers from it.
    """
    done = 0
    for stage in stages:
        start = time.perf_counter()
        if hasattr(box, "teacher_forward_proc"):  # Accelerate prepares only models that train
            box.teacher_forward_proc = accelerator.autocast()(box.teacher_forward_proc)
        clip_unscaled(box, accelerator)
        if cache is not None:
            cache.attach(box, accelerator)
        for number in range(1, stage.epochs + 1):
            is_end = number == stage.epochs
            row: dict[str, Any] = {"stage": stage.name, "epoch": number}
            row |= _train_epoch(box, stage, f"{stage.name} {number}/{stage.epochs}", done, accelerator)
            if number == 1:  # the local classifier is fitted, and the teacher cache opened
                row["preparation_seconds"] = time.perf_counter() - start - row["seconds"]
            if number % val_freq == 0 or number > stage.epochs - LAST_EPOCHS:
                with torch.random.fork_rng(devices=[]):  # loaders draw a seed: training is the same without validation
                    row |= _validate(box, student, stage, is_end, accelerator)
            if is_end and row.get("tuples") == 0:
                text = "%s: its last epoch had no tuple: no negative within the margin, or no pair of one class"
                logger.warning(text, stage.name)
            done += 1
            yield stage, row
            _finish_epoch(box, is_end, accelerator)


def _train_epoch(box: Any, stage: Stage, title: str, epoch: int, accelerator: Accelerator) -> dict[str, Any]:
    box.pre_epoch_process(epoch=epoch)
    if isinstance(box.train_data_loader.dataset, FixedViews):
        box.train_data_loader.dataset.set_epoch(epoch)
    lr = box.optimizer.param_groups[0]["lr"]
    has_pairs = stage.kind != "embedding"
    disable = None if accelerator.is_main_process else True
    sums: dict[str, float] = {}
    step, count, seconds, start = 0, 0, 0.0, time.perf_counter()
    with tqdm(box.train_data_loader, desc=title, disable=disable, leave=False, dynamic_ncols=True) as bar:
        for step, batch in enumerate(bar, start=1):
            images, labels, *rest = batch
            images, labels = images.to(accelerator.device), labels.to(accelerator.device)
            place = f"{title}, step {step}"
            loss = _loss(box, place, images, labels, *rest)
            value = loss.item()
            known = [label for label in labels.tolist() if label != UNLABELLED]
            if not math.isfinite(value):
                lacks = "" if known else " (the batch has no image with a label: MixedBatchSampler gives each some)"
                raise ConfigError(f"the loss is {value} at {place}{lacks}: stopped before the weights changed")
            box.post_forward_process(loss=loss)
            terms = {"loss": value, **getattr(box.criterion, "terms", {})}
            sums |= {name: sums.get(name, 0.0) + float(term) for name, term in terms.items()}
            count, seconds = count + len(images), time.perf_counter() - start
            if not bar.disable:
                shown = {name: f"{total / step:.4g}" for name, total in sums.items()}
                lr_now = f"{box.optimizer.param_groups[0]['lr']:.2g}"
                bar.set_postfix({**shown, "lr": lr_now, "img/s": f"{count / seconds:.0f}"})
            has_pairs = has_pairs or 1 < len(set(known)) < len(known)
    if not has_pairs:
        found = "no batch held two samples of one class and one of another, so stage 'embedding' has nothing to compare"
        cures = "shuffle the training set, enlarge the batch, or sample with ClassBalancedBatchSampler"
        raise ConfigError(f"{title}: {found}: {cures}")
    means = {name: total / step for name, total in sums.items()}
    return {"lr": lr, **means, "images_per_second": count / max(seconds, 1e-9), "seconds": seconds}


def _loss(box: Any, place: str, images: Tensor, labels: Tensor, more: Any = None, *_: Any) -> Tensor:
    """Of a batch; says where a model or loss refused its input."""
    try:
        return cast("Tensor", box.forward_process(images, labels, more))
    except ConfigError:
        raise
    except KeyError as error:
        text = f"{place}: nothing is recorded under {error}: is it a module path that a forward_hook lacks?"
        raise ConfigError(text) from error
    except (ValueError, IndexError) as error:
        hint = " (the batch has one image; kwargs.drop_last: True leaves it out)" if len(images) == 1 else ""
        raise ConfigError(f"{place}: {error}{hint}") from error


def _validate(box: Any, student: nn.Module, stage: Stage, is_end: bool, accelerator: Accelerator) -> dict[str, Any]:
    loader = box.val_data_loader
    if loader is None:
        return {}
    student.eval()
    if accelerator.num_processes > 1:  # the batch-norm statistics that are saved are those of the main process
        for buffer in student.buffers():
            broadcast(buffer)
    if stage.kind != "embedding":
        with accelerator.autocast():  # of a student in a wrapper, Accelerate prepared the wrapper
            return dict(evaluate(student, loader, accelerator, "validation").as_dict())
    if not is_end:
        return {}
    path = box.criterion.student_embedding
    return dict(student_ncm(student, path, box.train_data_loader, loader, accelerator).as_dict("ncm_"))


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
