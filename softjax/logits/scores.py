"""From `Logits` to the sums: their tiles and blocks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from .. import _mesh
from .._dtypes import EXAMPLES, PAIRS, is_inexact
from .._explicit import over_explicit_axes
from .._loops import Layout, take_block, take_examples
from ..scores import Scores
from .functions import UserFunction
from .nodes import NUMBER, ROWS
from .value import Logits


@dataclasses.dataclass(frozen=True)
class _Block:
    """The logits of a tile and a block, from the arrays of both: a part of the program."""

    tree: Any
    roles: tuple
    masks: tuple[str, ...]
    relative: bool

    def __call__(self, numbers, examples, block, live):
        of_examples, of_masks, index = examples
        *of_classes, of_pairs, ids = block
        given = {NUMBER: iter(numbers[0]), EXAMPLES: iter(of_examples)}
        of_class = iter(of_classes)
        leaves = [next(given[role]) if role in given else _zeroed(next(of_class), role, live) for role in self.roles]
        node = jax.tree.unflatten(self.tree, leaves)
        h = node.relative() if self.relative else node.full()
        live = None if live is None else live[None]
        functions, of_masks, of_pairs = iter(numbers[1]), iter(of_masks), iter(of_pairs)
        for kind in self.masks:
            if kind == "function":
                mask = jax.vmap(jax.vmap(next(functions), (None, 0)), (0, None))(index, ids)
            elif kind == "ids":
                mask = _is_listed(next(of_masks), ids)
            else:
                mask = next(of_pairs if kind == PAIRS else of_masks)
            live = mask if live is None else live & mask
        return h if live is None else jnp.where(live, h, -jnp.inf)


def _zeroed(a, role, live):
    """A class array without the data of masked classes, which may be NaN: zeros, or the row of a class that is not."""
    if live is None or not is_inexact(a):
        return a
    if role == ROWS:
        return _filled(a, live)
    axis = 1 if role == PAIRS else role
    return jnp.where(jnp.expand_dims(live, [i for i in range(a.ndim) if i != axis % a.ndim]), a, 0)


def _filled(a, known):
    """Rows of a [n, ...] where `known` [n], and elsewhere the first such row; ones if there is none."""
    row = jnp.where(known.any(), a[known.argmax()], 1)
    return jnp.where(jnp.expand_dims(known, range(1, a.ndim)), a, row[None])


def _is_listed(listed, ids):
    """Whether each class of a block is among those listed [n, T]; ids are consecutive, but for padding."""
    position = listed - ids[0]
    here = (listed >= 0) & (position >= 0) & (position < ids.size)
    rows = jnp.arange(listed.shape[0])[:, None]
    mask = jnp.zeros((listed.shape[0], ids.size), bool)
    return mask.at[rows, jnp.where(here, position, ids.size)].set(True, mode="drop")


def _of_now(logits):
    """The logits with functions, of nodes and masks, that are what they compute now."""
    is_function = lambda a: isinstance(a, UserFunction)
    return jax.tree.map(lambda a: a.again() if is_function(a) else a, logits, is_leaf=is_function)


def _flat(logits, kept=None):
    """The node of the logits, with one axis for all examples, and the data of one that is kept where one is not."""
    node = logits.node.flat(math.prod(logits.shape[:-1])).prepared(logits.live, logits.shards)
    if kept is None:
        return node

    def of_kept(a, role):
        if role not in (EXAMPLES, PAIRS) or not is_inexact(a):
            return a
        return _filled(a, kept)

    return jax.tree.map(of_kept, node, node.roles())


def scores_of(logits: Logits, kept: Array | None = None) -> Scores:
    """The logits as the scores that are summed over the classes; examples [N] that are not kept have other data."""
    logits = _of_now(logits)
    *batch, k = logits.shape
    n, shards = math.prod(batch), logits.shards
    node = _flat(logits, kept)
    offset = node.offset()
    leaves, tree = jax.tree.flatten(node)
    roles = tuple(jax.tree.leaves(node.roles()))
    of_role = lambda role: tuple(a for a, r in zip(leaves, roles, strict=True) if r == role)
    class_roles = tuple(r for r in roles if r not in (NUMBER, EXAMPLES))
    of_classes = tuple(a for a, r in zip(leaves, roles, strict=True) if r not in (NUMBER, EXAMPLES))
    functions = tuple(m.data for m in logits.masks if m.kind == "function")
    of_masks = tuple(m.flat(n, logits.shape) for m in logits.masks if m.kind in (EXAMPLES, "ids"))
    pairs = tuple(m.flat(n, logits.shape) for m in logits.masks if m.kind == PAIRS)
    index = _mesh.example_index(shards, tuple(batch)) if functions else None
    needs_ids = any(m.kind in ("function", "ids") for m in logits.masks)
    ids = k * _mesh.device_index(shards.classes) + jnp.arange(k, dtype=jnp.int32) if needs_ids else None
    kinds = tuple(m.kind for m in logits.masks)
    relative, full = (
        jax.tree_util.Partial(_Block(tree, roles, kinds, is_relative), (of_role(NUMBER), functions))
        for is_relative in (True, False)
    )
    return Scores(
        "masked logits" if kinds else "logits",
        relative,
        (of_role(EXAMPLES), of_masks, index),
        (*of_classes, pairs, ids),
        (*(0 if r == ROWS else r if r == PAIRS else r % 2 for r in class_roles), PAIRS, 0),
        logits.live,
        None,
        k,
        node.width,
        tuple(batch),
        shards,
        node.rounding,
        None if offset is None else full,
        offset,
    )


def in_memory(logits: Logits) -> Array:
    """The logits [..., K], by the function of the blocks."""
    scores = scores_of(logits).computed_in(logits.dtype).of_loss(relative=False)
    layout = Layout((*scores.axes, 0), scores.n, scores.k, scores.n, scores.k)
    *classes, live = take_block((*scores.classes, scores.live), layout, 0, scores.k)
    h = scores.function(take_examples(scores.examples, 0, scores.k), tuple(classes), live)
    return h.reshape(logits.shape).astype(logits.dtype)


def _partition_of_taken(given):
    return P(*given["logits"].examples_partition[:-1], None)


@over_explicit_axes(_partition_of_taken)
def taken(logits: Logits, ids: Array) -> Array:
    """The logits [..., T] of classes, from the devices that have them; NaN for an id that is no class."""
    logits = _of_now(logits)
    *batch, k = logits.shape
    n, shards = math.prod(batch), logits.shards
    node, listed = _flat(logits), ids.reshape(n, ids.shape[-1])

    def of_positions(position):
        def gathered(a, role):
            a = a.astype(logits.dtype) if is_inexact(a) else a
            if role in (NUMBER, EXAMPLES):
                return a
            of_class = 0 if role == ROWS else role
            a = jnp.take_along_axis(a, position, 1) if role == PAIRS else jnp.moveaxis(a, of_class, 0)[position]
            if logits.live is None or not is_inexact(a):
                return a
            here = jnp.expand_dims(logits.live[position], range(2, a.ndim))
            return jnp.where(here, a, 1 if role == ROWS else 0)

        h = jax.tree.map(gathered, node, node.roles()).at()
        live = None if logits.live is None else logits.live[position]
        index = _mesh.example_index(shards, tuple(batch))
        for mask in logits.masks:
            if mask.kind == "function":
                has = jax.vmap(jax.vmap(mask.data, (None, 0)))(index, listed)
            elif mask.kind == "ids":
                has = (listed[:, :, None] == mask.flat(n, logits.shape)[:, None]).any(-1)
            else:
                has = mask.flat(n, logits.shape)
                has = jnp.take_along_axis(has, position, 1) if mask.kind == PAIRS else has
            live = has if live is None else live & has
        return h if live is None else jnp.where(live, h, -jnp.inf)

    count = k * _mesh.device_count(shards.classes)
    known = (listed >= 0) & (listed < count)
    h = _mesh.at_class(listed, of_positions, k, shards.classes)
    return jnp.where(known, h, jnp.nan).reshape(ids.shape)
