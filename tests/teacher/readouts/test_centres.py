"""The paper's local classifier."""

import pytest
import torch

from gkd_plugin.functional import class_centres
from gkd_plugin.teacher import ClassMap
from gkd_plugin.teacher.local_classifier import LocalClassifier
from tests.teacher.fakes import said


def test_embeddings_are_measured_against_class_centres():
    """Whatever else the teacher says."""
    answers, labels = said()
    answers = answers._replace(features=torch.ones(len(labels), 2))
    classifier = LocalClassifier("centres")
    views = (pytest.fail("asked for views") for _ in range(1))
    classifier.fit([(answers, labels)], None, views, ClassMap(said=[0, 1, None, None]))
    centres = class_centres([(answers.embedding, labels)])
    torch.testing.assert_close(classifier.centres, centres)
    torch.testing.assert_close(classifier.logits(answers), answers.embedding @ centres.T)
