"""Sums over the classes, and their one derivative.

For scores h_k, payoffs t_k, exponents e_k, label weights y_k and plain terms l_k of the classes k = 1..K,

    A = log sum_k exp h_k        p_k = exp(h_k - A)
    E = sum_k p_k t_k
    H = -sum_k p_k log p_k
    D = log sum_k p_k exp e_k    u_k = p_k exp(e_k - D)
    C = sum_k y_k (A - h_k)      Y = sum_k y_k
    L = sum_k l_k

have the derivatives

    dA = sum_k p_k dh_k
    dE = sum_k p_k (t_k - E) dh_k + sum_k p_k dt_k
    dH = -sum_k p_k (h_k - sum_j p_j h_j) dh_k
    dD = sum_k (u_k - p_k) dh_k + sum_k u_k de_k
    dC = sum_k (Y p_k - y_k) dh_k + sum_k (A - h_k) dy_k
    dL = sum_k dl_k

(CATSMILE-1012 derives the first half of dE; the second half holds when the payoffs move too. D is the logarithm
of E for the payoff exp e_k, which would overflow. C is the cross entropy of y and p.) A loss chooses
(h, t, e, y, l); a placement chooses which classes are in memory at a time.

Rows that are sure of their class keep all digits. Let o be the top class, the one with the largest score:

    m = h_o        r = sum_{k != o} exp(h_k - m)        A = m + log(1 + r)
    E = t_o + sum_{k != o} exp(h_k - m) (t_k - t_o) / (1 + r)
    H = log(1 + r) + sum_{k != o} exp(h_k - m) (m - h_k) / (1 + r)

r is summed without the 1 of the top class, next to which it would be rounded away, and payoffs are taken relative
to the payoff of the top class. A, E and D stay unevaluated pairs, base + rest, until a loss has subtracted the
number that it compares them with.

Rows that are unsure of many classes keep their digits too. The gradient sum_k p_k (t_k - E) dh_k is a sum of terms
that cancel, in which an error of E counts once per term. So E is merged as a mean of means, E + share (E' - E),
and the rounding error goes to the rest of the pair.

The base of a pair is a constant of differentiation: dA, dE and dD above are the derivatives of the rests, both by
`pull` and, should JAX drop the custom rule, by JAX's own derivative of the code below. C is a sum of terms that are
not negative, y_k (m - h_k) and Y log(1 + r).
"""

from __future__ import annotations

import dataclasses
import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import _mesh
from ._labels import Labels
from ._pair import Pair, renormalised, sum_and_error, tangent_of, with_value
from ._signatures import readable
from ._unknown import nan_if_moved, nan_unless


@readable
class Weights(NamedTuple):
    """Label weights y_k of the classes, of which a few belong to the example: its labels."""

    ids: Array  # [..., T] class ids
    of_ids: Array  # [..., T] their weights; the weights of a repeated id are added
    per_class: Array | None = None  # [B] an additional weight of each class; or [..., B], of each example and class


class RoundedScores(NamedTuple):
    """Scores h_k of a block, kept as exp(h_k - m) in half precision: the cotangents that they give are rounded too."""

    weights: Array  # [..., B] exp(h_k - m)
    m: Array  # [...] the largest score of the block


@readable
class Columns(NamedTuple):
    """The contribution of a block of B classes, with consecutive ids, to the sums of N examples."""

    h: Array  # [..., B] scores; -inf for a class that is left out. `RoundedScores` where `rounded` has kept them
    t: tuple[Array, ...] = ()  # each [..., B]: a payoff per example and class
    v: tuple[Array, ...] = ()  # each [B, E]: a vector payoff per class, the same for every example
    e: tuple[Array, ...] = ()  # each [..., B]: an exponent per example and class
    y: Weights | None = None  # label weights, for a cross entropy
    l: tuple[Array, ...] = ()  # each [..., B], or [..., 1] if already summed over the block: a plain term


