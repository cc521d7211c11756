"""Numbers kept as unevaluated sums of two."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import elementwise
from ..arguments.signatures import readable


@readable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """A number kept as the unevaluated sum `base + rest`.

    A difference subtracts the bases first and keeps the rounding error: at logits (1e4, 1e4 - 1) in
    float32, `A - z_y` has all its digits and `A.value - z_y` has four.
    """

    base: Array
    rest: Array

    @property
    def value(self) -> Array:
        """base + rest, rounded."""
        return self.base + self.rest

    def __getitem__(self, index) -> Pair:
        return Pair(self.base[index], self.rest[index])

    def __sub__(self, other: Pair | Array) -> Pair:
        base, rest = (other.base, self.rest - other.rest) if isinstance(other, Pair) else (other, self.rest)
        high, low = sum_and_error(self.base, -base)
        high, lower = sum_and_error(high, rest)
        return Pair(high, low + lower)

    def __rsub__(self, other: Array) -> Array:
        return (other - self.base) - self.rest


def sum_and_error(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and the rounding error as a constant of differentiation (Knuth's TwoSum)."""
    total = a + b
    b_seen = total - a
    error = (a - (total - b_seen)) + (b - b_seen)
    return total, lax.stop_gradient(jnp.where(jnp.isfinite(error), error, 0))


def renormalised(base: Array, rest: Array) -> tuple[Array, Array]:
    """(base, rest) with the same sum, where rounding base + rest gives the base.

    The base is a constant of differentiation.
    """
    base, error = sum_and_error(base, lax.stop_gradient(rest))
    return base, error + tangent_of(rest)


def tangent_of(x: Array) -> Array:
    """0, with the derivative of x where x is finite. Without a derivative, x is not computed."""
    return _tangent(x)


def with_value(value: Array | int, where: Array, x: Array) -> Array:
    """x with other values at some places, and its own derivative everywhere."""
    return lax.stop_gradient(jnp.where(where, value, x)) + tangent_of(x)


def _jvp_of_tangent(primals, tangents):
    (x,), (dx,) = primals, tangents
    moved = None if dx is None else jnp.where(jnp.isfinite(lax.stop_gradient(x)), dx, jnp.zeros_like(dx))
    return tangent_of(x), moved


_tangent = elementwise("softjax_tangent", jnp.zeros_like, _jvp_of_tangent)
