"""The labels of examples, as positions in a block of classes."""

import jax.numpy as jnp
from jax import Array


class Labels:
    """Labels [N, T] of N examples, of which some are in a block of B consecutive class ids."""

    def __init__(self, labels: Array, ids: Array):
        self.position = labels - ids[0]
        in_range = (self.position >= 0) & (self.position < ids.size)
        self.clipped = jnp.where(in_range, self.position, 0)
        self.here = in_range & (ids[self.clipped] == labels)  # False at padding, which has no id

    def take(self, a: Array) -> Array:
        """The entries [N, T] of a [N, B] at the labels; 0 for a label in another block."""
        return jnp.where(self.here, jnp.take_along_axis(a, self.clipped, -1), 0)

    def put(self, values: Array, into: Array) -> Array:
        """`into` [N, B] with `values` [N, T] at the labels; labels of one class must have equal values."""
        if self.position.shape[-1] == 1:
            is_label = jnp.arange(into.shape[-1], dtype=self.position.dtype)[None] == self.position
            return jnp.where(is_label, values, into)
        repeats = self.summed(jnp.ones_like(values), into.shape[-1])
        is_label = self._scattered(jnp.ones_like(values), into.shape[-1]) > 0
        return jnp.where(is_label, 0, into) + self._scattered(values / jnp.maximum(repeats, 1), into.shape[-1])

    def summed(self, a: Array, block: int) -> Array:
        """For each label, the sum of `a` [N, T] over the labels of the same class."""
        return a if self.position.shape[-1] == 1 else self.take(self._scattered(a, block))

    def _scattered(self, a, block):
        rows, columns = jnp.arange(a.shape[0])[:, None], jnp.where(self.here, self.position, block)
        return jnp.zeros((a.shape[0], block), a.dtype).at[rows, columns].add(a, mode="drop")
