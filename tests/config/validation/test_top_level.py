"""Test, device and tracker."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import PLAIN_TRAINING, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("test.loader={}", "test.loader: unknown key"),
        ("device={devault: cpu}", "device.devault: unknown key; did you mean 'default'"),
        ("tracker={engin: wandb}", "tracker.engin: unknown key; did you mean 'engine'"),
        ("test.log_freq=x", "test.log_freq: 'x' given"),
        (
            "device=cpu",
            "device: 'cpu' given; must be a section with channels_last, compile, default, precision, teacher",
        ),
        ("device={default: gpu}", "device.default: 'gpu' given; allowed: auto, cpu, cuda, cuda:<number>, mps"),
        ("device={teacher: 'cuda:x'}", "device.teacher: 'cuda:x' given"),
        ("device={precision: fp32}", "device.precision: 'fp32' given"),
        ("device={teacher_dtype: half}", "device.teacher_dtype: 'half' given; allowed: 'bf16', 'float32', 'fp16'"),
        ("device={compile: yes}", "device.compile: true given; allowed: 'both', 'student', 'teacher'"),
        ("device={channels_last: 1}", "device.channels_last: 1 given; must be true or false"),
        ("teacher_cache={views: 0}", "teacher_cache.views: 0 given; must be a whole number, 1 or more"),
        ("teacher_cache={folder: x}", "teacher_cache.views: missing"),
        ("teacher_cache={views: 2, foldr: x}", "teacher_cache.foldr: unknown key; did you mean 'folder'"),
        ("teacher_cache={views: 2, folder: 3}", "teacher_cache.folder: 3 given; must be the path of a folder"),
        ('teacher_cache={views: 2, folder: "a\\0b"}', "teacher_cache.folder: 'a\\x00b' given; must be the path"),
        ("teacher_cache={views: 2, seed: -1}", "teacher_cache.seed: -1 given"),
        ("teacher_cache={views: 2}", "teacher_cache: there is no models.teacher_model whose answers could be kept"),
        ("device={precision: yes}", "device.precision: true given"),
        ("tracker={engine: tensorboard}", "tracker.engine: 'tensorboard' given; allowed: 'trackio', 'wandb'"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(("path", "line"), [("test.test_data_loader", "test.test_data_loader: missing")])
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["test"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


@pytest.mark.parametrize(
    "change",
    [
        "device={precision: no}",
        "device={precision: 'no', default: auto, teacher: }",
        "device={default: mps}",
        "device={teacher_dtype: bf16, channels_last: true, compile: student}",
        "teacher_cache=",
        "device=",
        "tracker={engine: wandb, kwargs: {project: x}}",
    ],
)
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []
