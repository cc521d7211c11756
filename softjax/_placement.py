"""How much is held at a time, and when the gradient is taken."""

from typing import Literal, NamedTuple

import jax

from . import _arguments


class Placement(NamedTuple):
    """How N examples meet K classes."""

    tile: int
    """examples at a time"""
    block: int
    """classes at a time"""
    gradient: Literal["forward", "backward"]
    """the pass in which the gradient of a sum of losses is taken"""


BlockSize = int | Placement | None


def of(block_size: BlockSize, n: int, k: int, reduction: str, width: int) -> Placement:
    """The placement that the argument `block_size` stands for."""
    if block_size is None:
        return choose(n, k, reduction, width, jax.default_backend())
    if isinstance(block_size, Placement):
        tile, block = (_arguments.size("block_size", size) for size in block_size[:2])
        return Placement(tile, block, block_size.gradient)
    return Placement(n, _arguments.size("block_size", block_size), "backward")


def choose(n: int, k: int, reduction: str, width: int, platform: str) -> Placement:
    if not isinstance(n, int):  # a symbolic size, in an export for any
        return Placement(n, min(k, 1024), "backward")
    if n * k <= 2**18:
        return Placement(n, k, "backward")
    if reduction == "none":
        return Placement(n, min(k, 512 if n == 1 else max(128, min(2**20 // max(n, 1), 4096))), "backward")
    return Placement(256, k, "forward")
