"""``refilled``: the criterion of each stage, with nothing else to write in the YAML."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchdistill.losses.high_level import AbstractLoss
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT, register_high_level_loss

from gkd_plugin.box.hooks import check_module_path, hooked_tensor
from gkd_plugin.box.registry import register
from gkd_plugin.box.unreached import unreached_parameters
from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.losses.local_classifier import LocalClassifierLoss
from gkd_plugin.losses.relationship import RelationshipLoss
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["ClassifierStage", "EmbeddingStage", "JointStage", "RefilledStage", "refilled"]

logger = logging.getLogger(__name__)


class RefilledStage(AbstractLoss):
    """What both stages share: extra ``sub_terms``, the report of the terms, the checks against the box.

    Attributes:
        terms: after each forward, every term added (unweighted, detached) and the counts behind it, for logging.
    """

    stage: ClassVar[str]
    loss: Any

    def __init__(self, loss: nn.Module, weight: float, sub_terms: Mapping[str, Any] | None) -> None:
        _check_weight("weight", weight)
        super().__init__(sub_terms=sub_terms)
        self.loss = loss
        self.weight = weight
        self.terms: dict[str, Tensor] = {}

    @property
    def losses(self) -> dict[str, Any]:
        """The mid-level losses of the stage, by name."""
        return {f"stage {self.stage!r}": self.loss}

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Checks the stage's optimizer and hooks; called once, before the box wraps the models."""
        if not stage_config.get("optimizer"):
            raise ConfigError(
                f"optimizer: stage {self.stage!r} needs its own: an earlier stage's optimizer leaves out what was "
                "frozen there (the student's classifier, in stage 'embedding')"
            )
        for model, path, io in self._hooks():
            if path == ".":
                continue
            recorded = (stage_config.get(model, {}).get("forward_hook") or {}).get(io) or []
            where = f"{model}.forward_hook.{io}"
            check_module_path(getattr(box, f"{model}_model"), path, where)
            if path not in recorded:
                raise ConfigError(
                    f"{where}: stage {self.stage!r} reads {path!r}, which is not listed; {nearest(path, recorded)}"
                )
        if not isinstance(box.teacher_model, RefilledTeacher):
            logger.warning(
                "the teacher is not wrapped in 'refilled_teacher': torchdistill trains its batch-norm statistics"
            )

    def _hooks(self) -> list[tuple[str, str, str]]:
        """(model, module path, io) of everything the stage reads."""
        raise NotImplementedError

    def _sub_terms(self, io_dict: Mapping[str, Any], targets: Tensor) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, (criterion, factor) in self.term_dict.items():
            value = criterion(io_dict["student"], io_dict["teacher"], targets)
            self.terms[name] = value.detach()
            total = total + factor * value
        return total

    def __str__(self) -> str:
        return f"ReFilled, stage {self.stage}: {self.weight} * {self.loss}" + "".join(
            f" + {factor} * {criterion}" for criterion, factor in self.term_dict.values()
        )


class EmbeddingStage(RefilledStage):
    r"""Stage ``embedding``: w · relationship matching, TPAMI section 4.1.

    The student's classifier takes no part: where there are no further terms, every parameter that the embedding does
    not depend on is frozen for the stage before the box wraps the models, so that DDP waits for no gradient of it.

    Args:
        temperature: τ₁.
        margin: width of the semi-hard window.
        weight: w.
        mining: see :mod:`gkd_plugin.functional.mining`.
        max_negatives: see :func:`gkd_plugin.functional.relationship_matching`.
        queue_size: see :class:`gkd_plugin.losses.relationship.RelationshipLoss`.
        student_embedding: module path of the student's embedding.
        teacher_embedding: module path of the teacher's embedding.
        sub_terms: further torchdistill loss terms, added.
    """

    stage = "embedding"

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        margin: float = 0.2,
        weight: float = 1000.0,
        mining: str = "semihard",
        max_negatives: int | str | None = None,
        queue_size: int = 0,
        student_embedding: str = "embedding",
        teacher_embedding: str = "embedding",
        sub_terms: Mapping[str, Any] | None = None,
    ) -> None:
        loss = RelationshipLoss(
            temperature=temperature,
            margin=margin,
            mining=mining,
            max_negatives=max_negatives,
            queue_size=queue_size,
            student_module_path=student_embedding,
            teacher_module_path=teacher_embedding,
        )
        super().__init__(loss, weight, sub_terms)

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Checks the hooks and freezes what the student's embedding does not depend on."""
        super().prepare(box, stage_config)
        if self.term_dict:
            return
        loader = box.train_data_loader
        with torch.random.fork_rng(devices=[]):
            images = loader.collate_fn([loader.dataset[0]])[0]
        path, io = self.loss.student_hook
        for parameter in unreached_parameters(box.student_model, path, io, images):
            parameter.requires_grad_(False)
        for recorded in box.student_io_dict.values():
            recorded.clear()

    def forward(self, io_dict: Mapping[str, Any], model_loss_dict: Any, targets: Tensor) -> Tensor:  # noqa: ARG002
        """The weighted loss of a batch, a scalar."""
        matching = self.loss(io_dict["student"], io_dict["teacher"], targets)
        self.terms = dict(self.loss.terms)
        total: Tensor = self.weight * matching + self._sub_terms(io_dict, targets)
        return total

    def _hooks(self) -> list[tuple[str, str, str]]:
        return [("student", *self.loss.student_hook), ("teacher", *self.loss.teacher_hook)]