@readable
class Normaliser(NamedTuple):
    """log sum_k exp h_k = m + log(1 + r)."""

    m: Array  # [...] max_k h_k; -inf when all classes are left out
    top: Array  # [...] the top class o; -1 when there is none, or when no payoff needs it
    r: Array  # [...] sum_k exp(h_k - m) - 1, summed without o; -1 when all classes are left out
    lost: Array  # [...] the rounding error of r from merging blocks

    @property
    def log(self) -> Pair:
        """Log sum_k exp h_k."""
        return Pair(self.m, jnp.log1p(jnp.where(jnp.isneginf(self.m), 0, self.r)))

    @property
    def mass(self) -> Array:
        """1 + r, or 1/2 where all classes are left out."""
        return 1 + jnp.maximum(self.r, -0.5)

    def weights(self, h: Array | RoundedScores) -> Array:
        """exp(h_k - m)."""
        if isinstance(h, RoundedScores):
            return h.weights.astype(h.m.dtype) * jnp.exp(h.m - finite(self.m))[..., None]
        return jnp.exp(h - finite(self.m)[..., None])

    def probabilities(self, h: Array) -> Array:
        """p_k."""
        return self.weights(h) * (1 / self.mass)[..., None]

    def complement(self, h: Array) -> Array:
        """1 - p_k for one class per example, with scores h [..., 1], summed from the other classes."""
        return (self.r[..., None] - jnp.expm1(h - finite(self.m)[..., None])) / self.mass[..., None]

    def is_top(self, ids: Array) -> Array:
        """Which of the classes is the top class."""
        return _as_row(ids, self.m.ndim) == self.top[..., None]


@readable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean(Pair):
    """An expectation under p, with the payoff of the top class, which is all of it in a row that is sure."""

    top: Array

    def rebased(self, top: Array, p_of_others: Array) -> Mean:
        """The same expectation with another payoff of the top class, a constant of differentiation."""
        above, lost = sum_and_error(self.base, -self.top)
        base, more = sum_and_error(top, above)
        slip = p_of_others * (self.top - top)  # the new payoff counts only as far as the top class is likely
        return Mean(base, self.rest + lax.stop_gradient(more + lost + slip), top)


@readable
class CrossEntropy(NamedTuple):
    """The cross entropy of the label weights y and p."""

    sum: Array  # [...] sum_k y_k (A - h_k); with m in place of A until `close`
    weight: Array  # [...] sum_k y_k
    of_ids: Array  # [..., T] the scores of the labels
    seen: Array  # [..., T] 1 where the label was one of the classes, else 0


@readable
class Entropy(NamedTuple):
    """The entropy of p. Its payoff is the score itself, whose largest is m: it costs less than the mean of another.

    H = log(1 + r) + sum_k exp(h_k - m) (m - h_k) / (1 + r), whose terms are all at least 0.
    """

    below: Array  # [...] sum_k exp(h_k - m) (m - h_k)
    top: Array  # [...] the class with the largest score, the first at a tie; -1 when all classes are left out
    value: Array  # [...] H; 0 until `close`


@readable
class Sums(NamedTuple):
    """Running sums over classes. `merge` is associative and commutative."""

    a: Normaliser  # of h
    t: tuple[Mean, ...]  # each [...]: E_p[t] so far
    t_fixed: tuple[Mean, ...]  # the same, with payoffs that are constants of differentiation
    v: tuple[Mean, ...]  # each [..., E]: E_p[v] so far
    e: tuple[Normaliser, ...]  # of h + e
    y: CrossEntropy | None
    l: tuple[Array, ...]  # each [...] sum_k l_k
    s: Entropy | None = None  # where it is asked for


@readable
class Totals(NamedTuple):
    """The sums over all classes, from which a loss is finished."""

    a: Normaliser  # of h
    t: tuple[Mean, ...]  # E_p[t]
    t_fixed: tuple[Mean, ...]  # E_p[t] again, with a derivative that leaves out sum_k p_k dt_k
    v: tuple[Mean, ...]  # E_p[v]
    e: tuple[Pair, ...]  # log E_p[exp e]
    n: tuple[Normaliser, ...]  # of h + e
    y: CrossEntropy | None  # of the label weights
    l: tuple[Array, ...]  # sum_k l_k
    s: Entropy | None = None  # where it is asked for
    offset: Array | None = None  # [...] what all logits have in common and h leaves out; None for 0

    @property
    def A(self) -> Pair:  # noqa: N802 (the formula's letter)
        """Log sum_k exp z_k, of the logits z_k = h_k + offset."""
        return self.a.log if self.offset is None else self.a.log - (-self.offset)

    @property
    def C(self) -> Array:  # noqa: N802
        """sum_k y_k (A - h_k), the cross entropy of the label weights."""
        return self._weighted("C").sum

    @property
    def Y(self) -> Array:  # noqa: N802
        """sum_k y_k, the sum of the label weights."""
        return self._weighted("Y").weight

    @property
    def of_labels(self) -> Array:
        """The logits [..., T] of the labels."""
        h = self._weighted("of_labels").of_ids
        return h if self.offset is None else h + self.offset[..., None]

    def _weighted(self, name: str) -> CrossEntropy:
        if self.y is None:
            raise ValueError(f"`{name}` needs `Columns` with weights `y`, got none.")
        return self.y


