"""NCM accuracy of the final weights: from which module, and where there is none."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from gkd_plugin.data import with_evaluation_view
from gkd_plugin.runner.accuracy import student_ncm
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.ncm_readout import final_ncm, student_embedding_path
from tests.fakes import TinyImages, TinyNet


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator(Placement(torch.device("cpu"), None, "no"))


def criterion(key="refilled", **kwargs):
    return {"criterion": {"key": key, "kwargs": kwargs}}


def projected(**kwargs):
    return {"auxiliary_model_wrapper": {"key": "projected_student", "kwargs": kwargs}}


@pytest.mark.parametrize(
    ("key", "stages", "path"),
    [
        ("timm_model", {"train": criterion("WeightedSumLoss")}, "embedding"),
        ("timm_model", {"stage1": criterion(stage="embedding", student_embedding="pool")}, "embedding"),
        ("resnet18", {"stage1": criterion(stage="embedding", student_embedding="avgpool")}, "avgpool"),
        ("mine", {"stage1": criterion(stage="embedding")}, "embedding"),
        ("resnet18", {"train": criterion(stage="joint", student_embedding="avgpool")}, "avgpool"),
        ("resnet18", {"train": {"student": projected(embedding="avgpool")}}, "avgpool"),
        ("mine", {"train": {"student": projected()}}, "embedding"),
        ("resnet18", {"stage1": criterion(stage="classifier")}, None),
        ("resnet18", {"train": criterion("WeightedSumLoss", stage="embedding"), "stage2": {}}, None),
    ],
)
def test_the_path_of_the_embedding(key, stages, path):
    assert student_embedding_path({"key": key}, stages) == path


class Flat(nn.Module):
    """TinyNet, its embedding at ``embedding``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = TinyNet()
        self.net.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.embedding = self.net.pool

    def forward(self, x):
        return self.net(x)


def loaders(train=None):
    train = TinyImages(seed=0) if train is None else train
    train = train if isinstance(train, NoLabels) else with_evaluation_view(train, train)
    return DataLoader(train, batch_size=5, shuffle=True), DataLoader(TinyImages(seed=1), batch_size=7)


def test_it_is_the_students_ncm_accuracy_on_the_test_set(accelerator):
    model = Flat().eval()
    expected = student_ncm(model, "embedding", *loaders(), accelerator)
    assert final_ncm(model, "embedding", *loaders(), accelerator, num_classes=4) == {"ncm_top1": expected.top1}
    assert final_ncm(model, "embedding", *loaders(), accelerator, num_classes=None) == {"ncm_top1": expected.top1}


class NoLabels(TinyImages):
    """Its labels cannot be read ahead."""

    def __init__(self):
        super().__init__()
        self.hidden = self.__dict__.pop("targets")
        self.evaluation_view = self

    def __getitem__(self, index):
        return self.images[index], self.hidden[index]

    def __len__(self):
        return len(self.hidden)


def test_a_training_set_without_evaluation_view_is_not_gone_through(accelerator, caplog):
    train = DataLoader(TinyImages(), batch_size=5)
    with caplog.at_level(logging.INFO, "gkd_plugin"):
        assert final_ncm(Flat(), "embedding", train, loaders()[1], accelerator, num_classes=4) == {}
    assert "the training set offers no evaluation view" in caplog.text


@pytest.mark.parametrize(
    ("path", "train", "num_classes", "reason"),
    [
        (None, TinyImages(), 4, "does not show which module gives the student's embedding"),
        ("embedding", TinyImages(), 6, "no training sample of class 4, 5"),
        ("embedding", Subset(TinyImages(), range(6, 24)), None, "no training sample of class 0"),
        ("embedding", NoLabels(), 4, "dataset NoLabels has no labels to read"),
    ],
)
def test_where_it_cannot_be_measured_one_line_says_why(accelerator, caplog, path, train, num_classes, reason):
    with caplog.at_level(logging.INFO, "gkd_plugin"):
        assert final_ncm(Flat(), path, *loaders(train), accelerator, num_classes=num_classes) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith("final NCM accuracy: not measured, ")
    assert reason in record.getMessage()
