"""The teacher's local classifier: logits over the student's classes from what the teacher says of an image."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_plugin.functional import (
    ClassCentreAccumulator,
    fit_discriminant,
    fit_shared_classes,
    own_log_probabilities,
    shared_log_probabilities,
)
from gkd_plugin.functional.discriminant import smoothed_targets

__all__ = ["KINDS", "Evidence", "LocalClassifier"]

logger = logging.getLogger(__name__)

KINDS = ("centres", "discriminant")
MAX_ROWS = 10_000
"""Embeddings that a discriminant is fitted on: about as many of each class, the first ones."""
_FITTED = ("centres", "weight", "bias", "teacher_labels", "shared_factors")


class Evidence(NamedTuple):
    """What the teacher says of a batch, for the local classifier to read.

    Attributes:
        embedding: ``[B, D_t]``.
        features: ``[B, F]`` of earlier layers, see :mod:`gkd_plugin.teacher.local_features`; ``None`` without.
        own: ``[B, C_t]``, the teacher's own logits; ``None`` where it has no classifier.
    """

    embedding: Tensor
    features: Tensor | None = None
    own: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """``[B, D_t + F]`` float32: embedding and features side by side."""
        given = [self.embedding] if self.features is None else [self.embedding, self.features]
        return torch.cat([value.detach().float() for value in given], dim=1)


Batch = tuple[Evidence, Tensor]
"""What the teacher says of a batch, and the labels ``[B]``."""
Views = tuple[Evidence, Tensor, Tensor]
"""The same of differently augmented images, and the number ``[B]`` of the sample that each is a view of."""


class LocalClassifier(nn.Module):
    r"""z = φ_T(x)·weightᵀ + bias, over the student's classes, and for shared classes the teacher's own logits too.

    Of the kind 'centres' it is the paper's: weight = class centres, bias = 0 (TPAMI section 4.2). Of the kind
    'discriminant' it is that of :mod:`gkd_plugin.functional.discriminant`, with that of
    :mod:`gkd_plugin.functional.shared_classes` where the teacher knows some of the classes; where a class has a single
    sample, which cannot be held out, it stays the paper's. A discriminant with features of earlier layers takes
    φ_T(x) and these side by side, each direction divided by its standard deviation over the training samples.

    The buffers are empty until it is fitted: ``centres`` ``[C, D_t]``, ``weight`` ``[C, D_t + F]``, ``bias`` ``[C]``,
    ``teacher_labels`` ``[C]`` (−1 for a class that the teacher does not know), ``shared_factors`` ``[6]``.

    Attributes:
        kind: one of :data:`KINDS`.
        known: for each class of the student the teacher's own label of it, ``None`` where it has none.
        known_of: the number of classes of the teacher that ``known`` was said of; a teacher with another number has
            other classes, and ``known`` is then not used. ``None``: ``known`` is of this teacher.
        own_classes: the number of the teacher's own classes, once fitted; ``None`` where it has no classifier.
    """

    centres: Tensor
    weight: Tensor
    bias: Tensor
    teacher_labels: Tensor
    shared_factors: Tensor

    def __init__(self, kind: str = "centres") -> None:
        super().__init__()
        self.kind = kind
        self.known: Sequence[int | None] | None = None
        self.known_of: int | None = None
        self.own_classes: int | None = None
        for name in _FITTED:
            self.register_buffer(name, torch.empty(0, 0) if name in ("centres", "weight") else torch.empty(0))

    @property
    def is_ready(self) -> bool:
        """Whether it has been fitted."""
        return self.centres.numel() > 0

    @property
    def shared(self) -> Sequence[int | None] | None:
        """``known``, unless that is of a teacher with another number of classes."""
        return self.known if self.may_be_of(self.known_of) else None

    def may_be_of(self, classes: int | None) -> bool:
        """Whether the teacher may be one with so many classes; one without a classifier may be any, ``None`` is any."""
        return classes is None or self.own_classes in (None, classes)

    def forward(self, embedding: Tensor, known: Tensor) -> Tensor:  # noqa: ARG002
        """``known``, the logits ``[B, C]``: where hooks find them."""
        return known

    def logits(self, evidence: Evidence) -> Tensor:
        """``[B, C]`` float32."""
        with torch.autocast(evidence.embedding.device.type, enabled=False):
            local: Tensor = functional.linear(evidence.rows[:, : self.weight.shape[1]], self.weight, self.bias)
            if evidence.own is None or self.shared_factors.numel() == 0:
                return local
            own = own_log_probabilities(evidence.own, self.teacher_labels)
            return shared_log_probabilities(local, own, self.teacher_labels, self.shared_factors)

    def adopt(self, other: LocalClassifier, device: torch.device) -> None:
        """Takes over what another one was fitted to."""
        for name in _FITTED:
            setattr(self, name, getattr(other, name).to(device))
        self.own_classes = other.own_classes

    def use_centres(self, centres: Tensor) -> None:
        """Measures against class centres ``[C, D_t]``."""
        self.centres, self.weight, self.bias = centres, centres, centres.new_zeros(len(centres))

    def fit(
        self,
        batches: Iterable[Batch],
        num_classes: int | None,
        device: torch.device,
        views: Iterable[Views] | None = None,
    ) -> None:
        """Fits it to batches of the training set.

        Args:
            batches: of evidence and labels, for the class centres.
            num_classes: C; ``None`` for 1 + the largest label.
            device: where the result goes.
            views: what a 'discriminant' is fitted to: the images that it will be asked about, as the student sees
                them; ``None`` for the batches themselves.

        Raises:
            ValueError: a class has no sample, or a label is out of range.
        """
        for name in ("teacher_labels", "shared_factors"):
            setattr(self, name, torch.empty(0, device=device))
        accumulator, kept = ClassCentreAccumulator(num_classes), _Kept()
        for evidence, labels in batches:
            self.own_classes = None if evidence.own is None else evidence.own.shape[1]
            accumulator.update(evidence.embedding, labels)
            if self.kind == "discriminant" and views is None:
                kept.add(self._read(evidence), labels)
        self.use_centres(accumulator.result().to(device))
        if self.kind == "discriminant":
            for evidence, labels, samples in views or ():
                kept.add(self._read(evidence), labels, samples)
            self._fit_discriminant(kept, device)

    def _read(self, evidence: Evidence) -> Evidence:
        """Without the teacher's own logits where no class is shared, which may be many."""
        return evidence if any(label is not None for label in self.shared or ()) else evidence._replace(own=None)

    def _fit_discriminant(self, kept: _Kept, device: torch.device) -> None:
        rows, own, labels, samples = kept.result()
        classes = len(self.centres)
        distinct = torch.unique(torch.stack([labels, samples]), dim=1)[0]
        if torch.bincount(distinct, minlength=classes).min() < 2:
            logger.warning("local classifier: a class has a single sample, so it measures against class centres")
            return
        spread = _spread(rows) if rows.shape[1] > self.centres.shape[1] else torch.ones(1)
        fit = fit_discriminant(rows / spread, labels, classes, samples=samples)
        self.weight, self.bias = (fit.weight / spread).to(device), fit.bias.to(device)
        nll, used = fit.held_out_nll, ""
        if self.shared is not self.known:
            logger.warning(
                "class_map: the training set's shared classes are those of a teacher with %s classes, this one has %s, "
                "so none is taken as shared; write the map {student class: teacher class}, or null for no shared class",
                self.known_of,
                self.own_classes,
            )
        if own is not None and self.shared:
            nll, used = self._fit_shared(self.shared, fit.held_out_logits, own, labels, samples)
            self.teacher_labels = self.teacher_labels.to(device)
            self.shared_factors = self.shared_factors.to(device)
        logger.info(
            "local classifier: held-out accuracy %.1f %% from %s, labels cost %.2f of %.2f nats "
            "(shrinkage %g, scale %.3g)%s",
            100 * fit.held_out_accuracy,
            "the embedding" if len(spread) == 1 else "embedding and local features",
            nll,
            math.log(classes),
            fit.shrinkage,
            fit.scale,
            used,
        )

    def _fit_shared(
        self, shared: Sequence[int | None], local: Tensor, own: Tensor, labels: Tensor, samples: Tensor
    ) -> tuple[float, str]:
        """Puts the teacher's own logits in; what labels then cost in nats, and how the log tells it."""
        teacher_labels = torch.tensor([-1 if label is None else label for label in shared])
        classes = len(self.centres)
        _check_known(teacher_labels, classes, own.shape[1])
        own = own_log_probabilities(own, teacher_labels)
        factors = fit_shared_classes(local, own, teacher_labels, labels, samples)
        kept = torch.tensor(factors)
        targets = smoothed_targets(labels, classes, len(torch.unique(samples))).float()
        nll = functional.cross_entropy(shared_log_probabilities(local, own, teacher_labels, kept), targets)
        self.teacher_labels, self.shared_factors = teacher_labels, kept
        return float(nll), (
            f"; {int((teacher_labels >= 0).sum())} of {classes} classes are the teacher's own, told apart by its own "
            f"logits times {factors.own_scale:.2g} and local ones times {factors.local_scale:.2g}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _FITTED:
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None:
                setattr(self, name, saved.new_empty(saved.shape, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _spread(rows: Tensor) -> Tensor:
    """``[D]``: the standard deviation of each direction, 1 where all samples are equal."""
    deviation = rows.std(dim=0, correction=0)
    return torch.where(deviation > 0, deviation, 1)


def _check_known(teacher_labels: Tensor, classes: int, own_classes: int) -> None:
    if len(teacher_labels) != classes:
        raise ValueError(f"class_map is of {len(teacher_labels)} classes, the student has {classes}")
    if int(teacher_labels.max()) >= own_classes:
        raise ValueError(f"class_map names class {int(teacher_labels.max())} of a teacher with {own_classes} classes")


class _Kept:
    """What a stream said, at most about :data:`MAX_ROWS` rows, as many of each class as there is room for."""

    def __init__(self) -> None:
        self._parts: list[list[Tensor]] = []
        self._seen = self._count = 0
        self._limit = 2 * MAX_ROWS

    def add(self, evidence: Evidence, labels: Tensor, samples: Tensor | None = None) -> None:
        """Without ``samples`` every row is a sample of its own."""
        rows = evidence.rows
        own = rows[:, :0] if evidence.own is None else evidence.own
        samples = torch.arange(self._seen, self._seen + len(labels)) if samples is None else samples
        self._parts.append([rows.cpu(), own.detach().float().cpu(), samples.cpu(), labels.cpu().long()])
        self._seen += len(labels)
        self._count += len(labels)
        if self._count > self._limit:
            self._thin()
            self._limit = 2 * max(MAX_ROWS, self._count)

    def result(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Rows ``[N, D_t + F]`` and own logits ``[N, C_t]`` in float32, labels and samples ``[N]``, on the CPU."""
        if self._count > MAX_ROWS:
            self._thin()
        rows, own, samples, labels = self._joined()
        return rows, own if own.shape[1] else None, labels, samples

    def _joined(self) -> list[Tensor]:
        return [torch.cat(parts) for parts in zip(*self._parts, strict=True)]

    def _thin(self) -> None:
        """Keeps the first samples of each class."""
        joined = self._joined()
        labels = joined[-1]
        present = torch.bincount(labels).nonzero().flatten()
        room = max(MAX_ROWS // len(present), 2)
        members = torch.cat([(labels == k).nonzero().flatten()[:room] for k in present]).sort().values
        self._parts, self._count = [[part[members] for part in joined]], len(members)
