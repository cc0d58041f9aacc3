"""Tags, numbers that are none, and all problems together."""

from __future__ import annotations

import pytest

from gkd_plugin.config.tree import parse
from gkd_plugin.config.validate import problems
from tests.config.samples import PLAIN_TRAINING, STAGES, found

OBJECT = "datasets.d/train"


@pytest.mark.parametrize(
    ("change", "path", "parts"),
    [
        ("datasets={}", "", ["empty"]),
        (f"{OBJECT}.inti=1", "", ["'init'"]),
        (f"{OBJECT}.init.kwarg=1", "", ["'kwargs'"]),
        (f"{OBJECT}.init=3", "", ["3 given"]),
        (f"{OBJECT}.init.args=3", "", ["3 given", "a list"]),
        (f"{OBJECT}.init.kwargs=", "", ["nothing given"]),
        (f"{OBJECT}.key=builtins.dikt", OBJECT, ["builtins.dikt", "'dict'"]),
        (f"{OBJECT}.init.kwargs.b=!import_get {{key: oss.sep}}", "", ["no module named 'oss'"]),
        (f"{OBJECT}=!import_call_method {{package: builtins.dict.fromkey}}", "", ["'fromkeys'"]),
        ("train.optimizer.kwargs.lr=1e-3", "", ["'1e-3'", "1.0e-3"]),
        ("train.train_data_loader.sampler.kwargs={num_samples: 1e-3}",
         "train.train_data_loader.sampler.kwargs.num_samples", ["'1e-3'", "1.0e-3"]),
        ("train.criterion.kwargs.sub_terms.ce.criterion={key: VIDLoss, kwargs: {feature_pairs: {}, margin: .nan}}",
         "train.criterion.kwargs.sub_terms.ce.criterion.kwargs.margin", ["nan given"]),
    ],
)  # fmt: skip
def test_what_is_refused(change, path, parts):
    lines = found(PLAIN_TRAINING, change)
    assert lines[0].startswith(f"{path or change.partition('=')[0]}: "), lines
    assert [part for part in parts if part not in lines[0]] == [], lines


def test_calls_of_tags_are_held_against_signatures():
    change = f"{OBJECT}=!import_call {{key: torch.utils.data.Subset, init: {{kwargs: {{a: 1}}}}}}"
    assert [line.partition(";")[0] for line in found(PLAIN_TRAINING, change)] == [
        f"{OBJECT}.init.kwargs.a: unknown argument",
        f"{OBJECT}.init.kwargs: argument 'dataset' is missing",
        f"{OBJECT}.init.kwargs: argument 'indices' is missing",
    ]


@pytest.mark.parametrize("text", [PLAIN_TRAINING, STAGES])
def test_valid_configs_pass(text):
    assert problems(parse(text, "test")) == []


def test_all_problems_together_in_the_order_of_the_table():
    changes = ["trian=1", "train.num_epochs=0", "train.optimizer.key=SDG", "device.default=gpu"]
    assert [line.partition(":")[0] for line in found(PLAIN_TRAINING, *changes)] == [
        "trian", "train.num_epochs", "train.optimizer.key", "device.default"
    ]  # fmt: skip
