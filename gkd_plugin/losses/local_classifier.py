"""torchdistill mid-level losses on logits: ``refilled_local_classifier`` and ``old_class_distillation``."""

from dataclasses import dataclass

from torch import Tensor
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss

from gkd_plugin.box import register
from gkd_plugin.errors import ConfigError, one_of, user_can_mend
from gkd_plugin.functional import check_temperature, emphasis_weights, local_classifier_distillation, present_classes
from gkd_plugin.losses.ranks import Gathering
from gkd_plugin.losses.term import Term


@dataclass(kw_only=True, eq=False, repr=False)
class LocalClassifierSettings(Gathering):
    """The settings of local classifier distillation.

    Args:
        temperature: τ₂ > 0.
        student_temperature: divisor of the student's logits, > 0 (CVPR 2020: 2, as τ₂).
        adaptive: weigh the samples by the confidence of the teacher's own classifier (ω); otherwise ω = 1.
        classes: 'batch' compares the classes present in the batch, as published; 'all' compares all of them.
    """

    temperature: float = 1.0
    student_temperature: float = 1.0
    adaptive: bool = True
    classes: str = "batch"


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "refilled_local_classifier")
@dataclass(kw_only=True, eq=False, repr=False)
class LocalClassifierLoss(Term, LocalClassifierSettings):
    r"""mean_i ω_i · KL(teacher's local classifier ‖ student) over the batch's classes, TPAMI 4.2 and 4.3; no λ.

    See :func:`gkd_plugin.functional.local_classifier_distillation` and
    :func:`gkd_plugin.functional.emphasis_weights` for the formulae. Takes :class:`LocalClassifierSettings` too.

    Args:
        teacher_module_path: where the teacher's own logits ``[B, C_t]`` are recorded.
        local_classifier_path: where the local classifier's logits ``[B, C]`` are recorded.

    Raises:
        ConfigError: a hyper-parameter is out of range; in training, a path is not recorded.
    """

    key = "refilled_local_classifier"
    needs_labels = True
    local_classifier_path: str = "local_classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        with user_can_mend(self.key):
            check_temperature("temperature", self.temperature)
            check_temperature("student_temperature", self.student_temperature)
        if not isinstance(self.adaptive, bool):
            raise ConfigError(f"adaptive: must be True or False, got {self.adaptive!r}")
        one_of("classes", self.classes, ("batch", "all"))
        self.check_gather()

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """What is read: the student's logits, the local classifier's and, where ω is asked for, the teacher's own."""
        student, own = super().hooks
        return [student, ("teacher", self.local_classifier_path, "output"), *([own] if self.adaptive else [])]

    def compute(self, targets: Tensor, student: Tensor, local: Tensor, own: Tensor | None = None) -> Tensor:
        """The loss, a scalar, of logits ``[B, C]``, ``[B, C]`` and ``[B, C_t]``; reports itself and the mean of ω."""
        weights = None
        if (given := student.shape[1]) != (found := local.shape[1]):
            key = "models.student_model.kwargs.num_classes"
            raise ConfigError(f"{self.key}: {key}: {given} given, but the training set has {found} classes")
        if own is not None:  # relative to the whole batch
            weights = emphasis_weights(self.gathered(own))[slice(*self.own(len(own)))]
        all_classes = self.classes == "all"
        loss = local_classifier_distillation(
            student,
            local,
            targets,
            temperature=self.temperature,
            student_temperature=self.student_temperature,
            weights=weights,
            all_classes=all_classes,
            present=None if all_classes else present_classes(self.gathered(targets), student.shape[1]),
        )
        self.terms = {"local_classifier": loss.detach()}
        if weights is not None:
            self.terms["emphasis"] = weights.mean()
        return loss


@register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, "old_class_distillation")
@dataclass(kw_only=True, eq=False, repr=False)
class OldClassDistillation(Term):
    r"""τ² · mean_i KL(softmax(t_i / τ) ‖ softmax(s_i[:C_t] / τ)), Learning without Forgetting (2017); no λ.

    t are the teacher's logits ``[B, C_t]`` and s[:C_t] the student's of the old classes, its first C_t, as
    :func:`gkd_plugin.data.incremental_subset` numbers them; the others get no gradient. In float32 at least.

    Args:
        temperature: τ > 0.

    Raises:
        ConfigError: a temperature not above 0; in training, a path not recorded, or a teacher with more classes.
    """

    key = "old_class_distillation"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        with user_can_mend(self.key):
            check_temperature("temperature", self.temperature)

    def compute(self, targets: Tensor | None, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss in nats, a scalar, of logits ``[B, C]`` and ``[B, C_t]``."""
        old, tau = teacher.shape[1], self.temperature
        if student.shape[1] < old:
            raise ConfigError(f"{self.key}: the student has {student.shape[1]} classes, fewer than the teacher's {old}")
        no_labels = student.new_zeros(len(student))  # over all classes they do not matter
        return tau**2 * local_classifier_distillation(
            student[:, :old], teacher, no_labels, temperature=tau, student_temperature=tau, all_classes=True
        )
