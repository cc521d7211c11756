"""The pictures of the benchmarks: what is drawn is what was measured, with units and without colours alone."""

import base64
import itertools
import json
import pathlib

import matplotlib.colors
import pytest

import softjax
from benchmarks import __main__, chart, drawings
from softjax.tools import pictures

REPORT = pathlib.Path(softjax.__file__).parents[1] / "benchmarks" / "results" / "cpu-2-cores.json"


def rows():
    return json.loads(REPORT.read_text())["rows"]


def drawn(axes):
    """(the widths of the bars, their numbers, the names beside them)."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return [bar.get_width() for bar in axes.patches], [text.get_text() for text in axes.texts], names


def test_every_contestant_has_its_memory_and_its_time_in_units():
    figure = drawings.comparison(rows(), "a title")
    results = rows()[1]["results"]  # the second row, which takes less than ten seconds
    widths, numbers, names = drawn(figure.axes[2])
    assert names == list(results)
    wanted = [(r["temporaries"] or 0) / 1e6 for r in results.values()]
    assert widths == pytest.approx(wanted)
    assert numbers[0] == f"{wanted[0]:.3g} MB"
    assert numbers[-1] == "not measured"
    widths, numbers, _ = drawn(figure.axes[3])
    assert widths == pytest.approx([r["seconds"] * 1e3 for r in results.values()])
    assert all(text.endswith(" ms") for text in numbers)
    assert all(axes.get_xlim()[0] == 0 and axes.get_xscale() == "linear" for axes in figure.axes)


def test_rows_without_contestants_and_failures_are_drawn_too():
    row = {"name": "a row", "results": {"softjax": {"seconds": 2.0, "temporaries": 5e10}, "other": {"failed": "why"}}}
    figure = drawings.comparison([{"name": "a growth", "time": 4.0}, row], "a title")
    assert len(figure.axes) == 2
    assert drawn(figure.axes[0]) == ([50, 0], ["50 GB", "not measured"], ["softjax", "other"])
    assert drawn(figure.axes[1]) == ([2000, 0], ["2,000 ms", "not measured"], [])  # the names stand left


def test_bars_do_not_show_aims():
    """A bar's colour says whose it is: the same rows with and without limits give the same picture."""
    with_aims = drawings.comparison(rows(), "a title")
    without = drawings.comparison([row | {"limits": []} for row in rows()], "a title")
    colours = lambda figure: [bar.get_facecolor() for axes in figure.axes for bar in axes.patches]
    assert colours(with_aims) == colours(without)
    assert len(set(colours(with_aims))) == 2


def test_lines_are_named_at_their_ends_and_names_do_not_touch():
    with pictures.styled():
        _, ((axes,),) = pictures.panels()
        series = {"softjax": [1.0, 2.0, 3.0], "optax": [2.0, 3.0, 3.01], "other": [2.0, 2.5, 2.99]}
        drawings.curves(axes, [1, 2, 4], series, unit="MB")
    assert {text.get_text() for text in axes.texts} == {"softjax 3 MB", "optax 3.01 MB", "other 2.99 MB"}
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 0.089
    assert axes.get_ylim()[0] == 0


def test_inks_differ_without_colour():
    inks = list(drawings.inks(["softjax", "a", "b", "c", "d"]).values())
    assert inks[0] == pictures.OURS
    assert len({(ink.line, ink.marker) for ink in inks}) == len(inks)
    grey = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (matplotlib.colors.to_rgb(i.colour) for i in inks)]
    assert all(level > grey[0] + 0.2 for level in grey[1:])  # the others are lighter


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0123, "0.0123"), (12.34, "12.3"), (1234.5, "1,234"), (2.5e-5, "0.000025")]
)
def test_numbers_have_three_digits(value, text):
    assert pictures.number(value) == text


def test_a_picture_is_written(tmp_path):
    pictures.save(drawings.comparison(rows(), "a title"), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))


FIGURES = {
    "machine": {"processor": "a processor", "cores": 2},
    "examples": 2048,
    "features": 256,
    "classes": [4096, 8192],
    "results": {
        "softjax": {"seconds": [0.1, 0.2], "temporaries": [10**6, 2 * 10**6]},
        "optax": {"seconds": [0.1, 0.25], "temporaries": [10**7, 10**8]},
    },
}


def test_the_chart_shows_memory_first_and_both_from_0():
    memory, time = chart.drawn(FIGURES).axes
    assert [list(line.get_ydata()) for line in memory.lines] == [[1, 2], [10, 100]]
    assert [list(line.get_ydata()) for line in time.lines] == [[100, 200], [100, 250]]
    assert {text.get_text() for text in memory.texts} == {"softjax 2 MB", "optax 100 MB"}
    assert {text.get_text() for text in time.texts} == {"softjax 200 ms", "optax 250 ms"}
    assert all(axes.get_ylim()[0] == axes.get_xlim()[0] == 0 for axes in (memory, time))
    assert [line.get_linestyle() for line in memory.lines] == ["-", "--"]


def test_the_chart_is_measured_and_written_to_a_folder_that_is_given(tmp_path, monkeypatch, capsys):
    command = ["--chart", "--small", "--rounds", "1"]
    assert __main__.main([*command, "--folder", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "classes.json").read_text())
    assert list(figures["results"]) == ["softjax", "optax"]
    for result in figures["results"].values():
        assert len(result["seconds"]) == len(result["temporaries"]) == len(figures["classes"]) == 3
        assert all(seconds > 0 for seconds in result["seconds"])
    assert (tmp_path / "classes.png").read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chart, "measured", lambda *_: FIGURES)
    assert __main__.main(command) == 0
    assert not (tmp_path / "benchmarks").exists()
    assert "Figures: " in capsys.readouterr().out
