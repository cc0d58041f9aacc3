"""What a run says about itself; whole summaries are in test_run."""

import logging
from types import SimpleNamespace

import pytest
from torch import nn
from torch.utils.data import DataLoader, Subset

from gkd_plugin.config.stages import Stage
from gkd_plugin.data import with_evaluation_view
from gkd_plugin.runner.accuracy import student_ncm
from gkd_plugin.runner.summary import epoch_line, final_figures, log_final, results_table
from tests.fakes import TinyImages
from tests.runner.fakes import cpu


def test_an_epoch_in_one_line():
    row = {"stage": "stage1", "epoch": 2, "loss": 1.23456, "top1": 50.0, "seconds": 3.0, "images_per_second": 123.6}
    stage = Stage("stage1", "train.stage1", {"num_epochs": 5})
    assert epoch_line(stage, row) == "stage1 2/5  loss 1.235  top1 50  124 img/s"


@pytest.mark.parametrize(
    ("figures", "final"),
    [
        ([10.0, 20.0, 30.0, 40.0], {"top1": 40.0, "on": "validation", "val_top1_last3": 30.0}),
        ([10.0, 20.0], {"top1": 20.0, "on": "validation", "val_top1_last3": 15.0}),
        ([None, None, 30.0], {"top1": 30.0, "on": "validation", "val_top1_last3": 30.0}),
        ([10.0, None], {"val_top1_last3": 10.0}),
        ([None], {}),
    ],
)
def test_without_a_test_set_the_figures_are_of_the_validation_set(figures, final):
    """Of the last epoch, and the mean of the last three where they have one."""
    rows = [{"epoch": n, **({} if top1 is None else {"top1": top1})} for n, top1 in enumerate(figures, 1)]
    summary = {"stages": {"stage1": {"epochs": [{"top1": 99.0}]}, "stage2": {"epochs": rows}}}
    assert final_figures(SimpleNamespace(test_loader=None), summary) == final


class Means(nn.Module):
    """A student whose logits and embedding are an image's channel means."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.embedding(x).flatten(1)


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


def viewed(data):
    return with_evaluation_view(data, data)


def final(train, embedding_path="embedding", num_classes=4):
    parts = SimpleNamespace(
        student=Means(),
        embedding_path=embedding_path,
        num_classes=num_classes,
        accelerator=cpu(),
        box=SimpleNamespace(train_data_loader=DataLoader(train, batch_size=5)),
        test_loader=DataLoader(TinyImages(seed=1), batch_size=7),
    )
    return final_figures(parts, {"stages": {"train": {"epochs": []}}})


def test_the_embedding_is_measured_on_the_test_set():
    train, test = viewed(TinyImages()), DataLoader(TinyImages(seed=1), batch_size=7)
    expected = student_ncm(Means(), "embedding", DataLoader(train, batch_size=5), test, cpu()).top1
    for num_classes in (4, None):
        figures = final(train, num_classes=num_classes)
        assert figures.keys() == {"top1", "ncm_top1", "on"}
        assert (figures["ncm_top1"], figures["on"]) == (expected, "test")


@pytest.mark.parametrize(
    ("train", "changes", "reason"),
    [
        (viewed(TinyImages()), {"embedding_path": None}, "does not show which module gives the student's embedding"),
        (viewed(TinyImages()), {"num_classes": 6}, "no training sample of class 4, 5"),
        (viewed(Subset(TinyImages(), range(6, 24))), {"num_classes": None}, "no training sample of class 0"),
        (NoLabels(), {}, "dataset NoLabels has no labels to read"),
        (TinyImages(), {}, "the training set offers no evaluation view"),
    ],
)
def test_where_the_embedding_cannot_be_measured_one_line_says_why(caplog, train, changes, reason):
    with caplog.at_level(logging.INFO, "gkd_plugin"):
        assert final(train, **changes).keys() == {"top1", "on"}
    (record,) = caplog.records
    assert record.getMessage().startswith("final NCM accuracy: not measured, ")
    assert reason in record.getMessage()


def test_the_last_lines_of_a_run(caplog):
    caplog.set_level(logging.INFO)
    log_final({"on": "test", "top1": 50.0, "top5": 90.0, "old_top1": 40.0, "ncm_top1": 60.0, "ncm_top5": 95.0})
    log_final({})
    assert caplog.messages == [
        "final top-1 on the test set 50.00 %, top-5 90.00 %, old top-1 40.00 %",
        "final NCM accuracy of the embedding on the test set 60.00 %",
    ]


def summary(name, top1, teacher=None, **student):
    made = {
        "config": f"configs/{name}.yaml",
        "student": {"key": "timm_model", "kwargs": {}, "classes": 5, "parameters": 1234567, **student},
        "stages": {"stage1": {"num_epochs": 10}, "stage2": {"num_epochs": 30}},
        "final": {} if top1 is None else {"top1": top1},
    }
    return made if teacher is None else {**made, "teacher": teacher}


def test_the_table_has_one_line_per_run():
    table = results_table(
        [
            summary("teacher", 99.0, kwargs={"model_name": "resnet10t"}),
            summary("student", 87.654, {"ncm_top1": 62.36}, key="wide_resnet", classes=None),
            summary("other", None, {}),
        ]
    )
    assert table.splitlines() == [
        "run      student      parameters  classes  teacher     epochs  top-1 %",
        "----------------------------------------------------------------------",
        "teacher  resnet10t    1,234,567   5        none        10+30   99.00",
        "student  wide_resnet  1,234,567   ?        NCM 62.4 %  10+30   87.65",
        "other    timm_model   1,234,567   5        yes         10+30   –",
    ]
