"""One pass over the classes, and its one derivative.

For scores h_k, payoffs t_k and plain terms l_k over the classes k = 1..K,

    A = log sum_k exp h_k        p_k = exp(h_k - A)
    E = sum_k p_k t_k            L   = sum_k l_k

have the derivatives

    dA = sum_k p_k dh_k
    dE = sum_k p_k (t_k - E) dh_k + sum_k p_k dt_k
    dL = sum_k dl_k

(CATSMILE-1012 derives the first half of dE; the second half holds when the payoffs move too.)
Everything else in this package chooses (h, t, l), or chooses where the classes live.

No digit is lost for a row that is sure of its class. Let o be the class with the largest score:

    m = h_o        r = sum_{k != o} exp(h_k - m)        A = m + log(1 + r)
    E = t_o + sum_{k != o} exp(h_k - m) (t_k - t_o) / (1 + r)

All that makes the row unsure is in r, which is summed without the 1 beside which it would vanish,
and every payoff is taken relative to the top class. A and E stay such pairs, base + rest, until a
loss has subtracted what it compares them with. The base is a constant of the derivative: dA and dE
above are the derivatives of the rest.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """A number kept as the unevaluated sum `base + rest`.

    Subtracting from it, or it from something, takes the base first and keeps what rounding drops: at
    logits (1e4, 1e4 - 1) in float32, `A - z_y` has all its digits and `A.value - z_y` has four.
    """

    base: Array
    rest: Array

    @property
    def value(self) -> Array:
        """base + rest, rounded."""
        return self.base + self.rest

    def __getitem__(self, index) -> "Pair":
        return Pair(self.base[index], self.rest[index])

    def __sub__(self, other: "Pair | Array") -> "Pair":
        base, rest = (other.base, self.rest - other.rest) if isinstance(other, Pair) else (other, self.rest)
        high, low = _sum_and_error(self.base, -base)
        high, lower = _sum_and_error(high, rest)
        return Pair(high, low + lower)

    def __rsub__(self, other: Array) -> Array:
        return (other - self.base) - self.rest


class Columns(NamedTuple):
    """What a block of B classes contributes to N examples."""

    h: Array  # [..., N, B] scores
    t: tuple[Array, ...] = ()  # each [..., N, B]: a payoff per example and class
    v: tuple[Array, ...] = ()  # each [B, E]: a vector payoff per class, the same for every example
    l: tuple[Array, ...] = ()  # each [..., N, B]: a plain term


class Sums(NamedTuple):
    """Running sums over classes. `merge` is associative and commutative."""

    m: Array  # [..., N] max_k h_k; -inf when no class is left
    top: Array  # [..., N] the class o that attains it; -1 when none does
    r: Array  # [..., N] sum_k exp(h_k - m) - 1, summed without o; -1 when no class is left
    t: tuple[Pair, ...]  # each [..., N]: t_o and sum_{k != o} exp(h_k - m) (t_k - t_o)
    v: tuple[Pair, ...]  # each [..., N, E]: the same for vector payoffs
    l: tuple[Array, ...]  # each [..., N] sum_k l_k


class Totals(NamedTuple):
    """What a loss may use once every class has been seen."""

    m: Array
    top: Array
    r: Array
    t: tuple[Pair, ...]  # E_p[t]
    s: tuple[Pair, ...]  # E_p[t] once more, with a derivative that leaves out sum_k p_k dt_k
    v: tuple[Pair, ...]  # E_p[v]
    l: tuple[Array, ...]  # sum_k l_k

    @property
    def A(self) -> Pair:  # noqa: N802 (the formula's letter)
        """log sum_k exp h_k."""
        return Pair(self.m, jnp.log1p(jnp.where(jnp.isneginf(self.m), 0, self.r)))


def fold(c: Columns, ids: Array) -> Sums:
    """Sums over one block of classes, whose ids are `ids` [B]."""
    m = jnp.max(c.h, -1)
    m = jnp.where(jnp.isposinf(m), jnp.nan, m)  # a score of +inf has no softmax
    w = jnp.exp(c.h - _finite(m)[..., None])
    if not (c.t or c.v):
        r = _sum_less_one(w)
        return Sums(m, jnp.full(m.shape, -1, ids.dtype), _empty(m, r), (), (), _sum_each(c.l))
    at = jnp.arange(c.h.shape[-1], dtype=ids.dtype)
    first = jnp.min(jnp.where(c.h == m[..., None], at, at.size), -1)
    is_top = at == first[..., None]
    w = jnp.where(is_top, 0, w)
    r = w.sum(-1)
    top = jnp.where(first < at.size, ids.at[first].get(mode="clip"), -1)
    t = tuple(_payoff(w, jnp.where(jnp.isneginf(c.h), 0, t), is_top) for t in c.t)
    v = tuple(_vector_payoff(w, r, v, first) for v in c.v)
    return Sums(m, top, _empty(m, r), t, v, _sum_each(c.l))


def merge(x: Sums, y: Sums) -> Sums:
    """Sums over two sets of classes from the sums over each."""
    x_wins = x.m >= y.m
    choose = lambda a, b: jnp.where(_like(x_wins, a), a, b)
    high, low = jax.tree.map(choose, x, y), jax.tree.map(choose, y, x)
    w = jnp.exp(low.m - _finite(high.m))
    s = 1 + low.r

    def rebase(a: Pair, b: Pair) -> Pair:  # b's payoffs were relative to a class that is not the top any more
        return Pair(a.base, a.rest + _like(w, a.rest) * (b.rest + _like(s, b.rest) * (b.base - a.base)))

    pairs = lambda a, b: tuple(map(rebase, a, b))
    l = tuple(a + b for a, b in zip(x.l, y.l, strict=True))
    return Sums(high.m, high.top, high.r + w * s, pairs(high.t, low.t), pairs(high.v, low.v), l)


def close(x: Sums) -> Totals:
    """Totals from the sums over all classes."""
    s = _normaliser(x.m, x.r)
    mean = lambda a: Pair(a.base, a.rest / _like(s, a.rest))
    t = tuple(map(mean, x.t))
    return Totals(x.m, x.top, x.r, t, t, tuple(map(mean, x.v)), x.l)


def probabilities(h: Array, q: Totals) -> Array:
    """p_k of the scores that the totals were made of."""
    return jnp.exp(h - _finite(q.m)[..., None]) / _normaliser(q.m, q.r)[..., None]


def pull(c: Columns, ids: Array, q: Totals, ct: Totals) -> Columns:
    """Cotangents of the columns from those of the totals. The whole library's derivative."""
    w = jnp.exp(c.h - _finite(q.m)[..., None])
    p = w / _normaliser(q.m, q.r)[..., None]
    dh = w * ct.r[..., None]  # dr = sum_k exp(h_k - m) dh_k
    if c.t or c.v:
        # At the top class t - base is 0 but for rounding: its value is set to 0, its derivative is kept.
        is_top = ids == q.top[..., None]
        gap = jnp.zeros_like(c.h)  # <ct, t_k - E>
        for d, ds, t, e in zip(ct.t, ct.s, c.t, q.t, strict=True):
            above = jnp.where(jnp.isneginf(c.h), 0, t) - e.base[..., None]
            above -= jnp.where(is_top, lax.stop_gradient(above), 0)
            gap += (d.rest + ds.rest)[..., None] * (above - e.rest[..., None])
        for d, v, e in zip(ct.v, c.v, q.v, strict=True):
            above_base = lambda v, d=d, e=e: dot(d.rest, v.T) - (d.rest * e.base).sum(-1, keepdims=True)
            above = above_base(v) - jnp.where(is_top, above_base(lax.stop_gradient(v)), 0)
            gap += above - (d.rest * e.rest).sum(-1, keepdims=True)
        dh += p * gap
    return Columns(
        dh,
        tuple(d.rest[..., None] * p for d in ct.t),
        tuple(_outer(p, d.rest) for d in ct.v),
        tuple(jnp.broadcast_to(d[..., None], l.shape) for d, l in zip(ct.l, c.l, strict=True)),
    )


