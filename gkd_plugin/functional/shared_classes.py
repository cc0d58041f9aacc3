r"""The teacher's own logits, for classes that it knows, combined with a local classifier for all. Not in the paper.

Where a student's class k is one of the teacher's, t(k), the teacher's own classifier has seen far more images of it
than the student's training set holds. With d the logits of a local classifier over the student's C classes, and
"known" and "other" the classes that the teacher knows and does not know,

    log p(k | x) = log p(known | x) + log softmax_{k known}( a · d_k + b · log p_T(t(k) | x) )    for a class it knows,
    log p(k | x) = log p(other | x) + log softmax_{k other}( a' · d_k )                           for one it does not,

    logit p(known | x) = g · (LSE_known d − LSE_other d) + h · log Σ_known p_T(t(k) | x) + c,     LSE = log Σ exp.

The teacher decides among its own classes, both decide whether the image is of one of them: how sure the teacher is of
an image says little of whether it knows the class.

The factors a, a', g ≥ 0, b and h in [0, 1] and c minimise the cross-entropy of held-out samples: three convex problems.
Where all classes are shared and the teacher is calibrated, a tends to 0 and b to 1: plain knowledge distillation. b and
h are at most 1, and labels are smoothed by ε = C / (N + C), because a teacher that was trained on the very same images
is more certain of them than of any new image.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import exact_dtype
from gkd_plugin.functional.probe import minimise, smoothed_targets

__all__ = ["SharedClasses", "fit_shared_classes", "own_log_probabilities", "shared_log_probabilities"]

_POSITIVE, _SHARE, _FREE = (0.0, math.inf), (0.0, 1.0), (-math.inf, math.inf)


class SharedClasses(NamedTuple):
    """The factors a, b, a', g, h and c of this module's formula; those that a class space has no use for are 0."""

    local_scale: float
    own_scale: float
    other_scale: float = 0.0
    local_evidence: float = 0.0
    own_evidence: float = 0.0
    offset: float = 0.0


def own_log_probabilities(logits: Tensor, teacher_labels: Tensor) -> Tensor:
    """``[B, C]``: log p_T(t(k) | x) from the teacher's own logits ``[B, C_t]``, 0 for a class that it does not know.

    ``teacher_labels`` ``[C]`` are the integers t(k), −1 for a class that the teacher does not know.
    """
    chosen = logits.float().log_softmax(dim=1)[:, teacher_labels.clamp(min=0)]
    return chosen.masked_fill(teacher_labels < 0, 0)


def shared_log_probabilities(local: Tensor, own: Tensor, teacher_labels: Tensor, factors: Tensor) -> Tensor:
    """``[B, C]``: log p(k | x) of this module's formula; differentiable, and the host waits for no device.

    ``local`` ``[B, C]`` is d, ``own`` ``[B, C]`` of :func:`own_log_probabilities` for the same ``teacher_labels`` (one
    class at least is known), ``factors`` ``[6]`` in the order of :class:`SharedClasses`.
    """
    a, b, a_other, g, h, c = factors
    known = teacher_labels >= 0
    no_other = known & ~known.all()  # where all are known nothing is masked, so that gradients stay finite
    inside = (a * local + b * own).masked_fill(~known, -math.inf).log_softmax(dim=1)
    outside = (a_other * local).masked_fill(no_other, -math.inf).log_softmax(dim=1)
    of_local, of_own = _evidence(local, own, known, no_other)
    side = (g * of_local + h * of_own + c).unsqueeze(1)
    together = torch.where(known, inside + functional.logsigmoid(side), outside + functional.logsigmoid(-side))
    return torch.where(known.all(), inside, together)


def fit_shared_classes(
    local: Tensor, own: Tensor, teacher_labels: Tensor, labels: Tensor, samples: Tensor | None = None
) -> SharedClasses:
    """Fits the factors of this module's formula.

    Args:
        local: ``[N, C]``, d of held-out samples.
        own: ``[N, C]`` from :func:`own_log_probabilities`.
        teacher_labels: ``[C]``, as there; at least one class is known.
        labels: ``[N]`` integers in [0, C); each class has a sample.
        samples: ``[N]`` integers, equal for views of one sample; ``None`` where every row is a sample of its own.

    Raises:
        ValueError: a value is not finite.
    """
    dtype = exact_dtype(local)
    known = (teacher_labels >= 0).to(local.device)
    local, own = local.to(dtype), own.to(local.device, dtype)
    if not bool(torch.isfinite(local).all() and torch.isfinite(own).all()):
        raise ValueError("the teacher's logits are not finite")
    samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
    place = torch.where(known, known.cumsum(0), (~known).cumsum(0))[labels] - 1  # of a class among those of its kind
    both, mine, other = torch.stack([local, own]), known[labels], ~known[labels]
    a, b = _most_likely(both[:, mine][:, :, known], place[mine], samples[mine], _POSITIVE, _SHARE)
    if bool(known.all()):
        return SharedClasses(a, b)
    (a_other,) = _most_likely(both[:1, other][:, :, ~known], place[other], samples[other], _POSITIVE)
    of_local, of_own = _evidence(local, own, known, known)
    sides = torch.stack([of_local, of_own, torch.ones_like(of_local)])
    terms = torch.stack([sides, torch.zeros_like(sides)], dim=2)
    g, h, c = _most_likely(terms, other.long(), samples, _POSITIVE, _SHARE, _FREE)
    return SharedClasses(a, b, a_other, g, h, c)


def _evidence(local: Tensor, own: Tensor, known: Tensor, no_other: Tensor) -> tuple[Tensor, Tensor]:
    """``[B]`` each: LSE_known d − LSE_other d, and log Σ_known p_T."""
    of_known, of_other = (local.masked_fill(mask, -math.inf).logsumexp(dim=1) for mask in (~known, no_other))
    return of_known - of_other, own.masked_fill(~known, -math.inf).logsumexp(dim=1)


def _most_likely(terms: Tensor, labels: Tensor, samples: Tensor, *bounds: tuple[float, float]) -> list[float]:
    """Factors of the ``terms`` ``[T, N, C]``, each within its bounds, with the lowest cross-entropy of their sum.

    The cost is convex: where the free minimum is out of bounds, the allowed one has some factors at their bounds.
    """
    classes = terms.shape[2]
    targets = smoothed_targets(labels, classes, len(torch.unique(samples)), unknown=classes).to(terms)

    def is_allowed(factors: Sequence[float]) -> bool:
        return all(low <= factor <= high for factor, (low, high) in zip(factors, bounds, strict=True))

    all_free, *others = product(*[(None, *filter(math.isfinite, pair)) for pair in bounds])
    factors, _ = _minimum(terms, targets, all_free)
    if is_allowed(factors):
        return factors
    found = [_minimum(terms, targets, fixed) for fixed in others]
    return min((fit for fit in found if is_allowed(fit[0])), key=lambda fit: fit[1])[0]


def _minimum(terms: Tensor, targets: Tensor, fixed: Sequence[float | None]) -> tuple[list[float], float]:
    """Factors with the lowest cross-entropy, the ``fixed`` ones given, and that; 0 for one that changes nothing."""
    given = terms.new_tensor([value or 0.0 for value in fixed])
    is_free = torch.tensor([value is None for value in fixed], device=terms.device)
    free = torch.zeros_like(given).requires_grad_()

    def factors() -> Tensor:
        return torch.where(is_free, free, given)

    def cost() -> Tensor:
        return functional.cross_entropy(torch.einsum("t,tnc->nc", factors(), terms), targets)

    minimise(cost, free, max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12)
    return factors().tolist(), float(cost().detach())
