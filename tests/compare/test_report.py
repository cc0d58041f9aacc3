import csv
from dataclasses import replace

from gkd_plugin.compare.report import comparison_table, write_csv
from tests.compare.results import CE, HALF, RESULTS, finished


def test_the_table():
    """Standard errors by hand: 60, 62, 64 → 2/√3; differences 1, 2, 3 → 1/√3 and p = 1 − t/√(2 + t²) at t = 2√3."""
    expected = """
method            overlap 50 %            − ce                   overlap 100 %   − ce
cross-entropy     62.0 ± 1.2                                     50.0 ± 0.0
ReFilled (TPAMI)  64.0 ± 1.7              +2.0 ± 0.6 (p 0.074)   57.0, 2 failed  +7.0
KD                needs the same classes                         failed
top1 in %, mean ± standard error over seeds (the teacher is the same in all); − ce: paired difference, p of the t-test
the teacher's NCM accuracy on validation images in %: overlap 50 % 33.3, overlap 100 % 33.3
failed: overlap 100 %, refilled, seed 1 and 1 more: too small, "x"
failed: overlap 100 %, kd, seed 0 and 2 more: no weights
"""
    lines = comparison_table(RESULTS, "top1").splitlines()
    assert [line.split() for line in lines if "---" not in line] == [
        line.split() for line in expected.split("\n")[1:-1]
    ]


def test_lost_pairs_are_told():
    lost = [result for result in RESULTS if (result.cell.method, result.cell.seed) != (CE, 2)]
    assert "+1.5 ± 0.5 (p 0.2), 2 of 3 paired" in comparison_table(lost, "top1")
    assert "paired" not in comparison_table(RESULTS, "top1").splitlines()[2]


def test_without_the_control_there_is_no_difference():
    table = comparison_table([result for result in RESULTS if result.cell.method is not CE], "top1")
    assert "− ce" not in table
    assert "\ntop1 in %, mean ± standard error over seeds (the teacher is the same in all)\n" in table
    assert table.splitlines()[0].split("  ")[0] == "method"


def test_another_score():
    table = comparison_table(RESULTS, "ncm_top1")
    assert "31.0 ± 0.6" in table
    assert "no ncm_top1" in table


def test_csv(tmp_path):
    write_csv(RESULTS, tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert len(rows) == len(RESULTS)
    first, failed = rows[0], rows[10]
    assert (first["method"], first["overlap"], first["seed"], first["status"]) == ("ce", "50.0", "0", "finished")
    assert (first["top1"], first["ncm_top1"], first["top5"]) == ("60.0", "30.0", "")
    assert (first["teacher_ncm_top1"], first["seconds"], first["folder"]) == ("33.3333", "1.234", "f")
    assert (failed["status"], failed["reason"], failed["top1"]) == ("failed", 'too small, "x"', "")
    (folder,) = {row["folder"] for row in rows if row["status"] == "not served"}
    assert folder == ""  # there is none


def test_tasks_are_told_with_their_confidence_interval():
    """Tasks of 60, 64 and 68 after the mean of two seeds: 64 ± 4.303 · 4/√3."""
    results = [
        replace(result, cell=replace(result.cell, task=task))
        for task, top1 in enumerate([60.0, 64.0, 68.0])
        for result in (finished(CE, HALF, 0, top1 - 1), finished(CE, HALF, 1, top1 + 1))
    ]
    table = comparison_table(results, "top1")
    assert "64.0 ± 9.9" in table
    assert "mean ± 95 % confidence over tasks" in table


def test_a_lost_seed_of_a_task_is_told_too():
    cells = [replace(result, cell=replace(result.cell, task=0)) for result in RESULTS if result.cell.setting == HALF]
    lost = [result for result in cells if (result.cell.method, result.cell.seed) != (CE, 2)]
    assert "2 of 3 paired" in comparison_table(lost, "top1")
    assert "paired" not in comparison_table(cells, "top1").splitlines()[3]


def test_one_repetition_has_no_error():
    one = [result for result in RESULTS if result.cell.seed == 0]
    assert comparison_table(one, "top1").splitlines()[5].startswith("top1 in %, one seed; − ce: ")
