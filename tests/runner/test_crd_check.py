import copy

import pytest

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.crd_check import check_crd
from tests.fakes import TinyImages, cross_entropy, loader, stage

LOSS = {"num_negative_samples": 6, "output_size": 24, "num_samples": 24}
WRAPPER = {"key": "CRDDatasetWrapper", "kwargs": {"num_negative_samples": 6, "mode": "exact", "ratio": 1.0}}
DATASETS = {"train": TinyImages()}


def crd(wrapper=WRAPPER, **kwargs):
    terms = {
        "ce": cross_entropy(),
        "crd": {"criterion": {"key": "CRDLoss", "kwargs": {**LOSS, **kwargs}}, "weight": 1.0},
    }
    criterion = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}
    return {
        "train": stage(
            "embedding", train_data_loader={**loader("train"), "dataset_wrapper": wrapper}, criterion=criterion
        )
    }


@pytest.mark.parametrize(
    "stages",
    [
        crd(),
        crd(output_size=30),
        crd(wrapper={"key": "Mine"}),
        {"train.stage1": stage("embedding")},
        {"train": stage("embedding", criterion={"key": "WeightedSumLoss", "kwargs": None})},
    ],
)
def test_what_fits_passes_unchanged(stages):
    before = copy.deepcopy(stages)
    check_crd(stages, DATASETS)
    assert stages == before


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (crd(wrapper=None), r"^train\.train_data_loader\.dataset_wrapper: missing; CRDLoss needs 'CRDDatasetWrapper'"),
        (
            crd(num_negative_samples=7),
            r"^train\..*sub_terms\.crd\.criterion\.kwargs\.num_negative_samples: 7 given, but .* draws 6$",
        ),
        (crd(output_size=23), r"^train\..*\.kwargs\.output_size: 23 given, but there are 24 training samples$"),
    ],
)
def test_what_does_not_is_one_line(stages, message):
    with pytest.raises(ConfigError, match=message):
        check_crd(stages, DATASETS)
