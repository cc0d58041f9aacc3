import logging
import math

import pytest
import torch

from gkd_plugin.functional import class_centres, fit_probe
from gkd_plugin.functional.shared_classes import fit_shared_classes, own_log_probabilities, shared_log_probabilities
from gkd_plugin.teacher import Answers, ClassMap
from gkd_plugin.teacher.readouts import LocalClassifier
from tests.teacher.fakes import SHARED, said


def fitted(class_map=None, given=None, **kwargs):
    classifier = LocalClassifier("probe", "training")  # as the probe is fitted: no log-frequencies are taken off
    classifier.fit([given or said()], None, class_map=class_map, **kwargs)
    return classifier


def test_shared_classes_bring_the_teachers_own_logits():
    (answers, _), classifier, teacher_labels = said(), fitted(SHARED), torch.tensor([0, -1, 2, -1])
    local = answers.embedding @ classifier.weight.T + classifier.bias
    own = own_log_probabilities(answers.logits, teacher_labels)
    want = shared_log_probabilities(local, own, teacher_labels, classifier.shared_factors)
    torch.testing.assert_close(classifier.logits(answers), want)
    assert not torch.allclose(want, local.log_softmax(dim=1), atol=0.1)


@pytest.mark.parametrize(
    ("class_map", "has_logits"),
    [
        (SHARED, False),
        (ClassMap(said=[None] * 4), True),
        (ClassMap(said=[0, None, 2, None], said_of=4, teacher_size=5), True),
        (ClassMap(said=[0, None, 2, None], written=None), True),
    ],
)
def test_without_a_shared_class_or_logits_of_its_own_it_is_the_probe(class_map, has_logits):
    answers, labels = said()
    given = answers if has_logits else Answers(answers.embedding)
    classifier, fit = fitted(SHARED), fit_probe(answers.embedding, labels, 4)
    classifier.fit([(given, labels)], None, class_map=class_map)  # forgets the fit before
    assert classifier.shared_factors.numel() == 0
    torch.testing.assert_close(classifier.logits(answers), answers.embedding @ fit.weight.T + fit.bias)


@pytest.mark.parametrize("class_map", [None, SHARED])
def test_it_is_fitted_to_the_views_and_centres_to_the_batches(class_map):
    (answers, labels), (seen, _) = said(), said(seed=1)
    samples = torch.arange(24).repeat(2)
    classifier = fitted(class_map, views=[(seen, labels, samples)])
    torch.testing.assert_close(classifier.centres, class_centres([(answers.embedding, labels)]))
    fit = fit_probe(seen.embedding, labels, 4, samples=samples)
    torch.testing.assert_close((classifier.weight, classifier.bias), (fit.weight, fit.bias))
    assert not torch.allclose(fit.weight, fit_probe(seen.embedding, labels, 4).weight)
    if class_map:
        own = own_log_probabilities(seen.logits, classifier.teacher_labels)
        factors = fit_shared_classes(fit.held_out_logits, own, classifier.teacher_labels, labels, samples)
        torch.testing.assert_close(classifier.shared_factors, torch.tensor(factors))


@pytest.mark.parametrize("views", [1, 3])
def test_one_sample_of_a_class_leaves_class_centres(views, caplog):
    answers, labels = said(4)
    answers = answers._replace(features=torch.ones(4, 2))
    classifier = fitted(SHARED, (answers, labels), views=[(answers, labels, torch.arange(4))] * views)
    torch.testing.assert_close(classifier.logits(answers), answers.embedding @ classifier.centres.T)
    assert "a class has a single sample" in caplog.text


def test_local_features_stand_beside_the_embedding_each_direction_on_one_scale():
    answers, labels = said()
    features = torch.randn(48, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e3, 1.0, 0.0]) + 5
    features[:, 0] += 3e3 * labels
    classifier = fitted(given=(answers._replace(features=features), labels))
    rows = torch.cat([answers.embedding, features], dim=1)
    scaled = rows / torch.tensor([float(column.std(correction=0)) or 1 for column in rows.T])
    fit = fit_probe(scaled, labels, 4)
    assert fit.held_out_nll < fit_probe(answers.embedding, labels, 4).held_out_nll
    want = scaled @ fit.weight.T + fit.bias
    torch.testing.assert_close(classifier.logits(answers._replace(features=features)), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier.centres, class_centres([(answers.embedding, labels)]))


