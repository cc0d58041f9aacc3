import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from gkd_plugin import cli
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.report import SCORES, comparison_table, draw_settings, paired_difference, write_csv
from gkd_plugin.compare.setting import Setting
from tests.compare.fakes import CE, HALF, RESULTS, finished

ONE_SETTING = [result for result in RESULTS if result.cell.setting == HALF]


def test_the_command_takes_these_scores():
    assert cli.SCORES == SCORES


def seeds(*values):
    return {(seed, None): value for seed, value in enumerate(values)}


OURS, CONTROL = {(0, 0): 11.0, (1, 0): 13.0, (0, 1): 15.0}, {(0, 0): 10.0, (1, 0): 10.0, (0, 1): 10.0, (1, 1): 0.0}


@pytest.mark.parametrize(
    ("ours", "control", "differences", "error"),
    [
        (seeds(5.0, 7.0, 100.0), {(1, None): 4.0, (0, None): 4.0, (3, None): -100.0}, [1.0, 3.0], 1.0),
        (OURS, CONTROL, [2.0, 5.0], 1.5 * stats.t.ppf(0.975, 1)),  # task 0: 1 and 3; task 1: 5, its other seed failed
        (seeds(2.0), seeds(1.0, 2.0), [1.0], None),
        (seeds(26.7, 27.1), seeds(25.0, 25.4), [1.7, 1.7], 0.0),  # equal, whatever their last bits say
    ],
)
def test_what_both_have_is_paired_and_a_p_value_needs_two_that_differ(ours, control, differences, error):
    found = paired_difference(ours, control)
    assert (found.value, found.error) == (pytest.approx(np.mean(differences)), pytest.approx(error))
    expected = stats.ttest_1samp(differences, 0).pvalue if len(set(differences)) > 1 else None
    assert found.p_value == pytest.approx(expected)
    assert paired_difference({(0, None): 1.0}, {(1, None): 1.0}) is None


def test_the_table():
    """Standard errors by hand: 60, 62, 64 → 2/√3; differences 1, 2, 3 → 1/√3 and p = 1 − t/√(2 + t²) at t = 2√3."""
    expected = """
method            overlap 50 %            − ce                   overlap 100 %   − ce   preparation + training
cross-entropy     62.0 ± 1.2                                     50.0 ± 0.0             0.2 + 1.0 s
ReFilled (TPAMI)  64.0 ± 1.7              +2.0 ± 0.6 (p 0.074)   57.0, 2 failed  +7.0   0.2 + 1.0 s
KD                needs the same classes                         failed
top1 in %, mean ± standard error over seeds (the teacher is the same in all); − ce: paired difference, p of the t-test
the teacher's NCM accuracy before training in %: overlap 50 % 33.3, overlap 100 % 33.3
failed: overlap 100 %, refilled, seed 1 and 1 more: too small, "x"
failed: overlap 100 %, kd, seed 0 and 2 more: no weights
"""
    shown, wanted = comparison_table(RESULTS, "top1").splitlines(), expected.splitlines()[1:]
    assert [line.split() for line in shown if "---" not in line] == [line.split() for line in wanted]


def test_a_teacher_of_a_methods_own_says_nothing_of_the_configurations():
    method = load_method("refilled-joint-random-teacher")
    own = finished(method, HALF, 0, 50.0)
    own.summary["teacher"]["ncm_top1"] = 0.0
    table = comparison_table([*ONE_SETTING, own], "top1")
    assert "\nthe teacher's NCM accuracy before training in %: overlap 50 % 33.3\n" in table + "\n"
    assert "the teacher is the same in all" not in table


NOTE = "mean ± standard error over seeds (the teacher is the same in all)"
LOST = [result for result in ONE_SETTING if (result.cell.method, result.cell.seed) != (CE, 2)]
# tasks of 60, 64 and 68 after the mean of two seeds: 64 ± 4.303 · 4/√3
ONE_SEED = [result for result in RESULTS if result.cell.seed == 0]
ONE_TASK = [replace(result, cell=replace(result.cell, task=0)) for result in ONE_SEED]
TASKS = [finished(CE, HALF, seed, 59.0 + 4 * task + 2 * seed, task) for task in range(3) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("results", "score", "shown", "absent"),
    [
        ([result for result in RESULTS if result.cell.method is not CE], "top1", [f"\ntop1 in %, {NOTE}\n"], "− ce"),
        (RESULTS, "ncm_top1", ["31.0 ± 0.6", "no ncm_top1"], "64.0"),
        (LOST, "top1", ["2 of 3 paired"], None),
        (ONE_SETTING, "top1", ["paired difference"], "of 3 paired"),
        (ONE_SEED, "top1", ["\ntop1 in %, one seed; − ce: "], "±"),
        (ONE_TASK, "top1", ["\ntop1 in %, one task; − ce: "], "±"),
        (TASKS, "top1", ["64.0 ± 9.9", "mean ± 95 % confidence over tasks"], "standard error"),
    ],
    ids=["without the control", "another score", "lost pairs", "no lost pairs", "one seed", "one task", "tasks"],
)
def test_other_tables(results, score, shown, absent):
    table = comparison_table(results, score)
    assert table.startswith("method  ")
    assert all(text in table for text in shown)
    assert absent is None or absent not in table