def fold(c: Columns, ids: Array, *, with_entropy: bool = False) -> Sums:
    """Sums over one block of classes, with ids [B]."""
    plain = tuple(l.sum(-1) for l in c.l)
    if not (c.t or c.v or c.e):
        if with_entropy:  # without the barrier, the top score may be computed twice, and not be equal to the maximum
            c = c._replace(h=lax.optimization_barrier(c.h))
        a = _normaliser(c.h, ids)
        entropy = _entropy(c.h, ids, a) if with_entropy else None
        return Sums(a, (), (), (), (), _cross_entropy(c, ids, a.m), plain, entropy)
    a, w, first = _normaliser_and_top(c.h, ids)

    def payoff(t):
        t = jnp.where(jnp.isneginf(c.h), 0, t)
        of_top = jnp.take_along_axis(t, first[..., None], -1, mode="fill", fill_value=0)[..., 0]
        top = lax.stop_gradient(of_top)
        above = ((w * (t - top[..., None])).sum(-1) + tangent_of(of_top)) / a.mass
        base, rest = renormalised(top, above)
        # Summed again relative to the base: the sum is smaller, and so is its rounding error.
        above = ((w * (t - base[..., None])).sum(-1) + jnp.where(first < ids.size, top - base, 0)) / a.mass
        return Mean(base, lax.stop_gradient(above) + tangent_of(rest), top)

    def vector_payoff(v):
        of_top, of_others = v.at[first].get(mode="fill", fill_value=0), dot(w, v)
        top, r, mass = lax.stop_gradient(of_top), a.r[..., None], a.mass[..., None]
        mean = (of_top + of_others) / mass
        sure = r < 1  # E is then closer to the payoff of the top class than to 0
        above = lax.stop_gradient((of_others - r * top) / mass)
        base, rest = renormalised(top, above)
        base = jnp.where(sure, base, lax.stop_gradient(mean))
        return Mean(base, jnp.where(sure, rest, 0) + tangent_of(mean), top)

    e = tuple(_normaliser_and_top(_tilted(c.h, e), ids)[0] for e in c.e)
    t, t_fixed = tuple(map(payoff, c.t)), tuple(map(payoff, lax.stop_gradient(c.t)))
    return Sums(a, t, t_fixed, tuple(map(vector_payoff, c.v)), e, _cross_entropy(c, ids, a.m), plain)


def rounded(c: Columns, sums: Sums, dtype: jnp.dtype | None) -> tuple[Columns, Sums]:
    """(the columns to keep for `pull`, rounded to `dtype` where `pull` rounds their cotangents, the sums over them)."""
    if dtype is None or c.t or c.v or c.e or (c.y is not None and c.y.per_class is not None):
        return c, sums
    kept = RoundedScores(sums.a.weights(c.h).astype(dtype), sums.a.m)
    # One pass takes the sums and rounds. Without the barrier, XLA would keep the scores and compute this again.
    kept, sums = lax.optimization_barrier((kept, sums))
    return c._replace(h=kept), sums


def merge(left: Sums, right: Sums) -> Sums:
    """Sums over two sets of classes from the sums over each."""
    left_wins = _wins(left.a, right.a)
    a = _merge_normalisers(left.a, right.a)
    high = 1 + _choose(left_wins, left.a.r, right.a.r)
    low = _weight_of_lower(left.a, right.a) * (1 + _choose(left_wins, right.a.r, left.a.r))
    left_weighs_more = left_wins == (high >= low)
    share = jnp.minimum(high, low) / a.mass  # of the lighter of the two

    def merge_means(left, right):
        heavy, light = jax.tree.map(ft.partial(_choose, left_weighs_more), (left, right), (right, left))
        gap = (light.base - heavy.base) + (light.rest - heavy.rest)
        base, rest = renormalised(heavy.base, heavy.rest + _aligned(share, gap) * gap)
        return Mean(base, rest, _choose(left_wins, left.top, right.top))

    return Sums(
        a,
        tuple(map(merge_means, left.t, right.t)),
        tuple(map(merge_means, left.t_fixed, right.t_fixed)),
        tuple(map(merge_means, left.v, right.v)),
        tuple(map(_merge_normalisers, left.e, right.e)),
        None if left.y is None else _merge_cross_entropies(left, right),
        tuple(map(jnp.add, left.l, right.l)),
        None if left.s is None else _merge_entropies(left, right),
    )


