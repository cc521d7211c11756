"""The custom derivative rules: with the gradient taken in the backward pass, and in the forward pass.

A loss per example leaves its gradient to the backward pass, which computes the scores again: 4 matrix products in
place of 3. The cotangent of every loss of a sum is known beforehand, so its gradient is taken in the forward pass,
one tile of examples after the other, while the scores of the tile are in memory.

On a mesh, every array given to a rule is first made to vary along all axes along which one of them does. The
transpose of that cast, outside of the rules, adds up the gradients of the devices. The totals are replicated over
the class axes, and are cast once more at the top of the backward pass, which contains no collective.
"""

import functools as ft
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from .._jax import linear_transpose
from ..arguments.dtypes import common_dtype, compute_dtype, inexact_leaves, join, split, widened
from ..parallel import collectives, partition
from ..sums import sums as g
from .loops import Layout, block_ids, over_blocks, over_tiles, put_block, take_block


def both_modes(rule: jax.custom_vjp, *, options: int = 0, in_parts: bool = False) -> Callable:
    """Forward mode for the `jax.custom_vjp` function `rule(*options, differentiable, fixed)`.

    With `in_parts`, the two are the parts of one tree, as `split` makes them, and an array that is not differentiated
    is in the fixed part: its gradient is not computed.

    The pullback is linear in its cotangent, so its transpose is the pushforward. Transposed again, as in reverse
    mode, it is the pullback: one rule serves both modes.

    The rule's own forward pass calls the function returned here, so that its result is differentiated by the rule,
    to any order. Integers in the result have no tangent.

    JAX 0.10 drops a `custom_jvp` in a scan that is differentiated by reverse and then by forward mode, and
    differentiates the wrapped function. That function therefore has to have the right derivative by itself.
    """

    @ft.partial(jax.custom_jvp, nondiff_argnums=tuple(range(options)))
    @ft.wraps(rule)
    def function(*args):
        return inspect.unwrap(rule)(*args)

    def jvp(*args):
        *chosen, (differentiable, fixed), (tangents, _) = args
        moving = differentiable
        if in_parts:
            moves = jax.tree.map(lambda t: not _is_symbolic_zero(t), tangents, is_leaf=_is_symbolic_zero)
            parted = lambda wanted: jax.tree.map(lambda a, m: a if m is wanted else None, differentiable, moves)
            moving, fixed = parted(True), join(parted(False), fixed)
            tangents = jax.tree.map(lambda t, m: t if m else None, tangents, moves, is_leaf=_is_symbolic_zero)

        def inexact_part(moving):
            out = rule(*chosen, moving, fixed)
            return split(out)[0], out

        inexact, pullback, out = jax.vjp(inexact_part, moving, has_aux=True)
        (moved,) = linear_transpose(pullback, inexact)((tangents,))
        still = jax.tree.map(zero_from_primal, split(out)[1])
        return out, join(moved, still)

    function.defjvp(jvp, symbolic_zeros=in_parts)
    return function


def _is_symbolic_zero(t):
    return isinstance(t, SymbolicZero)


class Problem(NamedTuple):
    """A loss of scores, apart from how it is computed."""

    columns: Any  # (examples, block of classes, ids) -> Columns; a pytree, whose arrays have gradients too
    finish: Callable  # (Totals, targets, classes, layout) -> [N, ...]; a pytree. The classes have no gradient here
    examples: Any  # a pytree of [N, ...]: the argument of `columns`
    targets: Any  # a pytree of [N, ...]: the argument of `finish`
    classes: tuple  # of pytrees, each with its classes on one of the layout's axes
    observe: Any = None  # (Totals, targets) -> a pytree of [N, ...] without derivatives; a pytree


def totals(columns: Callable, examples: Any, classes: tuple, layout: Layout) -> g.Totals:
    """Totals over all classes of `columns(examples, block, ids) -> Columns`.

    `columns` sees a tile of examples and a block of classes at a time, in at least float32. The backward pass computes
    each block again; no array has the size of all scores, in any mode of differentiation.
    """
    rule = _totals if layout.engine is None else _totals_by_engine
    return rule(layout, *split(_vary_with_mesh((columns, examples, classes), layout, before=widened)))


def losses_backward(layout: Layout, problem: Problem) -> tuple[Array, Any]:
    """(the losses [N, ...], what is observed), with the gradient in the backward pass."""
    columns, finish, examples, targets, classes, _ = problem
    of_classes = totals(columns, examples, classes, layout._replace(kept=0))
    return finish(of_classes, targets, lax.stop_gradient(classes), layout), _observed(problem, of_classes)


