"""Every picture comes as PNG and SVG, and the same picture as the same bytes."""

import sys

from matplotlib.colors import to_rgb

from gkd_plugin.diagnose.figures import GROUPS, PALETTE, new_figure, save_figure


def line(folder, values):
    figure, ((axis,),) = new_figure(3, 2)
    axis.plot(values)
    save_figure(figure, folder, "line")
    return [(folder / f"line.{suffix}").read_bytes() for suffix in ("png", "svg")]


def test_both_formats_and_the_same_bytes(tmp_path):
    png, svg = line(tmp_path, [1, 2])
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert line(tmp_path, [1, 2]) == [png, svg]
    assert line(tmp_path, [2, 1])[0] != png


def test_the_grid_is_rows_of_axes():
    figure, axes = new_figure(4, 2, rows=2, columns=3)
    assert [len(row) for row in axes] == [3, 3]
    assert tuple(figure.get_size_inches()) == (4, 2)


def test_no_window_is_opened(tmp_path):
    line(tmp_path, [1])
    backends = [name for name in sys.modules if name.startswith("matplotlib.backends.backend_")]
    assert not {"matplotlib.backends.backend_tkagg", "matplotlib.backends.backend_qtagg"} & set(backends)


def test_colours_differ():
    assert len({to_rgb(colour) for colour in PALETTE}) == 10
    assert len(set(GROUPS.values())) == 2
