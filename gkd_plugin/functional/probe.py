r"""A linear probe: multinomial logistic regression on the frozen teacher's embedding. Not in the paper.

With φ̃ the embedding, centred and divided by the root of v (its total variance / D), weights W and biases b minimise

    mean over rows of −log softmax(W φ̃ + b)_y + (α / 2) · ‖W‖²,    and z = s · (W φ̃ + b).

K-fold cross-validation chooses the penalty α with the lowest cross-entropy of held-out labels, each α at its own best
scale s, which the final fit keeps; held-out labels are smoothed as in :mod:`gkd_plugin.functional.discriminant`. A
teacher that is probed and then distilled is a strong baseline (Marrie et al., TMLR 2024, arXiv 2402.11305).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional.discriminant import LinearFit, Samples, best_of, minimise

__all__ = ["fit_probe"]

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # the α that are tried, each from the weights of the one before
_WORSE = 1.02  # times the best cross-entropy ends the search: smaller penalties fit the training samples more closely


def fit_probe(
    embedding: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
) -> LinearFit:
    """Fits the classifier of this module's formula in float32 by L-BFGS; its ``strength`` is α.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        samples: as for :func:`fit_discriminant`, and so are the folds.
        folds: K ≥ 2.
        penalties: the α to try, above 0, the largest first.

    Raises:
        ValueError: as :func:`fit_discriminant`; or penalties are not as above.
    """
    if not penalties or min(penalties) <= 0 or sorted(penalties, reverse=True) != list(penalties):
        raise ValueError(f"penalties must be above 0, at least one, the largest first, got {list(penalties)}")
    given = Samples.of("probe", embedding, labels, num_classes, samples=samples, folds=folds)
    rows = functional.pad(given.rows.float(), (0, 1), value=1.0)  # the ones are for the biases
    weights: dict[int | None, Tensor] = {}  # found last for these rows

    def fit(out: int | None, penalty: float) -> tuple[Tensor, Tensor]:
        kept = slice(None) if out is None else ~given.outs[out]
        start = weights.get(out, rows.new_zeros(num_classes, rows.shape[1]))
        found = weights[out] = _minimum(rows[kept], given.labels[kept], penalty, start)
        return found[:, :-1].to(given.rows), found[:, -1].to(given.rows)

    return best_of(fit, given, penalties, worse=_WORSE)


def _minimum(rows: Tensor, labels: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Weights, the biases in the last column, with the lowest cost."""
    both = start.clone().requires_grad_()

    def cost() -> Tensor:
        return functional.cross_entropy(rows @ both.T, labels) + penalty / 2 * both[:, :-1].square().sum()

    minimise(cost, both, max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, history_size=10)
    return both.detach()
