"""Where the classes live: in one array or over the devices of a mesh, and how many are held at a time.

The custom rules, in both modes. On a mesh every array that they are given varies along every axis along which one
of them does; the transpose of the cast that makes it so, outside of the rules, adds up the gradients of the devices.
The totals are the same on all devices, and are cast once more in the backward pass, which holds no sum over devices.
"""

import functools as ft
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal
from jax.typing import ArrayLike

from . import _arguments, _mesh
from . import _gibbs as g


def both_modes(rule: jax.custom_vjp, *, options: int = 0) -> Callable:
    """Forward mode for the `jax.custom_vjp` function `rule(*options, differentiable, fixed)`.

    The pullback is linear in its cotangent, so its transpose is the pushforward. Transposed once
    more, as reverse mode does, it is the pullback again: the one rule serves both modes.

    The rule's own forward pass calls the function made here, so that what it computes is differentiated
    by the rule, to any order. Integers among its results have no tangent.

    JAX 0.10 drops a `custom_jvp` inside a scan that is differentiated by reverse and then by forward mode,
    and takes the derivative of what it wraps: of the plain function, which therefore has to be right too.
    """

    @ft.partial(jax.custom_jvp, nondiff_argnums=tuple(range(options)))
    @ft.wraps(rule)
    def function(*args):
        return inspect.unwrap(rule)(*args)

    @function.defjvp
    def _(*args):
        *chosen, (differentiable, fixed), (tangents, _) = args

        def inexact_part(differentiable):
            out = rule(*chosen, differentiable, fixed)
            return split(out)[0], out

        inexact, pullback, out = jax.vjp(inexact_part, differentiable, has_aux=True)
        (moved,) = jax.linear_transpose(pullback, inexact)((tangents,))
        still = jax.tree.map(zero_from_primal, split(out)[1])
        return out, join(moved, still)

    return function


def split(tree: Any) -> tuple[Any, Any]:
    """(the inexact leaves, the other leaves) of a tree, each with None where the other has a leaf."""
    inexact = lambda a: jnp.issubdtype(a.dtype, jnp.inexact)
    return (
        jax.tree.map(lambda a: a if inexact(a) else None, tree),
        jax.tree.map(lambda a: None if inexact(a) else a, tree),
    )


def join(inexact: Any, others: Any) -> Any:
    """The tree of which `split` made two."""
    is_none = lambda a: a is None
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, others, is_leaf=is_none)


class Layout(NamedTuple):
    """Where the classes are, how many things a device has, and how many of them are held at a time."""

    axes: tuple[int, ...]  # of each part of the classes, the axis along which they lie
    examples: int
    classes: int
    tile: int
    block: int
    mesh: _mesh.Names = ()  # the axes of a mesh over which the classes are spread, in the order of their ids
    total: int | None = None  # of the classes of all devices, if behind them is what makes up their number


def totals(columns: Callable, examples: Any, classes: tuple, layout: Layout) -> g.Totals:
    """Totals over all classes of `columns(examples, block, ids) -> Columns`.

    `columns` is a `jax.tree_util.Partial`, whose arrays have gradients too. `examples` is any pytree and
    `classes` a tuple of pytrees of arrays, each with its classes on one of the layout's axes; of these `columns`
    sees a tile of examples and a block of classes at a time, with the ids of these, in at least float32.
    The backward pass makes each block's columns again, and nothing of the size of all of them is held in
    any mode of differentiation.
    """
    return _totals(layout, *split(spread((columns, examples, classes), layout, before=wide)))


def spread(tree: Any, layout: Layout, before: Callable = lambda a: a) -> Any:
    """What a rule over the classes is about, alike in the axes along which it varies.

    Arguments are to be made wide before they are cast: their gradients are then added up before they are rounded.
    """
    return _mesh.vary(tree, _mesh.varying(tree) | set(layout.mesh), before)


# ---------------------------------------------------------------------------------------------
# Tiles of examples


def over_tiles(step: Callable, carry: Any, examples: Any, n: int, tile: int) -> tuple[Any, Any]:
    """Runs `step(carry, examples) -> (carry, made)` for `tile` of N examples at a time; the last may be fewer."""
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


# ---------------------------------------------------------------------------------------------
# Blocks of classes


def take(classes: tuple, layout: Layout, start: ArrayLike, size: int) -> tuple:
    """Some of the classes, in a type to compute in."""

    def of_axis(axis, tree):
        return jax.tree.map(lambda a: wide(lax.dynamic_slice_in_dim(a, start, size, axis)), tree)

    return tuple(map(of_axis, layout.axes, classes))


def put(classes: tuple, layout: Layout, start: ArrayLike, block: tuple) -> tuple:
    """The classes, with a block in place of what they have there."""

    def on_axis(axis, tree, block):
        write = lambda a, b: lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), start, axis)
        return jax.tree.map(write, tree, block)

    return tuple(map(on_axis, layout.axes, classes, block))


