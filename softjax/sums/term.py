"""A plain sum over the classes, L = sum_k l_k."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from .context import Block, Merged, Pulled
from .devices import Steps
from .normaliser import Normaliser, Over


class Term:
    """The sum [N] of a term l [N, B] of each example and class, or [N, 1], already summed over the block."""

    needs_top = False

    @staticmethod
    def fold(l: Array, block: Block) -> Array:  # noqa: ARG004
        """The sum over the classes of a block."""
        return l.sum(-1)

    @staticmethod
    def merge(left: Array, right: Array, both: Merged) -> Array:  # noqa: ARG004
        """The sum over the classes of both."""
        return left + right

    @staticmethod
    def over(total: Array, shared: Over) -> Steps:  # noqa: ARG004
        """The steps of the sum over the classes of all devices."""
        return (yield "sum", total)

    @staticmethod
    def close(total: Array, a: Normaliser) -> Array:  # noqa: ARG004
        """The sum over all classes."""
        return total

    @staticmethod
    def pull(total: Array, ct: Array, l: Array, at: Pulled) -> tuple[None, Array]:  # noqa: ARG004
        """(None for the cotangent of h, that of l)."""
        return None, jnp.broadcast_to(ct[..., None], l.shape)
