"""What the compilers of TPUs and of a GPU estimate, without the device: `python -m benchmarks --compile-for`.

XLA compiles for a device that is described to it. Nothing runs: the figures are those of the compiled program. `make
compilers` makes environments with the compilers.
"""

import functools as ft
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import softjax
from softjax import Placement
from softjax.tools.targets import KINDS, Kind, missing, prepare

from .bench import MATRIX_FORMS, OURS, Row, placed_linear, placed_mixture
from .costs import Estimate, Product, estimate

RESULTS = Path("benchmarks") / "results"
PRODUCTS, ALL_SCORES = "bare products", "softjax, all scores"


# ---------------------------------------------------------------------------------------------
# The rows


class Comparison(NamedTuple):
    """A row and the contestant that the others are compared with."""

    row: Row
    reference: str


def _traced_under(precision: str, function: Callable) -> Callable:
    """The function with JAX's default precision of products, whatever the caller's default is."""

    def under(*arguments):
        with jax.default_matmul_precision(precision):
            return function(*arguments)

    return under


def _contestants(precision, others, ours, places):
    """All contestants; placements that are the same share a function, which is compiled once."""
    of_place = {place: _traced_under(precision, ours(place)) for place in places.values()}
    others = {name: _traced_under(precision, function) for name, function in others.items()}
    return others | {name: of_place[place] for name, place in places.items()}


def _linear(n: int, d: int, k: int, dtype: str, places: dict[str, Placement | None]) -> Comparison:
    x, w = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((d, k), dtype)

    def theirs(x, w, y):
        logits = (x @ w).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def bare(x, w, _):
        z = x @ w
        return z @ w.T, x.T @ z

    def ours(place):
        return jax.value_and_grad(placed_linear(place, "mean", "default"), (0, 1))

    others = {PRODUCTS: bare, "optax": jax.value_and_grad(theirs, (0, 1))}
    contestants = _contestants("default", others, ours, places)
    arguments = (x, w, jax.ShapeDtypeStruct((n,), "int32"))
    return Comparison(Row(f"cross entropy, {dtype}, N={n} D={d} K={k}", arguments, contestants), "optax")


def _mixture(kind: str, n: int, k: int, d: int, e: int, places: dict[str, Placement | None]) -> Comparison:
    def bare(z, x, c, v):
        h, t = z @ c.T, x @ v.T
        return h @ c, h.T @ z, t @ v, t.T @ x

    gradients = ft.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    others = {PRODUCTS: bare, "matrix form": gradients(MATRIX_FORMS[kind])}
    contestants = _contestants("highest", others, lambda place: gradients(placed_mixture(kind, place)), places)
    arguments = tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in ((n, d), (n, e), (k, d), (k, e)))
    row = Row(f"mixture {kind}, float32, N={n} K={k} D={d} E={e}", arguments, contestants)
    return Comparison(row, "matrix form")


