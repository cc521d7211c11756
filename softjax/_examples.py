"""Tiles of examples, and when the gradient is taken.

A loss per example leaves the gradient to the backward pass, which makes the scores again: 4 matrix
products where 3 would do. A sum of losses knows the cotangent of each beforehand. Its gradient is taken
in the forward pass, one tile of examples after the other, while the tile's scores are at hand.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from . import _arguments, _classes
from . import _gibbs as g
from ._classes import Sizes
from ._placement import Placement


class Problem(NamedTuple):
    """What is to be computed, apart from how."""

    columns: Callable
    """(examples, block of classes, ids) -> Columns"""
    finish: Callable
    """(Totals, examples, classes) -> [N, ...], where the classes have no gradient"""
    examples: Any
    """a pytree of [N, ...]"""
    classes: tuple
    """of pytrees"""


def per_example(axes: _classes.Axes, sizes: Sizes, problem: Problem) -> Array:
    """The losses [N, ...] of a problem whose classes lie on the `axes`."""
    columns, finish, examples, classes = problem
    totals = _classes.totals(columns, examples, classes, axes, sizes)
    return finish(totals, examples, lax.stop_gradient(classes))


def evaluate(
    problem: Problem,
    axes: _classes.Axes,
    n: int,
    count: int,
    placement: Placement,
    *,
    weights: Array | None = None,
    kept: Array | None = None,
    known: Array | None = None,
    shares: Array | None = None,
    reduction: str = "none",
) -> Array:
    """The losses [N, ...] times their weights [N], their sum, or their mean.

    The mean is sum(weights losses) / sum(weights shares). An example that is not `kept` has loss and
    gradient 0, and is no part of it. One that is not `known` has NaN for both.
    """
    dtype = _arguments.common_dtype(*_arguments.inexact(problem.examples))
    if reduction == "mean":
        # In the forward pass: a gradient that is scaled later has to be read and written once more.
        weights = of_mean(jnp.ones(n, dtype) if weights is None else weights, shares, kept)
    if known is not None:
        weights = jnp.where(known, jnp.ones(n, dtype) if weights is None else weights, jnp.nan)
    problem = Problem(
        Partial(_columns_of_weighed, problem.columns),
        Partial(_weighed, problem.finish),
        (problem.examples, weights, kept),
        problem.classes,
    )
    sizes = Sizes(n, count, placement.tile, min(placement.block, count))
    if reduction == "none":
        return per_example(axes, sizes, problem)
    if placement.gradient == "backward":
        return per_example(axes, sizes, problem).sum()
    return _total(axes, sizes, *_classes.split(problem))


def of_mean(weights: Array, shares: Array | None = None, kept: Array | None = None) -> Array:
    """The weights whose sum of losses is the mean."""
    shared = weights if shares is None else weights * shares
    total = (shared if kept is None else jnp.where(kept, shared, 0)).sum()
    return jnp.where(total == 0, 0, weights / jnp.where(total == 0, 1, total))


def reduce(losses: Array, weights: Array | None, reduction: str) -> Array:
    """The losses [N] times their weights, their sum, or their mean."""
    if reduction == "mean":
        weights = of_mean(jnp.ones_like(losses) if weights is None else weights)
    weighed = losses if weights is None else _times(losses, weights)
    return weighed if reduction == "none" else weighed.sum()


def _columns_of_weighed(columns, examples, block, ids):
    return columns(examples[0], block, ids)


def _weighed(finish, totals, examples, classes):
    examples, weights, kept = examples
    loss = finished(finish(totals, examples, classes), totals.a.m.shape[0])
    if kept is not None:
        loss = jnp.where(_rank_of(loss, kept), loss, 0)
    return loss if weights is None else _times(loss, weights)


def _times(loss, weights):
    """Their product; a weight of 0 rules out a loss of infinity, which has no derivative by its weight."""
    weights = _rank_of(loss, weights)
    infinite = jnp.isinf(loss)
    as_constant = jnp.where(infinite & (weights == 0), 0, loss) * lax.stop_gradient(weights)
    return jnp.where(infinite, as_constant, jnp.where(infinite, 0, loss) * weights)


def finished(loss: Any, n: int) -> Array:
    """What a loss's `finish` returned, if it is the losses of N examples."""
    if not isinstance(loss, Array):
        raise TypeError(f"`finish` of a loss must return an array of JAX's, got {_arguments.shown(loss)}.")
    if loss.shape[:1] != (n,):
        raise ValueError(f"`finish` of a loss must return an array [N, ...] of {n} losses, got shape {loss.shape}.")
    return loss