def sum_forward(layout: Layout, problem: Problem) -> tuple[Array, Any]:
    """(the sum of the losses, what is observed), with the gradient in the forward pass."""
    return _sum_of_losses(layout, *split(_vary_problem(problem, layout)))


def _observed(problem, of_classes):
    """What is observed of the totals, [N, ...]; None where nothing is."""
    if problem.observe is None:
        return None
    return lax.stop_gradient(problem.observe(of_classes, problem.targets))


def _vary_with_mesh(tree, layout, before=lambda a: a):
    """Makes every array vary along the same axes, the class axes of the mesh included.

    Half precision is widened `before` the cast, so that gradients are added up over devices before they are rounded.
    """
    return collectives.vary(tree, collectives.varying(tree) | set(layout.mesh), before)


def _wide(tree):
    return jax.tree.map(widened, tree)


def block_columns(columns: Callable, examples: Any, block: tuple, ids: Array, layout: Layout) -> g.Columns:
    """The columns of a block; padding contributes nothing."""
    made = columns(examples, block, ids)
    made = made if layout.unpadded is None else g.each(lambda c: without_padding(c, ids >= 0), made)
    return collectives.vary(made, collectives.varying(columns, examples, block))


def without_padding(c: g.Columns, is_class: Array) -> g.Columns:
    """The columns with score -inf and zeros where `is_class` [B] is False."""
    zero = lambda a: jnp.where(is_class[None], a, jnp.zeros_like(a))
    of_weights = lambda y: y if y.per_class is None else y._replace(per_class=jnp.where(is_class, y.per_class, 0))
    return c._replace(
        logits=jnp.where(is_class[None], c.logits, -jnp.inf),
        payoffs=tuple(map(zero, c.payoffs)),
        class_values=tuple(jnp.where(is_class[:, None], v, 0) for v in c.class_values),
        exponents=tuple(map(zero, c.exponents)),
        labels=tuple(map(of_weights, c.labels)),
        maxima=tuple(jnp.where(is_class[None], t, -jnp.inf) for t in c.maxima),
        terms=tuple(l if l.shape[-1] != is_class.size else zero(l) for l in c.terms),
    )


def fold_blocks(columns: Callable, examples: Any, classes: tuple, layout: Layout) -> tuple[g.Sums, Any]:
    """(the sums over all classes, the columns of the blocks that are kept)."""

    def step(sums, start, size, _):
        ids = block_ids(layout, start, size)
        block = _wide(examples), take_block(classes, layout, start, size)
        made = block_columns(columns, *block, ids, layout)
        folded = _vary_with_mesh(g.each(lambda c: g.fold(c, ids), made), layout)
        if layout.rounding is not None:
            made, folded = g.all_rounded(made, folded, layout.rounding)
        return (folded if sums is None else g.each(g.merge, sums, folded)), made

    sums, made = over_blocks(step, None, layout)
    return (merged_over(sums, layout.mesh) if layout.mesh else sums), made


def merged_over(sums: Any, axes: collectives.Names) -> Any:
    """The sums over the classes of all devices."""
    return g.each(lambda x: g.merge_over(x, axes), sums)


def _pull(made, ids, totals, ct):
    return g.each(lambda c, totals, ct: g.pull(c, ids, totals, ct), made, totals, ct)


def pull_block(differentiable: tuple, fixed: tuple, ids: Array, layout: Layout, pull: Callable) -> tuple:
    """Cotangents of (columns, examples, block) from the cotangents `pull(made)` of the columns made."""

    def of_block(differentiable):
        columns, examples, block = join(differentiable, fixed)
        return split(block_columns(columns, examples, block, ids, layout))

    made, back, others = jax.vjp(of_block, differentiable, has_aux=True)
    cotangents = split(pull(join(made, others)))[0]
    (cotangents,) = back(collectives.vary(cotangents, collectives.varying(made)))
    return cotangents


def divided(
    function: Callable,
    layout: Layout,
    args: tuple,
    roles: tuple,
    of_result: Any,
    *,
    linear: int = 0,
    loops_alone: bool = True,
) -> Any:
    """`function(layout, shards, *args)`, by each device for its shard of examples and classes.

    XLA divides a computation without loops by itself, and it is left alone with `loops_alone`.
    """

    def local(shards, *args):
        return function(_of_device(layout, shards), shards, *args)

    loops = layout.tile < layout.examples or layout.block < layout.classes
    if layout.mesh or not isinstance(layout.examples, int) or (loops_alone and not loops):
        return local(collectives.Shards(), *args)
    return partition.call(local, args, roles, of_result, linear=linear, content=f"{_named(function)} {layout}")


