"""A loss of logits: where the two meet.

Logits know nothing of losses, and a loss sees logits and knows nothing of how they are made. `evaluate` chooses how
much of them is in memory at a time, and which rule or engine takes the gradient.
"""

from __future__ import annotations

import dataclasses
import functools as ft
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from .arguments import checks, dtypes
from .arguments.signatures import readable
from .arguments.table import checked
from .compute import placement as placements
from .compute import rules
from .compute.loops import Layout
from .compute.placement import Placement
from .compute.reductions import Examples
from .logits import Logits, LogitsLike, as_logits
from .logits.scores import Counting, Scores, scores_of, sound_examples
from .logits.value import check_alike
from .losses import Loss
from .losses.loss import (
    as_tree,
    check_columns,
    check_count,
    check_losses,
    is_several,
    relative_of,
    several,
    several_finished,
    weighted_sum,
)
from .parallel import collectives
from .parallel.explicit import sharded_like
from .sums.exponent import LogMean
from .sums.sums import Columns, each
from .sums.unknown import unmovable


class BlockColumns(NamedTuple):
    """Computes the columns of a loss from the logits of a tile and block: a pytree."""

    scores: Any  # `Scores.function`
    loss: Any  # `Loss.columns`

    def __call__(self, examples: Any, block: tuple, ids: Array) -> Columns:
        (of_scores, example), (*classes, live, per_class, _) = examples, block
        h = self.scores(of_scores, tuple(classes), live)
        return check_columns(self.loss(h, ids, example, dtypes.zeroed(live, per_class)), ids)


@readable
@sharded_like("logits")
def of(
    loss: Loss | tuple[Loss, ...],
    logits: LogitsLike | tuple[LogitsLike, ...],
    example: Any = None,
    per_class: Any = None,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    loss_weights: tuple[ArrayLike, ...] | None = None,
) -> Any:
    """A loss of logits, or several from one pass over the classes.

    Several losses take their gradient in the backward pass, as their cotangents are not known before. With
    `loss_weights`, their sum takes it in the forward pass, where a reduction of one loss does.

    Args:
        loss: a `softjax.Loss`, from `softjax.losses` or your own; or a tuple of these. One of several numbers per
            example, such as `losses.expectation`, is not reduced: take `reduction="none"`, and the mean of the result
            over its axes.
        logits: z [..., K], an array or `softjax.Logits`; for a loss of several logits, such as
            `losses.kl_divergence`, a tuple of these with one shape.
        example: data of each example for the loss: a pytree of arrays [..., *]. For a tuple of losses, a tuple.
        per_class: data of each class for the loss: a pytree of arrays [K, *]. For a tuple of losses, a tuple.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        loss_weights: for a tuple of losses, the factor of each in their sum; None for no sum.

    Returns:
        The loss [...], or a scalar, in at least float32; of a tuple of losses a tuple; with `loss_weights` the pair
        (the weighted sum, the tuple of the losses, which have no derivative: a gradient that uses one is NaN).

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> logits, labels = softjax.linear(jnp.ones((1, 2)), jnp.zeros((2, 8))), jnp.array([3])
        >>> print(softjax.of(softjax.losses.focal(gamma=2.0), logits, labels))  # (7 / 8)^2 log 8
        [1.592]
        >>> both = softjax.losses.cross_entropy, softjax.losses.entropy
        >>> print(softjax.of(both, logits, (labels, None), reduction="mean"))  # log 8, twice
        (Array(2.0794, dtype=float32), Array(2.0794, dtype=float32))

    Source: CATSMILE-1012 (softargmax), expectations under p.
    """
    z = as_each("logits", logits)
    first = z[0] if isinstance(z, tuple) else z
    example = checks.leading("example", example, first.shape[:-1], "the leading axes of `logits`")
    per_class = checks.leading("per_class", per_class, (first.node.classes,), "[K] for the K of `logits`")
    if isinstance(loss, Loss):
        if loss_weights is not None:
            raise ValueError("`loss_weights` must be None for one loss: they are the factors of several.")
        return evaluate(loss, z, example, per_class, weights, reduction)
    of_each = several(loss)
    example, per_class = _tuple_for("example", example, loss), _tuple_for("per_class", per_class, loss)
    if loss_weights is None:
        return evaluate(of_each, z, example, per_class, weights, reduction)
    if checked("reduction", reduction) == "none":
        raise ValueError("`reduction` must be 'sum' or 'mean' with `loss_weights`, got 'none'.")
    return evaluate(weighted_sum(of_each, loss_weights), z, example, per_class, weights, reduction, parts=of_each)


