"""Where class centres take their samples from."""

import logging

import torch

from gkd_plugin.centres import clean_loader, fit_class_centres
from gkd_plugin.data import with_evaluation_view
from gkd_plugin.models import timm_model
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


def test_without_a_view_the_log_says_so(caplog):
    box = box_over(TinyImages())
    with caplog.at_level(logging.WARNING):
        fit_class_centres(box.teacher_model, box.train_data_loader)
    assert "offers no evaluation view" in caplog.text
