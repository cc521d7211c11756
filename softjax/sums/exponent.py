"""The logarithm of a mean, D = log sum_k p_k exp e_k, with dD = sum_k (u_k - p_k) dh_k + sum_k u_k de_k.

u_k = p_k exp(e_k - D) are the probabilities of the logits h + e.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from ..arguments.signatures import readable
from .context import Block, Merged, Pulled
from .devices import Steps
from .normaliser import Normaliser, Over, put_value, with_top
from .pair import Pair


@readable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogMean(Pair):
    """log E_p[exp e], and the normaliser of h + e."""

    tilted: Normaliser


class OfExponent:
    """The normaliser of h + e, for an exponent e [N, B] of each example and class; at the end a `LogMean`."""

    needs_top = True

    @staticmethod
    def fold(e: Array, block: Block) -> Normaliser:
        """The normaliser over the classes of a block."""
        return with_top(_tilted(block.h, e), block.ids)[0]

    @staticmethod
    def merge(left: Normaliser, right: Normaliser, both: Merged) -> Normaliser:  # noqa: ARG004
        """The normaliser over the classes of both."""
        return left.merge(right)

    @staticmethod
    def over(n: Normaliser, shared: Over) -> Steps:
        """The steps of the normaliser over the classes of all devices."""
        return n.over(Over(n, needs_top=shared.needs_top))

    @staticmethod
    def close(n: Normaliser, a: Normaliser) -> LogMean:
        """The logarithm of the mean, for the normaliser a of all classes."""
        n = n.close()
        return LogMean(jnp.where(jnp.isneginf(n.m), -jnp.inf, n.m - a.m), n.log.rest - a.log.rest, n)

    @staticmethod
    def pull(total: LogMean, ct: LogMean, e: Array, at: Pulled) -> tuple[Array, Array]:
        """(the cotangent of h, that of e)."""
        n = total.tilted
        u = n.probabilities(_tilted(at.h, e))
        # A class that is on top of both h and h + e has 1 / (1 + r) in each; their difference is in the r.
        of_tops = (at.a.r - n.r) / (at.a.mass * n.mass)
        difference = put_value(u - at.p, jnp.where(at.a.top == n.top, at.position, at.ids.size), of_tops)
        tilt = (ct.tilted.r * n.mass)[..., None]
        return ct.rest[..., None] * difference + tilt * u, (ct.rest[..., None] + tilt) * u


def _tilted(h, e):
    return h + jnp.where(jnp.isneginf(h), 0, e)
