"""What holds for the local classifier whatever its readout, what readouts read, and what it takes to add one."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gkd_plugin.functional import class_centres
from gkd_plugin.teacher import Answers, ClassMap, readouts
from gkd_plugin.teacher.readouts import READOUTS, LocalClassifier, LocalFeatures, pooled
from tests.runner.fakes import refused
from tests.teacher.fakes import SHARED, batches, make_teacher, said


def parts(answers, labels, size=10):
    """Batches as they come from views: answers, labels and numbers of the samples."""
    for chosen in torch.arange(len(labels)).split(size):
        yield Answers(answers.embedding[chosen], logits=answers.logits[chosen]), labels[chosen], chosen


@pytest.mark.parametrize("kind", READOUTS)
def test_what_was_fitted_moves_on(kind):
    answers, labels = said()
    classifier, kept, loaded = (LocalClassifier(kind) for _ in range(3))
    classifier.fit([(answers, labels)], None, class_map=SHARED)
    kept.keep(classifier.tensors(), torch.device("cpu"))
    loaded.load_state_dict(classifier.state_dict())
    for other in (kept, loaded):
        assert other.is_ready
        torch.testing.assert_close(other.logits(answers), classifier.logits(answers))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("has_views", [True, False])
def test_a_readout_sees_the_whole_stream_in_order(shared, has_views, monkeypatch):
    answers, labels = said()
    seen = []
    monkeypatch.setattr(READOUTS["probe"], "fit", lambda centres, given: seen.append(given) or {})
    class_map = SHARED if shared else ClassMap()
    views = parts(answers, labels) if has_views else None
    LocalClassifier("probe").fit((part[:2] for part in parts(answers, labels)), None, views, class_map)
    rows, logits, of, samples, teacher_labels, _, counts = seen[0]
    for got, want in ((rows, answers.embedding), (of, labels), (samples, torch.arange(48))):
        assert torch.equal(got, want)
    assert (teacher_labels, counts.tolist()) == (class_map.shared, torch.bincount(labels).tolist())
    assert torch.equal(logits, answers.logits) if shared else logits is None  # they may be many


def test_the_papers_measures_embeddings_against_class_centres_whatever_else_the_teacher_says():
    answers, labels = said()
    answers = answers._replace(features=torch.ones(len(labels), 2))
    classifier = LocalClassifier("centres")
    classifier.fit([(answers, labels)], None, (pytest.fail("asked for views") for _ in range(1)), SHARED)
    centres = class_centres([(answers.embedding, labels)])
    torch.testing.assert_close(classifier.centres, centres)
    torch.testing.assert_close(classifier.logits(answers), answers.embedding @ centres.T)


def test_one_file_in_the_folder_is_all_that_a_new_readout_takes(tmp_path, monkeypatch):
    """That of docs/contributing.md."""
    page = Path(__file__).parents[2] / "docs/contributing.md"
    (text,) = re.findall(r"```python\n((?:(?!```).)*Readout\):.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "nearest.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(readouts, "__path__", [*readouts.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "gkd_plugin.teacher.readouts.nearest", raising=False)
    monkeypatch.setitem(READOUTS, "nearest", None)
    importlib.import_module("gkd_plugin.teacher.readouts.nearest")
    teacher, fresh = make_teacher(local_classifier="nearest"), make_teacher(local_classifier="nearest")
    teacher.fit_centres(batches())
    images, labels = batches()[1]
    fresh.load_state_dict(teacher.state_dict())  # what it keeps is saved
    for fitted in (teacher, fresh):
        assert torch.equal(fitted.answers(images).local_classifier.argmax(dim=1), labels)


@pytest.mark.filterwarnings("ignore:std_mean")  # of no image
def test_maps_and_tokens_are_pooled_by_mean_and_deviation():
    images = torch.randn(2, 3, 4, 5)
    want = torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3), correction=0)], dim=1)
    torch.testing.assert_close(pooled(images, "layer"), want)
    torch.testing.assert_close(pooled(images.flatten(2).transpose(1, 2), "block"), want)
    rows = torch.randn(2, 3, dtype=torch.float64)  # no positions
    assert torch.equal(pooled(rows, "head"), rows.float())
    assert torch.equal(pooled(rows[:, :, None, None], "pool"), rows.float())
    assert [pooled(empty[:0], "layer").shape for empty in (images, rows)] == [(0, 6), (0, 3)]


@pytest.mark.parametrize(
    ("output", "shown"), [(None, "a NoneType"), (torch.zeros(3), r"\[3\]"), ((torch.zeros(2, 3),), "a tuple")]
)
def test_other_outputs_are_refused(output, shown):
    refused(f"local_features: 'layer' gave {shown}, not a tensor", pooled, output, "layer")


def test_modules_stand_side_by_side_in_the_order_given():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    features, none = LocalFeatures(model, ["2", "0"]), LocalFeatures(model, None)
    x = torch.randn(4, 1, 2, 2)
    want = torch.cat([model(x), pooled(model[0](x), "0")], dim=1)
    model(x)
    torch.testing.assert_close(features.take(), want)
    refused("'2' gave a NoneType", features.take)  # of another forward pass there is nothing
    assert none.take() is None


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("layer1", "must be a list of module paths, got 'layer1'"),
        ([1], r"must be a list of module paths, got \[1\]"),
        (["wieght"], "Sequential has no module 'wieght'"),
        (["0", "0"], "'0' is given twice"),
    ],
)
def test_features_that_cannot_be_read_are_refused(paths, message):
    refused(f"local_features: {message}", LocalFeatures, nn.Sequential(nn.Linear(1, 1)), paths)
