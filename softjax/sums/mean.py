"""The mean of a payoff, E = sum_k p_k t_k, with dE = sum_k p_k (t_k - E) dh_k + sum_k p_k dt_k."""

from __future__ import annotations

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..arguments.signatures import readable
from .context import Block, Merged, Pulled
from .devices import Steps
from .normaliser import Normaliser, Over, put, put_value
from .pair import Pair, renormalised, sum_and_error, tangent_of
from .products import aligned, choose, dot, outer


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

    def merge(self, other: Mean, both: Merged) -> Mean:
        """The mean over the classes of both, as a mean of means: the rounding error goes to the rest of the pair."""
        left_weighs_more, share = both.lighter
        heavy, light = jax.tree.map(ft.partial(choose, left_weighs_more), (self, other), (other, self))
        gap = (light.base - heavy.base) + (light.rest - heavy.rest)
        base, rest = renormalised(heavy.base, heavy.rest + aligned(share, gap) * gap)
        return Mean(base, rest, choose(both.left_wins, self.top, other.top))

    def over(self, shared: Over) -> Steps:
        """The steps of the mean over the classes of all devices, relative to the mean on the device of the top one."""
        yield "min", ()  # the device of the top class is known after it
        if_top = lambda a: jnp.where(aligned(shared.has_top, a), a, 0)
        base, top = yield "sum", (if_top(self.base), if_top(self.top))
        rest = yield "sum of the rest", aligned(shared.share, base) * ((self.base - base) + self.rest)
        return Mean(*renormalised(base, rest), top)

    def close(self, a: Normaliser) -> Mean:  # noqa: ARG002
        """The mean over all classes."""
        return self


class OfPayoff:
    """The mean of a payoff t [N, B] of each example and class."""

    needs_top = True
    merge, over, close = Mean.merge, Mean.over, Mean.close

    @staticmethod
    def fold(t: Array, block: Block) -> Mean:
        """The mean over the classes of a block."""
        h, ids, a, w, first = block
        t = jnp.where(jnp.isneginf(h), 0, t)
        of_top = jnp.take_along_axis(t, first[..., None], -1, mode="fill", fill_value=0)[..., 0]
        top = lax.stop_gradient(of_top)
        above = ((w * (t - top[..., None])).sum(-1) + tangent_of(of_top)) * a.inverse_mass
        base, rest = renormalised(top, above)
        # Summed again relative to the base: the sum is smaller, and so is its rounding error.
        above = ((w * (t - base[..., None])).sum(-1) + jnp.where(first < ids.size, top - base, 0)) * a.inverse_mass
        return Mean(base, lax.stop_gradient(above) + tangent_of(rest), top)

    @staticmethod
    def pull(total: Mean, ct: Mean, t: Array, at: Pulled) -> tuple[Array, Array]:
        """(the cotangent of h, that of t). <ct, E - base> would be lost if it were subtracted per class."""
        above = jnp.where(jnp.isneginf(at.h), 0, t) - total.base[..., None]
        above = put_value(above, at.position, total.top - total.base)
        paid = ct.rest[..., None]
        return at.p * (paid * above - (ct.rest * total.rest)[..., None]), paid * at.p


class OfClassValue:
    """The mean of a vector payoff v [B, E] of each class."""

    needs_top = True
    merge, over, close = Mean.merge, Mean.over, Mean.close

    @staticmethod
    def fold(v: Array, block: Block) -> Mean:
        """The mean over the classes of a block."""
        _, _, a, w, first = block
        of_top, of_others = v.at[first].get(mode="fill", fill_value=0), dot(w, v)
        top, r, inverse = lax.stop_gradient(of_top), a.r[..., None], a.inverse_mass[..., None]
        mean = (of_top + of_others) * inverse
        sure = r < 1  # E is then closer to the payoff of the top class than to 0
        above = lax.stop_gradient((of_others - r * top) * inverse)
        base, rest = renormalised(top, above)
        base = jnp.where(sure, base, lax.stop_gradient(mean))
        return Mean(base, jnp.where(sure, rest, 0) + tangent_of(mean), top)

    @staticmethod
    def pull(total: Mean, ct: Mean, v: Array, at: Pulled) -> tuple[Array, Array]:
        """(the cotangent of h, that of v)."""
        paid = lambda a: (ct.rest * a).sum(-1)
        of_top = v.at[at.position].get(mode="fill", fill_value=0)
        of_top = total.top - total.base + tangent_of(of_top)
        above = put(dot(ct.rest, v.T) - paid(total.base)[..., None], at.position, paid(of_top))
        return at.p * (above - paid(total.rest)[..., None]), outer(at.p, ct.rest)
