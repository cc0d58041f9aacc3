"""The calibrated local classifier against explicit covariances, inverses and loops in float64."""

import pytest
import torch

from gkd_plugin.functional import discriminant, fit_discriminant
from tests import reference as loops


def clouds(classes=4, per_class=12, width=5, spread=1.0, seed=0):
    """Gaussian classes with a covariance of unequal directions."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means, mixing = 1.5 * draw(classes, width), draw(width, width)
    labels = torch.arange(classes).repeat_interleave(per_class)
    shuffled = torch.randperm(len(labels), generator=generator)
    return (means[labels] + spread * draw(len(labels), width) @ mixing)[shuffled], labels[shuffled]


def uneven(sizes, width=6):
    """As :func:`clouds`, with so many samples of each class."""
    rows, labels = clouds(len(sizes), max(sizes), width)
    kept = torch.cat([(labels == k).nonzero().flatten()[:size] for k, size in enumerate(sizes)]).sort().values
    return rows[kept], labels[kept]


def answers(fit, rows):
    return rows.float() @ fit.weight.T + fit.bias


def reference(rows, labels, classes, gamma, variance, views=1):
    """Weight and bias for s = 1, from the covariance, with so many rows to a sample, and its inverse."""
    means = torch.stack([rows[labels == k].mean(0) for k in range(classes)])
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for row, label in zip(rows, labels, strict=True):
        covariance += torch.outer(row - means[label], row - means[label])
    covariance /= len(rows) - views * classes
    shrunk = (1 - gamma) * covariance + gamma * variance * torch.eye(rows.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(shrunk)
    return torch.stack([inverse @ mean for mean in means]), torch.stack([-mean @ inverse @ mean / 2 for mean in means])


def total_variance(rows):
    return (rows - rows.mean(0)).square().mean()


def held_out_logits(rows, labels, classes, gamma, folds, samples=None):
    """Row by row, s = 1: the views of the i-th sample of each class are in fold i mod K."""
    seen, fold = [[] for _ in range(classes)], []
    for sample, label in zip(range(len(rows)) if samples is None else samples.tolist(), labels.tolist(), strict=True):
        if sample not in seen[label]:
            seen[label].append(sample)
        fold.append(seen[label].index(sample) % folds)
    fold = torch.tensor(fold)
    views = 1 if samples is None else len(rows) / len(set(samples.tolist()))
    found = []
    for i in range(len(rows)):
        rest = fold != fold[i]
        weight, bias = reference(rows[rest], labels[rest], classes, gamma, total_variance(rows), views)
        found.append(weight @ rows[i] + bias)
    return torch.stack(found)


def assert_held_out(fit, unscaled, labels, samples=None):
    """Its held-out logits are the unscaled ones times the most likely scale."""
    centred, ours = (x - x.mean(1, keepdim=True) for x in (unscaled, fit.held_out_logits.double()))
    scale = (ours * centred).sum() / centred.square().sum()
    torch.testing.assert_close(ours, scale * centred, rtol=1e-4, atol=1e-4)
    cost = {}
    for factor in (0.5, 0.9, 1.0, 1.1, 2.0):
        log_p = map(loops.log_softmax, (factor * scale * unscaled).tolist())
        cost[factor] = loops.smoothed_nll(list(log_p), labels.tolist(), unscaled.shape[1], samples)
    assert fit.held_out_nll == pytest.approx(cost[1.0], rel=1e-6)
    assert min(cost, key=cost.get) == 1.0


@pytest.mark.parametrize("width", [5, 80])  # fewer and more directions than samples
def test_weight_and_bias_are_those_of_the_shrunk_covariance(width):
    """Of two copies of each sample, which tell nothing new; of labels of any integer type."""
    rows, labels = (x.repeat(2, *[1] * (x.ndim - 1)) for x in clouds(width=width))
    fit = fit_discriminant(rows, labels.byte(), 4, samples=torch.arange(len(rows) // 2).repeat(2))
    weight, bias = reference(rows, labels, 4, fit.strength, total_variance(rows), views=2)
    ours, theirs = rows @ fit.weight.double().T + fit.bias.double(), fit.scale * (rows @ weight.T + bias)
    torch.testing.assert_close(ours.log_softmax(1), theirs.log_softmax(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "choices"),
    [
        # training parts span all directions, or not; all samples neither
        *((clouds(per_class=7, width=width, spread=1.5), {"folds": 3, "shrinkages": (0.3,)}) for width in (5, 20, 40)),
        *((uneven(sizes), {}) for sizes in [(2, 30, 30, 30), (3, 4, 9, 20), (2, 3, 3, 3)]),
    ],
)
def test_the_held_out_answers_are_on_the_most_likely_scale(data, choices):
    """A small class leaves the others their folds."""
    rows, labels = data
    fit = fit_discriminant(rows, labels, 4, **choices)
    folds = min(choices.get("folds", 5), int(labels.bincount().max()))
    assert_held_out(fit, held_out_logits(rows, labels, 4, fit.strength, folds), labels)


@pytest.mark.parametrize("width", [5, 40])
def test_views_of_a_sample_are_held_out_together(width):
    rows, labels = clouds(per_class=7, width=width, spread=1.5)
    samples = torch.arange(len(rows)).repeat(3)
    views = torch.cat([rows + 0.2 * torch.randn(rows.shape, generator=torch.manual_seed(k)) for k in range(3)])
    shuffled = torch.randperm(len(views), generator=torch.manual_seed(3))
    # the numbers rise in the order of first appearance, so that the loops find the same i-th sample
    views, labels, samples = views[shuffled], labels.repeat(3)[shuffled], samples[shuffled]
    order = {sample: i for i, sample in enumerate(dict.fromkeys(samples.tolist()))}
    samples = torch.tensor([10 * order[sample] for sample in samples.tolist()])
    fit = fit_discriminant(views, labels, 4, samples=samples, folds=3, shrinkages=(0.3,))
    assert_held_out(fit, held_out_logits(views, labels, 4, 0.3, 3, samples), labels, len(rows))
    alone = fit_discriminant(views, labels, 4, folds=3, shrinkages=(0.3,))  # each view known by its siblings
    assert alone.held_out_nll < fit.held_out_nll


def test_views_do_not_make_samples():
    rows, labels = clouds(classes=2, per_class=1)
    with pytest.raises(ValueError, match="class 0 has 1 samples, a discriminant needs 2"):
        fit_discriminant(rows.repeat(4, 1), labels.repeat(4), 2, samples=torch.arange(2).repeat(4))
    rows, labels = clouds(classes=2, per_class=2)  # training parts of one sample a class: nothing to estimate
    assert fit_discriminant(rows.repeat(4, 1), labels.repeat(4), 2, samples=torch.arange(4).repeat(4)).strength == 1


def test_of_the_shrinkages_the_most_likely_is_taken():
    gammas = (0.01, 0.3, 1.0)
    rows, labels = clouds(per_class=6, width=12)
    alone = {gamma: fit_discriminant(rows, labels, 4, shrinkages=(gamma,)).held_out_nll for gamma in gammas}
    fit = fit_discriminant(rows, labels, 4, shrinkages=gammas)
    assert (fit.strength, fit.held_out_nll) == (min(alone, key=alone.get), min(alone.values()))


@pytest.mark.parametrize("width", [5, 80])
def test_an_embedding_far_from_the_origin_costs_no_digits(width):
    rows, labels = clouds(width=width)
    near, far = fit_discriminant(rows, labels, 4), fit_discriminant(rows + 1e5, labels, 4)
    assert far.held_out_nll == pytest.approx(near.held_out_nll, rel=1e-6)
    torch.testing.assert_close(far.weight, near.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("per_class", "width"), [(10, 60), (8, 300)])
def test_noise_is_not_learned_by_heart(per_class, width):
    """So many directions separate the random samples perfectly; held-out ones show that nothing is known."""
    rows = torch.randn(4 * per_class, width, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(per_class)
    fit = fit_discriminant(rows, labels, 4)
    assert (answers(fit, rows).argmax(1) == labels).double().mean() > 0.9
    assert fit.held_out_accuracy < 0.5
    assert answers(fit, rows).softmax(1).max() < 0.5


@pytest.mark.parametrize(
    ("sizes", "gamma"), [((2, 2, 2, 2), 1), ((2, 2, 3, 3), 1), ((3, 3, 3, 3), 0.5), ((2, 9, 9, 9), 0.5)]
)
def test_covariances_of_fewer_than_two_samples_a_class_are_not_tried(sizes, gamma):
    rows, labels = uneven(sizes)
    assert fit_discriminant(rows, labels, 4, shrinkages=(0.5,)).strength == gamma


def test_a_few_separable_samples_do_not_make_it_certain():
    rows, labels = clouds(per_class=8, spread=0.01)
    fit = fit_discriminant(rows, labels, 4)
    assert fit.held_out_accuracy == 1
    assert 0.5 < answers(fit, rows).softmax(1).max() < 0.995


def test_equal_embeddings_give_finite_flat_logits():
    rows, labels = torch.ones(12, 3), torch.arange(12) % 3
    logits = answers(fit_discriminant(rows, labels, 3), rows)
    torch.testing.assert_close(logits.softmax(1), torch.full((12, 3), 1 / 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": torch.zeros(4, 2, 1)}, r"takes embeddings \[N, D\] and labels \[N\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"got \[4, 2\] and \[3\]"),
        ({"embedding": torch.full((4, 2), torch.nan)}, "embeddings are not finite"),
        ({"labels": torch.tensor([0, 0, 0, 1])}, "class 1 has 1 samples, a discriminant needs 2"),
        ({"num_classes": 3}, "class 2 has 0 samples"),
        ({"labels": torch.tensor([0, 0, 5, 5])}, "label 5, allowed 0 … 1"),
        ({"labels": torch.tensor([0, 0, -1, 1])}, "label -1, allowed 0 … 1"),
        ({"folds": 1}, "folds must be 2 or more, got 1"),
        ({"shrinkages": ()}, r"shrinkages must be above 0 and at most 1, at least one, got \[\]"),
        ({"shrinkages": (0, 0.5)}, r"shrinkages must be .* got \[0, 0.5\]"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    arguments = {"embedding": torch.zeros(4, 2), "labels": torch.tensor([0, 0, 1, 1]), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        fit_discriminant(**arguments | change)


def test_thousands_of_classes_are_counted_in_one_pass():
    """A loop over the classes took seconds."""
    places, counts = discriminant._places(torch.arange(40_000) % 20_000, torch.arange(40_000), 20_000)
    assert (counts == 2).all()
    assert torch.equal(places, torch.arange(40_000) // 20_000)


@pytest.mark.parametrize("block", [1, 37])
def test_a_few_rows_at_a_time_are_as_good_as_all(block, monkeypatch):
    rows, labels = clouds()
    whole = fit_discriminant(rows, labels, 4)
    monkeypatch.setattr(discriminant, "_BLOCK", block)
    parts = fit_discriminant(rows, labels, 4)
    assert (parts.strength, parts.held_out_nll) == (whole.strength, pytest.approx(whole.held_out_nll, rel=1e-12))
    torch.testing.assert_close(parts.weight, whole.weight)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
def test_the_scale_is_the_most_likely_one(factor):
    logits, labels = factor * torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 4
    logits[range(50), labels] += factor
    targets = discriminant.smoothed_targets(labels, 4, 50)
    nll, scale = discriminant._most_likely_scale(logits - logits.amax(dim=1, keepdim=True), targets)
    cost = {f: torch.nn.functional.cross_entropy(f * scale * logits, targets).item() for f in (0.99, 1.0, 1.01)}
    assert nll == pytest.approx(cost[1.0], rel=1e-9)
    assert min(cost, key=cost.get) == 1.0
