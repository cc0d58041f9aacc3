"""``refilled``: the criterion of each stage, with nothing else to write in the YAML."""

import dataclasses
import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchdistill.losses.high_level import AbstractLoss
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT, register_high_level_loss

from gkd_plugin.box import register
from gkd_plugin.box.hooks import unreached_parameters
from gkd_plugin.data import UNLABELLED, first_batch, labelled_part
from gkd_plugin.errors import ConfigError, is_number, nearest, one_of
from gkd_plugin.losses.local_classifier import LocalClassifierLoss, LocalClassifierSettings
from gkd_plugin.losses.ranks import Gathering, summed, world_size
from gkd_plugin.losses.relationship import RelationshipLoss, RelationshipSettings
from gkd_plugin.losses.term import Term
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class CrossEntropy(Term):
    """Cross-entropy of the student's logits, in float32 under autocast too; mean over the samples with a label."""

    key = "cross_entropy"
    needs_labels = True

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """The student's logits alone."""
        return super().hooks[:1]

    def compute(self, targets: Tensor, student: Tensor) -> Tensor:
        """The loss, a scalar, of logits ``[B, C]``; 0 where no sample has a label."""
        total = functional.cross_entropy(student.float(), targets, ignore_index=UNLABELLED, reduction="sum")
        count = (targets != UNLABELLED).sum()
        if (processes := world_size()) > 1:  # batches may differ in how many labels they have
            count = summed(count) / processes
        loss = total / torch.where(count == 0, 1, count)
        self.terms = {self.key: loss.detach()}
        return loss


@dataclass(kw_only=True, eq=False, repr=False)
class RefilledStage(AbstractLoss, Gathering):
    """A weighted sum of loss terms; a subclass is a dataclass, whose fields are its keywords.

    Args:
        weight: factor of the stage's term.
        sub_terms: further torchdistill loss terms, added.
    """

    stage: ClassVar[str]
    weight: float = 1.0
    sub_terms: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)
        AbstractLoss.__init__(self, sub_terms=self.sub_terms)
        self.losses = self._losses()  # (factor, term) in the order of the sum
        self.own_terms = nn.ModuleList(term for _, term in self.losses)  # whose queues a checkpoint keeps
        self.terms: dict[str, Tensor] = {}  # after each forward, unweighted and detached, with the counts behind them

    def _losses(self) -> list[tuple[float, Term]]:
        raise NotImplementedError

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """(model, module path, io) of everything that its own terms read."""
        return [hook for _, loss in self.losses for hook in loss.hooks]

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Checks the stage's optimizer, looks for unlabelled data; called once, before the box wraps the models."""
        if not stage_config.get("optimizer"):
            reason = "an earlier stage's leaves out what was frozen there (the student's classifier, in 'embedding')"
            raise ConfigError(f"optimizer: stage {self.stage!r} needs its own: {reason}")
        if not self.gather and world_size() > 1:
            logger.info("gather: False: each process forms the tuples of its own part of the batch")
        named = [(factor, loss.key.removeprefix("refilled_")) for factor, loss in self.losses]
        named += [(factor, name) for name, (_, factor) in self.term_dict.items()]
        shown = " + ".join(name if factor == 1 else f"{factor:g} · {name}" for factor, name in named)
        logger.info("stage %r: loss = %s; terms are shown without their factors", self.stage, shown)
        dataset = box.train_data_loader.dataset
        for _, loss in self.losses:
            loss.may_lack_labels = labelled_part(dataset) is not dataset
        if not isinstance(box.teacher_model, RefilledTeacher):
            logger.warning("teacher not wrapped in 'refilled_teacher': torchdistill trains its batch-norm statistics")

    def forward(self, io_dict: Mapping[str, Any], model_loss_dict: Any, targets: Tensor) -> Tensor:
        """The weighted loss of a batch, a scalar."""
        total: Tensor | float = 0.0
        self.terms = {}
        for factor, loss in self.losses:
            total = total + factor * loss(io_dict["student"], io_dict["teacher"], targets)
            self.terms |= loss.terms
        for name, (criterion, factor) in self.term_dict.items():
            value = criterion(io_dict["student"], io_dict["teacher"], targets)
            self.terms[name] = value.detach()
            total = total + factor * value
        return cast("Tensor", total)

    def __str__(self) -> str:
        summands = [f"{factor} * {loss}" for factor, loss in self.losses]
        summands += [f"{factor} * {criterion}" for criterion, factor in self.term_dict.values()]
        return f"ReFilled, stage {self.stage}: {' + '.join(summands)}"


