r"""A calibrated local classifier: Gaussian classes with one shared covariance. Not in the paper.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if it varied
alike in all directions and its logits were on the scale of the labels. With class means μ_k and the pooled
within-class covariance Σ, Bayes' rule for classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · v · I,    v the total variance / D.

γ = 1 is the nearest class mean. K-fold cross-validation chooses γ: the one with the lowest cross-entropy of held-out
training labels, each γ at its own best scale. The labels count as (1 − ε) · one-hot + ε / C with ε = C / (N + C), so
that a few separable samples do not make the classifier certain. The final fit has seen the training samples and is too
confident on them: s sets its mean entropy there to that of the held-out answers.
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
_ROUGH = 1e-4  # nats, far beyond the rounding of a mean in float32


class Discriminant(NamedTuple):
    """The local classifier z = φ · weightᵀ + bias, and how it was found.

    Attributes:
        weight: ``[C, D]`` float32, s · Σ_γ⁻¹ (μ_k − μ); μ, the mean of all samples, cancels in the softmax.
        bias: ``[C]`` float32.
        shrinkage: γ.
        scale: s.
        held_out_nll: mean cross-entropy of the held-out labels in nats, smoothed; log C says nothing is known.
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

    The i-th sample of each class is held out in fold i mod K. K is at most the size of the largest class, so every
    training part has a sample of each class. A training part with fewer than two samples per class on average shows too
    little spread within classes; then only γ = 1 is tried.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        samples: ``[N]`` integers, equal for augmented views of one sample: they are held out together, and N in ε and
            in the unbiased covariance is the number of samples. ``None`` where every row is a sample of its own.
        folds: K ≥ 2.
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
    _check(embedding, labels, num_classes, folds, shrinkages)
    labels = labels.long()
    samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
    places, counts = _places(labels, samples, num_classes)
    smallest = int(counts.min())
    if smallest < 2:
        raise ValueError(f"class {int(counts.argmin())} has {smallest} samples, a discriminant needs 2")
    rows = embedding.detach().to(exact_dtype(embedding))
    origin = rows.mean(dim=0)
    rows = rows - origin  # keeps digits
    total = int(counts.sum())
    fold = places % min(folds, int(counts.max()))
    least = total - max(len(torch.unique(samples[fold == k])) for k in range(int(fold.max()) + 1))
    tried = shrinkages if least >= 2 * num_classes else (1.0,)
    whole, parts = _fits(rows, labels, fold, num_classes, len(labels) / total)
    nll, scale, gamma, logits = _most_likely(parts, fold, labels, total, tried)
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    weight, bias = whole.classifier(gamma)
    logits = scale * logits
    scale = _scale_of_entropy(rows @ weight.T + bias, _entropy(_lowered(logits).float(), 1.0))
    bias = scale * (bias - weight @ origin)
    return Discriminant((scale * weight).float(), bias.float(), gamma, scale, nll, accuracy, logits.float())


def smoothed_targets(labels: Tensor, num_classes: int, samples: int | None = None) -> Tensor:
    """``[N, C]`` float64: (1 − ε) · one-hot + ε / C with ε = C / (N + C), N the number of rows or of ``samples``."""
    epsilon = num_classes / ((len(labels) if samples is None else samples) + num_classes)
    return (1 - epsilon) * functional.one_hot(labels.long(), num_classes).double() + epsilon / num_classes


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
    """Gaussian classes with one covariance."""

    origin: Tensor  # [D], the mean of all samples, subtracted first to keep digits
    means: Tensor  # [C, D], of the classes, from the origin
    variances: Tensor  # [R], R ≤ D, eigenvalues of the pooled covariance
    axes: Tensor  # [D, R], its eigenvectors
    variance: Tensor  # v; one for all folds, so that one s serves them

    def inverse(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues of Σ_γ⁻¹ along the axes ``[R]``, and in all other directions, a scalar."""
        floor = torch.where(self.variance > 0, gamma * self.variance, 1)  # 0: all embeddings are equal
        return 1 / ((1 - gamma) * self.variances + floor), 1 / floor

    def classifier(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Weight ``[C, D]`` and bias ``[C]`` for s = 1."""
        along, beyond = self.inverse(gamma)
        weight = self.means * beyond + (self.means @ self.axes * (along - beyond)) @ self.axes.T
        return weight, -(weight * (self.means / 2 + self.origin)).sum(dim=1)


class _HeldOut:
    """The samples of a fold in the axes of the fit without it, where one product gives their logits for any γ."""

    def __init__(self, fit: _Gaussians, rows: Tensor) -> None:
        rows = rows - fit.origin
        self.fit, self.samples, self.means = fit, rows @ fit.axes, fit.means @ fit.axes
        self.beyond = rows.new_zeros(())  # what directions beyond the axes add to logits, for Σ_γ = I
        if fit.axes.shape[1] < fit.axes.shape[0]:
            length = fit.means.square().sum(dim=1) - self.means.square().sum(dim=1)
            self.beyond = rows @ fit.means.T - self.samples @ self.means.T - length / 2

    def logits(self, gamma: float, dtype: torch.dtype) -> Tensor:
        """``[N, C]`` for s = 1."""
        along, beyond = self.fit.inverse(gamma)
        rest = self.beyond * beyond - (self.means.square() * along).sum(dim=1) / 2
        return torch.addmm(rest.to(dtype), (self.samples * along).to(dtype), self.means.to(dtype).T)


def _fits(
    rows: Tensor, labels: Tensor, fold: Tensor, num_classes: int, views: float
) -> tuple[_Gaussians, list[_HeldOut]]:
    """The fit of all samples, and each fold as the fit without it sees it; ``views`` rows to a sample."""
    variance = (rows - rows.mean(dim=0)).square().mean()
    everything = torch.ones_like(fold, dtype=torch.bool)
    outs = [fold == k for k in range(int(fold.max()) + 1)]

    def sums(part: Tensor) -> tuple[Tensor, Tensor]:
        """Number ``[C]`` and sum ``[C, D]`` of the rows of each class."""
        counts = torch.bincount(labels[part], minlength=num_classes).to(rows)
        return counts, rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels[part], rows[part])

    def gaussians(counts: Tensor, sums: Tensor, scatter: Tensor, axes: Tensor) -> _Gaussians:
        """From eigenvalues and eigenvectors of Σ (x − μ_y)(x − μ_y)ᵀ; each mean takes one sample's freedom away."""
        origin = sums.sum(dim=0) / counts.sum()
        freedom = max(float(counts.sum()) - views * num_classes, views)
        return _Gaussians(origin, sums / counts.unsqueeze(1) - origin, scatter / freedom, axes, variance)

    def of_few(part: Tensor) -> _Gaussians:
        """For fewer rows than directions."""
        counts, total = sums(part)
        apart = rows[part] - (total / counts.unsqueeze(1))[labels[part]]
        _, singular, axes = torch.linalg.svd(apart, full_matrices=False)
        return gaussians(counts, total, singular.square(), axes.T)

    def of_many(counts: Tensor, total: Tensor, products: Tensor) -> _Gaussians:
        scatter, axes = torch.linalg.eigh(products - total.T @ (total / counts.unsqueeze(1)))
        return gaussians(counts, total, scatter.clamp(min=0), axes)

    if len(rows) - max(int(out.sum()) for out in outs) < rows.shape[1]:
        return of_few(everything), [_HeldOut(of_few(~out), rows[out]) for out in outs]
    moments, parts = (*sums(everything), rows.T @ rows), []
    for out in outs:
        of_fold = (*sums(out), rows[out].T @ rows[out])
        parts.append(_HeldOut(of_many(*(a - b for a, b in zip(moments, of_fold, strict=True))), rows[out]))
    return of_many(*moments), parts


def _most_likely(
    parts: list[_HeldOut], fold: Tensor, labels: Tensor, samples: int, shrinkages: Sequence[float]
) -> tuple[float, float, float, Tensor]:
    """(cross-entropy, s, γ, logits ``[N, C]`` for s = 1) of the best γ: in float32 first, near ones again in full."""

    def costs(gamma: float, dtype: torch.dtype) -> tuple[float, float, float, Tensor]:
        logits = fold.new_empty(len(fold), len(parts[0].means), dtype=dtype)
        for k, part in enumerate(parts):
            logits[fold == k] = part.logits(gamma, dtype)
        return *_best_scale(logits, labels, samples), gamma, logits

    rough = {gamma: costs(gamma, torch.float32)[0] for gamma in shrinkages}
    near = [gamma for gamma, nll in rough.items() if nll <= min(rough.values()) + _ROUGH]
    return min((costs(gamma, parts[0].samples.dtype) for gamma in near), key=lambda found: found[0])


def _best_scale(logits: Tensor, labels: Tensor, samples: int) -> tuple[float, float]:
    """(cross-entropy with the :func:`smoothed_targets`, s) for the best s; there is one minimum."""
    low, high = _limits(logits)
    rows, classes = logits.shape
    logits, dtype = _lowered(logits), exact_dtype(logits)
    epsilon = classes / (samples + classes)
    own = float(logits.gather(1, labels.unsqueeze(1)).mean(dtype=dtype))
    agreement = (1 - epsilon) * own + epsilon * float(logits.mean(dtype=dtype))

    def cost(scale: float) -> float:
        sums = (float((scale * block).logsumexp(dim=1).sum(dtype=dtype)) for block in _blocks(logits))
        return sum(sums) / rows - scale * agreement

    scale = _golden(cost, low, high)
    return cost(scale), scale


def _scale_of_entropy(logits: Tensor, entropy: float) -> float:
    """The s at which the mean entropy of softmax(s · logits) is ``entropy``; it falls with s."""
    low, high = _limits(logits)
    logits = _lowered(logits).float()
    for _ in range(32):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _entropy(logits, middle) > entropy else (low, middle)
    return math.sqrt(low * high)


def _entropy(logits: Tensor, scale: float) -> float:
    """Mean entropy of softmax(s · logits) in nats."""
    log_p = ((scale * block).log_softmax(dim=1) for block in _blocks(logits))
    sums = (float((block.exp() * block).sum(dim=1).sum(dtype=exact_dtype(logits))) for block in log_p)
    return -sum(sums) / len(logits)


def _blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """Some rows each, few enough to stay in the cache from one operation to the next."""
    return torch.split(logits, max(_BLOCK // logits.shape[1], 1))


def _lowered(logits: Tensor) -> Tensor:
    """The largest of each row moved to 0, which keeps digits in sums of exponentials."""
    return logits - logits.amax(dim=1, keepdim=True)


def _limits(logits: Tensor) -> tuple[float, float]:
    """Of the scale."""
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
