"""The style of all pictures: units on every axis, names beside the lines, readable in black and white.

In a notebook, `plt.rcParams.update(pictures.STYLE)` gives pictures of one's own the same look.
"""

import functools as ft
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file, with the resolution of the style."""
    with styled():
        figure.savefig(path)
