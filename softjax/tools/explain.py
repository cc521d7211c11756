"""Will it fit? The memory and the products of the fused loss and of dense logits: `python -m softjax explain`.

Nothing runs and no array is allocated. The figures are those of the compiled program where there is a compiler for the
device, else those of a model of cost, which this module describes. They are for the value and the gradients of the
features and the kernel.
"""

import dataclasses
import functools as ft
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import softjax
from softjax import Placement

from . import programs, targets

Way = Literal["softjax", "dense logits"]
WAYS: tuple[Way, ...] = ("softjax", "dense logits")
# Gigabytes of memory, as the makers state them. Devices that `targets` describes can be compiled for.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "a100": 80, "h100": 80, "h200": 141}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mean, sum or losses of N examples with D features and K classes."""

    examples: int
    features: int
    classes: int
    dtype: str
    reduction: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the arrays."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def arrays(self) -> int:
        """Bytes of the features and the kernel, and of their gradients."""
        return (self.examples + self.classes) * self.features * self.itemsize

    @property
    def product(self) -> float:
        """Multiplications and additions of a product of the features and the kernel."""
        return 2.0 * self.examples * self.features * self.classes


class Device(NamedTuple):
    """A device, and the bytes of its memory."""

    name: str
    platform: str
    memory: int

    def placement(self, problem: Problem) -> Placement:
        """The choice of the library on this device."""
        n, k, d = problem.examples, problem.classes, problem.features
        options: dict[str, Any] = {"platform": self.platform, "memory": max(self.memory // 10, 1)}
        return softjax.placement(n, k, d, reduction=problem.reduction, dtype=problem.dtype, **options)

    def rounds(self, problem: Problem) -> bool:
        """Whether the cotangents of the scores are rounded to bfloat16: see `softjax.logits.products`."""
        return problem.dtype == "bfloat16" and self.platform != "cpu"


class Cost(NamedTuple):
    """The bytes that a way needs, and its operations."""

    source: str
    """the origin of the figures: "compiled program" or "model of cost" """
    arguments: int
    gradients: int
    temporaries: int
    operations: float
    """multiplications and additions of the matrix products"""
    note: str = ""

    @property
    def total(self) -> int:
        """All bytes."""
        return self.arguments + self.gradients + self.temporaries


# ---------------------------------------------------------------------------------------------
# The model of cost


def modelled(problem: Problem, device: Device, way: Way) -> Cost:
    """The cost from the sizes alone."""
    place = device.placement(problem)
    temporaries = _dense_bytes(problem, device) if way == "dense logits" else _fused_bytes(problem, device, place)
    products = 3.0 if way == "dense logits" else _products(problem, place)
    arguments = problem.arrays + 4 * problem.examples * (1 if problem.reduction != "none" else 2)
    return Cost("model of cost", arguments, problem.arrays, temporaries, products * problem.product)


def _products(problem: Problem, place: Placement) -> float:
    """The scores and both gradients; scores that are not kept are computed twice."""
    k, tail = problem.classes, problem.classes % place.block
    if place.tile >= problem.examples and k < 2 * place.block:
        return 3.0  # no loop runs more than once, and the compiler finds that the scores are computed twice
    if place.gradient == "forward":
        return 4.0 - (k if place.kept is None else min(place.kept, k)) / k
    # The last, smaller block is outside of the loops, and the compiler finds that it is computed twice.
    return 4.0 - (tail / k if place.tile >= problem.examples else 0.0)


def _at_once(problem: Problem, place: Placement) -> bool:
    return place.tile >= problem.examples and place.block >= problem.classes


def _dense_bytes(problem: Problem, device: Device) -> int:
    """The logits in float32 and their cotangent, which a TPU rounds for its matrix units."""
    rounded = 2 if device.platform == "tpu" or device.rounds(problem) else 4
    return problem.examples * problem.classes * (4 + rounded) + _widened_kernel(problem, device)


def _widened_kernel(problem: Problem, device: Device) -> int:
    """A CPU multiplies in float32, and its compiler widens a bfloat16 kernel as a whole."""
    widens = problem.dtype == "bfloat16" and device.platform == "cpu"
    return 4 * problem.features * problem.classes if widens else 0


def _fused_bytes(problem: Problem, device: Device, place: Placement) -> int:
    """The scores in memory, and the gradients that are added up in float32 before they are rounded."""
    n, d, k = problem.examples, problem.features, problem.classes
    forward, tiles = place.gradient == "forward", place.tile < n
    added_up = 0
    if problem.itemsize < 4 and (tiles or (forward and not device.rounds(problem))):
        added_up += 4 * d * k  # of the kernel
    if problem.itemsize < 4 or (not forward and not _at_once(problem, place)):
        added_up += 4 * n * d  # of the features
    return _scores_bytes(problem, device, place) + added_up + _widened_kernel(problem, device)


def _scores_bytes(problem: Problem, device: Device, place: Placement) -> int:
    """The scores that are kept, and what belongs to the block at hand and to the last one, which is smaller."""
    d, k, rounds = problem.features, problem.classes, device.rounds(problem)
    forward = place.gradient == "forward"
    tile, block = min(place.tile, problem.examples), min(place.block, k)
    if _at_once(problem, place):
        return tile * k * (4 + (2 if rounds else 0 if forward else 4))
    kept = (k if place.kept is None else min(place.kept, k)) if forward else 0
    tiles = tile + problem.examples % tile  # the last tile, which is smaller, is outside of the loop
    held, blocks = tiles * kept * (2 if rounds else 4), block + k % block
    if device.platform == "tpu":  # it keeps a block on the chip
        return held
    if device.platform == "gpu":  # the cotangents of kept scores take their place
        return held + 4 * tile * blocks + (0 if kept else tile * block * (2 if rounds else 4))
    if block == k:  # a CPU keeps the scores of a tile and adds up a gradient of the kernel for each tile
        return held + 4 * d * k
    return held + 4 * (tile + d) * blocks + (4 * d * block if forward else 0)


# ---------------------------------------------------------------------------------------------
# The compiled program


def compiled(problem: Problem, device: Device, way: Way) -> Cost:
    """The cost of the compiled program, for the device of that name; raises JAX's error if it does not compile."""
    function, arguments = function_of(problem, device, way)
    kind = targets.KINDS.get(device.name)
    here = lambda function, arguments: jax.jit(function).lower(*arguments).compile()
    program: Any = targets.compiled_for(kind, function, arguments) if kind else here(function, arguments)
    analysis = program.memory_analysis()
    operations = _multiplied(program.as_text())
    if math.isnan(operations):  # the text of a TPU's program does not say
        operations = modelled(problem, device, way).operations
    sizes = analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes
    return Cost("compiled program", *sizes, operations)


def _multiplied(text: str) -> float:
    """Multiplications and additions of all matrix products of a program; NaN if its text does not have them."""

    def of_operation(program, table, operation):
        return sum(itertools.starmap(programs.flops, programs.products_of(program, table, operation)))

    try:
        return programs.total(programs.parse(text), of_operation) or math.nan
    except ValueError:  # a loop whose number of steps is not known
        return math.nan


def function_of(problem: Problem, device: Device, way: Way) -> tuple[Callable, tuple[Any, ...]]:
    """(the value and both gradients as a function, the shapes and types of its arguments)."""
    n, d, k = problem.examples, problem.features, problem.classes
    loss: Callable = dense_loss
    if way == "softjax":
        # The library would take the precision of the device on which JAX runs.
        described = "highest" if problem.itemsize == 4 else "default"
        precision = described if device.name in targets.KINDS else None
        loss = ft.partial(fused_loss, placement=device.placement(problem), precision=precision)
    loss = ft.partial(loss, reduction=problem.reduction)
    arrays = [jax.ShapeDtypeStruct(shape, problem.dtype) for shape in ((n, d), (d, k))]
    labels = jax.ShapeDtypeStruct((n,), "int32")
    if problem.reduction != "none":
        return jax.value_and_grad(loss, (0, 1)), (*arrays, labels)

    def with_cotangents(features, kernel, labels, cotangents):
        losses, back = jax.vjp(lambda *moving: loss(*moving, labels), features, kernel)
        return losses, back(cotangents)

    return with_cotangents, (*arrays, labels, jax.ShapeDtypeStruct((n,), "float32"))


def fused_loss(
    features: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    reduction: str,
    placement: Placement,
    precision: str | None,
) -> jax.Array:
    """The library's way: logits that are never in memory."""
    logits = softjax.linear(features, kernel, block_size=placement, precision=precision)
    return softjax.softmax_cross_entropy_with_integer_labels(logits, labels, reduction=reduction)


def dense_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, reduction: str) -> jax.Array:
    """The plain way, as with optax: logits [N, K] in float32, and their log-probabilities."""
    logits = (features @ kernel).astype(jnp.float32)
    of_labels = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
    losses = jax.nn.logsumexp(logits, -1) - of_labels
    return {"none": lambda x: x, "sum": jnp.sum, "mean": jnp.mean}[reduction](losses)


# ---------------------------------------------------------------------------------------------
# The report


def run(problem: Problem, device: str, memory: int | None, as_json: bool, compiling: bool = True) -> int:
    """Prints a table and a verdict, or JSON; returns the exit code, 0 whether or not it fits."""
    target, reason = _prepared(device, memory, compiling)
    costs = {way: _cost(problem, target, way, reason) for way in WAYS}
    print(json.dumps(_as_json(problem, target, costs), indent=1) if as_json else _text(problem, target, costs))
    return 0


def _prepared(name: str, memory: int | None, compiling: bool) -> tuple[Device, str]:
    """(the device, the reason why there is no compiled program for it, or "")."""
    kind = targets.KINDS.get(name)
    package = targets.missing(kind) if kind else None
    reason = ""
    if not compiling:
        reason = "as asked"
    elif name in MEMORY and kind is None:
        reason = f"{name} is not described to a compiler"
    elif package is not None:
        reason = f"without {package}, which `make compilers` installs"
    elif kind is not None:
        targets.prepare()
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if name in MEMORY:
        return Device(name, "tpu" if name[0] == "v" else "gpu", memory or MEMORY[name] * 10**9), reason
    here = jax.local_devices()[0]
    return Device(here.device_kind, jax.default_backend(), memory or _memory_of(here)), reason


def _memory_of(device: jax.Device) -> int:
    """The bytes that JAX may use: of a GPU or TPU what it says, of a CPU the machine's or the container's."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    if device.platform != "cpu":
        raise SystemExit("JAX does not know the memory of this device: state it with --memory.")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in _LIMITS if path.exists()]
    return min([physical, *(int(limit) for limit in limits if limit.isdecimal())])


# Of a container, in the second and the first version of control groups.
_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _cost(problem: Problem, device: Device, way: Way, reason: str) -> Cost:
    if reason:
        return modelled(problem, device, way)._replace(note=reason)
    try:
        return compiled(problem, device, way)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # A TPU's compiler refuses a program that does not fit.
        return modelled(problem, device, way)._replace(note="the compiler says that it does not fit")


def _fits(cost: Cost, device: Device) -> bool:
    return cost.total <= device.memory and "does not fit" not in cost.note


def _as_json(problem: Problem, device: Device, costs: dict[Way, Cost]) -> dict[str, Any]:
    place = device.placement(problem)
    of_costs = {way: cost._asdict() | {"total": cost.total, "fits": _fits(cost, device)} for way, cost in costs.items()}
    return {
        "problem": dataclasses.asdict(problem),
        "device": device._asdict(),
        "placement": place._asdict(),
        "costs": of_costs,
        "verdict": _verdict(device, costs),
    }


def _verdict(device: Device, costs: dict[Way, Cost]) -> str:
    ours, theirs = costs["softjax"], costs["dense logits"]
    fits, do = _fits(ours, device), _fits(theirs, device)
    return (
        f"{'fits' if fits else 'does not fit'}: {_gigabytes(ours.total)} GB of {_gigabytes(device.memory)} GB; "
        f"dense logits, {_gigabytes(theirs.total)} GB, {'fit' if do else 'do not fit'}"
    )


def _gigabytes(size: float) -> str:
    size /= 1e9
    return f"{size:,.0f}" if size >= 100 or size == int(size) else f"{size:.2f}" if size >= 0.1 else f"{size:.2g}"


def _text(problem: Problem, device: Device, costs: dict[Way, Cost]) -> str:
    dimensions = f"N={problem.examples} D={problem.features} K={problem.classes}"
    notes = dict.fromkeys(f"{cost.source}: {cost.note}" for cost in costs.values() if cost.note)
    lines = [
        f"Linear cross entropy, {problem.reduction}, {dimensions}, {problem.dtype}, on {device.name}:",
        "the value and the gradients of features and kernel, without other layers and the optimizer. Nothing runs.",
        str(device.placement(problem)),
        "",
        *_table(device, costs),
        "",
        *notes,
        _verdict(device, costs),
    ]
    return "\n".join(lines)


def _table(device: Device, costs: dict[Way, Cost]) -> list[str]:
    sizes = ("arguments", "gradients", "temporaries", "total")
    figures = {f"{name}, GB": [_gigabytes(getattr(cost, name)) for cost in costs.values()] for name in sizes}
    figures["matrix products, TFLOP"] = [f"{cost.operations / 1e12:.3g}" for cost in costs.values()]
    fits = ["yes" if _fits(cost, device) else "no" for cost in costs.values()]
    figures[f"fits in {_gigabytes(device.memory)} GB"] = fits
    figures["figures of the"] = [cost.source for cost in costs.values()]
    rows = [("", *costs), *((name, *cells) for name, cells in figures.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
