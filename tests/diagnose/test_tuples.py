"""Counts over time, from metrics.jsonl."""

import json

import pytest

from gkd_plugin.diagnose.figures import LeftOut
from gkd_plugin.diagnose.tuples import report_tuples


def test_rows_that_count_tuples_alone(run, tmp_path):
    metrics = run.folder.path / "metrics.jsonl"
    counted = [json.loads(line) for line in metrics.read_text().splitlines()][:2]
    expected = {"epoch": [1, 2], **{key: [row[key] for row in counted] for key in ("tuples", "negatives")}}
    assert report_tuples(metrics, tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"tuples.png", "tuples.svg"}


def test_a_run_that_counts_no_tuples(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    for metrics in (tmp_path / "metrics.jsonl", tmp_path / "nowhere.jsonl"):
        with pytest.raises(LeftOut, match=rf"^no epoch in {metrics} counts tuples: "):
            report_tuples(metrics, tmp_path)
    assert not list(tmp_path.glob("tuples.*"))
