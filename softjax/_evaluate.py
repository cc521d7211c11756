"""A loss of scores: where the two meet.

The scores know nothing of losses, and a loss sees logits and knows nothing of scores. `evaluate` chooses how much of
them is in memory at a time, and which rule or engine takes the gradient.
"""

from __future__ import annotations

import functools as ft
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _checks, _dtypes, _explicit, _gibbs, _mesh, _placement, _rules
from . import losses as _losses
from ._arguments import checked
from ._dtypes import is_per_pair
from ._loops import Layout
from ._pair import Pair
from ._placement import BlockSize, Placement
from ._reductions import Examples
from ._signatures import readable
from .engines import Engine
from .logits import Logits
from .logits.scores import scores_of
from .losses import Loss
from .scores import Scores


class BlockColumns(NamedTuple):
    """Computes the columns of a loss from the scores of a tile and block: a pytree."""

    scores: Any  # `Scores.function`
    loss: Any  # `Loss.columns`

    def __call__(self, examples: Any, block: tuple, ids: Array) -> _gibbs.Columns:
        (of_scores, example), (*classes, live, per_class, _) = examples, block
        h = self.scores(of_scores, tuple(classes), live)
        columns = self.loss(h, ids, example, _dtypes.zeroed(live, per_class))
        _losses.check_columns(columns, ids)
        return columns


def _partition_of_losses(given):
    """That of the flattened examples, for the first of their axes."""
    scores = given["scores"]
    leaves = jax.tree.leaves(scores.examples) if isinstance(scores, Scores) else []
    known = P(*_explicit.partition(leaves[0])[:1]) if leaves and len(scores.batch) == 1 else P()
    return _explicit.of_outputs(known, given)


@readable
@_explicit.over_explicit_axes(_partition_of_losses)
def of(
    loss: Loss,
    scores: Scores | Logits,
    example: Any = None,
    per_class: Any = None,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    engine: Engine | None = None,
) -> Array:
    """A loss of scores, which are never in memory all at once.

    Args:
        loss: a `softjax.Loss`, from `softjax.losses` or your own. One of several numbers per example, such as
            `losses.expectation`, is not reduced: take `reduction="none"`, and the mean of the result over its
            axes.
        scores: made by a function of `softjax.scores`, which also takes the mesh axes.
        example: data of each example for the loss: a pytree of arrays [..., *].
        per_class: data of each class for the loss: a pytree of arrays [K, *].
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        engine: a `softjax.engines.Engine` that computes the sums where it applies; None for the library's
            loops.

    Returns:
        The loss [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import jax.numpy as jnp
        >>> import softjax
        >>> gaussian = lambda x, y: -((x[:, None] - y[None]) ** 2).sum(-1)
        >>> scores = softjax.scores.of(gaussian, jnp.zeros((1, 2)), jnp.ones((8, 2)))
        >>> print(softjax.of(softjax.losses.logsumexp, scores))  # log 8 - 2
        [0.0794]

    Source: CATSMILE-1012 (softargmax), expectations under p.
    """
    if isinstance(scores, Logits):
        block_size = scores.block_size if block_size is None else block_size
        scores = scores_of(scores)
    if not isinstance(scores, Scores):
        raise TypeError(f"`scores` must be made by a function of `softjax.scores`, got {_checks.shown(scores)}.")
    if not (engine is None or isinstance(engine, Engine)):
        raise TypeError(f"`engine` must be a `softjax.engines.Engine` or None, got {_checks.shown(engine)}.")
    names = {"linear": ("features", "kernel"), "distances": ("z", "centers"), "dense": ("logits", "logits")}
    batch_of, classes_of = names.get(scores.kind, ("examples", "classes"))
    example = _checks.leading("example", example, scores.batch, f"the leading axes of `{batch_of}`")
    for x in _per_pair(example):
        _checks.shape("example", x.array, (scores.n, scores.k), f"`PerPair` of [N, K] for the K of `{classes_of}`")
    per_class = _checks.leading("per_class", per_class, (scores.k,), f"[K] for the K of `{classes_of}`")
    return evaluate(loss, scores, example, per_class, weights, reduction, block_size, engine=engine)


