"""One pass over the classes, and its one derivative.

For scores h_k, payoffs t_k, exponents e_k, weights y_k and plain terms l_k over the classes k = 1..K,

    A = log sum_k exp h_k        p_k = exp(h_k - A)
    E = sum_k p_k t_k
    D = log sum_k p_k exp e_k    q_k = p_k exp(e_k - D)
    C = sum_k y_k (A - h_k)      Y = sum_k y_k
    L = sum_k l_k

have the derivatives

    dA = sum_k p_k dh_k
    dE = sum_k p_k (t_k - E) dh_k + sum_k p_k dt_k
    dD = sum_k (q_k - p_k) dh_k + sum_k q_k de_k
    dC = sum_k (Y p_k - y_k) dh_k + sum_k (A - h_k) dy_k
    dL = sum_k dl_k

(CATSMILE-1012 derives the first half of dE; the second half holds when the payoffs move too. D is
the logarithm of E for the payoff exp e_k, which would overflow. C is the cross entropy of y and p:
Y times the payoff A - h_k under y in place of p.) Everything else in this package chooses
(h, t, e, y, l), or chooses where the classes live.

No digit is lost for a row that is sure of its class. Let o be the class with the largest score:

    m = h_o        r = sum_{k != o} exp(h_k - m)        A = m + log(1 + r)
    E = t_o + sum_{k != o} exp(h_k - m) (t_k - t_o) / (1 + r)

All that makes the row unsure is in r, which is summed without the 1 beside which it would vanish,
and every payoff is taken relative to the top class. A, E and D stay such pairs, base + rest, until a
loss has subtracted what it compares them with.

Nor for a row that is unsure of many classes. Its gradient sum_k p_k (t_k - E) dh_k is a sum of terms that
cancel, in which any error of E counts as often as there are terms. So E is merged as a mean of means,
E + share (E' - E), and what rounding takes from it goes to the rest of the pair.

The base is a constant of the derivative: dA, dE and dD above are the derivatives of the rest, by `pull` and,
should JAX drop that rule, by JAX's own. C is a sum of what is not negative, y_k (m - h_k) and Y log(1 + r).
"""

import dataclasses
import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import _arguments, _mesh


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


class Weights(NamedTuple):
    """Weights y_k of the classes, of which a few belong to the example: its labels."""

    ids: Array  # [..., T] classes
    of_ids: Array  # [..., T] their weights; a class named twice has the sum
    per_class: Array | None = None  # [B] more weight for each class of the block, the same for every example


class Columns(NamedTuple):
    """What a block of B classes, with consecutive ids, contributes to N examples."""

    h: Array  # [..., B] scores; -inf for a class that is none
    t: tuple[Array, ...] = ()  # each [..., B]: a payoff per example and class
    v: tuple[Array, ...] = ()  # each [B, E]: a vector payoff per class, the same for every example
    e: tuple[Array, ...] = ()  # each [..., B]: an exponent per example and class
    y: Weights | None = None  # weights, for a cross entropy
    l: tuple[Array, ...] = ()  # each [..., B], or what is left of it when summed over some classes: a plain term


