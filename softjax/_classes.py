"""Where the classes live, and when the gradient is taken: the custom rules, in both modes."""

import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _gibbs as g


def both_modes(rule: Callable, *, options: int = 0) -> Callable:
    """Forward mode for the `jax.custom_vjp` function `rule(*options, differentiable, fixed)`.

    The pullback is linear in its cotangent, so its transpose is the pushforward. Transposed once
    more, as reverse mode does, it is the pullback again: the one rule serves both modes.

    The rule's own forward pass calls the function made here, so that what it computes is never
    differentiated except by the rule, to any order. Integers among its results have no tangent.
    """

    @ft.partial(jax.custom_jvp, nondiff_argnums=tuple(range(options)))
    @ft.wraps(rule)
    def function(*args):
        return rule(*args)

    @function.defjvp
    def _(*args):
        *chosen, (differentiable, fixed), (tangents, _) = args

        def inexact_part(differentiable):
            out = rule(*chosen, differentiable, fixed)
            return split(out)[0], out

        inexact, pullback, out = jax.vjp(inexact_part, differentiable, has_aux=True)
        (moved,) = jax.linear_transpose(pullback, inexact)((tangents,))
        still = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), split(out)[1])
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


def totals(columns: Callable, count: int, block_size: int, examples: Any, classes: Any) -> g.Totals:
    """Totals over classes 0..count-1 of `columns(examples, block, ids) -> Columns`.

    `examples` is any pytree, `classes` a pytree of arrays [count, ...] of which `columns` sees
    `block_size` rows at a time, with their ids. The backward pass makes each block's columns again,
    and nothing of the size of all of them is held in any mode of differentiation.
    """
    differentiable, fixed = split((examples, classes))
    return _totals(columns, count, block_size, differentiable, fixed)


def block_size(examples: Any, count: int) -> int:
    """How many of `count` classes to hold at a time against `examples` examples.

    A block of 2^20 scores (4 MB) stays in the cache between the passes over it: the value and gradients
    of the mixture autoencoder took 90 ms with blocks of 256 classes, 115 ms with 512 and 142 ms with
    1024 (N = K = 4096, D = 16, E = 64, 2 CPU cores). A single example is taken for one of a batch under
    vmap, unseen from here.
    """
    if not isinstance(examples, int):  # a symbolic size, in an export for any
        return min(count, 1024)
    return min(count, 512 if examples == 1 else max(128, min(2**20 // max(examples, 1), 4096)))


def _blocks(count, size):
    """(starts [n] of the blocks of `size` classes, start of the ragged rest or None)."""
    whole = count // size
    return jnp.arange(whole) * size, (whole * size if count % size else None)


def _take(classes, start, size):
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), classes)


def _put(classes, block, start):
    return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, start, 0), classes, block)


def _sums(columns, count, size, differentiable, fixed):
    examples, classes = join(differentiable, fixed)

    def fold(start, size):
        ids = start + jnp.arange(size)
        return g.fold(columns(examples, _take(classes, start, size), ids), ids)

    starts, ragged = _blocks(count, size)
    sums = fold(0, size)
    if starts.size > 1:
        sums, _ = lax.scan(lambda sums, start: (g.merge(sums, fold(start, size)), None), sums, starts[1:])
    return sums if ragged is None else g.merge(sums, fold(ragged, count - ragged))


@ft.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rule(columns, count, size, differentiable, fixed):
    return g.close(_sums(columns, count, size, differentiable, fixed))


def _fwd(columns, count, size, differentiable, fixed):
    out = _totals(columns, count, size, differentiable, fixed)
    return out, (differentiable, fixed, out)


# Without `checkpoint` a derivative of the loop below would keep what this computes for every block.
@ft.partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1))
def _pull(columns, size, start, residuals, ct):
    (examples, classes), (fixed_examples, fixed_classes), out = residuals
    ids = start + jnp.arange(size)
    others = _take(fixed_classes, start, size)
    of_block = lambda examples, block: columns(join(examples, fixed_examples), join(block, others), ids)
    made, back = jax.vjp(of_block, examples, _take(classes, start, size))
    return back(g.pull(made, ids, out, ct))


def _bwd(columns, count, size, residuals, ct):
    starts, ragged = _blocks(count, size)
    if ragged is None and starts.size == 1:
        return _pull(columns, size, 0, residuals, ct), None

    def step(grads, start, size=size):
        dexamples, dclasses = grads
        d, dblock = _pull(columns, size, start, residuals, ct)
        return (jax.tree.map(jnp.add, dexamples, d), _put(dclasses, dblock, start)), None

    grads, _ = lax.scan(step, jax.tree.map(jnp.zeros_like, residuals[0]), starts)
    if ragged is not None:
        grads, _ = step(grads, ragged, count - ragged)
    return grads, None


_rule.defvjp(_fwd, _bwd)
_totals = both_modes(_rule, options=3)