def _named(function):
    """The name of a function, with the options that it was given."""
    if isinstance(function, ft.partial):
        return f"{_named(function.func)} {function.args} {function.keywords}"
    return f"{function.__module__}.{function.__qualname__}"


def _of_device(layout, shards):
    """The layout of one device of the shards."""
    n, k = (
        size // collectives.device_count(axes)
        for size, axes in ((layout.examples, shards.examples), (layout.classes, shards.classes))
    )
    tile, block = min(layout.tile, n), min(layout.block, k)
    return layout._replace(examples=n, classes=k, tile=tile, block=block, mesh=layout.mesh + shards.classes)


def _roles(layout):
    """The roles of (columns, examples, classes)."""
    return partition.REPLICATED, partition.EXAMPLES, layout.axes


def _totals_of_parts(layout, differentiable, fixed):
    roles, args = _roles(layout), (differentiable, fixed)
    by_loops = layout.engine is None
    return divided(_totals_of_device, layout, args, (roles, roles), partition.EXAMPLES, loops_alone=by_loops)


_totals_rule = jax.custom_vjp(_totals_of_parts, nondiff_argnums=(0,))


def _totals_of_device(layout, _, differentiable, fixed):
    columns, examples, classes = join(differentiable, fixed)
    if layout.engine is not None:
        sums = layout.engine.sums(columns, _wide(examples), classes, block_ids(layout, 0, layout.classes))
        sums = _vary_with_mesh(sums, layout)
        return g.each(g.close, merged_over(sums, layout.mesh) if layout.mesh else sums)

    def step(_, examples):
        return None, g.each(g.close, fold_blocks(columns, examples, classes, layout)[0])

    return over_tiles(step, None, examples, layout.examples, layout.tile)[1]


def _totals_fwd(layout, differentiable, fixed):
    out = _totals(layout, differentiable, fixed)
    return out, (differentiable, fixed, out)


def _pulled_block(layout, size, start, residuals, ct, made=None):
    """The gradients of columns, examples and a block of classes, for the columns of the block if they were kept.

    The columns are computed again for their derivative; XLA drops the parts that it does not need.
    """
    *both, out = residuals
    differentiable, fixed = (
        (columns, _wide(examples), take_block(classes, layout, start, size)) for columns, examples, classes in both
    )
    ids = block_ids(layout, start, size)
    pull = lambda again: _pull(again if made is None else made, ids, out, ct)
    return pull_block(differentiable, fixed, ids, layout, pull)


# Without `checkpoint`, a derivative of the loop below would keep the intermediate arrays of every block.
_block_pulled_again = ft.partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1))(_pulled_block)


def _pull_tile(layout, dclasses, residuals, ct, made=None, pulled=_block_pulled_again):
    """(the gradients of columns and examples, `dclasses` with the gradients of the classes added)."""

    def step(grads, start, size, made):
        grads, dclasses = grads
        *d, dblock = _vary_with_mesh(pulled(layout, size, start, residuals, ct, made), layout)
        if layout.tile < layout.examples:
            dblock = jax.tree.map(jnp.add, dblock, take_block(dclasses, layout, start, size))
        return (jax.tree.map(jnp.add, grads, d), put_block(dclasses, layout, start, dblock)), None

    columns, examples, _ = residuals[0]
    (grads, dclasses), _ = over_blocks(step, (_zeros([columns, examples]), dclasses), layout, made)
    return grads, dclasses


def _totals_bwd(layout, residuals, ct):
    return _cotangents(layout, residuals, ct), None


def _cotangents(layout, residuals, ct):
    ct, fixed_ct = split(ct)
    roles, examples = _roles(layout), partition.EXAMPLES
    args, of_args = (*residuals, fixed_ct, ct), (roles, roles, examples, examples, examples)
    by_loops = layout.engine is None
    return divided(_pulled_of_device, layout, args, of_args, roles, linear=1, loops_alone=by_loops)


def _pulled_of_device(layout, shards, differentiable, fixed, out, fixed_ct, ct):
    residuals, ct = (differentiable, fixed, out), join(ct, fixed_ct)
    pulled = _pulled if layout.engine is None else _pulled_by_engine
    dcolumns, dexamples, dclasses = pulled(layout, residuals, ct)
    return (
        partition.sum_over_devices(dcolumns, shards.examples + shards.classes),
        partition.sum_over_devices(dexamples, shards.classes),
        partition.sum_of_class_arrays(dclasses, layout.axes, shards.examples),
    )