def evaluate(
    loss: Loss,
    scores: Scores,
    example: Any = None,
    per_class: Any = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    *,
    examples: Examples = Examples(),  # noqa: B008 (a tuple)
    engine: Engine | None = None,
    entropy: bool = False,
    observe: Callable | None = None,
    of_observed: Any = None,
) -> Any:
    """The losses of examples with data `example` [N, ...] and classes with data `per_class` [K, ...].

    With `entropy`, the totals have it. With `observe`, a pytree, the result is a pair of the losses and of
    `observe(totals, of_observed [N, ...])`, a pytree of [..., *] without gradient.
    """
    reduction = checked("reduction", reduction)
    dtype = _dtypes.compute_dtype(_dtypes.common_dtype(scores, *_dtypes.inexact_leaves((example, per_class))))
    scores, example = _dtypes.constants_stopped((scores.computed_in(dtype), example))
    in_type = lambda a: (_dtypes.cast_unless_half if is_per_pair(a) else _dtypes.cast)(a, dtype)
    example = jax.tree.map(in_type, example, is_leaf=is_per_pair)
    per_class = _dtypes.cast_unless_half(per_class, dtype)
    examples = examples._replace(weights=_checks.example_weights(weights, scores.batch, dtype))
    loss = _losses.as_tree(loss, dtype)
    scores = scores.of_loss(relative=loss.relative is not None)
    if scores.classes:
        sizes = scores.n, scores.k, scores.width
        untiled = _of_pairs(scores) or bool(
            _per_pair((scores.examples, example))
        )  # a tile of such an array would be a copy of its rows
        of_reduction = "none" if untiled else reduction
        placement = _placement.given_or_chosen(block_size, *sizes, of_reduction, dtype, scores.rounding)
        placement = whole_tile(placement, scores)
    else:
        placement = Placement(scores.n, scores.k)
        if jax.tree.leaves(per_class):
            possible = ~(scores.examples < jnp.finfo(scores.examples.dtype).min).all(0)
            per_class = _dtypes.zeroed(possible, per_class)
    examples = examples.reduced(reduction, scores.n, dtype, scores.shards.examples)
    observed = None if observe is None else _dtypes.cast((observe, of_observed), dtype)
    kind = "differentiable" if entropy else None if observe is None else "constant"
    out, aux = _evaluate(loss, scores, example, per_class, examples, reduction, placement, engine, kind, observed)
    in_batch = ft.partial(jax.tree.map, lambda a: a.reshape(*scores.batch, *a.shape[1:]))
    out = in_batch(out) if reduction == "none" else out
    return out if observe is None else (out, in_batch(aux))


@ft.partial(jax.jit, static_argnums=(5, 6, 7, 8), inline=True)
def _evaluate(loss, scores, example, per_class, examples, reduction, placement, engine, entropy, observed):
    n, k, shards = scores.n, scores.k, scores.shards
    exact = scores.exact if loss.payoff is not None else None
    problem = _rules.Problem(
        BlockColumns(scores.function, loss.columns),
        Partial(_finish if reduction == "none" else _finish_one, loss.finish, loss.payoff, exact and exact.score),
        (scores.examples, example),
        (
            (exact and (exact.examples, exact.common), scores.offset),
            _without_pairs(example),
            examples,
            observed and observed[1],
        ),
        (*scores.classes, scores.live, per_class, exact and exact.classes),
        observed and Partial(_observe, observed[0]),
    )
    axes = (*scores.axes, 0, 0, 0)
    tile, block, gradient, kept = placement
    kept = k if kept is None else kept
    options = shards.unpadded, None, kept, scores.rounding, entropy
    layout = Layout(axes, n, k, tile, min(block, k), shards.classes, *options)
    if engine is not None:
        pairs = _per_pair((scores.examples, example))
        reason = "it has data of each example and class" if pairs else engine.refuses(scores, loss, example, per_class)
        if reason is None:
            layout = layout._replace(tile=n, engine=engine)
        else:
            warnings.warn(f"The engine {engine.name!r} does not apply: {reason}.", stacklevel=4)
    if reduction == "none":
        return _rules.losses_backward(layout, problem)
    if gradient == "backward" or layout.engine is not None:
        out, aux = _rules.losses_backward(layout, problem)
        return _mesh.psum(out.sum(), shards.examples), aux
    out, aux = _rules.sum_forward(layout, problem)
    return _mesh.psum(out, shards.examples), aux


