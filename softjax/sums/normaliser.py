"""The normaliser A = log sum_k exp h_k, with dA = sum_k p_k dh_k."""

from __future__ import annotations

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..arguments.signatures import readable
from .columns import RoundedScores
from .devices import Steps
from .elementary import exp, expm1, log1p, reciprocal
from .pair import Pair, sum_and_error, tangent_of
from .products import as_row, choose, finite


@readable
class Normaliser(NamedTuple):
    """log sum_k exp h_k = m + log(1 + r)."""

    m: Array  # [N] max_k h_k; -inf when all classes are masked
    top: Array  # [N] the top class o; -1 when there is none, or when no sum needs it
    r: Array  # [N] sum_k exp(h_k - m) - 1, summed without o; -1 when all classes are masked
    lost: Array  # [N] the rounding error of r from merging blocks

    @property
    def log(self) -> Pair:
        """Log sum_k exp h_k."""
        return Pair(self.m, log1p(jnp.where(jnp.isneginf(self.m), 0, self.r)))

    @property
    def mass(self) -> Array:
        """1 + r, or 1/2 where all classes are masked."""
        return 1 + jnp.maximum(self.r, -0.5)

    @property
    def inverse_mass(self) -> Array:
        """1 / mass."""
        return reciprocal(self.mass)

    def weights(self, h: Array | RoundedScores) -> Array:
        """exp(h_k - m)."""
        if isinstance(h, RoundedScores):
            return h.weights.astype(h.m.dtype) * exp(h.m - finite(self.m))[..., None]
        return exp(h - finite(self.m)[..., None])

    def probabilities(self, h: Array) -> Array:
        """p_k."""
        return self.weights(h) * self.inverse_mass[..., None]

    def complement(self, h: Array) -> Array:
        """1 - p_k for one class per example, with scores h [..., 1], summed from the other classes."""
        return (self.r[..., None] - expm1(h - finite(self.m)[..., None])) * self.inverse_mass[..., None]

    def wins(self, other: Normaliser) -> Array:
        """True where this has the larger maximum; a NaN also wins, so it propagates."""
        return (self.m >= other.m) | jnp.isnan(self.m)

    def merge(self, other: Normaliser) -> Normaliser:
        """The normaliser of the classes of both."""
        wins = self.wins(other)
        high, low = jax.tree.map(ft.partial(choose, wins), (self, other), (other, self))
        w = weight_of_lower(self, other)
        r, lost = sum_and_error(high.r, w * (1 + low.r))
        return high._replace(r=r, lost=high.lost + w * low.lost + lost)

    def over(self, shared: Over) -> Steps:
        """The steps of the normaliser of the classes of all devices: see `devices.together`.

        The device of the top class leaves out its 1. If several devices have a top score, there are no digits to lose.
        If none has, as a score was computed twice and rounded in two ways, the 1 is subtracted from the sum.
        """
        shared.m = m = yield "max", self.m
        has_top, top = (self.m == m) & (m > -jnp.inf), jnp.full_like(self.top, -1)
        if shared.needs_top:
            none = jnp.iinfo(top.dtype).max
            top = yield "min", jnp.where(has_top & (self.top >= 0), self.top, none)
            has_top, top = self.top == top, jnp.where(top < none, top, -1)
        r = self.r + self.lost
        w = exp(self.m - finite(m)) * (1 + r)
        shared.has_top = has_top
        others, mass = yield "sum", (jnp.where(has_top, r, w), w)
        dropped = mass - others
        r = jnp.where(jnp.isneginf(m), -1, jnp.where((dropped > 0.5) & (dropped < 1.5), others, mass - 1))
        merged = Normaliser(m, top, r, 0 * r)
        shared.share = w * merged.inverse_mass
        return merged

    def close(self) -> Normaliser:
        """The normaliser of all classes."""
        return self._replace(r=self.r + self.lost)


class Over:
    """What the sums of a device share while they are summed over all devices, set by the steps of the normaliser."""

    m: Array  # [N] the largest score of all devices, after the first round
    has_top: Array  # [N] whether this device has the top class, before the sums
    share: Array  # [N] of this device's classes in the probability of all, after the sums

    def __init__(self, a: Normaliser, *, needs_top: bool):
        self.a, self.needs_top = a, needs_top  # of this device


