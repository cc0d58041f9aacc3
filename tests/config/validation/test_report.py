"""The list of problems, and how it names things."""

from __future__ import annotations

import pytest

from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.report import Report, at, shown


def test_each_line_once():
    report = Report((), needs_checkpoints=True)
    mark = len(report.lines)
    assert report.ok_since(mark)
    for path, message in [("a.b", "wrong"), ("a.b", "wrong"), ("", "a.c: wrong")]:
        report.add(path, message)
    assert report.lines == ["a.b: wrong", "a.c: wrong"]
    assert not report.ok_since(mark)


def test_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt").touch()
    report = Report(["later.pt"], needs_checkpoints=True)
    assert [report.will_exist(path) for path in ("there.pt", "./later.pt", "https://x.org/y.pt", "no.pt")] == [
        True, True, True, False
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), (3, "3"), ("3", "'3'"), ({"a": 1}, "a section"), (Tagged("!x", 1), "!x")],
)
def test_shown(value, text):
    assert shown(value) == text


def test_at():
    assert (at("", "a"), at("a", "b"), at("a", 0)) == ("a", "a.b", "a.0")