def whole_tile(placement: Placement, scores: Scores) -> Placement:
    """The placement, with all examples in a tile where class arrays have examples too."""
    return placement._replace(tile=scores.n) if _of_pairs(scores) else placement


def _of_pairs(scores):
    """Whether class arrays have examples too."""
    arrays = (tree for axis, tree in zip(scores.axes, scores.classes, strict=True) if axis == _dtypes.PAIRS)
    return bool(jax.tree.leaves(tuple(arrays)))


def _per_pair(tree):
    """The data of each example and class in a tree."""
    return [a for a in jax.tree.leaves(tree, is_leaf=is_per_pair) if is_per_pair(a)]


def _without_pairs(tree):
    return jax.tree.map(lambda a: None if is_per_pair(a) else a, tree, is_leaf=is_per_pair)


def _observe(observe, totals, targets):
    return observe(totals._replace(offset=targets[0][1]), targets[-1])


def _finish(finish, payoff, exact_score, totals, targets, classes, layout):
    (of_exact, offset), example, examples, _ = targets
    if exact_score is not None:
        totals = _with_exact_tops(totals, exact_score, payoff, (of_exact, example), classes, layout)
    finished = finish(totals._replace(offset=offset), example)
    _losses.check_losses(finished, totals.a.m.shape[0])
    return examples.weighted(finished)


def _finish_one(*args):
    """The same, of a loss that is reduced: one number per example."""
    finished = _finish(*args)
    if finished.ndim > 1:
        got = finished.shape
        raise ValueError(f"`reduction` must be 'none' for a loss of several numbers per example, got losses {got}.")
    return finished


def _with_exact_tops(totals, score, payoff, targets, classes, layout):
    """The totals with the scores and payoffs of the top classes computed again, without a matrix product.

    The products that compute the scores and payoffs of all classes lose digits where an example is close to a class.
    The part of the top class is a constant of differentiation, and so is its replacement.
    """
    score, payoff, ((of_score, common), example), classes = lax.stop_gradient((score, payoff, targets, classes))
    known = totals.a.top >= 0

    def at(top):
        def values(position):
            of_tops = _dtypes.cast(jax.tree.map(lambda a: a[position], classes), totals.a.m.dtype)
            *of_scores, _, per_class, more = of_tops
            return score(of_score, (of_scores, more)), payoff(example, per_class)

        return _mesh.at_class(top, values, layout.classes, layout.mesh)

    h, t = at(totals.a.top)

    def mean(a):
        return jax.tree.map(ft.partial(jnp.where, known), a.rebased(t, totals.a.r / totals.a.mass), a)

    def log_mean(a, n):
        of_n, e = at(n.top)
        # A score counts as far as its class is likely, as log sum_k exp h_k moves by p_k dh_k.
        slip = n.r / n.mass * (n.m - (of_n + e + common))
        slip -= totals.a.r / totals.a.mass * (totals.a.m - (h + common))
        better = Pair((of_n - h) + e, a.rest + lax.stop_gradient(slip))
        return jax.tree.map(ft.partial(jnp.where, known & (n.top >= 0)), better, a)

    return totals._replace(
        t=tuple(map(mean, totals.t)),
        t_fixed=tuple(map(mean, totals.t_fixed)),
        e=tuple(map(log_mean, totals.e, totals.n)),
    )
