"""Data loaders."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import LOAD, PLAIN_TRAINING, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (f"{LOAD}.dataset=1", f"{LOAD}.dataset: unknown key; did you mean 'dataset_id'"),
        (f"{LOAD}.cache_output=[1]", f"{LOAD}.cache_output: unknown key"),
        (f"{LOAD}.sampler.kwarg=1", f"{LOAD}.sampler.kwarg: unknown key; did you mean 'kwargs'"),
        (f"{LOAD}.kwargs=", f"{LOAD}.kwargs: nothing given; must be a section"),
        (f"{LOAD}.sampler=", f"{LOAD}.sampler: nothing given; must be a section"),
        (f"{LOAD}.sampler.class_or_func=RandomSampler", "write class_or_func: !import_get"),
        (f"{LOAD}.collate_fn=x", f"{LOAD}.collate_fn: 'x' is not registered"),
        (f"{LOAD}.batch_sampler={{key: BatchSample, kwargs: {{}}}}", "did you mean 'BatchSampler'"),
        (f"{LOAD}.dataset_wrapper={{key: CRDDatasetWraper}}", "did you mean 'CRDDatasetWrapper'"),
        (f"{LOAD}.dataset_id=d/trian", f"{LOAD}.dataset_id: 'd/trian' is not in datasets; did you mean 'd/train'"),
        (f"{LOAD}.dataset_id=", f"{LOAD}.dataset_id: missing"),
        (f"{LOAD}.kwargs.batchsize=1", f"{LOAD}.kwargs.batchsize: unknown argument; did you mean 'batch_size'"),
        (f"{LOAD}.kwargs.sampler=1", f"{LOAD}.kwargs.sampler: given already"),
        (f"{LOAD}.kwargs.shuffle=true", f"{LOAD}.kwargs.shuffle: excludes a sampler"),
        (f"{LOAD}.sampler.kwargs={{replace: true}}", "unknown argument; did you mean 'replacement'"),
        (f"{LOAD}.batch_sampler={{key: BatchSampler, kwargs: {{batch_size: 2}}}}", "argument 'drop_last' is missing"),
        (
            f"{LOAD}.batch_sampler={{key: BatchSampler, kwargs: {{batch_size: 2, drop_last: true}}}}",
            f"{LOAD}.kwargs.batch_size: cannot be given beside a batch_sampler",
        ),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("train.train_data_loader", "train.train_data_loader: missing"),
        (f"{LOAD}.sampler", f"{LOAD}.sampler.class_or_func: missing; write class_or_func: !import_get"),
    ],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["train.val_data_loader"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []
