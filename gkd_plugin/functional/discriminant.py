r"""A calibrated local classifier: Gaussian classes with one covariance, shrunk and scaled by held-out likelihood.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if all its
directions spread alike and its logits were on the scale of the labels. With the class means μ_k and the pooled
within-class covariance Σ, Bayes' rule for Gaussian classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · v · I,    v the total variance / D.

γ = 1 is the nearest class mean. γ minimises the negative log-likelihood of training labels that were held out (K-fold
cross-validation, at the best scale of each γ): nothing to tune by hand, no validation or test set touched. The labels
count as (1 − ε) · one-hot + ε / C, ε = C / (N + C), so that a few separable samples do not make it certain. The last
fit has seen the samples that it will answer for and is surer of them than it should be: s is set so that its mean
entropy over the training samples is that of the held-out answers. So the logits come out as flat as the teacher knows
little of the classes. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._precision import exact_dtype

__all__ = ["Discriminant", "fit_discriminant", "smoothed_targets"]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""The γ that are tried."""
_SPREADS = (1e-4, 1e2)
_BLOCK = 2**16  # logits
_ROUGH = 1e-4  # nats: far beyond float32's rounding in a mean negative log-likelihood


class Discriminant(NamedTuple):
    """The local classifier z = φ · weightᵀ + bias, and how it was found.

    Attributes:
        weight: ``[C, D]`` float32, s · Σ_γ⁻¹ (μ_k − μ), μ the mean of all samples, which cancels in the softmax.
        bias: ``[C]`` float32.
        shrinkage: γ.
        scale: s.
        held_out_nll: mean negative log-likelihood of the held-out labels in nats (smoothed as above); log C says that
            nothing is known.
        held_out_accuracy: share of the held-out samples whose class has the largest logit, in [0, 1].
        held_out_logits: ``[N, C]``, of each sample by the fit that left its fold out.
    """

    weight: Tensor
    bias: Tensor
    shrinkage: float
    scale: float
    held_out_nll: float
    held_out_accuracy: float
    held_out_logits: Tensor


def fit_discriminant(
    embedding: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    folds: int = 5,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Discriminant:
    """Fits the classifier of this module's formula.

    The i-th sample of each class belongs to fold i mod K, K the number of folds or the size of the largest class, so
    every training part has a sample of each class, and the folds beyond a small class hold out none of it. Where some
    training part has fewer than two samples for each class on average, there is too little spread to estimate within
    classes and only γ = 1 is tried.

    Several rows may be views of one sample, differently augmented images of it: they are held out together, and N in
    ε = C / (N + C) and in the unbiased covariance is the number of samples.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        samples: ``[N]`` integers, equal for views of one sample; ``None`` where every row is a sample of its own.
        folds: K ≥ 2, of the cross-validation.
        shrinkages: the γ to try, each in (0, 1].

    Raises:
        ValueError: shapes do not fit, values are not finite, a label is out of range, a class has fewer than two
            samples, or folds or shrinkages are not as above.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 3.0], [0.1, 2.0], [3.0, 1.5], [2.8, 2.5], [3.1, 0.5]])
        >>> fit = fit_discriminant(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
        >>> (x @ fit.weight.T + fit.bias).argmax(dim=1)
        tensor([0, 0, 0, 1, 1, 1])
    """
    if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
        raise ValueError(
            f"a discriminant takes embeddings [N, D] and labels [N], got {list(embedding.shape)} and "
            f"{list(labels.shape)}"
        )
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        wrong = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"class index out of range: label {int(wrong)}, allowed 0 … {num_classes - 1}")
    labels = labels.long()
    samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
    places, counts = _places(labels, samples, num_classes)
    smallest = int(counts.min())
    if smallest < 2:
        raise ValueError(f"class {int(counts.argmin())} has {smallest} samples, a discriminant needs 2")
    if not bool(torch.isfinite(embedding).all()):
        raise ValueError("embeddings are not finite")
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    if not shrinkages or not all(0 < shrinkage <= 1 for shrinkage in shrinkages):
        raise ValueError(f"shrinkages must be above 0 and at most 1, at least one, got {list(shrinkages)}")
    rows = embedding.detach().to(exact_dtype(embedding))
    origin = rows.mean(dim=0)
    rows = rows - origin  # for the digits
    total = int(counts.sum())
    fold = places % min(folds, int(counts.max()))
    least = total - max(len(torch.unique(samples[fold == k])) for k in range(int(fold.max()) + 1))
    tried = shrinkages if least >= 2 * num_classes else (1.0,)
    whole, held_out = _fits(rows, labels, fold, num_classes, len(labels) / total)
    nll, scale, gamma, logits = _most_likely(held_out, labels, total, tried)
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    weight, bias = whole.classifier(gamma)
    logits = scale * logits
    scale_now = _scale_of_entropy(rows @ weight.T + bias, _entropy(_lowered(logits).float(), 1.0))
    bias = scale_now * (bias - weight @ origin)
    return Discriminant((scale_now * weight).float(), bias.float(), gamma, scale_now, nll, accuracy, logits.float())


