"""The linear probe against scikit-learn's logistic regression, loops over samples, and sums over Python floats."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gkd_plugin.functional import fit_probe, probe
from tests import reference


def clouds(*sizes, width=5, spread=1.0):
    """Shuffled Gaussian classes, with so many samples of each, with a covariance of unequal directions."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means, mixing = 1.5 * draw(len(sizes), width), draw(width, width)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    shuffled = torch.randperm(len(labels), generator=generator)
    return (means[labels] + spread * draw(len(labels), width) @ mixing)[shuffled], labels[shuffled]


def regression(rows, labels, penalty, new):
    """Logits of new rows, centred; scikit-learn's cost is a sum over the rows, ours a mean."""
    model = LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-8, max_iter=10_000).fit(rows.numpy(), labels.numpy())
    return centred(torch.tensor(model.decision_function(new.numpy())))


def centred(logits):
    return logits.double() - logits.double().mean(dim=1, keepdim=True)


def standard(rows):
    return (rows - rows.mean(0)) / (rows - rows.mean(0)).square().mean().sqrt()


def answers(fit, rows):
    return rows.float() @ fit.weight.T + fit.bias


@pytest.mark.parametrize(("width", "penalty"), [(5, 0.1), (80, 0.03)])  # fewer and more directions than samples
def test_weight_and_bias_are_those_of_logistic_regression(width, penalty):
    """Of two copies of each sample, which tell nothing new; of labels of any integer type."""
    rows, labels = (x.repeat(2, *[1] * (x.ndim - 1)) for x in clouds(12, 12, 12, 12, width=width))
    with torch.no_grad():  # as its callers have it
        fit = fit_probe(rows, labels.byte(), 4, samples=torch.arange(48).repeat(2), penalties=[penalty])
    want = fit.scale * regression(standard(rows), labels, penalty, standard(rows))
    torch.testing.assert_close(centred(answers(fit, rows)), want, rtol=0, atol=1e-2)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "width", "choices"),
    [
        # training parts span all directions, or not; all samples neither
        *(((7, 7, 7, 7), width, {"folds": 3, "penalties": [0.1]}) for width in (5, 20, 40)),
        *((sizes, 6, {}) for sizes in [(2, 15, 15, 15), (3, 4, 9, 12), (2, 3, 3, 3)]),  # a small one leaves the others'
    ],
)
def test_held_out_answers_are_of_samples_left_out_with_all_views_on_the_most_likely_scale(sizes, width, choices, views):
    rows, labels = clouds(*sizes, width=width, spread=1.5)
    generator = torch.Generator().manual_seed(1)
    rows = rows.repeat(views, 1) + 0.2 * torch.randn(views * len(rows), width, generator=generator)
    samples, order = 10 * torch.arange(len(labels)).repeat(views), torch.randperm(len(rows), generator=generator)
    rows, labels, samples = rows[order], labels.repeat(views)[order], samples[order]
    fit = fit_probe(rows, labels, 4, samples=samples, **choices)
    of_class = [sorted(set(samples[labels == k].tolist())) for k in range(4)]
    folds = min(choices.get("folds", 5), max(sizes))
    places = [of_class[label].index(sample) for sample, label in zip(samples.tolist(), labels.tolist(), strict=True)]
    fold, rows = torch.tensor(places) % folds, standard(rows)
    for k in range(folds):
        want = fit.scale * regression(rows[fold != k], labels[fold != k], fit.strength, rows[fold == k])
        torch.testing.assert_close(centred(fit.held_out_logits[fold == k]), want, rtol=0, atol=1e-2)
    cost = {}
    for factor in (0.5, 0.9, 1.0, 1.1, 2.0):
        log_p = map(reference.log_softmax, (factor * fit.held_out_logits.double()).tolist())
        cost[factor] = reference.smoothed_nll(list(log_p), labels.tolist(), 4, sum(sizes))
    assert fit.held_out_nll == pytest.approx(cost[1.0], rel=1e-6)
    assert min(cost, key=cost.get) == 1.0
    assert fit.held_out_accuracy == float((fit.held_out_logits.argmax(dim=1) == labels).double().mean())


def test_the_most_likely_penalty_is_taken_and_none_is_tried_beyond_a_worse_one(monkeypatch):
    torch.manual_seed(0)
    labels, rows, tried = torch.arange(48) % 4, torch.randn(48, 20, dtype=torch.float64), set()
    rows[range(48), labels] += 2  # 4 directions of 20 tell the classes apart: a small penalty lets the others in
    alone = {penalty: fit_probe(rows, labels, 4, penalties=[penalty]).held_out_nll for penalty in (10, 1, 0.1, 0.01)}
    solve = probe._minimum
    monkeypatch.setattr(probe, "_minimum", lambda *args: (tried.add(args[2]), solve(*args))[1])
    fit = fit_probe(rows, labels, 4, penalties=tuple(alone))
    assert fit.strength == min(alone, key=alone.get) == 1
    assert fit.held_out_nll == pytest.approx(alone[1], rel=1e-3)
    assert tried == {10, 1, 0.1}