def _rank_of(x, a):
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))


# ---------------------------------------------------------------------------------------------
# The gradient in the forward pass


def _of_tile(axes, sizes, differentiable, fixed, dclasses):
    """((value, gradients for columns and finish), those for examples, those for classes added to `dclasses`)."""
    columns, _, examples, classes = _classes.join(differentiable, fixed)
    sums, made = _classes.sums(columns, examples, classes, axes, sizes.classes, sizes.block)
    inexact, others = _classes.split(g.close(sums))

    def of_totals(totals, finish, examples):
        totals, finish, examples = _classes.join((totals, finish, examples), (others, fixed.finish, fixed.examples))
        return finish(totals, examples, classes).sum()

    value, back = jax.vjp(of_totals, inexact, differentiable.finish, differentiable.examples)
    ct, dfinish, dexamples = back(jnp.ones_like(value))
    totals, ct = (_classes.join(a, others) for a in (inexact, ct))

    def step(grads, start, size, made):
        *others, dclasses = grads
        take = lambda classes: _classes.take(classes, axes, start, size)
        ids = _classes.ids(start, size)
        # The columns are made again for their derivative, from which XLA drops whatever it does not need.
        d = _classes.pull_block(
            (differentiable.columns, differentiable.examples, take(differentiable.classes)),
            (fixed.columns, fixed.examples, take(fixed.classes)),
            ids,
            lambda _: g.pull(made, ids, totals, ct),
        )
        *others, dblock = jax.tree.map(jnp.add, (*others, take(dclasses)), d)
        return (*others, _classes.put(dclasses, axes, start, dblock)), None

    grads = (_zeros(differentiable.columns), dexamples, dclasses)
    (dcolumns, dexamples, dclasses), _ = _classes.each(step, grads, sizes.classes, sizes.block, made)
    return (value, dcolumns, dfinish), dexamples, dclasses


def _zeros(tree):
    return jax.tree.map(lambda a: jnp.zeros_like(_classes.wide(a)), tree)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value_and_gradients(axes, sizes, differentiable, fixed):
    def step(carry, tile):
        so_far, dclasses = carry
        moving, still = (
            part._replace(examples=examples) for part, examples in zip((differentiable, fixed), tile, strict=True)
        )
        sums, dexamples, dclasses = _of_tile(axes, sizes, moving, still, dclasses)
        return (jax.tree.map(jnp.add, so_far, sums), dclasses), dexamples

    zero = jnp.zeros((), _arguments.common_dtype(*jax.tree.leaves(differentiable.examples)))
    carry = (zero, _zeros(differentiable.columns), _zeros(differentiable.finish)), _zeros(differentiable.classes)
    examples = (differentiable.examples, fixed.examples)
    carry, dexamples = _classes.over_tiles(step, carry, examples, sizes.examples, sizes.tile)
    (value, dcolumns, dfinish), dclasses = carry
    return value, Problem(dcolumns, dfinish, dexamples, dclasses)


@_value_and_gradients.defjvp
def _(axes, sizes, primals, tangents):
    """The derivatives of these gradients are those of the rule in `_classes`."""
    differentiable, fixed = primals

    def of_blocks(differentiable):
        total = lambda d: per_example(axes, sizes, _classes.join(d, fixed)).sum()
        value, gradients = jax.value_and_grad(total)(differentiable)
        return value, jax.tree.map(_classes.wide, gradients)

    return jax.jvp(of_blocks, (differentiable,), (tangents[0],))


@ft.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rule(axes, sizes, differentiable, fixed):
    return per_example(axes, sizes, _classes.join(differentiable, fixed)).sum()


def _fwd(axes, sizes, differentiable, fixed):
    value, gradients = _value_and_gradients(axes, sizes, differentiable, fixed)
    return value, (gradients, differentiable)


def _bwd(axes, sizes, residuals, ct):  # noqa: ARG001
    gradients, differentiable = residuals
    return jax.tree.map(lambda d, a: (ct * d).astype(a.dtype), gradients, differentiable), None


_rule.defvjp(_fwd, _bwd)
_total = _classes.both_modes(_rule, options=2)
