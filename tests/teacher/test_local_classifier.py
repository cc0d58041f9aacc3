"""The teacher's local classifier: of both kinds, with and without the teacher's own logits."""

import logging

import pytest
import torch
from torch.nn import functional

from gkd_plugin.functional import (
    class_centres,
    fit_discriminant,
    fit_shared_classes,
    own_log_probabilities,
    shared_log_probabilities,
)
from gkd_plugin.teacher import local_classifier
from gkd_plugin.teacher.local_classifier import Evidence, LocalClassifier

CPU = torch.device("cpu")


def answers(n=48, classes=4, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    embedding = 2 * centres[labels] + torch.randn(n, width, generator=generator)
    return embedding, torch.randn(n, 5, generator=generator) + 2 * functional.one_hot(labels, 5), labels


def batches(embedding, own, labels, size=10, has_own=True):
    for i in range(0, len(labels), size):
        chosen = slice(i, i + size)
        yield Evidence(embedding[chosen], None, own[chosen] if has_own else None), labels[chosen]


def fitted(kind, known=None, **kwargs):
    classifier = LocalClassifier(kind)
    classifier.known = known
    classifier.fit(batches(*answers(), **kwargs), None, CPU)
    return classifier


def test_the_papers_measures_against_class_centres():
    embedding, own, labels = answers()
    classifier = fitted("centres", known=[0, 1, None, None])
    centres = class_centres([(embedding, labels)])
    torch.testing.assert_close(classifier.centres, centres)
    torch.testing.assert_close(classifier.logits(Evidence(embedding, None, own)), embedding @ centres.T)


def test_a_discriminant_keeps_the_centres_too():
    embedding, own, labels = answers()
    classifier = fitted("discriminant")
    fit = fit_discriminant(embedding, labels, 4)
    torch.testing.assert_close(classifier.logits(Evidence(embedding, None, own)), embedding @ fit.weight.T + fit.bias)
    torch.testing.assert_close(classifier.centres, class_centres([(embedding, labels)]))


def test_shared_classes_bring_the_teachers_own_logits():
    embedding, own, labels = answers()
    classifier = fitted("discriminant", known=[0, None, 2, None])
    fit = fit_discriminant(embedding, labels, 4)
    teacher_labels = torch.tensor([0, -1, 2, -1])
    log_probabilities = own_log_probabilities(own, teacher_labels)
    factors = fit_shared_classes(fit.held_out_logits, log_probabilities, teacher_labels, labels)
    local = embedding @ fit.weight.T + fit.bias
    want = shared_log_probabilities(local, log_probabilities, teacher_labels, torch.tensor(factors))
    assert factors.own_scale > 0
    torch.testing.assert_close(classifier.logits(Evidence(embedding, None, own)), want, rtol=1e-4, atol=1e-4)


def test_a_teacher_without_classifier_has_no_own_logits():
    embedding, _, labels = answers()
    classifier = fitted("discriminant", known=[0, None, 2, None], has_own=False)
    fit = fit_discriminant(embedding, labels, 4)
    torch.testing.assert_close(classifier.logits(Evidence(embedding, None, None)), embedding @ fit.weight.T + fit.bias)


def test_a_teacher_with_another_number_of_classes_shares_none_of_them(caplog):
    embedding, own, labels = answers()
    classifier = LocalClassifier("discriminant")
    classifier.known, classifier.known_of = [0, None, 2, None], 4  # the teacher has 5
    classifier.fit(batches(embedding, own, labels), None, CPU)
    assert classifier.shared is None
    assert torch.equal(
        classifier.logits(Evidence(embedding, None, own)), fitted("discriminant").logits(Evidence(embedding, None, own))
    )
    assert "of a teacher with 4 classes, this one has 5, so none is taken as shared" in caplog.text


def test_the_papers_says_nothing_of_classes_that_it_does_not_use(caplog):
    classifier = LocalClassifier("centres")
    classifier.known, classifier.known_of = [0, None, 2, None], 4
    classifier.fit(batches(*answers()), None, CPU)
    assert not caplog.records


@pytest.mark.parametrize("known", [None, [0, None, 2, None]])
def test_a_discriminant_is_fitted_to_the_views_and_centres_to_the_batches(known):
    embedding, own, labels = answers()
    rows, own_of_views, _ = answers(seed=1)
    samples = torch.arange(24).repeat(2)
    views = [(Evidence(rows, None, own_of_views), labels, samples)]
    classifier = LocalClassifier("discriminant")
    classifier.known = known
    classifier.fit(batches(embedding, own, labels), None, CPU, views)
    torch.testing.assert_close(classifier.centres, class_centres([(embedding, labels)]))
    fit = fit_discriminant(rows, labels, 4, samples=samples)
    if known:
        teacher_labels = torch.tensor([0, -1, 2, -1])
        log_probabilities = own_log_probabilities(own_of_views, teacher_labels)
        factors = fit_shared_classes(fit.held_out_logits, log_probabilities, teacher_labels, labels, samples)
        torch.testing.assert_close(classifier.shared_factors, torch.tensor(factors))
    torch.testing.assert_close(classifier.weight, fit.weight)
    assert not torch.allclose(fit.weight, fit_discriminant(rows, labels, 4).weight)


def test_views_of_one_sample_leave_the_papers(caplog):
    embedding, own, labels = answers(4)
    views = [(Evidence(embedding, None, own), labels, torch.arange(4)) for _ in range(3)]
    classifier = LocalClassifier("discriminant")
    classifier.fit([(Evidence(embedding, None, own), labels)], 4, CPU, views)
    torch.testing.assert_close(classifier.weight, classifier.centres)
    assert "a class has a single sample" in caplog.text


def test_a_map_without_a_shared_class_is_no_map():
    embedding, own, _ = answers()
    evidence = Evidence(embedding, None, own)
    torch.testing.assert_close(
        fitted("discriminant", known=[None] * 4).logits(evidence), fitted("discriminant").logits(evidence)
    )


def test_the_papers_asks_for_no_views():
    classifier = LocalClassifier("centres")
    views = (pytest.fail("asked for views") for _ in range(1))
    classifier.fit(batches(*answers()), None, CPU, views)


def test_one_sample_of_a_class_leaves_the_papers(caplog):
    embedding, own, labels = answers(4)
    classifier = LocalClassifier("discriminant")
    classifier.fit([(Evidence(embedding, None, own), labels)], 4, CPU)
    torch.testing.assert_close(classifier.weight, classifier.centres)
    assert "a class has a single sample" in caplog.text


def test_the_log_says_what_was_found(caplog):
    with caplog.at_level(logging.INFO, "gkd_plugin"):
        fitted("discriminant", known=[0, None, 2, None])
    (record,) = caplog.records
    assert "held-out accuracy" in record.getMessage()
    assert "2 of 4 classes are the teacher's own" in record.getMessage()


def test_a_long_stream_is_thinned_to_as_many_of_each_class(monkeypatch):
    monkeypatch.setattr(local_classifier, "MAX_ROWS", 16)
    embedding, own, labels = answers(96)
    order = labels.argsort(stable=True)  # sorted by class, as image folders are
    classifier = LocalClassifier("discriminant")
    classifier.fit(batches(embedding[order], own[order], labels[order]), None, CPU)
    kept = torch.cat([(labels == k).nonzero().flatten()[:4] for k in range(4)])
    fit = fit_discriminant(embedding[kept], labels[kept], 4)
    torch.testing.assert_close(classifier.weight, fit.weight)
    torch.testing.assert_close(classifier.centres, class_centres([(embedding, labels)]))


@pytest.mark.parametrize("known", [None, [0, None, 2, None]])
def test_what_was_fitted_moves_on(known):
    embedding, own, _ = answers()
    classifier = fitted("discriminant", known)
    adopted, loaded = LocalClassifier("discriminant"), LocalClassifier("discriminant")
    adopted.adopt(classifier, CPU)
    loaded.load_state_dict(classifier.state_dict())
    for other in (adopted, loaded):
        torch.testing.assert_close(
            other.logits(Evidence(embedding, None, own)), classifier.logits(Evidence(embedding, None, own))
        )


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([0, None, 7, None], "class_map names class 7 of a teacher with 5 classes"),
        ([0, None], "class_map is of 2 classes, the student has 4"),
    ],
)
def test_a_map_that_does_not_fit(known, message):
    with pytest.raises(ValueError, match=message):
        fitted("discriminant", known)