@pytest.mark.parametrize("width", [5, 80])
def test_an_embedding_far_from_the_origin_costs_no_digits(width):
    rows, labels = clouds(12, 12, 12, 12, width=width)
    near, far = fit_probe(rows, labels, 4), fit_probe(rows + 1e5, labels, 4)
    assert far.held_out_nll == pytest.approx(near.held_out_nll, rel=1e-6)
    torch.testing.assert_close(far.weight, near.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("per_class", "width"), [(10, 60), (8, 300)])
def test_noise_is_not_learned_by_heart(per_class, width):
    """So many directions separate the random samples perfectly; held-out ones show that nothing is known."""
    rows = torch.randn(4 * per_class, width, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(per_class)
    fit = fit_probe(rows, labels, 4)
    assert (answers(fit, rows).argmax(1) == labels).double().mean() > 0.9
    assert fit.held_out_accuracy < 0.5
    assert answers(fit, rows).softmax(1).max() < 0.5


def test_a_few_separable_samples_do_not_make_it_certain():
    rows, labels = clouds(8, 8, 8, 8, spread=0.01)
    fit = fit_probe(rows, labels, 4)
    assert fit.held_out_accuracy == 1
    assert 0.5 < answers(fit, rows).softmax(1).max() < 0.995


def test_equal_embeddings_give_finite_flat_logits():
    rows, labels = torch.ones(12, 3), torch.arange(12) % 3
    logits = answers(fit_probe(rows, labels, 3), rows)
    torch.testing.assert_close(logits.softmax(1), torch.full((12, 3), 1 / 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": torch.zeros(4, 2, 1)}, r"takes embeddings \[N, D\] and labels \[N\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"got \[4, 2\] and \[3\]"),
        ({"embedding": torch.full((4, 2), torch.nan)}, "embeddings are not finite"),
        ({"labels": torch.tensor([0, 0, 0, 1])}, "class 1 has 1 samples, a probe needs 2"),
        ({"samples": torch.tensor([0, 0, 1, 1])}, "class 0 has 1 samples"),  # views of one do not make two
        ({"num_classes": 3}, "class 2 has 0 samples"),
        ({"labels": torch.tensor([0, 0, 5, 5])}, "label 5, allowed 0 … 1"),
        ({"labels": torch.tensor([0, 0, -1, 1])}, "label -1, allowed 0 … 1"),
        ({"folds": 1}, "folds must be 2 or more, got 1"),
        ({"penalties": []}, r"penalties must be above 0, at least one, the largest first, got \[\]"),
        ({"penalties": [0.0]}, r"penalties must be .* got \[0.0\]"),
        ({"penalties": [0.1, 1.0]}, r"penalties must be .* got \[0.1, 1.0\]"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    arguments = {"embedding": torch.zeros(4, 2), "labels": torch.tensor([0, 0, 1, 1]), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        fit_probe(**arguments | change)


def test_thousands_of_classes_are_counted_in_one_pass():
    """A loop over the classes took seconds."""
    outs, count = probe._held_out(torch.arange(40_000) % 20_000, None, 20_000, 5)
    assert count == 40_000
    assert torch.equal(torch.stack(outs), torch.stack([torch.arange(40_000) // 20_000 == k for k in range(2)]))


@pytest.mark.parametrize("block", [1, 37])
def test_a_few_rows_at_a_time_are_as_good_as_all(block, monkeypatch):
    rows, labels = clouds(12, 12, 12, 12)
    whole = fit_probe(rows, labels, 4)
    monkeypatch.setattr(probe, "_BLOCK", block)
    parts = fit_probe(rows, labels, 4)
    assert (parts.strength, parts.held_out_nll) == (whole.strength, pytest.approx(whole.held_out_nll, rel=1e-12))
    torch.testing.assert_close(parts.weight, whole.weight)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
def test_the_scale_is_the_most_likely_one(factor):
    logits, labels = factor * torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 4
    logits[range(50), labels] += factor
    targets = probe.smoothed_targets(labels, 4, 50)
    nll, scale = probe._most_likely_scale(logits - logits.amax(dim=1, keepdim=True), targets)
    cost = {f: torch.nn.functional.cross_entropy(f * scale * logits, targets).item() for f in (0.99, 1.0, 1.01)}
    assert nll == pytest.approx(cost[1.0], rel=1e-9)
    assert min(cost, key=cost.get) == 1.0
