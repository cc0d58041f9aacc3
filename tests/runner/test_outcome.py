"""What a run says of itself; whole summaries are in test_run."""

import logging
from types import SimpleNamespace

import pytest

from gkd_plugin.runner.outcome import epoch_line, final_figures, log_final

ROW = {"stage": "stage1", "epoch": 2, "loss": 1.23456, "top1": 50.0, "seconds": 3.0, "images_per_second": 123.6}


def test_an_epoch_in_one_line():
    assert epoch_line(ROW, {"stage1": 5}) == "stage1 2/5  loss 1.235  top1 50  124 img/s"


@pytest.mark.parametrize(
    ("figures", "final"),
    [
        ([10.0, 20.0, 30.0, 40.0], {"top1": 40.0, "on": "validation", "val_top1_last3": 30.0}),
        ([10.0, 20.0], {"top1": 20.0, "on": "validation", "val_top1_last3": 15.0}),
        ([None, None, 30.0], {"top1": 30.0, "on": "validation", "val_top1_last3": 30.0}),
        ([10.0, None], {}),
        ([None], {}),
    ],
)
def test_without_a_test_set_the_figures_are_of_the_validation_set(figures, final):
    """Of the last epoch, and the mean of the last three where they have one."""
    rows = [{"epoch": n, **({} if top1 is None else {"top1": top1})} for n, top1 in enumerate(figures, 1)]
    summary = {"stages": {"stage1": {"epochs": [{"top1": 99.0}]}, "stage2": {"epochs": rows}}}
    got = final_figures(SimpleNamespace(test_loader=None), summary)
    assert got == (final or ({"val_top1_last3": 10.0} if figures[0] == 10.0 else {}))


def test_the_last_lines_of_a_run(caplog):
    caplog.set_level(logging.INFO)
    log_final({"on": "test", "top1": 50.0, "top5": 90.0, "old_top1": 40.0, "ncm_top1": 60.0, "ncm_top5": 95.0})
    log_final({})
    assert caplog.messages == [
        "final top-1 on the test set 50.00 %, top-5 90.00 %, old top-1 40.00 %",
        "final NCM accuracy of the embedding on the test set 60.00 %",
    ]