def wide(x: Array) -> Array:
    """x in a type to compute in."""
    return x.astype(_arguments.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def ids(layout: Layout, start: ArrayLike, size: int) -> Array:
    """Those of consecutive classes; a number that is no label behind the last."""
    first = layout.classes * _mesh.place(layout.mesh)
    of_block = (first + jnp.asarray(start, jnp.int32)) + jnp.arange(size, dtype=jnp.int32)
    return of_block if layout.total is None else jnp.where(of_block < layout.total, of_block, _arguments.INT32.min)


def each(step: Callable, carry: Any, count: int, size: int, made: Any = None) -> tuple[Any, Any]:
    """Runs `step(carry, start, size, made) -> (carry, made)` for `size` of `count` things at a time.

    The last ones may be fewer. A carry of None stands for nothing yet, and the first step is then run by
    itself. What the steps of such a run make can be given to those of another.
    """
    starts = np.arange(0, count - size + 1, size, dtype=np.int32)
    parts: list[tuple[Any, int]] = [(0, size)] if carry is None or made is not None or starts.size == 1 else []
    if starts.size > len(parts):
        parts.append((starts[len(parts) :], size))
    if count % size:
        parts.append((count - count % size, count % size))
    made = [None] * len(parts) if made is None else made
    out = []
    for (start, n), m in zip(parts, made, strict=True):
        if isinstance(start, int):
            carry, y = step(carry, start, n, m)
        else:
            carry, y = lax.scan(ft.partial(_scanned, step, n), carry, (start, m))
        out.append(y)
    return carry, out


def _scanned(step, size, carry, x):
    start, made = x
    return step(carry, start, size, made)


def sums(columns: Callable, examples: Any, classes: tuple, layout: Layout) -> tuple[g.Sums, Any]:
    """(the sums over all classes, the columns that were made for it)."""

    def step(sums, start, size, _):
        of_block = ids(layout, start, size)
        made = made_of(columns, examples, take(classes, layout, start, size), of_block)
        folded = spread(g.fold(made, of_block), layout)
        return (folded if sums is None else g.merge(sums, folded)), made

    sums, made = each(step, None, layout.classes, layout.block)
    return (g.merge_over(sums, layout.mesh) if layout.mesh else sums), made


def made_of(columns: Callable, examples: Any, block: tuple, ids: Array) -> g.Columns:
    """The columns of a block, alike to its classes in the axes along which they vary."""
    return _mesh.vary(columns(examples, block, ids), _mesh.varying(columns, examples, block))


def pull_block(differentiable: tuple, fixed: tuple, ids: Array, pull: Callable) -> tuple:
    """Cotangents of (columns, examples, block) from those that `pull(columns made)` gives to what was made."""

    def of_block(differentiable):
        columns, examples, block = join(differentiable, fixed)
        return split(made_of(columns, examples, block, ids))

    made, back, others = jax.vjp(of_block, differentiable, has_aux=True)
    cotangents = split(pull(join(made, others)))[0]
    (cotangents,) = back(_mesh.vary(cotangents, _mesh.varying(made)))
    return cotangents


# ---------------------------------------------------------------------------------------------
# The rule


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(layout, differentiable, fixed):
    columns, examples, classes = join(differentiable, fixed)

    def step(_, examples):
        return None, g.close(sums(columns, examples, classes, layout)[0])

    return over_tiles(step, None, examples, layout.examples, layout.tile)[1]


def _fwd(layout, differentiable, fixed):
    out = _totals(layout, differentiable, fixed)
    return out, (differentiable, fixed, out)


# Without `checkpoint` a derivative of the loops below would keep what this computes for every block.
@ft.partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1))
def _pull_block(layout, size, start, residuals, ct):
    (*others, classes), (*fixed_others, fixed_classes), out = residuals
    differentiable = (*others, take(classes, layout, start, size))
    fixed = (*fixed_others, take(fixed_classes, layout, start, size))
    of_block = ids(layout, start, size)
    return pull_block(differentiable, fixed, of_block, lambda made: g.pull(made, of_block, out, ct))


def _pull_tile(layout, dclasses, residuals, ct):
    """(the gradients for columns and examples, those for classes with others added to them)."""
    alone = layout.tile >= layout.examples

    def step(grads, start, size, _):
        grads, dclasses = grads
        *d, dblock = spread(_pull_block(layout, size, start, residuals, ct), layout)
        if not alone:
            dblock = jax.tree.map(jnp.add, dblock, take(dclasses, layout, start, size))
        return (jax.tree.map(jnp.add, grads, d), put(dclasses, layout, start, dblock)), None

    columns, examples, _ = residuals[0]
    zeros = jax.tree.map(jnp.zeros_like, [columns, examples])
    (grads, dclasses), _ = each(step, (zeros, dclasses), layout.classes, layout.block)
    return grads, dclasses


def _bwd(layout, residuals, ct):
    residuals, ct = spread((residuals, ct), layout)
    (columns, examples, classes), (fixed_columns, fixed_examples, fixed_classes), out = residuals
    if layout.tile >= layout.examples:
        grads, dclasses = _pull_tile(layout, jax.tree.map(jnp.zeros_like, classes), residuals, ct)
        return (*grads, dclasses), None

    @ft.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, tile):
        dcolumns, dclasses = carry
        examples, fixed_examples, out, ct = tile
        residuals = (columns, examples, classes), (fixed_columns, fixed_examples, fixed_classes), out
        (d, dexamples), dclasses = _pull_tile(layout, dclasses, residuals, ct)
        return (jax.tree.map(jnp.add, dcolumns, d), dclasses), dexamples

    # What is added up over the tiles is wide, and rounded once.
    zeros = jax.tree.map(lambda a: jnp.zeros_like(wide(a)), (columns, classes))
    tiles = (examples, fixed_examples, out, ct)
    (dcolumns, dclasses), dexamples = over_tiles(step, zeros, tiles, layout.examples, layout.tile)
    as_given = lambda d, a: d.astype(a.dtype)
    return (*jax.tree.map(as_given, (dcolumns, dexamples, dclasses), (columns, examples, classes)),), None


_rule.defvjp(_fwd, _bwd)
_totals = both_modes(_rule, options=1)
