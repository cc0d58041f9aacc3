"""Shims for torchdistill 1.1.5, each with a test that fails once it is not needed; Accelerate's: ``runner.devices``."""

import functools
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torchdistill.core.distillation import DistillationBox
from torchdistill.core.training import TrainingBox
from torchdistill.datasets import util

from gkd_plugin.errors import ConfigError

_BUILDERS = {"build_data_loaders": "train_data_loader", "get_optimizer": "optimizer", "get_scheduler": "scheduler"}
"""Functions of torchdistill, and the key of a stage's part that each builds."""


def install_prepare_hook() -> None:
    """Lets teacher and criterion see the box before it wraps the models, by calling their ``prepare(box, stage)``.

    Symptom: no part that a plugin can register is shown the student or the data after the models are built and before
    DDP wraps them. Stage ``embedding`` must freeze the student's classifier just there: under DDP a classifier without
    gradient stops training, with or without ``find_unused_parameters``. And the teacher must learn how the training
    images are normalised before the first one reaches it. Installing twice is harmless.
    """
    original: Callable[..., None] = DistillationBox.setup_loss
    if getattr(original, "calls_prepare", False):
        return

    @functools.wraps(original)
    def setup_loss(self: Any, train_config: dict[str, Any]) -> None:
        original(self, train_config)
        for part in (getattr(self, "teacher_model", None), self.criterion):
            prepare = getattr(part, "prepare", None)
            if prepare is not None:
                prepare(self, train_config)

    setup_loss.calls_prepare = True  # type: ignore[attr-defined]
    DistillationBox.setup_loss = setup_loss


def install_own_processes() -> None:
    """Lets every box keep the processes before and after its epochs and steps.

    Symptom: torchdistill sets them on the class of the box, so that a second box in a process changes what the first
    one does from then on. Installing twice is harmless.
    """
    for kind in (DistillationBox, TrainingBox):
        original: Callable[..., None] = kind.setup_pre_post_processes
        if getattr(original, "keeps_own", False):
            continue

        @functools.wraps(original)
        def setup(self: Any, train_config: dict[str, Any], kind: Any = kind, original: Any = original) -> None:
            original(self, train_config)
            self.own_processes = {name: vars(kind)[name] for name in _PROCESSES}
            for name in _PROCESSES:
                setattr(kind, name, _of_its_own(name))

        setup.keeps_own = True  # type: ignore[attr-defined]
        kind.setup_pre_post_processes = setup


_PROCESSES = ("pre_epoch_process", "pre_forward_process", "post_forward_process", "post_epoch_process")


def _of_its_own(name: str) -> Callable[..., Any]:
    def process(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.own_processes[name](self, *args, **kwargs)

    return process


def install_streams() -> None:
    """Lets torchdistill's loaders read data sets without an index, of :class:`gkd_plugin.data.Stream`.

    Symptom: it gives every loader a sampler, which torch refuses for an ``IterableDataset``, and wraps training sets in
    a set that asks for samples by index. Installing twice is harmless.
    """
    original, wrapper = util.DataLoader, util.BaseDatasetWrapper
    if getattr(original, "makes_streams", False):
        return

    def make_loader(dataset: Any, **kwargs: Any) -> Any:
        return getattr(dataset, "make_loader", functools.partial(original, dataset))(**kwargs)

    make_loader.makes_streams = True  # type: ignore[attr-defined]
    util.DataLoader = make_loader
    util.BaseDatasetWrapper = lambda dataset: dataset if hasattr(dataset, "make_loader") else wrapper(dataset)


def clip_unscaled(box: Any, accelerator: Any) -> None:
    """Makes ``optimizer.max_grad_norm`` of a stage clip the gradients themselves in float16.

    Symptom: in float16 Accelerate multiplies the loss by up to 65536 and divides the gradients just before the step;
    torchdistill clips between the two, so that ``max_grad_norm: 2.0`` leaves gradients of 2 / 65536. A hook on the
    optimizer itself runs after the division; a fused optimizer divides in its own step, and has the scaler's factor on
    it until then. Does nothing without a scaler. The box has the optimizer of the stage that begins.
    """
    if box.max_grad_norm is None or accelerator.scaler is None:
        return
    limit, box.max_grad_norm = box.max_grad_norm, None

    def clip(optimizer: Optimizer, *_: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, limit if scale is None else limit * float(scale))

    box.optimizer.optimizer.register_step_pre_hook(clip)


@contextmanager
def torchdistill_errors(where: str) -> Iterator[None]:
    """Around torchdistill's building of the stage at key path ``where``: what it raises becomes a ConfigError."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OSError) as error:
        called = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        place = next((f"{where}.{key}" for function, key in _BUILDERS.items() if function in called), where)
        if isinstance(error, ConfigError):  # begins with a key of the stage, unless it is of a part
            raise ConfigError(f"{place}{'.' if place == where else ': '}{error}") from error
        reason = textwrap.shorten(str(error), 300, placeholder=" …")  # torch lists every missing weight
        raise ConfigError(f"{place}: torchdistill cannot build this stage: {reason}") from error