def merge_over(x: Sums, axes: _mesh.Names) -> Sums:
    """Sums over the classes of all devices of some mesh axes, from the sums of each device. They are replicated.

    It takes up to four rounds: the largest scores; the id of the top class, where payoffs are involved; the sums
    relative to the largest score; the expectations relative to the expectation on the device of the top class.
    """
    n = jax.tree.map(lambda *of_each: jnp.stack(of_each, -1), x.a, *x.e)
    m = _mesh.pmax(n.m, axes)
    has_top, top = (n.m == m) & (m > -jnp.inf), jnp.full_like(m, -1, dtype=n.top.dtype)
    if x.t or x.t_fixed or x.v or x.e:
        none = jnp.iinfo(n.top.dtype).max
        top = _mesh.pmin(jnp.where(has_top & (n.top >= 0), n.top, none), axes)
        has_top, top = n.top == top, jnp.where(top < none, top, -1)

    r = n.r + n.lost
    w = jnp.exp(n.m - finite(m)) * (1 + r)
    y = None if x.y is None else x.y._replace(sum=x.y.sum + x.y.weight * (finite(m) - finite(n.m))[..., 0])
    means = (x.t, x.t_fixed, x.v)
    is_mean = lambda x: isinstance(x, Mean)
    if_top = lambda mean: tuple(jnp.where(_aligned(has_top[..., 0], a), a, 0) for a in (mean.base, mean.top))
    of_tops = jax.tree.map(if_top, means, is_leaf=is_mean)
    s = None if x.s is None else _shifted(x, m[..., 0])
    of_devices = (jnp.where(has_top, r, w), w, y, x.l, of_tops, s)
    others, mass, y, plain, of_tops, s = _mesh.psum(of_devices, axes)
    if x.s is not None:
        none = jnp.iinfo(x.s.top.dtype).max
        of_largest = _mesh.pmin(jnp.where((x.a.m == m[..., 0]) & (x.s.top >= 0), x.s.top, none), axes)
        s = Entropy(s, jnp.where(of_largest < none, of_largest, -1), jnp.zeros_like(s))
    # The device of the top class leaves out its 1. If several devices have a top score, there are no digits to lose.
    # If none has, as a score was computed twice and rounded in two ways, the 1 is subtracted from the sum.
    dropped = mass - others
    r = jnp.where(jnp.isneginf(m), -1, jnp.where((dropped > 0.5) & (dropped < 1.5), others, mass - 1))
    a, *e = (Normaliser(*of_one) for of_one in zip(*(jnp.moveaxis(x, -1, 0) for x in (m, top, r, 0 * r)), strict=True))

    share = w[..., 0] / a.mass
    above = lambda mean, of_top: _aligned(share, mean.base) * ((mean.base - of_top[0]) + mean.rest)
    rests = _mesh.psum(jax.tree.map(above, means, of_tops, is_leaf=is_mean), axes)

    def mean(rest, of_top):
        base, rest = renormalised(of_top[0], rest)
        return Mean(base, rest, of_top[1])

    t, t_fixed, v = jax.tree.map(mean, rests, of_tops)
    return Sums(a, t, t_fixed, v, tuple(e), y, plain, s)


def close(x: Sums) -> Totals:
    """Totals from the sums over all classes."""
    a, *n = (a._replace(r=a.r + a.lost) for a in (x.a, *x.e))
    log_mean = lambda n: Pair(jnp.where(jnp.isneginf(n.m), -jnp.inf, n.m - a.m), n.log.rest - a.log.rest)
    y = None if x.y is None else x.y._replace(sum=nan_unless(_all_seen(x.y), x.y.sum + x.y.weight * a.log.rest))
    s = None if x.s is None else x.s._replace(value=a.log.rest + x.s.below / a.mass)
    return Totals(a, x.t, x.t_fixed, x.v, tuple(map(log_mean, n)), tuple(n), y, x.l, s)


