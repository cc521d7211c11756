"""The collective operations of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from ..arguments.signatures import readable

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", re.MULTILINE)
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@readable
class Collective(NamedTuple):
    """An operation in which devices exchange arrays."""

    operation: str  # XLA's name, such as "all-reduce"
    bytes: int  # of its result on each device
    devices: int  # the number of devices in a group
    times: int  # the number of its runs; a loop of unknown length counts once


@readable
def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The collective operations of a compiled program, which use the network when it runs.

    Operations in groups of one device send nothing and are not listed.

    Args:
        compiled: `jax.jit(f).lower(...).compile()`.

    Returns:
        One `Collective(operation, bytes, devices, times)` each, in the order of the program's text.

    Raises:
        TypeError: if `compiled` is not a compiled program with a text.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softjax.testing import collectives
        >>> collectives(jax.jit(jnp.sin).lower(jnp.ones(8)).compile())  # on one device
        []
    """
    text = compiled.as_text() if isinstance(compiled, jax.stages.Compiled) else None
    if text is None:
        raise TypeError(f"`compiled` must be a compiled program with a text, got {type(compiled).__name__}.")
    _, *parts = _COMPUTATION.split(text)  # of each computation: "ENTRY " or None, its name, its lines
    bodies = dict(zip(parts[1::3], parts[2::3], strict=True))
    return list(_collectives_of(bodies, parts[parts.index("ENTRY ") + 1], 1))


def _collectives_of(bodies: dict[str, str], name: str, times: int) -> Iterator[Collective]:
    for line in bodies.get(name, "").splitlines():
        if found := _COLLECTIVE.search(line):
            if (devices := _devices(line)) > 1:
                yield Collective(found[2], _bytes_of(found[1]), devices, times)
            continue
        trips = _TRIPS.search(line)
        for called in _CALLED.finditer(line):
            for inner in called[1].split(", "):
                yield from _collectives_of(bodies, inner.lstrip("%"), times * (int(trips[1]) if trips else 1))


def _bytes_of(shapes: str) -> int:
    """The bytes of "f32[4,2]{1,0}", or of several such; a "pred" has 8 bits."""
    arrays = [(int(bits or 8), map(int, re.findall(r"\d+", shape))) for bits, shape in _ARRAY.findall(shapes)]
    return sum(-(-bits // 8) * math.prod(shape) for bits, shape in arrays)


def _devices(line: str) -> int:
    """The number of devices in the first of the groups {{0,1},{2,3}}, in each of [2,2]<=[4], or in a pair.

    Groups may also be given as axes of a mesh: mesh['x'=2,'y'=4] {'y'}, with or without an order of the devices.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        return 1 + any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if of_mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", of_mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", of_mesh[2]))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]", line):
        return int(counted[1].split(",")[-1])
    return 1
