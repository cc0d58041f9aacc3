"""Own logits and local logits on one scale, against loops and a grid of factors."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from gkd_plugin.functional import fit_shared_classes, own_log_probabilities
from gkd_plugin.functional.discriminant import smoothed_targets


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


def test_log_probabilities_are_those_of_the_teachers_class():
    _, own, teacher_labels, _ = samples()
    found = own_log_probabilities(own, teacher_labels)
    for i, k in itertools.product(range(len(own)), range(4)):
        t = int(teacher_labels[k])
        want = 0.0 if t < 0 else (own[i, t] - own[i].exp().sum().log()).item()
        assert found[i, k].item() == pytest.approx(want, abs=1e-5)


def nll(local, own, teacher_labels, labels, a, b, c):
    """Mean cross-entropy in loops; ε = C / (N + C) of each label is spread over all classes."""
    total, classes = 0.0, local.shape[1]
    epsilon = classes / (len(labels) + classes)
    for i, label in enumerate(labels.tolist()):
        z = []
        for k in range(local.shape[1]):
            t = int(teacher_labels[k])
            log_p = own[i, t].item() - math.log(sum(math.exp(v) for v in own[i].tolist()))
            z.append(a * local[i, k].item() + (b * log_p + c if t >= 0 else 0.0))
        log_p = [v - math.log(sum(math.exp(w) for w in z)) for v in z]
        total -= (1 - epsilon) * log_p[label] + epsilon * sum(log_p) / classes
    return total / len(labels)


def test_the_factors_are_the_most_likely_ones():
    local, own, teacher_labels, labels = samples(60)
    fit = fit_shared_classes(local, own_log_probabilities(own, teacher_labels), teacher_labels, labels)
    best = (fit.local_scale, fit.own_scale, fit.offset)
    assert fit.nll == pytest.approx(nll(local, own, teacher_labels, labels, *best), rel=1e-5)
    for index, step in itertools.product(range(3), (-0.05, 0.05)):
        moved = [value + step * (j == index) for j, value in enumerate(best)]
        if not 0 <= moved[1] <= 1:
            continue  # b is bounded
        assert nll(local, own, teacher_labels, labels, *moved) > fit.nll


def test_where_all_classes_are_shared_a_calibrated_teacher_is_taken_as_it_is():
    generator = torch.Generator().manual_seed(0)
    own = 2 * torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(own.softmax(1), 1, generator=generator).flatten()
    local, all_known = torch.randn(4000, 3, generator=generator), torch.tensor([0, 1, 2])
    fit = fit_shared_classes(local, own_log_probabilities(own, all_known), all_known, labels)
    assert fit.own_scale == pytest.approx(1, abs=0.1)
    assert fit.local_scale == pytest.approx(0, abs=0.1)
    assert fit.offset == 0


def test_own_logits_that_contradict_the_labels_are_left_out():
    """What is left is a and c: how often the shared classes occur."""
    local, own, teacher_labels, labels = samples()
    few = labels.clone()
    few[:120] = few[:120] % 2 * 2 + 1  # more samples of the unknown classes 1 and 3
    fit = fit_shared_classes(local, own_log_probabilities(-own, teacher_labels), teacher_labels, few)
    known = teacher_labels >= 0
    alone = fit_shared_classes(local, torch.zeros_like(local), teacher_labels, few)
    assert fit.own_scale == 0
    assert fit.nll == pytest.approx(alone.nll, rel=1e-6)
    assert (fit.local_scale, fit.offset) == pytest.approx((alone.local_scale, alone.offset), rel=1e-3)
    assert known.sum() == 2


def test_a_teacher_that_learned_these_images_by_heart_is_taken_at_its_word_and_no_further():
    local, _, teacher_labels, labels = samples()
    certain = 30 * functional.one_hot(torch.where(labels == 0, 2, torch.where(labels == 2, 0, 4)), 5).float()
    fit = fit_shared_classes(local, own_log_probabilities(certain, teacher_labels), teacher_labels, labels)
    assert 0 <= fit.own_scale <= 1
    assert abs(fit.offset) < 40
    every = torch.arange(4)
    sure = 30 * functional.one_hot(labels, 5).float()
    shared = fit_shared_classes(local, own_log_probabilities(sure, every), every, labels)
    assert 0 <= shared.own_scale <= 1
    assert shared.local_scale >= 0


def test_a_local_classifier_that_contradicts_the_labels_is_left_out():
    local, own, teacher_labels, labels = samples()
    fit = fit_shared_classes(-local, own_log_probabilities(own, teacher_labels), teacher_labels, labels)
    assert fit.local_scale == 0


@pytest.mark.parametrize("seed", range(12))
def test_contradictions_of_any_kind_leave_the_best_of_the_allowed_factors(seed):
    generator = torch.Generator().manual_seed(seed)
    local, own, teacher_labels, labels = samples(60, teacher_labels=(2, -1, 0, 1), seed=seed)
    local = local * float(torch.randn((), generator=generator)) + torch.randn(60, 4, generator=generator)
    own = own_log_probabilities(own * float(3 * torch.randn((), generator=generator)), teacher_labels)
    fit = fit_shared_classes(local, own, teacher_labels, labels)
    known, targets = (teacher_labels >= 0).double(), smoothed_targets(labels, 4)

    def cost(factors):
        a, b, c = (float(factor) for factor in factors)
        return float(functional.cross_entropy(a * local.double() + b * own.double() + c * known, targets))

    best = min(
        minimize(cost, [a, b, 0.0], bounds=[(0, None), (0, 1), (None, None)]).fun for a in (0, 1) for b in (0, 1)
    )
    assert fit.nll == pytest.approx(best, abs=1e-5)
    assert fit.local_scale >= 0
    assert 0 <= fit.own_scale <= 1


def test_values_that_are_not_finite():
    local, own, teacher_labels, labels = samples()
    with pytest.raises(ValueError, match="the teacher's logits are not finite"):
        fit_shared_classes(local, own_log_probabilities(own * torch.nan, teacher_labels), teacher_labels, labels)


def test_knowing_more_never_costs_likelihood():
    local, own, teacher_labels, labels = samples(seed=3)
    fit = fit_shared_classes(local, own_log_probabilities(own, teacher_labels), teacher_labels, labels)
    alone = fit_shared_classes(local, torch.zeros_like(local), torch.full((4,), -1), labels)
    assert fit.nll < alone.nll