def softmax_tangent(p: Array, dh: Array) -> Array:
    """p_k (dh_k - E_p[dh]), how p moves with h.

    It is also the cotangent of h from the cotangent g of p, whose classes it pays g_k each:
    <g, dp> = dE_p[g] = sum_k p_k (g_k - E_p[g]) dh_k.

    The mean of dh - E_p[dh] is 0 but for rounding. Taking it off once more leaves the digits of
    dh_o - E_p[dh] for a top class o of p_o = 1 - tiny.
    """
    gap = dh - (p * dh).sum(-1, keepdims=True)
    return p * (gap - (p * gap).sum(-1, keepdims=True))


def log_softmax_cotangent(p: Array, g: Array) -> Array:
    """g_k - p_k sum_j g_j, the cotangent of h from the cotangent g of log p.

    It sums to 0 over the classes; what rounding makes of the sum is taken off the likely ones.
    """
    dh = g - p * g.sum(-1, keepdims=True)
    return dh - p * dh.sum(-1, keepdims=True)


def dot(a: Array, b: Array) -> Array:
    """a [..., I] @ b [I, J] with all the digits of the operands' type, on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _sum_less_one(w):
    """sum_k w_k - 1 for weights of which the largest is exactly 1, without adding up the 1.

    w - floor(w) drops every 1. Where there was more than one of them, nothing was to be lost.
    """
    s, others = w.sum(-1), (w - jnp.floor(w)).sum(-1)
    return jnp.where(s - others < 1.5, others, s - 1)


def _empty(m, r):
    return jnp.where(jnp.isneginf(m), -1, r)


def _payoff(w, t, is_top):
    base = jnp.where(is_top, t, 0).sum(-1)
    return Pair(base, (w * (t - base[..., None])).sum(-1))


def _vector_payoff(w, r, v, first):
    base = v.at[first].get(mode="fill", fill_value=0)
    return Pair(base, dot(w, v) - r[..., None] * base)


def _outer(p, d):
    """sum over examples of p_k d_e: [..., N, B], [..., N, E] -> [B, E]."""
    examples = tuple(range(p.ndim - 1))
    return jnp.tensordot(p, d, (examples, examples), precision=lax.Precision.HIGHEST)


def _normaliser(m, r):
    return jnp.where(jnp.isneginf(m), 1, 1 + r)


def _finite(m):
    return jnp.where(jnp.isneginf(m), 0, m)


def _sum_each(terms):
    return tuple(l.sum(-1) for l in terms)


def _like(a, b):
    """a with trailing axes of size 1, up to the rank of b."""
    return a.reshape(a.shape + (1,) * (b.ndim - a.ndim))


def _sum_and_error(a, b):
    """a + b rounded, and the rounding error (Knuth's TwoSum). The error is no function of a and b to a derivative."""
    s = a + b
    b_seen = s - a
    error = (a - (s - b_seen)) + (b - b_seen)
    return s, lax.stop_gradient(jnp.where(jnp.isfinite(error), error, 0))
