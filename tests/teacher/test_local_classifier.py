"""What holds for the local classifier whatever its readout."""

import time

import pytest
import torch

from gkd_plugin.functional import class_centres, fit_discriminant
from gkd_plugin.teacher import Answers, ClassMap, local_classifier
from gkd_plugin.teacher.local_classifier import LocalClassifier
from gkd_plugin.teacher.readouts import READOUTS
from tests.teacher.fakes import said


def parts(answers, labels, size=10):
    for i in range(0, len(labels), size):
        chosen = slice(i, i + size)
        yield Answers(answers.embedding[chosen], logits=answers.logits[chosen]), labels[chosen]


@pytest.mark.parametrize("kind", READOUTS)
def test_what_was_fitted_moves_on(kind):
    answers, labels = said()
    classifier, adopted, loaded = (LocalClassifier(kind) for _ in range(3))
    classifier.fit(parts(answers, labels), None, class_map=ClassMap(said=[0, None, 2, None]))
    adopted.adopt(classifier, torch.device("cpu"))
    loaded.load_state_dict(classifier.state_dict())
    for other in (adopted, loaded):
        assert other.is_ready
        torch.testing.assert_close(other.logits(answers), classifier.logits(answers))


@pytest.mark.parametrize("has_views", [True, False])
def test_a_long_stream_is_thinned_to_as_many_of_each_class(has_views, monkeypatch):
    monkeypatch.setattr(local_classifier, "MAX_ROWS", 16)
    answers, labels = said(96)
    order = labels.argsort(stable=True)  # sorted by class, as image folders are
    stream = list(parts(Answers(answers.embedding[order], logits=answers.logits[order]), labels[order]))
    numbers = iter(torch.arange(96).split(10))
    views = ((given, of, next(numbers)) for given, of in stream) if has_views else None
    classifier = LocalClassifier("discriminant")
    classifier.fit(stream, None, views)
    kept = torch.cat([(labels == k).nonzero().flatten()[:4] for k in range(4)])
    fit = fit_discriminant(answers.embedding[kept], labels[kept], 4)
    torch.testing.assert_close(classifier.weight, fit.weight)
    torch.testing.assert_close(classifier.centres, class_centres([(answers.embedding, labels)]))


def test_as_many_rows_as_there_is_room_for_are_kept_in_order(monkeypatch):
    """Also where one class has most of them."""
    monkeypatch.setattr(local_classifier, "MAX_ROWS", 48)
    answers, labels = said()
    labels[:40] = 0
    kept = local_classifier._Kept(ClassMap())
    kept.add(answers, labels, torch.arange(48))
    seen = kept.result()
    assert torch.equal(seen.labels, labels)
    assert torch.equal(seen.rows, answers.embedding)
    assert seen.logits is None  # no class is shared
    kept.add(answers, labels, torch.arange(48))
    assert torch.bincount(kept.result().labels).tolist() == [12, 4, 4, 4]


def test_thousands_of_classes_are_counted_in_one_pass():
    """Counting the classes anew for each class took hours for 20,000 of them."""
    labels, start = torch.arange(128_000) % 20_000, time.perf_counter()
    chosen = local_classifier.first_of_each(labels, 50_000)
    assert time.perf_counter() - start < 2
    assert torch.equal(chosen, torch.arange(40_000))
