"""NaN for the losses of examples whose label is none of the classes.

The derivative of such a loss is NaN too, but 0 where its cotangent is 0: a row that a mask leaves out after the loss,
as in `jnp.where(mask, loss, 0)`, has gradient 0. A factor of NaN would make it NaN.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal

from .._jax import elementwise


def nan_unless(known: Array, x: Array) -> Array:
    """x, or NaN where `known` is False, in value and derivative; `known` has the shape of x, or of its first axes."""
    return _nan_where(x, _shaped_as(known, x), always=True)


def nan_if_moved(known: Array, ct: Array) -> Array:
    """The cotangent, or NaN where `known` is False and it is not 0: the transpose of `nan_unless`."""
    return _nan_where(ct, _shaped_as(known, ct), always=False)


def unmovable(x: Array, like: Array) -> Array:
    """x, a constant of differentiation that is not to be used as more: its derivative is NaN where something uses it.

    Args:
        x: an array.
        like: an array that broadcasts to x, and depends on what x depends on.
    """
    return lax.stop_gradient(x) + _without_derivative(jnp.broadcast_to(like, x.shape)).astype(x.dtype)


def _shaped_as(known, x):
    return jnp.broadcast_to(known.reshape(known.shape + (1,) * (x.ndim - known.ndim)), x.shape)


def _nan(x, known, always):
    return jnp.where(known if always else known | (x == 0), x, jnp.nan)


def _jvp_of_nan(primals, tangents, *, always):
    (x, known), (dx, _) = primals, tangents
    out = _nan_where(x, known, always=always)
    if dx is None and not always:
        return out, None
    return out, _nan_where(zero_from_primal(x) if dx is None else dx, known, always=always)


# It counts as linear in x. A tangent of an unknown loss is always NaN, a cotangent if it is not 0.
_nan_where: Callable = elementwise(
    "softjax_nan",
    _nan,
    _jvp_of_nan,
    lambda ct, _, known, *, always: _nan_where(ct, known, always=not always),
    static=("always",),
)


def _jvp_of_unmovable(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _without_derivative(x), None if dx is None else _nan_where(dx, jnp.zeros(dx.shape, bool), always=True)


_without_derivative: Callable = elementwise("softjax_unmovable", jnp.zeros_like, _jvp_of_unmovable)