def smoothed_targets(labels: Tensor, num_classes: int, samples: int | None = None) -> Tensor:
    """``[N, C]`` float64: (1 − ε) · one-hot + ε / C with ε = C / (N + C), N the number of rows or of ``samples``."""
    epsilon = _smoothing(len(labels) if samples is None else samples, num_classes)
    return (1 - epsilon) * functional.one_hot(labels.long(), num_classes).double() + epsilon / num_classes


def _smoothing(samples: int, num_classes: int) -> float:
    return num_classes / (samples + num_classes)


class _Moments(NamedTuple):
    """Sums over samples: those of a training part are those of all samples less those of its fold.

    Attributes:
        counts: ``[C]``, of the samples of each class.
        sums: ``[C, D]``, of the samples of each class.
        products: ``[D, D]``, of all samples, Σ x xᵀ.
    """

    counts: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, num_classes: int) -> _Moments:
        return cls(*_class_sums(rows, labels, num_classes), rows.T @ rows)

    def without(self, others: _Moments) -> _Moments:
        return _Moments(*(ours - theirs for ours, theirs in zip(self, others, strict=True)))

    def gaussians(self, variance: Tensor, views: float) -> _Gaussians:
        """For more samples than directions."""
        means = self.sums / self.counts.unsqueeze(1)
        values, axes = torch.linalg.eigh(self.products - self.sums.T @ means)
        return _gaussians(self.counts, self.sums, values.clamp(min=0), axes, variance, views=views)