def pull(c: Columns, ids: Array, totals: Totals, ct: Totals) -> Columns:
    """Cotangents of the columns from the cotangents of the totals: the library's one derivative."""
    dl = tuple(jnp.broadcast_to(d[..., None], l.shape) for d, l in zip(ct.l, c.l, strict=True))
    if c.y is not None or not (c.t or c.v or c.e):
        w = totals.a.weights(c.h)
        dh, dy = (w * ct.a.r[..., None], None) if c.y is None else _pull_cross_entropy(c, w, ids, totals, ct)
        if ct.s is not None and totals.s is not None:
            dh += _pull_entropy(c.h, w, ids, totals, ct)
        if not (c.t or c.v or c.e):
            return Columns(dh, y=dy, l=dl)
        of_normaliser = jnp.zeros_like(ct.a.r)
    else:
        dh, dy, of_normaliser = 0, None, ct.a.r * totals.a.mass  # dr = sum_k exp(h_k - m) dh_k

    p = totals.a.probabilities(c.h)
    position = totals.a.top - ids[0]  # ids are consecutive; with padding only, the first is less than any top class
    position = jnp.where((totals.a.top >= 0) & (ids[0] >= 0) & (position >= 0), position, ids.size)
    position = jnp.minimum(position, ids.size)

    # <ct, t_k - base> per class, and <ct, E - base>, which would be lost if it were subtracted per class.
    slip = jnp.zeros_like(of_normaliser)
    for d, d_fixed, t, mean in zip(ct.t, ct.t_fixed, c.t, totals.t, strict=True):
        above = jnp.where(jnp.isneginf(c.h), 0, t) - mean.base[..., None]
        of_payoff = d.rest + d_fixed.rest
        dh += p * (of_payoff[..., None] * _with_top(above, position, mean.top - mean.base))
        slip += of_payoff * mean.rest
    for d, v, mean in zip(ct.v, c.v, totals.v, strict=True):
        paid = lambda a, d=d: (d.rest * a).sum(-1)
        of_top = v.at[position].get(mode="fill", fill_value=0)
        of_top = mean.top - mean.base + tangent_of(of_top)
        dh += p * _put(dot(d.rest, v.T) - paid(mean.base)[..., None], position, paid(of_top))
        slip += paid(mean.rest)
    dh += p * (of_normaliser - slip)[..., None]

    de = []
    for of_e, dn, e, n in zip(ct.e, ct.n, c.e, totals.n, strict=True):
        u = n.probabilities(_tilted(c.h, e))
        # A class that is on top of both h and h + e has 1 / (1 + r) in each; their difference is in the r.
        of_tops = (totals.a.r - n.r) / (totals.a.mass * n.mass)
        difference = _with_top(u - p, jnp.where(totals.a.top == n.top, position, ids.size), of_tops)
        tilt = (dn.r * n.mass)[..., None]
        dh += of_e.rest[..., None] * difference + tilt * u
        de.append((of_e.rest[..., None] + tilt) * u)

    dt, dv = tuple(d.rest[..., None] * p for d in ct.t), tuple(outer(p, d.rest) for d in ct.v)
    return Columns(dh, dt, dv, tuple(de), dy, dl)


def softmax_tangent(p: Array, dh: Array) -> Array:
    """p_k (dh_k - E_p[dh]), the tangent of p for the tangent dh of the scores.

    It is also the cotangent of h for the cotangent g of p: <g, dp> = dE_p[g] = sum_k p_k (g_k - E_p[g]) dh_k.

    The exact tangent sums to 0 over the classes. Subtracting the rounded sum, in proportion to p, keeps the digits
    of a top class with p_o = 1 - tiny, and is its own transpose.
    """
    tangent = p * (dh - (p * dh).sum(-1, keepdims=True))
    return tangent - p * tangent.sum(-1, keepdims=True)


def log_softmax_cotangent(p: Array, g: Array) -> Array:
    """g_k - p_k sum_j g_j, the cotangent of h for the cotangent g of log p.

    The exact cotangent sums to 0 over the classes; the rounded sum is subtracted in proportion to p.
    """
    total = g.sum(-1, keepdims=True)
    slip = (g - p * total).sum(-1, keepdims=True)
    return (g - p * total) - p * slip


