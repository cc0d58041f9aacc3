"""Pictures come as PNG and SVG, the same picture as the same bytes, and a legend lies inside its figure."""

import sys

import pytest
from matplotlib.colors import to_rgb

from gkd_plugin.diagnose.figures import GROUPS, PALETTE, LeftOut, add_legend, new_figure, save_figure
from gkd_plugin.errors import ConfigError


def line(folder, values):
    figure, ((axis,),) = new_figure(3, 2)
    axis.plot(values)
    save_figure(figure, folder, "line")
    return [(folder / f"line.{suffix}").read_bytes() for suffix in ("png", "svg")]


def test_both_formats_and_the_same_bytes_and_no_window(tmp_path):
    png, svg = line(tmp_path, [1, 2])
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert line(tmp_path, [1, 2]) == [png, svg]
    assert line(tmp_path, [2, 1])[0] != png
    assert not {f"matplotlib.backends.backend_{kit}" for kit in ("tkagg", "qtagg")} & set(sys.modules)


def test_the_grid_is_rows_of_axes():
    figure, axes = new_figure(4, 2, rows=2, columns=3)
    assert [len(row) for row in axes] == [3, 3]
    assert tuple(figure.get_size_inches()) == (4, 2)


@pytest.mark.parametrize("panels", [2, 3])
@pytest.mark.parametrize(
    ("names", "fewest_rows"),
    [
        (list("0123456789"), 1),
        ([f"american_bulldog_{k}" for k in range(10)], 2),
        ([f"{k} {'long ' * 30}" for k in range(10)], 4),
        (["one"], 1),
    ],
)
def test_a_legend_lies_inside_the_figure_and_off_the_axes(panels, names, fewest_rows):
    figure, ((*axes,),) = new_figure(3.4 * panels, 4.2, columns=panels)
    for name, colour in zip(names, PALETTE, strict=False):
        axes[0].scatter([0, 1], [1, 0], color=colour, label=name)
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(figure, handles, labels)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert box.y1 <= min(axis.get_tightbbox().y0 for axis in axes)
    assert len(legend.get_texts()) == len(names)
    rows = -(-len(names) // legend._ncols)
    assert rows >= fewest_rows
    assert panels < 3 or rows <= fewest_rows + 1
    assert figure.get_figheight() == pytest.approx(4.2 + 0.2 * (rows - 1))  # the axes do not shrink


def test_colours_differ():
    assert len({to_rgb(colour) for colour in PALETTE}) == 10
    assert len(set(GROUPS.values())) == 2


def test_a_part_that_is_left_out_is_no_error_of_the_users():
    assert not issubclass(LeftOut, ConfigError | OSError)
