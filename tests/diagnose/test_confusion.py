"""The confusion matrix against the run's own accuracy, and the pairs against a loop."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gkd_plugin.diagnose.confusion import most_confused, report_confusion, row_shares
from gkd_plugin.diagnose.figures import LeftOut


def test_report(run, tmp_path):
    run.load_student(None)
    made = report_confusion(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "confusion.svg"}
    summary = json.loads((run.folder.path / "summary.json").read_text("utf-8"))
    assert made["top1"] == pytest.approx(summary["final"]["top1"])
    assert (made["on"], made["samples"], made["classes"]) == ("test", 24, ["0", "1", "2", "3"])
    assert [sum(row) for row in made["counts"]] == [6, 6, 6, 6]
    wrong = 24 - sum(made["counts"][k][k] for k in range(4))
    assert sum(pair["samples"] for pair in made["most_confused"]) == wrong


def test_names_are_cut_or_filled_up_to_the_students_classes(run, tmp_path):
    assert report_confusion(replace(run, class_names=["a", "b"]), tmp_path)["classes"] == ["a", "b", "2", "3"]
    assert report_confusion(replace(run, class_names=list("abcdef")), tmp_path)["classes"] == list("abcd")


def test_many_classes_are_drawn_without_names(tmp_path):
    from gkd_plugin.diagnose import confusion

    for count in (3, 20, 41):
        confusion.draw(np.eye(count), [f"class {k}" for k in range(count)], "test", tmp_path)
        drawn = (tmp_path / "confusion.svg").read_text("utf-8")
        assert ("<!-- class 2 -->" in drawn) == (count <= 40)
        assert ("<!-- 1.00 -->" in drawn) == (count <= 12)


def test_rows_without_samples_are_zero():
    assert row_shares(np.array([[3, 1], [0, 0]])).tolist() == [[0.75, 0.25], [0, 0]]


def test_most_confused():
    counts = np.array([[8, 2, 0], [1, 1, 0], [3, 0, 97]])
    pairs = most_confused(counts, ["a", "b", "c"])
    expected = sorted(
        (
            (counts[i, j] / counts[i].sum(), "abc"[i], "abc"[j], counts[i, j])
            for i in range(3)
            for j in range(3)
            if i != j and counts[i, j]
        ),
        reverse=True,
    )
    assert [(p["share"], p["true"], p["predicted"], p["samples"]) for p in pairs] == expected
    assert most_confused(counts, ["a", "b", "c"], pairs=1) == pairs[:1]


def test_left_out(run, tmp_path):
    with pytest.raises(LeftOut, match=r"^there are no test images"):
        report_confusion(replace(run, test=None), tmp_path)
