"""Time and temporaries of value and all gradients, beside other implementations: `python -m benchmarks`.

The contestants of a row take turns, so that other load on the machine slows all of them. In its turn each runs twice,
and the second run is timed. Ratios are ratios of medians.
"""

import functools as ft
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from rich.console import Console
from rich.table import Table

import softjax
from softjax import Placement, linear_softmax_cross_entropy, losses
from softjax.compute.placement import BlockSize
from softjax.tools.machine import machine

from . import peers

OURS = "softjax"


class Limit(NamedTuple):
    """An aim: the largest ratio of our time or temporaries to a contestant's."""

    contestant: str
    what: str
    """the quantity: "time" or "temporaries" """
    most: float | None
    """None at small sizes, which have no aims"""


class Row(NamedTuple):
    """A computation, and the functions that are compared at it."""

    name: str
    arguments: tuple[Any, ...]
    contestants: dict[str, Callable]
    limits: tuple[Limit, ...] = ()
    rounds: int | None = None
    """the number of turns, if it is not the run's"""


class Result(NamedTuple):
    """The measurement of one contestant."""

    seconds: float
    """the median of the runs"""
    temporaries: int | None
    """bytes, as compiled; None if unknown"""
    runs: int


# ---------------------------------------------------------------------------------------------
# The rows


def _normal(key: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))


def _with_gradients(loss: Callable, count: int) -> Callable:
    """Value and gradients for the first `count` arguments; a loss per example is summed with weights."""

    def total(*args):
        out = loss(*args)
        if out.ndim == 0:
            return out
        return (out * jnp.linspace(0.5, 1.5, out.size).reshape(out.shape)).sum()

    return jax.value_and_grad(total, tuple(range(count)))