@dataclass(kw_only=True, eq=False, repr=False)
class _MatchesEmbeddings(RelationshipSettings):
    """Stages with relationship matching.

    Args:
        student_embedding: module path of the student's embedding.
        teacher_embedding: module path of the teacher's embedding.
    """

    student_embedding: str = "embedding"
    teacher_embedding: str = "embedding"

    def _matching(self, **changes: Any) -> RelationshipLoss:
        paths = {"student_module_path": self.student_embedding, "teacher_module_path": self.teacher_embedding}
        return RelationshipLoss(**{**_values(self, RelationshipSettings), **paths, **changes})


@dataclass(kw_only=True, eq=False, repr=False)
class EmbeddingStage(RefilledStage, _MatchesEmbeddings):
    r"""Stage ``embedding``: w · relationship matching, TPAMI section 4.1.

    Without further terms, every parameter that the embedding does not depend on (the student's classifier) is frozen
    for the stage before the box wraps the models, so that DDP waits for no gradient of it.

    Args:
        weight: w, the factor of relationship matching.
    """

    stage = "embedding"
    weight: float = 1000.0

    def _losses(self) -> list[tuple[float, Term]]:
        return [(self.weight, self._matching())]

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Freezes what the student's embedding does not depend on."""
        super().prepare(box, stage_config)
        if self.term_dict:
            return
        loader = box.train_data_loader
        with torch.random.fork_rng(devices=[]):
            images = first_batch(loader.dataset, [0], loader.collate_fn)[0]
        for parameter in unreached_parameters(box.student_model, self.student_embedding, images):
            parameter.requires_grad_(False)
        for recorded in box.student_io_dict.values():
            recorded.clear()


