r"""A calibrated local classifier: Gaussian classes with one shared covariance. Not in the paper.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if it varied
alike in all directions and its scale suited the labels. With class means μ_k and the pooled within-class covariance Σ,
Bayes' rule for classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · v · I,    v the total variance / D.

γ = 1 is the nearest class mean. K-fold cross-validation chooses the γ with the lowest cross-entropy of held-out labels,
each γ at its own best scale s, which the final fit keeps. The labels count as (1 − ε) · one-hot + ε / C with
ε = 1 / (N + 1), as if one sample more were of no class, so that a few separable samples do not make it certain.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import exact_dtype

__all__ = ["LinearFit", "fit_discriminant"]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)  # the γ that are tried
_SPREADS = (1e-4, 1e2)  # of scaled logits, the limits of the search for s
_BLOCK = 2**16  # logits that stay in the processor's cache

Fit = Callable[[int | None, float], tuple[Tensor, Tensor]]
"""(fold, strength) → weight ``[C, R]`` and bias ``[C]`` for s = 1, of all samples but those held out in that fold."""


class LinearFit(NamedTuple):
    """A local classifier z = φ · weightᵀ + bias, and how it was found."""

    weight: Tensor  # [C, D] float32, times s
    bias: Tensor  # [C] float32, times s
    strength: float  # of the regularisation: a discriminant's γ, a probe's α
    scale: float  # s
    held_out_nll: float  # mean cross-entropy of the held-out labels in nats, smoothed; log C: nothing is known
    held_out_accuracy: float  # share of the held-out samples whose class has the largest logit, in [0, 1]
    held_out_logits: Tensor  # [N, C], of each sample by the fit that left its fold out; the largest is moved to 0


def fit_discriminant(
    embedding: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    folds: int = 5,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> LinearFit:
    """Fits the classifier of this module's formula; its ``strength`` is γ.

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
        ValueError: shapes do not fit, values are not finite, a label is out of range, a class has fewer than two
            samples, or folds or shrinkages are not as above.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 3.0], [0.1, 2.0], [3.0, 1.5], [2.8, 2.5], [3.1, 0.5]])
        >>> fit = fit_discriminant(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
        >>> (x @ fit.weight.T + fit.bias).argmax(dim=1)
        tensor([0, 0, 0, 1, 1, 1])
    """
    if not shrinkages or not all(0 < shrinkage <= 1 for shrinkage in shrinkages):
        raise ValueError(f"shrinkages must be above 0 and at most 1, at least one, got {list(shrinkages)}")
    given = Samples.of("discriminant", embedding, labels, num_classes, samples=samples, folds=folds)
    return best_of(_Gaussians(given).classifier, given, shrinkages if given.least >= 2 * num_classes else (1.0,))


class Samples(NamedTuple):
    """Checked samples: centred, divided by the root of v and turned into the directions that they span."""

    rows: Tensor  # [N, R], R = min(N, D): their variance v is 1
    labels: Tensor  # [N]
    outs: list[Tensor]  # [N] each: the rows that are held out together
    num_classes: int
    size: int  # the number of samples, which may have several rows, and
    least: int  # of those beside the largest fold
    origin: Tensor  # [D], subtracted
    turn: Tensor | None  # [D, R]; None where R = D
    deviation: float

    @classmethod
    def of(
        cls, kind: str, embedding: Tensor, labels: Tensor, num_classes: int, *, samples: Tensor | None, folds: int
    ) -> "Samples":
        """Of an embedding ``[N, D]``; raises ValueError where ``kind``, a word for messages, cannot be fitted."""
        if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
            shapes = f"{list(embedding.shape)} and {list(labels.shape)}"
            raise ValueError(f"a {kind} takes embeddings [N, D] and labels [N], got {shapes}")
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(f"class index out of range: label {int(wrong[0])}, allowed 0 … {num_classes - 1}")
        if not bool(torch.isfinite(embedding).all()):
            raise ValueError("embeddings are not finite")
        if folds < 2:
            raise ValueError(f"folds must be 2 or more, got {folds}")
        labels = labels.long()
        samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
        places, counts = _places(labels, samples, num_classes)
        if int(counts.min()) < 2:
            raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} samples, a {kind} needs 2")
        rows = embedding.detach().to(exact_dtype(embedding))
        origin = rows.mean(dim=0)  # subtracted, it keeps digits
        deviation = float((rows - origin).square().mean().sqrt()) or 1.0
        rows = (rows - origin) / deviation
        turn = torch.linalg.qr(rows.T).Q if len(rows) < rows.shape[1] else None
        outs = [places % folds == k for k in range(min(folds, int(counts.max())))]
        rows, count = rows if turn is None else rows @ turn, int(counts.sum())
        least = count - max(len(torch.unique(samples[out])) for out in outs)
        return cls(rows, labels, outs, num_classes, count, least, origin, turn, deviation)


def best_of(fit: Fit, samples: Samples, strengths: Iterable[float], *, worse: float = math.inf) -> LinearFit:
    """The fit with the lowest cross-entropy of held-out labels; one ``worse`` times the best so far ends the search."""
    targets = smoothed_targets(samples.labels, samples.num_classes, samples.size)
    best: tuple[float, float, float, Tensor] | None = None
    for strength in strengths:
        logits = samples.rows.new_empty(targets.shape)
        for number, out in enumerate(samples.outs):
            weight, bias = fit(number, strength)
            logits[out] = functional.linear(samples.rows[out], weight, bias)
        logits -= logits.amax(dim=1, keepdim=True)  # keeps digits in sums of exponentials
        nll, scale = _most_likely_scale(logits, targets)
        if best is not None and nll > worse * best[0]:
            break
        best = (nll, scale, strength, logits) if best is None or nll < best[0] else best
    assert best is not None
    nll, scale, strength, logits = best
    accuracy = float((logits.argmax(dim=1) == samples.labels).double().mean())
    weight, bias = fit(None, strength)
    weight = scale / samples.deviation * (weight if samples.turn is None else weight @ samples.turn.T)
    bias = scale * bias - weight @ samples.origin
    return LinearFit(weight.float(), bias.float(), strength, scale, nll, accuracy, (scale * logits).float())


def smoothed_targets(labels: Tensor, num_classes: int, samples: int, unknown: int = 1) -> Tensor:
    """``[N, C]`` in float64: (1 − ε) · one-hot + ε / C, as if beside the ``samples`` some had an ``unknown`` label."""
    epsilon = unknown / (samples + unknown)
    one_hot = functional.one_hot(labels.long(), num_classes).to(exact_dtype(labels))
    return (1 - epsilon) * one_hot + epsilon / num_classes


def minimise(cost: Callable[[], Tensor], free: Tensor, **settings: Any) -> None:
    """Changes ``free``, a leaf, until the cost is lowest, by L-BFGS; under ``no_grad`` too."""
    search = torch.optim.LBFGS([free], line_search_fn="strong_wolfe", **settings)

    def cost_and_gradient() -> Tensor:
        search.zero_grad()
        value = cost()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(cost_and_gradient)  # type: ignore[no-untyped-call]


def _places(labels: Tensor, samples: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """``[N]``: i for the rows of the i-th sample of their class; ``[C]``: the number of samples of each class."""
    distinct, index = torch.unique(torch.stack([labels, samples]), dim=1, return_inverse=True)
    counts = torch.bincount(distinct[0], minlength=num_classes)
    return index - (counts.cumsum(0) - counts)[labels], counts


def _most_likely_scale(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """(cross-entropy, s) for the s at which softmax(s · logits) has the lowest: Newton's method, kept in a bracket."""
    agreement = float(torch.linalg.vecdot(targets, logits).mean())
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()) or 1.0
    low, high = (limit / spread for limit in _SPREADS)
    following, scale = math.sqrt(low * high), math.inf
    while abs(following - scale) > 1e-4 * following:
        scale = following
        _, mean, variance = _softmax_means(logits, scale)
        low, high = (scale, high) if mean < agreement else (low, scale)
        following = scale - (mean - agreement) / variance if variance > 0 else low
        following = following if low < following < high else math.sqrt(low * high)
    return _softmax_means(logits, following)[0] - following * agreement, following


