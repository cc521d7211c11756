"""The collective operations of a compiled program, read from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """An operation in which devices exchange arrays."""

    operation: str
    """as XLA calls it, such as "all-reduce" """
    bytes: int
    """of its result on each device"""
    devices: int
    """how many take part with each other"""
    times: int
    """how often it is run; a loop of unknown length counts once"""


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The collective operations of a compiled program, which use the network when it runs.

    Operations in groups of one device send nothing, and are left out.

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
    bodies: dict[str, list[str]] = {}
    entry = body = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            body = found[1]
            bodies[body] = []
            entry = body if line.startswith("ENTRY") else entry
        elif body:
            bodies[body].append(line)
    return list(_collectives_of(bodies, entry, 1))


def _collectives_of(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        if found := _COLLECTIVE.search(line):
            devices = _group_size(line)
            if devices > 1:
                yield Collective(found[2], _bytes_of(found[1]), devices, times)
            continue
        trips = _TRIPS.search(line)
        for called in _CALLED.finditer(line):
            for inner in called[1].split(", "):
                yield from _collectives_of(bodies, inner.lstrip("%"), times * (int(trips[1]) if trips else 1))


def _bytes_of(shapes: str) -> int:
    """The bytes of "f32[4,2]{1,0}", or of several such."""
    of_each = lambda kind, bits: 1 if kind == "pred" else -(-int(bits) // 8)
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * of_each(kind, bits)
        for kind, bits, shape in _ARRAY.findall(shapes)
    )


def _group_size(line: str) -> int:
    """How many devices are in a group: the first of {{0,1},{2,3}}, or the last size of [2,2]<=[4]; a pair is 2."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        return 1 + any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[([\d,]+)\]", line):
        return int(counted[1].split(",")[-1])
    return 1