class ClassifierStage(RefilledStage):
    r"""Stage ``classifier``: cross-entropy + λ · local classifier distillation, TPAMI sections 4.2 and 4.3.

    Args:
        temperature: τ₂.
        student_temperature: divisor of the student's logits (CVPR 2020: 2, as τ₂).
        weight: λ (CVPR 2020: 100).
        adaptive: the emphasis ω from the teacher's confidence; otherwise ω = 1.
        classes: 'batch' for the classes present in the batch, as published, or 'all'.
        student_logits: module path of the student's logits.
        teacher_logits: module path of the teacher's own logits.
        local_classifier: module path of the teacher's local classifier.
        sub_terms: further torchdistill loss terms, added.
    """

    stage = "classifier"

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        student_temperature: float = 1.0,
        weight: float = 1.0,
        adaptive: bool = True,
        classes: str = "batch",
        student_logits: str = ".",
        teacher_logits: str = ".",
        local_classifier: str = "local_classifier",
        sub_terms: Mapping[str, Any] | None = None,
    ) -> None:
        loss = LocalClassifierLoss(
            temperature=temperature,
            student_temperature=student_temperature,
            adaptive=adaptive,
            classes=classes,
            student_module_path=student_logits,
            teacher_module_path=teacher_logits,
            local_classifier_path=local_classifier,
        )
        super().__init__(loss, weight, sub_terms)

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Checks the hooks and that the student can classify."""
        super().prepare(box, stage_config)
        if getattr(box.student_model, "num_classes", None) == 0:
            raise ConfigError(
                f"criterion: stage {self.stage!r} trains a classifier, but {type(box.student_model).__name__} has none "
                "(num_classes 0): give models.student_model.kwargs.num_classes"
            )

    def forward(self, io_dict: Mapping[str, Any], model_loss_dict: Any, targets: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of a batch, a scalar."""
        logits = hooked_tensor(io_dict["student"], "student", *self.loss.student_hook)
        cross_entropy = functional.cross_entropy(logits.float(), targets)
        local = self.loss(io_dict["student"], io_dict["teacher"], targets)
        self.terms = {"cross_entropy": cross_entropy.detach(), **self.loss.terms}
        total: Tensor = cross_entropy + self.weight * local + self._sub_terms(io_dict, targets)
        return total

    def _hooks(self) -> list[tuple[str, str, str]]:
        hooks = [("student", *self.loss.student_hook), ("teacher", *self.loss.local_hook)]
        return [*hooks, ("teacher", *self.loss.teacher_hook)] if self.loss.adaptive else hooks


