"""NaN for the losses of examples whose label is none of the classes.

The derivative of such a loss is NaN too, but 0 where its cotangent is 0: a row that a mask leaves out after the loss,
as in `jnp.where(mask, loss, 0)`, has gradient 0. A factor of NaN would make it NaN.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core
from jax.interpreters import ad, batching, mlir


def nan_unless(known: Array, x: Array) -> Array:
    """x, or NaN where `known` is False, in value and derivative; `known` has the shape of x, or of its first axes."""
    return _nan_p.bind(x, _shaped_as(known, x), always=True)


def nan_if_moved(known: Array, ct: Array) -> Array:
    """The cotangent, or NaN where `known` is False and it is not 0: the transpose of `nan_unless`."""
    return _nan_p.bind(ct, _shaped_as(known, ct), always=False)


def _shaped_as(known, x):
    return jnp.broadcast_to(known.reshape(known.shape + (1,) * (x.ndim - known.ndim)), x.shape)


def _nan(x, known, always):
    with jax.enable_x64(x.dtype.itemsize == 8):  # `_partition` lowers it in a thread where that may be off
        return jnp.where(known if always else known | (x == 0), x, jnp.nan)


# It counts as linear in x. A tangent of an unknown loss is always NaN, a cotangent if it is not 0.
_nan_p = core.Primitive("softjax_nan")
_nan_p.def_impl(jax.jit(_nan, static_argnames="always"))
_nan_p.def_abstract_eval(lambda x, *_, **__: x)
mlir.register_lowering(_nan_p, mlir.lower_fun(_nan, multiple_results=False))


def _jvp_of_nan(primals, tangents, *, always):
    (x, known), (dx, _) = primals, tangents
    out = _nan_p.bind(x, known, always=always)
    if isinstance(dx, ad.Zero) and not always:
        return out, dx
    return out, _nan_p.bind(ad.instantiate_zeros(dx), known, always=always)


def _transpose_of_nan(ct, _, known, *, always):
    return (ct if isinstance(ct, ad.Zero) else _nan_p.bind(ct, known, always=not always)), None


def batched_in_front(args: tuple, axes: tuple) -> list[Array]:
    """The arguments of a batching rule, all with the batch as their first axis."""
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    front = lambda a, axis: jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
    return [front(a, axis) for a, axis in zip(args, axes, strict=True)]


def _batch_of_nan(args, axes, *, always):
    return _nan_p.bind(*batched_in_front(args, axes), always=always), 0


ad.primitive_jvps[_nan_p] = _jvp_of_nan
ad.primitive_transposes[_nan_p] = _transpose_of_nan
batching.primitive_batchers[_nan_p] = _batch_of_nan
