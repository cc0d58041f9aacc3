"""``refilled_cosine``: a learning rate that is told how long its stage is."""

import math
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchdistill.optim.registry import SCHEDULER_DICT, register_scheduler

from gkd_plugin.box import register
from gkd_plugin.errors import ConfigError, is_number


@register(SCHEDULER_DICT, register_scheduler, "refilled_cosine")
class RefilledCosine(LRScheduler):
    r"""Linear warm-up, then a cosine to the end of the stage, whose length nobody has to write down.

    With L steps of which W = ⌈warmup · L⌉ warm up, the rate of step t = 0 … L − 1 is the optimizer's times

    - (t + 1) / (W + 1) for t < W,
    - final + (1 − final) · (1 + cos(π (t − W) / (L − W))) / 2 from then on.

    A step is one of the optimizer with ``scheduling_step: 1`` of the scheduler's section, otherwise an epoch. Our
    runner, and the pre-epoch process ``refilled`` under torchdistill's own script, tell it L; until then the rate is
    the optimizer's.

    Args:
        optimizer: torchdistill supplies it.
        warmup: share of the steps, in [0, 1).
        final: share of the rate that is left at the end, in [0, 1].

    Raises:
        ConfigError: a share is out of range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, final: float = 0.0) -> None:
        for name, value, below in (("warmup", warmup, 1 - 1e-9), ("final", final, 1)):
            if not is_number(value) or not 0 <= value <= below:
                raise ConfigError(f"{name}: must be a number from 0 to 1, got {value!r}")
        self.warmup, self.final, self.length = warmup, final, 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group at the present step."""
        if self.last_epoch > 0 and not self.length:
            text = "refilled_cosine was not told its length, so the rate stays; pre_epoch_process: 'refilled' tells it"
            warnings.warn(text, stacklevel=2)
        return [rate * self._factor(self.last_epoch) for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        if not self.length:
            return 1.0
        rising = math.ceil(self.warmup * self.length)
        if step < rising:
            return (step + 1) / (rising + 1)
        turned = math.pi * min((step - rising) / max(self.length - rising, 1), 1)
        return self.final + (1 - self.final) * (1 + math.cos(turned)) / 2

    def tell(self, length: int) -> None:
        """The number of steps."""
        self.length = length
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the same share of its length, which other processes take in another number of steps."""
        length = self.length
        super().load_state_dict(state_dict)
        if length not in (0, self.length):
            self.last_epoch = round(self.last_epoch * length / self.length)
            self.tell(length)


def tell_schedule(box: Any) -> None:
    """Tells the schedule of the box's present stage, if it is :class:`RefilledCosine`, how many steps it will take."""
    schedule = box.lr_scheduler
    if not isinstance(schedule, RefilledCosine) or schedule.length:
        return
    number = getattr(box, "stage_number", None)
    epochs = box.num_epochs if number is None else box.train_config[f"stage{number}"]["num_epochs"]
    by_update = box.scheduling_step > 0
    updates = epochs * len(box.train_data_loader) // math.lcm(box.scheduling_step or 1, box.grad_accum_step)
    schedule.tell(max(updates if by_update else epochs, 1))