def as_each(name: str, x: Any) -> Logits | tuple[Logits, ...]:
    """Logits, or a tuple of logits with one shape."""
    if not isinstance(x, tuple):
        return as_logits(name, x)
    if not x:
        raise ValueError(f"`{name}` must be logits or a tuple of these, got ().")
    made = tuple(as_logits(name, one) for one in x)
    like = next((z for z, given in zip(made, x, strict=True) if isinstance(given, Logits)), made[0])
    for one, given in zip(made, x, strict=True):
        if one.shape != like.shape:
            raise ValueError(f"`{name}` must have one shape, got {like.shape} and {one.shape}.")
        if isinstance(given, Logits):
            check_alike(name, like, one)
    return tuple(dataclasses.replace(one, shards=like.shards) for one in made)  # an array has none of its own


def _tuple_for(name, x, losses):
    if x is None:
        return (None,) * len(losses)
    if not isinstance(x, tuple) or len(x) != len(losses):
        raise ValueError(f"`{name}` must be a tuple of {len(losses)} parts, one of each loss, got {checks.shown(x)}.")
    return x


def evaluate(
    loss: Loss,
    logits: Logits | tuple[Logits, ...],
    example: Any = None,
    per_class: Any = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    *,
    examples: Examples = Examples(),  # noqa: B008 (a tuple)
    observe: Callable | None = None,
    of_observed: Any = None,
    parts: Loss | None = None,
) -> Any:
    """The losses of examples with data `example` [N, ...] and classes with data `per_class` [K, ...].

    With `observe`, a pytree, the result is a pair of the losses and of `observe(totals, of_observed [N, ...])`, a
    pytree of [..., *] without gradient; with `parts`, of the losses and of the reductions of `parts`, likewise.
    """
    reduction = checked("reduction", reduction)
    several_logits = logits if isinstance(logits, tuple) else (logits,)
    check_count(loss, len(several_logits))
    data = dtypes.inexact_leaves((example, per_class))
    dtype = dtypes.compute_dtype(dtypes.common_dtype(*several_logits, *data))
    loss = as_tree(loss, dtype)
    if weights is not None:
        weights = checks.example_weights(weights, several_logits[0].shape[:-1], dtype)
        examples = examples._replace(weights=weights, sound=counted(weights, several_logits, example))
    counting = Counting(examples.kept, examples.sound)
    isolated = not dtypes.inexact_leaves((loss, per_class))
    made = scores_of(logits, relative_of(loss, len(several_logits)), counting, isolated=isolated).computed_in(dtype)
    example, per_class = dtypes.cast(example, dtype), dtypes.cast_unless_half(per_class, dtype)
    if not counting.none:
        example = jax.tree.map(lambda a: counting.filled(a) if dtypes.is_inexact(a) else a, example)
    if made.classes:
        untiled = has_pairs(made)  # a tile of such an array would be a copy of its rows
        of_reduction = "none" if untiled else reduction
        placement = placement_of(made, _first_option("block_size", several_logits), of_reduction, dtype)
    else:
        placement = Placement(made.n, made.k)
        if jax.tree.leaves(per_class):
            possible = ~(made.examples < jnp.finfo(made.examples.dtype).min).all(0)
            per_class = dtypes.zeroed(possible, per_class)
    examples = examples.reduced(reduction, made.n, dtype, made.shards.examples)
    observed = None
    if parts is not None:
        observed = Partial(_parts_of_sum, as_tree(parts, dtype).finish), None
    elif observe is not None:
        observed = Partial(_observe, dtypes.cast(observe, dtype)), dtypes.cast(of_observed, dtype)
    out, aux = _evaluate(
        loss,
        made,
        example,
        per_class,
        examples,
        reduction,
        placement,
        _first_option("engine", several_logits),
        observed,
    )
    in_batch = ft.partial(jax.tree.map, lambda a: a.reshape(*made.batch, *a.shape[1:]))
    out = in_batch(out) if reduction == "none" else out
    if parts is not None:
        aux = jax.tree.map(lambda a: collectives.psum(a.sum(), made.shards.examples), aux)
    elif observe is not None:
        aux = in_batch(aux)
    else:
        return out
    return out, jax.tree.map(lambda a: unmovable(a, out) if dtypes.is_inexact(a) else a, aux)


def counted(weights: Array | None, logits: tuple[Logits, ...], example: Any = None) -> Array | None:
    """Which examples count: one of weight 0 whose data are no numbers is as if it were not there."""
    return None if weights is None else (weights != 0) | sound_examples(logits, example)


def _first_option(name, logits):
    """The first option of this name that one of the logits has."""
    return next((found for z in logits if (found := getattr(z, name)) is not None), None)


def placement_of(made: Scores, block_size: Any, reduction: str, dtype: jnp.dtype) -> Placement:
    """The placement of scores; all examples are in a tile where class arrays have examples too."""
    sizes = made.n, made.k, made.width
    placement = placements.given_or_chosen(block_size, *sizes, reduction, dtype, made.rounding)
    return placement._replace(tile=made.n) if has_pairs(made) else placement


