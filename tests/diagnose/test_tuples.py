"""Counts over time, from metrics.jsonl."""

import json

import pytest

from gkd_plugin.diagnose.left_out import LeftOut
from gkd_plugin.diagnose.tuples import report_tuples, tuple_counts


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_the_embedding_stage_alone(tmp_path):
    rows = [
        {"stage": "stage1", "epoch": 1, "tuples": 20.0, "negatives": 3.5},
        {"stage": "stage1", "epoch": 2, "tuples": 18.0, "negatives": 3.0},
        {"stage": "stage2", "epoch": 1, "top1": 50.0},
    ]
    metrics = written(tmp_path / "metrics.jsonl", rows)
    assert tuple_counts(metrics) == {"epoch": [1, 2], "tuples": [20.0, 18.0], "negatives": [3.5, 3.0]}


def test_report_of_a_run(run, tmp_path):
    metrics = run.folder.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert report_tuples(metrics, tmp_path)["negatives"] == [row["negatives"] for row in rows[:2]]
    assert {path.name for path in tmp_path.iterdir()} == {"tuples.png", "tuples.svg"}


def test_a_run_that_counts_no_tuples(tmp_path):
    for metrics in (written(tmp_path / "metrics.jsonl", [{"loss": 1.0}]), tmp_path / "nowhere.jsonl"):
        with pytest.raises(LeftOut, match=rf"^no epoch in {metrics} counts tuples: "):
            report_tuples(metrics, tmp_path)
    assert not list(tmp_path.glob("tuples.*"))