def test_csv(tmp_path):
    write_csv(RESULTS, tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert len(rows) == len(RESULTS)
    first, failed = rows[0], rows[10]
    assert (first["method"], first["overlap"], first["seed"], first["status"]) == ("ce", "50.0", "0", "finished")
    assert (first["top1"], first["ncm_top1"], first["top5"]) == ("60.0", "30.0", "")
    assert (first["teacher_ncm_top1"], first["folder"]) == ("33.3333", "f")
    assert (first["preparation_seconds"], first["seconds"], failed["seconds"]) == ("0.25", "1.234", "")
    assert (failed["status"], failed["reason"], failed["top1"]) == ("failed", 'too small, "x"', "")
    (folder,) = {row["folder"] for row in rows if row["status"] == "not served"}
    assert folder == ""  # there is none


def drawn(figure):
    """Title → places, means, lower and upper ends of the error bars, ``[4, N]``."""
    (axes,) = figure.axes
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        found[container.get_label()] = np.vstack([line.get_xydata().T, ends.T]).astype(float)
    return found


def test_the_plot_shows_the_table(tmp_path):
    """60, 62, 64 and 61, 64, 67 at 50 %: errors 2/√3 and 3/√3; a single run has no bar; KD has no result."""
    figure = draw_settings(RESULTS, "top1", tmp_path)
    got, (two, three) = drawn(figure), (2 / 3**0.5, 3 / 3**0.5)
    assert list(got) == ["cross-entropy", "ReFilled (TPAMI)"]
    np.testing.assert_allclose(got["cross-entropy"], [[50, 100], [62, 50], [62 - two, 50], [62 + two, 50]])
    np.testing.assert_allclose(got["ReFilled (TPAMI)"], [[50, 100], [64, 57], [64 - three, 57], [64 + three, 57]])
    (axes,) = figure.axes
    assert axes.get_xlabel() == "overlap of the teacher's and the student's classes in %"
    assert axes.get_ylabel() == "top1 in % (mean ± standard error over seeds)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(got)


def test_where_nothing_varies_each_method_has_a_dot(tmp_path):
    """As on a folder of one's own; KD has no result."""
    figure = draw_settings(ONE_SETTING, "top1", tmp_path)
    got, three = drawn(figure), 3 / 3**0.5
    assert list(got) == [text.get_text() for text in figure.axes[0].get_xticklabels()]
    np.testing.assert_allclose(got["ReFilled (TPAMI)"].T, [[1, 64, 64 - three, 64 + three]])


@pytest.mark.parametrize(
    ("results", "score", "stem"),
    [
        (RESULTS, "top1", "top1_against_overlap"),
        (ONE_SETTING, "top1", "top1_of_methods"),
        ([finished(CE, setting, 0, 1.0) for setting in (Setting(50.0, shots=1), Setting(99.0, shots=5))], "top1", None),
        (RESULTS, "top5", None),
    ],
    ids=["one thing that varies", "nothing", "two things", "no cell with the score"],
)
def test_the_files_come_in_place_of_an_earlier_comparisons(results, score, stem, tmp_path):
    (tmp_path / "top1_against_time.png").touch()  # the user's own
    draw_settings(RESULTS, "ncm_top1", tmp_path)
    assert (draw_settings(results, score, tmp_path) is None) == (stem is None)
    names = set() if stem is None else {f"{stem}.png", f"{stem}.svg"}
    assert {path.name for path in tmp_path.iterdir()} == {"top1_against_time.png", *names}
    for name in names:
        assert (tmp_path / name).read_bytes().lstrip().startswith((b"\x89PNG", b"<?xml"))
