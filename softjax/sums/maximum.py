"""The maximum M = max_k t_k of a payoff, with dM = sum_k 1{t_k = M} dt_k / the number of such classes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ..arguments.signatures import readable
from .context import Block, Merged, Pulled
from .devices import Steps
from .largest import largest
from .normaliser import Normaliser, Over
from .products import as_row


@readable
class Maximum(NamedTuple):
    """The largest of a payoff, and the classes that have it."""

    value: Array  # [N]; -inf where all classes have it
    top: Array  # [N] the first class that has it
    ties: Array  # [N] the number of classes that have it


class OfLargest:
    """The maximum of a payoff t [N, B] of each example and class. Classes that tie share its gradient."""

    needs_top = False

    @staticmethod
    def fold(t: Array, block: Block) -> Maximum:
        """The maximum over the classes of a block."""
        t = lax.optimization_barrier(t)  # a payoff that is computed twice may not be equal to itself
        value = t.max(-1)
        is_largest = lax.stop_gradient(t == value[..., None])
        return Maximum(value, block.ids[largest(lax.stop_gradient(t))[1]], is_largest.sum(-1).astype(t.dtype))

    @staticmethod
    def merge(left: Maximum, right: Maximum, both: Merged) -> Maximum:  # noqa: ARG004
        """The maximum over the classes of both."""
        left_wins = (left.value >= right.value) | jnp.isnan(left.value)
        value = jnp.where(left_wins, left.value, right.value)
        of_value = lambda one: jnp.where(one.value == value, one.ties, 0)
        ties = of_value(left) + of_value(right)
        return Maximum(value, jnp.where(left_wins, left.top, right.top), ties)

    @staticmethod
    def over(total: Maximum, shared: Over) -> Steps:  # noqa: ARG004
        """The steps of the maximum over the classes of all devices."""
        value = yield "max", total.value
        none = jnp.iinfo(total.top.dtype).max
        top = yield "min", jnp.where(total.value == value, total.top, none)
        ties = yield "sum", jnp.where(total.value == value, total.ties, 0)
        return Maximum(value, top, ties)

    @staticmethod
    def close(total: Maximum, a: Normaliser) -> Maximum:  # noqa: ARG004
        """The maximum over all classes."""
        return total

    @staticmethod
    def pull(total: Maximum, ct: Maximum, t: Array, at: Pulled) -> tuple[None, Array]:
        """(None for the cotangent of h, that of t). A payoff that is computed again may be rounded in another way."""
        is_top = as_row(at.ids, total.top.ndim) == total.top[..., None]
        share = jnp.where(jnp.isneginf(total.value), 0, ct.value / jnp.maximum(total.ties, 1))
        has = is_top | ((t == total.value[..., None]) & (total.ties > 1)[..., None])
        others = 0 * share  # NaN for a cotangent of NaN, which is that of all classes of the example
        return None, jnp.where(jnp.isneginf(t), 0, jnp.where(has, share[..., None], others[..., None]))
