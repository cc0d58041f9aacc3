import numpy as np
import pytest

from gkd_plugin.compare.plot import draw_settings, plot_names, settings_figure
from gkd_plugin.compare.setting import Setting
from tests.compare.results import CE, HALF, RESULTS, finished


def drawn(figure):
    """Title → places, means, lower and upper ends of the error bars, ``[4, N]``."""
    (axes,) = figure.axes
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        found[container.get_label()] = np.vstack([line.get_xydata().T, ends.T]).astype(float)
    return found


def test_the_plot_shows_the_table():
    """60, 62, 64 and 61, 64, 67 at 50 %: errors 2/√3 and 3/√3; a single run has no bar; KD has no result."""
    figure = settings_figure(RESULTS, "top1")
    got, (two, three) = drawn(figure), (2 / 3**0.5, 3 / 3**0.5)
    assert list(got) == ["cross-entropy", "ReFilled (TPAMI)"]
    np.testing.assert_allclose(got["cross-entropy"], [[50, 100], [62, 50], [62 - two, 50], [62 + two, 50]])
    np.testing.assert_allclose(got["ReFilled (TPAMI)"], [[50, 100], [64, 57], [64 - three, 57], [64 + three, 57]])
    (axes,) = figure.axes
    assert axes.get_xlabel() == "overlap of the teacher's and the student's classes in %"
    assert axes.get_ylabel() == "top1 in % (mean ± standard error over seeds)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(got)


def test_the_files(tmp_path):
    files = draw_settings(RESULTS, "top1", tmp_path)
    assert [file.name for file in files] == ["top1_against_overlap.png", "top1_against_overlap.svg"]
    assert {file.name for file in files} <= set(plot_names())
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_text("utf-8").lstrip().startswith("<?xml")


def test_where_nothing_varies_each_method_has_a_dot(tmp_path):
    """As on a folder of one's own; KD has no result."""
    one = [result for result in RESULTS if result.cell.setting == HALF]
    figure = settings_figure(one, "top1")
    got, (two, three) = drawn(figure), (2 / 3**0.5, 3 / 3**0.5)
    assert list(got) == [text.get_text() for text in figure.axes[0].get_xticklabels()]
    np.testing.assert_allclose(got["cross-entropy"].T, [[0, 62, 62 - two, 62 + two]])
    np.testing.assert_allclose(got["ReFilled (TPAMI)"].T, [[1, 64, 64 - three, 64 + three]])
    draw_settings(RESULTS, "ncm_top1", tmp_path)
    files = draw_settings(one, "top1", tmp_path)
    assert [file.name for file in files] == ["top1_of_methods.png", "top1_of_methods.svg"]
    assert set(tmp_path.iterdir()) == set(files)  # nothing stale
    assert {file.name for file in files} <= set(plot_names())


@pytest.mark.parametrize(
    ("results", "score"),
    [
        ([finished(CE, setting, 0, 1.0) for setting in (Setting(50.0, memory=0), Setting(100.0, memory=5))], "top1"),
        (RESULTS, "top5"),
        ([], "top1"),
    ],
    ids=["two things that vary", "no cell with the score", "no cell"],
)
def test_what_cannot_be_drawn(results, score, tmp_path):
    draw_settings(RESULTS, "ncm_top1", tmp_path)
    assert settings_figure(results, score) is None
    assert draw_settings(results, score, tmp_path) == []
    assert list(tmp_path.iterdir()) == []  # nothing stale either
