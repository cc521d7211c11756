"""What the benchmarks draw: lines with their names at their ends, and bars of the contestants of each row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from softjax.tools.pictures import OTHERS, OURS, Ink, bars, number, panels, styled


def inks(names: Iterable[str], ours: str = "softjax") -> dict[str, Ink]:
    """An ink for each name, the library's own for `ours`."""
    others = [name for name in names if name != ours]
    return {ours: OURS} | {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}


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
