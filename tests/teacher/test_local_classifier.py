"""What holds for the local classifier whatever its readout."""

import pytest
import torch

from gkd_plugin.teacher import Answers, ClassMap
from gkd_plugin.teacher.local_classifier import LocalClassifier
from gkd_plugin.teacher.readouts import READOUTS
from tests.teacher.fakes import said


def parts(answers, labels, size=10):
    """Batches as they come from views: answers, labels and numbers of the samples."""
    for chosen in torch.arange(len(labels)).split(size):
        yield Answers(answers.embedding[chosen], logits=answers.logits[chosen]), labels[chosen], chosen


@pytest.mark.parametrize("kind", READOUTS)
def test_what_was_fitted_moves_on(kind):
    answers, labels = said()
    classifier, adopted, loaded = (LocalClassifier(kind) for _ in range(3))
    classifier.fit([(answers, labels)], None, class_map=ClassMap(said=[0, None, 2, None]))
    adopted.adopt(classifier, torch.device("cpu"))
    loaded.load_state_dict(classifier.state_dict())
    for other in (adopted, loaded):
        assert other.is_ready
        torch.testing.assert_close(other.logits(answers), classifier.logits(answers))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("has_views", [True, False])
def test_a_readout_sees_the_whole_stream_in_order(shared, has_views, monkeypatch):
    answers, labels = said()
    seen = []
    monkeypatch.setattr(READOUTS["discriminant"], "fit", lambda centres, given: seen.append(given) or {})
    class_map = ClassMap(said=[0, None, 2, None] if shared else None)
    views = parts(answers, labels) if has_views else None
    LocalClassifier("discriminant").fit((part[:2] for part in parts(answers, labels)), None, views, class_map)
    rows, logits, of, samples, teacher_labels = seen[0]
    assert torch.equal(rows, answers.embedding)
    assert torch.equal(of, labels)
    assert torch.equal(samples, torch.arange(48))
    assert teacher_labels == class_map.shared
    assert torch.equal(logits, answers.logits) if shared else logits is None  # they may be many