def _pulled(layout, residuals, ct):
    residuals, ct = _vary_with_mesh((residuals, ct), layout)
    (columns, examples, classes), (fixed_columns, fixed_examples, fixed_classes), out = residuals
    if layout.tile >= layout.examples:
        # Not `_unwritten`: under vmap, JAX 0.10 counts `lax.empty` as batched, and refuses jacfwd of jacrev.
        zeros = jax.tree.map(jnp.zeros_like, classes)
        (dcolumns, dexamples), dclasses = _pull_tile(layout, zeros, residuals, ct)
        return _as_given((dcolumns, dexamples, dclasses), (columns, examples, classes))

    @ft.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, tile):
        dcolumns, dclasses = carry
        examples, fixed_examples, out, ct = tile
        residuals = (columns, examples, classes), (fixed_columns, fixed_examples, fixed_classes), out
        (d, dexamples), dclasses = _pull_tile(layout, dclasses, residuals, ct)
        return (jax.tree.map(jnp.add, dcolumns, d), dclasses), dexamples

    # Gradients are added up over the tiles in at least float32, and rounded once.
    zeros = _zeros((columns, classes))
    tiles = (examples, fixed_examples, out, ct)
    (dcolumns, dclasses), dexamples = over_tiles(step, zeros, tiles, layout.examples, layout.tile)
    return _as_given((dcolumns, dexamples, dclasses), (columns, examples, classes))


_totals_rule.defvjp(_totals_fwd, _totals_bwd)
_totals = both_modes(_totals_rule, options=1, in_parts=True)


def _differentiated_as(loops: Callable, function: Callable) -> Callable:
    """`function(layout, *args)` by an engine, with the derivative of the loops: of modes and orders beyond its own."""
    function = ft.partial(jax.custom_jvp, nondiff_argnums=(0,))(function)
    function.defjvp(lambda layout, args, tangents: jax.jvp(ft.partial(loops, layout), args, tangents))
    return function


def _pulled_by_engine(layout, residuals, ct):
    (differentiable, fixed, out), ct = _vary_with_mesh((residuals, ct), layout)
    columns, examples, classes = join(differentiable, fixed)
    ids = block_ids(layout, 0, layout.classes)
    cotangents = split(layout.engine.cotangents(columns, _wide(examples), classes, ids, out, ct))[0]
    return collectives.vary(_as_given(tuple(cotangents), differentiable), collectives.varying(differentiable))


_by_loops = lambda layout: layout._replace(engine=None)
_engine_totals = _differentiated_as(lambda layout, *args: _totals(_by_loops(layout), *args), _totals_of_parts)
_engine_cotangents = _differentiated_as(lambda layout, *args: _cotangents(_by_loops(layout), *args), _cotangents)
_totals_by_engine = jax.custom_vjp(_engine_totals, nondiff_argnums=(0,))


def _engine_fwd(layout, differentiable, fixed):
    out = _engine_totals(layout, differentiable, fixed)
    return out, (differentiable, fixed, out)


_totals_by_engine.defvjp(_engine_fwd, lambda layout, residuals, ct: (_engine_cotangents(layout, residuals, ct), None))


def _vary_problem(problem, layout):
    """Makes the arrays of the problem vary along the same axes.

    `finish` is replicated over the class axes, so that its gradients are counted once.
    """
    of_sums = problem.columns, problem.examples, problem.classes
    columns, examples, classes = _vary_with_mesh(of_sums, layout, before=widened)
    of_totals = collectives.varying(columns, examples, classes) - set(layout.mesh)
    of_examples = problem.finish, problem.targets, problem.observe
    finish, targets, observe = collectives.vary(
        of_examples, of_totals | collectives.varying(of_examples), before=widened
    )
    return Problem(columns, finish, examples, targets, classes, observe)


def _sum_of_tile(layout, differentiable, fixed, dclasses):
    """((value, gradients of columns and finish), (gradients of examples and targets, what is observed), ...).

    The last is the gradients of the classes, with those of this tile added.
    """
    problem = join(differentiable, fixed)
    sums, made = fold_blocks(problem.columns, problem.examples, problem.classes, layout)
    of_classes = g.each(g.close, sums)
    inexact, others = split(of_classes)

    def of_totals(totals, finish, targets):
        totals, finish, targets = join((totals, finish, targets), (others, fixed.finish, fixed.targets))
        return finish(totals, targets, problem.classes, layout).sum()

    value, back = jax.vjp(of_totals, inexact, differentiable.finish, differentiable.targets)
    ct, dfinish, dtargets = back(jnp.ones_like(value))
    closed, ct = (_vary_with_mesh(join(a, others), layout) for a in (inexact, ct))

    parts = ((part.columns, part.examples, part.classes) for part in (differentiable, fixed))
    (dcolumns, dexamples), dclasses = _pull_tile(layout, dclasses, (*parts, closed), ct, made, _pulled_block)
    return (value, dcolumns, dfinish), (dexamples, dtargets, _observed(problem, of_classes)), dclasses


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, _wide(tree))


