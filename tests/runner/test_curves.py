"""The curves show the figures of a run, and a run does without them where they cannot be drawn."""

import logging
import sys
from types import ModuleType

from matplotlib.colors import to_hex

from gkd_plugin.runner.curves import PALETTE, TEACHER, draw_curves
from gkd_plugin.runner.run import _draw_curves
from gkd_plugin.runner.run_folder import RunFolder


def rows(*losses, **others):
    clocks = {"seconds": 1.0, "images_per_second": 9.0, "waiting": 0.1}
    return [{"stage": "x", "lr": 0.1, **clocks, "loss": loss, **others} for loss in losses]


EMBEDDING = [*rows(9.0, 8.0, tuples=3.0, relationship=0.5), {**rows(7.0)[0], "ncm_top1": 60.0}]
STAGES = {"stage1": {"epochs": EMBEDDING}, "stage2": {"epochs": rows(2.0, 1.0, top1=70.0, top5=90.0, ncm_top5=3.0)}}
TWO_STAGES = {"stages": STAGES, "final": {"on": "test", "top1": 72.0}, "teacher": {"ncm_top1": 80.0, "top1": 81.0}}
PLAIN = {"stages": {"train": {"epochs": rows(3.0, 0.0, top1=50.0)}}, "final": {"on": "validation", "top1": 50.0}}


def lines(axis):
    """Label → (x, y), without the borders of stages."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.lines if line.get_label()[0] != "_"}


def test_terms_and_accuracies_over_the_epochs_of_all_stages():
    loss, accuracy, lr = draw_curves({"own": TWO_STAGES}).axes
    assert lines(loss) == {
        "total, weighted": ([1, 2, 3, 4, 5], [9.0, 8.0, 7.0, 2.0, 1.0]),
        "relationships between images": ([1, 2], [0.5, 0.5]),
    }
    drawn = lines(accuracy)
    assert list(drawn.values())[:3] == [([4, 5], [70.0] * 2), ([3], [60.0]), ([5], [72.0])]
    assert [line[1] for line in list(drawn.values())[3:]] == [[80.0] * 2, [81.0] * 2]  # across
    assert [line[1] for line in lines(lr).values()] == [[0.1] * 5]
    assert [text.get_text() for text in loss.texts] == ["stage1", "stage2"]
    borders = [line.get_xdata() for line in lr.lines if line.get_label()[0] == "_"]
    assert (borders, loss.get_yscale()) == ([[3.5, 3.5]], "log")


def test_runs_side_by_side_have_one_colour_each_and_a_shared_teacher_one_line():
    loss, accuracy, lr = draw_curves({"a": TWO_STAGES, "b": PLAIN, "c": TWO_STAGES}).axes
    assert (list(lines(loss)), list(lines(lr)), loss.get_yscale()) == (["a", "b", "c"], ["a", "b", "c"], "linear")
    for axis in (loss, lr):
        assert [to_hex(line.get_color()) for line in axis.lines] == list(PALETTE[:3])
    assert len([line for line in accuracy.lines if line.get_color() == TEACHER]) == 2
    assert not [text for axis in (loss, accuracy, lr) for text in axis.texts]


def test_the_accuracy_of_a_kept_epoch_stands_there():
    kept = {"stage": "stage2", "epoch": 1, "val_top1": 70.0}
    axis = draw_curves({"own": {**TWO_STAGES, "kept": kept}}).axes[1]
    (star,) = [line for line in axis.lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([4], [72.0])  # the first after the three of stage1


def test_a_run_without_a_figure_is_drawn():
    draw_curves({"own": {"stages": {}}})


def unknown_backend(_):
    raise ValueError("Key backend: 'nonsense' is not a valid value")  # of matplotlib, for MPLBACKEND=nonsense


def test_a_run_does_without(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    (tmp_path / "curves.png/x").mkdir(parents=True)
    _draw_curves(RunFolder(tmp_path), PLAIN)
    monkeypatch.delitem(sys.modules, "gkd_plugin.runner.curves")
    for module in (None, ModuleType("matplotlib.figure")):
        if module is not None:
            module.__getattr__ = unknown_backend
        monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
        _draw_curves(RunFolder(tmp_path), PLAIN)
    unwritten, missing, unknown = caplog.records
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert "'nonsense'" in unknown.getMessage()
    assert f"{tmp_path}/curves.png" in unwritten.getMessage()
    assert "gkd-plugin[report]" in missing.getMessage()
