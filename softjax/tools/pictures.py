"""The style of all pictures: units on every axis, names beside the lines, readable in black and white.

In a notebook, `plt.rcParams.update(pictures.STYLE)` gives pictures of one's own the same look.
"""

import functools as ft
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

FAINT, TEXT = "#d0d0d0", "#303030"
STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": "gray_r",
}
styled = ft.partial(matplotlib.rc_context, STYLE)  # a context manager, and with parentheses a decorator


class Ink(NamedTuple):
    """How one contestant is drawn. Colours differ in lightness too, and lines in dashes and markers."""

    colour: str
    line: str
    marker: str


OURS = Ink("#12457f", "-", "o")
OTHERS = (Ink("#d9822b", "--", "s"), Ink("#7a7a7a", ":", "^"), Ink("#3f9c86", "-.", "D"), Ink("#a5a5a5", "-", "v"))


def inks(names: Iterable[str], ours: str = "softjax") -> dict[str, Ink]:
    """An ink for each name, the library's own for `ours`."""
    others = [name for name in names if name != ours]
    return {ours: OURS} | {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}


def panels(rows: int = 1, columns: int = 1, width: float = 8.5, height: float = 3.4, **options: Any) -> Any:
    """(a figure, its axes [rows, columns]); the size in inches. Works without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def number(value: float) -> str:
    """A number with three digits and no exponent: 0.0123, 12.3, 1,230."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if "e" in digits and value else digits


def curves(
    axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float]], *, ours: str = "softjax", unit: str = ""
) -> None:
    """Draws a line per series, from 0 up, with the name and the last number at its right end."""
    of = inks(series, ours)
    for name, values in series.items():
        ink = of[name]
        axes.plot(x, values, ink.line, color=ink.colour, marker=ink.marker, label=name, clip_on=False)
    axes.set_ylim(0)
    axes.set_xlim(0, max(x))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    top = axes.get_ylim()[1]
    ends = {name: values[-1] / top for name, values in series.items()}
    for name, height in _apart(ends, 0.09).items():
        text = f"{name} {number(series[name][-1])} {unit}".rstrip()
        weight = "bold" if name == ours else "normal"
        axes.text(
            1.03, height, text, transform=axes.transAxes, va="center", color=of[name].colour, weight=weight
        )  # fmt: skip


def _apart(heights: Mapping[str, float], least: float) -> dict[str, float]:
    """The heights moved up where needed, so that neighbours are at least so far apart."""
    moved: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        moved[name] = max([height, *(other + least for other in moved.values())])
    return moved


def bars(axes: Axes, values: Mapping[str, float | None], unit: str, *, ours: str = "softjax") -> None:
    """Draws a horizontal bar for each name, from 0 on, with its number and unit; None is drawn as "not measured"."""
    known = {name: value for name, value in values.items() if value is not None}
    for place, name in enumerate(values):
        value = known.get(name, 0.0)
        colour = OURS.colour if name == ours else "#c4c4c4"
        axes.barh(place, value, 0.72, color=colour, edgecolor=TEXT, linewidth=0.4)
        text = f"{number(value)} {unit}" if name in known else "not measured"
        axes.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(values)), list(values), size=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == ours else "normal")
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max([*known.values(), 1e-30]))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)


UNITS = {"temporaries": ((1e9, "GB"), (1e6, "MB")), "seconds": ((1.0, "s"), (1e-3, "ms"))}


def in_unit(quantity: str, values: Mapping[str, float | None]) -> tuple[dict[str, float | None], str]:
    """(bytes or seconds in the largest unit in which the largest value is at least 10, the name of the unit)."""
    most = max((value for value in values.values() if value is not None), default=0.0)
    size, unit = next((u for u in UNITS[quantity] if most >= 10 * u[0]), UNITS[quantity][-1])
    return {name: None if value is None else value / size for name, value in values.items()}, unit


@styled()
def comparison(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Memory and time of the contestants of each row, every panel with a scale of its own, from 0 on.

    Rows are those of the reports: a name and, of each contestant, seconds and the bytes of temporaries.
    """
    shown = [row for row in rows if row.get("results")]
    sizes = [len(row["results"]) for row in shown]
    height = 0.21 * sum(sizes) + 0.42 * len(shown) + 0.7
    figure, axes = panels(len(shown), 2, 9.5, height, height_ratios=[n + 1 for n in sizes])
    for place, row in enumerate(shown):
        for column, quantity in enumerate(("temporaries", "seconds")):
            values = {name: result.get(quantity) for name, result in row["results"].items()}
            bars(axes[place, column], *in_unit(quantity, values))
        axes[place, 0].set_title(row["name"], size=9)
        axes[place, 1].tick_params(labelleft=False)
    figure.suptitle(f"{title}\nleft: temporaries; right: time", size=10, x=0.01, ha="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file, with the resolution of the style."""
    with styled():
        figure.savefig(path)
