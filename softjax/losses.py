"""A loss is a choice of scores, payoffs and plain terms, and a finish. It cannot know where its classes live.

A function of the public interface stands before each: the formulas, shapes and sources are there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ._gibbs import Columns, Pair, Totals, dot


class Loss(NamedTuple):
    """What is summed over the classes, and what is made of the sums."""

    columns: Callable[[Array, Array, Any, Any], Columns]
    """(logits [N, B], class ids [B], example [N, ...], per class [B, ...]) -> Columns"""
    finish: Callable[[Totals, Any], Array]
    """(Totals, example) -> [N, ...]"""
    payoff: Callable[[Any, Any], Array] | None = None
    """(example [N, ...], per class [N, ...]) -> t or e [N] of one class per example, where columns lose digits of it"""


def softplus(x: Pair) -> Array:
    """log(1 + exp x). Where x is very negative, the error of rounding x would be the error of the result."""
    positive = x.base > 0
    u = jnp.exp(jnp.where(positive, -x.base, x.base)) * (1 + jnp.where(positive, -x.rest, x.rest))
    return jnp.where(positive, x.base + x.rest, 0) + jnp.log1p(u)


def _others(z, k, y, _):
    """Every class but the label; the label's logit as a plain term."""
    is_label = k[None] == y[:, None]
    impossible = jnp.isneginf(z)  # and so without a gradient
    return Columns(jnp.where(is_label, -jnp.inf, z), l=(jnp.where(is_label, jnp.where(impossible, -jnp.inf, z), 0),))


def _negative_log_likelihood(q, _):
    """-log p_y = log(1 + sum_{k != y} exp(z_k - z_y))."""
    (label_logit,) = q.l
    label_logit = jnp.where(jnp.isposinf(label_logit), jnp.nan, label_logit)
    no_class_left = jnp.isneginf(label_logit) & jnp.isneginf(q.a.m)
    loss = softplus(q.A - jnp.where(no_class_left, 0, label_logit))
    return jnp.where(no_class_left, jnp.inf, loss)


# The label is left out of the sum, so that its loss and gradient keep all digits however sure the row is of it.
cross_entropy = Loss(_others, _negative_log_likelihood)

# A
logsumexp = Loss(lambda z, k, _, __: Columns(z), lambda q, _: q.A.value)

# H(p) = A - E_p[z], with dH = -sum_k p_k (z_k - E_p[z]) dz_k: dA and sum_k p_k dz_k cancel, and are left out of both
entropy = Loss(lambda z, k, _, __: Columns(z, t=(z,)), lambda q, _: (lax.stop_gradient(q.A) - q.s[0]).value)

# E_p[v]
expectation = Loss(lambda z, k, _, v: Columns(z, v=(v,)), lambda q, _: q.v[0].value)

# |x - E_p[v]|^2
mixture_autoencoder = Loss(lambda z, k, x, v: Columns(z, v=(v,)), lambda q, x: ((x - q.v[0]) ** 2).sum(-1))


def _log_likelihood(x, v):
    """log p(x | k) = -|x - v_k|^2 for one class per example."""
    return -((x - v) ** 2).sum(-1)


def _log_likelihoods(x, v):
    """The same for every class, [N, B], by a matrix product."""
    return dot(2 * x, v.T) - (v**2).sum(-1)[None] - (x**2).sum(-1)[:, None]


# -E_p[log p(x | k)]
eol = Loss(
    lambda z, k, x, v: Columns(z, t=(_log_likelihoods(x, v),)),
    lambda q, _: -q.t[0].value,
    _log_likelihood,
)

# -log E_p[p(x | k)]
leop = Loss(
    lambda z, k, x, v: Columns(z, e=(_log_likelihoods(x, v),)),
    lambda q, _: -q.e[0].value,
    _log_likelihood,
)
