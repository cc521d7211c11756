"""Divergences between the softmaxes p of some logits and q of others: the logits are the pair (z', z) of both.

    KL(p || q) = log E_p[exp(z - z')] - E_p[z - z'] + log(1 + R)

for R = sum_{k: p_k = 0} exp z_k / sum_{k: p_k > 0} exp z_k, the odds of the classes that p leaves out.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from ..sums.columns import Columns, Weights
from ..sums.elementary import exp, expm1, log, log1p, reciprocal, softplus, tanh
from ..sums.labels import Labels
from ..sums.pair import Pair
from ..sums.sums import Totals
from .loss import Loss

BOTH = (True, True)
_LOG_2 = math.log(2.0)


def _compared(z, *, masked=True):
    """Columns of log E_p[exp(z - z')], of the classes that p leaves out, and of those that only q leaves out."""
    p, q = z
    in_both = ~(jnp.isneginf(p) | jnp.isneginf(q))
    gap = jnp.where(in_both, jnp.where(in_both, q, 0) - jnp.where(in_both, p, 0), 0)
    impossible = jnp.isneginf(q) & ~jnp.isneginf(p)
    exponent = jnp.where(impossible, -jnp.inf, gap)
    of_p = Columns(p, exponents=(exponent,))
    return gap, impossible, {"p": of_p} | ({"rest": Columns(jnp.where(jnp.isneginf(p), q, -jnp.inf))} if masked else {})


def _log_of_rest(totals):
    """log(1 + R)."""
    if "rest" not in totals:
        return 0.0
    q, outside = totals["p"], totals["rest"]
    inside = q.exponents[0].value + q.normaliser.log.value
    none = outside.empty | jnp.isneginf(inside)  # R is 0, or infinite
    log_odds = (outside.normaliser.log - jnp.where(none, 0, inside)).value
    return jnp.where(none, 0, softplus(jnp.where(none, 0, log_odds)))


def _kl_columns(z, *_, masked=True):
    gap, impossible, columns = _compared(z, masked=masked)
    columns["p"] = columns["p"]._replace(payoffs=(gap,), terms=(impossible.astype(gap.dtype),))
    return columns


def _kl(totals, _):
    q = totals["p"]
    divergence = (q.exponents[0] - q.payoffs[0]).value + _log_of_rest(totals)
    return jnp.where(q.empty, 0, jnp.where((q.terms[0] > 0) & ~jnp.isnan(divergence), jnp.inf, divergence))


def _kl_columns_of_all(z, *_):
    return _kl_columns(z, masked=False)


kl_divergence = Loss._described(
    """KL(p || q) = sum_k p_k (log p_k - log q_k), in nats, of the softmaxes p and q of two logits, which are a pair.

    inf where q masks a class that p has; 0 where p masks all. The absolute error is eps |z|.

    Args:
        example: None.
        per_class: None.

    Source: Kullback and Leibler, On information and sufficiency (1951).
    """,
    _kl_columns,
    _kl,
    relative=BOTH,
    logits=2,
)
kl_divergence_of_all = kl_divergence._replace(columns=_kl_columns_of_all)
"""the same where p masks no class"""


def _ratio_columns(z, *_):
    return _compared(z)[2]


def _log_ratio(totals, _):
    q, outside = totals["p"], totals["rest"]
    apart = jnp.isneginf(q.exponents[0].value)  # no class has p and q
    none = q.empty | outside.empty  # p or q has no class
    of_others = (outside.normaliser.log - jnp.where(none, 0, q.normaliser.log.value)).value
    ratio = jnp.where(none, 0, of_others)
    ratio = jnp.where(apart & q.empty & ~outside.empty, jnp.inf, ratio)
    ratio = jnp.where(apart & outside.empty & ~q.empty, -jnp.inf, ratio)
    return jnp.where(apart, ratio, jnp.where(apart, 0, q.exponents[0].value) + _log_of_rest(totals))


log_ratio = Loss(_ratio_columns, _log_ratio, relative=BOTH, logits=2)
"""log(sum_k exp z_k / sum_k exp z'_k), with digits where the two are close; for `js_divergence`"""


def _js_columns(z, ids, gap, _):  # noqa: ARG001
    """The base is m = (p + q) / 2, and JS = E_m[t] with t_k = log 2 - H(s_k), for s_k = q_k / (p_k + q_k)."""
    p, q = z
    has_p, has_q = ~jnp.isneginf(p), ~jnp.isneginf(q)
    p, q = jnp.where(has_p, p, 0), jnp.where(has_q, q, 0) - jnp.where(jnp.isinf(gap), 0, gap)[:, None]
    log_odds = jnp.where(has_p & has_q, q - p, jnp.where(has_q, 1e3, -1e3))
    of_m = jnp.where(has_p & has_q, p + softplus(log_odds), jnp.where(has_q, q, jnp.where(has_p, p, -jnp.inf)))
    return Columns(of_m, payoffs=(_information(log_odds),))


def _information(log_odds):
    """log 2 - H(s) of a probability s = sigmoid(log_odds), with all digits near s = 1/2."""
    x = jnp.minimum(jnp.abs(log_odds), 800)
    near = jnp.minimum(x, 1)
    u, of_half = exp(-x), tanh(near / 2)
    return jnp.where(x < 1, (log1p(-(of_half**2)) + of_half * near) / 2, _LOG_2 - log1p(u) - x * u * reciprocal(1 + u))


def _js(totals, gap):
    """Where only one of p and q has classes, the other is 2 m; where none has, JS is 0."""
    return jnp.where(jnp.isinf(gap), _LOG_2 / 2, totals.payoffs[0].value).astype(gap.dtype)


js_divergence = Loss(_js_columns, _js, relative=BOTH, logits=2)
"""(KL(p || m) + KL(q || m)) / 2 for m = (p + q) / 2; the example is `log_ratio` of the two"""


# The divergence from a p that is listed: a pair (class ids, probabilities), with probability 0 for all other classes.


def _columns_of_pair(z, ids, pair, _):
    """The logits of the listed classes, and the probability of all others."""
    labels = Labels(pair[0], ids)
    none = jnp.zeros(pair[0].shape, z.dtype)
    others = labels.put(jnp.full_like(none, -jnp.inf), jnp.zeros_like(z))
    return Columns(z, exponents=(others,), labels=(Weights(pair[0], none),))


def _kl_of_pair(totals, pair):
    """The sum of p log(p / q) - p + q, and of q for the other classes: terms that are not negative."""
    p, q, log_ratio, of_others = _listed(totals, pair)
    terms = jnp.where(p > 0, p * (log_ratio + expm1(-log_ratio)), q)
    return terms.sum(-1) + of_others + (p.sum(-1) - 1)


def _js_of_pair(totals, pair):
    p, q, log_ratio, of_others = _listed(totals, pair)
    log_ratio = jnp.where(p > 0, log_ratio, jnp.inf)
    return ((p + q) * _information(log_ratio)).sum(-1) / 2 + of_others * _LOG_2 / 2


def _listed(totals, pair):
    """(p, q, log(p / q) where p > 0) of the listed classes, and the sum of q over all others."""
    (ids, p), log_q = pair, log_probabilities(totals)
    q, log_q = (jnp.where(ids < 0, 0, a) for a in (exp(log_q), log_q))  # padding
    return p, q, log(jnp.where(p > 0, p, 1)) - log_q, exp(totals.exponents[0].value)


kl_divergence_of_pair = Loss(_columns_of_pair, _kl_of_pair)
js_divergence_of_pair = Loss(_columns_of_pair, _js_of_pair)


def log_probabilities(q: Totals) -> Array:
    """log p_k [N, T] of the labels, with all digits of a row that is sure."""
    h = q.of_labels
    below = (Pair(*(x[:, None] for x in (q.A.base, q.A.rest))) - jnp.where(jnp.isneginf(h), 0, h)).value
    return jnp.where(jnp.isneginf(h), -jnp.inf, -below)