class Normaliser(NamedTuple):
    """log sum_k exp h_k = m + log(1 + r)."""

    m: Array  # [...] max_k h_k; -inf when no class is left
    top: Array  # [...] the class o that attains it; -1 when none does, or when it is of no use
    r: Array  # [...] sum_k exp(h_k - m) - 1, summed without o; -1 when no class is left
    lost: Array  # [...] what rounding took from r when blocks were added up

    @property
    def log(self) -> Pair:
        """Log sum_k exp h_k."""
        return Pair(self.m, jnp.log1p(jnp.where(jnp.isneginf(self.m), 0, self.r)))

    @property
    def s(self) -> Array:
        """1 + r; not 0 where no class is left."""
        return 1 + jnp.maximum(self.r, -0.5)

    def weights(self, h: Array) -> Array:
        """exp(h_k - m)."""
        return jnp.exp(h - finite(self.m)[..., None])

    def probabilities(self, h: Array) -> Array:
        """p_k."""
        return self.weights(h) * (1 / self.s)[..., None]

    def complement(self, h: Array) -> Array:
        """1 - p of the classes [..., 1] with the scores h, as the sum of what the others have."""
        return (self.r[..., None] - jnp.expm1(h - finite(self.m)[..., None])) / self.s[..., None]

    def is_top(self, ids: Array) -> Array:
        """Which of the classes is o."""
        return _row(ids, self.m.ndim) == self.top[..., None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean(Pair):
    """An expectation under p, and the payoff of the top class, of which it is all in a row that is sure."""

    top: Array

    def rebased(self, top: Array, p_of_others: Array) -> "Mean":
        """The same with another number for the payoff of the top class, as constants to a derivative."""
        above, lost = _sum_and_error(self.base, -self.top)
        base, more = _sum_and_error(top, above)
        slip = p_of_others * (self.top - top)  # the top class has its new payoff only as far as it is likely
        return Mean(base, self.rest + lax.stop_gradient(more + lost + slip), top)


class CrossEntropy(NamedTuple):
    """Of weights y and p."""

    sum: Array  # [...] sum_k y_k (A - h_k); with m for A while classes are still to come
    weight: Array  # [...] sum_k y_k
    of_ids: Array  # [..., T] the labels' scores
    seen: Array  # [..., T] 1 where the label was among the classes, else 0


class Sums(NamedTuple):
    """Running sums over classes. `merge` is associative and commutative."""

    a: Normaliser  # of h
    t: tuple[Mean, ...]  # each [...]: E_p[t] so far
    s: tuple[Mean, ...]  # the same of payoffs that do not move
    v: tuple[Mean, ...]  # each [..., E]: the same of vector payoffs
    e: tuple[Normaliser, ...]  # of h + e
    y: CrossEntropy | None
    l: tuple[Array, ...]  # each [...] sum_k l_k


class Totals(NamedTuple):
    """What a loss may use once every class has been seen."""

    a: Normaliser  # of h
    t: tuple[Mean, ...]  # E_p[t]
    s: tuple[Mean, ...]  # E_p[t] once more, with a derivative that leaves out sum_k p_k dt_k
    v: tuple[Mean, ...]  # E_p[v]
    e: tuple[Pair, ...]  # log E_p[exp e]
    n: tuple[Normaliser, ...]  # of h + e
    y: CrossEntropy | None  # of y and p
    l: tuple[Array, ...]  # sum_k l_k

    @property
    def A(self) -> Pair:  # noqa: N802 (the formula's letter)
        """Log sum_k exp h_k."""
        return self.a.log

    @property
    def C(self) -> Array:  # noqa: N802
        """sum_k y_k (A - h_k), the cross entropy of the weights y."""
        if self.y is None:
            raise ValueError("`C` needs `Columns` with weights `y`, got none.")
        return self.y.sum


def fold(c: Columns, ids: Array) -> Sums:
    """Sums over one block of classes, whose ids are `ids` [B]."""
    check(c, ids)
    plain = tuple(l.sum(-1) for l in c.l)
    if not (c.t or c.v or c.e):
        a = _normaliser(c.h, ids)
        return Sums(a, (), (), (), (), _cross_entropy(c, ids, a.m), plain)
    a, w, first = _normaliser_and_top(c.h, ids)
    is_top = a.is_top(ids)

    def payoff(t):
        t = jnp.where(jnp.isneginf(c.h), 0, t)
        of_top = jnp.where(is_top, t, 0).sum(-1)
        top = lax.stop_gradient(of_top)
        above = ((w * (t - top[..., None])).sum(-1) + _tangent_of(of_top)) / a.s
        base, rest = _pair(top, above)
        # The mean above the base is the rest but for rounding, which is of a smaller sum here.
        above = (jnp.where(is_top, 1, w) * (t - base[..., None])).sum(-1) / a.s
        return Mean(base, lax.stop_gradient(above) + _tangent_of(rest), top)

    def vector_payoff(v):
        of_top, of_others = v.at[first].get(mode="fill", fill_value=0), dot(w, v)
        top, r, s = lax.stop_gradient(of_top), a.r[..., None], a.s[..., None]
        mean = (of_top + of_others) / s
        sure = r < 1  # where E is closer to the top class than to 0, from which payoffs are measured
        above = lax.stop_gradient((of_others - r * top) / s)
        base, rest = _pair(top, above)
        base = jnp.where(sure, base, lax.stop_gradient(mean))
        return Mean(base, jnp.where(sure, rest, 0) + _tangent_of(mean), top)

    e = tuple(_normaliser_and_top(_tilted(c.h, e), ids)[0] for e in c.e)
    t, s = tuple(map(payoff, c.t)), tuple(map(payoff, lax.stop_gradient(c.t)))
    return Sums(a, t, s, tuple(map(vector_payoff, c.v)), e, _cross_entropy(c, ids, a.m), plain)


def merge(x: Sums, y: Sums) -> Sums:
    """Sums over two sets of classes from the sums over each."""
    x_wins = _wins(x.a, y.a)
    a = _merge_normalisers(x.a, y.a)
    s_high, s_low = 1 + _choose(x_wins, x.a.r, y.a.r), _weight_of_lower(x.a, y.a) * (1 + _choose(x_wins, y.a.r, x.a.r))
    x_weighs = x_wins == (s_high >= s_low)
    share = jnp.minimum(s_high, s_low) / a.s  # of the lighter

    def merge_means(x, y):
        heavy, light = jax.tree.map(ft.partial(_choose, x_weighs), (x, y), (y, x))
        gap = (light.base - heavy.base) + (light.rest - heavy.rest)
        base, rest = _pair(heavy.base, heavy.rest + _like(share, gap) * gap)
        return Mean(base, rest, _choose(x_wins, x.top, y.top))

    return Sums(
        a,
        tuple(map(merge_means, x.t, y.t)),
        tuple(map(merge_means, x.s, y.s)),
        tuple(map(merge_means, x.v, y.v)),
        tuple(map(_merge_normalisers, x.e, y.e)),
        None if x.y is None else _merge_cross_entropies(x, y),
        tuple(map(jnp.add, x.l, y.l)),
    )


def merge_over(x: Sums, axes: _mesh.Names) -> Sums:
    """Sums over the classes of all devices, the same on each, from the sums over those of each.

    Up to four rounds: the largest scores; which of their classes is the top one, where payoffs are compared with
    its own; sums relative to it; means relative to the mean of the device that has it.
    """
    n = jax.tree.map(lambda *of_each: jnp.stack(of_each, -1), x.a, *x.e)
    m = _mesh.most(n.m, axes)
    has_top, top = (n.m == m) & (m > -jnp.inf), jnp.full_like(m, -1, dtype=n.top.dtype)
    if x.t or x.s or x.v or x.e:
        none = jnp.iinfo(n.top.dtype).max
        top = _mesh.least(jnp.where(has_top & (n.top >= 0), n.top, none), axes)
        has_top, top = n.top == top, jnp.where(top < none, top, -1)

    r = n.r + n.lost
    w = jnp.exp(n.m - finite(m)) * (1 + r)
    y = None if x.y is None else x.y._replace(sum=x.y.sum + x.y.weight * (finite(m) - finite(n.m))[..., 0])
    means = (x.t, x.s, x.v)
    if_top = lambda mean: tuple(jnp.where(_like(has_top[..., 0], a), a, 0) for a in (mean.base, mean.top))
    of_tops = jax.tree.map(if_top, means, is_leaf=_is_mean)
    of_devices = (jnp.where(has_top, r, w), w, y, x.l, of_tops)
    others, s, y, plain, of_tops = _mesh.total(of_devices, axes)
    # The device that has the top class leaves out its 1. Where more than one does, nothing is to be lost; where none
    # does, its maximum was computed twice and not rounded alike.
    dropped = s - others
    r = _empty(m, jnp.where((dropped > 0.5) & (dropped < 1.5), others, s - 1))
    a, *e = (Normaliser(*of_one) for of_one in zip(*(jnp.moveaxis(x, -1, 0) for x in (m, top, r, 0 * r)), strict=True))

    share = w[..., 0] / a.s
    above = lambda mean, of_top: _like(share, mean.base) * ((mean.base - of_top[0]) + mean.rest)
    rests = _mesh.total(jax.tree.map(above, means, of_tops, is_leaf=_is_mean), axes)

    def mean(rest, of_top):
        base, rest = _pair(of_top[0], rest)
        return Mean(base, rest, of_top[1])

    t, s, v = jax.tree.map(mean, rests, of_tops)
    return Sums(a, t, s, v, tuple(e), y, plain)


def close(x: Sums) -> Totals:
    """Totals from the sums over all classes."""
    a, *n = (a._replace(r=a.r + a.lost) for a in (x.a, *x.e))
    log_mean = lambda n: Pair(jnp.where(jnp.isneginf(n.m), -jnp.inf, n.m - a.m), n.log.rest - a.log.rest)
    y = None if x.y is None else x.y._replace(sum=_unless_unknown(x.y, x.y.sum + x.y.weight * a.log.rest))
    return Totals(a, x.t, x.s, x.v, tuple(map(log_mean, n)), tuple(n), y, x.l)


def pull(c: Columns, ids: Array, q: Totals, ct: Totals) -> Columns:
    """Cotangents of the columns from those of the totals. The whole library's derivative."""
    w = q.a.weights(c.h)
    if c.y is None:
        dh, dy = w * ct.a.r[..., None], None  # dr = sum_k exp(h_k - m) dh_k
    else:
        dh, dy = _pull_cross_entropy(c, w, ids, q, ct)
    if not (c.t or c.v or c.e):
        return Columns(dh, y=dy, l=_each(ct.l, c.l))
    p = q.a.probabilities(c.h)
    is_top = q.a.is_top(ids)
    place = jnp.where(is_top.any(-1), q.a.top - ids[0], ids.size)

    # <ct, t_k - E>, less <ct, E - base>: subtracted from what may have no such digits, that would always be lost.
    gap, slip = jnp.zeros_like(c.h), jnp.zeros_like(c.h[..., :1])
    for d, ds, t, mean in zip(ct.t, ct.s, c.t, q.t, strict=True):
        above = jnp.where(jnp.isneginf(c.h), 0, t) - mean.base[..., None]
        above = _with_value((mean.top - mean.base)[..., None], is_top, above)
        gap += (d.rest + ds.rest)[..., None] * above
        slip += ((d.rest + ds.rest) * mean.rest)[..., None]
    for d, v, mean in zip(ct.v, c.v, q.v, strict=True):
        paid = lambda a, d=d: (d.rest * a).sum(-1, keepdims=True)
        of_top = v.at[place].get(mode="fill", fill_value=0)
        of_top = mean.top - mean.base + _tangent_of(of_top)
        gap += jnp.where(is_top, paid(of_top), dot(d.rest, v.T) - paid(mean.base))
        slip += paid(mean.rest)
    dh += p * gap - p * slip

    de = []
    for of_e, dn, e, n in zip(ct.e, ct.n, c.e, q.n, strict=True):
        h = _tilted(c.h, e)
        u = n.probabilities(h)
        # A class that is the top of both has 1 / (1 + r) of each: what differs is in the r.
        of_tops = (q.a.r - n.r) / (q.a.s * n.s)
        difference = _with_value(of_tops[..., None], is_top & n.is_top(ids), u - p)
        tilt = n.weights(h) * dn.r[..., None]
        dh += of_e.rest[..., None] * difference + tilt
        de.append(of_e.rest[..., None] * u + tilt)

    return Columns(
        dh,
        tuple(d.rest[..., None] * p for d in ct.t),
        tuple(_outer(p, d.rest) for d in ct.v),
        tuple(de),
        dy,
        _each(ct.l, c.l),
    )


def softmax_tangent(p: Array, dh: Array) -> Array:
    """p_k (dh_k - E_p[dh]), how p moves with h.

    It is also the cotangent of h from the cotangent g of p, whose classes it pays g_k each:
    <g, dp> = dE_p[g] = sum_k p_k (g_k - E_p[g]) dh_k.

    It sums to 0 over the classes but for rounding. Taking what rounding makes of the sum off the likely
    ones leaves the digits of a top class o of p_o = 1 - tiny, and is the same again when transposed.
    """
    tangent = p * (dh - (p * dh).sum(-1, keepdims=True))
    return tangent - p * tangent.sum(-1, keepdims=True)


def log_softmax_cotangent(p: Array, g: Array) -> Array:
    """g_k - p_k sum_j g_j, the cotangent of h from the cotangent g of log p.

    It sums to 0 over the classes. What rounding makes of the sum is taken off the likely ones.
    """
    total = g.sum(-1, keepdims=True)
    slip = (g - p * total).sum(-1, keepdims=True)
    return (g - p * total) - p * slip


def dot(a: Array, b: Array) -> Array:
    """a [..., I] @ b [I, J] with all the digits of the operands' type, on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def check(c: Columns, ids: Array) -> None:
    """Refuses columns that are none, as those of a user's loss may be."""
    if not isinstance(c, Columns):
        raise TypeError(f"`columns` of a loss must return `softjax.Columns`, got {_arguments.shown(c)}.")

    def check(name, x, wanted, meaning):
        if not isinstance(x, Array):
            raise TypeError(f"`{name}` of `Columns` must be of JAX's arrays, got {_arguments.shown(x)}.")
        if len(x.shape) != len(wanted) or any(b not in (a, None) for a, b in zip(x.shape, wanted, strict=True)):
            raise ValueError(f"`{name}` of `Columns` must have shape {meaning}, got {x.shape}.")

    check("h", c.h, (None, ids.size), f"[N, {ids.size}] for the ids of {ids.size} classes")
    if not jnp.issubdtype(c.h.dtype, jnp.floating):
        raise TypeError(f"`h` of `Columns` must be floating-point numbers, got dtype {c.h.dtype}.")
    for name, wanted, meaning in (
        ("t", c.h.shape, "[N, B] as `h`"),
        ("v", (ids.size, None), f"[{ids.size}, E] for the ids of {ids.size} classes"),
        ("e", c.h.shape, "[N, B] as `h`"),
        ("l", (c.h.shape[0], None), "[N, B] as `h`, or [N, 1]"),
    ):
        terms = getattr(c, name)
        if not isinstance(terms, tuple):
            raise TypeError(f"`{name}` of `Columns` must be a tuple of arrays, got {_arguments.shown(terms)}.")
        for x in terms:
            check(name, x, wanted, meaning)
    if c.y is not None:
        if not isinstance(c.y, Weights):
            raise TypeError(f"`y` of `Columns` must be `softjax.Weights`, got {_arguments.shown(c.y)}.")
        check("y.ids", c.y.ids, (c.h.shape[0], None), "[N, T] for the N of `h`")
        check("y.of_ids", c.y.of_ids, c.y.ids.shape, "[N, T] as `y.ids`")
        if not jnp.issubdtype(c.y.ids.dtype, jnp.integer):
            raise TypeError(f"`y.ids` of `Columns` must be integers, got dtype {c.y.ids.dtype}.")
        if c.y.per_class is not None:
            check("y.per_class", c.y.per_class, (ids.size,), f"[{ids.size}] for the ids of {ids.size} classes")


def only(c: Columns, is_class: Array) -> Columns:
    """The columns with nothing for those [B] that are no class."""
    zero = lambda a: jnp.where(_row(is_class, a.ndim - 1), a, jnp.zeros_like(a))
    y = c.y if c.y is None or c.y.per_class is None else c.y._replace(per_class=zero(c.y.per_class))
    return Columns(
        jnp.where(_row(is_class, c.h.ndim - 1), c.h, -jnp.inf),
        tuple(map(zero, c.t)),
        tuple(jnp.where(is_class[:, None], v, 0) for v in c.v),
        tuple(map(zero, c.e)),
        y,
        tuple(l if l.shape[-1] != is_class.size else zero(l) for l in c.l),
    )


def _normaliser(h, ids):
    """Of one block, for a loss that has no use for the top class."""
    m = lax.stop_gradient(h.max(-1))
    a = Normaliser(m, jnp.full(m.shape, -1, ids.dtype), jnp.zeros_like(m), jnp.zeros_like(m))
    r = a.weights(h).sum(-1) - 1

    def without_the_1():
        # The largest weight is exactly 1, and w - floor(w) drops it. Where it drops more than one, nothing
        # was to be lost. Where it drops none, a score was computed twice and not rounded alike, as by a
        # product that is fused into the difference h - m.
        w = a.weights(h)  # made again, so as not to be kept for this
        others = (w - jnp.floor(w)).sum(-1)
        dropped = r + 1 - others
        return jnp.where((dropped > 0.5) & (dropped < 1.5), others, r)

    # Below 1/4, r would have an error of more than 4 eps by the rounding of 1 + r.
    return a._replace(r=_empty(m, lax.cond((r < 0.25).any(), without_the_1, lambda: r)))


def _normaliser_and_top(h, ids):
    """(that of one block, exp(h_k - m) with 0 for the top class, the place of the top class in the block)."""
    m = lax.stop_gradient(h.max(-1))
    m = jnp.where(jnp.isposinf(m), jnp.nan, m)  # a score of +inf has no softmax
    place = _row(jnp.arange(h.shape[-1], dtype=ids.dtype), m.ndim)
    first = jnp.min(jnp.where((h == m[..., None]) & (h > -jnp.inf), place, place.size), -1)
    top = jnp.where(first < place.size, ids.at[first].get(mode="clip"), -1)
    a = Normaliser(m, top, jnp.zeros_like(m), jnp.zeros_like(m))
    w = _with_value(0, place == first[..., None], a.weights(h))
    unknown = jnp.where(first < place.size, 0, 1).astype(h.dtype)  # its 1 is still among the weights
    return a._replace(r=_empty(m, w.sum(-1) - unknown)), w, first


def _empty(m, r):
    return jnp.where(jnp.isneginf(m), -1, r)


def _merge_normalisers(x, y):
    high, low = jax.tree.map(ft.partial(_choose, _wins(x, y)), (x, y), (y, x))
    w = _weight_of_lower(x, y)
    r, lost = _sum_and_error(high.r, w * (1 + low.r))
    return high._replace(r=r, lost=high.lost + w * low.lost + lost)


class Labels:
    """The classes that the examples name, as far as they are in a block."""

    def __init__(self, labels: Array, ids: Array):
        self.place = labels - ids[0]
        within = (self.place >= 0) & (self.place < ids.size)
        self.within = jnp.where(within, self.place, 0)
        self.here = within & (ids[self.within] == labels)

    def of(self, a):
        """What [..., B] has for the labels, 0 for those elsewhere."""
        return jnp.where(self.here, jnp.take_along_axis(a, self.within, -1), 0)

    def put(self, values, into):
        """`into` [N, B] with other values at the labels, which are the same for a class named twice."""
        if self.place.shape[-1] == 1:
            return jnp.where(_row(jnp.arange(into.shape[-1], dtype=self.place.dtype), 1) == self.place, values, into)
        times = self.summed(jnp.ones_like(values), into.shape[-1])
        is_label = self._scattered(jnp.ones_like(values), into.shape[-1]) > 0
        return jnp.where(is_label, 0, into) + self._scattered(values / jnp.maximum(times, 1), into.shape[-1])

    def summed(self, a, size):
        """For each label, the sum of `a` [N, T] over those of the same class."""
        return a if self.place.shape[-1] == 1 else self.of(self._scattered(a, size))

    def _scattered(self, a, size):
        rows, beyond = jnp.arange(a.shape[0])[:, None], jnp.where(self.here, self.place, size)
        return jnp.zeros((a.shape[0], size), a.dtype).at[rows, beyond].add(a, mode="drop")


def _cross_entropy(c, ids, m):
    if c.y is None:
        return None
    labels = Labels(c.y.ids, ids)
    weights, of_ids = jnp.where(labels.here, c.y.of_ids, 0), labels.of(c.h)
    below = lambda h: finite(m)[..., None] - h
    cost, weight = (weights * jnp.where(weights == 0, 0, below(of_ids))).sum(-1), weights.sum(-1)
    if c.y.per_class is not None:
        u = _row(c.y.per_class, m.ndim)
        cost += (u * jnp.where(jnp.isneginf(c.h) & (u == 0), 0, below(c.h))).sum(-1)
        weight += u.sum()
    return CrossEntropy(cost, weight, of_ids, labels.here.astype(cost.dtype))


def _merge_cross_entropies(x, y):
    high, low = jax.tree.map(ft.partial(_choose, _wins(x.a, y.a)), (x.y, y.y), (y.y, x.y))
    gap = finite(jnp.maximum(x.a.m, y.a.m)) - finite(jnp.minimum(x.a.m, y.a.m))
    return CrossEntropy(
        high.sum + (low.sum + low.weight * gap),
        high.weight + low.weight,
        high.of_ids + low.of_ids,
        high.seen + low.seen,
    )


def _unless_unknown(y, x):
    """x, or NaN for value and derivative where a label was none of the classes."""
    return x * jnp.where((y.seen == 1).all(-1), 1, jnp.nan).astype(x.dtype)


def _pull_cross_entropy(c, w, ids, q, ct):
    """Y p_k - y_k, and A - h_k; with what the normaliser itself is owed."""
    labels = Labels(c.y.ids, ids)
    d = _unless_unknown(q.y, ct.y.sum)[..., None]
    dh = w * (ct.a.r[..., None] + d * (q.y.weight / q.a.s)[..., None])
    y = labels.summed(c.y.of_ids, ids.size)
    if c.y.per_class is not None:
        dh -= d * jnp.where(jnp.isneginf(c.h), 0, _row(c.y.per_class, d.ndim - 1))
        y += c.y.per_class[labels.within]
    # At a label, p_k (Y - y_k) - y_k (1 - p_k): where p_k is almost 1, the rest of it has the digits. They are in
    # the score as it was when the maximum was taken; made again, it may be rounded in another way.
    possible = ~jnp.isneginf(q.y.of_ids)
    weight = q.a.weights(q.y.of_ids)
    gap = weight / q.a.s[..., None] * (q.y.weight[..., None] - y) - y * q.a.complement(q.y.of_ids)
    at_labels = weight * ct.a.r[..., None] + d * gap + labels.summed(ct.y.of_ids, ids.size)
    dh = labels.put(jnp.where(possible, at_labels, 0), dh)

    def cost(h):  # A - h_k, or 0 for no class
        is_class = ~jnp.isneginf(h)
        above = (finite(q.a.m)[..., None] - jnp.where(is_class, h, 0)) + q.a.log.rest[..., None]
        return jnp.where(is_class, above, 0)

    of_ids = jnp.where(labels.here, d * cost(q.y.of_ids) + ct.y.weight[..., None], 0)
    if c.y.per_class is None:
        return dh, Weights(c.y.ids, of_ids)
    of_all = d * cost(c.h) + ct.y.weight[..., None]
    return dh, Weights(c.y.ids, of_ids, of_all.sum(tuple(range(c.h.ndim - 1))))


def _wins(x, y):
    """Whether x has the top class of both; what is no number stays."""
    return (x.m >= y.m) | jnp.isnan(x.m)


def _weight_of_lower(x, y):
    """exp(lower m - higher m)."""
    return jnp.exp(jnp.minimum(x.m, y.m) - finite(jnp.maximum(x.m, y.m)))


def _is_mean(x):
    return isinstance(x, Mean)


def _choose(condition, a, b):
    return jnp.where(_like(condition, a), a, b)


def _tilted(h, e):
    return h + jnp.where(jnp.isneginf(h), 0, e)


def _with_value(value, where, x):
    """x with another value, but its own derivative, in some places."""
    return x + lax.stop_gradient(jnp.where(where, value - x, 0))


def _tangent_of(x):
    """0, with the derivative of x."""
    return jnp.where(jnp.isfinite(x), x - lax.stop_gradient(x), 0)


def _pair(base, rest):
    """A Pair's base and rest, of which the base is a constant, with the same sum and a rest that it rounds away."""
    base, lost = _sum_and_error(base, lax.stop_gradient(rest))
    return base, lost + _tangent_of(rest)


def _outer(p, d):
    """sum over examples of p_k d_e: [..., B], [..., E] -> [B, E]."""
    examples = tuple(range(p.ndim - 1))
    return jnp.tensordot(p, d, (examples, examples), precision=lax.Precision.HIGHEST)


def _each(cotangents, terms):
    return tuple(jnp.broadcast_to(d[..., None], l.shape) for d, l in zip(cotangents, terms, strict=True))


def finite(m):
    """The maximum m, or the lowest number where it is -inf: exp(-inf - m) is then 0.

    A selection would say the same, and end the fusion of a whole softmax into one pass on CPUs.
    """
    return jnp.maximum(m, jnp.finfo(m.dtype).min)


def _row(a, ndim):
    """a [B] with `ndim` axes of size 1 in front."""
    return a.reshape((1,) * ndim + a.shape)


def _like(a, b):
    """a with trailing axes of size 1, up to the rank of b."""
    return a.reshape(a.shape + (1,) * (b.ndim - a.ndim))


def _sum_and_error(a, b):
    """a + b rounded, and the rounding error (Knuth's TwoSum). The error is no function of a and b to a derivative."""
    s = a + b
    b_seen = s - a
    error = (a - (s - b_seen)) + (b - b_seen)
    return s, lax.stop_gradient(jnp.where(jnp.isfinite(error), error, 0))