def dot(a: Array, b: Array) -> Array:
    """The matrix product a [..., I] @ b [I, J] in the full precision of the operands, on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def outer(p: Array, d: Array) -> Array:
    """The sum over the examples of p_k d_e [B, E], for p [..., B] and d [..., E]."""
    examples = tuple(range(p.ndim - 1))
    product = lambda p, d: jnp.tensordot(p, d, (examples, examples), precision=lax.Precision.HIGHEST)
    # CPUs transpose the first operand, element by element: d has fewer. The barrier keeps the order.
    transposed = lambda p, d: lax.optimization_barrier(product(d, p)).T
    return lax.platform_dependent(p, d, cpu=transposed, default=product)


def _normaliser(h, ids):
    """The normaliser of one block, for a loss without payoffs: the top class stays unknown."""
    m = lax.stop_gradient(h.max(-1))
    a = Normaliser(m, jnp.full(m.shape, -1, ids.dtype), jnp.zeros_like(m), jnp.zeros_like(m))
    r = lax.platform_dependent(h, a, cpu=_others_of_sure_rows, default=_others_in_one_pass)
    return a._replace(r=jnp.where(jnp.isneginf(m), -1, r))


def largest(h: Array) -> tuple[Array, Array]:
    """The largest of scores [..., B] and its position, the first at a tie. NaN counts as the largest."""

    def sorted_first(h):
        value, position = lax.top_k(h, 1)
        return value[..., 0], position[..., 0]

    def reduced(h):
        position = h.argmax(-1)
        return jnp.take_along_axis(h, position[..., None], -1)[..., 0], position.astype(jnp.int32)

    # CPUs reduce pairs of a value and a position one by one, ten times slower than they sort out the largest.
    return lax.platform_dependent(h, cpu=sorted_first, default=reduced)


def _entropy(h, ids, a):
    below = jnp.minimum(finite(a.m)[..., None] - h, 800)  # where the weight is 0, also in float64
    top = ids[largest(lax.stop_gradient(h))[1]]
    return Entropy((jnp.exp(-below) * below).sum(-1), jnp.where(jnp.isneginf(a.m), -1, top), jnp.zeros_like(a.m))


def _shifted(x, m):
    """The sum `below` of an entropy, relative to the maximum m of more classes."""
    gap = jnp.where(jnp.isneginf(x.a.m), 0, m - x.a.m)
    return jnp.exp(-gap) * (x.s.below + gap * (1 + x.a.r + x.a.lost))


def _merge_entropies(left, right):
    m = lax.stop_gradient(jnp.where(_wins(left.a, right.a), left.a.m, right.a.m))
    top = jnp.where(_wins(left.a, right.a), left.s.top, right.s.top)
    return Entropy(_shifted(left, m) + _shifted(right, m), top, left.s.value)


def _pull_entropy(h, w, ids, totals, ct):
    """dH = -sum_k p_k (h_k - E_p[h]) dh_k, where E_p[h] = m - below / (1 + r).

    The derivative of `below` is that of the scores alone; only second derivatives need it.
    """
    is_top = _as_row(ids, totals.a.m.ndim) == totals.s.top[..., None]
    above = with_value(0, is_top, jnp.maximum(h - finite(totals.a.m)[..., None], -800))  # where the weight is 0
    of_value = ct.s.value / totals.a.mass
    factor, added = of_value + ct.s.below, of_value * (totals.s.below / totals.a.mass) + ct.s.below
    return -w * (factor[..., None] * above + added[..., None])


# The largest weight is exactly 1, and w - floor(w) drops it. If that drops more than one, there are no digits to lose.
# If it drops none, a score was computed twice and rounded in two ways, as by a product that is fused into h - m.


def _others_in_one_pass(h, a):
    """sum_k exp(h_k - m) - 1."""
    w = a.weights(h)
    return (w - jnp.floor(w)).sum(-1) + (jnp.floor(w).sum(-1) - 1)


def _others_of_sure_rows(h, a):
    """The same for CPUs, which take one sum at a time: a second one where the rounding of the first is too much."""
    r = a.weights(h).sum(-1) - 1

    def without_the_1():
        w = a.weights(h)  # computed again, so that it is not kept for this branch
        others = (w - jnp.floor(w)).sum(-1)
        dropped = r + 1 - others
        return jnp.where((dropped > 0.5) & (dropped < 1.5), others, r)

    # Below 1/4, the rounding of 1 + r would give r an error of more than 4 eps.
    return lax.cond((r < 0.25).any(), without_the_1, lambda: r)


def _normaliser_and_top(h, ids):
    """(the normaliser of one block, exp(h_k - m) with 0 at the top class, the position of the top class)."""
    m = lax.stop_gradient(h.max(-1))
    m = jnp.where(jnp.isposinf(m), jnp.nan, m)  # a score of +inf has no softmax
    first = _first_equal(h, m).astype(ids.dtype)
    is_known = first < h.shape[-1]
    top = jnp.where(is_known, ids.at[first].get(mode="clip"), -1)
    a = Normaliser(m, top, jnp.zeros_like(m), jnp.zeros_like(m))
    w = _without(a.weights(h), first)
    unknown = jnp.where(is_known, 0, 1).astype(h.dtype)  # its 1 is still among the weights
    return a._replace(r=jnp.where(jnp.isneginf(m), -1, w.sum(-1) - unknown)), w, first


def _first_equal(h, m):
    """The first position [...] where h [..., B] equals its maximum m; B where that is -inf or NaN."""
    b = h.shape[-1]
    if not isinstance(b, int) or b > 2 ** jnp.finfo(h.dtype).nmant:  # it may be symbolic
        position = _as_row(jnp.arange(b), m.ndim)
        return jnp.min(jnp.where((h == m[..., None]) & (h > -jnp.inf), position, b), -1)
    # As floating-point numbers, and without a selection: CPUs take that in one pass.
    far = jnp.sqrt(jnp.finfo(h.dtype).max)
    position = _as_row(jnp.arange(b, dtype=h.dtype), m.ndim)
    first = jnp.min((m[..., None] - lax.stop_gradient(h)) * far * far + position, -1)
    return jnp.where(first < b, first, b)


def _with_top(x, position, value):
    """x [..., B] with another value at one position of each row, none at B, and its own derivative everywhere."""
    return lax.stop_gradient(_put(x, position, value)) + tangent_of(x)


def _put(x, position, value):
    """x [..., B] with another value at one position of each row, none at B; linear in both."""
    away = _as_row(jnp.arange(x.shape[-1], dtype=x.dtype), position.ndim) - position[..., None].astype(x.dtype)
    elsewhere = jnp.minimum(away * away, 1)
    return elsewhere * x + (1 - elsewhere) * value[..., None]


def _without(x, position):
    """x [..., B] with 0 at one position of each row, none at B, and its own derivative everywhere."""

    def written(x, position):  # to compare all positions costs CPUs as much as exp
        rows = (lax.broadcasted_iota(position.dtype, position.shape, axis) for axis in range(position.ndim))
        return x.at[(*rows, position)].set(0, mode="drop")

    selected = lambda x, position: _put(x, position, jnp.zeros_like(x, shape=position.shape))
    changed = lax.platform_dependent(*lax.stop_gradient((x, position)), cpu=written, default=selected)
    return changed + tangent_of(x)


def _merge_normalisers(left, right):
    high, low = jax.tree.map(ft.partial(_choose, _wins(left, right)), (left, right), (right, left))
    w = _weight_of_lower(left, right)
    r, lost = sum_and_error(high.r, w * (1 + low.r))
    return high._replace(r=r, lost=high.lost + w * low.lost + lost)


def _cross_entropy(c, ids, m):
    if c.y is None:
        return None
    labels = Labels(c.y.ids, ids)
    weights, of_ids = jnp.where(labels.here, c.y.of_ids, 0), labels.take(c.h)
    below = lambda h: finite(m)[..., None] - h
    cost, weight = (weights * jnp.where(weights == 0, 0, below(of_ids))).sum(-1), weights.sum(-1)
    if c.y.per_class is not None:
        y = _of_rows(c.y.per_class, c.h)
        cost += (y * jnp.where(jnp.isneginf(c.h) & (y == 0), 0, below(c.h))).sum(-1)
        weight += y.sum(-1)
    return CrossEntropy(cost, weight, of_ids, labels.here.astype(cost.dtype))


def _merge_cross_entropies(left, right):
    high, low = jax.tree.map(ft.partial(_choose, _wins(left.a, right.a)), (left.y, right.y), (right.y, left.y))
    gap = finite(jnp.maximum(left.a.m, right.a.m)) - finite(jnp.minimum(left.a.m, right.a.m))
    total = high.sum + (low.sum + low.weight * gap)
    return CrossEntropy(total, high.weight + low.weight, high.of_ids + low.of_ids, high.seen + low.seen)


def _all_seen(y):
    """Whether the labels are classes."""
    return (y.seen == 1).all(-1)


def _pull_cross_entropy(c, w, ids, totals, ct):
    """The cotangents Y p_k - y_k of h, with the cotangent of the normaliser added, and A - h_k of y."""
    labels = Labels(c.y.ids, ids)
    d = nan_if_moved(_all_seen(totals.y), ct.y.sum)[..., None]
    dh = w * (ct.a.r[..., None] + d * (totals.y.weight / totals.a.mass)[..., None])
    y = labels.summed(c.y.of_ids, ids.size)
    if c.y.per_class is not None and c.y.per_class.ndim < c.h.ndim:
        dh -= d * jnp.where(jnp.isneginf(c.h), 0, _of_rows(c.y.per_class, c.h))
        y += c.y.per_class[labels.clipped]
    elif c.y.per_class is not None:  # any class may have all of the weight: as at a label below
        more, mass = c.y.per_class, totals.a.mass[..., None]
        gap = w / mass * (totals.y.weight[..., None] - more) - more * totals.a.complement(c.h)
        dh = w * ct.a.r[..., None] + d * jnp.where(jnp.isneginf(c.h), 0, gap)
        y += labels.take(more)
    # At a label, p_k (Y - y_k) - y_k (1 - p_k), where 1 - p_k is summed from the other classes: its digits are in the
    # score from which the maximum was taken; the score computed again may be rounded in another way.
    possible = ~jnp.isneginf(totals.y.of_ids)
    weight = totals.a.weights(totals.y.of_ids)
    gap = weight / totals.a.mass[..., None] * (totals.y.weight[..., None] - y)
    gap -= y * totals.a.complement(totals.y.of_ids)
    at_labels = weight * ct.a.r[..., None] + d * gap + labels.summed(ct.y.of_ids, ids.size)
    dh = labels.put(jnp.where(possible, at_labels, 0), dh)

    def cost(h):  # A - h_k, or 0 for a class that is left out
        is_class = ~jnp.isneginf(h)
        above = (finite(totals.a.m)[..., None] - jnp.where(is_class, h, 0)) + totals.a.log.rest[..., None]
        return jnp.where(is_class, above, 0)

    of_ids = jnp.where(labels.here, d * cost(totals.y.of_ids) + ct.y.weight[..., None], 0)
    if c.y.per_class is None:
        return dh, Weights(c.y.ids, of_ids)
    of_all = d * cost(c.h) + ct.y.weight[..., None]
    of_all = of_all.sum(tuple(range(c.h.ndim - 1))) if c.y.per_class.ndim < c.h.ndim else of_all
    return dh, Weights(c.y.ids, of_ids, of_all)


def _wins(left, right):
    """True where left has the larger maximum; a NaN in left also wins, so it propagates."""
    return (left.m >= right.m) | jnp.isnan(left.m)


def _weight_of_lower(left, right):
    """exp(lower m - higher m)."""
    return jnp.exp(jnp.minimum(left.m, right.m) - finite(jnp.maximum(left.m, right.m)))


def _choose(condition, a, b):
    return jnp.where(_aligned(condition, a), a, b)


def _tilted(h, e):
    return h + jnp.where(jnp.isneginf(h), 0, e)


def finite(m: Array) -> Array:
    """The maximum m, or the lowest finite number where it is -inf: exp(-inf - m) is then 0.

    A selection would have the same value, and end the fusion of a whole softmax into one pass on CPUs.
    """
    return jnp.maximum(m, jnp.finfo(m.dtype).min)


def _of_rows(a, h):
    """a [B] or [..., B] in the rank of the scores."""
    return a if a.ndim == h.ndim else _as_row(a, h.ndim - 1)


def _as_row(a, ndim):
    return a.reshape((1,) * ndim + a.shape)


def _aligned(a, b):
    return a.reshape(a.shape + (1,) * (b.ndim - a.ndim))
