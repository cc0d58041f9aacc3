"""Where the local classifier takes its samples from, and when it is fitted, in torchdistill's boxes."""

import random

import numpy as np
import pytest
import torch

from gkd_plugin.data import FixedViews, with_evaluation_view, with_unlabelled
from gkd_plugin.functional import class_centres
from gkd_plugin.teacher import RefilledTeacher, clean_loader, fit_class_centres, fitting
from tests.data.fakes import random_states
from tests.fakes import TinyImages, make_box, models, stage, train_box
from tests.runner.fakes import equal, refused


def box_of(section):
    return make_box(section, *models())


def box_over(dataset):
    box = box_of(stage("classifier"))
    box.train_data_loader.dataset.org_dataset = dataset
    return box


class Augmented(TinyImages):
    """Images with noise from every global generator, and an evaluation view without."""

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return self.images[index] + noise, self.targets[index]

    @property
    def evaluation_view(self):
        return TinyImages()


def noise_of(images, samples):
    """``[N]``: what was added to each image; the same everywhere in it."""
    noise = (images - TinyImages().images[samples]).flatten(1)
    assert noise.std(dim=1).max() < 1e-5
    return noise[:, 0]


def recorded_fit(dataset, kind, monkeypatch, workers=0):
    """(batches, views) as they reach the teacher, each put together."""
    box, got = box_over(dataset), []

    def fit(*streams):
        for batches in streams:
            parts = batches and zip(*((answers.embedding, *rest) for answers, *rest in batches), strict=True)
            got.append(parts and [torch.cat(part) for part in parts])

    monkeypatch.setattr(box.teacher_model, "fields", lambda images: {"embedding": images})
    monkeypatch.setattr(box.teacher_model, "fit_centres", fit)
    box.teacher_model.local_classifier.centres = torch.zeros(4, 2)
    box.teacher_model.local_classifier.kind = kind
    box.train_data_loader.num_workers, before = workers, random_states()
    fit_class_centres(box.teacher_model, box.train_data_loader)
    assert random_states() == before
    return got


@pytest.mark.parametrize("has_view", [True, False])
def test_the_evaluation_view_is_used_where_there_is_one(has_view, caplog):
    augmented, clean = TinyImages(seed=5), TinyImages()
    box = box_over(with_evaluation_view(augmented, clean) if has_view else augmented)
    labels = torch.cat([batch[1] for batch in clean_loader(box.train_data_loader)])
    assert labels.tolist() == clean.targets  # every sample once, in order
    fit_class_centres(box.teacher_model, box.train_data_loader)
    embedding = box.teacher_model.embed((clean if has_view else augmented).images)
    want = class_centres([(embedding, torch.tensor(clean.targets))])
    torch.testing.assert_close(box.teacher_model.local_classifier.centres, want)
    assert ("offers no evaluation view" in caplog.text) == (not has_view)


@pytest.mark.parametrize(("limit", "passes"), [(10_000, 4), (60, 2), (24, 1)])
def test_a_readout_that_wants_views_sees_what_the_student_sees(limit, passes, monkeypatch):
    monkeypatch.setattr(fitting, "MAX_ROWS", limit)
    assert recorded_fit(Augmented(), "centres", monkeypatch)[1] is None
    (clean, _), (images, labels, samples) = recorded_fit(Augmented(), "probe", monkeypatch)
    torch.testing.assert_close(clean, TinyImages().images)
    assert labels.tolist() == TinyImages().targets * passes
    assert samples.tolist() == list(range(24)) * passes
    assert len(set(noise_of(images, samples).tolist())) == 24 * passes


def test_of_many_samples_the_first_of_each_class_are_seen(monkeypatch):
    targets = [0] * 12 + [1] * 6 + [2] * 6
    monkeypatch.setattr(fitting, "MAX_ROWS", 9)
    monkeypatch.setattr(TinyImages, "targets", property(lambda self: targets, lambda *_: None), raising=False)
    _, (images, labels, samples) = recorded_fit(Augmented(), "probe", monkeypatch)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples.tolist() == list(range(9))
    noise_of(images, [0, 1, 2, 12, 13, 14, 18, 19, 20])
    monkeypatch.setattr(fitting, "MAX_ROWS", 4)  # two of each class are more, and seen all the same
    assert recorded_fit(Augmented(), "probe", monkeypatch)[1][1].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_first_of_each_class_at_least_two_however_many_classes():
    labels = torch.tensor([3, 3, 1, 3, 1, 0, 3, 3, 3, 0])
    for at_most, want in ((6, [0, 1, 2, 4, 5, 9]), (9, [0, 1, 2, 3, 4, 5, 9]), (2, [0, 1, 2, 4, 5, 9])):
        assert fitting.first_of_each(labels, at_most).tolist() == want
    assert torch.equal(fitting.first_of_each(torch.arange(100_000).repeat(5), 10_000), torch.arange(200_000))


@pytest.mark.parametrize(("dataset", "workers"), [(Augmented(), 0), (FixedViews(Augmented(), 2), 2)])
def test_the_views_are_the_same_in_every_run_and_leave_the_random_states_alone(dataset, workers, monkeypatch):
    """From workers too, and from below fixed views."""
    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        _, (images, *_) = recorded_fit(dataset, "probe", monkeypatch, workers)
        found.append(images)
    assert torch.equal(*found)
    assert len(found[0]) == 24 * 4


@pytest.mark.parametrize("forgets_to_freeze", [False, True])
def test_the_pre_epoch_process_fits_once_and_leaves_the_teacher_frozen_in_eval_mode(forgets_to_freeze, monkeypatch):
    calls, fit = [], RefilledTeacher.fit_centres
    monkeypatch.setattr(RefilledTeacher, "fit_centres", lambda self, *batches: (calls.append(1), fit(self, *batches)))
    section = stage("classifier", epochs=2)
    if forgets_to_freeze:
        del section["teacher"]["requires_grad"]
    box = box_of(section)
    before = {key: value.clone() for key, value in box.teacher_model.teacher.state_dict().items()}
    train_box(box)
    box.pre_epoch_process(epoch=2)
    assert len(calls) == 1
    assert box.student_model.training
    assert not any(module.training for module in box.teacher_model.modules())
    assert not any(parameter.requires_grad for parameter in box.teacher_model.parameters())
    assert equal(before, box.teacher_model.teacher.state_dict())


def test_stage_embedding_needs_no_centres_and_a_class_without_a_sample_is_named():
    box, section = box_of(stage("embedding")), stage("classifier")
    box.pre_epoch_process(epoch=0)
    assert not box.teacher_model.local_classifier.is_ready
    section["teacher"]["auxiliary_model_wrapper"]["kwargs"]["num_classes"] = 5
    refused("class centres: no sample of class 4", box_of(section).pre_epoch_process, epoch=0)


def test_samples_without_a_label_take_no_part():
    fits = []
    for more in (Augmented(), with_unlabelled(Augmented(), Augmented(seed=1))):
        torch.manual_seed(0)
        box = box_over(more)
        box.teacher_model.local_classifier.kind = "probe"
        fit_class_centres(box.teacher_model, box.train_data_loader)
        fits.append(box.teacher_model.local_classifier.tensors())
    assert equal(*fits)
