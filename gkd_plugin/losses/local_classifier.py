"""``refilled_local_classifier``: local classifier distillation as a torchdistill mid-level loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box.hooks import hooked_tensor
from gkd_plugin.box.registry import register
from gkd_plugin.errors import ConfigError, nearest, user_can_mend
from gkd_plugin.functional import check_temperature, emphasis_weights, local_classifier_distillation

__all__ = ["LocalClassifierLoss"]

_CLASSES = ("batch", "all")


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "refilled_local_classifier")
class LocalClassifierLoss(nn.Module):
    r"""mean_i ω_i · KL(teacher's local classifier ‖ student) over the batch's classes, TPAMI 4.2 and 4.3; no λ.

    See :func:`gkd_plugin.functional.local_classifier_distillation` and
    :func:`gkd_plugin.functional.emphasis_weights` for the formulae.

    Args:
        temperature: τ₂ > 0.
        student_temperature: divisor of the student's logits, > 0.
        classes: 'batch' compares the classes present in the batch, as published; 'all' compares all of them.
        adaptive: weigh the samples by the confidence of the teacher's own classifier (ω); otherwise ω = 1.
        student_module_path: where the student's logits ``[B, C]`` are recorded.
        student_module_io: 'output' or 'input'.
        teacher_module_path: where the teacher's own logits ``[B, C_t]`` are recorded.
        teacher_module_io: 'output' or 'input'.
        local_classifier_path: where the local classifier's logits ``[B, C]`` are recorded.

    Raises:
        ConfigError: a hyper-parameter is out of range, or a path is not recorded.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        student_temperature: float = 1.0,
        adaptive: bool = True,
        classes: str = "batch",
        student_module_path: str = ".",
        student_module_io: str = "output",
        teacher_module_path: str = ".",
        teacher_module_io: str = "output",
        local_classifier_path: str = "local_classifier",
    ) -> None:
        super().__init__()
        with user_can_mend("refilled_local_classifier"):
            check_temperature("temperature", temperature)
            check_temperature("student_temperature", student_temperature)
        if not isinstance(adaptive, bool):
            raise ConfigError(f"adaptive: must be True or False, got {adaptive!r}")
        if classes not in _CLASSES:
            raise ConfigError(f"classes: {classes!r} given; {nearest(classes, _CLASSES)}")
        self.temperature = temperature
        self.student_temperature = student_temperature
        self.adaptive = adaptive
        self.classes = classes
        self.student_hook = (student_module_path, student_module_io)
        self.teacher_hook = (teacher_module_path, teacher_module_io)
        self.local_hook = (local_classifier_path, "output")
        self.terms: dict[str, Tensor] = {}

    def forward(
        self,
        student_io_dict: Mapping[str, Any],
        teacher_io_dict: Mapping[str, Any],
        targets: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        """The loss of a batch, a scalar. ``self.terms`` then holds it and the mean of ω."""
        student = hooked_tensor(student_io_dict, "student", *self.student_hook)
        local = hooked_tensor(teacher_io_dict, "teacher", *self.local_hook).to(student.device)
        weights = None
        if self.adaptive:
            own = hooked_tensor(teacher_io_dict, "teacher", *self.teacher_hook)
            weights = emphasis_weights(own.to(student.device))
        with user_can_mend("refilled_local_classifier"):
            loss = local_classifier_distillation(
                student,
                local,
                targets,
                temperature=self.temperature,
                student_temperature=self.student_temperature,
                weights=weights,
                all_classes=self.classes == "all",
            )
        self.terms = {"local_classifier": loss.detach()}
        if weights is not None:
            self.terms["emphasis"] = weights.mean()
        return loss

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return (
            f"temperature={self.temperature}, student_temperature={self.student_temperature}, "
            f"adaptive={self.adaptive}, classes={self.classes!r}"
        )
