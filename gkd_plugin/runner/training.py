"""The epoch loop over a torchdistill box, stage by stage."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from gkd_plugin.box.schedule import tell_schedule
from gkd_plugin.box.upstream import clip_unscaled, torchdistill_errors
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import UNLABELLED, Stream, seeded
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.errors import ConfigError, first_line, raised_in
from gkd_plugin.runner.accuracy import LAST_EPOCHS, evaluate, is_accuracy, student_ncm
from gkd_plugin.runner.checkpoints import Checkpoints, Loading, Progress
from gkd_plugin.runner.stopping import Stopped, heeded, undivided
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)

_RUN_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
_EPOCH_BAR = "{desc}: {percentage:3.0f}%|{bar}| {remaining}{postfix}"  # in 80 columns


class Training:
    """The training of torchdistill's box, stage by stage. ``student`` is the model itself, unwrapped.

    With a cache the teacher answers from it. With ``checkpoints`` it keeps them, and goes on where the last one stands.
    Every ``log_freq`` steps there is a line in the log, and ``track`` is given figures and the number of the step.
    """

    def __init__(
        self,
        box: Any,
        student: nn.Module,
        stages: Sequence[Stage],
        accelerator: Accelerator,
        cache: TeacherCache | None = None,
        *,
        val_freq: int = 1,
        log_freq: int = 100,
        checkpoints: Checkpoints | None = None,
        track: Callable[[Mapping[str, Any], int], None] = lambda *_: None,
    ) -> None:
        self.box, self.student, self.stages, self.accelerator = box, student, stages, accelerator
        self.cache, self.val_freq, self.checkpoints = cache, val_freq, checkpoints
        self.log_freq, self.track = log_freq, track
        self.reads_each_step = accelerator.device.type == "cpu"  # for which there is nothing to wait
        self.is_enough = False  # whoever gets the rows may set it: no epoch follows
        self._planned = sum(stage.epochs for stage in stages)
        self._begun: tuple[float, float] | None = None  # when the first step began, and the epochs done by then

    def epochs(self) -> Iterator[tuple[Stage, dict[str, Any]]]:
        """Trains to the end; yields a stage and a row of metrics after every epoch.

        A row holds ``stage``, ``epoch`` (from 1, within the stage), ``lr``, the means of the loss and its terms,
        ``images_per_second``, ``seconds``, the share of these in which it was ``waiting`` for images, and on the
        validation set, after every ``val_freq``-th epoch of a stage and its last three, ``top1`` / ``top5``, or
        ``ncm_top1`` after the last epoch of a stage ``embedding``. The first of a stage has ``preparation_seconds``,
        those before its first step.
        """
        found = self.checkpoints and self.checkpoints.last()
        at = found[0] if found else Progress(is_over=True)
        self.updates = at.updates
        done = sum(stage.epochs for stage in self.stages[: at.stage]) + at.epoch
        settings: dict[str, Any] = {"initial": done, "bar_format": _RUN_BAR, "smoothing": 0, "miniters": 0}
        with self._bar(None, "all epochs", self._planned, **settings) as self._run_bar:
            yield from self._epochs(at, is_resumed=bool(found))

    def _epochs(self, at: Progress, *, is_resumed: bool) -> Iterator[tuple[Stage, dict[str, Any]]]:
        for _ in range(at.stage):
            self._skip_stage()
        for index, stage in enumerate(self.stages[at.stage :], at.stage):
            start, first = time.perf_counter(), 1
            self._begin_stage()
            if self.checkpoints is not None and is_resumed:
                self.checkpoints.load()
                self.box.current_epoch = self._epochs_before(at)  # of a box of several stages
                first, is_resumed = at.epoch + at.is_over, False
                if at.is_over:
                    self._finish_epoch(at, is_stage_end=self.is_enough or at.epoch == stage.epochs)
            for number in range(first, stage.epochs + 1):
                if self.is_enough:
                    return
                if at.is_over:
                    at = Progress(index, number, updates=at.updates)
                row: dict[str, Any] = {"stage": stage.name, "epoch": number}
                trained = at.seconds  # of an epoch that goes on
                try:
                    row |= self._train_epoch(stage, at)
                    if number == 1:  # the local classifier is fitted, and the teacher cache opened
                        row["preparation_seconds"] = time.perf_counter() - start - (row["seconds"] - trained)
                    with heeded():
                        row |= self._validate(stage, number)
                    at.top1 = row.get("top1")
                    with undivided():  # what the caller does with the row, too
                        self._track_epoch(row, at)
                        yield stage, row
                        at.is_over = True
                        self._save(at)
                except Stopped:
                    self._save(at, is_stopped=True)
                    raise
                self._finish_epoch(at, is_stage_end=self.is_enough or number == stage.epochs)

    def _epochs_before(self, at: Progress) -> int:
        """The epochs of all stages before the one that has begun."""
        return sum(stage.epochs for stage in self.stages[: at.stage]) + at.epoch - 1

    def _begin_stage(self) -> None:
        if hasattr(self.box, "teacher_forward_proc"):  # Accelerate prepares only models that train
            self.box.teacher_forward_proc = self.accelerator.autocast()(self.box.teacher_forward_proc)
        clip_unscaled(self.box, self.accelerator)
        tell_schedule(self.box)
        if self.cache is not None:
            self.cache.attach(self.box, self.accelerator)

    def _train_epoch(self, stage: Stage, at: Progress) -> dict[str, Any]:
        """Trains an epoch, or the steps of it that ``at`` leaves; the means over all its steps."""
        box, title = self.box, f"{stage.name} {at.epoch}/{stage.epochs}"
        epoch = self._epochs_before(at)
        box.pre_epoch_process(epoch=epoch)
        box.train_data_loader.iteration = at.epoch - 1  # what Accelerate tells samplers and FixedViews
        if isinstance(stream := box.train_data_loader.dataset, Stream):
            stream.set_epoch(epoch)
        at.lr = at.lr if at.step else box.optimizer.param_groups[0]["lr"]
        self._begun = self._begun or (time.perf_counter(), self._done(at))
        loading, start, told = Loading(at.waiting), time.perf_counter() - at.seconds, replace(at, sums=dict(at.sums))
        models = self.checkpoints.begin(loading, is_resumed=at.step > 0) if self.checkpoints is not None else None
        with seeded(f"models of {torch.initial_seed()}, {epoch}, {self.accelerator.process_index}"):
            if models is not None:
                models.restore()
            try:
                for step, batch in self._batches(loading, title, at):
                    with undivided():
                        self._step(f"{title}, step {step}", batch, at, stage)
                        at.step = step
                        self.updates = at.updates = at.updates + 1
                        at.seconds, at.waiting = time.perf_counter() - start, loading.seconds
                        is_told = step % self.log_freq == 0
                        if is_told:
                            at.read()
                        self._save(at)
                    if is_told:
                        self._tell(title, at, told)
                        told = replace(at, sums=dict(at.sums))
            except Stopped:
                loading.end()
                self._save(at, is_stopped=True)  # here, where the random states are those of the models
                raise
        loading.states.restore()
        at.read()
        at.seconds, at.waiting = time.perf_counter() - start, loading.seconds
        if stage.kind == "embedding" and not at.has_pairs:
            found = (
                "no batch held two samples of one class and one of another, so stage 'embedding' has nothing to compare"
            )
            cures = "shuffle the training set, enlarge the batch, or sample with ClassBalancedBatchSampler"
            raise ConfigError(f"{title}: {found}: {cures}")
        if at.epoch == stage.epochs and at.sums.get("tuples") == 0:
            text = "%s: its last epoch had no tuple: no negative within the margin, or no pair of one class"
            logger.warning(text, stage.name)
        return {"lr": at.lr, **self._means(at), **self._speed(at), "seconds": at.seconds}

    def _batches(self, loading: Loading, title: str, at: Progress) -> Iterator[tuple[int, Any]]:
        """The batches that are left of an epoch and the numbers of their steps, with a progress bar."""
        loader, trained = self.box.train_data_loader, at.step
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in self._trained.modules())
        with self._bar(loading.batches(loader), title, len(loader), bar_format=_EPOCH_BAR) as bar:
            for step, batch in enumerate(bar, start=1):
                if step <= trained:
                    continue
                if len(batch[0]) == 1 and step > 1 and has_batch_norm:
                    if at.epoch == 1:
                        text = "%s: the last batch has one image, which batch norm cannot use: it is left out"
                        logger.info(text, title)
                    continue
                yield step, batch
                if not bar.disable:
                    bar.set_postfix_str(self._shown({"loss": at.means().get("loss", 0.0)}, at), refresh=False)
                    self._run_bar.n = self._done(at)
                    self._run_bar.update(0)

    def _bar(self, iterable: Iterable[Any] | None, title: str, total: int, **settings: Any) -> Any:
        disable = None if self.accelerator.is_main_process else True
        return tqdm(iterable, title, total, leave=False, dynamic_ncols=True, disable=disable, **settings)

    def _done(self, at: Progress) -> float:
        """How many epochs of all stages are done, with the part of the one that has begun."""
        return self._epochs_before(at) + at.step / len(self.box.train_data_loader)

    def _shown(self, named: Mapping[str, float], at: Progress) -> str:
        """Figures for the bar and the log."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in named.items())
        speed = self._speed(at)
        return f"{figures}, {speed['images_per_second']:.0f} img/s, {100 * speed['waiting']:.0f} % waiting"

    def _tell(self, title: str, at: Progress, since: Progress) -> None:
        """A line in the log, and figures for the tracker; the means are those ``since`` the last time."""
        named = {**self._means(at, since), "lr": self.box.optimizer.param_groups[0]["lr"]}
        assert self._begun is not None
        (start, before), done = self._begun, self._done(at)
        left = (time.perf_counter() - start) / (done - before) * (self._planned - done)
        text, steps = "%s, step %d/%d: %s, %s left", len(self.box.train_data_loader)
        shown = self._shown(named, at), tqdm.format_interval(left)
        logger.info(text, title, at.step, steps, *shown, extra={"is_on_bar": True})
        self.track({f"train/{name}": value for name, value in {**named, **self._speed(at)}.items()}, at.updates)

    def _track_epoch(self, row: Mapping[str, Any], at: Progress) -> None:
        figures: dict[str, Any] = {"epoch": self._epochs_before(at) + 1}
        for name, value in row.items():
            if name not in ("stage", "epoch"):
                figures[f"{'val' if is_accuracy(name) else 'epoch'}/{name}"] = value
        self.track(figures, at.updates)

    def _step(self, place: str, batch: Any, at: Progress, stage: Stage) -> None:
        """One update, counted; says where a model or loss refused its input."""
        images, labels = (part.to(self.accelerator.device) for part in batch[:2])
        if stage.kind == "embedding" and not at.has_pairs:
            known = [label for label in self.accelerator.gather(labels).tolist() if label != UNLABELLED]
            at.has_pairs = 1 < len(set(known)) < len(known)
        try:
            loss = self.box.forward_process(images, labels, *batch[2:3])
            at.count(place, labels, loss, getattr(self.box.criterion, "terms", {}))
            if self.reads_each_step:
                at.read()  # before the weights change
            self.box.post_forward_process(loss=loss)
        except ConfigError:
            raise
        except KeyError as error:
            text = f"{place}: nothing is recorded under {error}: is it a module path that a forward_hook lacks?"
            raise ConfigError(text) from error
        except Exception as error:  # of anybody's model, loss or optimizer
            hint = " (the batch has one image; kwargs.drop_last: True leaves it out)" if len(images) == 1 else ""
            raise ConfigError(f"{place}: {first_line(error)}{hint} ({raised_in(error)})") from error

    def _validate(self, stage: Stage, epoch: int) -> dict[str, Any]:
        """The figures of an epoch that is validated; loaders draw a seed, and training is the same without it."""
        loader, is_end = self.box.val_data_loader, epoch == stage.epochs
        if loader is None or not (epoch % self.val_freq == 0 or epoch > stage.epochs - LAST_EPOCHS):
            return {}
        self.student.eval()
        if self.accelerator.num_processes > 1:  # the batch-norm statistics that are saved are those of the main process
            for buffer in self.student.buffers():
                broadcast(buffer)
        with torch.random.fork_rng(devices=[]):
            if stage.kind != "embedding":
                with self.accelerator.autocast():  # of a student in a wrapper, Accelerate prepared the wrapper
                    return dict(evaluate(self.student, loader, self.accelerator, "validation").as_dict())
            if not is_end:
                return {}
            path, train = self.box.criterion.student_embedding, self.box.train_data_loader
            return dict(student_ncm(self.student, path, train, loader, self.accelerator).as_dict("ncm_"))

    def _finish_epoch(self, at: Progress, *, is_stage_end: bool) -> None:
        """torchdistill's post-epoch process, which moves to the next stage after the last epoch of one."""
        box = self.box
        teacher, dataset = getattr(box, "teacher_model", None), box.train_data_loader.dataset
        if is_stage_end:
            self._release()
        with torchdistill_errors("train"):
            box.post_epoch_process(metrics=at.top1)
        new = getattr(box, "teacher_model", None)
        if new is teacher or not isinstance(new, RefilledTeacher) or not isinstance(teacher, RefilledTeacher):
            return
        loads_weights = box.train_config[f"stage{box.stage_number}"]["teacher"].get("src_ckpt")
        is_same_data = unwrapped(box.train_data_loader.dataset) is unwrapped(dataset)
        if is_same_data and not loads_weights and teacher.local_classifier.is_ready:
            new.adopt_centres(teacher)

    def _skip_stage(self) -> None:
        """To the next stage without training."""
        self._release()
        self.box.current_epoch = self.box.stage_end_epoch
        with torchdistill_errors("train"):
            self.box.advance_to_next_stage()

    def _release(self) -> None:
        """Accelerate wraps forward() anew in every stage: undo it, or the wrappers would pile up."""
        self.accelerator.unwrap_model(self._trained, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    @property
    def _trained(self) -> nn.Module:
        """The student as the box has it."""
        return cast("nn.Module", getattr(self.box, "student_model", None) or self.box.model)

    def _save(self, at: Progress, *, is_stopped: bool = False) -> None:
        """A checkpoint where one is due; or at once, but several processes do not stop at the same step."""
        if self.checkpoints is None or not (at.step or at.is_over):
            return
        if not is_stopped:
            self.checkpoints.save_when_due(at)
        elif self.accelerator.num_processes == 1:
            self.checkpoints.save(at)

    def _means(self, at: Progress, since: Progress | None = None) -> dict[str, float]:
        """The means over the steps, of all processes."""
        means = at.means(since)
        if self.accelerator.num_processes == 1:
            return means
        values = torch.tensor(list(means.values()), device=self.accelerator.device)
        return dict(zip(means, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def _speed(self, at: Progress) -> dict[str, float]:
        seconds = max(at.seconds, 1e-9)
        images = at.images * self.accelerator.num_processes
        return {"images_per_second": images / seconds, "waiting": at.waiting / seconds}
