"""Keys of registries, and calls of what they name."""

from __future__ import annotations

import pytest

from gkd_plugin.config.validation.registries import check_registered, registered_key
from gkd_plugin.config.validation.report import Report

REGISTRY = {"Step": lambda optimizer, size, gamma=0.1: None, "int": int}


@pytest.fixture
def report():
    return Report((), needs_checkpoints=True)


def test_a_key_gives_its_part(report):
    assert registered_key(report, "p.key", "int", REGISTRY) is int
    assert report.lines == []
    assert registered_key(report, "p.key", "Stp", REGISTRY, base=str) is None
    assert registered_key(report, "p.key", ["Step"], REGISTRY, base=str) is None
    assert report.lines == [
        "p.key: 'Stp' is not registered; did you mean 'Step'? (allowed: 'Step')",
        "p.key: ['Step'] given, must be a name; did you mean 'Step'? (allowed: 'Step')",
    ]


def test_the_call_must_fit(report):
    check_registered(report, "p", {"key": "Step", "kwargs": {"size": 1}}, REGISTRY, supplied=1)
    check_registered(report, "p", {"key": "Step", "args": [1]}, REGISTRY, names=["optimizer", "size"])
    assert report.lines == []
    check_registered(report, "p", {"key": "Step", "kwargs": None}, REGISTRY, supplied=1)
    assert report.lines == ["p.kwargs: argument 'size' is missing"]