def _softmax_means(logits: Tensor, scale: float) -> list[float]:
    """Means over the rows z of log Σ exp(s · z), and of mean and variance of z under softmax(s · z)."""
    total = logits.new_zeros(3)
    for z in torch.split(logits, max(_BLOCK // logits.shape[1], 1)):
        p = (scale * z).exp_()
        norm = p.sum(dim=1)
        mean = torch.linalg.vecdot(p, z) / norm
        variance = torch.linalg.vecdot(p.mul_(z), z) / norm - mean.square()
        total += torch.stack([norm.log(), mean, variance]).sum(dim=1)
    return [float(value) for value in total / len(logits)]


class _Gaussians:
    """Gaussian classes with one covariance, of all samples and of all but a fold's."""

    def __init__(self, samples: Samples) -> None:
        self._classes = samples.num_classes
        self._views = len(samples.rows) / samples.size  # rows to a sample
        of_outs = [self._moments(samples.rows[out], samples.labels[out]) for out in samples.outs]
        of_all = [torch.stack(values).sum(dim=0) for values in zip(*of_outs, strict=True)]
        self._fits = [self._fit(*(a - b for a, b in zip(of_all, out, strict=True))) for out in of_outs]
        self._fits.append(self._fit(*of_all))

    def classifier(self, out: int | None, strength: float) -> tuple[Tensor, Tensor]:
        """Weight ``[C, R]`` and bias ``[C]`` for v = 1, γ = ``strength``."""
        axes, variances, means = self._fits[-1 if out is None else out]
        weight = means / ((1 - strength) * variances + strength)
        return weight @ axes.T, -(weight * means).sum(dim=1) / 2

    def _moments(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number ``[C]`` and sum ``[C, R]`` of the rows of each class, and Σ x·xᵀ of all."""
        counts = torch.bincount(labels, minlength=self._classes).to(rows)
        return counts, rows.new_zeros(self._classes, rows.shape[1]).index_add_(0, labels, rows), rows.T @ rows

    def _fit(self, counts: Tensor, sums: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvectors ``[R, R]``, eigenvalues ``[R]`` of the covariance, and class means ``[C, R]`` in these axes."""
        means = sums / counts.unsqueeze(1)
        scatter, axes = torch.linalg.eigh(products - sums.T @ means)
        freedom = max(float(counts.sum()) - self._views * self._classes, self._views)  # each mean takes one
        return axes, scatter.clamp(min=0) / freedom, means @ axes
