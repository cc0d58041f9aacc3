r"""The teacher's own logits for classes it knows, brought onto one scale with a local classifier for all classes.

Where a student's class k is one of the teacher's, t(k), the teacher's own classifier has seen far more of it than the
student's few training samples show. With d the logits of a local classifier over the student's C classes,

    z_k = a · d_k                                  for a class that the teacher does not know,
    z_k = a · d_k + b · log p_T(t(k) | x) + c      for one that it does.

a ≥ 0, 0 ≤ b ≤ 1 and c minimise the cross-entropy with training labels, smoothed as in
:mod:`gkd_plugin.functional.discriminant` (a convex problem), d being of held-out samples. Where all classes are shared
and the teacher is calibrated, a tends to 0 and b to 1: knowledge distillation proper. b is bounded because a teacher
that was trained on the very same images answers them with a certainty that no image it has not seen would get; it is
then taken at its word, and no further. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._precision import exact_dtype
from gkd_plugin.functional.discriminant import smoothed_targets

__all__ = ["SharedClasses", "fit_shared_classes", "own_log_probabilities"]


class SharedClasses(NamedTuple):
    """How the two kinds of logits are put together.

    Attributes:
        local_scale: a ≥ 0.
        own_scale: b in [0, 1]; 0 where the teacher's own logits tell nothing.
        offset: c; without meaning, 0, where all classes are shared.
        nll: mean cross-entropy with the smoothed labels, in nats.
    """

    local_scale: float
    own_scale: float
    offset: float
    nll: float


def own_log_probabilities(logits: Tensor, teacher_labels: Tensor) -> Tensor:
    """``[B, C]``: log p_T(t(k) | x), and 0 for a class that the teacher does not know.

    Args:
        logits: ``[B, C_t]``, the teacher's own.
        teacher_labels: ``[C]`` integers, t(k), −1 for a class that the teacher does not know.
    """
    chosen = logits.float().log_softmax(dim=1)[:, teacher_labels.clamp(min=0)]
    return chosen.masked_fill(teacher_labels < 0, 0)


def fit_shared_classes(
    local: Tensor, own: Tensor, teacher_labels: Tensor, labels: Tensor, samples: int | None = None
) -> SharedClasses:
    """Fits a, b and c of this module's formula.

    Args:
        local: ``[N, C]``, d of held-out samples.
        own: ``[N, C]`` from :func:`own_log_probabilities`.
        teacher_labels: ``[C]``, as there.
        labels: ``[N]`` integers in [0, C).
        samples: how many samples the rows are views of; ``None`` where every row is a sample of its own.

    Raises:
        ValueError: a value is not finite.
    """
    dtype = exact_dtype(local)
    known = (teacher_labels >= 0).to(local.device, dtype)
    terms = torch.stack([local.to(dtype), own.to(local.device, dtype), known.expand_as(local)])
    if not bool(torch.isfinite(terms).all()):
        raise ValueError("the teacher's logits are not finite")
    targets = smoothed_targets(labels, local.shape[1], samples).to(terms)
    fixed = {_OFFSET: 0.0} if bool(known.all()) else {}
    factors, nll = _most_likely(terms, targets, fixed)
    if not _is_allowed(factors):
        # convex: where the minimum is outside, that of the allowed factors is on a side of them
        sides = [dict(zip(_BOUNDS, side, strict=True)) for side in product((None, 0.0), (None, 0.0, 1.0))]
        found = [
            _most_likely(terms, targets, fixed | {index: value for index, value in side.items() if value is not None})
            for side in sides[1:]
        ]
        factors, nll = min((fit for fit in found if _is_allowed(fit[0])), key=lambda fit: fit[1])
    local_scale, own_scale, offset = factors
    return SharedClasses(local_scale, own_scale, offset, nll)


_LOCAL, _OWN, _OFFSET = range(3)
_BOUNDS = {_LOCAL: (0.0, math.inf), _OWN: (0.0, 1.0)}


def _is_allowed(factors: Sequence[float]) -> bool:
    return all(low <= factors[index] <= high for index, (low, high) in _BOUNDS.items())


def _most_likely(terms: Tensor, targets: Tensor, fixed: Mapping[int, float]) -> tuple[list[float], float]:
    """Factors of the ``terms`` ``[3, N, C]`` with the lowest cross-entropy, some of them given, and that."""
    given = terms.new_tensor([fixed.get(index, 0.0) for index in range(3)])
    is_free = torch.tensor([index not in fixed for index in range(3)], device=terms.device)
    free = torch.full_like(given, 0.5).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        optimizer.zero_grad()
        factors = torch.where(is_free, free, given)
        nll = functional.cross_entropy(torch.einsum("t,tnc->nc", factors, terms), targets)
        nll.backward()  # type: ignore[no-untyped-call]
        return nll

    with torch.enable_grad():
        optimizer.step(cost)  # type: ignore[no-untyped-call]
        factors = torch.where(is_free, free, given).detach().tolist()
        return factors, float(cost().detach())
