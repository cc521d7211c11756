"""Losses, each in a few lines: payoffs and other terms per class, and a finish of their sums.

Give one to `softjax.of`, `of_logits`, `of_linear` or `of_mixture`; combinators turn a loss into another. A loss sees
logits, but not how they are computed or which device has which class. The numbers and arrays of a loss, such as the
rate of a smoothing, have gradients: they are in a `jax.tree_util.Partial` with the function that uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _checks, _distances
from ._arguments import checked, checked_array
from ._dtypes import cast, common_dtype, inexact_leaves, is_inexact
from ._gibbs import Columns, Totals, Weights, dot
from ._labels import Labels
from ._pair import Pair
from ._signatures import readable
from ._unknown import nan_unless


@jax.tree_util.register_static
class _Relative(NamedTuple):
    """A `relative` that is True, as a node without leaves: a loss is a pytree, and this is a part of the program."""


RELATIVE = _Relative()


@readable
class _Functions(NamedTuple):
    columns: Callable[[Array, Array, Any, Any], Columns]
    """(logits [N, B], class ids [B], example [N, ...], per class [B, ...]) -> Columns, for B of the classes"""
    finish: Callable[[Totals, Any], Array]
    """(Totals, example) -> [N, ...]"""
    payoff: Callable[[Any, Any], Array] | None = None
    """(example [N, ...], per class [N, ...]) -> t or e [N] of one class per example, without the error of a product"""
    relative: Any = None
    """whether `columns` may be given logits less a number common to all classes, which `Totals.A` has again"""


@readable
class Loss(_Functions):
    """The terms that are summed over the classes, and the loss from their sums: a named tuple of three functions.

    - `columns`: (logits [N, B], class ids [B], example [N, ...], per class [B, ...]) -> `Columns`, for B of the classes
    - `finish`: (`Totals`, example) -> the losses [N, ...]
    - `payoff`: None, or (example [N, ...], per class [N, ...]) -> t or e [N] of one class per example, without the
      error of a product
    - `relative`: True if `columns` may be given logits less a number that all classes of an example have in common:
      `Totals.A` and `Totals.of_labels` have it again. Digits are then kept that the number would cost.

    The functions close over no arrays: numbers and arrays of the loss come by `jax.tree_util.Partial`. A loss can be
    pickled if its functions have names in a module.
    """

    @classmethod
    def _described(
        cls, text: str, columns: Callable, finish: Callable, payoff: Callable | None = None, *, relative: bool = False
    ) -> Loss:
        """A loss whose `help` is a text."""
        loss = cls(columns, finish, payoff, RELATIVE if relative else None)
        loss.__doc__ = text  # of this tuple alone, as the class has no `__slots__`
        return loss


def as_tree(loss: Loss, dtype: jnp.dtype) -> Loss:
    """The loss as a pytree of its numbers and arrays, in the type of the computation."""
    return cast(jax.tree.map(jnp.asarray, as_partials(loss)), dtype)


def as_partials(loss: Loss) -> Loss:
    """The loss as a pytree of its numbers and arrays."""
    if not isinstance(loss, Loss):
        raise TypeError(f"`loss` must be a `softjax.Loss`, got {getattr(loss, '__name__', _checks.shown(loss))}.")
    payoff = None if loss.payoff is None else _partial("payoff", loss.payoff)
    relative = RELATIVE if loss.relative is True or isinstance(loss.relative, _Relative) else None
    return Loss(_partial("columns", loss.columns), _partial("finish", loss.finish), payoff, relative)


def _partial(name, function):
    if not callable(function):
        raise TypeError(f"`{name}` of a loss must be a function, got {_checks.shown(function)}.")
    return function if isinstance(function, Partial) else Partial(function)


def check_columns(c: Any, ids: Array) -> None:
    """Refuses a result of `columns` that is not `Columns` of the classes `ids`."""
    if not isinstance(c, Columns):
        raise TypeError(f"`columns` of a loss must return `softjax.Columns`, got {_checks.shown(c)}.")
    b, of_ids = ids.size, f"for the ids of {ids.size} classes"
    _check_array("h", c.h, (None, b), f"[N, {b}] {of_ids}")
    if not jnp.issubdtype(c.h.dtype, jnp.floating):
        raise TypeError(f"`h` of `Columns` must be floating-point numbers, got dtype {c.h.dtype}.")
    for name, wanted, meaning in (
        ("t", c.h.shape, "[N, B] as `h`"),
        ("v", (b, None), f"[{b}, E] {of_ids}"),
        ("e", c.h.shape, "[N, B] as `h`"),
        ("l", (c.h.shape[0], None), "[N, B] as `h`, or [N, 1]"),
    ):
        terms = getattr(c, name)
        if not isinstance(terms, tuple):
            raise TypeError(f"`{name}` of `Columns` must be a tuple of arrays, got {_checks.shown(terms)}.")
        for x in terms:
            _check_array(name, x, wanted, meaning)
    if c.y is not None:
        if not isinstance(c.y, Weights):
            raise TypeError(f"`y` of `Columns` must be `softjax.Weights`, got {_checks.shown(c.y)}.")
        _check_array("y.ids", c.y.ids, (c.h.shape[0], None), "[N, T] for the N of `h`")
        _check_array("y.of_ids", c.y.of_ids, c.y.ids.shape, "[N, T] as `y.ids`")
        if not jnp.issubdtype(c.y.ids.dtype, jnp.integer):
            raise TypeError(f"`y.ids` of `Columns` must be integers, got dtype {c.y.ids.dtype}.")
        if c.y.per_class is not None:
            pairs = getattr(c.y.per_class, "ndim", 1) == 2
            _check_array("y.per_class", c.y.per_class, c.h.shape[-2 if pairs else -1 :], f"[{b}] {of_ids}, or [N, {b}]")


def check_losses(loss: Any, n: int) -> None:
    """Refuses a result of `finish` that is not the losses of N examples."""
    if not isinstance(loss, Array):
        raise TypeError(f"`finish` of a loss must return a JAX array, got {_checks.shown(loss)}.")
    if loss.shape[:1] != (n,):
        raise ValueError(f"`finish` of a loss must return an array [N, ...] of {n} losses, got shape {loss.shape}.")


def _check_array(name, x, wanted, meaning):
    if not isinstance(x, Array):
        raise TypeError(f"`{name}` of `Columns` must be a JAX array, got {_checks.shown(x)}.")
    if len(x.shape) != len(wanted) or any(b not in (a, None) for a, b in zip(x.shape, wanted, strict=True)):
        raise ValueError(f"`{name}` of `Columns` must have shape {meaning}, got {x.shape}.")


def sigmoid(x: Pair) -> Array:
    """1 / (1 + exp -x), for a pair with a small rest, such as a difference.

    At a very negative x, rounding x first would give the result a relative error of eps |x|.
    """
    positive = x.base > 0
    u = jnp.exp(jnp.where(positive, -x.base, x.base)) * (1 + jnp.where(positive, -x.rest, x.rest))  # exp -|x|
    return jnp.where(positive, 1, u) / (1 + u)


def label_weights(labels: Array | tuple[Array, Array], z: Array) -> Weights:
    """The weights of labels [N], or of a pair of class ids and weights [N, T], for logits z [N, B]."""
    if not isinstance(labels, tuple):
        return Weights(_label_ids(labels, z)[:, None], jnp.ones((z.shape[0], 1), z.dtype))
    if len(labels) != 2:
        raise ValueError(
            f"`example` must be labels or a pair (classes, weights) for this loss, got {len(labels)} parts."
        )
    classes, weights = labels
    if classes.ndim != 2 or classes.shape != weights.shape:
        got = f"{classes.shape} and {weights.shape}"
        raise ValueError(f"`example` must be a pair of shapes [N, T] (classes and weights) for this loss, got {got}.")
    return Weights(_class_ids(classes), weights.astype(z.dtype))


def _label_ids(labels, z):
    """The labels [N] of logits [N, B], negative where they are out of range."""
    if not isinstance(labels, Array):
        raise TypeError(f"`example` must be integer labels [N] for this loss, got {_checks.shown(labels)}.")
    if labels.shape != z.shape[:1]:
        raise ValueError(f"`example` must be labels [N], one each, for this loss, got shape {labels.shape}.")
    return _class_ids(labels)


def _class_ids(labels):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`example` must be integer labels for this loss, got dtype {labels.dtype}.")
    return _checks.class_ids(labels, _checks.INT32.max, other=-1)[0]


def _floats(*arrays):
    """The arrays in their common floating-point type."""
    for a in arrays:
        if not isinstance(a, Array):
            raise TypeError(f"`example` and `per_class` must be arrays for this loss, got {_checks.shown(a)}.")
    inexact = inexact_leaves(arrays) or [jnp.zeros(0, "float32")]
    return tuple(a.astype(common_dtype(*inexact)) for a in arrays)


_is_label = lambda ids, labels: ids[None] == labels[:, None]  # [N, B]


def _nan_for_inf(z):
    """The logits, with NaN in place of +inf, and without a gradient for a class that is left out."""
    z = jnp.where(jnp.isposinf(z), jnp.nan, z)
    return jnp.where(jnp.isneginf(z), -jnp.inf, z)


def _others_and_label(z, ids, labels):
    """(the logits [N, B] without the label, its (logit, 1) [N, 1]): the last two are 0 in blocks without the label."""
    labels = _label_ids(labels, z)
    found = Labels(labels[:, None], ids)
    return jnp.where(_is_label(ids, labels), -jnp.inf, z), (_nan_for_inf(found.take(z)), found.here.astype(z.dtype))


def _label_logit(q):
    """(the logit of the label; True where all classes are left out; whether the label is a class)."""
    logit, known = q.l
    nothing = jnp.isneginf(q.a.m) & jnp.isneginf(logit)
    return jnp.where(nothing, 0, logit), nothing, known == 1


# Losses of labels: the example is the label [N]; for the cross entropy, also a pair of classes and weights [N, T]


def _cross_entropy_columns(z, ids, labels, added):  # noqa: ARG001
    y = label_weights(labels, z)
    if added is None:
        return Columns(z, y=y)
    (added,) = _floats(added)
    if added.ndim != 1:
        raise ValueError(f"`per_class` must be weights [K] for this loss, got an array of rank {added.ndim}.")
    return Columns(z, y=y._replace(per_class=added.astype(z.dtype)))


def _cross_entropy_of_sums(q, _):
    return q.C


cross_entropy = Loss._described(
    """C = -sum_k y_k log p_k, the cross entropy of label weights y and p = softmax(z), in nats.

    Args:
        example: labels [N], integers in [0, K), of weight 1; or a pair of class ids and their weights, both [N, T].
        per_class: weights [K] that are added to the y of every example; None for none.

    Source: CATSMILE-1012 (softargmax), cross entropy, there without its minus sign.
    """,
    _cross_entropy_columns,
    _cross_entropy_of_sums,
    relative=True,
)


@readable
def focal(gamma: ArrayLike = 2.0) -> Loss:
    """(1 - p_y)^gamma C, the focal loss of the label [N] (Lin et al., 2017)."""
    return cross_entropy._replace(finish=Partial(_focal, checked("gamma", gamma)))


def _focal(gamma, q, _):
    inside = (q.C > 0) & (jnp.inf > q.C)  # the power may have no derivative at 0
    c = jnp.where(inside, q.C, 1)
    return jnp.where(inside, (-jnp.expm1(-c)) ** gamma * c, q.C)


@readable
def poly_1(epsilon: ArrayLike = 2.0) -> Loss:
    """C + epsilon (1 - p_y), the poly-1 loss of the label [N] (Leng et al., 2022)."""
    return cross_entropy._replace(finish=Partial(_poly_1, checked("epsilon", epsilon)))


def _poly_1(epsilon, q, _):
    return q.C - epsilon * jnp.expm1(-q.C)


def _brier_columns(z, ids, y, _):
    others, label = _others_and_label(z, ids, y)
    return Columns(others, e=(others,), l=label)


def _brier(q, _):
    label_logit, nothing, known = _label_logit(q)
    against = q.A - label_logit  # log-odds of every class but the label
    alone = jnp.isneginf(q.a.m)
    squares = jnp.where(alone, 0, jnp.exp(jnp.where(alone, 0, (q.e[0] - q.A).value)))  # of the others' own softmax
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
    y, label_logit = _label_ids(example[0], z), example[1]
    if label_logit.shape != z.shape[:1]:
        raise ValueError(f"`example` must have a logit for each label for this loss, got shape {label_logit.shape}.")
    z, label_logit = _nan_for_inf(z), _nan_for_inf(label_logit.astype(z.dtype))
    over = jnp.where(jnp.isneginf(z), -jnp.inf, z - label_logit[:, None] + margin)
    is_label = _is_label(ids, y)
    return Columns(z, l=(jnp.where(is_label, 0, jnp.maximum(over, 0)), is_label.astype(z.dtype)))


def _sum_over_the_label(q, example):
    total, known = q.l
    # The loss and its gradient are NaN where a label's logit is NaN, also where all other classes are left out.
    total += jnp.where(jnp.isnan(example[1]), example[1], 0).astype(total.dtype)
    return nan_unless((known == 1) & ~jnp.isnan(total), total)


@readable
def crammer_singer(margin: ArrayLike = 1.0) -> Loss:
    """max(0, max_{k != y} z_k - z_y + margin), a multiclass hinge (Crammer and Singer, 2001).

    The example is the label [N]. The maximum is E_p[z] at a temperature near 0; tied classes share its gradient.
    """
    return Loss(_crammer_singer_columns, Partial(_crammer_singer, checked("margin", margin)))


def _crammer_singer_columns(z, ids, y, _):
    others, label = _others_and_label(z, ids, y)
    return Columns(lax.stop_gradient(others) * 2.0**60, t=(others,), l=label)


def _crammer_singer(margin, q, _):
    label_logit, _, known = _label_logit(q)
    over = jnp.maximum((q.t[0] - label_logit).value + margin, 0)
    loss = jnp.where(jnp.isneginf(q.a.m) & ~jnp.isnan(label_logit), 0, over)
    return nan_unless(known & ~jnp.isnan(loss), loss)


def _logits_alone(z, ids, example, per_class):  # noqa: ARG001
    return Columns(z)


def _logsumexp(q, _):
    return q.A.value


logsumexp = Loss._described(
    """A = log sum_k exp z_k, with the derivative sum_k p_k dz_k.

    Args:
        example: None.
        per_class: None.

    Source: CATSMILE-1012 (softargmax).
    """,
    _logits_alone,
    _logsumexp,
    relative=True,
)


def _vector_payoff(z, ids, example, per_class):  # noqa: ARG001
    return Columns(z, v=_floats(per_class))


def _weighted_logsumexp(q, _):
    a, nothing = (jnp.expand_dims(x, -1) for x in (q.A.value, jnp.isneginf(q.a.m)))
    return jnp.where(nothing, -jnp.inf, a) + jnp.log(jnp.where(nothing, 1, q.v[0].value))


weighted_logsumexp = Loss._described(
    """log sum_k b_k exp z_k [N, E], for factors b of the classes, which may be negative; NaN if the sum is negative.

    Args:
        example: None.
        per_class: b [K, E].

    Source: `b` of `jax.nn.logsumexp`.
    """,
    _vector_payoff,
    _weighted_logsumexp,
    relative=True,
)


def _entropy_columns(z, ids, example, per_class):  # noqa: ARG001
    return Columns(z, t=(z,))


def _entropy_of_sums(q, _):  # in dA - dE_p[z], dA and sum_k p_k dz_k cancel, and neither is computed
    return (lax.stop_gradient(q.a.log) - q.t_fixed[0]).value


entropy = Loss._described(
    """H(p) = -sum_k p_k log p_k = A - E_p[z], in nats, with dH = -sum_k p_k (z_k - E_p[z]) dz_k.

    Args:
        example: None.
        per_class: None.

    Source: CATSMILE-1012 (softargmax), E_p[t] with t = log p.
    """,
    _entropy_columns,
    _entropy_of_sums,
    relative=True,
)


def _expectation(q, _):
    return q.v[0].value


expectation = Loss._described(
    """E_p[v] = sum_k p_k v_k [N, E], for payoffs v of the classes.

    Args:
        example: None.
        per_class: v [K, E].

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """,
    _vector_payoff,
    _expectation,
    relative=True,
)


def _binary_columns(z, ids, example, _):
    # There is no softmax. Without the barrier, the compiler would take the maximum of these zeros by itself, for long.
    nothing = jnp.broadcast_to(lax.optimization_barrier(jnp.zeros((), z.dtype)), z.shape)
    if isinstance(example, Array) and is_inexact(example):
        _check_array("example", example, z.shape, "[N, K] of targets for this loss")
        return Columns(nothing, l=(_binary_costs(z, jnp.where(jnp.isneginf(z), 0, example)), nothing[:, :1]))
    labels = _lists_of_labels(example, z)
    found = Labels(labels.ids, ids)
    costs = found.put(_binary_costs(found.take(z), labels.of_ids), jax.nn.softplus(z))
    return Columns(nothing, l=(costs, found.here.sum(-1, keepdims=True).astype(z.dtype)))


def _lists_of_labels(example, z):
    """Labels [N] or [N, T], or a pair of class ids and targets [N, T], as weights."""
    several = isinstance(example, Array) and example.ndim == 2
    return label_weights((example, jnp.ones(example.shape, z.dtype)) if several else example, z)


def _binary_costs(z, y):
    """-y log sigmoid(z) - (1 - y) log sigmoid(-z)."""
    cost = lambda share, z: jnp.where(share == 0, 0, share * jax.nn.softplus(z))
    return cost(y.astype(z.dtype), -z) + cost(1 - y.astype(z.dtype), z)


def _binary_total(q, example):
    cost, found = q.l
    if example is None:
        return cost
    count = (_lists_of_labels(example, cost[:, None]).ids >= 0).sum(-1)
    return nan_unless(found == count.astype(found.dtype), cost)


binary_cross_entropy = Loss._described(
    """sum_k -(y_k log sigmoid(z_k) + (1 - y_k) log sigmoid(-z_k)), in nats, for examples of any number of classes.

    Args:
        example: labels [N] or [N, T], where a negative one is none; a pair of class ids and their targets y in [0, 1],
            both [N, T]; or the targets [N, K] of all classes, as `softjax.PerPair`. A label on a class that is left out
            costs +inf; in targets of all classes, that class is not in the sum.
        per_class: None.

    Source: `optax.sigmoid_binary_cross_entropy`, summed over the classes.
    """,
    _binary_columns,
    _binary_total,
)


def _kl_columns(z, _, x, v):
    x, v = (*_floats(x), None) if v is None else _floats(x, v)
    _check_data(x, z if v is None else v)
    teacher = jnp.where(jnp.isneginf(z), -jnp.inf, x if v is None else dot(x, v.T))
    gap = jnp.where(jnp.isneginf(teacher), 0, z) - jnp.where(jnp.isneginf(teacher), 0, teacher)
    return Columns(teacher, t=(gap,), e=(gap,))


def _kl_divergence(q, _):
    return jnp.where(jnp.isneginf(q.a.m), 0, (q.e[0] - q.t[0]).value)


kl_divergence = Loss._described(
    """KL(p' || p) = sum_k p'_k (log p'_k - log p_k) for a teacher p' = softmax(z'), in nats.

    It is computed as log E_p'[exp(z - z')] - E_p'[z - z'], with an absolute error of eps |z|. A class with logit -inf
    in z or z' is left out of both.

    Args:
        example: the teacher's logits z' [N, K], for `of_logits`; or its features x [N, D], with z'_k = x . v_k.
        per_class: None for the teacher's logits; or the rows v [K, D] of its kernel.

    Source: Kullback and Leibler, On information and sufficiency (1951).
    """,
    _kl_columns,
    _kl_divergence,
)


def _squared_error(q, x):
    (x,), mean = _floats(x), q.v[0]
    _check_data(x, mean.base)
    return ((x - mean) ** 2).sum(-1)


def _check_data(x, of_classes):
    if x.ndim != 2 or of_classes.ndim != 2 or x.shape[1] != of_classes.shape[1]:
        got = f"{x.shape} where the classes have {of_classes.shape[1:]}"
        raise ValueError(f"`example` must have shape [N, E] with the E of the classes for this loss, got {got}.")


mixture_autoencoder = Loss._described(
    """|x - E_p[v]|^2, the error of a reconstruction from payoffs v of the classes.

    Args:
        example: data x [N, E].
        per_class: v [K, E].

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """,
    _vector_payoff,
    _squared_error,
    relative=True,
)


def _log_likelihood(x, v):
    """log p(x | k) = -|x - v_k|^2 [N] for one class per example."""
    x, v = _floats(x, v)
    return -((x - v) ** 2).sum(-1)


def _log_likelihoods(x, v):
    """log p(x | k) [N, B] for all classes."""
    x, v = _floats(x, v)
    _check_data(x, v)
    return _distances.scores(x, v) - _distances.common_part(x)[:, None]


def _eol_columns(z, ids, x, v):  # noqa: ARG001
    return Columns(z, t=(_log_likelihoods(x, v),))


def _eol(q, _):
    return -q.t[0].value


eol = Loss._described(
    """-E_p[log p(x | k)], the negative expected log-likelihood, for log p(x | k) = -|x - v_k|^2.

    Args:
        example: data x [N, E].
        per_class: v [K, E].

    Source: CATSMILE-1012 (softargmax), EOL, there without its minus sign.
    """,
    _eol_columns,
    _eol,
    _log_likelihood,
    relative=True,
)


def _leop_columns(z, ids, x, v):  # noqa: ARG001
    return Columns(z, e=(_log_likelihoods(x, v),))


def _leop(q, _):
    return -q.e[0].value


leop = Loss._described(
    """-log E_p[p(x | k)], the negative log-likelihood, for log p(x | k) = -|x - v_k|^2.

    Args:
        example: data x [N, E].
        per_class: v [K, E].

    Source: the log-likelihood of the mixture whose expectation CATSMILE-1012 (softargmax) calls EOL.
    """,
    _leop_columns,
    _leop,
    _log_likelihood,
    relative=True,
)


def gaussian_mixture(precisions: ArrayLike = 1.0) -> Loss:
    """-log sum_k p_k N(x; c_k, 1 / t_k), the negative log-likelihood of Gaussians with probabilities p = softmax(z).

    The example is the data x [N, D]. The data of the classes are the means c [K, D], with precisions t, the inverse
    variances, that are a number or [D], the same for all classes; or a pair of c and of factors of t [K, D] or [K, 1].
    With scores of a linear layer it is the loss of a mixture density network whose components are shared
    (Bishop, Mixture density networks, 1994).
    """
    is_number = isinstance(precisions, int | float)  # it keeps all its digits
    precisions = _checks.number("precisions", precisions) if is_number else checked_array("precisions", precisions)
    if jnp.ndim(precisions) > 1:
        raise ValueError(f"`precisions` must be a scalar or have shape [D], got {jnp.shape(precisions)}.")
    columns, finish, payoff = (Partial(f, precisions) for f in (_gaussian_columns, _gaussian_mixture, _log_gaussian))
    return Loss(columns, finish, payoff, RELATIVE)


def _gaussian_columns(of_all, z, ids, x, of_classes):  # noqa: ARG001
    x, c, t, offset = _gaussians(of_all, x, of_classes)
    _check_data(x, c)
    e = _distances.scores(x, c, None, 2.0, offset, t)
    return Columns(z, e=(e - _distances.common_part(x, None, 2.0, t)[:, None],))


def _log_gaussian(of_all, x, of_classes):
    """The exponent of one class per example."""
    x, c, t, offset = _gaussians(of_all, x, of_classes)
    e = -(jnp.atleast_2d(t) * (x - c) ** 2).sum(-1) / 2
    return e if offset is None else e + offset


def _gaussians(of_all, x, of_classes):
    """(the data, the means, the precisions, the logarithms of the factors of each class)."""
    c, *of_each = of_classes if isinstance(of_classes, tuple) else (of_classes,)
    x, c, *of_each = _floats(x, c, *of_each)
    if not of_each:
        return x, c, _of_dimensions(of_all, x), None
    # One precision of each class stays one: the scores are then a product of D + 2 numbers, not of 2 D + 1.
    t = jnp.atleast_2d(of_all).astype(x.dtype) * of_each[0]
    return x, c, t, _half_log(of_each[0], x.shape[-1])


def _gaussian_mixture(of_all, q, x):
    (x,), d = _floats(x), x.shape[1]
    common = _half_log(_of_dimensions(of_all, x), d) - d / 2 * math.log(2 * math.pi)
    return -(q.e[0] - (-common)).value


def _of_dimensions(precisions, x):
    return jnp.broadcast_to(precisions, x.shape[-1:]).astype(x.dtype)


def _half_log(t, d):
    """sum_d log(t_d) / 2 of precisions [..., D] or [..., 1]; without a gradient where it is -inf."""
    none = t == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, t))).sum(-1) * (d / max(t.shape[-1], 1) / 2)


def _before(loss, function, *numbers, relative=False):
    """The loss with `function(loss.columns, *numbers, logits, ids, example, per class)` as its columns."""
    columns = Partial(function, as_partials(loss).columns, *numbers)
    # The payoff may depend on the logits, which change.
    return loss._replace(columns=columns, payoff=None, relative=loss.relative if relative else None)


def _after(loss, function, *numbers):
    """The loss with `function(loss.finish, *numbers, totals, example)` as its finish."""
    finish = Partial(function, as_partials(loss).finish, *numbers)
    return loss._replace(finish=finish)


@readable
def softcap(loss: Loss, cap: ArrayLike) -> Loss:
    """The loss of the logits cap * tanh(z / cap), which are in (-cap, cap) (Gemma 2)."""
    return _before(loss, _softcap, checked("cap", cap))


def _softcap(columns, cap, z, *data):
    return columns(unless_left_out(lambda z: cap * jnp.tanh(z / cap), z), *data)


@readable
def temperature(loss: Loss, temperature: ArrayLike) -> Loss:
    """The loss of the logits z / temperature."""
    return _before(loss, _temperature, checked("temperature", temperature))


def _temperature(columns, temperature, z, *data):
    return columns(unless_left_out(lambda z: z / temperature, z), *data)


def unless_left_out(function: Callable, z: Array) -> Array:
    """function(z), with -inf and no gradient for a class that is left out."""
    left_out = jnp.isneginf(z)
    return jnp.where(left_out, -jnp.inf, function(jnp.where(left_out, 0, z)))


@readable
def margin(loss: Loss, margin: ArrayLike) -> Loss:
    """The loss with `margin` subtracted from the logit of the label [N], as in CosFace (Wang et al., 2018)."""
    return _before(loss, _margin, _checks.number("margin", margin), relative=True)


def _margin(columns, margin, z, ids, y, per_class):
    return columns(jnp.where(_is_label(ids, _label_ids(y, z)), z - margin, z), ids, y, per_class)


@readable
def label_smoothing(loss: Loss, rate: ArrayLike, prior: ArrayLike) -> Loss:
    """The loss of labels with weights (1 - rate) y_k + rate * prior_k, for a prior [K] or a number, such as 1 / K."""
    if not isinstance(prior, int | float):
        prior = _checks.floating("prior", prior)
        if prior.ndim > 1 or not prior.size:
            raise ValueError(f"`prior` must be a scalar or have shape [K], got {prior.shape}.")
    return _before(loss, _label_smoothing, checked("rate", rate), prior, relative=True)


def _label_smoothing(columns, rate, prior, z, ids, example, per_class):
    c = _with_weights("label_smoothing", columns(z, ids, example, per_class))
    of_block = jnp.full(ids.shape, prior, z.dtype) if prior.ndim == 0 else _of_each(prior, ids)
    of_classes = rate * of_block if c.y.per_class is None else (1 - rate) * c.y.per_class + rate * of_block
    return c._replace(y=Weights(c.y.ids, (1 - rate) * c.y.of_ids, of_classes))


def _with_weights(name, c):
    if c.y is None:
        raise ValueError(f"`{name}` must be given a loss whose columns have weights `y`, got one without.")
    return c


def _of_each(of_classes, ids):
    """The entries of an array [K] at class ids: NaN beyond K, 0 for padding."""
    known = of_classes.at[jnp.where(ids < 0, of_classes.size, ids)].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(ids < 0, 0, known)


@readable
def class_weights(loss: Loss, weights: ArrayLike) -> Loss:
    """The loss of labels with weights `weights_k y_k` in place of y_k, for weights [K]."""
    weights = _checks.floating("weights", weights)
    if weights.ndim != 1 or not weights.size:
        raise ValueError(f"`weights` must have shape [K], got {weights.shape}.")
    return _before(loss, _class_weights, weights, relative=True)


def _class_weights(columns, weights, z, ids, example, per_class):
    c = _with_weights("class_weights", columns(z, ids, example, per_class))
    of_classes = None if c.y.per_class is None else _of_each(weights, ids) * c.y.per_class
    return c._replace(y=Weights(c.y.ids, _of_each(weights, c.y.ids) * c.y.of_ids, of_classes))


@readable
def z_loss(loss: Loss, weight: ArrayLike) -> Loss:
    """The loss + weight * A^2, which keeps A = log sum_k exp z_k near 0 (Mesh TensorFlow; PaLM)."""
    return _after(loss, _z_loss, _checks.number("weight", weight))


def _z_loss(finish, weight, q, example):
    a = jnp.where(jnp.isneginf(q.a.m), 0, q.A.value)  # not where all classes are left out
    return finish(q, example) + weight * a**2
