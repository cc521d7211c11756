"""Losses of labels: the example is the label [N]; of some also a pair of class ids and weights [N, T]."""

from __future__ import annotations

import functools as ft

import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from ..arguments import checks
from ..arguments.signatures import readable
from ..arguments.table import checked
from ..sums.columns import Columns, Weights
from ..sums.elementary import exp, expm1, reciprocal, softplus
from ..sums.labels import Labels
from ..sums.pair import Pair, tangent_of
from ..sums.unknown import nan_unless
from .loss import Loss, floats


def sigmoid(x: Pair) -> Array:
    """1 / (1 + exp -x), for a pair with a small rest, such as a difference.

    At a very negative x, rounding x first would give the result a relative error of eps |x|.
    """
    positive = x.base > 0
    u = exp(jnp.where(positive, -x.base, x.base)) * (1 + jnp.where(positive, -x.rest, x.rest))  # exp -|x|
    return jnp.where(positive, 1, u) * reciprocal(1 + u)


def label_weights(labels: Array | tuple[Array, Array], z: Array) -> Weights:
    """The weights of labels [N], or of a pair of class ids and weights [N, T], for logits z [N, B]."""
    if not isinstance(labels, tuple):
        return Weights(label_ids(labels, z)[:, None], jnp.ones((z.shape[0], 1), z.dtype))
    if len(labels) != 2:
        raise ValueError(
            f"`example` must be labels or a pair (classes, weights) for this loss, got {len(labels)} parts."
        )
    classes, weights = labels
    if classes.ndim != 2 or classes.shape != weights.shape:
        got = f"{classes.shape} and {weights.shape}"
        raise ValueError(f"`example` must be a pair of shapes [N, T] (classes and weights) for this loss, got {got}.")
    return Weights(_class_ids(classes), weights.astype(z.dtype))


def label_ids(labels, z):
    """The labels [N] of logits [N, B], negative where they are out of range."""
    if not isinstance(labels, Array):
        raise TypeError(f"`example` must be integer labels [N] for this loss, got {checks.shown(labels)}.")
    if labels.shape != z.shape[:1]:
        raise ValueError(f"`example` must be labels [N], one each, for this loss, got shape {labels.shape}.")
    return _class_ids(labels)


def _class_ids(labels):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`example` must be integer labels for this loss, got dtype {labels.dtype}.")
    return checks.class_ids(labels, checks.INT32.max, other=-1)[0]


is_label = lambda ids, labels: ids[None] == labels[:, None]  # [N, B]


def _nan_for_inf(z):
    """The logits, with NaN in place of +inf, and without a gradient for a class that is left out."""
    z = jnp.where(jnp.isposinf(z), jnp.nan, z)
    return jnp.where(jnp.isneginf(z), -jnp.inf, z)


def _others_and_label(z, ids, labels):
    """(the logits [N, B] without the label, its (logit, 1) [N, 1]): the last two are 0 in blocks without the label."""
    labels = label_ids(labels, z)
    found = Labels(labels[:, None], ids)
    return jnp.where(is_label(ids, labels), -jnp.inf, z), (_nan_for_inf(found.take(z)), found.here.astype(z.dtype))


def _label_logit(q):
    """(the logit of the label; True where all classes are left out; whether the label is a class)."""
    logit, known = q.terms
    nothing = q.empty & jnp.isneginf(logit)
    return jnp.where(nothing, 0, logit), nothing, known == 1


def _check_no_labels(example):
    if example is not None:
        raise ValueError("`example` must be None beside a pair of logits and the weights of all classes.")


def _cross_entropy_columns(z, ids, labels, added):  # noqa: ARG001
    if isinstance(z, tuple):
        z, of_pairs = z
        _check_no_labels(labels)
        none = jnp.zeros((z.shape[0], 0), jnp.int32)
        return Columns(z, labels=(Weights(none, none.astype(z.dtype), of_pairs.astype(z.dtype)),))
    y = label_weights(labels, z)
    if added is None:
        return Columns(z, labels=(y,))
    (added,) = floats(added)
    if added.ndim != 1:
        raise ValueError(f"`per_class` must be weights [K] for this loss, got an array of rank {added.ndim}.")
    return Columns(z, labels=(y._replace(per_class=added.astype(z.dtype)),))


def _cross_entropy_of_sums(q, _):
    return q.C


cross_entropy = Loss._described(
    """C = -sum_k y_k log p_k, the cross entropy of label weights y and p = softmax(z), in nats.

    Args:
        example: labels [N], integers in [0, K), of weight 1; or a pair of class ids and their weights, both [N, T].
            None if the logits are a pair (z, y), of logits and of the weights of all classes.
        per_class: weights [K] that are added to the y of every example; None for none.

    Source: CATSMILE-1012 (softargmax), cross entropy, there without its minus sign.
    """,
    _cross_entropy_columns,
    _cross_entropy_of_sums,
    relative=True,
    logits=(1, 2),
)


