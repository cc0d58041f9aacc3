r"""A calibrated local classifier: multinomial logistic regression on the teacher's embedding. Not in the paper.

The paper's local classifier (TPAMI 2023, section 4.2) measures an embedding against class centres, as if its scale
suited the labels. With φ̃ the embedding, centred and divided by the root of v (its total variance / D), weights W and
biases b minimise instead

    mean over rows of −log softmax(W φ̃ + b)_y + (α / 2) · ‖W‖²,    and z = s · (W φ̃ + b).

K-fold cross-validation chooses the penalty α with the lowest cross-entropy of held-out labels, each α at its own best
scale s, which the final fit keeps. The held-out labels count as (1 − ε) · one-hot + ε / C with ε = 1 / (N + 1), as if
one sample more were of no class, so that a few separable samples do not make it certain. A teacher that is probed and
then distilled is a strong baseline (Marrie et al., TMLR 2024, arXiv 2402.11305).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import exact_dtype

__all__ = ["LinearFit", "fit_probe"]

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # the α that are tried, each from the weights of the one before
_WORSE = 1.02  # times the best cross-entropy ends the search: smaller penalties fit the training samples more closely
_SPREADS = (1e-4, 1e2)  # of scaled logits, the limits of the search for s
_BLOCK = 2**16  # logits that stay in the processor's cache


class LinearFit(NamedTuple):
    """A local classifier z = φ · weightᵀ + bias, and how it was found."""

    weight: Tensor  # [C, D] float32, times s
    bias: Tensor  # [C] float32, times s
    strength: float  # of the regularisation: α
    scale: float  # s
    held_out_nll: float  # mean cross-entropy of the held-out labels in nats, smoothed; log C: nothing is known
    held_out_accuracy: float  # share of the held-out samples whose class has the largest logit, in [0, 1]
    held_out_logits: Tensor  # [N, C], of each sample by the fit that left its fold out; the largest is moved to 0


def fit_probe(
    embedding: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[Sequence[float]], Iterable[float]] = iter,
) -> LinearFit:
    """Fits the classifier of this module's formula in float32 by L-BFGS; its ``strength`` is α.

    The i-th sample of each class is held out in fold i mod K, K at most the size of the largest class.

    Args:
        embedding: ``[N, D]``, the teacher's, not normalised.
        labels: ``[N]`` integers in [0, C).
        num_classes: C ≥ 2.
        samples: ``[N]`` integers, equal for augmented views of one sample, which are held out together and count as
            one in ε. ``None`` where every row is a sample of its own.
        folds: K ≥ 2.
        penalties: the α to try, above 0, the largest first.
        progress: gives them in turn, e.g. with a progress bar; not all are tried.

    Raises:
        ValueError: shapes do not fit, values are not finite, a label is out of range, a class has fewer than two
            samples, or folds or penalties are not as above.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 3.0], [0.1, 2.0], [3.0, 1.5], [2.8, 2.5], [3.1, 0.5]])
        >>> fit = fit_probe(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
        >>> (x @ fit.weight.T + fit.bias).argmax(dim=1)
        tensor([0, 0, 0, 1, 1, 1])
    """
    if not penalties or min(penalties) <= 0 or sorted(penalties, reverse=True) != list(penalties):
        raise ValueError(f"penalties must be above 0, at least one, the largest first, got {list(penalties)}")
    _check(embedding, labels, num_classes)
    labels = labels.long()
    outs, count = _held_out(labels, samples, num_classes, folds)
    rows = embedding.detach().to(exact_dtype(embedding))
    origin = rows.mean(dim=0)  # subtracted, it keeps digits
    deviation = float((rows - origin).square().mean().sqrt()) or 1.0
    rows = (rows - origin) / deviation
    turn = torch.linalg.qr(rows.T).Q if len(rows) < rows.shape[1] else None  # [D, N], the directions that rows span
    rows = rows if turn is None else rows @ turn
    padded = functional.pad(rows.float(), (0, 1), value=1.0)  # the ones are for the biases
    targets = smoothed_targets(labels, num_classes, count)
    zeros = padded.new_zeros(num_classes, padded.shape[1])
    weights = [zeros] * len(outs)  # found last without the rows of each fold
    best: tuple[float, float, float, Tensor] | None = None
    for penalty in progress(penalties):
        logits = torch.empty_like(targets)
        for k, out in enumerate(outs):
            weights[k] = _minimum(padded[~out], labels[~out], penalty, weights[k])
            found = weights[k].to(rows)
            logits[out] = functional.linear(rows[out], found[:, :-1], found[:, -1])
        logits -= logits.amax(dim=1, keepdim=True)  # keeps digits in sums of exponentials
        nll, scale = _most_likely_scale(logits, targets)
        if best is not None and nll > _WORSE * best[0]:
            break
        best = (nll, scale, penalty, logits) if best is None or nll < best[0] else best
    assert best is not None
    nll, scale, penalty, logits = best
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    found = _minimum(padded, labels, penalty, zeros).to(rows)
    weight = scale / deviation * (found[:, :-1] if turn is None else found[:, :-1] @ turn.T)
    bias = scale * found[:, -1] - weight @ origin
    return LinearFit(weight.float(), bias.float(), penalty, scale, nll, accuracy, (scale * logits).float())


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

    search.step(cost_and_gradient)  # type: ignore[no-untyped-call]


def _check(embedding: Tensor, labels: Tensor, num_classes: int) -> None:
    if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
        shapes = f"{list(embedding.shape)} and {list(labels.shape)}"
        raise ValueError(f"a probe takes embeddings [N, D] and labels [N], got {shapes}")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"class index out of range: label {int(wrong[0])}, allowed 0 … {num_classes - 1}")
    if not bool(torch.isfinite(embedding).all()):
        raise ValueError("embeddings are not finite")


def _held_out(labels: Tensor, samples: Tensor | None, num_classes: int, folds: int) -> tuple[list[Tensor], int]:
    """For each fold ``[N]``, the rows that are held out together; and the number of samples."""
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    samples = torch.arange(len(labels), device=labels.device) if samples is None else samples
    distinct, index = torch.unique(torch.stack([labels, samples]), dim=1, return_inverse=True)
    counts = torch.bincount(distinct[0], minlength=num_classes)
    if int(counts.min()) < 2:
        raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} samples, a probe needs 2")
    places = index - (counts.cumsum(0) - counts)[labels]  # i, for the rows of the i-th sample of their class
    return [places % folds == k for k in range(min(folds, int(counts.max())))], int(counts.sum())


def _minimum(rows: Tensor, labels: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Weights, the biases in the last column, with the lowest cost."""
    both = start.clone().requires_grad_()

    def cost() -> Tensor:
        return functional.cross_entropy(rows @ both.T, labels) + penalty / 2 * both[:, :-1].square().sum()

    minimise(cost, both, max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, history_size=10)
    return both.detach()


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