def _as_given(gradients, arrays):
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, arrays)


def _unwritten(tree):
    """Arrays whose elements are all going to be written."""
    return collectives.vary(jax.tree.map(lambda a: lax.empty(a.shape, a.dtype), tree), collectives.varying(tree))


def _as_added_up(layout, classes):
    """Class gradients are added up in at least float32, unless one tile has them, from cotangents that were rounded."""
    return classes if layout.rounding is not None and layout.tile >= layout.examples else _wide(classes)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_gradients(layout, differentiable, fixed):
    columns, examples, classes = _roles(layout)
    roles = Problem(columns, columns, examples, examples, classes, columns)
    of_result = (partition.REPLICATED, examples), roles
    return divided(_value_and_gradients_of_device, layout, (differentiable, fixed), (roles, roles), of_result)


def _value_and_gradients_of_device(layout, shards, differentiable, fixed):
    (value, observed), d = _value_and_gradients_of_tiles(layout, differentiable, fixed)
    over = lambda axes, tree: partition.sum_over_devices(tree, axes)
    columns = over(shards.examples + shards.classes, d.columns)
    finish = over(shards.examples, d.finish)
    classes = partition.sum_of_class_arrays(d.classes, layout.axes, shards.examples)
    gradients = Problem(columns, finish, over(shards.classes, d.examples), d.targets, classes, d.observe)
    return (over(shards.examples, value), observed), gradients


def _value_and_gradients_of_tiles(layout, differentiable, fixed):
    def step(carry, tile):
        so_far, dclasses = carry
        moving, still = (
            part._replace(examples=examples, targets=targets)
            for part, (examples, targets) in zip((differentiable, fixed), tile, strict=True)
        )
        sums, of_tile, dclasses = _sum_of_tile(layout, moving, still, dclasses)
        return (jax.tree.map(jnp.add, so_far, sums), dclasses), of_tile

    whole = join(differentiable, fixed)
    finished = collectives.varying(whole) - set(layout.mesh) | collectives.varying(whole.finish, whole.targets)
    zero = jnp.zeros((), compute_dtype(common_dtype(*inexact_leaves((whole.examples, whole.classes)))))
    zeros = collectives.vary(zero, finished), *_zeros((differentiable.columns, differentiable.finish))
    tiles = tuple((part.examples, part.targets) for part in (differentiable, fixed))
    unwritten_or_zeros = _unwritten if layout.tile >= layout.examples else _zeros
    carry = zeros, unwritten_or_zeros(_as_added_up(layout, differentiable.classes))
    carry, (dexamples, dtargets, observed) = over_tiles(step, carry, tiles, layout.examples, layout.tile)
    (value, dcolumns, dfinish), dclasses = carry
    dobserve = None if differentiable.observe is None else _zeros(differentiable.observe)
    return (value, observed), Problem(dcolumns, dfinish, dexamples, dtargets, dclasses, dobserve)


@_value_and_gradients.defjvp
def _(layout, primals, tangents):
    """The derivatives of these gradients are the derivatives of the backward pass."""
    differentiable, fixed = primals

    def of_blocks(differentiable):
        total = lambda d: _sum_and_observed(layout, join(d, fixed))
        value, gradients = jax.value_and_grad(total, has_aux=True)(differentiable)
        classes = _as_added_up(layout, gradients.classes)
        return value, _wide(gradients)._replace(classes=classes)

    return jax.jvp(of_blocks, (differentiable,), (tangents[0],))


def _sum_and_observed(layout, problem):
    losses, observed = losses_backward(layout, problem)
    return losses.sum(), observed


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_rule(layout, differentiable, fixed):
    return _sum_and_observed(layout, join(differentiable, fixed))


def _sum_fwd(layout, differentiable, fixed):
    value, gradients = _value_and_gradients(layout, differentiable, fixed)
    return value, (gradients, differentiable)


def _sum_bwd(layout, residuals, ct):  # noqa: ARG001
    gradients, differentiable = residuals
    return _as_given(jax.tree.map(lambda d: ct[0] * widened(d), gradients), differentiable), None


_sum_rule.defvjp(_sum_fwd, _sum_bwd)
_sum_of_losses = both_modes(_sum_rule, options=1, in_parts=True)
