"""Loops over tiles of examples and over blocks of classes."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from . import _checks, _mesh
from ._dtypes import widened


class Layout(NamedTuple):
    """The sizes of a problem on one device, and how much of it is in memory at a time."""

    axes: tuple[int, ...]  # the class axis of each tree of class arrays
    examples: int
    classes: int
    tile: int
    block: int
    mesh: _mesh.Names = ()  # the mesh axes over which the classes are sharded, in the order of their ids
    unpadded: int | None = None  # the number of classes of all devices without padding, if there is padding
    engine: Any = None  # in place of the loop over blocks


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
        return jax.tree.map(lambda a: widened(lax.dynamic_slice_in_dim(a, start, size, axis)), tree)

    return tuple(map(of_axis, layout.axes, classes))


def put_block(classes: tuple, layout: Layout, start: ArrayLike, block: tuple) -> tuple:
    """The class arrays with a block replaced."""

    def on_axis(axis, tree, block):
        write = lambda a, b: lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), start, axis)
        return jax.tree.map(write, tree, block)

    return tuple(map(on_axis, layout.axes, classes, block))


def block_ids(layout: Layout, start: ArrayLike, size: int) -> Array:
    """Ids of consecutive classes; padding gets INT32.min, which equals no label."""
    first = layout.classes * _mesh.device_index(layout.mesh)
    of_block = (first + jnp.asarray(start, jnp.int32)) + jnp.arange(size, dtype=jnp.int32)
    return of_block if layout.unpadded is None else jnp.where(of_block < layout.unpadded, of_block, _checks.INT32.min)


def over_blocks(step: Callable, carry: Any, layout: Layout, made: Any = None) -> tuple[Any, Any]:
    """Runs `step(carry, start, size, made) -> (carry, made)` for blocks of the classes; the last may be smaller.

    With a carry of None, the first step runs outside of the scan and makes the carry. The `made` of one loop can be
    given to the steps of another.
    """
    count, size = layout.classes, layout.block
    starts = np.arange(0, count - size + 1, size, dtype=np.int32)
    parts: list[tuple[Any, int]] = [(0, size)] if carry is None or made is not None or starts.size == 1 else []
    if starts.size > len(parts):
        parts.append((starts[len(parts) :], size))
    if count % size:
        parts.append((count - count % size, count % size))
    made = [None] * len(parts) if made is None else made
    out = []
    for (start, length), given in zip(parts, made, strict=True):
        if isinstance(start, int):
            carry, y = step(carry, start, length, given)
        else:
            carry, y = lax.scan(ft.partial(_scanned, step, length), carry, (start, given))
        out.append(y)
    return carry, out


def _scanned(step, size, carry, x):
    start, made = x
    return step(carry, start, size, made)
