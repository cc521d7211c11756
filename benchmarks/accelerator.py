"""Correctness, accuracy and time on a GPU or TPU, within minutes: `python -m benchmarks --accelerator`.

1. The fused cross entropy and two mixtures against definitions in NumPy, in float64.
2. The rows of `compilers`, in real time: in each turn new arguments, on which all contestants run.
3. The functions of `audit`, in its quick scenarios, as long as there is time.
"""

import functools as ft
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from softjax import Placement
from softjax.logits.products import LEVELS
from softjax.tools import audit, pictures
from softjax.tools.machine import machine

from . import drawings, peers
from .bench import Row, placed_linear, placed_mixture
from .compilers import RESULTS, comparisons

SECONDS = 480.0  # for everything
SHARE_OF_CHECKS = 0.3  # at most
SHARE_OF_TIMES = 0.75  # of what the checks leave; the audit has the rest
# Limits of the checks, relative to the largest element of an array, and how many times that for second derivatives.
LIMITS = {"highest": 2e-5, "high": 4e-3, "default": 4e-2}
HVP_FACTOR = 5.0


class Budget:
    """The time that is left."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


# ---------------------------------------------------------------------------------------------
# The checks


def _probabilities(h):
    e = np.exp(h - h.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _true_cross_entropy(y, x, w):
    """(value, gradients) of the mean; so are the others. For complex arguments too."""
    z = x @ w
    p, rows = _probabilities(z), np.arange(len(y))
    ds = (p - np.eye(w.shape[1])[y]) / len(y)
    return -np.log(p[rows, y]).mean(), (ds @ w.T, x.T @ ds)


def _scores(z, c):
    return 2 * z @ c.T - (c**2).sum(-1) - (z**2).sum(-1, keepdims=True)


def _through_scores(z, c, ds):
    """The gradients for z and c, of scores whose gradients of a row sum to 0."""
    return 2 * ds @ c, 2 * (ds.T @ z - ds.sum(0)[:, None] * c)


def _true_autoencoder(z, x, c, v):
    p = _probabilities(_scores(z, c))
    off = p @ v - x
    g = 2 * off / len(x)
    t = g @ v.T
    ds = p * (t - (p * t).sum(-1, keepdims=True))
    dz, dc = _through_scores(z, c, ds)
    return (off**2).sum(-1).mean(), (dz, -g, dc, p.T @ g)


def _true_eol(z, x, c, v):
    p = _probabilities(_scores(z, c)) / len(x)
    t = -_scores(x, v)
    ds = p * (t - len(x) * (p * t).sum(-1, keepdims=True))
    dz, dc = _through_scores(z, c, ds)
    return (p * t).sum(), (dz, 2 * (x / len(x) - p @ v), dc, 2 * (p.sum(0)[:, None] * v - p.T @ x))


class Check(NamedTuple):
    """A function with its definition, its arguments in float64, and the options that it is run with."""

    function: str
    definition: Callable
    arguments: tuple[np.ndarray, ...]
    call: Callable
    dtype: str
    precision: str
    placement: str


def checks(small: bool) -> Iterator[Check]:
    """The functions in every precision and placement; with `small`, in fewer."""
    random = np.random.default_rng(0)
    n, k, d, e = 16, 40, 8, 4
    x, w, y = random.normal(size=(n, d)), random.normal(size=(d, k)), random.integers(k, size=n)
    places = {"default": None, "blocks": 9, "tiles": Placement(6, 9), "forward": Placement(6, 9, "forward")}
    places["nothing kept"] = Placement(n, 9, "forward", 0)
    chosen = {"forward": places["forward"]} if small else places
    for dtype, precision in itertools.product(("float32", "bfloat16"), LEVELS):
        of_type = chosen if dtype == "float32" else {name: place for name, place in chosen.items() if name != "tiles"}
        for name, place in of_type.items():
            linear = ft.partial(placed_linear(place, "mean", precision), y=jnp.asarray(y, "int32"))
            definition = ft.partial(_true_cross_entropy, y)
            yield Check("linear_softmax_cross_entropy", definition, (x, w), linear, dtype, precision, name)
    z, c, data, v = (random.normal(size=s) for s in ((n, d), (k, d), (n, e), (k, e)))
    for function, kind, of_mixture in (
        ("mixture_autoencoder_loss", "autoencoder", _true_autoencoder),
        ("eol_loss", "EOL", _true_eol),
    ):
        for name, place in chosen.items():
            call = placed_mixture(kind, place)
            yield Check(function, of_mixture, (z / 2, data, c / 2, v), call, "float32", "highest", name)


def errors(check: Check) -> list[dict[str, Any]]:
    """The largest error of each mode, relative to the largest element of its array."""
    given = [jnp.asarray(a, check.dtype) for a in check.arguments]
    random = np.random.default_rng(1)
    along = [jnp.asarray(random.normal(size=a.shape), check.dtype) for a in given]
    numbers = range(len(given))
    gradients = jax.grad(check.call, tuple(numbers))

    @jax.jit
    def modes(arguments, direction):
        value, forward = jax.jvp(check.call, arguments, direction)
        reverse, product = jax.jvp(gradients, arguments, direction)
        return {"value": [value], "reverse": reverse, "forward": [forward], "HVP": product}

    got = modes(tuple(given), tuple(along))
    exact, direction = ([np.asarray(a, np.float64) for a in arrays] for arrays in (given, along))
    value, reverse = check.definition(*exact)
    tiny = 1e-30  # a complex step: the imaginary part is the derivative, without a difference
    _, moved = check.definition(*(a + 1j * tiny * b for a, b in zip(exact, direction, strict=True)))
    terms = [(g * b).sum() for g, b in zip(reverse, direction, strict=True)]
    want = {"value": [value], "reverse": reverse, "forward": [sum(terms)], "HVP": [g.imag / tiny for g in moved]}
    scales = {mode: [np.abs(a).max() for a in arrays] for mode, arrays in want.items()}
    scales["forward"] = [sum(map(abs, terms))]  # they cancel
    limit = LIMITS[check.precision] + (float(jnp.finfo(check.dtype).eps) if check.dtype != "float32" else 0)
    found = []
    for mode, arrays in want.items():
        off = [np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(got[mode], arrays, strict=True)]
        error = max(float(o / s) for o, s in zip(off, scales[mode], strict=True))
        most = limit * (HVP_FACTOR if mode == "HVP" else 1)
        about = {"function": check.function, "dtype": check.dtype, "precision": check.precision}
        about |= {"placement": check.placement, "mode": mode}
        found.append(about | {"error": error, "limit": most, "within": bool(error <= most)})
    return found


# ---------------------------------------------------------------------------------------------
# The times


def _fresh(key: Any, shapes: tuple[Any, ...], classes: int) -> list[Any]:
    """Random arguments of a row: normal numbers, of the size that keeps scores of order 1, and labels."""
    keys = jax.random.split(key, len(shapes))
    scale = shapes[0].shape[1] ** -0.5

    def one(key, shape):
        if shape.dtype == jnp.int32:
            return jax.random.randint(key, shape.shape, 0, classes)
        return (jax.random.normal(key, shape.shape) * scale).astype(shape.dtype)

    return [one(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _fits(analysis: Any) -> bool:
    """Whether a program and the arguments of another turn fit in the memory of the device."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None or analysis is None:
        return True
    arguments = analysis.argument_size_in_bytes
    return 2 * arguments + analysis.output_size_in_bytes + analysis.temp_size_in_bytes < 0.9 * limit


