"""Where class centres take their samples from."""

import logging
import random

import numpy as np
import pytest
import torch

from gkd_plugin.data import FixedViews, with_evaluation_view
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import centres
from gkd_plugin.teacher.centres import clean_loader, fit_class_centres
from tests.fakes import TinyImages, make_box, stage


def box_over(dataset):
    torch.manual_seed(0)
    box = make_box(
        stage("classifier"), timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)
    )
    box.train_data_loader.dataset.org_dataset = dataset
    return box


def test_every_sample_once_in_order():
    loader = clean_loader(box_over(TinyImages()).train_data_loader)
    labels = torch.cat([batch[1] for batch in loader])
    assert labels.tolist() == TinyImages().targets


def test_the_evaluation_view_is_used_where_there_is_one(caplog):
    augmented, clean = TinyImages(seed=5), TinyImages()
    box = box_over(with_evaluation_view(augmented, clean))
    with caplog.at_level(logging.INFO):
        fit_class_centres(box.teacher_model, box.train_data_loader)
    got = box.teacher_model.local_classifier.centres.clone()
    box.teacher_model.fit_centres([(clean.images, torch.tensor(clean.targets))])
    torch.testing.assert_close(got, box.teacher_model.local_classifier.centres)
    assert "no evaluation view" not in caplog.text


class Augmented(TinyImages):
    """Images with noise from every global generator, and an evaluation view without."""

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return self.images[index] + noise, self.targets[index]

    @property
    def evaluation_view(self):
        return TinyImages()


def recorded_fit(box, kind, monkeypatch):
    """(batches, views) as they reach the teacher."""
    got = []
    monkeypatch.setattr(
        box.teacher_model,
        "fit_centres",
        lambda batches, views: got.append((list(batches), None if views is None else list(views))),
    )
    box.teacher_model.local_classifier.centres = torch.zeros(4, 2)
    box.teacher_model.local_classifier.kind = kind
    fit_class_centres(box.teacher_model, box.train_data_loader)
    return got[0]


@pytest.mark.parametrize(("limit", "passes"), [(10_000, 4), (60, 2), (24, 1)])
def test_a_discriminant_sees_what_the_student_sees(limit, passes, monkeypatch):
    monkeypatch.setattr(centres, "MAX_ROWS", limit)
    clean, views = recorded_fit(box_over(Augmented()), "discriminant", monkeypatch)
    images, labels, samples = (torch.cat(parts) for parts in zip(*views, strict=True))
    torch.testing.assert_close(torch.cat([batch[0] for batch in clean]), TinyImages().images)
    assert labels.tolist() == TinyImages().targets * passes
    assert samples.tolist() == list(range(24)) * passes
    noise = (images - TinyImages().images.repeat(passes, 1, 1, 1)).flatten(1)
    assert noise.std(dim=1).max() < 1e-5
    assert len(set(noise[:, 0].tolist())) == 24 * passes


@pytest.mark.parametrize("targets", [[0] * 12 + [1] * 6 + [2] * 6, [k % 3 for k in range(24)]])
def test_of_many_samples_the_first_of_each_class_are_seen(targets, monkeypatch):
    monkeypatch.setattr(centres, "MAX_ROWS", 9)
    dataset = Augmented()
    dataset.targets = targets
    _, views = recorded_fit(box_over(dataset), "discriminant", monkeypatch)
    images, labels, samples = (torch.cat(parts) for parts in zip(*views, strict=True))
    first = sorted(i for k in range(3) for i in [j for j, label in enumerate(targets) if label == k][:3])
    assert labels.tolist() == [targets[i] for i in first]
    assert samples.tolist() == list(range(9))
    noise = (images - TinyImages().images[first]).flatten(1)
    assert noise.std(dim=1).max() < 1e-5


def test_labels_that_are_not_known_ahead_leave_all_samples(monkeypatch):
    monkeypatch.setattr(centres, "MAX_ROWS", 9)
    dataset = Augmented()
    targets, dataset.targets = dataset.targets, None
    monkeypatch.setattr(Augmented, "__len__", lambda self: 24)
    monkeypatch.setattr(Augmented, "__getitem__", lambda self, index: (self.images[index], targets[index]))
    monkeypatch.setattr(centres, "labels_of", lambda dataset: (_ for _ in ()).throw(ConfigError("no labels")))
    shown = centres._first_samples(dataset)
    assert shown is dataset


def test_views_come_from_workers_and_from_below_fixed_views(monkeypatch):
    box = box_over(FixedViews(Augmented(), 2))
    plain = [images for images, _, _ in centres._views(box.train_data_loader)]
    box.train_data_loader.num_workers = 2
    both = [
        torch.cat([images for images, _, _ in centres._views(box.train_data_loader)]).flatten(1)[:, 0] for _ in range(2)
    ]
    assert torch.equal(*both)
    assert torch.cat(plain).shape[0] == 24 * 4


def test_the_views_are_the_same_in_every_run_and_leave_the_random_states_alone():
    states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: E731, NPY002
    box, found = box_over(Augmented()), []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        before = states()
        found.append(torch.cat([images for images, _, _ in centres._views(box.train_data_loader)]))
        assert states() == before
    assert torch.equal(*found)


def test_class_centres_ask_for_no_views(monkeypatch):
    assert recorded_fit(box_over(Augmented()), "centres", monkeypatch)[1] is None


def test_without_a_view_the_log_says_so(caplog):
    box = box_over(TinyImages())
    with caplog.at_level(logging.WARNING):
        fit_class_centres(box.teacher_model, box.train_data_loader)
    assert "offers no evaluation view" in caplog.text
