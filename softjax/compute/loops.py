"""Loops over tiles of examples and over blocks of classes."""

import functools as ft
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from .._jax import row_major
from ..arguments import checks
from ..arguments.dtypes import PAIRS, widened
from ..parallel import collectives


class Layout(NamedTuple):
    """The sizes of a problem on one device, and how much of it is in memory at a time."""

    axes: tuple[int | str, ...]  # the class axis of each tree of class arrays; PAIRS for arrays [N, K]
    examples: int
    classes: int
    tile: int
    block: int
    mesh: collectives.Names = ()  # the mesh axes over which the classes are sharded, in the order of their ids
    unpadded: int | None = None  # the number of classes of all devices without padding, if there is padding
    engine: Any = None  # in place of the loop over blocks
    kept: int = 0  # the number of classes whose scores a gradient in the forward pass keeps, instead of computing again
    rounding: Any = None  # the half-precision type to which cotangents of scores are rounded; None for no rounding


def over_tiles(step: Callable, carry: Any, examples: Any, n: int, tile: int) -> tuple[Any, Any]:
    """Runs `step(carry, examples) -> (carry, made)` for tiles of the N examples; the last may be smaller."""
    if tile >= n:
        return step(carry, examples)
    whole = n - n % tile
    tiles = jax.tree.map(lambda a: a[:whole].reshape(whole // tile, tile, *a.shape[1:]), examples)
    carry, made = lax.scan(step, carry, tiles)
    made = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), made)
    if n % tile:
        carry, last = step(carry, jax.tree.map(lambda a: a[whole:], examples))
        made = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), made, last)
    return carry, made


def take_block(classes: tuple, layout: Layout, start: ArrayLike, size: int) -> tuple:
    """A block of the class arrays, in at least float32."""

    def of_axis(axis, tree):
        axis = 1 if axis == PAIRS else axis
        return jax.tree.map(lambda a: widened(lax.dynamic_slice_in_dim(a, start, size, axis)), tree)

    return tuple(map(of_axis, layout.axes, classes))


def put_block(classes: tuple, layout: Layout, start: ArrayLike, block: tuple) -> tuple:
    """The class arrays with a block replaced."""

    def on_axis(axis, tree, block):
        axis = 1 if axis == PAIRS else axis
        write = lambda a, b: lax.dynamic_update_slice_in_dim(a, row_major(b.astype(a.dtype)), start, axis)
        return jax.tree.map(write, tree, block)

    return tuple(map(on_axis, layout.axes, classes, block))


def block_ids(layout: Layout, start: ArrayLike, size: int) -> Array:
    """Ids of consecutive classes; padding gets INT32.min, which equals no label."""
    first = layout.classes * collectives.device_index(layout.mesh)
    of_block = (first + jnp.asarray(start, jnp.int32)) + jnp.arange(size, dtype=jnp.int32)
    return of_block if layout.unpadded is None else jnp.where(of_block < layout.unpadded, of_block, checks.INT32.min)


class _Part(NamedTuple):
    """Consecutive blocks of one size."""

    start: int
    size: int
    blocks: int = 1


def _parts(layout, first_apart):
    """The blocks in parts: those that are kept or not, the first if it is a part of its own, and a smaller last one."""
    blocks, rest = divmod(layout.classes, layout.block)
    cuts = {0, blocks, min(layout.kept // layout.block, blocks)} | ({min(1, blocks)} if first_apart else set())
    parts = [_Part(a * layout.block, layout.block, b - a) for a, b in itertools.pairwise(sorted(cuts))]
    return parts + ([_Part(blocks * layout.block, rest)] if rest else [])


def over_blocks(step: Callable, carry: Any, layout: Layout, made: Any = None) -> tuple[Any, Any]:
    """Runs `step(carry, start, size, made) -> (carry, made)` for blocks of the classes; the last may be smaller.

    With a carry of None, the first step runs outside of the scan and makes the carry. The `made` of one loop can be
    given to the steps of another; it is None for blocks that are not kept.
    """
    parts = _parts(layout, carry is None or made is not None)
    out = []
    for part, given in zip(parts, made or [None] * len(parts), strict=True):
        kept = part.start + part.size <= layout.kept
        if part.blocks == 1:
            carry, y = step(carry, part.start, part.size, given)
            out.append(y if kept else None)
        else:
            start = jnp.int32(part.start // part.size)
            scanned = ft.partial(_scanned, step, part.size, kept)
            (_, carry), y = lax.scan(scanned, (start, carry), given, length=part.blocks)
            out.append(y)
    return carry, out


def _scanned(step, size, kept, carry, made):
    """A step of a scan. It counts blocks: the compiler sees that their starts are multiples of their size."""
    count, carry = carry
    carry, made = step(carry, count * size, size, made)
    return (count + 1, carry), made if kept else None
