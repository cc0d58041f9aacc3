"""Keys, sections and simple values."""

from __future__ import annotations

import pytest

from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.report import Report
from gkd_plugin.config.validation.sections import (
    check_count,
    check_flag,
    check_keys,
    check_module_paths,
    optional_section,
    required_section,
)


@pytest.fixture
def report():
    return Report((), needs_checkpoints=True)


def test_keys_that_nobody_reads(report):
    check_keys(report, "p", {"key": 1, "_anchor": 1, "x-note": 1, "cache_output": None}, {"key"})
    assert report.lines == []
    check_keys(report, "p", {"kee": 1, "cache_output": 1}, {"key"})
    assert report.lines == [
        "p.kee: unknown key; did you mean 'key'? (allowed: 'key')",
        "p.cache_output: unknown key; allowed: 'key'",
    ]


def test_optional_and_required_sections(report):
    section = {"key": 1}
    assert optional_section(report, "p", {"s": section}, "s", {"key"}) is section
    assert optional_section(report, "p", {}, "s") is None
    assert required_section(report, "p", {"s": Tagged("!import_call", {})}, "s") is None, "an object may be anything"
    assert report.lines == []
    assert required_section(report, "p", {}, "s") is None
    assert optional_section(report, "", {"s": 3}, "s", {"b", "a"}) is None
    assert report.lines == ["p.s: missing; must be a section", "s: 3 given; must be a section with a, b"]


def test_values(report):
    check_count(report, "n", 0, least=0)
    check_flag(report, "p", {}, "flag")
    check_flag(report, "p", {"flag": False}, "flag")
    check_module_paths(report, "m", [])
    assert report.lines == []
    check_count(report, "n", True)
    check_flag(report, "p", {"flag": None}, "flag")
    check_module_paths(report, "m", "fc")
    assert [line.partition(";")[0] for line in report.lines] == [
        "n: true given", "p.flag: nothing given", "m: 'fc' given"
    ]  # fmt: skip
