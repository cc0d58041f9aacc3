r"""A calibrated local classifier: Gaussian classes with one shared covariance. Not in the paper.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if it varied
alike in all directions and its scale suited the labels. With class means μ_k and the pooled within-class covariance Σ,
Bayes' rule for classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · v · I,    v the total variance / D.

γ = 1 is the nearest class mean. K-fold cross-validation chooses the γ with the lowest cross-entropy of held-out labels,
each γ at its own best scale. The labels count as (1 − ε) · one-hot + ε / C, ε = C / (N + C), so that a few separable
samples do not make the classifier certain. The final fit has seen the training samples and is too confident on them: s
sets its mean entropy there to that of the held-out answers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import exact_dtype

__all__ = ["Discriminant", "fit_discriminant"]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)  # the γ that are tried
_SPREADS = (1e-4, 1e2)  # of scaled logits, the limits of the search for s
_BLOCK = 2**16  # logits that stay in the processor's cache


class Discriminant(NamedTuple):
    """The local classifier z = φ · weightᵀ + bias, and how it was found.

    Attributes:
        weight: ``[C, D]`` float32, s · Σ_γ⁻¹ (μ_k − μ); μ, the mean of all samples, cancels in the softmax.
        bias: ``[C]`` float32.
        shrinkage: γ.
        scale: s.
        held_out_nll: mean cross-entropy of the held-out labels in nats, smoothed; log C says nothing is known.
        held_out_accuracy: share of the held-out samples whose class has the largest logit, in [0, 1].
        held_out_logits: ``[N, C]``, of each sample by the fit that left its fold out; the largest is moved to 0.
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

    The i-th sample of each class is held out in fold i mod K, K at most the size of the largest class. A training part
    with fewer than two samples per class on average shows too little spread within classes: then only γ = 1 is tried.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        samples: ``[N]`` integers, equal for augmented views of one sample, which are held out together and count as
            one in ε and in the unbiased covariance. ``None`` where every row is a sample of its own.
        folds: K ≥ 2.
        shrinkages: the γ to try, each in (0, 1].

    Raises:
        ValueError: shapes do not fit, values are not finite or out of range, or a class has fewer than two samples.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 3.0], [0.1, 2.0], [3.0, 1.5], [2.8, 2.5], [3.1, 0.5]])
        >>> fit = fit_discriminant(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
        >>> (x @ fit.weight.T + fit.bias).argmax(dim=1)
        tensor([0, 0, 0, 1, 1, 1])
    """
    _check(embedding, labels, num_classes, folds, shrinkages)
    labels = labels.long()
    samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
    places, counts = _places(labels, samples, num_classes)
    smallest = int(counts.min())
    if smallest < 2:
        raise ValueError(f"class {int(counts.argmin())} has {smallest} samples, a discriminant needs 2")
    total, outs = int(counts.sum()), [places % folds == k for k in range(min(folds, int(counts.max())))]
    least = total - max(len(torch.unique(samples[out])) for out in outs)
    tried = shrinkages if least >= 2 * num_classes else (1.0,)
    rows = embedding.detach().to(exact_dtype(embedding))
    origin = rows.mean(dim=0)  # subtracted, it keeps digits
    deviation = float((rows - origin).square().mean().sqrt()) or 1.0  # the root of v: of the rows below v is 1
    rows = (rows - origin) / deviation
    span = torch.linalg.qr(rows.T).Q if len(rows) < rows.shape[1] else None  # [D, N]: the rows lie in N directions
    rows = rows if span is None else rows @ span
    whole, *parts = _fits(rows, labels, outs, num_classes, len(labels) / total)
    targets = smoothed_targets(labels, num_classes, total)

    def held_out(gamma: float) -> tuple[float, _Softmax, float, Tensor]:
        logits = rows.new_empty(len(rows), num_classes)
        for out, part in zip(outs, parts, strict=True):
            logits[out] = part.logits(gamma)
        agreement = float(torch.linalg.vecdot(targets, logits).mean())
        best = _root(logits, lambda at: (at.mean - agreement, at.variance))  # where the cross-entropy is flat
        return best.log_sum - best.scale * agreement, best, gamma, logits

    nll, best, gamma, logits = min(map(held_out, tried), key=lambda found: found[0])
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    held_out_logits = (best.scale * logits).float()
    scale = _root(whole.logits(gamma), lambda at: (best.entropy - at.entropy, at.scale * at.variance)).scale
    weight, bias = whole.classifier(gamma)
    weight = scale / deviation * weight @ (whole.axes if span is None else span @ whole.axes).T
    bias = scale * bias - weight @ origin
    return Discriminant(weight.float(), bias.float(), gamma, scale, nll, accuracy, held_out_logits)


def smoothed_targets(labels: Tensor, num_classes: int, samples: int | None = None) -> Tensor:
    """``[N, C]`` in float64: (1 − ε) · one-hot + ε / C with ε = C / (N + C), N the number of rows or of ``samples``."""
    epsilon = num_classes / ((len(labels) if samples is None else samples) + num_classes)
    one_hot = functional.one_hot(labels.long(), num_classes).to(exact_dtype(labels))
    return (1 - epsilon) * one_hot + epsilon / num_classes


def _check(embedding: Tensor, labels: Tensor, num_classes: int, folds: int, shrinkages: Sequence[float]) -> None:
    if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
        shapes = f"{list(embedding.shape)} and {list(labels.shape)}"
        raise ValueError(f"a discriminant takes embeddings [N, D] and labels [N], got {shapes}")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"class index out of range: label {int(wrong[0])}, allowed 0 … {num_classes - 1}")
    if not bool(torch.isfinite(embedding).all()):
        raise ValueError("embeddings are not finite")
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    if not shrinkages or not all(0 < shrinkage <= 1 for shrinkage in shrinkages):
        raise ValueError(f"shrinkages must be above 0 and at most 1, at least one, got {list(shrinkages)}")


def _places(labels: Tensor, samples: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """``[N]``: i for the rows of the i-th sample of their class; ``[C]``: the number of samples of each class."""
    distinct, index = torch.unique(torch.stack([labels, samples]), dim=1, return_inverse=True)
    counts = torch.bincount(distinct[0], minlength=num_classes)
    return index - (counts.cumsum(0) - counts)[labels], counts


class _Gaussians(NamedTuple):
    """Gaussian classes with one covariance, and samples to classify, in the axes of the covariance."""

    axes: Tensor  # [D, D], eigenvectors of the pooled covariance, and
    variances: Tensor  # [D], its eigenvalues
    means: Tensor  # [C, D], of the classes
    samples: Tensor  # [N, D]

    def classifier(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Weight ``[C, D]`` in the axes and bias ``[C]`` for s = 1 and v = 1."""
        weight = self.means / ((1 - gamma) * self.variances + gamma)
        return weight, -(weight * self.means).sum(dim=1) / 2

    def logits(self, gamma: float) -> Tensor:
        """``[N, C]``, of the samples; the largest of each moved to 0, which keeps digits in sums of exponentials."""
        logits = functional.linear(self.samples, *self.classifier(gamma))
        return logits.sub_(logits.amax(dim=1, keepdim=True))


def _fits(rows: Tensor, labels: Tensor, outs: list[Tensor], num_classes: int, views: float) -> list[_Gaussians]:
    """The fit of all rows, then those that leave each of ``outs`` out, to classify it; ``views`` rows to a sample."""

    def moments(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number ``[C]`` and sum ``[C, D]`` of the rows of each class, and Σ x·xᵀ of all."""
        counts = torch.bincount(labels[part], minlength=num_classes).to(rows)
        sums = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels[part], rows[part])
        return counts, sums, rows[part].T @ rows[part]

    def gaussians(samples: Tensor, counts: Tensor, sums: Tensor, products: Tensor) -> _Gaussians:
        """Each class mean takes one sample's freedom away."""
        means = sums / counts.unsqueeze(1)
        scatter, axes = torch.linalg.eigh(products - sums.T @ means)
        freedom = max(float(counts.sum()) - views * num_classes, views)
        return _Gaussians(axes, scatter.clamp(min=0) / freedom, means @ axes, samples @ axes)

    of_outs = [moments(out) for out in outs]
    of_all = [torch.stack(values).sum(dim=0) for values in zip(*of_outs, strict=True)]
    rest = [[a - b for a, b in zip(of_all, of_out, strict=True)] for of_out in of_outs]
    return [gaussians(rows, *of_all), *(gaussians(rows[out], *part) for out, part in zip(outs, rest, strict=True))]


class _Softmax(NamedTuple):
    """Of softmax(s · z), means over the rows z of log Σ exp(s · z), and of mean and variance of z."""

    scale: float
    log_sum: float
    mean: float
    variance: float

    @property
    def entropy(self) -> float:
        """In nats; it falls with s."""
        return self.log_sum - self.scale * self.mean

    @classmethod
    def of(cls, logits: Tensor, scale: float) -> "_Softmax":
        total = logits.new_zeros(3)
        for z in torch.split(logits, max(_BLOCK // logits.shape[1], 1)):
            p = (scale * z).exp_()
            norm = p.sum(dim=1)
            mean = torch.linalg.vecdot(p, z) / norm
            variance = torch.linalg.vecdot(p.mul_(z), z) / norm - mean.square()
            total += torch.stack([norm.log(), mean, variance]).sum(dim=1)
        return cls(scale, *(total / len(logits)).tolist())


def _root(logits: Tensor, function: Callable[[_Softmax], tuple[float, float]]) -> _Softmax:
    """Where an increasing function of s is 0, from its values and slopes: Newton's method, kept in a bracket."""
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()) or 1.0
    low, high = (limit / spread for limit in _SPREADS)
    following, scale = math.sqrt(low * high), math.inf
    while abs(following - scale) > 1e-4 * following:
        scale = following
        value, slope = function(_Softmax.of(logits, scale))
        low, high = (scale, high) if value < 0 else (low, scale)
        following = scale - value / slope if slope > 0 else low
        following = following if low < following < high else math.sqrt(low * high)
    return _Softmax.of(logits, following)