def weight_of_lower(left: Normaliser, right: Normaliser) -> Array:
    """exp(lower m - higher m)."""
    return exp(jnp.minimum(left.m, right.m) - finite(jnp.maximum(left.m, right.m)))


def without_top(h: Array, ids: Array) -> Normaliser:
    """The normaliser of one block, for a loss whose sums don't need the top class: it stays unknown."""
    m = lax.stop_gradient(h.max(-1))
    a = Normaliser(m, jnp.full(m.shape, -1, ids.dtype), jnp.zeros_like(m), jnp.zeros_like(m))
    r = lax.platform_dependent(h, a, cpu=_others_of_sure_rows, default=_others_in_one_pass)
    return a._replace(r=jnp.where(jnp.isneginf(m), -1, r))


def with_top(h: Array, ids: Array) -> tuple[Normaliser, Array, Array]:
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


# The largest weight is left out. If that leaves out more than one, there are no digits to lose. If none is left out, a
# score was computed twice and rounded in two ways, as by a product that is fused into h - m.


def _others_in_one_pass(h, a):
    """sum_k exp(h_k - m) - 1. On TPUs, exp(0) need not be 1."""
    is_largest = h == a.m[..., None]
    return jnp.where(is_largest, 0, a.weights(h)).sum(-1) + (is_largest.astype(h.dtype).sum(-1) - 1)


def _others_of_sure_rows(h, a):
    """The same for CPUs, which take one sum at a time: a second one where the rounding of the first is too much.

    The largest weight is exactly 1 there, and w - floor(w) drops it without a selection.
    """
    r = a.weights(h).sum(-1) - 1

    def without_the_1():
        w = a.weights(h)  # computed again, so that it is not kept for this branch
        others = (w - jnp.floor(w)).sum(-1)
        dropped = r + 1 - others
        return jnp.where((dropped > 0.5) & (dropped < 1.5), others, r)

    # Below 1/4, the rounding of 1 + r would give r an error of more than 4 eps.
    return lax.cond((r < 0.25).any(), without_the_1, lambda: r)


def _first_equal(h, m):
    """The first position [N] where h [N, B] equals its maximum m; B where that is -inf or NaN."""
    b = h.shape[-1]
    if not isinstance(b, int) or b > 2 ** jnp.finfo(h.dtype).nmant:  # it may be symbolic
        position = as_row(jnp.arange(b), m.ndim)
        return jnp.min(jnp.where((h == m[..., None]) & (h > -jnp.inf), position, b), -1)
    # As floating-point numbers, and without a selection: CPUs take that in one pass.
    far = jnp.sqrt(jnp.finfo(h.dtype).max)
    position = as_row(jnp.arange(b, dtype=h.dtype), m.ndim)
    below = jnp.maximum(m[..., None] - lax.stop_gradient(h), 0)  # not less, also of a score that is computed twice
    first = jnp.min(below * far * far + position, -1)
    return jnp.where(first < b, first, b)


def _without(x, position):
    """x [N, B] with 0 at one position of each row, none at B, and its own derivative everywhere."""

    def written(x, position):  # to compare all positions costs CPUs as much as exp
        rows = (lax.broadcasted_iota(position.dtype, position.shape, axis) for axis in range(position.ndim))
        return x.at[(*rows, position)].set(0, mode="drop")

    selected = lambda x, position: put(x, position, jnp.zeros_like(x, shape=position.shape))
    changed = lax.platform_dependent(*lax.stop_gradient((x, position)), cpu=written, default=selected)
    return changed + tangent_of(x)


def put(x: Array, position: Array, value: Array) -> Array:
    """x [N, B] with another value at one position of each row, none at B; linear in both."""
    away = as_row(jnp.arange(x.shape[-1], dtype=x.dtype), position.ndim) - position[..., None].astype(x.dtype)
    elsewhere = jnp.minimum(away * away, 1)
    return elsewhere * x + (1 - elsewhere) * value[..., None]


def put_value(x: Array, position: Array, value: Array) -> Array:
    """The same, with the derivative of x everywhere."""
    return lax.stop_gradient(put(x, position, value)) + tangent_of(x)