def times(row: Row, seconds: float, rounds: int = 9) -> dict[str, dict[str, Any]]:
    """The median seconds and the temporaries of the contestants of a row, in as many turns as there is time for.

    A contestant that does not fit in the memory, or that fails, has the reason in place of its time.
    """
    budget = Budget(seconds)
    classes = row.arguments[1].shape[1] if row.arguments[-1].dtype == jnp.int32 else 0
    make = jax.jit(ft.partial(_fresh, shapes=row.arguments, classes=classes))
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable] = {}
    arguments = jax.block_until_ready(make(jax.random.key(0)))
    for name, function in row.contestants.items():
        if steps and budget.left() <= 0:  # compiling takes most of the time
            found[name] = {"failed": "left out for want of time"}
            continue
        try:
            steps[name], found[name] = _step(function, arguments)
        except Exception as error:  # a contestant may fail in any way
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        if turn and budget.left() <= 0:
            break
        arguments = jax.block_until_ready(make(jax.random.key(turn + 1)))
        for name, step in list(steps.items()):
            start = time.perf_counter()
            step(arguments)
            taken[name].append(time.perf_counter() - start)
    for name, runs in taken.items():
        found[name] |= {"seconds": statistics.median(runs), "runs": len(runs)}
    return found


def _step(function: Callable, arguments: list[Any]) -> tuple[Callable, dict[str, Any]]:
    """(a function that runs a contestant on new arguments and waits, what is known of it); it has run once."""
    if hasattr(function, "eager"):
        step, analysis = function, None
    else:
        compiled = jax.jit(function).lower(*arguments).compile()
        analysis = compiled.memory_analysis()
        if not _fits(analysis):
            raise MemoryError("does not fit in the memory of the device")
        step = lambda arguments: jax.block_until_ready(compiled(*arguments))
    step(arguments)
    return step, {"temporaries": analysis and analysis.temp_size_in_bytes}


# ---------------------------------------------------------------------------------------------
# The report


