"""The linear probe against scikit-learn's logistic regression."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gkd_plugin.functional import fit_probe, probe
from tests.functional.test_discriminant import clouds


def regression(rows, labels, penalty, new):
    """Logits of new rows, centred; scikit-learn's cost is a sum over the rows, ours a mean."""
    model = LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-8, max_iter=10_000).fit(rows.numpy(), labels.numpy())
    logits = torch.tensor(model.decision_function(new.numpy()))
    return logits - logits.mean(dim=1, keepdim=True)


def standard(rows):
    return (rows - rows.mean(0)) / (rows - rows.mean(0)).square().mean().sqrt()


@pytest.mark.parametrize(("width", "penalty"), [(5, 0.1), (80, 0.03)])  # fewer and more directions than samples
def test_weights_and_held_out_logits_are_those_of_logistic_regression(width, penalty):
    rows, labels = clouds(width=width)
    with torch.no_grad():  # as its callers have it
        fit, same = fit_probe(rows, labels, 4, penalties=[penalty]), standard(rows)
    logits = rows.float() @ fit.weight.T + fit.bias
    want = fit.scale * regression(same, labels, penalty, same)
    torch.testing.assert_close((logits - logits.mean(dim=1, keepdim=True)).double(), want, rtol=0, atol=1e-2)
    fold = torch.stack([(labels[:i] == label).sum() % 5 for i, label in enumerate(labels)])
    for k in range(5):
        want = fit.scale * regression(same[fold != k], labels[fold != k], penalty, same[fold == k])
        ours = fit.held_out_logits[fold == k].double()
        torch.testing.assert_close(ours - ours.mean(dim=1, keepdim=True), want, rtol=0, atol=1e-2)


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


def test_views_of_one_sample_are_held_out_together():
    rows, labels = clouds(per_class=6, width=12)
    views, samples = torch.cat([rows, rows + 1e-3]), torch.arange(len(rows)).repeat(2)
    known = fit_probe(views, labels.repeat(2), 4, penalties=[1e-3])
    apart = fit_probe(views, labels.repeat(2), 4, samples=samples, penalties=[1e-3])
    assert known.held_out_accuracy == 1 > apart.held_out_accuracy


@pytest.mark.parametrize("penalties", [[], [0.0], [0.1, 1.0]])
def test_what_cannot_be_fitted(penalties):
    rows, labels = clouds()
    with pytest.raises(ValueError, match="penalties must be above 0, at least one, the largest first"):
        fit_probe(rows, labels, 4, penalties=penalties)
    kept = (labels < 3) | (torch.arange(len(labels)) == labels.tolist().index(3))
    with pytest.raises(ValueError, match="class 3 has 1 samples, a probe needs 2"):
        fit_probe(rows[kept], labels[kept], 4)