def has_pairs(made: Scores) -> bool:
    """Whether class arrays have examples too."""
    arrays = (tree for axis, tree in zip(made.axes, made.classes, strict=True) if axis == dtypes.PAIRS)
    return bool(jax.tree.leaves(tuple(arrays)))


@ft.partial(jax.jit, static_argnums=(5, 6, 7), inline=True)
def _evaluate(loss, made, example, per_class, examples, reduction, placement, engine, observed):
    n, k, shards = made.n, made.k, made.shards
    exact = made.exact if loss.payoff is not None else None
    of_exact = None if exact is None else made.examples
    problem = rules.Problem(
        BlockColumns(made.function, loss.columns),
        Partial(_finish if reduction == "none" else _finish_one, loss.finish, loss.payoff, exact),
        (made.examples, example),
        ((of_exact, made.offset), example, examples, observed and observed[1]),
        (*made.classes, made.live, per_class, None),
        observed and observed[0],
    )
    tile, block, gradient, kept = placement
    kept = k if kept is None else kept
    options = shards.classes, shards.unpadded, None, kept, made.rounding
    layout = Layout((*made.axes, 0, 0, 0), n, k, tile, min(block, k), *options)
    if engine is not None:
        reason = engine.refuses(made, loss, example, per_class)
        if reason is None:
            layout = layout._replace(tile=n, engine=engine)
        else:
            warnings.warn(f"The engine {engine.name!r} does not apply: {reason}.", stacklevel=4)
    if reduction == "none":
        return rules.losses_backward(layout, problem)
    summed = lambda out: jax.tree.map(lambda a: collectives.psum(a, shards.examples), out)
    if gradient == "backward" or layout.engine is not None or is_several(loss):
        out, aux = rules.losses_backward(layout, problem)
        return summed(jax.tree.map(jnp.sum, out)), aux
    out, aux = rules.sum_forward(layout, problem)
    return summed(out), aux


def _with_offset(totals, offset):
    return totals if offset is None else each(lambda q: q._replace(offset=offset), totals)


def _observe(observe, totals, targets):
    return observe(_with_offset(totals, targets[0][1]), targets[-1])


def _parts_of_sum(finish, totals, targets):
    (_, offset), example, examples, _ = targets
    return jax.tree.map(examples.weighted, finish(_with_offset(totals, offset), example))


def _finish(finish, payoff, exact, totals, targets, classes, layout):
    (of_exact, offset), example, examples, _ = targets
    if exact is not None:
        totals = _with_exact_tops(totals, exact, payoff, (of_exact, offset, example), classes, layout)
    finished = finish(_with_offset(totals, offset), example)
    n = jax.tree.leaves(totals)[0].shape[0]
    for one in finished if finish.func is several_finished else (finished,):
        check_losses(one, n)
    return jax.tree.map(examples.weighted, finished)


def _finish_one(*args):
    """The same, of a loss that is reduced: one number per example."""
    finished = _finish(*args)
    for one in jax.tree.leaves(finished):
        if one.ndim > 1:
            got = one.shape
            raise ValueError(f"`reduction` must be 'none' for a loss of several numbers per example, got losses {got}.")
    return finished


def _with_exact_tops(totals, exact, payoff, targets, classes, layout):
    """The totals with the logits and payoffs of the top classes computed again, without a matrix product.

    The products that compute the logits and payoffs of all classes lose digits where an example is close to a class.
    The part of the top class is a constant of differentiation, and so is its replacement.
    """
    exact, payoff, (of_exact, offset, example), classes = lax.stop_gradient((exact, payoff, targets, classes))
    a = totals.normaliser
    known = a.top >= 0
    of_exact = jax.tree.map(dtypes.widened, of_exact)

    def at(top):
        def values(position):
            at_top = lambda tree: dtypes.cast(jax.tree.map(lambda a: a[position], tree), a.m.dtype)
            *of_scores, _, _, _, per_class, _ = classes  # without the masks of pairs, the ids and the live classes
            return exact(of_exact, at_top(of_scores)), payoff(example, at_top(per_class))

        return collectives.at_class(top, values, layout.classes, layout.mesh)

    h, t = at(a.top)

    def mean(found):
        return jax.tree.map(ft.partial(jnp.where, known), found.rebased(t, a.r * a.inverse_mass), found)

    def log_mean(found):
        n = found.tilted
        of_n, e = at(n.top)
        # A logit counts as far as its class is likely, as log sum_k exp h_k moves by p_k dh_k.
        slip = n.r * n.inverse_mass * (n.m - (of_n + e - offset))
        slip -= a.r * a.inverse_mass * (a.m - (h - offset))
        better = LogMean((of_n - h) + e, found.rest + lax.stop_gradient(slip), n)
        return jax.tree.map(ft.partial(jnp.where, known & (n.top >= 0)), better, found)

    return totals._replace(payoffs=tuple(map(mean, totals.payoffs)), exponents=tuple(map(log_mean, totals.exponents)))
