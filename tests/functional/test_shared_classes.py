"""Own logits and local logits on one scale, against the formula class by class and SciPy's best factors."""

import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from gkd_plugin.functional import fit_shared_classes, own_log_probabilities, shared_log_probabilities
from tests import reference


def samples(n=240, classes=4, teacher_labels=(2, -1, 0, -1), seed=0):
    """Labels, noisy local logits, and own logits of a teacher with five classes that knows the shared ones better."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    local = torch.randn(n, classes, generator=generator) + functional.one_hot(labels, classes)
    own = torch.randn(n, 5, generator=generator)
    for i, label in enumerate(labels.tolist()):
        if teacher_labels[label] >= 0:
            own[i, teacher_labels[label]] += 3
    return local, own, torch.tensor(teacher_labels), labels


def log_probabilities(local, own, teacher_labels, factors):
    """Of the classes among the known ones, of those among the others, and of (known, other): the module's formula."""
    a, b, a_other, g, h, c = factors
    known = teacher_labels >= 0
    known_own, known_local, other_local = own.double()[:, known], local.double()[:, known], local.double()[:, ~known]
    side = g * (known_local.logsumexp(1) - other_local.logsumexp(1)) + h * known_own.logsumexp(1) + c
    sides = torch.stack([side, torch.zeros_like(side)], dim=1)
    return [x.log_softmax(1) for x in (a * known_local + b * known_own, a_other * other_local, sides)]


def costs(local, own, teacher_labels, labels, factors):
    """What the factors cost in each of the three problems."""
    known = teacher_labels >= 0
    mine, place = known[labels], torch.where(known, known.cumsum(0), (~known).cumsum(0))[labels] - 1
    parts = log_probabilities(local, own, teacher_labels, factors)
    kinds = ((mine, place), (~mine, place), ((~known).any().expand(len(labels)), (~mine).long()))
    return [
        reference.smoothed_nll(part[rows].tolist(), of[rows].tolist(), part.shape[1], unknown=part.shape[1])
        if rows.any()
        else 0
        for part, (rows, of) in zip(parts, kinds, strict=True)
    ]


@pytest.mark.parametrize("teacher_labels", [(2, -1, 0, -1), (2, 4, 0, 1), (-1, -1, 3, -1)])
def test_the_formula(teacher_labels):
    local, logits, teacher_labels, _ = samples(20, teacher_labels=teacher_labels)
    known, own = teacher_labels >= 0, own_log_probabilities(logits, teacher_labels)
    torch.testing.assert_close(own[:, known], logits.log_softmax(1)[:, teacher_labels[known]])
    factors = torch.tensor([0.3, 0.8, 1.2, 0.6, 0.4, -0.2])
    found = shared_log_probabilities(local.requires_grad_(), own.requires_grad_(), teacher_labels, factors)
    inside, outside, sides = log_probabilities(local, own, teacher_labels, factors)
    want = torch.zeros(20, 4, dtype=torch.float64)
    want[:, known] = inside if known.all() else inside + sides[:, :1]
    want[:, ~known] = outside + sides[:, 1:]
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(20))
    found[:, 2].sum().backward()
    assert all(given.grad.isfinite().all() for given in (local, own))


@pytest.mark.parametrize("teacher_labels", [(2, -1, 0, -1), (2, 4, 0, 1), (-1, -1, 3, -1), (2, 4, 0, -1)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("contradicting", [False, True])
def test_the_factors_are_the_best_of_the_allowed_ones(teacher_labels, seed, contradicting):
    generator = torch.Generator().manual_seed(seed)
    local, own, teacher_labels, labels = samples(60, teacher_labels=teacher_labels, seed=seed)
    if contradicting:
        local = local * float(torch.randn((), generator=generator)) + torch.randn(60, 4, generator=generator)
        own = own * float(3 * torch.randn((), generator=generator))
    own = own_log_probabilities(own, teacher_labels)
    fit = fit_shared_classes(local, own, teacher_labels, labels)
    assert min(fit[:5]) >= 0
    assert max(fit.own_scale, fit.own_evidence) <= 1
    found, positive, share = costs(local, own, teacher_labels, labels, fit), (0, None), (0, 1)
    for part, free, bounds in (
        (0, slice(0, 2), [positive, share]),
        (1, slice(2, 3), [positive]),
        (2, slice(3, 6), [positive, share, (None, None)]),
    ):

        def cost(values, part=part, free=free):
            factors = list(fit)
            factors[free] = values.tolist()
            return costs(local, own, teacher_labels, labels, factors)[part]

        starts = ([0.0] * len(bounds), [0.5] * len(bounds), fit[free])
        assert found[part] <= min(minimize(cost, start, bounds=bounds).fun for start in starts) + 1e-6


def test_where_all_classes_are_shared_a_calibrated_teacher_is_taken_as_it_is():
    generator = torch.Generator().manual_seed(0)
    own = 2 * torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(own.softmax(1), 1, generator=generator).flatten()
    local, all_known = torch.randn(4000, 3, generator=generator), torch.tensor([0, 1, 2])
    fit = fit_shared_classes(local, own_log_probabilities(own, all_known), all_known, labels)
    assert fit.own_scale == pytest.approx(1, abs=0.1)
    assert fit.local_scale == pytest.approx(0, abs=0.1)
    assert fit[2:] == (0, 0, 0, 0)


def test_one_class_of_a_kind_needs_no_telling_apart():
    local, own, teacher_labels, labels = samples(teacher_labels=(2, -1, -1, -1))
    fit = fit_shared_classes(local, own_log_probabilities(own, teacher_labels), teacher_labels, labels)
    assert (fit.local_scale, fit.own_scale) == (0, 0)
    assert fit.other_scale > 0


def test_views_of_a_sample_count_once():
    """With N twice as large the labels would be smoothed half as much."""
    local, own, teacher_labels, labels = samples(40)
    own = own_log_probabilities(own, teacher_labels)
    once = fit_shared_classes(local, own, teacher_labels, labels)
    twice = [value.repeat(2, *[1] * (value.ndim - 1)) for value in (local, own)]
    copies = fit_shared_classes(*twice, teacher_labels, labels.repeat(2), torch.arange(40).repeat(2))
    assert list(copies) == pytest.approx(list(once), rel=1e-4)
    assert list(fit_shared_classes(*twice, teacher_labels, labels.repeat(2))) != pytest.approx(list(once), rel=1e-4)


def test_values_that_are_not_finite():
    local, own, teacher_labels, labels = samples()
    with pytest.raises(ValueError, match="the teacher's logits are not finite"):
        fit_shared_classes(local, own_log_probabilities(own * torch.nan, teacher_labels), teacher_labels, labels)
