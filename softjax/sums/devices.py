"""Sums over the classes of all devices of some mesh axes, in as few rounds of communication as they allow."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..parallel import collectives

Steps = Generator[tuple[str, Any], Any, Any]
"""of a sum over devices: pairs (one of `ROUNDS`, a tree of arrays [N, ...])"""

ROUNDS = ("max", "min", "sum", "sum of the rest")
_COLLECTIVES = {"max": collectives.pmax_together, "min": collectives.pmin_together}


def together(steps: list[Steps], axes: collectives.Names) -> list[Any]:
    """The results of generators, each of which asks for a reduction over the devices at a time.

    A generator yields pairs (one of `ROUNDS`, a tree of arrays [N, ...]), in the order of the rounds, and is sent the
    tree reduced over the devices. All that is asked for in one round is one collective operation.
    """
    asked: dict[int, tuple[str, Any]] = {}
    results: list[Any] = [None] * len(steps)

    def advance(i, answer):
        try:
            asked[i] = steps[i].send(answer)
        except StopIteration as end:
            asked.pop(i, None)
            results[i] = end.value

    for i in range(len(steps)):
        advance(i, None)
    for name in ROUNDS:
        now = {i: tree for i, (wanted, tree) in asked.items() if wanted == name}
        if now:
            reduced = _COLLECTIVES.get(name, collectives.psum)(now, axes)
            for i in now:
                advance(i, reduced[i])
    return results
