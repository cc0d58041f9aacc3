"""``old_class_distillation``: Learning without Forgetting's loss as a torchdistill mid-level loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box.hooks import hooked_tensor
from gkd_plugin.box.registry import register
from gkd_plugin.errors import ConfigError, user_can_mend
from gkd_plugin.functional import check_temperature
from gkd_plugin.functional._precision import exact_dtype, no_autocast

__all__ = ["OldClassDistillation"]


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "old_class_distillation")
class OldClassDistillation(nn.Module):
    r"""τ² · mean_i KL(softmax(t_i / τ) ‖ softmax(s_i[:C_t] / τ)), Li and Hoiem 2017; no λ.

    t are the teacher's logits ``[B, C_t]`` and s[:C_t] the student's of the old classes, its first C_t, as
    :func:`gkd_plugin.data.incremental_subset` numbers them. Computed in float32 at least, under autocast too; the
    gradient of what a student knows of new classes is 0.

    Args:
        temperature: τ > 0.
        student_module_path: where the student's logits ``[B, C]``, C ≥ C_t, are recorded.
        student_module_io: 'output' or 'input'.
        teacher_module_path: where the teacher's own logits are recorded.
        teacher_module_io: 'output' or 'input'.

    Raises:
        ConfigError: the temperature is not above 0, a path is not recorded, or the student has fewer classes than the
            teacher.
    """

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        student_module_path: str = ".",
        student_module_io: str = "output",
        teacher_module_path: str = ".",
        teacher_module_io: str = "output",
    ) -> None:
        super().__init__()
        with user_can_mend("old_class_distillation"):
            check_temperature("temperature", temperature)
        self.temperature = temperature
        self.student_hook = (student_module_path, student_module_io)
        self.teacher_hook = (teacher_module_path, teacher_module_io)

    def forward(
        self,
        student_io_dict: Mapping[str, Any],
        teacher_io_dict: Mapping[str, Any],
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        """The loss of a batch, a scalar in nats."""
        student = hooked_tensor(student_io_dict, "student", *self.student_hook)
        teacher = hooked_tensor(teacher_io_dict, "teacher", *self.teacher_hook).detach().to(student.device)
        old = teacher.shape[1]
        if student.shape[1] < old:
            raise ConfigError(
                f"old_class_distillation: the student has {student.shape[1]} classes, fewer than the teacher's {old}, "
                "which are to be its first ones"
            )
        with no_autocast(student):
            dtype = exact_dtype(student)
            ours = (student[:, :old].to(dtype) / self.temperature).log_softmax(dim=1)
            theirs = (teacher.to(dtype) / self.temperature).log_softmax(dim=1)
            divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            return self.temperature**2 * divergence.to(torch.promote_types(student.dtype, torch.float32))

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return f"temperature={self.temperature}"
