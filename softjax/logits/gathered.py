"""Logits of gathered classes: those that are taken, and those that each example lists."""

from __future__ import annotations

import functools as ft
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from ..arguments.dtypes import EXAMPLES, PAIRS, is_inexact
from ..compute.loops import over_tiles
from ..compute.rules import both_modes
from ..parallel import collectives
from ..parallel.explicit import over_explicit_axes
from .nodes import NUMBER, ROWS, Dense
from .scores import flat_node, of_now
from .value import Logits


def _partition_of_taken(given):
    return P(*given["logits"].examples_partition[:-1], None)


@over_explicit_axes(_partition_of_taken)
def taken(logits: Logits, ids: Array) -> Array:
    """The logits [..., T] of classes, from the devices that have them; NaN for an id that is no class."""
    logits = of_now(logits)
    *batch, k = logits.shape
    n, shards = math.prod(batch), logits.shards
    node, listed = flat_node(logits), ids.reshape(n, ids.shape[-1])

    def of_positions(position):
        live = None if logits.live is None else logits.live[position]
        index = collectives.example_index(shards, tuple(batch))
        for mask in logits.masks:
            if mask.kind == "function":
                has = jax.vmap(jax.vmap(mask.data, (None, 0)))(index, listed)
            elif mask.kind == "ids":
                has = (listed[:, :, None] == mask.flat(n, logits.shape)[:, None]).any(-1)
            else:
                has = mask.flat(n, logits.shape)
                has = jnp.take_along_axis(has, position, 1) if mask.kind == PAIRS else has
            live = has if live is None else live & has
        h = _at(node, position, logits, live)
        return h if live is None else jnp.where(live, h, -jnp.inf)

    count = k * collectives.device_count(shards.classes)
    known = (listed >= 0) & (listed < count)
    h = collectives.at_class(listed, of_positions, k, shards.classes)
    return jnp.where(known, h, jnp.nan).reshape(ids.shape)


def _at(node, position, logits, mask=None):
    """The logits [n, T] of a flat node at positions [n, T] of the classes, without regard to masks by examples."""

    def gathered(a, role):
        if role in (NUMBER, EXAMPLES):
            return a.astype(logits.dtype) if is_inexact(a) else a
        if role == PAIRS:
            a = jnp.take_along_axis(a, position, 1)
            a = a.astype(logits.dtype) if is_inexact(a) else a
        else:
            a = _rows_of(a, position, 0 if role == ROWS else role, logits.dtype)
        if logits.live is None or not is_inexact(a):
            return a
        here = jnp.expand_dims(logits.live[position], range(2, a.ndim))
        return jnp.where(here, a, 1 if role == ROWS else 0)

    return jax.tree.map(gathered, node, node.roles()).at(mask)


def _rows_of(a, position, axis, dtype):
    """The rows of classes at positions [n, T]. Their gradients are added up in `dtype`, and rounded once."""
    if not is_inexact(a):
        return jnp.moveaxis(a, axis, 0)[position]
    return _gathered((axis, jnp.dtype(dtype).name), *collectives.vary_together((a, position)))


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered_rule(how, a, position):
    axis, dtype = how
    return jnp.moveaxis(a, axis, 0)[position].astype(dtype)


def _gathered_fwd(how, a, position):
    return _gathered(how, a, position), (a, position)


def _gathered_bwd(how, residuals, ct):
    (axis, dtype), (a, position) = how, residuals
    rows = jnp.zeros(jnp.moveaxis(a, axis, 0).shape, dtype).at[position].add(ct)
    return jnp.moveaxis(rows, 0, axis).astype(a.dtype), None


_gathered_rule.defvjp(_gathered_fwd, _gathered_bwd)
_gathered = both_modes(_gathered_rule, options=1)


# The product of a tile of examples with gathered rows reads each row once: it is slower, by class, than a product with
# all rows, so that it pays where an example lists few of the classes. Measured on CPUs alone.
FEW_OF = 256
TILE = 2**24  # the elements of the gathered rows of a tile


def listed(logits: Logits) -> tuple[Logits, Array] | None:
    """The logits of the classes that each example lists by `where_ids`, in memory, and their ids.

    Returns:
        (logits [..., T + 1], ids [..., T + 1] in ascending order; the last, and each that is none, is -1 with logit
        -inf). None where all classes are as fast, or the logits are made in another way.
    """
    *batch, k = logits.shape
    on_mesh = logits.placed is not None or logits.shards.classes or logits.shards.examples
    lists = [mask.kind for mask in logits.masks] == ["ids"]
    if on_mesh or not lists or logits.engine is not None or jax.default_backend() != "cpu":
        return None
    roles = {role for role in jax.tree.leaves(logits.node.roles()) if role not in (NUMBER, EXAMPLES)}
    t = logits.masks[0].data.shape[-1]
    if roles - {0, ROWS} or t * FEW_OF > k:
        return None
    logits = of_now(logits)
    n, node = math.prod(batch), flat_node(logits)
    ids = logits.masks[0].flat(n, logits.shape)
    ids = jnp.sort(jnp.where((ids >= 0) & (ids < k), ids, k), -1)
    repeated = jnp.pad(ids[:, 1:] == ids[:, :-1], ((0, 0), (1, 0)))
    ids = jnp.pad(jnp.where(repeated | (ids == k), -1, ids), ((0, 0), (0, 1)), constant_values=-1)
    if logits.live is not None:
        ids = jnp.where((ids >= 0) & logits.live[ids], ids, -1)
    leaves, tree = jax.tree.flatten(node)
    is_example = [role == EXAMPLES for role in jax.tree.leaves(node.roles())]

    @jax.checkpoint
    def of_tile(examples, ids):
        rows = iter(examples)
        here = jax.tree.unflatten(tree, [next(rows) if mine else a for a, mine in zip(leaves, is_example, strict=True)])
        return jnp.where(ids >= 0, _at(here, jnp.maximum(ids, 0), logits), -jnp.inf)

    examples = [a for a, mine in zip(leaves, is_example, strict=True) if mine]
    tile = max(1, TILE // ((t + 1) * node.width))
    _, h = over_tiles(lambda _, given: (None, of_tile(*given)), None, (examples, ids), n, tile)
    shape = (*batch, t + 1)
    return Logits(Dense(h.reshape(shape), logits.dtype), None, (), logits.ndim), ids.reshape(shape)