@dataclass(kw_only=True, eq=False, repr=False)
class ClassifierStage(RefilledStage, LocalClassifierSettings):
    r"""Stage ``classifier``: cross-entropy + λ · local classifier distillation, TPAMI sections 4.2 and 4.3.

    Args:
        weight: λ, the factor of local classifier distillation (CVPR 2020: 100).
        student_logits: module path of the student's logits.
        teacher_logits: module path of the teacher's own logits.
        local_classifier: module path of the teacher's local classifier.
    """

    stage = "classifier"
    student_logits: str = "."
    teacher_logits: str = "."
    local_classifier: str = "local_classifier"

    def _losses(self) -> list[tuple[float, Term]]:
        local = LocalClassifierLoss(
            **_values(self, LocalClassifierSettings),
            student_module_path=self.student_logits,
            teacher_module_path=self.teacher_logits,
            local_classifier_path=self.local_classifier,
        )
        return [(1.0, CrossEntropy(student_module_path=self.student_logits)), (self.weight, local)]

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Checks that the student can classify."""
        super().prepare(box, stage_config)
        if getattr(box.student_model, "num_classes", None) == 0:
            model, advice = type(box.student_model).__name__, "give models.student_model.kwargs.num_classes"
            raise ConfigError(f"criterion: stage {self.stage!r} trains a classifier, but {model} has none: {advice}")


@dataclass(kw_only=True, eq=False, repr=False)
class JointStage(ClassifierStage, _MatchesEmbeddings):
    r"""Stage ``joint``: cross-entropy + λ · local classifier distillation + w · relationship matching, all the time.

    Not in the paper: with both terms at once the relationships are not forgotten while the classifier is learned. The
    teacher's local classifier is a calibrated one (``local_classifier: 'probe'``, unless that keyword of
    ``refilled_teacher`` says otherwise) over all classes; flat where the teacher knows little, so one λ serves all.

    A teacher that knows next to nothing does harm all the same. So λ and w are multiplied by min(1, I / I₀). I is the
    share of the labels' information that the local classifier has, 1 − NLL / log C of held-out training labels.

    Args:
        temperature: τ₂.
        student_temperature: divisor of the student's logits, as τ₂.
        weight: λ, the factor of local classifier distillation: 3 · τ₂², as KD at the temperature τ₂ weighs it.
        relationship_weight: w, the factor of relationship matching.
        relationship_temperature: τ₁ > 0.
        full_weight_from: I₀ in [0, 1], the share of the information from which on both terms have their full weights;
            0 for full weights whatever the teacher knows.
    """

    stage = "joint"
    temperature: float = 2.0
    student_temperature: float = 2.0
    adaptive: bool = False
    classes: str = "all"
    weight: float = 12.0
    relationship_weight: float = 1000.0
    relationship_temperature: float = 4.0
    full_weight_from: float = 0.5

    def __post_init__(self) -> None:
        if not is_number(self.full_weight_from) or not 0 <= self.full_weight_from <= 1:
            raise ConfigError(f"full_weight_from: must be a number from 0 to 1, got {self.full_weight_from!r}")
        super().__post_init__()

    def _losses(self) -> list[tuple[float, Term]]:
        _check_weight("relationship_weight", self.relationship_weight)
        matching = self._matching(temperature=self.relationship_temperature)
        return [*super()._losses(), (self.relationship_weight, matching)]

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """As stage ``classifier``; asks the teacher for its calibrated local classifier."""
        super().prepare(box, stage_config)
        if isinstance(box.teacher_model, RefilledTeacher):
            box.teacher_model.suggest_local_classifier("probe")

    def weigh(self, knowledge: float) -> None:
        """Gives the teacher's terms the weights for what it knows, see :attr:`LocalClassifier.knowledge`."""
        share = min(1.0, knowledge / self.full_weight_from) if self.full_weight_from else 1.0
        cross_entropy, (before, local), (_, matching) = self.losses
        weights = share * self.weight, share * self.relationship_weight
        self.losses = [cross_entropy, (weights[0], local), (weights[1], matching)]
        if weights[0] != before and share < 0.5:
            logger.warning("the teacher knows little of these classes: its terms weigh %.2f times as much", share)
        elif weights[0] != before:
            why = "by what its local classifier knows of held-out labels"
            logger.info("the teacher's terms weigh %.2f times as much, %s", share, why)


def _values(of: Any, kind: Any) -> dict[str, Any]:
    """The fields of ``kind`` that ``of`` has too."""
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(kind)}


def _check_weight(name: str, weight: object) -> None:
    if not is_number(weight) or not 0 <= weight < math.inf:
        raise ConfigError(f"{name}: must be a finite number, at least 0, got {weight!r}")


_STAGES = {stage.stage: stage for stage in (EmbeddingStage, ClassifierStage, JointStage)}


@register(HIGH_LEVEL_LOSS_DICT, register_high_level_loss, "refilled")
def refilled(stage: str, **kwargs: Any) -> RefilledStage:
    """The criterion of one stage, :class:`EmbeddingStage`, :class:`ClassifierStage` or :class:`JointStage`.

    Raises:
        ConfigError: no such stage, or a keyword that the stage does not take (the nearest is offered).
    """
    one_of("stage", stage, _STAGES)
    allowed = inspect.signature(_STAGES[stage]).parameters
    unknown = [name for name in kwargs if name not in allowed]
    if unknown:
        names = ["stage", *allowed]
        raise ConfigError("; ".join(f"stage {stage!r} takes no {name!r}: {nearest(name, names)}" for name in unknown))
    return _STAGES[stage](**kwargs)
