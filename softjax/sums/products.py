"""Matrix products in full precision, and small operations on rows."""

import jax.numpy as jnp
from jax import Array, lax


def dot(a: Array, b: Array) -> Array:
    """The matrix product a [..., I] @ b [I, J] in the full precision of the operands, on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def outer(p: Array, d: Array) -> Array:
    """The sum over the examples of p_k d_e [B, E], for p [..., B] and d [..., E]."""
    examples = tuple(range(p.ndim - 1))
    product = lambda p, d: jnp.tensordot(p, d, (examples, examples), precision=lax.Precision.HIGHEST)
    # CPUs transpose the first operand, element by element: d has fewer. The barrier keeps the order.
    transposed = lambda p, d: lax.optimization_barrier(product(d, p)).T
    return lax.platform_dependent(p, d, cpu=transposed, default=product)


def finite(m: Array) -> Array:
    """The maximum m, or the lowest finite number where it is -inf: exp(-inf - m) is then 0.

    A selection would have the same value, and end the fusion of a whole softmax into one pass on CPUs.
    """
    return jnp.maximum(m, jnp.finfo(m.dtype).min)


def as_row(a: Array, ndim: int) -> Array:
    """a [B] with `ndim` leading axes."""
    return a.reshape((1,) * ndim + a.shape)


def aligned(a: Array, b: Array) -> Array:
    """a [N] with as many axes as b [N, ...]."""
    return a.reshape(a.shape + (1,) * (b.ndim - a.ndim))


def choose(condition: Array, a: Array, b: Array) -> Array:
    """a where `condition` [N], else b."""
    return jnp.where(aligned(condition, a), a, b)
