"""The entropy H = -sum_k p_k log p_k, with dH = -sum_k p_k (h_k - sum_j p_j h_j) dh_k.

Its payoff is the score itself, whose largest is m: it costs less than the mean of another.

    H = log(1 + r) + sum_k exp(h_k - m) (m - h_k) / (1 + r), whose terms are all at least 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ..arguments.signatures import readable
from .columns import Wanted
from .context import Block, Merged, Pulled
from .devices import Steps
from .elementary import exp
from .largest import largest
from .normaliser import Normaliser, Over
from .pair import with_value
from .products import as_row, finite


@readable
class Entropy(NamedTuple):
    """The entropy of p, and the top class."""

    below: Array  # [N] sum_k exp(h_k - m) (m - h_k)
    top: Array  # [N] the class with the largest score, the first at a tie; -1 when all classes are masked
    value: Array  # [N] H; 0 until `close`


class OfLogits:
    """The entropy of the logits themselves."""

    needs_top = False

    @staticmethod
    def fold(wanted: Wanted, block: Block) -> Entropy:  # noqa: ARG004
        """The sum over the classes of a block."""
        h, a = block.h, block.a
        below = jnp.minimum(finite(a.m)[..., None] - h, 800)  # where the weight is 0, also in float64
        top = block.ids[largest(lax.stop_gradient(h))[1]] if block.first is None else a.top
        return Entropy((exp(-below) * below).sum(-1), jnp.where(jnp.isneginf(a.m), -1, top), jnp.zeros_like(a.m))

    @staticmethod
    def merge(left: Entropy, right: Entropy, both: Merged) -> Entropy:
        """The sum over the classes of both."""
        m = lax.stop_gradient(jnp.where(both.left_wins, both.left.m, both.right.m))
        below = _relative_to(m, left, both.left) + _relative_to(m, right, both.right)
        return Entropy(below, jnp.where(both.left_wins, left.top, right.top), left.value)

    @staticmethod
    def over(total: Entropy, shared: Over) -> Steps:
        """The steps of the sum over the classes of all devices."""
        yield "max", ()  # the maximum of the normaliser is known after it
        none = jnp.iinfo(total.top.dtype).max
        top = yield "min", jnp.where((shared.a.m == shared.m) & (total.top >= 0), total.top, none)
        below = yield "sum", _relative_to(shared.m, total, shared.a)
        return Entropy(below, jnp.where(top < none, top, -1), jnp.zeros_like(below))

    @staticmethod
    def close(total: Entropy, a: Normaliser) -> Entropy:
        """The entropy, for the normaliser a of all classes."""
        return total._replace(value=a.log.rest + total.below * a.inverse_mass)

    @staticmethod
    def pull(total: Entropy, ct: Entropy, wanted: Wanted, at: Pulled) -> tuple[Array | None, Wanted]:
        """(the cotangent of h, what is wanted), with E_p[h] = m - below / (1 + r).

        The derivative of `below` is that of the scores alone; only second derivatives need it.
        """
        if wanted.constant:
            return None, wanted
        is_top = as_row(at.ids, at.a.m.ndim) == total.top[..., None]
        above = with_value(0, is_top, jnp.maximum(at.h - finite(at.a.m)[..., None], -800))  # where the weight is 0
        of_value = ct.value * at.a.inverse_mass
        factor, added = of_value + ct.below, of_value * (total.below * at.a.inverse_mass) + ct.below
        return -at.w * (factor[..., None] * above + added[..., None]), wanted


def _relative_to(m, total, a):
    """The sum `below` of an entropy with the normaliser a, relative to the maximum m of more classes."""
    gap = jnp.where(jnp.isneginf(a.m), 0, jnp.minimum(m - a.m, 800))  # where the weight is 0, also in float64
    return exp(-gap) * (total.below + gap * (1 + a.r + a.lost))
