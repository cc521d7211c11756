"""The common part of all sums of a block, of two sets of classes, of all devices, and of a gradient."""

from __future__ import annotations

import functools as ft
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from .normaliser import Normaliser, weight_of_lower, with_top, without_top
from .products import choose


class Block(NamedTuple):
    """The logits of a block of classes, when they are folded."""

    h: Array  # [N, B]
    ids: Array  # [B]
    a: Normaliser
    w: Any = None  # exp(h_k - m), with 0 at the top class; None where the top class is not needed
    first: Any = None  # the position of the top class, B for none

    @classmethod
    def of(cls, h: Array, ids: Array, *, needs_top: bool) -> Block:
        """The block of some logits."""
        return cls(h, ids, *with_top(h, ids)) if needs_top else cls(h, ids, without_top(h, ids))


class Merged(NamedTuple):
    """The normalisers of two sets of classes, and of both."""

    left: Normaliser
    right: Normaliser
    a: Normaliser

    @classmethod
    def of(cls, left: Normaliser, right: Normaliser) -> Merged:
        """The two, merged."""
        return cls(left, right, left.merge(right))

    @property
    def left_wins(self) -> Array:
        """Where the left set has the top class."""
        return self.left.wins(self.right)

    @property
    def lighter(self) -> tuple[Array, Array]:
        """(where the left set weighs more, the share of the lighter of the two)."""
        high = 1 + choose(self.left_wins, self.left.r, self.right.r)
        low = weight_of_lower(self.left, self.right) * (1 + choose(self.left_wins, self.right.r, self.left.r))
        return self.left_wins == (high >= low), jnp.minimum(high, low) / self.a.mass


class Pulled:
    """The logits of a block of classes, and their normaliser over all classes, when the gradient is taken."""

    def __init__(self, h: Any, ids: Array, a: Normaliser):
        self.h, self.ids, self.a = h, ids, a

    @ft.cached_property
    def w(self) -> Array:
        """exp(h_k - m)."""
        return self.a.weights(self.h)

    @ft.cached_property
    def p(self) -> Array:
        """p_k."""
        return self.w * self.a.inverse_mass[..., None]

    @ft.cached_property
    def position(self) -> Array:
        """The position of the top class, B where it is in another block.

        Ids are consecutive; with padding only, the first is less than any top class.
        """
        position = self.a.top - self.ids[0]
        here = (self.a.top >= 0) & (self.ids[0] >= 0) & (position >= 0)
        return jnp.minimum(jnp.where(here, position, self.ids.size), self.ids.size)
