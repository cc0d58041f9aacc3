"""The teacher's local classifier: logits over the student's classes from the teacher's embedding."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_plugin.functional import ClassCentreAccumulator, fit_discriminant

__all__ = ["KINDS", "LocalClassifier"]

logger = logging.getLogger(__name__)

KINDS = ("centres", "discriminant")
MAX_ROWS = 20_000
"""Embeddings that a discriminant is fitted on: about as many of each class, the first ones."""


class LocalClassifier(nn.Module):
    r"""z_i = φ_T(x_i)·weightᵀ + bias, over the student's classes.

    Of the kind 'centres' it is the paper's: weight = class centres, bias = 0 (TPAMI section 4.2). Of the kind
    'discriminant' it is :func:`gkd_plugin.functional.fit_discriminant`'s; where a class has a single sample, which
    cannot be held out, it stays the paper's.

    The buffers ``centres`` ``[C, D_t]``, ``weight`` ``[C, D_t]`` and ``bias`` ``[C]`` are empty until it is fitted.
    """

    centres: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, kind: str = "centres") -> None:
        super().__init__()
        self.kind = kind
        for name, shape in (("centres", (0, 0)), ("weight", (0, 0)), ("bias", (0,))):
            self.register_buffer(name, torch.empty(shape))

    @property
    def is_ready(self) -> bool:
        """Whether it has been fitted."""
        return self.centres.numel() > 0

    def forward(self, embedding: Tensor, known: Tensor | None = None) -> Tensor:
        """``[B, D_t]`` → ``[B, C]``; ``known`` is the result, where it was computed before."""
        return self.logits(embedding) if known is None else known

    def logits(self, embedding: Tensor) -> Tensor:
        """``[B, D_t]`` → ``[B, C]`` float32, without hooks."""
        with torch.autocast(embedding.device.type, enabled=False):
            return functional.linear(embedding.float(), self.weight, self.bias)

    def adopt(self, other: LocalClassifier, device: torch.device) -> None:
        """Takes over what another one was fitted to."""
        for name in ("centres", "weight", "bias"):
            setattr(self, name, getattr(other, name).to(device))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None, device: torch.device) -> None:
        """Fits it to (embedding ``[B, D_t]``, labels ``[B]``) batches.

        Args:
            batches: of the training set.
            num_classes: C; ``None`` for 1 + the largest label.
            device: where the result goes.

        Raises:
            ValueError: a class has no sample, or a label is out of range.
        """
        accumulator, kept = ClassCentreAccumulator(num_classes), _Kept()
        for embedding, labels in batches:
            accumulator.update(embedding, labels)
            if self.kind == "discriminant":
                kept.add(embedding, labels)
        self.centres = accumulator.result().to(device)
        self.weight, self.bias = self.centres, self.centres.new_zeros(len(self.centres))
        if self.kind == "discriminant":
            self._fit_discriminant(kept, device)

    def _fit_discriminant(self, kept: _Kept, device: torch.device) -> None:
        rows, labels = kept.result()
        if torch.bincount(labels, minlength=len(self.centres)).min() < 2:
            logger.warning("local classifier: a class has a single sample, so it measures against class centres")
            return
        fit = fit_discriminant(rows, labels, len(self.centres))
        self.weight, self.bias = fit.weight.to(device), fit.bias.to(device)
        logger.info(
            "local classifier: held-out accuracy %.1f %%, log-likelihood %.2f nats of %.2f at chance "
            "(shrinkage %g, scale %.3g)",
            100 * fit.held_out_accuracy,
            -fit.held_out_nll,
            -torch.tensor(float(len(self.centres))).log().item(),
            fit.shrinkage,
            fit.scale,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("centres", "weight", "bias"):
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Kept:
    """Embeddings of a stream, at most about :data:`MAX_ROWS`, as many of each class as there is room for."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._count = 0

    def add(self, embedding: Tensor, labels: Tensor) -> None:
        self._rows.append(embedding.detach().float().cpu())
        self._labels.append(labels.cpu().long())
        self._count += len(labels)
        if self._count > 2 * MAX_ROWS:
            self._thin()

    def result(self) -> tuple[Tensor, Tensor]:
        """Embeddings ``[N, D_t]`` float32 and labels ``[N]``, on the CPU."""
        if self._count > MAX_ROWS:
            self._thin()
        return torch.cat(self._rows), torch.cat(self._labels)

    def _thin(self) -> None:
        """Keeps the first samples of each class."""
        rows, labels = torch.cat(self._rows), torch.cat(self._labels)
        present = torch.bincount(labels).nonzero().flatten()
        room = max(MAX_ROWS // len(present), 2)
        members = torch.cat([(labels == k).nonzero().flatten()[:room] for k in present]).sort().values
        self._rows, self._labels, self._count = [rows[members]], [labels[members]], len(members)