def test_local_features_stand_beside_the_embedding_each_direction_on_one_scale():
    embedding, own, labels = answers()
    features = torch.randn(48, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e3, 1.0, 0.0]) + 5
    features[:, 0] += 1e3 * labels
    classifier = LocalClassifier("discriminant")
    classifier.fit([(Evidence(embedding, features, own), labels)], None, CPU)
    rows = torch.cat([embedding, features], dim=1)
    scaled = rows / torch.tensor([float(column.std(correction=0)) or 1 for column in rows.T])
    fit = fit_discriminant(scaled, labels, 4)
    want = scaled @ fit.weight.T + fit.bias
    torch.testing.assert_close(classifier.logits(Evidence(embedding, features, own)), want, rtol=1e-4, atol=1e-4)
    assert fit.held_out_nll < fit_discriminant(embedding, labels, 4).held_out_nll
    torch.testing.assert_close(classifier.centres, class_centres([(embedding, labels)]))


@pytest.mark.parametrize(("kind", "count"), [("centres", 48), ("discriminant", 4)])
def test_the_papers_does_not_read_local_features(kind, count):
    embedding, own, labels = answers(count)
    evidence = Evidence(embedding, torch.ones(count, 2), own)
    classifier = LocalClassifier(kind)
    classifier.fit([(evidence, labels)], 4, CPU)
    torch.testing.assert_close(classifier.logits(evidence), embedding @ classifier.centres.T)