def _class_sums(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The number ``[C]`` and the sum ``[C, D]`` of the samples of each class."""
    counts = torch.bincount(labels, minlength=num_classes).to(rows)
    return counts, rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)


class _Gaussians(NamedTuple):
    """Gaussian classes with one covariance.

    Attributes:
        origin: ``[D]``, the mean of all samples; it is taken off first, for the digits.
        means: ``[C, D]``, of the classes, from the origin.
        variances: ``[R]``, R ≤ D, eigenvalues of the pooled covariance.
        axes: ``[D, R]``, its eigenvectors.
        variance: v, that of all samples in a direction on average; one for all folds, so that one s serves them.
    """

    origin: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    variance: Tensor

    def classifier(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Weight ``[C, D]`` and bias ``[C]`` for s = 1."""
        inverse, beyond = _inverse(self.variances, self.variance, gamma)
        inside = self.means @ self.axes
        weight = self.means * beyond + (inside * (inverse - beyond)) @ self.axes.T
        return weight, -(weight * (self.means / 2 + self.origin)).sum(dim=1)


def _inverse(variances: Tensor, variance: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Σ_γ⁻¹, along the axes ``[R]`` and in all directions that no sample takes, a scalar."""
    floor = torch.where(variance > 0, gamma * variance, 1)  # 0: all embeddings are equal
    return 1 / ((1 - gamma) * variances + floor), 1 / floor


class _Projected(NamedTuple):
    """Samples in the axes of a fit, where one product gives their logits for a γ.

    Attributes:
        variances: ``[R]``, of the fit, and
        variance: v, likewise.
        samples: ``[N, R]``, along its axes.
        means: ``[C, R]``, of the classes, likewise.
        beyond: ``[N, C]``, what directions beyond the axes add to logits, for Σ_γ = I; a scalar 0 where there are none.
    """

    variances: Tensor
    variance: Tensor
    samples: Tensor
    means: Tensor
    beyond: Tensor

    @classmethod
    def of(cls, gaussians: _Gaussians, rows: Tensor) -> _Projected:
        rows = rows - gaussians.origin
        samples, means = rows @ gaussians.axes, gaussians.means @ gaussians.axes
        beyond = rows.new_zeros(())
        if gaussians.axes.shape[1] < gaussians.axes.shape[0]:
            length = gaussians.means.square().sum(dim=1) - means.square().sum(dim=1)
            beyond = rows @ gaussians.means.T - samples @ means.T - length / 2
        return cls(gaussians.variances, gaussians.variance, samples, means, beyond)

    def logits(self, gamma: float, dtype: torch.dtype) -> Tensor:
        """``[N, C]`` for s = 1."""
        inverse, beyond = _inverse(self.variances, self.variance, gamma)
        rest = self.beyond * beyond - (self.means.square() * inverse).sum(dim=1) / 2
        return torch.addmm(rest.to(dtype), (self.samples * inverse).to(dtype), self.means.to(dtype).T)


def _gaussians(
    counts: Tensor, sums: Tensor, scatter: Tensor, axes: Tensor, variance: Tensor, *, views: float
) -> _Gaussians:
    """From eigenvalues ``[R]`` and eigenvectors ``[D, R]`` of the scatter Σ (x − μ_y)(x − μ_y)ᵀ.

    Each class mean takes one sample's worth of freedom away, ``views`` rows.
    """
    freedom = max(float(counts.sum()) - views * len(counts), views)
    origin = sums.sum(dim=0) / counts.sum()
    means = sums / counts.unsqueeze(1) - origin
    return _Gaussians(origin, means, scatter / freedom, axes, variance)


def _few_gaussians(rows: Tensor, labels: Tensor, num_classes: int, variance: Tensor, views: float) -> _Gaussians:
    """For fewer samples than directions, which span the axes."""
    counts, sums = _class_sums(rows, labels, num_classes)
    residuals = rows - (sums / counts.unsqueeze(1))[labels]
    _, singular, axes = torch.linalg.svd(residuals, full_matrices=False)
    return _gaussians(counts, sums, singular.square(), axes.T, variance, views=views)


def _places(labels: Tensor, samples: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """``[N]``: i for the rows of the i-th sample of their class; ``[C]``: the number of samples of each class."""
    places, counts = torch.zeros_like(labels), torch.zeros(num_classes, dtype=torch.long)
    for k in range(num_classes):
        members = (labels == k).nonzero().flatten()
        own, places[members] = torch.unique(samples[members], return_inverse=True)
        counts[k] = len(own)
    return places, counts


class _HeldOut(NamedTuple):
    """Every sample as a fit without its fold sees it.

    Attributes:
        fold: ``[N]``.
        parts: the samples of each fold.
    """

    fold: Tensor
    parts: list[_Projected]

    def logits(self, gamma: float, dtype: torch.dtype) -> Tensor:
        """``[N, C]`` for s = 1."""
        found = self.fold.new_empty(len(self.fold), len(self.parts[0].means), dtype=dtype)
        for k, part in enumerate(self.parts):
            found[self.fold == k] = part.logits(gamma, dtype)
        return found


def _fits(rows: Tensor, labels: Tensor, fold: Tensor, num_classes: int, views: float) -> tuple[_Gaussians, _HeldOut]:
    """The fit of all samples, and what the fits without each fold see; ``views`` rows to a sample."""
    variance = (rows - rows.mean(dim=0)).square().mean()
    outs = [fold == k for k in range(int(fold.max()) + 1)]
    fits: Iterable[_Gaussians]
    if len(rows) - max(int(out.sum()) for out in outs) < rows.shape[1]:
        whole = _few_gaussians(rows, labels, num_classes, variance, views)
        fits = (_few_gaussians(rows[~out], labels[~out], num_classes, variance, views) for out in outs)
    else:
        moments = _Moments.of(rows, labels, num_classes)
        whole = moments.gaussians(variance, views)
        parts = (_Moments.of(rows[out], labels[out], num_classes) for out in outs)
        fits = (moments.without(part).gaussians(variance, views) for part in parts)
    return whole, _HeldOut(fold, [_Projected.of(fit, rows[out]) for fit, out in zip(fits, outs, strict=True)])


def _most_likely(
    held_out: _HeldOut, labels: Tensor, samples: int, shrinkages: Sequence[float]
) -> tuple[float, float, float, Tensor]:
    """(negative log-likelihood, s, γ, logits ``[N, C]`` for s = 1) of the best γ.

    In float32 first; γ that come too near the best for its rounding are compared in full precision.
    """
    rough = {gamma: _scale(held_out.logits(gamma, torch.float32), labels, samples)[0] for gamma in shrinkages}
    near = [gamma for gamma, nll in rough.items() if nll <= min(rough.values()) + _ROUGH]
    dtype = held_out.parts[0].samples.dtype
    found = ((gamma, held_out.logits(gamma, dtype)) for gamma in near)
    return min(((*_scale(logits, labels, samples), gamma, logits) for gamma, logits in found), key=lambda best: best[0])


def _scale(logits: Tensor, labels: Tensor, samples: int) -> tuple[float, float]:
    """(cross-entropy with the :func:`smoothed_targets`, s) for the best s; there is one minimum."""
    low, high = _bounds(logits)
    rows, classes = logits.shape
    logits, dtype = _lowered(logits), exact_dtype(logits)
    epsilon = _smoothing(samples, classes)
    own = float(logits.gather(1, labels.unsqueeze(1)).mean(dtype=dtype))
    agreement = (1 - epsilon) * own + epsilon * float(logits.mean(dtype=dtype))

    def cost(scale: float) -> float:
        sums = (float((scale * block).logsumexp(dim=1).sum(dtype=dtype)) for block in _blocks(logits))
        return sum(sums) / rows - scale * agreement

    scale = _golden(cost, low, high)
    return cost(scale), scale


def _scale_of_entropy(logits: Tensor, entropy: float) -> float:
    """The s at which the mean entropy of softmax(s · logits) is ``entropy``; it falls with s."""
    low, high = _bounds(logits)
    logits = _lowered(logits).float()
    for _ in range(32):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _entropy(logits, middle) > entropy else (low, middle)
    return math.sqrt(low * high)


def _entropy(logits: Tensor, scale: float) -> float:
    """Mean entropy of softmax(s · logits) in nats."""
    blocks = ((scale * block).log_softmax(dim=1) for block in _blocks(logits))
    return -sum(float((log_p.exp() * log_p).sum(dim=1).sum(dtype=exact_dtype(logits))) for log_p in blocks) / len(
        logits
    )


def _blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """Some rows each, so few that they stay in a processor's cache from one operation to the next."""
    return torch.split(logits, max(_BLOCK // logits.shape[1], 1))


def _lowered(logits: Tensor) -> Tensor:
    """The same but for a constant of each row, the largest 0: nothing is lost in sums of their exponentials."""
    return logits - logits.amax(dim=1, keepdim=True)


def _bounds(logits: Tensor) -> tuple[float, float]:
    """Of the scale: logits of spread 1e-4 to 1e2."""
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()) or 1.0
    return _SPREADS[0] / spread, _SPREADS[1] / spread


def _golden(cost: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search for the minimum, on a logarithmic scale."""
    a, b = math.log(low), math.log(high)
    ratio = (5**0.5 - 1) / 2
    left, right = b - ratio * (b - a), a + ratio * (b - a)
    cost_left, cost_right = cost(math.exp(left)), cost(math.exp(right))
    while b - a > 1e-3:
        if cost_left <= cost_right:
            b, right, cost_right = right, left, cost_left
            left = b - ratio * (b - a)
            cost_left = cost(math.exp(left))
        else:
            a, left, cost_left = left, right, cost_right
            right = a + ratio * (b - a)
            cost_right = cost(math.exp(right))
    return float(math.exp((a + b) / 2))
