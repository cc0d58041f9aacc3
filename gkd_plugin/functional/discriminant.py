r"""A calibrated local classifier: Gaussian classes with one covariance, shrunk and scaled by held-out likelihood.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if all its
directions spread alike and its logits were on the scale of the labels. With the class means μ_k and the pooled
within-class covariance Σ, Bayes' rule for Gaussian classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · (tr Σ / D) · I.

γ = 1 is the nearest class mean. γ and s minimise the negative log-likelihood of training labels that were held out
(K-fold cross-validation): nothing to tune by hand, no validation or test set touched. s is what says how far the
teacher is to be trusted: where it knows little of the classes, its logits come out nearly flat. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._precision import exact_dtype

__all__ = ["Discriminant", "fit_discriminant"]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""The γ that are tried."""
_SCALES = (1e-4, 1e2)


class Discriminant(NamedTuple):
    """The local classifier z = φ · weightᵀ + bias, and how it was found.

    Attributes:
        weight: ``[C, D]`` float32, s · Σ_γ⁻¹ (μ_k − μ), μ the mean of all samples, which cancels in the softmax.
        bias: ``[C]`` float32.
        shrinkage: γ.
        scale: s.
        held_out_nll: mean negative log-likelihood of the held-out labels in nats; log C says that nothing is known.
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
    folds: int = 5,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Discriminant:
    """Fits the classifier of this module's formula.

    The i-th sample of each class belongs to fold i mod K, K the number of folds or the size of the smallest class.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        folds: K ≥ 2, of the cross-validation.
        shrinkages: the γ to try, each in (0, 1].

    Raises:
        ValueError: shapes do not fit, a label is out of range, or a class has fewer than two samples.

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
    counts = torch.bincount(labels, minlength=num_classes)
    if counts.min() < 2:
        raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} samples, a discriminant needs 2")
    rows = embedding.detach().to(exact_dtype(embedding))
    fold = _folds(labels, num_classes, min(folds, int(counts.min())))
    held_out = _held_out(rows, labels, fold, num_classes, shrinkages)
    fitted = [(*_scale(logits, labels), gamma, logits) for gamma, logits in zip(shrinkages, held_out, strict=True)]
    nll, scale, gamma, logits = min(fitted, key=lambda found: found[0])
    weight, bias = _Gaussians.of(rows, labels, num_classes).classifier(gamma)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    weight, bias, logits = ((scale * value).float() for value in (weight, bias, logits))
    return Discriminant(weight, bias, gamma, scale, nll, float(accuracy), logits)


class _Gaussians(NamedTuple):
    """Gaussian classes with one covariance.

    Attributes:
        origin: ``[D]``, the mean of all samples; it is taken off first, for the digits.
        means: ``[C, D]``, of the classes, from the origin.
        variances: ``[R]``, R ≤ D, eigenvalues of the pooled covariance.
        axes: ``[D, R]``, its eigenvectors.
    """

    origin: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, num_classes: int) -> _Gaussians:
        counts = torch.bincount(labels, minlength=num_classes).to(rows)
        origin = rows.mean(dim=0)
        rows = rows - origin
        means = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows) / counts.unsqueeze(1)
        _, singular, axes = torch.linalg.svd(rows - means[labels], full_matrices=False)
        return cls(origin, means, singular.square() / max(len(rows) - num_classes, 1), axes.T)

    def classifier(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Weight ``[C, D]`` and bias ``[C]`` for s = 1; directions that no sample takes have variance γ · tr Σ / D."""
        mean_variance = self.variances.sum() / self.means.shape[1]
        floor = torch.maximum(gamma * mean_variance, 1e-9 * self.means.square().mean())
        floor = torch.where(floor > 0, floor, torch.ones_like(floor))  # all embeddings are equal
        inverse = 1 / ((1 - gamma) * self.variances + floor)
        inside = self.means @ self.axes
        weight = self.means / floor + (inside * (inverse - 1 / floor)) @ self.axes.T
        return weight, -(weight * (self.means / 2 + self.origin)).sum(dim=1)


def _folds(labels: Tensor, num_classes: int, folds: int) -> Tensor:
    """``[N]``: the i-th sample of each class is in fold i mod ``folds``."""
    fold = torch.zeros_like(labels)
    for k in range(num_classes):
        members = (labels == k).nonzero().flatten()
        fold[members] = torch.arange(len(members), device=labels.device) % folds
    return fold


def _held_out(
    rows: Tensor, labels: Tensor, fold: Tensor, num_classes: int, shrinkages: Sequence[float]
) -> list[Tensor]:
    """For each γ the logits ``[N, C]`` (s = 1) of every sample from a fit without its fold."""
    logits = [rows.new_empty(len(rows), num_classes) for _ in shrinkages]
    for k in range(int(fold.max()) + 1):
        out = fold == k
        gaussians = _Gaussians.of(rows[~out], labels[~out], num_classes)
        for gamma, found in zip(shrinkages, logits, strict=True):
            weight, bias = gaussians.classifier(gamma)
            found[out] = rows[out] @ weight.T + bias
    return logits


def _scale(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(negative log-likelihood, s) for the best s: golden-section search on log s; the likelihood has one maximum."""
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()) or 1.0
    low, high = (torch.tensor(bound / spread).log().item() for bound in _SCALES)
    ratio = (5**0.5 - 1) / 2

    def cost(log_scale: float) -> float:
        return float(functional.cross_entropy(logits * torch.tensor(log_scale).exp().item(), labels))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 1e-3:
        if cost_left <= cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - ratio * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + ratio * (high - low)
            cost_right = cost(right)
    best = (low + high) / 2
    return cost(best), float(torch.tensor(best).exp())
