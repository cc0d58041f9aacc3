"""Known against unknown classes: figures against loops, and what is left out."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkd_plugin.diagnose.emphasis import SCORES, known_classes, report_emphasis, sample_scores, teacher_scores
from gkd_plugin.diagnose.restore import LeftOut
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages

KNOWN = np.array([True, False, True, True])


def test_scores_of_a_batch_against_loops():
    generator = torch.Generator().manual_seed(0)
    own, local = torch.randn(6, 5, generator=generator), 3 * torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 2, 2, 0])
    known = np.array([True, False, True, False, True])  # a data set may name more classes than it has
    found = sample_scores(own, local, labels, known)
    costs = []
    for i in range(6):
        logits = own[i].tolist()
        energy = math.log(sum(math.exp(value) for value in logits))
        costs.append(energy - max(logits))
        assert found["max_logit"][i] == pytest.approx(max(logits))
        assert found["energy"][i] == pytest.approx(energy)
        total = math.log(sum(math.exp(value) for value in local[i].tolist()))
        assert found["label_agreement"][i] == pytest.approx(float(local[i, labels[i]]) - total)
        of_known = math.log(sum(math.exp(local[i, k]) for k in (0, 2)))
        assert found["known_mass"][i] == pytest.approx(math.exp(of_known - total))
    assert found["confidence_cost"] == pytest.approx(costs)
    assert found["confidence"] == pytest.approx([-cost for cost in costs])
    scaled = [(cost - min(costs)) / (max(costs) - min(costs)) for cost in costs]
    assert found["emphasis"] == pytest.approx([2 / (1 + math.exp(value)) for value in scaled])


def test_the_teacher_is_asked_in_shuffled_batches_of_the_training_size(run):
    scores, labels = teacher_scores(run, run.train, 8, KNOWN)
    logits = run.teacher.answers(TinyImages(seed=0).images).logits
    assert np.sort(scores["max_logit"]) == pytest.approx(np.sort(logits.amax(1).numpy()), rel=1e-5)
    assert sorted(labels) == TinyImages().targets
    assert list(labels) != TinyImages().targets
    for start in range(0, 24, 8):  # the most and the least certain sample of each batch
        batch = scores["emphasis"][start : start + 8]
        assert (batch.max(), batch.min()) == pytest.approx((1, 2 / (1 + math.e)))
    again, _ = teacher_scores(run, run.train, 8, KNOWN)
    assert np.array_equal(scores["emphasis"], again["emphasis"])


def test_report(run, tmp_path):
    made = report_emphasis(run, tmp_path, [0, 2, 3])
    assert {path.name for path in tmp_path.iterdir()} == {"emphasis.png", "emphasis.svg"}
    assert (made["known_classes"], made["confidence_of"], made["batch_size"]) == ([0, 2, 3], "own classifier", 12)
    assert list(made["images"]) == ["train", "validation"]
    for figures in made["images"].values():
        assert (figures["known"], figures["unknown"]) == (18, 6)
        for kind in ("emphasis", "confidence_cost"):
            assert (sum(figures[kind]["known"]), sum(figures[kind]["unknown"])) == (18, 6)
    scores, labels = teacher_scores(run, run.validation, 12, KNOWN)
    of_known = np.isin(labels, [0, 2, 3])
    figures = made["images"]["validation"]
    for name in SCORES:
        pairs = [(k, u) for k in scores[name][of_known] for u in scores[name][~of_known]]
        assert figures["auc"][name] == pytest.approx(np.mean([(k > u) + (k == u) / 2 for k, u in pairs]))
    assert figures["confidence_cost"]["known_mean"] == pytest.approx(scores["confidence_cost"][of_known].mean())
    assert figures["emphasis"]["unknown_mean"] == pytest.approx(scores["emphasis"][~of_known].mean())


def test_a_teacher_without_classifier_has_the_local_ones_confidence(run, tmp_path, monkeypatch):
    monkeypatch.setattr(RefilledTeacher, "has_classifier", property(lambda self: False))
    scores, _ = teacher_scores(run, run.train, 24, KNOWN)
    local = run.teacher.answers(TinyImages(seed=0).images).local_classifier
    assert np.sort(scores["max_logit"]) == pytest.approx(np.sort(local.amax(1).numpy()), rel=1e-5)
    assert report_emphasis(run, tmp_path, [0])["confidence_of"] == "local classifier"


def test_known_classes_are_those_given_or_of_the_training_set():
    def known(labels, given=None):
        return known_classes(SimpleNamespace(class_names="abc", teacher_labels=labels), given).tolist()

    assert (known([4, None, 0]), known([4, None, 0], [1])) == ([True, False, True], [False, True, False])
    for labels, message in (
        (None, r"^the training set does not say which classes the teacher knows; .*--known 0,1,2$"),
        ([0, 1, 2], "^the teacher knows all of the classes$"),
        ([None] * 3, "^the teacher knows none of the classes"),
    ):
        with pytest.raises(LeftOut, match=message):
            known(labels)
