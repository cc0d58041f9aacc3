"""What a loss puts on top of an embedding: a linear map that is trained with the student, and no part of any model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchdistill.models.wrapper import Normalizer4CRD

from gkd_plugin.errors import ConfigError, nearest, told_at, whole_number

__all__ = ["KINDS", "Projection", "make_projection"]

KINDS = ("identity", "linear", "normalised", "standardised")
_KEYS = ("kind", "in_features", "out_features")


class Projection(nn.Module):
    r"""Embedding e ``[B, D]`` → ``[B, D']`` for a loss, in float32 also under autocast.

    With z = We + b:

    - 'identity': e itself, for losses that take ``[B, D]`` alone and no ``[B, D, 1, 1]``, as that of PKT;
    - 'linear': z, as CCKD compares embeddings;
    - 'normalised': z / ‖z‖₂ (torchdistill's ``Normalizer4CRD``), as CRD;
    - 'standardised': each feature of z with mean 0 and variance 1 over the batch (batch norm without affine map,
      ε = 1e-4), as SRD; without ``out_features`` z = e.

    Args:
        kind: one of these.
        in_features: D.
        out_features: D'.

    Raises:
        ConfigError: there is no such kind, or a width is no whole number above 0.
    """

    def __init__(self, kind: str, in_features: int, out_features: int | None = None) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"kind: there is no {kind!r}; {nearest(kind, KINDS)}")
        self.in_features = whole_number("in_features", in_features, low=1)
        if out_features is None and kind not in ("identity", "standardised"):
            raise ConfigError(f"out_features: missing; {kind!r} needs it")
        if out_features is not None and kind == "identity":
            raise ConfigError(f"out_features: {out_features!r} given; 'identity' leaves the embedding as wide as it is")
        width = in_features if out_features is None else whole_number("out_features", out_features, low=1)
        linear = nn.Identity() if out_features is None else nn.Linear(in_features, width)
        self.layers: nn.Module = linear
        if kind == "normalised":
            self.layers = Normalizer4CRD(linear)
        elif kind == "standardised":
            self.layers = nn.Sequential(linear, nn.BatchNorm1d(width, eps=1e-4, affine=False))

    def forward(self, embedding: Tensor) -> Tensor:
        """``[B, D]`` → ``[B, D']``.

        Raises:
            ConfigError: the embedding has another width.
        """
        if embedding.shape[1] != self.in_features:
            raise ConfigError(
                f"projection.in_features: {self.in_features} given, the embedding has {embedding.shape[1]}"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            return cast("Tensor", self.layers(embedding.float()))


def make_projection(section: Any) -> Projection:
    """The projection that a wrapper's keyword ``projection`` describes.

    Raises:
        ConfigError: it describes none.
    """
    with told_at("auxiliary_model_wrapper.kwargs.projection"):
        if not isinstance(section, Mapping):
            raise ConfigError(f": must be a section with {', '.join(_KEYS)}, got {section!r}")
        with told_at("."):
            for key in section:
                if key not in _KEYS:
                    raise ConfigError(f"{key}: unknown key; {nearest(key, _KEYS)}")
            for key in _KEYS[:2]:
                if key not in section:
                    raise ConfigError(f"{key}: missing")
            return Projection(**section)
