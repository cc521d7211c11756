"""Memory and time against the number of classes, beside optax: `python -m benchmarks --chart`.

The value and both gradients of a mean cross entropy of a linear layer, in float32. At each number of classes the two
take turns, as in `bench`.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from softjax.tools import pictures
from softjax.tools.machine import machine

from . import bench, drawings
from .compilers import RESULTS

EXAMPLES, FEATURES = 2048, 256
CLASSES = (4096, 8192, 16384, 32768, 65536)
CONTESTANTS = (bench.OURS, "optax")


def run(rounds: int, folder: Path | None, small: bool) -> int:
    """Measures and draws; writes `classes.json` and `.png`, for small sizes only if a folder is given.

    Returns the exit code.
    """
    folder = folder or (None if small else RESULTS)
    figures = measured(rounds, small, Console(width=None if Console().is_terminal else 140))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.json").write_text(json.dumps(figures, indent=1) + "\n")
        pictures.save(drawn(figures), folder / "classes.png")
        print(f"Figures: {folder / 'classes'}.json and .png")
    return 0


def measured(rounds: int, small: bool, console: Console) -> dict[str, Any]:
    """The figures of all numbers of classes: of each contestant, lists of seconds and of bytes of temporaries."""
    n, d, classes = (64, 16, (64, 128, 256)) if small else (EXAMPLES, FEATURES, CLASSES)
    results: dict[str, dict[str, list]] = {name: {"seconds": [], "temporaries": []} for name in CONTESTANTS}
    for k in classes:
        row = bench.linear_row((n, d, k), "mean", ())
        row = row._replace(contestants={name: row.contestants[name] for name in CONTESTANTS})
        with console.status(row.name):
            found = bench.measure(row, rounds)
        console.print(bench.table(row, found))
        for name, result in found.items():
            results[name]["seconds"].append(result.seconds)
            results[name]["temporaries"].append(result.temporaries)
    sizes = {"examples": n, "features": d, "classes": list(classes), "rounds": rounds}
    return {"machine": machine(), "small": small} | sizes | {"results": results}


@pictures.styled()
def drawn(figures: dict[str, Any]) -> Figure:
    """Two panels with linear axes from 0 on, memory first."""
    figure, ((memory, time),) = pictures.panels(1, 2, 10, 3.6)
    classes, results, host = figures["classes"], figures["results"], figures["machine"]
    in_units = {"temporaries": (memory, 1e6, "MB"), "seconds": (time, 1e-3, "ms")}
    for quantity, (axes, size, unit) in in_units.items():
        series = {name: [value / size for value in result[quantity]] for name, result in results.items()}
        drawings.curves(axes, classes, series, unit=unit)
        axes.set_xlabel("classes K")
        axes.set_xticks(classes[-3:])
    memory.set_title("Memory beside arguments and gradients, MB")
    time.set_title("Time, ms")
    figure.supxlabel(
        f"linear cross entropy, mean, with both gradients: N={figures['examples']} D={figures['features']}, float32, "
        f"{host['processor']}, {host['cores']} cores",
        size=8,
    )
    return figure
