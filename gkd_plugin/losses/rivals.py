"""``queue_distillation``: the one loss of a method to compare with that torchdistill lacks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box import register
from gkd_plugin.errors import ConfigError, user_can_mend, whole_number
from gkd_plugin.functional import check_temperature, local_classifier_distillation, local_logits
from gkd_plugin.losses.ranks import Gathering
from gkd_plugin.losses.term import Term


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "queue_distillation")
@dataclass(kw_only=True, eq=False, repr=False)
class QueueDistillation(Term, Gathering):
    r"""mean_i KL(softmax(t_i Qᵀ / τ) ‖ softmax(z_i Qᵀ / τ)), as lightly-train's first ``distillation``; any classes.

    z and t are the rows of student and teacher at length 1, Q the last K rows of t, those of this batch included. In
    float32 at least; no gradient for t and Q. Q starts empty; the rows of all processes go into it.

    Args:
        student_module_path: where the student's projected embedding ``[B, D_t]`` is recorded.
        teacher_module_path: where the teacher's embedding ``[B, D_t]`` is recorded.
        queue_size: K ≥ 1.
        temperature: τ > 0.

    Raises:
        ConfigError: a hyper-parameter is out of range; in training, a path is not recorded, or the widths differ.
    """

    key = "queue_distillation"
    needs_labels = True
    student_module_path: str = "projection"
    teacher_module_path: str = "embedding"
    queue_size: int = 8192
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("queue_size", self.queue_size, low=1)
        self.check_gather()
        with user_can_mend(self.key):
            check_temperature("temperature", self.temperature)
        self._queue: Tensor | None = None

    def get_extra_state(self) -> Tensor | None:
        """The queue, for checkpoints."""
        return self._queue

    def set_extra_state(self, state: Tensor | None) -> None:
        """The queue of a checkpoint."""
        self._queue = state

    def compute(self, targets: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss in nats, a scalar, of embeddings ``[B, D_t]``; reports itself."""
        if student.shape != teacher.shape:
            raise ConfigError(f"{self.key}: {list(student.shape)} of the student, {list(teacher.shape)} of the teacher")
        read = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (student, teacher.detach()))
        z, t = map(normalize, read)
        rows = self.gathered(t)
        queue = rows if self._queue is None else torch.cat([self._queue.to(t), rows])
        self._queue = queue = queue[-self.queue_size :]
        student, teacher, tau = local_logits(z, queue), local_logits(t, queue), self.temperature
        loss = local_classifier_distillation(
            student, teacher, targets, temperature=tau, student_temperature=tau, all_classes=True
        )
        self.terms = {"queue": loss.detach()}
        return loss
