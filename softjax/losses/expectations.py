"""Losses of logits alone, and of the data of the classes: expectations, entropies, likelihoods."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from ..arguments import checks
from ..arguments.table import checked_array
from ..compute import squares
from ..sums.columns import ENTROPY, Columns
from ..sums.elementary import log
from .loss import Loss, floats


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
    return Columns(z, class_values=floats(per_class))


def _weighted(z, ids, example, b):  # noqa: ARG001
    """A softmax for each column of factors: a class of factor 0 must not be the largest of those that count."""
    (b,) = floats(b)
    of_factors = lambda b: Columns(jnp.where(b[None] == 0, -jnp.inf, z), class_values=(b[:, None],))
    return {i: of_factors(b[:, i]) for i in range(b.shape[1])}


def _weighted_logsumexp(totals, _):
    def of_factors(q):
        mean = q.class_values[0].value[:, 0]
        return jnp.where(q.empty, -jnp.inf, q.A.value) + log(jnp.where(q.empty, 1, mean))

    return jnp.stack([of_factors(q) for _, q in sorted(totals.items())], -1)


weighted_logsumexp = Loss._described(
    """log sum_k b_k exp z_k [N, E], for factors b of the classes, which may be negative; NaN if the sum is negative.

    A class of factor 0 has no gradient, as in `jax.nn.logsumexp`; -inf where all factors are 0.

    Args:
        example: None.
        per_class: b [K, E].

    Source: `b` of `jax.nn.logsumexp`.
    """,
    _weighted,
    _weighted_logsumexp,
    relative=True,
)


def _entropy_columns(z, ids, example, per_class):  # noqa: ARG001
    return Columns(z, entropies=(ENTROPY,))


def _entropy_of_sums(q, _):
    return q.H


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


def _mean_of_pairs(z, ids, example, per_class):  # noqa: ARG001
    z, t = z
    return Columns(z, payoffs=(t.astype(z.dtype),))


def _value_of_mean(q, _):
    return q.payoffs[0].value


expectation_of_pairs = Loss._described(
    """E_p[t] = sum_k p_k t_k [N], for payoffs t of each example and class: the logits are the pair (z, t).

    Args:
        example: None.
        per_class: None.

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """,
    _mean_of_pairs,
    _value_of_mean,
    relative=True,
    logits=2,
)


def _expectation(q, _):
    return q.class_values[0].value


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


def _squared_error(q, x):
    (x,), mean = floats(x), q.class_values[0]
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
    x, v = floats(x, v)
    return -((x - v) ** 2).sum(-1)


def _log_likelihoods(x, v):
    """log p(x | k) [N, B] for all classes."""
    x, v = floats(x, v)
    _check_data(x, v)
    return squares.scores(x, v) - squares.common_part(x)[:, None]


def _eol_columns(z, ids, x, v):  # noqa: ARG001
    return Columns(z, payoffs=(_log_likelihoods(x, v),))


def _eol(q, _):
    return -q.payoffs[0].value


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
    return Columns(z, exponents=(_log_likelihoods(x, v),))


def _leop(q, _):
    return -q.exponents[0].value


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
    precisions = checks.number("precisions", precisions) if is_number else checked_array("precisions", precisions)
    if jnp.ndim(precisions) > 1:
        raise ValueError(f"`precisions` must be a scalar or have shape [D], got {jnp.shape(precisions)}.")
    columns, finish, payoff = (Partial(f, precisions) for f in (_gaussian_columns, _gaussian_mixture, _log_gaussian))
    return Loss(columns, finish, payoff, relative=True)


def _gaussian_columns(of_all, z, ids, x, of_classes):  # noqa: ARG001
    x, c, t, offset = _gaussians(of_all, x, of_classes)
    _check_data(x, c)
    e = squares.scores(x, c, None, 2.0, offset, t)
    return Columns(z, exponents=(e - squares.common_part(x, None, 2.0, t)[:, None],))


def _log_gaussian(of_all, x, of_classes):
    """The exponent of one class per example."""
    x, c, t, offset = _gaussians(of_all, x, of_classes)
    e = -(jnp.atleast_2d(t) * (x - c) ** 2).sum(-1) / 2
    return e if offset is None else e + offset


def _gaussians(of_all, x, of_classes):
    """(the data, the means, the precisions, the logarithms of the factors of each class)."""
    c, *of_each = of_classes if isinstance(of_classes, tuple) else (of_classes,)
    x, c, *of_each = floats(x, c, *of_each)
    if not of_each:
        return x, c, _of_dimensions(of_all, x), None
    # One precision of each class stays one: the scores are then a product of D + 2 numbers, not of 2 D + 1.
    t = jnp.atleast_2d(of_all).astype(x.dtype) * of_each[0]
    return x, c, t, _half_log(of_each[0], x.shape[-1])


def _gaussian_mixture(of_all, q, x):
    (x,), d = floats(x), x.shape[1]
    common = _half_log(_of_dimensions(of_all, x), d) - d / 2 * math.log(2 * math.pi)
    return -(q.exponents[0] - (-common)).value


def _of_dimensions(precisions, x):
    return jnp.broadcast_to(precisions, x.shape[-1:]).astype(x.dtype)


def _half_log(t, d):
    """sum_d log(t_d) / 2 of precisions [..., D] or [..., 1]; without a gradient where it is -inf."""
    none = t == 0
    return jnp.where(none, -jnp.inf, log(jnp.where(none, 1, t))).sum(-1) * (d / max(t.shape[-1], 1) / 2)
