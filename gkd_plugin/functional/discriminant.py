r"""A calibrated local classifier: Gaussian classes with one shared covariance. Not in the paper.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if it varied
alike in all directions and its scale suited the labels. With class means μ_k and the pooled within-class covariance Σ,
Bayes' rule for classes of equal prior gives linear logits instead,

    z_k(φ) = s · (μ_kᵀ Σ_γ⁻¹ φ − ½ μ_kᵀ Σ_γ⁻¹ μ_k),    Σ_γ = (1 − γ) Σ + γ · v · I,    v the total variance / D.

γ = 1 is the nearest class mean. K-fold cross-validation chooses the γ with the lowest cross-entropy of held-out labels,
each γ at its own best scale s, which the final fit keeps. The labels count as (1 − ε) · one-hot + ε / C with
ε = 1 / (N + 1), as if one sample more were of no class, so that a few separable samples do not make it certain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_plugin.functional._linear import LinearFit, Samples, best_of

__all__ = ["LinearFit", "fit_discriminant"]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)  # the γ that are tried


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


class _Gaussians:
    """Gaussian classes with one covariance, of all samples and of all but a fold's."""

    def __init__(self, samples: Samples) -> None:
        self._classes, self._labels = samples.num_classes, samples.labels
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