def _columns_of_label(z, ids, labels, added):
    if isinstance(labels, tuple) or added is not None:
        raise ValueError("`example` must be labels [N] for this loss, which is no sum over label weights.")
    return _cross_entropy_columns(z, ids, labels, None)


def _cost_of_label(q):
    """(the weight w of the label, C / w, or 1 where C is not finite)."""
    weight = q.Y
    return weight, jnp.where(jnp.isfinite(q.C), q.C, 1) / jnp.where(weight == 0, 1, weight)


@readable
def focal(gamma: ArrayLike = 2.0) -> Loss:
    """-(1 - p_y)^gamma log p_y, the focal loss of the label [N] (Lin et al., 2017).

    With `label_smoothing`, p_y is exp(-C) for the cross entropy C of the smoothed labels.
    """
    return Loss(_columns_of_label, Partial(_focal, checked("gamma", gamma)), relative=True)


def _focal(gamma, q, _):
    """s^(1 + gamma) times c / s for s = 1 - exp(-c): no power has an infinite derivative times 0."""
    weight, cost = _cost_of_label(q)
    # s is 0 below, and 1 above, also in float64
    inside = jnp.isfinite(q.C) & (cost >= jnp.finfo(cost.dtype).tiny) & (cost < 800)
    c = jnp.where(inside, cost, 1)
    return jnp.where(inside, weight * ((-expm1(-c)) ** (1 + gamma) * _over_expm1(c)), q.C)


def _over_expm1(c):
    """c / (1 - exp(-c)), at a small c by its series in the Bernoulli numbers, whose derivatives are finite."""
    near = c < 0.5
    small, large = jnp.where(near, c, 0.5), jnp.where(near, 0.5, c)
    series = ft.reduce(lambda sum_of_rest, b: sum_of_rest * small**2 + b, reversed(_BERNOULLI), jnp.zeros_like(c))
    return jnp.where(near, 1 + small / 2 + series * small**2, -large * reciprocal(expm1(-large)))


# B_2i / (2 i)! for i = 1, 2, ...
_BERNOULLI = (
    *(1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600),
    -3617 / 10670622842880000,
)


@readable
def poly_1(epsilon: ArrayLike = 2.0) -> Loss:
    """-log p_y + epsilon (1 - p_y), the poly-1 loss of the label [N] (Leng et al., 2022).

    With `label_smoothing`, p_y is exp(-C) for the cross entropy C of the smoothed labels.
    """
    return Loss(_columns_of_label, Partial(_poly_1, checked("epsilon", epsilon)), relative=True)


def _poly_1(epsilon, q, _):
    weight, cost = _cost_of_label(q)
    return jnp.where(jnp.isfinite(q.C), q.C - epsilon * weight * expm1(-cost), q.C)


def _brier_columns(z, ids, y, _):
    others, label = _others_and_label(z, ids, y)
    return Columns(others, exponents=(others,), terms=label)


def _brier(q, _):
    label_logit, nothing, known = _label_logit(q)
    against = q.A - label_logit  # log-odds of every class but the label
    alone = q.empty
    squares = jnp.where(alone, 0, exp(jnp.where(alone, 0, (q.exponents[0] - q.A).value)))  # of the others' own softmax
    return nan_unless(known, jnp.where(nothing, 1, sigmoid(against) ** 2 * (1 + squares)))


brier = Loss._described(
    """sum_k (p_k - 1{k = y})^2 = (1 - p_y)^2 (1 + sum_{k != y} (p_k / (1 - p_y))^2), the Brier score of the label y.

    Args:
        example: labels [N], integers in [0, K).
        per_class: None.

    Source: Brier, Verification of forecasts expressed in terms of probability (1950).
    """,
    _brier_columns,
    _brier,
)


@readable
def weston_watkins(margin: ArrayLike = 1.0) -> Loss:
    """sum_{k != y} max(0, z_k - z_y + margin), a multiclass hinge (Weston and Watkins, 1999).

    The example is the label [N] and its logit [N], as every class is compared with it.
    """
    return Loss(Partial(_weston_watkins, checked("margin", margin)), _sum_over_the_label)


