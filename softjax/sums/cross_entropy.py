"""The cross entropy C = sum_k y_k (A - h_k) of label weights y, Y = sum_k y_k.

dC = sum_k (Y p_k - y_k) dh_k + sum_k (A - h_k) dy_k
"""

from __future__ import annotations

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..arguments.signatures import readable
from .columns import Weights
from .context import Block, Merged, Pulled
from .devices import Steps
from .labels import Labels
from .normaliser import Normaliser, Over
from .products import as_row, choose, finite
from .unknown import nan_if_moved, nan_unless


@readable
class CrossEntropy(NamedTuple):
    """The cross entropy of the label weights y and p."""

    sum: Array  # [N] sum_k y_k (A - h_k); with m in place of A until `close`
    weight: Array  # [N] sum_k y_k
    of_ids: Array  # [N, T] the scores of the labels
    seen: Array  # [N, T] 1 where the label was one of the classes, else 0

    @property
    def known(self) -> Array:
        """Whether the labels are classes."""
        return (self.seen == 1).all(-1)


class OfLabels:
    """The cross entropy of label weights."""

    needs_top = False

    @staticmethod
    def fold(y: Weights, block: Block) -> CrossEntropy:
        """The sum over the classes of a block."""
        h, labels = block.h, Labels(y.ids, block.ids)
        weights, of_ids = jnp.where(labels.here, y.of_ids, 0), labels.take(h)
        below = lambda h: finite(block.a.m)[..., None] - h
        cost, weight = (weights * jnp.where(weights == 0, 0, below(of_ids))).sum(-1), weights.sum(-1)
        if y.per_class is not None:
            more = _of_rows(y.per_class, h)
            cost += (more * jnp.where(jnp.isneginf(h) & (more == 0), 0, below(h))).sum(-1)
            weight += more.sum(-1)
        return CrossEntropy(cost, weight, of_ids, labels.here.astype(cost.dtype))

    @staticmethod
    def merge(left: CrossEntropy, right: CrossEntropy, both: Merged) -> CrossEntropy:
        """The sum over the classes of both."""
        high, low = jax.tree.map(ft.partial(choose, both.left_wins), (left, right), (right, left))
        gap = finite(jnp.maximum(both.left.m, both.right.m)) - finite(jnp.minimum(both.left.m, both.right.m))
        total = high.sum + (low.sum + low.weight * gap)
        return CrossEntropy(total, high.weight + low.weight, high.of_ids + low.of_ids, high.seen + low.seen)

    @staticmethod
    def over(total: CrossEntropy, shared: Over) -> Steps:
        """The steps of the sum over the classes of all devices."""
        yield "max", ()  # the maximum of the normaliser is known after it
        gap = finite(shared.m) - finite(shared.a.m)
        return (yield "sum", total._replace(sum=total.sum + total.weight * gap))

    @staticmethod
    def close(total: CrossEntropy, a: Normaliser) -> CrossEntropy:
        """The cross entropy, for the normaliser a of all classes; NaN where a label is no class."""
        return total._replace(sum=nan_unless(total.known, total.sum + total.weight * a.log.rest))

    @staticmethod
    def pull(total: CrossEntropy, ct: CrossEntropy, y: Weights, at: Pulled) -> tuple[Array, Weights]:
        """(the cotangent Y p_k - y_k of h, that of y, A - h_k)."""
        h, a, labels, size = at.h, at.a, Labels(y.ids, at.ids), at.ids.size
        d = nan_if_moved(total.known, ct.sum)[..., None]
        of_labels = labels.summed(y.of_ids, size)
        if y.per_class is None:
            dh = at.w * (d * (total.weight * a.inverse_mass)[..., None])
        elif y.per_class.ndim < h.ndim:
            dh = at.w * (d * (total.weight * a.inverse_mass)[..., None])
            dh -= d * jnp.where(jnp.isneginf(h), 0, _of_rows(y.per_class, h))
            of_labels += y.per_class[labels.clipped]
        else:  # any class may have all of the weight: as at a label below
            more = y.per_class
            gap = at.p * (total.weight[..., None] - more) - more * a.complement(h)
            dh = d * jnp.where(jnp.isneginf(h), 0, gap)
            of_labels += labels.take(more)
        # At a label, p_k (Y - y_k) - y_k (1 - p_k), where 1 - p_k is summed from the other classes: its digits are in
        # the score from which the maximum was taken; the score computed again may be rounded in another way.
        gap = a.weights(total.of_ids) * a.inverse_mass[..., None] * (total.weight[..., None] - of_labels)
        gap -= of_labels * a.complement(total.of_ids)
        at_labels = d * gap + labels.summed(ct.of_ids, size)
        dh = labels.put(jnp.where(jnp.isneginf(total.of_ids), 0, at_labels), dh)

        def cost(h):  # A - h_k, or 0 for a masked class
            is_class = ~jnp.isneginf(h)
            above = (finite(a.m)[..., None] - jnp.where(is_class, h, 0)) + a.log.rest[..., None]
            return jnp.where(is_class, above, 0)

        of_ids = jnp.where(labels.here, d * cost(total.of_ids) + ct.weight[..., None], 0)
        if y.per_class is None:
            return dh, Weights(y.ids, of_ids)
        of_all = d * cost(h) + ct.weight[..., None]
        of_all = of_all.sum(tuple(range(h.ndim - 1))) if y.per_class.ndim < h.ndim else of_all
        return dh, Weights(y.ids, of_ids, of_all)


def _of_rows(a, h):
    """a [B] or [N, B] in the rank of the scores."""
    return a if a.ndim == h.ndim else as_row(a, h.ndim - 1)
