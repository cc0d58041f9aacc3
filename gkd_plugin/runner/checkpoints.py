"""The state of a run that has not ended, kept in its folder through Accelerate: the run can go on where it stood."""

import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from gkd_plugin.box.schedule import RefilledCosine
from gkd_plugin.data import UNLABELLED, Stream
from gkd_plugin.data.files import told_unwritten, write_atomically
from gkd_plugin.data.labels import length_of
from gkd_plugin.data.views import RandomStates, seed_cpu
from gkd_plugin.errors import ConfigError, first_line, raised_in
from gkd_plugin.losses.ranks import rank
from gkd_plugin.runner.run_folder import FOLDER, STUDENT, read_json, write_json
from gkd_plugin.runner.stopping import heeded
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)

_PROGRESS, _STATE, _UNFINISHED = "progress.json", "state", ".unfinished"
NOT_FINITE = "the student's weights contain NaN or infinity and were not saved"
_SHARE = 0.02  # of the time, at most, goes into checkpoints at the end of epochs


@dataclass
class Progress:
    """Where a training stands, and what it has counted of the epoch that has begun."""

    stage: int = 0  # index
    epoch: int = 0  # from 1, within the stage
    step: int = 0  # the last one of the epoch that is done
    updates: int = 0  # steps of all epochs
    is_over: bool = False  # the epoch, its validation and what the caller does with its figures
    top1: float | None = None  # on the validation set, for ReduceLROnPlateau
    lr: float = 0.0  # at its start
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0  # of these seconds, those in which a batch was waited for
    has_pairs: bool = False  # a batch held two samples of one class and one of another
    counts: int = 0  # steps in the sums
    sums: dict[str, float] = field(default_factory=dict)  # of the loss and its terms

    def __post_init__(self) -> None:
        self._unread: list[tuple[str, Tensor, list[str], Tensor]] = []  # place, labels, names, figures of a step

    def count(self, place: str, labels: Tensor, loss: Tensor, terms: Mapping[str, Any]) -> None:
        """Adds a step. Its figures are read later: a GPU that has yet to compute them is not waited for."""
        self.images += len(labels)
        named = {"loss": loss, **terms}
        values = [torch.as_tensor(term, dtype=torch.float32, device=loss.device).view(1) for term in named.values()]
        self._unread.append((place, labels, list(named), torch.cat(values).detach()))

    def read(self) -> None:
        """Takes the figures of the steps since the last time into the sums; refuses a loss that is not finite."""
        for place, labels, names, figures in self._unread:
            values = dict(zip(names, figures.tolist(), strict=True))
            if not math.isfinite(values["loss"]):
                hint = " (the batch has no image with a label: MixedBatchSampler gives each some)"
                lacks = hint if bool((labels == UNLABELLED).all()) else ""
                found = f"the loss is {values['loss']} at {place}{lacks}"
                raise ConfigError(f"{found}: the run stops, and its weights from here on are not saved")
            self.counts += 1
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self._unread.clear()

    def means(self, since: "Progress | None" = None) -> dict[str, float]:
        """Over the steps that were read, or those of them after ``since``."""
        counts, sums = (since.counts, since.sums) if since else (0, {})
        return {name: (total - sums.get(name, 0.0)) / (self.counts - counts) for name, total in self.sums.items()}


class Loading:
    """The random numbers that load an epoch's batches, apart from those of the models: they can be loaded again.

    ``seconds`` are those that it takes, added to those before.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.states = RandomStates()  # before the first batch; in the end those after the last one
        self._models: RandomStates | None = None  # while a batch is loaded

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of the loader."""
        batches: Iterator[Any] | None = None
        while True:
            start, self._models = time.perf_counter(), RandomStates()
            try:
                self.states.restore()
                batches = _begun(loader) if batches is None else batches
                with heeded():
                    batch = next(batches, None)
            except (ConfigError, OSError):
                raise
            except Exception as error:  # of anybody's data set; of a worker, with its traceback
                lines = str(error).strip().splitlines() or [""]
                what = lines[-1] if len(lines) > 1 else f"{lines[0]} ({raised_in(error)})"
                raise ConfigError(f"a batch cannot be loaded: {what}") from error
            finally:
                self.states = RandomStates()
                self.end()
                self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def end(self) -> None:
        """The random states are those of the models again, also where a request to stop came before they were."""
        if self._models is not None:
            self._models.restore()
            self._models = None


