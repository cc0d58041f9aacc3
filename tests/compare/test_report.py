import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from gkd_plugin import cli
from gkd_plugin.compare.report import SCORES, comparison_table, draw_settings, paired_difference, write_csv
from gkd_plugin.compare.setting import Setting
from tests.compare.fakes import CE, HALF, RESULTS, finished

ONE_SETTING = [result for result in RESULTS if result.cell.setting == HALF]


def test_the_command_takes_these_scores():
    assert cli.SCORES == SCORES


def seeds(*values):
    return {(seed, None): value for seed, value in enumerate(values)}


def test_only_seeds_that_both_have_are_paired():
    difference = paired_difference(seeds(5.0, 7.0, 100.0), {(1, None): 4.0, (0, None): 4.0, (3, None): -100.0})
    assert (difference.value, difference.error) == (2.0, pytest.approx(1.0))
    assert paired_difference({(0, None): 1.0}, {(1, None): 1.0}) is None


def test_tasks_are_paired_with_their_seeds():
    """Differences: task 0: 1 and 3, task 1: 5 (its other seed failed): 2 and 5."""
    ours = {(0, 0): 11.0, (1, 0): 13.0, (0, 1): 15.0}
    difference = paired_difference(ours, {(0, 0): 10.0, (1, 0): 10.0, (0, 1): 10.0, (1, 1): 0.0})
    assert difference.value == 3.5
    assert difference.p_value == pytest.approx(stats.ttest_1samp([2.0, 5.0], 0).pvalue)


def test_no_p_value_of_one_pair_or_of_equal_differences():
    """Equal, whatever their last bits say."""
    one, equal = paired_difference(seeds(2.0), seeds(1.0, 2.0)), paired_difference(seeds(26.7, 27.1), seeds(25.0, 25.4))
    assert (one.value, one.error, one.p_value) == (1.0, None, None)
    assert (equal.value, equal.p_value) == (pytest.approx(1.7), None)


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


def test_without_the_control_there_is_no_difference():
    table = comparison_table([result for result in RESULTS if result.cell.method is not CE], "top1")
    assert "− ce" not in table
    assert "\ntop1 in %, mean ± standard error over seeds (the teacher is the same in all)\n" in table
    assert table.splitlines()[0].split("  ")[0] == "method"


def test_another_score():
    table = comparison_table(RESULTS, "ncm_top1")
    assert "31.0 ± 0.6" in table
    assert "no ncm_top1" in table


def test_lost_pairs_are_told():
    lost = [result for result in ONE_SETTING if (result.cell.method, result.cell.seed) != (CE, 2)]
    assert "2 of 3 paired" in comparison_table(lost, "top1")
    assert "paired" not in comparison_table(ONE_SETTING, "top1").splitlines()[3]


def test_tasks_are_told_with_their_confidence_interval():
    """Tasks of 60, 64 and 68 after the mean of two seeds: 64 ± 4.303 · 4/√3."""
    tops = [(task, seed, top1 + 2 * seed - 1) for task, top1 in enumerate([60.0, 64.0, 68.0]) for seed in (0, 1)]
    table = comparison_table([finished(CE, HALF, seed, top1, task) for task, seed, top1 in tops], "top1")
    assert "64.0 ± 9.9" in table
    assert "mean ± 95 % confidence over tasks" in table


@pytest.mark.parametrize(("task", "note"), [(None, "one seed"), (0, "one task")])
def test_one_repetition_has_no_error(task, note):
    one = [replace(result, cell=replace(result.cell, task=task)) for result in RESULTS if result.cell.seed == 0]
    assert comparison_table(one, "top1").splitlines()[5].startswith(f"top1 in %, {note}; − ce: ")


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
