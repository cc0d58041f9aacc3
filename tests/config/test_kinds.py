"""Calls against signatures, and how a report names things."""

import pytest

from gkd_plugin.config.kinds import Report
from gkd_plugin.config.tree import Tagged


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "more", "lines"),
    [
        (lambda a, *, b=1, **more: None, [], {"a": 1, "c": 2}, {}, []),
        (lambda a, /, b: None, [1], {"b": 1}, {}, []),
        (lambda *a: None, [1, 2], None, {}, []),
        (dict, [1, 2], {"x": 1}, {}, []),  # no signature
        (lambda a: None, Tagged("!x", 1), {}, {}, []),
        (lambda a: None, [], Tagged("!x", 1), {}, []),
        *((lambda a: None, args, kwargs, {}, []) for args, kwargs in ((0, {}), ([], 0), ([], ""), ([], False))),
        (lambda a: None, [1, 2], None, {}, [": 2 positional arguments given, at most 1 fit"]),
        (lambda a: None, [1], None, {"supplied": 1}, [": 1 positional arguments given, at most 0 fit"]),
        (lambda a, b: None, [1], {"a": 1}, {"names": ["b"]},
         [".a: given already, by torchdistill or by position; remove it"]),
        (lambda params, lr, momentum=0.0: None, [], {"mometum": 1}, {"supplied": 1},
         [".mometum: unknown argument; did you mean 'momentum'? (allowed: 'lr', 'momentum')",
          ": argument 'lr' is missing"]),
    ],
)  # fmt: skip
def test_bind(function, args, kwargs, more, lines):
    report = Report({}, None)
    report.bind("p", function, {"args": args, "kwargs": kwargs}, **more)
    assert report.lines == [f"p.kwargs{line}" for line in lines]


def test_a_section_is_clean_where_nothing_below_it_was_found():
    report = Report({}, None)
    report.add("a.b", "one")
    assert [report.is_clean(path) for path in ("a", "a.b", "a.b.c", "a.bc")] == [False, False, True, True]
    assert not report.is_clean("c", {"d": [Tagged("!x", 1)]})
