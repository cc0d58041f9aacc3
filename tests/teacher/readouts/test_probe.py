import torch

from gkd_plugin.functional import fit_probe
from gkd_plugin.teacher.readouts import LocalClassifier
from tests.teacher.fakes import said


def test_it_is_fitted_to_the_views():
    (answers, labels), samples = said(), torch.arange(24).repeat(2)
    classifier = LocalClassifier("probe")
    classifier.fit([(answers, labels)], None, views=[(answers, labels, samples)])
    fit = fit_probe(answers.embedding, labels, 4, samples=samples)
    torch.testing.assert_close(classifier.logits(answers), answers.embedding @ fit.weight.T + fit.bias)