def comparisons(kind: Kind | None, small: bool = False) -> Iterator[Comparison]:
    """The rows, for a device to compile for or, with None, for the device that runs; with `small`, of small sizes."""
    size = lambda n: max(8, n // 64) if small else n

    def places(n, k, d, dtype):
        platform = jax.default_backend() if kind is None else kind.platform
        blocks = 8192 if platform == "gpu" else 2048
        chosen = None
        if kind is not None:
            options = {"platform": platform, "memory": kind.gibibytes * 2**30 // 10}  # as `softjax.placement` takes
            chosen = softjax.placement(n, k, d, reduction="mean", dtype=dtype, **options)  # type: ignore[arg-type]
        blocks = min(blocks, max(k // 4, 1))
        return {
            OURS: chosen,
            ALL_SCORES: Placement(n, k, "forward"),
            f"softjax, blocks of {blocks}": Placement(n, blocks, "forward", 0),
        }

    layers = [(8192, 4096, 131072, "bfloat16"), (8192, 2304, 256000, "bfloat16"), (4096, 2048, 32768, "float32")]
    for n, d, k, dtype in layers:
        n, d, k = map(size, (n, d, k))
        yield _linear(n, d, k, dtype, places(n, k, d, dtype))
    for n, k, d, e in ((4096, 4096, 16, 64), (16384, 65536, 64, 256)):
        n, k, d, e = map(size, (n, k, d, e))
        for of in ("autoencoder", "EOL"):
            yield _mixture(of, n, k, d, e, places(n, k, d, "float32"))


def estimates(kind: Kind, row: Row) -> dict[str, Estimate]:
    """The estimates of the contestants of a row."""
    of_function = {f: estimate(kind, f, row.arguments) for f in dict.fromkeys(row.contestants.values())}
    return {name: of_function[f] for name, f in row.contestants.items()}


# ---------------------------------------------------------------------------------------------
# The report


def run(name: str, folder: Path | None = None, small: bool = False) -> int:
    """Compiles and prints; writes `<name>-compiled.json` and `.md`, for small sizes only if a folder is given.

    Returns the exit code.
    """
    kind = KINDS[name]
    package = missing(kind)
    if package is not None:
        message = f"To compile for {name}, {package} is needed: `make compilers` makes an environment with it."
        print(message, file=sys.stderr)
        return 1
    prepare()
    folder = folder or (None if small else RESULTS)
    console = Console(width=None if Console().is_terminal else 140)
    versions = _versions(kind)
    console.print(_sentence(name, versions), soft_wrap=True)
    entries = []
    for comparison in comparisons(kind, small):
        with console.status(comparison.row.name):
            results = estimates(kind, comparison.row)
        entries.append(_entry(kind, comparison, results))
        console.print(_as_table(kind, entries[-1]))
        if folder is not None:  # after each row: all of them take a TPU's compiler up to an hour
            _write(name, folder, versions, entries)
    return 0


def _write(name: str, folder: Path, versions: dict[str, str], entries: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"kind": name, "estimate": True, "versions": versions, "rows": entries}
    (folder / f"{name}-compiled.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / f"{name}-compiled.md").write_text(_markdown(KINDS[name], _sentence(name, versions), entries))


def _versions(kind: Kind) -> dict[str, str]:
    compiler = ("libtpu",) if kind.platform == "tpu" else ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in ("jax", "jaxlib", "optax", *compiler) if name in installed}


def _sentence(name: str, versions: dict[str, str]) -> str:
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    what = "cycles are the compiler's own estimate" if KINDS[name].platform == "tpu" else (
        "times are the roofline of the compiled program: of each operation, the longer of its bytes at 3.35 TB/s and "
        "its products at 989 (bfloat16), 495 (TF32) or 67 (float32) TFLOP/s"
    )  # fmt: skip
    return (
        f"Programs compiled for {name}: an estimate of the compiler; nothing was run. The {what}. Made by {packages}."
    )


def _entry(kind: Kind, comparison: Comparison, results: dict[str, Estimate]) -> dict[str, Any]:
    reference = results[comparison.reference]
    unit = "cycles" if kind.platform == "tpu" else "seconds"
    of = {
        name: {
            unit: result.cost,
            "ratio": result.cost / reference.cost,
            "temporaries": result.temporaries,
            "ratio of temporaries": result.temporaries / max(reference.temporaries, 1),
            "products": _summary(result.products),
        }
        for name, result in results.items()
    }
    return {"name": comparison.row.name, "reference": comparison.reference, "results": of}


def _summary(products: tuple[Product, ...]) -> list[str]:
    """The units with the types that they multiply, each once."""
    times = lambda passes: f", {passes} passes" if passes > 1 else ""
    found = {f"{p.unit}{times(p.passes)}: {' x '.join(dict.fromkeys(p.types))}" for p in products}
    return sorted(found)


def _headings(kind: Kind, reference: str) -> list[str]:
    cost = "cycles, millions" if kind.platform == "tpu" else "roofline, ms"
    return ["", cost, f"/ {reference}", "temporaries, GB", f"/ {reference}", "products"]


def _cells(kind: Kind, name: str, result: dict[str, Any]) -> list[str]:
    cost = f"{result['cycles'] / 1e6:.1f}" if kind.platform == "tpu" else f"{result['seconds'] * 1e3:.2f}"
    memory = f"{result['temporaries'] / 1e9:.3f}", f"{result['ratio of temporaries']:.3f}"
    return [name, cost, f"{result['ratio']:.3f}", *memory, "; ".join(result["products"])]


def _as_table(kind: Kind, entry: dict[str, Any]) -> Table:
    table = Table(*_headings(kind, entry["reference"]), title=entry["name"], title_justify="left")
    for name, result in entry["results"].items():
        table.add_row(*_cells(kind, name, result))
    return table


def _markdown(kind: Kind, sentence: str, entries: list[dict[str, Any]]) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |\n"
    text = f"{sentence}\n"
    for entry in entries:
        headings = _headings(kind, entry["reference"])
        text += f"\n**{entry['name']}**\n\n{line(headings)}{line(['---'] * len(headings))}"
        text += "".join(line(_cells(kind, name, result)) for name, result in entry["results"].items())
    return text
