"""Calls against signatures."""

from __future__ import annotations

from gkd_plugin.config.validation.signatures import check_call


def test_check_call():
    assert check_call("p", lambda a, *, b=1, **more: None, kwargs={"a": 1, "c": 2}) == []
    assert check_call("p", lambda a, /, b: None, [1], {"b": 1}) == []
    assert check_call("p", lambda *a: None, [1, 2]) == []
    assert check_call("p", lambda a: None, [1, 2]) == ["p: 2 positional arguments given, at most 1 fit"]
    assert check_call("p", lambda a, b: None, [1], {"a": 1}, names=["b"]) == [
        "p.a: given already, by torchdistill or by position; remove it"
    ]
    assert check_call("p", dict, [1, 2], {"x": 1}) == [], "no signature, no complaint"
