"""``refilled_relationship``: relationship matching as a torchdistill mid-level loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box.hooks import hooked_tensor
from gkd_plugin.box.registry import register
from gkd_plugin.errors import ConfigError, nearest, user_can_mend
from gkd_plugin.functional import MINING, EmbeddingQueue, check_matching, relationship_matching

__all__ = ["RelationshipLoss"]


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "refilled_relationship")
class RelationshipLoss(nn.Module):
    r"""Mean over the tuples of KL(q^T ‖ q^S) of the pairwise distances, TPAMI section 4.1; no weight w.

    See :func:`gkd_plugin.functional.relationship_matching` for the formula and its deviation from the authors' code.

    Args:
        temperature: τ₁ > 0.
        margin: width of the semi-hard window.
        mining: which negatives a positive pair is compared with, ``'semihard'``, ``'hard'`` or ``'all'``; see
            :mod:`gkd_plugin.functional.mining`.
        max_negatives: ``None`` (all, as in the paper), an integer, or ``'smallest'`` (as published in code).
        queue_size: samples of earlier batches that the batch's anchors are also compared with; 0 for none. Each
            process of a distributed run has its own queue; it starts empty.
        student_module_path: where the student's embedding ``[B, D_s]`` is recorded.
        student_module_io: 'output' or 'input'.
        teacher_module_path: where the teacher's embedding ``[B, D_t]`` is recorded.
        teacher_module_io: 'output' or 'input'.

    Raises:
        ConfigError: a hyper-parameter is out of range, or a path is not recorded.
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        margin: float = 0.2,
        mining: str = "semihard",
        max_negatives: int | str | None = None,
        queue_size: int = 0,
        student_module_path: str = "embedding",
        student_module_io: str = "output",
        teacher_module_path: str = "embedding",
        teacher_module_io: str = "output",
    ) -> None:
        super().__init__()
        if isinstance(mining, str) and mining not in MINING:
            raise ConfigError(f"mining: there is no strategy {mining!r}; {nearest(mining, MINING)}")
        with user_can_mend("refilled_relationship"):
            check_matching(temperature, margin, mining, max_negatives)
        if isinstance(queue_size, bool) or not isinstance(queue_size, int) or queue_size < 0:
            raise ConfigError(f"queue_size: must be a whole number, 0 or more, got {queue_size!r}")
        self.temperature = temperature
        self.margin = margin
        self.mining = mining
        self.max_negatives = max_negatives
        self.queue = EmbeddingQueue(queue_size) if queue_size else None
        self.student_hook = (student_module_path, student_module_io)
        self.teacher_hook = (teacher_module_path, teacher_module_io)
        self.terms: dict[str, Tensor] = {}

    def forward(
        self,
        student_io_dict: Mapping[str, Any],
        teacher_io_dict: Mapping[str, Any],
        targets: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        """The loss of a batch, a scalar. ``self.terms`` then holds it and the counts of tuples and negatives."""
        student = hooked_tensor(student_io_dict, "student", *self.student_hook)
        teacher = hooked_tensor(teacher_io_dict, "teacher", *self.teacher_hook)
        teacher = teacher.to(student.device)
        with user_can_mend("refilled_relationship"):
            match = relationship_matching(
                student,
                teacher,
                targets,
                temperature=self.temperature,
                margin=self.margin,
                mining=self.mining,
                max_negatives=self.max_negatives,
                earlier=None if self.queue is None else self.queue.content(),
            )
        if self.queue is not None:
            self.queue.push(student, teacher, targets)
        self.terms = {
            "relationship": match.loss.detach(),
            "tuples": match.tuples,
            "negatives": match.negatives,
        }
        return match.loss

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        queue_size = 0 if self.queue is None else self.queue.size
        return (
            f"temperature={self.temperature}, margin={self.margin}, mining={self.mining!r}, "
            f"max_negatives={self.max_negatives!r}, queue_size={queue_size}"
        )
