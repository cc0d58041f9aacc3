"""``refilled_relationship``: relationship matching as a torchdistill mid-level loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box import register
from gkd_plugin.data import UNLABELLED
from gkd_plugin.errors import user_can_mend, whole_number
from gkd_plugin.functional import EmbeddingQueue, RelationshipMatch, check_matching, relationship_matching
from gkd_plugin.losses.ranks import Gathering, summed, world_size
from gkd_plugin.losses.term import Term


@dataclass(kw_only=True, eq=False, repr=False)
class RelationshipSettings(Gathering):
    """The settings of relationship matching.

    Args:
        temperature: τ₁ > 0.
        margin: width of the semi-hard window.
        mining: which negatives a positive pair is compared with, ``'semihard'``, ``'hard'`` or ``'all'``; see
            :data:`gkd_plugin.functional.MINING`.
        max_negatives: ``None`` uses all of N, as in the paper; an integer k ≥ 1 keeps at most the first k in batch
            order; ``'smallest'`` keeps as many as the smallest non-empty N of the batch, as the published code does.
        queue_size: samples of earlier batches that the batch's anchors are also compared with; 0 for none. It starts
            empty.
    """

    temperature: float = 4.0
    margin: float = 0.2
    mining: str = "semihard"
    max_negatives: int | str | None = None
    queue_size: int = 0


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "refilled_relationship")
@dataclass(kw_only=True, eq=False, repr=False)
class RelationshipLoss(Term, RelationshipSettings):
    r"""Mean over the tuples of KL(q^T ‖ q^S) of the pairwise distances, TPAMI section 4.1; no weight w.

    See :func:`gkd_plugin.functional.relationship_matching` for the formula and its deviation from the authors' code.
    Takes :class:`RelationshipSettings` too.

    Args:
        student_module_path: where the student's embedding ``[B, D_s]`` is recorded.
        teacher_module_path: where the teacher's embedding ``[B, D_t]`` is recorded.

    Raises:
        ConfigError: a hyper-parameter is out of range; in training, a path is not recorded.
    """

    key = "refilled_relationship"
    needs_labels = True
    student_module_path: str = "embedding"
    teacher_module_path: str = "embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        with user_can_mend(self.key):
            check_matching(self.temperature, self.margin, self.mining, self.max_negatives)
        self.check_gather()
        size = whole_number("queue_size", self.queue_size, low=0)
        self.queue = EmbeddingQueue(size) if size else None

    def get_extra_state(self) -> Any:
        """The queue, for checkpoints."""
        return None if self.queue is None else self.queue.content()

    def set_extra_state(self, state: Any) -> None:
        """The queue of a checkpoint."""
        if self.queue is not None and state is not None:
            self.queue.clear()
            self.queue.push(*state)

    def compute(self, targets: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of embeddings of a label; reports itself and the counts of tuples and negatives.

        Of several processes each scores its own anchors against the rows of all; what is reported is of all.
        """
        first, end = self.own(len(targets))
        student, teacher, targets = (self.gathered(rows) for rows in (student, teacher, targets))
        if self.may_lack_labels:
            labelled = targets != UNLABELLED
            first, end = (int(labelled[:row].sum()) for row in (first, end))
            student, teacher, targets = student[labelled], teacher[labelled], targets[labelled]
        match = relationship_matching(
            student,
            teacher,
            targets,
            temperature=self.temperature,
            margin=self.margin,
            mining=self.mining,
            max_negatives=self.max_negatives,
            earlier=None if self.queue is None else self.queue.content(),
            anchors=(first, end),
        )
        if self.queue is not None:
            self.queue.push(student, teacher, targets)
        loss, whole = match.loss, match
        if self.gather and (processes := world_size()) > 1:
            whole = _of_all_processes(match)
            loss = loss * (processes * match.tuples.double() / whole.tuples.clamp(min=1)).to(loss)
        self.terms = {"relationship": whole.loss.detach(), "tuples": whole.tuples, "negatives": whole.negatives}
        return loss


def _of_all_processes(match: RelationshipMatch) -> RelationshipMatch:
    sums = torch.stack([match.tuples, match.loss * match.tuples, match.negatives * match.tuples])
    tuples, divergence, negatives = summed(sums.double())
    count = tuples.clamp(min=1)
    return RelationshipMatch((divergence / count).to(match.loss), tuples.long(), (negatives / count).float())
