"""Weights of the examples, and the sum and the mean of their losses."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ..parallel import collectives
from ..sums.unknown import nan_unless


class Examples(NamedTuple):
    """How the examples [N] count: a pytree."""

    weights: Array | None = None  # factors of the losses
    kept: Array | None = None  # False for an example with loss and gradient 0 that is left out of the mean
    known: Array | None = None  # False for an example with loss and gradient NaN
    sound: Array | None = None  # False for one of weight 0 whose data are no numbers: its loss is 0

    def reduced(self, reduction: str, n: int, dtype: jnp.dtype, axes: collectives.Names) -> "Examples":
        """The examples with weights w for which sum(w losses) over all devices of the axes is the reduction."""
        weights, kept, known, sound = self
        if reduction == "mean":
            # The mean is taken by weights, as dividing a gradient later would read and write it once more.
            if weights is None and kept is None and isinstance(n, int):  # it may be symbolic
                weights = jnp.full(n, 1 / max(n * collectives.device_count(axes), 1), dtype)
            else:
                weights = mean_weights(jnp.ones(n, dtype) if weights is None else weights, kept, axes)
        return Examples(weights, kept, known, sound)

    def weighted(self, losses: Array) -> Array:
        """The losses [N, ...], times their weights, NaN where they are not known and 0 where they are not kept."""
        if self.known is not None:
            losses = nan_unless(self.known, losses)
        for counts in (self.kept, self.sound):
            if counts is not None:
                losses = jnp.where(jnp.expand_dims(counts, range(1, losses.ndim)), losses, 0)
        return losses if self.weights is None else _product(losses, self.weights)


def mean_weights(weights: Array, kept: Array | None = None, axes: collectives.Names = ()) -> Array:
    """The weights [N] whose sum of losses is the mean."""
    total = collectives.psum((weights if kept is None else jnp.where(kept, weights, 0)).sum(), axes)
    return jnp.where(total == 0, 0, weights / jnp.where(total == 0, 1, total))


def _product(loss, weights):
    """loss * weights, where a weight of 0 makes any loss 0; an infinite loss has no derivative."""
    weights = jnp.expand_dims(weights, range(1, loss.ndim))
    dead = (weights == 0) & ~jnp.isfinite(loss)
    still = dead | jnp.isinf(loss)
    as_constant = jnp.where(dead, 0, loss) * lax.stop_gradient(weights)
    return jnp.where(still, as_constant, jnp.where(still, 0, loss) * weights)