class JointStage(ClassifierStage):
    r"""Stage ``joint``: cross-entropy + λ · local classifier distillation + w · relationship matching, all the time.

    Not in the paper, which trains the embedding first and the classifier after it. With both terms at once the
    relationships are not forgotten while the classifier is learned, and every epoch trains everything. The teacher's
    local classifier is the calibrated one (``refilled_teacher``'s ``local_classifier: 'discriminant'``, unless that
    keyword says otherwise) over all classes: its logits are as flat as the teacher knows little, so that one λ serves
    every class space.

    Args:
        temperature: τ₂; 1 takes the local classifier as calibrated.
        student_temperature: divisor of the student's logits.
        weight: λ.
        adaptive: the emphasis ω from the teacher's confidence; otherwise ω = 1.
        classes: 'all', or 'batch' for the classes present in the batch.
        relationship_weight: w.
        relationship_temperature: τ₁.
        margin: width of the semi-hard window.
        mining: see :mod:`gkd_plugin.functional.mining`.
        max_negatives: see :func:`gkd_plugin.functional.relationship_matching`.
        queue_size: see :class:`gkd_plugin.losses.relationship.RelationshipLoss`.
        student_embedding: module path of the student's embedding.
        teacher_embedding: module path of the teacher's embedding.
        student_logits: module path of the student's logits.
        teacher_logits: module path of the teacher's own logits.
        local_classifier: module path of the teacher's local classifier.
        sub_terms: further torchdistill loss terms, added.
    """

    stage = "joint"

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        student_temperature: float = 1.0,
        weight: float = 3.0,
        adaptive: bool = False,
        classes: str = "all",
        relationship_weight: float = 1000.0,
        relationship_temperature: float = 4.0,
        margin: float = 0.2,
        mining: str = "semihard",
        max_negatives: int | str | None = None,
        queue_size: int = 0,
        student_embedding: str = "embedding",
        teacher_embedding: str = "embedding",
        student_logits: str = ".",
        teacher_logits: str = ".",
        local_classifier: str = "local_classifier",
        sub_terms: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            student_temperature=student_temperature,
            weight=weight,
            adaptive=adaptive,
            classes=classes,
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            local_classifier=local_classifier,
            sub_terms=sub_terms,
        )
        _check_weight("relationship_weight", relationship_weight)
        self.relationship_weight = relationship_weight
        self.relationship = RelationshipLoss(
            temperature=relationship_temperature,
            margin=margin,
            mining=mining,
            max_negatives=max_negatives,
            queue_size=queue_size,
            student_module_path=student_embedding,
            teacher_module_path=teacher_embedding,
        )

    @property
    def losses(self) -> dict[str, Any]:
        """The mid-level losses of the stage, by name."""
        return {**super().losses, f"stage {self.stage!r} (relationships)": self.relationship}

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """As stage ``classifier``; asks the teacher for its calibrated local classifier."""
        super().prepare(box, stage_config)
        if isinstance(box.teacher_model, RefilledTeacher):
            box.teacher_model.suggest_local_classifier("discriminant")

    def forward(self, io_dict: Mapping[str, Any], model_loss_dict: Any, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        classified = super().forward(io_dict, model_loss_dict, targets)
        matching = self.relationship(io_dict["student"], io_dict["teacher"], targets)
        self.terms |= self.relationship.terms
        total: Tensor = classified + self.relationship_weight * matching
        return total

    def _hooks(self) -> list[tuple[str, str, str]]:
        matched = [("student", *self.relationship.student_hook), ("teacher", *self.relationship.teacher_hook)]
        return [*super()._hooks(), *matched]

    def __str__(self) -> str:
        return f"{super().__str__()} + {self.relationship_weight} * {self.relationship}"


def _check_weight(name: str, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigError(f"{name}: must be a finite number, at least 0, got {weight!r}")


_STAGES: dict[str, type[RefilledStage]] = {
    "embedding": EmbeddingStage,
    "classifier": ClassifierStage,
    "joint": JointStage,
}


@register(HIGH_LEVEL_LOSS_DICT, register_high_level_loss, "refilled")
def refilled(stage: str, **kwargs: Any) -> RefilledStage:
    """The criterion of one stage, :class:`EmbeddingStage`, :class:`ClassifierStage` or :class:`JointStage`.

    Raises:
        ConfigError: no such stage, or a keyword that the stage does not take (the nearest is offered).
    """
    if stage not in _STAGES:
        raise ConfigError(f"stage: there is no stage {stage!r}; {nearest(stage, _STAGES)}")
    chosen = _STAGES[stage]
    allowed = list(chosen.__init__.__kwdefaults__ or {})
    unknown = [name for name in kwargs if name not in allowed]
    if unknown:
        raise ConfigError("; ".join(f"stage {stage!r} takes no {name!r}: {nearest(name, allowed)}" for name in unknown))
    return chosen(**kwargs)