def linear_row(sizes: tuple[int, int, int], reduction: str, limits: tuple[Limit, ...]) -> Row:
    """The cross entropy of a linear layer, for sizes (N, D, K)."""
    n, d, k = sizes
    x, w = _normal(0, (n, d), (d, k))
    labels = jax.random.randint(jax.random.key(1), (n,), 0, k)
    mean = (lambda loss: loss.mean()) if reduction == "mean" else lambda loss: loss

    def formula(x, w, y):
        z = x @ w
        p = jnp.exp(z - z.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        return mean(-jnp.log(jnp.take_along_axis(p, y[:, None], -1)[:, 0]))

    def products(x, w, _):
        z = x @ w
        return z @ w.T, x.T @ z

    ours = lambda x, w, y: linear_softmax_cross_entropy(x, w, y, reduction=reduction)
    theirs = lambda x, w, y: mean(optax.softmax_cross_entropy_with_integer_labels(x @ w, y))
    contestants = {
        OURS: _with_gradients(ours, 2),
        "optax": _with_gradients(theirs, 2),
        "formula": _with_gradients(formula, 2),
        "3 products": products,
    }
    name = f"linear cross entropy, {reduction}, N={n} D={d} K={k}"
    return Row(name, (x, w / d**0.5, labels), contestants | peers.of_linear(reduction), limits)


def _mixture_losses(h: Callable, log_likelihood: Callable) -> dict[str, Callable]:
    """The mixture losses in plain JAX, for scores h(z, c) [N, K] and log-likelihoods [N, K] of x given v."""
    p = lambda z, c: jax.nn.softmax(h(z, c))
    a = jax.nn.logsumexp
    return {
        "autoencoder": lambda z, x, c, v: ((x - p(z, c) @ v) ** 2).sum(-1).mean(),
        "EOL": lambda z, x, c, v: -(p(z, c) * log_likelihood(x, v)).sum(-1).mean(),
        "LEOP": lambda z, x, c, v: (a(h(z, c), -1) - a(h(z, c) + log_likelihood(x, v), -1)).mean(),
    }


def _negative_distances(a, b):
    return -((a[:, None] - b[None]) ** 2).sum(-1)


# FORMULAS are those of the source texts, with each distance a sum of squared differences. MATRIX_FORMS are an expert's
# code: matrix products, without the terms of the scores that are the same for every class.
FORMULAS = _mixture_losses(_negative_distances, _negative_distances)
MATRIX_FORMS = _mixture_losses(
    lambda z, c: 2 * z @ c.T - (c**2).sum(-1),
    lambda x, v: 2 * x @ v.T - (v**2).sum(-1) - (x**2).sum(-1, keepdims=True),
)
MIXTURES = {
    "autoencoder": softjax.mixture_autoencoder_loss,
    "EOL": softjax.eol_loss,
    "LEOP": softjax.leop_loss,
}
_OF_DISTANCES = {"autoencoder": losses.mixture_autoencoder, "EOL": losses.eol, "LEOP": losses.leop}


def placed_linear(place: BlockSize, reduction: str, precision: str | None = None) -> Callable:
    """The cross entropy of a linear layer in a placement; None for the library's choice."""

    def loss(x, w, y):
        logits = softjax.linear(x, w, block_size=place, precision=precision)
        return softjax.softmax_cross_entropy_with_integer_labels(logits, y, reduction=reduction)

    return loss


def placed_mixture(kind: str, place: BlockSize) -> Callable:
    """The mean of a mixture loss in a placement; None for the library's choice."""
    if place is None:
        return ft.partial(MIXTURES[kind], reduction="mean")

    def loss(z, x, c, v):
        logits = softjax.distances(z, c, block_size=place)
        return softjax.of(_OF_DISTANCES[kind], logits, x, v, reduction="mean")

    return loss


def _products_of(kind: str) -> Callable:
    """The matrix products of a mixture loss and its gradients, each once."""

    def products(z, x, c, v):
        h, t = z @ c.T, x @ v.T
        of_values = (h @ v, h.T @ x) if kind == "autoencoder" else (t @ v, t.T @ x)
        return t, h @ c, h.T @ z, *of_values

    return products


def _mixture_rows(kind: str, sizes: tuple[int, int, int, int], most: dict[str, float]) -> Iterator[Row]:
    """The mean and the losses of each example, with all gradients, and the mean alone."""
    n, k, d, e = sizes
    mean, of_each = ft.partial(MIXTURES[kind], reduction="mean"), lambda *args: MIXTURES[kind](*args).mean()
    with_gradients = lambda f: jax.value_and_grad(f, (0, 1, 2, 3))
    plain = {"matrix form": with_gradients(MATRIX_FORMS[kind]), "6 products": _products_of(kind)}
    by_formula = {"formula": with_gradients(FORMULAS[kind])} | peers.of_mixture(kind)
    limits = [Limit(peer, "time", ratio) for peer, ratio in most.items()]
    limits += [Limit("matrix form", "temporaries", 0.05)]
    arguments = _normal(2, (n, d), (n, e), (k, d), (k, e))
    row = lambda what, contestants, limits: Row(
        f"mixture {kind}, {what}, N={n} K={k} D={d} E={e}", arguments, contestants, tuple(limits)
    )
    yield row("mean", {OURS: with_gradients(mean)} | plain | by_formula, limits)
    yield row("none", {OURS: with_gradients(of_each)} | plain, [l for l in limits if l.contestant != "formula"])
    values = {OURS: mean, "matrix form": MATRIX_FORMS[kind]}
    yield row("mean without gradients", values, [Limit("matrix form", "time", 0.8)])


def _dense_rows(n: int, k: int) -> Iterator[Row]:
    (z, ct) = _normal(3, (n, k), (n, k))
    y = jax.nn.softmax(ct)
    labels = jax.random.randint(jax.random.key(4), (n,), 0, k)
    at_most = lambda peer: (Limit(peer, "time", 1.02), Limit(peer, "temporaries", 1.0))

    def gradient(f):
        def function(z, ct):
            out, back = jax.vjp(f, z)
            return out, back(ct)

        return function

    size = f"N={n} K={k}"
    contestants = {OURS: gradient(softjax.softmax), "jax.nn": gradient(jax.nn.softmax)}
    yield Row(f"softmax, {size}", (z, ct), contestants, at_most("jax.nn"))
    contestants = {
        OURS: _with_gradients(softjax.softmax_cross_entropy_with_integer_labels, 1),
        "optax": _with_gradients(optax.softmax_cross_entropy_with_integer_labels, 1),
    }
    yield Row(f"cross entropy, integer labels, {size}", (z, labels), contestants, at_most("optax"))
    contestants = {
        OURS: _with_gradients(softjax.softmax_cross_entropy, 1),
        "optax": _with_gradients(optax.softmax_cross_entropy, 1),
    }
    yield Row(f"cross entropy, soft labels, {size}", (z, y), contestants, at_most("optax"))


def _training_step(n: int, k: int, d: int, e: int) -> Row:
    """A training step whose scores would not fit in the memory of a machine."""
    z, x, c, v = _normal(5, (n, d), (n, e), (k, d), (k, e))
    optimizer = optax.sgd(0.1)

    def step(z, x, c, v):
        def loss(params):
            return softjax.mixture_autoencoder_loss(z, x, *params, reduction="mean")

        value, gradients = jax.value_and_grad(loss)((c, v))
        updates, _ = optimizer.update(gradients, optimizer.init((c, v)))
        return value, optax.apply_updates((c, v), updates)

    return Row(f"a training step, N={n} K={k} D={d} E={e}", (z, x, c, v), {OURS: step}, rounds=1)


def rows(small: bool) -> Iterator[Row]:
    """The rows of the benchmark with their aims; with `small`, at sizes that only show that it runs."""
    size = lambda n: max(8, n // 64) if small else n

    def limits(peer, seconds, share, *more):
        return (Limit(peer, "time", seconds), Limit(peer, "temporaries", share), *more)

    products = Limit("3 products", "time", 1 / 0.80)
    large, middling = (size(4096), size(512), size(32768)), (size(2048), size(256), size(8192))
    yield linear_row(large, "mean", limits("optax", 0.90, 0.10, products))
    yield linear_row(middling, "mean", limits("optax", 0.80, 0.15))
    yield linear_row(middling, "none", limits("optax", 1.05, 0.10))
    mixture = (size(4096), size(4096), size(16), size(64))
    for kind, of_formula in (("autoencoder", 1 / 40), ("EOL", 1 / 100), ("LEOP", 1 / 100)):
        yield from _mixture_rows(kind, mixture, {"matrix form": 0.55, "6 products": 2.2, "formula": of_formula})
    yield from _dense_rows(size(4096), size(4096))
    yield _training_step(256, 10_000 if small else 10_000_000, 8, 8)


def growth(small: bool) -> Iterator[tuple[str, Row, Row]]:
    """(name, a row, the row with 4 times the classes)."""
    n, d, k = (64, 8, 512) if small else (4096, 256, 4096)
    ours = lambda row: row._replace(contestants={OURS: row.contestants[OURS]})
    for kind in MIXTURES:
        one, four = (ours(next(_mixture_rows(kind, (n, count, 16, 64), {}))) for count in (k, 4 * k))
        yield f"mixture {kind}, K from {k} to {4 * k}", one, four
    for reduction in ("mean", "none"):
        one, four = (ours(linear_row((n // 2, d, count), reduction, ())) for count in (2 * k, 8 * k))
        yield f"linear cross entropy, {reduction}, K from {2 * k} to {8 * k}", one, four


def placements(small: bool) -> Iterator[Row]:
    """Rows that compare the placement chosen by default with others."""
    n, d, k = (64, 128, 4096) if small else (2048, 256, 8192)
    x, w = _normal(0, (n, d), (d, k))
    labels = jax.random.randint(jax.random.key(1), (n,), 0, k)
    forward = [Placement(tile, block, "forward") for tile in (n // 8, n // 4) for block in (k // 8, k // 4, k)]
    backward = [Placement(n, block) for block in (k // 16, k // 8, k // 4)]
    backward += [Placement(n // 4, k // 8), Placement(n // 4, k)]
    for reduction, others in (("mean", forward + backward), ("none", backward)):
        linear = ft.partial(placed_linear, reduction=reduction)
        contestants = {_label(size): _with_gradients(linear(size), 2) for size in (None, *others)}
        yield Row(f"linear cross entropy, {reduction}, N={n} D={d} K={k}", (x, w / d**0.5, labels), contestants)
    n, k, d, e = (64, 4096, 16, 64) if small else (4096, 4096, 16, 64)
    arguments = _normal(2, (n, d), (n, e), (k, d), (k, e))
    others = [Placement(n, k // size) for size in (64, 32, 16)]
    others += [Placement(n // 4, k // 16), Placement(n // 4, k // 16, "forward"), Placement(n // 16, k, "forward")]
    for kind in MIXTURES:
        of = ft.partial(placed_mixture, kind)
        contestants = {_label(size): jax.value_and_grad(of(size), (0, 1, 2, 3)) for size in (None, *others)}
        yield Row(f"mixture {kind}, N={n} K={k} D={d} E={e}", arguments, contestants)


def _label(size: Placement | None) -> str:
    return OURS if size is None else f"tile {size.tile}, block {size.block}, {size.gradient}"


# ---------------------------------------------------------------------------------------------
# The measurement


def measure(row: Row, rounds: int) -> dict[str, Result]:
    """Runs the contestants of a row in turns."""
    prepared = {name: _prepare(f, row.arguments) for name, f in row.contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    for step, _ in prepared.values():
        step()
    slow: dict[str, bool] = {}
    for turn in range(row.rounds or rounds):
        for name, (step, _) in prepared.items():
            if turn >= 2 and slow[name]:  # two runs are enough to show that it takes seconds
                continue
            if not slow.get(name):
                step()  # not timed: the other contestants have filled the caches
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
            slow[name] = seconds[name][-1] > 3 and name != OURS
    return {
        name: Result(statistics.median(seconds[name]), temporaries, len(seconds[name]))
        for name, (_, temporaries) in prepared.items()
    }


def _prepare(f: Callable, arguments: tuple[Any, ...]) -> tuple[Callable[[], Any], int | None]:
    """(a function that runs a contestant once, the bytes of its temporaries)."""
    if hasattr(f, "eager"):
        return f(*arguments), None
    compiled = jax.jit(f).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(*arguments)), analysis and analysis.temp_size_in_bytes


def _ratio(results: dict[str, Result], limit: Limit) -> float | None:
    if limit.contestant not in results:
        return None
    ours, theirs = results[OURS], results[limit.contestant]
    if limit.what == "time":
        return ours.seconds / theirs.seconds
    if ours.temporaries is None or theirs.temporaries is None:
        return None
    return ours.temporaries / max(theirs.temporaries, 1) if ours.temporaries != theirs.temporaries else 1.0


# ---------------------------------------------------------------------------------------------
# The report


def run_placements(rounds: int, small: bool) -> int:
    """Measures the choice of `_placement.py` beside others; returns the exit code."""
    console = Console(width=None if Console().is_terminal else 140)
    for row in placements(small):
        console.print(table(row, measure(row, rounds)))
    return 0


def run(rounds: int, small: bool, text: str, picture: Path | None, report: Path | None) -> int:
    """Measures the rows whose name contains the text, prints and draws; returns 0, even if aims are missed."""
    console = Console(width=None if Console().is_terminal else 140)
    host = machine()
    console.print(f"{host['device']}, {host['processor']}, {host['cores']} cores, {host['versions']}")
    console.print("Value and all gradients, float32; medians of runs in turns; temporaries as compiled.\n")
    entries = []
    for row in (row for row in rows(small) if text in row.name):
        row = row._replace(limits=tuple(l._replace(most=None) for l in row.limits)) if small else row
        with console.status(row.name):
            results = measure(row, rounds)
        entries.append(_entry(row, results))
        console.print(table(row, results))
    for name, one, four in (entry for entry in growth(small) if text in entry[0]):
        with console.status(name):
            entries.append(_growth_entry(name, measure(one, rounds)[OURS], measure(four, rounds)[OURS], one, four))
        console.print(_growth_line(entries[-1]))
    if report is not None:
        report.write_text(json.dumps({"machine": host, "small": small, "rows": entries}, indent=1) + "\n")
        console.print(f"Figures: {report}")
    if picture is not None:
        from softjax.tools import pictures  # matplotlib is not needed without a picture

        from . import drawings

        title = f"Value and all gradients, float32, {host['processor']}, {host['cores']} cores"
        pictures.save(drawings.comparison(entries, title), picture)
        console.print(f"Picture: {picture}")
    return 0


def _entry(row, results):
    limits = [limit._asdict() | {"ratio": _ratio(results, limit)} for limit in row.limits]
    return {"name": row.name, "results": {k: r._asdict() for k, r in results.items()}, "limits": limits}


def _growth_entry(name, one, four, row, larger):
    nbytes = lambda row: sum(a.nbytes for a in row.arguments)
    return {
        "name": name,
        "time": four.seconds / one.seconds,
        "temporaries": [one.temporaries, four.temporaries],
        "parameters": [nbytes(row), nbytes(larger)],
    }


def _growth_line(entry):
    small, large = (t / 1e6 if t is not None else float("nan") for t in entry["temporaries"])
    more = (entry["parameters"][1] - entry["parameters"][0]) / 1e6
    verdict = _verdict(entry["time"], 4.2 if entry["name"].startswith("mixture") else 4.4)
    return (
        f"{entry['name']}: time x {entry['time']:.2f} {verdict}, temporaries {small:.1f} -> {large:.1f} MB "
        f"(the arguments grow by {more:.1f} MB)"
    )


def _verdict(ratio, most):
    return f"[green](at most {most:.3g})[/green]" if ratio <= most else f"[red](more than {most:.3g})[/red]"


def table(row: Row, results: dict[str, Result]) -> Table:
    """The results of a row, and their ratios."""
    shown = Table(
        "", "ms", "time: softjax / other", "temporaries, MB", "softjax / other", title=row.name, title_justify="left"
    )
    for name, result in results.items():
        cells = []
        for what in ("time", "temporaries"):
            ratio = _ratio(results, Limit(name, what, None))
            limit = next((l.most for l in row.limits if (l.contestant, l.what) == (name, what)), None)
            text = "" if ratio is None or name == OURS else f"{ratio:.3f}"
            cells.append(text if limit is None or not text else f"{text} {_verdict(ratio, limit)}")
        memory = "" if result.temporaries is None else f"{result.temporaries / 1e6:.1f}"
        shown.add_row(name, f"{result.seconds * 1e3:.1f}", cells[0], memory, cells[1])
    return shown
