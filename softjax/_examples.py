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

from . import _arguments, _classes, _mesh
from . import _gibbs as g
from ._classes import Layout
from ._mesh import Shards
from ._placement import Placement


class Problem(NamedTuple):
    """What is to be computed, apart from how."""

    columns: Callable
    """(examples, block of classes, ids) -> Columns"""
    finish: Callable
    """(Totals, targets, classes, layout) -> [N, ...], where the classes have no gradient"""
    examples: Any
    """a pytree of [N, ...]"""
    targets: Any
    """a pytree of [N, ...]: what the finish knows of the examples"""
    classes: tuple
    """of pytrees"""


def per_example(layout: Layout, problem: Problem) -> Array:
    """The losses [N, ...] of a problem."""
    columns, finish, examples, targets, classes = problem
    totals = _classes.totals(columns, examples, classes, layout)
    return finish(totals, targets, lax.stop_gradient(classes), layout)


def evaluate(
    problem: Problem,
    axes: tuple[int, ...],
    n: int,
    count: int,
    placement: Placement,
    shards: Shards,
    *,
    weights: Array | None = None,
    kept: Array | None = None,
    known: Array | None = None,
    shares: Array | None = None,
    reduction: str = "none",
) -> Array:
    """The losses [N, ...] times their weights [N], their sum, or their mean.

    The mean is sum(weights losses) / sum(weights shares). An example that is not `kept` has loss and
    gradient 0, and is no part of it. One that is not `known` has NaN for both. Sums and means are
    those of the examples of all devices.
    """
    dtype = _arguments.common_dtype(*_arguments.inexact(problem.examples))
    if reduction == "mean":
        # In the forward pass: a gradient that is scaled later has to be read and written once more.
        if weights is None and shares is None and kept is None and isinstance(n, int):  # it may be a symbol
            weights = jnp.full(n, 1 / max(n * _mesh.size(shards.examples), 1), dtype)
        else:
            weights = of_mean(jnp.ones(n, dtype) if weights is None else weights, shares, kept, shards.examples)
    if known is not None:
        weights = jnp.where(known, jnp.ones(n, dtype) if weights is None else weights, jnp.nan)
    problem = problem._replace(
        finish=Partial(_weighed, problem.finish),
        targets=(problem.targets, weights, kept),
    )
    if shards.total is not None:
        problem = problem._replace(columns=Partial(_without_what_is_made_up, problem.columns))
    layout = Layout(axes, n, count, placement.tile, min(placement.block, count), shards.classes, shards.total)
    if reduction == "none":
        return per_example(layout, problem)
    if placement.gradient == "backward":
        return _mesh.total(per_example(layout, problem).sum(), shards.examples)
    return _mesh.total(_total(layout, *_classes.split(_spread(problem, layout))), shards.examples)


def of_mean(weights: Array, shares: Array | None = None, kept: Array | None = None, axes: _mesh.Names = ()) -> Array:
    """The weights whose sum of losses is the mean."""
    shared = weights if shares is None else weights * shares
    total = _mesh.total((shared if kept is None else jnp.where(kept, shared, 0)).sum(), axes)
    return jnp.where(total == 0, 0, weights / jnp.where(total == 0, 1, total))


def reduce(losses: Array, weights: Array | None, reduction: str) -> Array:
    """The losses [N] times their weights, their sum, or their mean."""
    if reduction == "mean":
        weights = of_mean(jnp.ones_like(losses) if weights is None else weights)
    weighed = losses if weights is None else _times(losses, weights)
    return weighed if reduction == "none" else weighed.sum()


def _without_what_is_made_up(columns, examples, block, ids):
    made = columns(examples, block, ids)
    g.check(made, ids)
    return g.only(made, ids >= 0)


def _weighed(finish, totals, targets, classes, layout):
    targets, weights, kept = targets
    loss = finished(finish(totals, targets, classes, layout), totals.a.m.shape[0])
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


def _spread(problem, layout):
    """The problem with its parts alike in the axes of a mesh along which they vary.

    What is finished is the same on all devices over which the classes are spread, and its gradients are counted once.
    """
    wide = _classes.wide
    of_classes = problem.columns, problem.examples, problem.classes
    columns, examples, classes = _classes.spread(of_classes, layout, before=wide)
    of_totals = _mesh.varying(columns, examples, classes) - set(layout.mesh)
    finish, targets = problem.finish, problem.targets
    finish, targets = _mesh.vary((finish, targets), of_totals | _mesh.varying(finish, targets), before=wide)
    return Problem(columns, finish, examples, targets, classes)