def _weston_watkins(margin, z, ids, example, _):
    if not isinstance(example, tuple) or len(example) != 2:
        raise ValueError("`example` must be a pair of labels [N] and their logits [N] for this loss.")
    y, label_logit = label_ids(example[0], z), example[1]
    if label_logit.shape != z.shape[:1]:
        raise ValueError(f"`example` must have a logit for each label for this loss, got shape {label_logit.shape}.")
    z, label_logit = _nan_for_inf(z), _nan_for_inf(label_logit.astype(z.dtype))
    over = jnp.where(jnp.isneginf(z), -jnp.inf, z - label_logit[:, None] + margin)
    own = is_label(ids, y)
    return Columns(z, terms=(jnp.where(own, 0, jnp.maximum(over, 0)), own.astype(z.dtype)))


def _sum_over_the_label(q, example):
    total, known = q.terms
    # The loss and its gradient are NaN where a label's logit is NaN, also where all other classes are left out.
    total += jnp.where(jnp.isnan(example[1]), example[1], 0).astype(total.dtype)
    return nan_unless((known == 1) & ~jnp.isnan(total), total)


@readable
def crammer_singer(margin: ArrayLike = 1.0) -> Loss:
    """max(0, max_{k != y} z_k - z_y + margin), a multiclass hinge (Crammer and Singer, 2001).

    The example is the label [N]. Tied classes, the label included, share the gradient of the maximum, as in JAX's
    `max`.
    """
    return Loss(_crammer_singer_columns, Partial(_crammer_singer, checked("margin", margin)))


def _crammer_singer_columns(z, ids, y, _):
    others, label = _others_and_label(z, ids, y)
    return Columns(_nothing_like(z), maxima=(others,), terms=label)


def _crammer_singer(margin, q, _):
    label_logit, known = q.terms
    most = q.maxima[0].value
    alone = jnp.isneginf(most)
    above = jnp.where(alone, 0, jnp.where(jnp.isposinf(most), jnp.nan, most))
    label_masked = jnp.isneginf(label_logit)
    over = above - jnp.where(label_masked, 0, label_logit) + margin
    ties = q.maxima[0].ties
    over = jnp.where(over == 0, ties / (ties + 1) * tangent_of(over), jnp.maximum(over, 0))
    over = jnp.where(label_masked, above + jnp.inf, over)
    loss = jnp.where(alone & ~jnp.isnan(label_logit), 0, over)
    known = known == 1
    return nan_unless(known & ~jnp.isnan(loss), loss)


def _nothing_like(z):
    """Zeros as logits, where there is no softmax.

    Without the barrier, the compiler would take the maximum of these zeros by itself, for long.
    """
    return jnp.broadcast_to(lax.optimization_barrier(jnp.zeros((), z.dtype)), z.shape)


def _binary_columns(z, ids, example, _):
    z, targets = z if isinstance(z, tuple) else (z, None)
    if targets is not None:
        _check_no_labels(example)
    nothing = _nothing_like(z)
    if targets is not None:
        return Columns(nothing, terms=(_binary_costs(z, jnp.where(jnp.isneginf(z), 0, targets)), nothing[:, :1]))
    labels = _lists_of_labels(example, z)
    found = Labels(labels.ids, ids)
    costs = found.put(_binary_costs(found.take(z), labels.of_ids), softplus(z))
    return Columns(nothing, terms=(costs, found.here.sum(-1, keepdims=True).astype(z.dtype)))


def _lists_of_labels(example, z):
    """Labels [N] or [N, T], or a pair of class ids and targets [N, T], as weights."""
    several = isinstance(example, Array) and example.ndim == 2
    return label_weights((example, jnp.ones(example.shape, z.dtype)) if several else example, z)


def _binary_costs(z, y):
    """-y log sigmoid(z) - (1 - y) log sigmoid(-z); NaN where y is not in [0, 1]."""
    cost = lambda share, z: jnp.where(share == 0, 0, share * softplus(z))
    y = y.astype(z.dtype)
    return nan_unless((y >= 0) & (y <= 1), cost(y, -z) + cost(1 - y, z))


def _binary_total(q, example):
    cost, found = q.terms
    if example is None:
        return cost
    count = (_lists_of_labels(example, cost[:, None]).ids >= 0).sum(-1)
    return nan_unless(found == count.astype(found.dtype), cost)


binary_cross_entropy = Loss._described(
    """sum_k -(y_k log sigmoid(z_k) + (1 - y_k) log sigmoid(-z_k)), in nats, for examples of any number of classes.

    Args:
        example: labels [N] or [N, T], where a negative one is none; or a pair of class ids and their targets y in
            [0, 1], both [N, T]. None if the logits are a pair (z, y), of logits and of the targets of all classes. A
            label on a masked class costs +inf; in targets of all classes, that class is not in the sum.
        per_class: None.

    Source: `optax.sigmoid_binary_cross_entropy`, summed over the classes.
    """,
    _binary_columns,
    _binary_total,
    logits=(1, 2),
)
