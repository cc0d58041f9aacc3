"""``refilled_teacher``: the teacher as an object with invariants, not a convention that callers must remember."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchdistill.core.forward_hook import ForwardHookManager
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper
from typing_extensions import Self

from gkd_plugin.errors import user_can_mend
from gkd_plugin.functional import ClassCentreAccumulator, local_logits
from gkd_plugin.hooks import check_module_path, hooked_tensor
from gkd_plugin.registry import register

__all__ = ["LocalClassifier", "RefilledTeacher"]

logger = logging.getLogger(__name__)


class LocalClassifier(nn.Module):
    r"""z_ik = φ_T(x_i)·c_k with the class centres as a buffer (TPAMI section 4.2).

    ``centres`` is ``[C, D_t]``, or ``[0, 0]`` until it is fitted.
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.empty(0, 0))

    @property
    def is_ready(self) -> bool:
        """Whether the class centres have been computed."""
        return self.centres.numel() > 0

    def forward(self, embedding: Tensor, device: torch.device | None = None) -> Tensor:
        """``[B, D_t]`` → ``[B, C]``, on ``device`` (by default where it is)."""
        return local_logits(embedding, self.centres).to(device or embedding.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}centres")
        if saved is not None:
            self.centres = self.centres.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


@register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper, "refilled_teacher")
class RefilledTeacher(AuxiliaryModelWrapper):
    """Wraps any teacher for ReFilled and holds its invariants whatever the training box does.

    The teacher is frozen, always in eval mode (``train()`` cannot change that, so batch-norm statistics never
    move) and runs without gradient. It may live on a device of its own: inputs go there, results come back.

    Hook paths: ``embedding`` ``[B, D_t]``; ``local_classifier`` ``[B, C]``, C the student's classes, once the class
    centres are known (the pre-epoch process ``refilled`` computes them). The output itself (``.``) is the
    teacher's own logits ``[B, C_t]``; for a teacher with no classifier (timm's ``num_classes: 0``) it is the local
    classifier's, which is said once in the log.

    Args:
        teacher_model: the teacher; torchdistill supplies it, and ``device``, ``device_ids``, ``distributed``.
        embedding: module path whose output is the teacher's embedding, ``[B, D]`` or ``[B, D, 1, 1]``. The
            default is right for every ``timm_model``.
        num_classes: number of the student's classes, C; by default 1 + the largest training label.
        teacher_device: device of the teacher alone, e.g. ``'cuda:1'``; by default that of the box.

    Raises:
        ConfigError: the embedding path does not exist.
    """

    def __init__(
        self,
        teacher_model: nn.Module,
        *,
        embedding: str = "embedding",
        num_classes: int | None = None,
        teacher_device: str | torch.device | None = None,
        device: torch.device | None = None,
        device_ids: list[int] | None = None,  # noqa: ARG002
        distributed: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        check_module_path(teacher_model, embedding, "auxiliary_model_wrapper.kwargs.embedding")
        self.teacher = teacher_model.eval().requires_grad_(False)
        self.embedding = nn.Identity()
        self.local_classifier = LocalClassifier()
        self.num_classes = num_classes
        self._embedding_path = embedding
        self._has_told = False
        self._own_device: torch.device | None = None
        self.train(False)
        if teacher_device is not None or device is not None:
            self.to(teacher_device or device)
        if teacher_device is not None:
            self._own_device = torch.device(teacher_device)

    @property
    def has_classifier(self) -> bool:
        """Whether the teacher has classes of its own."""
        return getattr(self.teacher, "num_classes", None) != 0

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next((p.device for p in self.teacher.parameters()), self.local_classifier.centres.device)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stays in eval mode."""
        super().train(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:  # noqa: ARG002
        """Stays frozen."""
        super().requires_grad_(False)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``.to()`` and its kin call: a teacher with a device of its own stays there, as it is."""
        if self._own_device is None:
            super()._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` images → the teacher's logits ``[B, C_t]``, on the device of the images."""
        logits, features = self._run(x)
        self.embedding(features.to(x.device))
        local = self.local_classifier(features, x.device) if self.local_classifier.is_ready else None
        if self.has_classifier or local is None:
            return logits.to(x.device)
        self._tell_once()
        return cast("Tensor", local)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """``[B, …]`` images → the teacher's embedding ``[B, D_t]``, on the device of the teacher."""
        return self._run(x)[1]

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits and embedding, on its own device."""
        hook = ForwardHookManager(self.device)
        hook.add_hook(self.teacher, self._embedding_path, requires_input=False)
        self.teacher.eval()  # whoever holds the inner model may have called train() on it
        try:
            logits = self.teacher(x.to(self.device, non_blocking=True))
            features = hooked_tensor(hook.pop_io_dict(), "teacher", self._embedding_path)
        finally:
            hook.clear()
        return logits, features

    def adopt_centres(self, other: RefilledTeacher) -> None:
        """Takes over the class centres of the previous stage's wrapper, fitted on the same training set.

        Does nothing where the teacher, its embedding or the number of classes is another: they are computed anew.
        """
        mine = (self.teacher, self._embedding_path, self.num_classes)
        theirs = (other.teacher, other._embedding_path, other.num_classes)
        if mine == theirs:
            self.local_classifier.centres = other.local_classifier.centres.to(self.device)

    def fit_centres(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        r"""Computes the class centres c_k = normalise(mean_{i: y_i = k} φ_T(x_i)) from (images, labels) batches.

        Raises:
            ConfigError: a class has no sample, or a label is out of range.
        """
        accumulator = ClassCentreAccumulator(self.num_classes)
        with user_can_mend("class centres"):
            for images, labels in batches:
                accumulator.update(self.embed(images), labels)
            self.local_classifier.centres = accumulator.result().to(self.device)

    def _tell_once(self) -> None:
        if not self._has_told:
            logger.info("the teacher has no classifier of its own: its confidence is the local classifier's")
            self._has_told = True
