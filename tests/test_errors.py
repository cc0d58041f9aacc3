"""Hints of error messages, and the checks that all folders share."""

import sys

import pytest
import torch

from gkd_plugin.errors import ConfigError, first_line, nearest, nearest_beside, one_of, require_extra, whole_number
from tests.runner.fakes import refused


@pytest.mark.parametrize(
    ("given", "allowed", "want"),
    [
        ("stge", ["stage", "margin"], "did you mean 'stage'? (allowed: 'margin', 'stage')"),
        ("zzz", ["stage"], "allowed: 'stage'"),
        ("zzz", [], "there are none"),
        ("zzz", [f"name{i}" for i in range(20)], "none of the 20 known names is close"),
        ("name1x", [f"name{i}" for i in range(20)], "did you mean"),
        (5, ["6"], "allowed: '6'"),
    ],
)
def test_nearest(given, allowed, want):
    assert nearest(given, allowed).startswith(want)


@pytest.mark.parametrize(("text", "line"), [("\none\ntwo\n", "one"), (" \n", "TypeError"), ("", "TypeError")])
def test_first_line(text, line):
    assert first_line(TypeError(text)) == line


def test_a_device_without_memory_is_told_with_what_helps():
    text = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.6 GiB"
    told = first_line(torch.OutOfMemoryError(text))
    assert told.startswith("CUDA out of memory; ")
    for key in ("batch_size", "device.precision", "teacher_cache", "device.teacher_dtype", "device.teacher"):
        assert key in told


@pytest.mark.parametrize(
    ("path", "is_folder", "hint"),
    [
        ("ordr.txt", False, "did you mean {0}/order.txt?"),
        ("x.json", False, "{0} holds photos"),
        ("phots/train", True, "did you mean {0}/photos?"),
        ("photos/trian", True, "did you mean {0}/photos/train?"),
        ("order", True, "{0} holds photos"),
        ("photos/train/cat", True, "{0}/photos/train holds no folder"),
        ("order.txt", True, "it is a file"),
    ],
)
def test_what_is_there_in_place_of_a_missing_path(path, is_folder, hint, tmp_path):
    for name in ("order.txt", "orders.csv", ".hidden.txt"):
        (tmp_path / name).touch()
    (tmp_path / "photos/train").mkdir(parents=True)
    assert nearest_beside(tmp_path / path, is_folder=is_folder) == f"; {hint.format(tmp_path)}"


@pytest.mark.parametrize(
    ("value", "high", "message"),
    [
        (1, None, "k must be a whole number from 2 up, got 1"),
        (4, 3, "k must be a whole number in 2 … 3, got 4"),
        *((value, None, f"got {value!r}") for value in (2.0, True, "2", None)),
    ],
)
def test_a_whole_number_within_bounds_is_itself_and_all_else_is_refused(value, high, message):
    assert [whole_number("k", 2, low=2, high=2), whole_number("k", 10**9, low=2)] == [2, 10**9]
    refused(message, whole_number, "k", value, low=2, high=high)


def test_a_choice_that_is_not_offered_is_refused_with_a_value_error():
    one_of("role", "teacher", ("teacher", "student"))
    assert issubclass(ConfigError, ValueError)
    refused(r"role: 'techer' is unknown; did you mean 'teacher'\?", one_of, "role", "techer", ("teacher", "student"))


@pytest.mark.parametrize(
    ("modules", "names"), [(["matplotlib"], "matplotlib"), (["matplotlib", "sklearn"], "matplotlib and scikit-learn")]
)
def test_a_missing_extra_is_named(monkeypatch, modules, names):
    require_extra("report", "diagnose")
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    refused(rf"^diagnose needs {names}: pip install 'gkd-plugin\[report\]'$", require_extra, "report", "diagnose")