def test_knowledge_is_none_of_random_embeddings_and_is_kept():
    """Of what no readout measures, the class centres, everything."""
    generator = torch.Generator().manual_seed(0)
    classifier = fitted(given=(Answers(torch.randn(40, 5, generator=generator)), torch.arange(40) % 4))
    assert classifier.knowledge < 0.05
    loaded, taken = LocalClassifier("probe"), LocalClassifier("probe")
    loaded.load_state_dict(classifier.state_dict())
    taken.keep(classifier.tensors(), torch.device("cpu"))
    assert loaded.knowledge == taken.knowledge == classifier.knowledge
    classifier.kind = "centres"
    classifier.fit([said()], None)
    assert classifier.knowledge == LocalClassifier().knowledge == 1


def test_the_log_says_how_good_it_is_and_the_rest_to_those_who_debug(caplog):
    caplog.set_level(logging.DEBUG, "gkd_plugin")
    answers, labels = said()
    fit = fit_probe(answers.embedding, labels, 4)
    fitted()
    shared = fitted(SHARED)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "DEBUG"] * 2
    assert f"held-out accuracy {100 * fit.held_out_accuracy:.1f} % (chance: 25.0 %)" in told[0][1]
    assert f"labels cost {fit.held_out_nll:.2f} of 1.39 nats" in told[1][1]
    known = fitted().knowledge
    assert known == pytest.approx(1 - fit.held_out_nll / math.log(4), abs=1e-5)
    assert f"{100 * known:.0f} % of the labels' information" in told[0][1]
    own = own_log_probabilities(answers.logits, shared.teacher_labels)
    together = shared_log_probabilities(fit.held_out_logits, own, shared.teacher_labels, shared.shared_factors)
    accuracy = 100 * float((together.argmax(dim=1) == labels).float().mean())
    assert accuracy > 100 * fit.held_out_accuracy
    assert f"held-out accuracy {accuracy:.1f} %" in told[2][1]
    assert "of 2 shared classes" in told[2][1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 7, None], "class_map: there is no class 7 in a teacher with 5 classes"),
        ([0, None], "class_map is of 2 classes, the student has 4"),
    ],
)
def test_a_map_that_does_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        fitted(ClassMap(said=labels))


def test_class_centres_have_no_class_prior(caplog):
    answers, labels = said()
    for prior in ("equal", "training"):
        LocalClassifier("centres", prior).fit([(answers, labels)], None)
    assert caplog.messages == ["class_prior: not used, this local classifier reads the class centres alone"]


def test_classes_are_as_frequent_as_asked(caplog):
    """By Bayes' rule another class prior moves the logits by the difference of the log-frequencies."""
    caplog.set_level(logging.INFO)
    counts = torch.tensor([30, 10, 5, 3])
    labels = torch.arange(4).repeat_interleave(counts)
    rows = torch.nn.functional.one_hot(labels, 6) + torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    found, plain = {}, fit_probe(rows, labels, 4)
    for prior in ("equal", "training"):
        classifier = LocalClassifier("probe", prior)
        classifier.fit([(Answers(rows), labels)], None)
        found[prior] = classifier.bias
        assert torch.equal(classifier.weight, plain.weight)
        assert f"classes have 3 to 30 images; class_prior: '{prior}'" in caplog.text
    assert torch.equal(found["training"], plain.bias)
    torch.testing.assert_close(found["training"] - found["equal"], (counts / 48).log())

    some = torch.cat([torch.where(labels == label)[0][:3] for label in range(4)])  # of many images, as many of each
    for prior in found:
        classifier = LocalClassifier("probe", prior)
        classifier.fit([(Answers(rows), labels)], None, [(Answers(rows[some]), labels[some], some)])
        found[prior] = classifier.bias
    torch.testing.assert_close(found["training"] - found["equal"], (counts / 48).log())