def _of_tile(layout, differentiable, fixed, dclasses):
    """((value, gradients for columns and finish), those for examples and targets, those for classes and `dclasses`)."""
    columns, _, examples, _, classes = _classes.join(differentiable, fixed)
    sums, made = _classes.sums(columns, examples, classes, layout)
    inexact, others = _classes.split(g.close(sums))

    def of_totals(totals, finish, targets):
        totals, finish, targets = _classes.join((totals, finish, targets), (others, fixed.finish, fixed.targets))
        return finish(totals, targets, classes, layout).sum()

    value, back = jax.vjp(of_totals, inexact, differentiable.finish, differentiable.targets)
    ct, dfinish, dtargets = back(jnp.ones_like(value))
    totals, ct = (_classes.spread(_classes.join(a, others), layout) for a in (inexact, ct))

    def step(grads, start, size, made):
        *others, dclasses = grads
        take = lambda classes: _classes.take(classes, layout, start, size)
        ids = _classes.ids(layout, start, size)
        # The columns are made again for their derivative, from which XLA drops whatever it does not need.
        d = _classes.pull_block(
            (differentiable.columns, differentiable.examples, take(differentiable.classes)),
            (fixed.columns, fixed.examples, take(fixed.classes)),
            ids,
            lambda _: g.pull(made, ids, totals, ct),
        )
        *others, dblock = jax.tree.map(jnp.add, (*others, take(dclasses)), d)
        return (*others, _classes.put(dclasses, layout, start, dblock)), None

    grads = (*_zeros((differentiable.columns, differentiable.examples)), dclasses)
    (dcolumns, dexamples, dclasses), _ = _classes.each(step, grads, layout.classes, layout.block, made)
    return (value, dcolumns, dfinish), (dexamples, dtargets), dclasses


def _zeros(tree):
    return jax.tree.map(lambda a: jnp.zeros_like(_classes.wide(a)), tree)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_gradients(layout, differentiable, fixed):
    def step(carry, tile):
        so_far, dclasses = carry
        moving, still = (
            part._replace(examples=examples, targets=targets)
            for part, (examples, targets) in zip((differentiable, fixed), tile, strict=True)
        )
        sums, of_tile, dclasses = _of_tile(layout, moving, still, dclasses)
        return (jax.tree.map(jnp.add, so_far, sums), dclasses), of_tile

    whole = _classes.join(differentiable, fixed)
    finished = _mesh.varying(whole) - set(layout.mesh) | _mesh.varying(whole.finish, whole.targets)
    zero = jnp.zeros((), _arguments.common_dtype(*jax.tree.leaves(differentiable.examples)))
    zeros = _mesh.vary(zero, finished), *_zeros((differentiable.columns, differentiable.finish))
    tiles = tuple((part.examples, part.targets) for part in (differentiable, fixed))
    carry = zeros, _zeros(differentiable.classes)
    carry, (dexamples, dtargets) = _classes.over_tiles(step, carry, tiles, layout.examples, layout.tile)
    (value, dcolumns, dfinish), dclasses = carry
    return value, Problem(dcolumns, dfinish, dexamples, dtargets, dclasses)


@_value_and_gradients.defjvp
def _(layout, primals, tangents):
    """The derivatives of these gradients are those of the rule in `_classes`."""
    differentiable, fixed = primals

    def of_blocks(differentiable):
        total = lambda d: per_example(layout, _classes.join(d, fixed)).sum()
        value, gradients = jax.value_and_grad(total)(differentiable)
        return value, jax.tree.map(_classes.wide, gradients)

    return jax.jvp(of_blocks, (differentiable,), (tangents[0],))


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(layout, differentiable, fixed):
    return per_example(layout, _classes.join(differentiable, fixed)).sum()


def _fwd(layout, differentiable, fixed):
    value, gradients = _value_and_gradients(layout, differentiable, fixed)
    return value, (gradients, differentiable)


def _bwd(layout, residuals, ct):  # noqa: ARG001
    gradients, differentiable = residuals
    return jax.tree.map(lambda d, a: (ct * d).astype(a.dtype), gradients, differentiable), None


_rule.defvjp(_fwd, _bwd)
_total = _classes.both_modes(_rule, options=1)