def _begun(loader: Iterable[Any]) -> Iterator[Any]:
    order = getattr(loader, "synchronized_generator", None)  # of several processes; that of the main one decides
    if order is not None:
        order.manual_seed(int(torch.randint(2**62, ())))
    if order is not None or (isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)):
        seed_cpu(f"loading {int(torch.randint(2**62, ()))}, {rank()}")  # or all would draw the same crops and flips
    return iter(loader)


class Checkpoints:
    """Keeps the state of a training; see docs/configuration.md for the settings, the section ``checkpoint``.

    Weights, optimizer, scaler and random states are what Accelerate saves; scheduler, criterion, local classifier and
    the random states of the loading are this object's own state. ``summary`` is that of the run.
    """

    def __init__(
        self, folder: Path, box: Any, accelerator: Accelerator, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.box, self.accelerator = folder / FOLDER, box, accelerator
        self.settings: dict[str, Any] = {"every_steps": None, "every_minutes": 10, "keep": 1, **(settings or {})}
        self.summary: dict[str, Any] = {}
        self._before: RandomStates | None = None  # the first batch of the epoch that has begun
        self._models: RandomStates | None = None  # when the checkpoint was made
        self._saved, self._cost = time.perf_counter(), 0.0
        logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file
        accelerator.register_for_checkpointing(self)

    def last(self) -> tuple[Progress, dict[str, Any]] | None:
        """Where the last checkpoint stands, and the summary of its run; ``None`` where there is none."""
        found = read_json(self._last() / _PROGRESS)
        if not found:
            return None
        sums, at, now = found["sums"], found["progress"], self.accelerator.num_processes  # sums of each process
        if len(sums) != now:  # the same share of the epoch is done
            at |= {name: math.ceil(at[name] * len(sums) / now) for name in ("step", "images")}
            sums = [{name: sum(one[name] for one in sums) / len(sums) for name in sums[0]}] * now
        own = sums[self.accelerator.process_index]
        return Progress(**{**at, "sums": own}), found["summary"]

    def _last(self) -> Path:
        return max(self.folder.glob("[0-9]*"), default=self.folder)

    def load(self) -> None:
        """Puts the last checkpoint into the box, which is at its stage; Python's, NumPy's and torch's states too."""
        try:
            self.accelerator.load_state(str(self._last() / _STATE))
        except Exception as error:  # whatever a damaged or foreign file raises
            advice = "remove that folder; --resume then starts from the beginning"
            raise ConfigError(f"--resume: {self._last()} cannot be used: {first_line(error)}; {advice}") from error
        kept = self._last() / STUDENT  # the file in the run's folder may be of an epoch that comes again
        if self.accelerator.is_main_process and kept.exists():
            write_atomically(self.folder.parent / STUDENT, lambda file: shutil.copy(kept, file))
        self.box.optimizer.optimizer._opt_called = True  # noqa: SLF001  # in its run: torch warns where a schedule goes first
        if getattr(self.box.train_data_loader, "persistent_workers", False):
            logger.warning("persistent_workers: new workers draw other random transforms than those of the run would")

    def begin(self, loading: Loading, *, is_resumed: bool) -> RandomStates | None:
        """An epoch begins, or goes on: then its batches come as before; gives the random states of the models."""
        if is_resumed and self._before is not None:
            loading.states = self._before
        self._before = loading.states
        return self._models if is_resumed else None

    def save(self, progress: Progress) -> None:
        """Adds a checkpoint in one step, and removes the oldest."""
        made = self.folder / f"{progress.updates:09d}.{int(progress.is_over)}"
        if made.exists():
            return
        progress.read()
        sums = gather_object([progress.sums])
        if not all(bool(torch.isfinite(parameter).all()) for parameter in _parameters(self.box)):
            raise ConfigError(NOT_FINITE)
        start = time.perf_counter()
        new, is_main = self.folder / _UNFINISHED, self.accelerator.is_main_process
        with told_unwritten(self.folder):
            if is_main:
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(new / _STATE), safe_serialization=False)
        self.accelerator.wait_for_everyone()
        if is_main:
            if "kept" in self.summary:
                shutil.copy(self.folder.parent / STUDENT, new)
            write_json(new / _PROGRESS, {"progress": asdict(progress), "sums": sums, "summary": self.summary})
            new.rename(made)
            for old in sorted(self.folder.glob("[0-9]*"))[: -self.settings["keep"]]:
                shutil.rmtree(old)
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def save_when_due(self, progress: Progress) -> None:
        """After a step by the settings; after an epoch unless that would cost more than 2 % of the time."""
        since = time.perf_counter() - self._saved
        steps, minutes = self.settings["every_steps"], self.settings["every_minutes"]
        if progress.is_over:
            is_due = gather_object([since * _SHARE >= self._cost])[0]
        else:
            by_time = minutes and since > 60 * minutes and self.accelerator.num_processes == 1  # clocks differ
            is_due = by_time or (steps and progress.updates % steps == 0)
        if is_due:
            self.save(progress)

    def clear(self) -> None:
        """Removes all: the run has ended."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate: what it does not keep itself."""
        parts = {name: part.state_dict() for name, part in _parts(self.box)}
        own = {"parts": parts, "loading": None if self._before is None else self._before.values}
        gradients = [parameter.grad for parameter in _parameters(self.box)]  # those that accumulate
        steps = self.box.stage_grad_count
        return {"sizes": self._sizes(), "steps": steps, "gradients": gradients, "ranks": gather_object([own])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For Accelerate."""
        if (made := state["sizes"]) != (now := self._sizes()):
            raise ConfigError(f"made with {made}, now {now}: the same run cannot go on")
        made, schedule = len(state["ranks"]), self.box.lr_scheduler
        is_same, is_told = made == self.accelerator.num_processes, isinstance(schedule, RefilledCosine | None)
        if not is_same and not is_told and self.box.scheduling_step > 0:
            text = f"{type(schedule).__name__} counts steps, and another number of processes takes other steps"
            raise ConfigError(f"{text}: resume with {made} as before; in a new run, 'refilled_cosine' allows others")
        self._models = RandomStates() if is_same else None  # otherwise processes would share them
        own = state["ranks"][self.accelerator.process_index % made]
        for name, part in _parts(self.box):
            part.load_state_dict(own["parts"][name])
        for parameter, gradient in zip(_parameters(self.box), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.box.stage_grad_count = state["steps"]
        self._before = None if own["loading"] is None else RandomStates(own["loading"])

    def _sizes(self) -> str:
        dataset = self.box.train_data_loader.dataset  # a stream's length is that of this process's part
        count = dataset.reader.num_samples if isinstance(dataset, Stream) else length_of(dataset)
        return f"{count} training samples"


def _parameters(box: Any) -> list[nn.Parameter]:
    return [parameter for group in box.optimizer.param_groups for parameter in group["params"]]


def _parts(box: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a stage with a state that Accelerate does not know."""
    if box.lr_scheduler is not None:
        yield "scheduler", box.lr_scheduler
    if isinstance(box.criterion, nn.Module):
        yield "criterion", box.criterion
        for name, (term, _) in getattr(box.criterion, "term_dict", {}).items():  # torchdistill's, in a plain dict
            if isinstance(term, nn.Module):
                yield f"criterion.{name}", term
    teacher = getattr(box, "teacher_model", None)
    if isinstance(teacher, RefilledTeacher):
        yield "local_classifier", teacher.local_classifier
