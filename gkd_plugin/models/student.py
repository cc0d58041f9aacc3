"""``projected_student``: a student with a projection of its embedding beside it, for losses that train one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.box.registry import register
from gkd_plugin.errors import told_at
from gkd_plugin.models.projection import make_projection

__all__ = ["ProjectedStudent"]


@register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper, "projected_student")
class ProjectedStudent(AuxiliaryModelWrapper):
    """The student while it is trained by CCKD, CRD or SRD. What is evaluated and saved is the student alone.

    Hook paths: ``projection`` ``[B, D']``; ``supplement``, whose input is what a dataset wrapper gives besides image
    and label (``forward_proc: 'forward_batch_supp_dict'``); ``student.…`` for the student's own modules. The output
    itself (``.``) is the student's logits.

    Args:
        student_model: the student; torchdistill supplies it, and ``device``, ``device_ids``, ``distributed``.
        projection: ``{kind, in_features, out_features}``, see :class:`gkd_plugin.models.projection.Projection`.
        embedding: module path of the student's embedding, ``[B, D]`` or ``[B, D, 1, 1]``. The default is right for
            every ``timm_model``.

    Raises:
        ConfigError: the embedding path does not exist, or the projection is not one.
    """

    def __init__(
        self,
        student_model: nn.Module,
        *,
        projection: Mapping[str, Any],
        embedding: str = "embedding",
        device: torch.device | None = None,
        device_ids: list[int] | None = None,  # noqa: ARG002
        distributed: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        check_module_path(student_model, embedding, "auxiliary_model_wrapper.kwargs.embedding")
        self.student = student_model
        self.projection = make_projection(projection)
        self.supplement = nn.Identity()
        self._embedding_path = embedding
        self._capture = Capture.of(student_model, embedding, "output")
        if device is not None:
            self.to(device)

    def forward(self, x: Tensor, supplement: Mapping[str, Any] | None = None) -> Any:
        """``[B, …]`` images → the student's logits ``[B, C]``."""
        if supplement is not None:
            self.supplement(supplement)
        logits = self.student(x)
        embedding = self._capture.take("student", self._embedding_path)
        with told_at("student.auxiliary_model_wrapper.kwargs."):
            self.projection(embedding)
        return logits