def run(folder: Path | None = None, small: bool = False, seconds: float = SECONDS) -> int:
    """Checks, times and audits within about so many seconds; prints and writes, small sizes only to a given folder.

    Returns 1 if an error is beyond its limit, or if there is only a CPU, else 0.
    """
    # PyTorch needs memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    budget = Budget(seconds)
    if jax.default_backend() == "cpu" and not small:
        print(
            "This benchmark needs a GPU or a TPU, and JAX finds a CPU alone: --small shows that it runs.",
            file=sys.stderr,
        )
        return 1
    folder = folder or (None if small else RESULTS)
    console = Console(width=None if Console().is_terminal else 140, record=True)
    host = machine()
    console.print(f"{host['device']}, {host['processor']}, {host['cores']} cores, {host['versions']}")
    checked, unchecked = _checked(small, Budget(SHARE_OF_CHECKS * seconds))
    console.print(_table_of_checks(checked))
    rows = list(_timed_rows(console, small, budget))
    audited, left_out = _audited(small, budget)
    broken = [e for e in checked + audited if not e["within"]]
    for e in broken:
        console.print(f"{e} is beyond its limit", style="red", soft_wrap=True)
    console.print(
        f"{len(checked)} comparisons with NumPy and {len(audited)} with 50 digits, {len(broken)} beyond their limits; "
        f"left out for want of time: {unchecked} checks and {len(left_out)} functions of the audit; "
        f"{seconds - budget.left():.0f} s.",
        soft_wrap=True,
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
        figures = {"machine": host, "small": small, "checks": checked, "rows": rows, "audit": audited}
        figures |= {"checks left out": unchecked, "not audited": left_out}
        (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
        (folder / f"{name}.txt").write_text(console.export_text())
        picture = drawings.comparison(rows, f"Value and all gradients, {host['device']}")
        pictures.save(picture, folder / f"{name}.png")
        print(f"Figures: {folder / name}.json, .txt and .png")
    return 1 if broken else 0


def _checked(small: bool, budget: Budget) -> tuple[list[dict[str, Any]], int]:
    """(the errors, how many checks there was no time for); the placements that the library chooses come first."""
    entries: list[dict[str, Any]] = []
    left_out = 0
    for check in sorted(checks(small), key=lambda check: check.placement not in ("default", "forward")):
        if entries and budget.left() <= 0:
            left_out += 1
        else:
            entries += errors(check)
    return entries, left_out


def _timed_rows(console: Console, small: bool, budget: Budget) -> Iterator[dict[str, Any]]:
    """The entries of the rows, each with its share of the time."""
    wanted = list(comparisons(None, small))
    reserve = (1 - SHARE_OF_TIMES) * budget.left()
    for place, (row, reference) in enumerate(wanted):
        seconds = (budget.left() - reserve) / (len(wanted) - place)
        if reference == "optax":
            row = row._replace(contestants=row.contestants | peers.of_accelerator())
        found = times(row, seconds) if seconds > 0 else {}
        entry = {"name": row.name, "reference": reference, "results": found}
        console.print(_table_of_times(entry))
        yield entry


def _audited(small: bool, budget: Budget) -> tuple[list[dict[str, Any]], list[str]]:
    """(the comparisons of the audit, the functions that there was no time for)."""
    entries, left_out = [], []
    for work in audit.works(quick=True):
        if small and work.function != "of":
            continue
        if budget.left() <= 0:
            left_out.append(work.function)
            continue
        entries += [e._asdict() | {"within": e.error <= e.limit} for e in audit.measure(work)]
    return entries, left_out


def _table_of_checks(checked: list[dict[str, Any]]) -> Table:
    """The largest errors over the placements, each with its limit."""
    modes = ("value", "reverse", "forward", "HVP")
    table = Table("", "", "", *modes, title="Largest relative errors (limits)", title_justify="left")
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for e in checked:
        row = groups.setdefault((e["function"], e["dtype"], e["precision"]), {})
        row[e["mode"]] = max(row.get(e["mode"], e), e, key=lambda e: e["error"])
    for names, row in groups.items():
        table.add_row(*names, *(f"{row[m]['error']:.1e} ({row[m]['limit']:.0e})" for m in modes))
    return table


def _table_of_times(entry: dict[str, Any]) -> Table:
    reference = entry["results"].get(entry["reference"], {})
    table = Table("", "ms", f"/ {entry['reference']}", "temporaries, GB", "runs", title=entry["name"])
    for name, result in entry["results"].items():
        if "failed" in result:
            table.add_row(name, result["failed"])
            continue
        ratio = f"{result['seconds'] / reference['seconds']:.3f}" if "seconds" in reference else ""
        memory = "" if result["temporaries"] is None else f"{result['temporaries'] / 1e9:.3f}"
        table.add_row(name, f"{result['seconds'] * 1e3:.2f}", ratio, memory, str(result["runs"]))
    return table
