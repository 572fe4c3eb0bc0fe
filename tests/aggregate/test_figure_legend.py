"""A figure of many lines has room for its legend."""

import warnings

import pytest

from aggregate.figures.style import add_legend, new_figure


@pytest.mark.parametrize(("lines", "below"), [(3, False), (16, False), (17, True), (60, True)])
def test_the_legend_of_many_lines_stands_below_them(lines, below):
    figure, axes = new_figure("x", trained=True)
    for n in range(lines):
        axes.plot([0, 1], [n, n + 1], label=f"a method with a long name, and a variant {n}")
    add_legend(figure, axes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    assert (bool(figure.legends), axes.get_legend() is None) == (below, below)
    assert (figure.get_size_inches()[1] > 4.5) == below
    box = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    assert box.height > 2.5, "the lines keep their room"
    if below:
        [legend] = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [line.get_label() for line in axes.get_lines()]
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
