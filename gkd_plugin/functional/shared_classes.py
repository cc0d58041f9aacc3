r"""The teacher's own logits for classes it knows, brought onto one scale with a local classifier for all classes.

Where a student's class k is one of the teacher's, t(k), the teacher's own classifier has seen far more of it than the
student's few training samples show. With d the logits of a local classifier over the student's C classes,

    z_k = a · d_k                                  for a class that the teacher does not know,
    z_k = a · d_k + b · log p_T(t(k) | x) + c      for one that it does.

a, b and c minimise the negative log-likelihood of training labels (a convex problem), d being of held-out samples.
Where all classes are shared, a tends to 0 and b to 1: knowledge distillation proper. Not in the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._precision import exact_dtype

__all__ = ["SharedClasses", "fit_shared_classes", "own_log_probabilities"]


class SharedClasses(NamedTuple):
    """How the two kinds of logits are put together.

    Attributes:
        local_scale: a.
        own_scale: b ≥ 0; 0 where the teacher's own logits tell nothing.
        offset: c; without meaning, 0, where all classes are shared.
        nll: mean negative log-likelihood of the labels, in nats.
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


def fit_shared_classes(local: Tensor, own: Tensor, teacher_labels: Tensor, labels: Tensor) -> SharedClasses:
    """Fits a, b and c of this module's formula.

    Args:
        local: ``[N, C]``, d of held-out samples.
        own: ``[N, C]`` from :func:`own_log_probabilities`.
        teacher_labels: ``[C]``, as there.
        labels: ``[N]`` integers in [0, C).
    """
    dtype = exact_dtype(local)
    known = (teacher_labels >= 0).to(local.device, dtype)
    terms = torch.stack([local.to(dtype), own.to(local.device, dtype), known.expand_as(local)])
    used = torch.tensor([True, True, not bool(known.all())], device=local.device)
    found, nll = _most_likely(terms, used, labels)
    if found[1] <= 0:
        found, nll = _most_likely(terms, torch.tensor([True, False, False], device=local.device), labels)
    local_scale, own_scale, offset = (float(value) for value in found)
    return SharedClasses(local_scale, own_scale, offset, nll)


def _most_likely(terms: Tensor, used: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Factors ``[3]`` of the ``terms`` ``[3, N, C]`` that make the labels most likely; 0 for those not ``used``."""
    factors = used.to(terms).requires_grad_()
    optimizer = torch.optim.LBFGS([factors], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        nll = functional.cross_entropy(torch.einsum("t,tnc->nc", factors * used, terms), labels)
        nll.backward()  # type: ignore[no-untyped-call]
        return nll

    with torch.enable_grad():
        optimizer.step(cost)  # type: ignore[no-untyped-call]
        return factors.detach() * used, float(cost().detach())
