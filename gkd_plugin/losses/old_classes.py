"""``old_class_distillation``: Learning without Forgetting's loss as a torchdistill mid-level loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box.registry import register
from gkd_plugin.errors import ConfigError, user_can_mend
from gkd_plugin.functional import check_temperature
from gkd_plugin.functional._common import exact_dtype, no_autocast
from gkd_plugin.losses.term import Term

__all__ = ["OldClassDistillation"]


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "old_class_distillation")
@dataclass(kw_only=True, eq=False, repr=False)
class OldClassDistillation(Term):
    r"""τ² · mean_i KL(softmax(t_i / τ) ‖ softmax(s_i[:C_t] / τ)), Li and Hoiem 2017; no λ.

    t are the teacher's logits ``[B, C_t]`` and s[:C_t] the student's of the old classes, its first C_t, as
    :func:`gkd_plugin.data.incremental_subset` numbers them. Computed in float32 at least, under autocast too. The
    student's logits of new classes get no gradient.

    Args:
        temperature: τ > 0.

    Raises:
        ConfigError: the temperature is not above 0; in training, a path is not recorded or the student has fewer
            classes than the teacher.
    """

    key = "old_class_distillation"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        with user_can_mend(self.key):
            check_temperature("temperature", self.temperature)

    def compute(self, targets: Tensor | None, student: Tensor, teacher: Tensor) -> Tensor:  # noqa: ARG002
        """The loss in nats, a scalar, of logits ``[B, C]`` and ``[B, C_t]``."""
        old = teacher.shape[1]
        if student.shape[1] < old:
            raise ConfigError(
                f"{self.key}: the student has {student.shape[1]} classes, fewer than the teacher's {old}, which are to "
                "be its first ones"
            )
        with no_autocast(student):
            dtype = exact_dtype(student)
            ours = (student[:, :old].to(dtype) / self.temperature).log_softmax(dim=1)
            theirs = (teacher.detach().to(dtype) / self.temperature).log_softmax(dim=1)
            divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            return self.temperature**2 * divergence.to(torch.promote_types(student.dtype, torch.float32))
