"""A projection of an embedding for losses that train one, and the student that carries it while it is trained."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper, Normalizer4CRD

from gkd_plugin.box import register
from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.errors import ConfigError, nearest, one_of, told_at, whole_number

KINDS = ("identity", "linear", "normalised", "standardised", "orthogonal", "layer_normalised")
_KEYS = ("kind", "in_features", "out_features")


class Projection(nn.Module):
    r"""Embedding e ``[B, D]`` → ``[B, D']`` for a loss, from z = We + b, in float32 also under autocast.

    - 'identity': e itself, for losses that take ``[B, D]`` alone and no ``[B, D, 1, 1]``, as that of PKT;
    - 'linear': z, as CCKD compares embeddings;
    - 'normalised': z / ‖z‖₂ (torchdistill's ``Normalizer4CRD``), as CRD;
    - 'orthogonal': We, without b, the columns of W orthonormal, or its rows where there are fewer, as VkD;
    - 'layer_normalised': e with mean 0 and variance 1 over its features (layer norm without affine map), as VkD;
    - 'standardised': each feature of z with mean 0 and variance 1 over the batch (batch norm without affine map,
      ε = 1e-4), as SRD; without ``out_features`` z = e.

    Raises:
        ConfigError: ``kind`` is none of these, or D (``in_features``) or D' (``out_features``) no whole number above 0.
    """

    def __init__(self, kind: str, in_features: int, out_features: int | None = None) -> None:
        super().__init__()
        one_of("kind", kind, KINDS)
        self.in_features = width = whole_number("in_features", in_features, low=1)
        self.layers: nn.Module = nn.Identity()
        if out_features is not None:
            if kind in ("identity", "layer_normalised"):
                raise ConfigError(f"out_features: {out_features!r} given; {kind!r} keeps the embedding's features")
            width = whole_number("out_features", out_features, low=1)
            self.layers = nn.Linear(in_features, width, bias=kind != "orthogonal")
        elif kind in ("linear", "normalised", "orthogonal"):
            raise ConfigError(f"out_features: missing; {kind!r} needs it")
        if kind == "normalised":
            self.layers = Normalizer4CRD(self.layers)
        elif kind == "standardised":
            self.layers = nn.Sequential(self.layers, nn.BatchNorm1d(width, eps=1e-4, affine=False))
        elif kind == "orthogonal":
            # Householder's is 25 times slower at 512 → 2048
            self.layers = nn.utils.parametrizations.orthogonal(self.layers, orthogonal_map="cayley")
        elif kind == "layer_normalised":
            self.layers = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """``[B, D]`` → ``[B, D']``."""
        width = embedding.shape[1]
        if width != self.in_features:
            raise ConfigError(f"projection.in_features: {self.in_features} given, the embedding has {width}")
        with torch.autocast(embedding.device.type, enabled=False):
            return cast("Tensor", self.layers(embedding.float()))


def make_projection(section: Any) -> Projection:
    """The projection that a wrapper's keyword ``projection`` describes."""
    with told_at("auxiliary_model_wrapper.kwargs.projection"):
        if not isinstance(section, Mapping):
            raise ConfigError(f": must be a section with {', '.join(_KEYS)}, got {section!r}")
        for key in section:
            if key not in _KEYS:
                raise ConfigError(f".{key}: unknown key; {nearest(key, _KEYS)}")
        for key in _KEYS[:2]:
            if key not in section:
                raise ConfigError(f".{key}: missing")
        with told_at("."):
            return Projection(**section)


@register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper, "projected_student")
class ProjectedStudent(AuxiliaryModelWrapper):
    """The student while a loss trains a map of its embedding, as CRD. What is evaluated and saved is the student alone.

    Hook paths: ``projection`` ``[B, D']``; ``supplement``, whose input is what a dataset wrapper gives besides image
    and label (``forward_proc: 'forward_batch_supp_dict'``); ``student.…`` for the student's own modules. The output
    itself (``.``) is the student's logits.

    Args:
        student_model: the student; torchdistill supplies it, and ``device``, ``device_ids``, ``distributed``.
        projection: ``{kind, in_features, out_features}``, see :class:`gkd_plugin.models.projection.Projection`.
        embedding: module path of its embedding, ``[B, D]`` or ``[B, D, 1, 1]``; ``timm_model`` has the default.

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
