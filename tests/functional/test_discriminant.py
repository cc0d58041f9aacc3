"""The calibrated local classifier against explicit covariances, inverses and loops in float64."""

import math

import pytest
import torch
from torch.nn import functional

from gkd_plugin.functional import fit_discriminant


def clouds(classes=4, per_class=12, width=5, spread=1.0, seed=0):
    """Gaussian classes with a covariance of unequal directions."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means, mixing = 1.5 * draw(classes, width), draw(width, width)
    labels = torch.arange(classes).repeat_interleave(per_class)
    shuffled = torch.randperm(len(labels), generator=generator)
    return (means[labels] + spread * draw(len(labels), width) @ mixing)[shuffled], labels[shuffled]


def reference(rows, labels, classes, gamma):
    """Weight and bias for s = 1, from the covariance and its inverse."""
    means = torch.stack([rows[labels == k].mean(0) for k in range(classes)])
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for row, label in zip(rows, labels, strict=True):
        covariance += torch.outer(row - means[label], row - means[label])
    covariance /= len(rows) - classes
    width = rows.shape[1]
    shrunk = (1 - gamma) * covariance + gamma * covariance.trace() / width * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(shrunk)
    weight = torch.stack([inverse @ mean for mean in means])
    return weight, torch.stack([-mean @ inverse @ mean / 2 for mean in means])


def held_out_nll(rows, labels, classes, gamma, scale, folds):
    """Mean negative log-likelihood, sample by sample: the i-th of each class is in fold i mod K."""
    seen, fold = [0] * classes, []
    for label in labels.tolist():
        fold.append(seen[label] % folds)
        seen[label] += 1
    fold = torch.tensor(fold)
    total = 0.0
    for i in range(len(rows)):
        weight, bias = reference(rows[fold != fold[i]], labels[fold != fold[i]], classes, gamma)
        total -= (scale * (weight @ rows[i] + bias)).log_softmax(0)[labels[i]].item()
    return total / len(rows)


@pytest.mark.parametrize("width", [5, 80])  # fewer and more directions than samples
def test_weight_and_bias_are_those_of_the_shrunk_covariance(width):
    rows, labels = clouds(width=width)
    fit = fit_discriminant(rows, labels, 4)
    weight, bias = reference(rows, labels, 4, fit.shrinkage)
    ours, theirs = rows @ fit.weight.double().T + fit.bias.double(), fit.scale * (rows @ weight.T + bias)
    torch.testing.assert_close(ours.log_softmax(1), theirs.log_softmax(1), rtol=1e-5, atol=1e-5)


def test_the_scale_is_the_most_likely_one_of_held_out_labels():
    rows, labels = clouds(per_class=7, spread=1.5)
    fit = fit_discriminant(rows, labels, 4, folds=3, shrinkages=(0.3,))
    cost = {factor: held_out_nll(rows, labels, 4, 0.3, factor * fit.scale, 3) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)}
    assert fit.held_out_nll == pytest.approx(cost[1.0], rel=1e-9)
    assert min(cost, key=cost.get) == 1.0


def test_of_the_shrinkages_the_most_likely_is_taken():
    rows, labels = clouds(per_class=6, width=12)
    alone = {gamma: fit_discriminant(rows, labels, 4, shrinkages=(gamma,)).held_out_nll for gamma in (0.01, 0.3, 1.0)}
    assert len(set(alone.values())) == 3
    fit = fit_discriminant(rows, labels, 4, shrinkages=tuple(alone))
    assert fit.shrinkage == min(alone, key=alone.get)
    assert fit.held_out_nll == min(alone.values())


def test_full_shrinkage_is_the_nearest_class_mean():
    rows, labels = clouds()
    fit = fit_discriminant(rows, labels, 4, shrinkages=(1.0,))
    means = torch.stack([rows[labels == k].mean(0) for k in range(4)])
    assert torch.equal((rows.float() @ fit.weight.T + fit.bias).argmax(1), torch.cdist(rows, means).argmin(1))


def test_neither_a_rotation_nor_a_shift_of_the_embedding_matters():
    rows, labels = clouds()
    rotation = torch.linalg.qr(clouds(seed=3)[0][:5])[0]
    first = fit_discriminant(rows, labels, 4)
    second = fit_discriminant(rows @ rotation + 2, labels, 4)
    probabilities = [
        (x.float() @ fit.weight.T + fit.bias).softmax(1) for x, fit in ((rows, first), (rows @ rotation + 2, second))
    ]
    torch.testing.assert_close(*probabilities, rtol=1e-3, atol=1e-4)


def test_a_teacher_that_knows_nothing_gives_flat_logits():
    rows = clouds(per_class=40)[0]
    labels = torch.arange(4).repeat(40)
    fit = fit_discriminant(rows, labels, 4)
    assert fit.held_out_nll == pytest.approx(math.log(4), abs=0.02)
    assert fit.held_out_nll <= math.log(4) + 1e-3
    assert (rows.float() @ fit.weight.T + fit.bias).softmax(1).max() < 0.5


def test_accuracy_is_of_held_out_samples():
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(40, 60, generator=generator), torch.arange(4).repeat(10)
    fit = fit_discriminant(rows, labels, 4)  # 60 directions separate 40 random samples perfectly
    assert ((rows @ fit.weight.T + fit.bias).argmax(1) == labels).double().mean() > 0.9
    assert fit.held_out_accuracy < 0.5


def test_two_samples_of_a_class_are_enough_and_folds_adapt():
    rows, labels = clouds(per_class=2)
    fit = fit_discriminant(rows, labels, 4)
    assert all(torch.isfinite(value).all() for value in (fit.weight, fit.bias))


def test_equal_embeddings_give_finite_flat_logits():
    rows, labels = torch.ones(12, 3), torch.arange(12) % 3
    fit = fit_discriminant(rows, labels, 3)
    logits = rows @ fit.weight.T + fit.bias
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.softmax(1), torch.full((12, 3), 1 / 3), rtol=1e-3, atol=1e-3)


def test_logits_are_on_the_scale_of_the_labels():
    rows, labels = clouds(per_class=60, spread=1.5)
    fit = fit_discriminant(rows, labels, 4)
    fresh, fresh_labels = clouds(per_class=60, spread=1.5)
    logits = fresh.float() @ fit.weight.T + fit.bias
    nll = functional.cross_entropy(logits, fresh_labels)
    assert nll < functional.cross_entropy(3 * logits, fresh_labels)
    assert nll < functional.cross_entropy(logits / 3, fresh_labels)


@pytest.mark.parametrize(
    ("rows", "labels", "classes", "message"),
    [
        (torch.zeros(4, 2, 1), torch.zeros(4, dtype=torch.long), 2, r"takes embeddings \[N, D\] and labels \[N\]"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.long), 2, r"got \[4, 2\] and \[3\]"),
        (torch.zeros(3, 2), torch.tensor([0, 0, 1]), 2, "class 1 has 1 samples, a discriminant needs 2"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), 3, "class 2 has 0 samples"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 5, 5]), 3, "label 5, allowed 0 … 2"),
    ],
)
def test_what_cannot_be_fitted(rows, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        fit_discriminant(rows, labels, classes)
