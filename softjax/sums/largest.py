"""The largest score of each example."""

import jax.numpy as jnp
from jax import Array, lax


def largest(h: Array) -> tuple[Array, Array]:
    """The largest of scores [N, B] and its position, the first at a tie. NaN counts as the largest."""

    def sorted_first(h):
        value, position = lax.top_k(h, 1)
        return value[..., 0], position[..., 0]

    def reduced(h):
        position = lax.argmax(h, h.ndim - 1, jnp.int32)
        return jnp.take_along_axis(h, position[..., None], -1)[..., 0], position

    # CPUs reduce pairs of a value and a position one by one, ten times slower than they sort out the largest.
    return lax.platform_dependent(h, cpu=sorted_first, default=reduced)
