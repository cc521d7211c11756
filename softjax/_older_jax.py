"""Functions that JAX 0.8 and 0.9 have under other names than JAX 0.10, or not for all arguments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

_IS_10 = jax.__version_info__ >= (0, 10)
_lax: Any = lax  # with names that the newer JAX, which the types are checked with, does not have


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of the surrounding `jax.shard_map` along which an array varies."""
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def as_varying(x: Array, axes: tuple[str, ...]) -> Array:
    """The array, typed as varying along the axes."""
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return _lax.pvary(x, axes)  # pragma: no cover


def gather_shards(x: Array, axes: tuple[str, ...], *, replicated: bool) -> Array:
    """The shards [N, ...] of all devices, typed as replicated or as varying."""
    if replicated and not _IS_10:  # pragma: no cover
        return _summed_shards(x, axes)
    return lax.all_gather(x, axes, tiled=True, **({"to": "invarying"} if replicated else {}))


def _summed_shards(x, axes):  # pragma: no cover
    """The shards as a sum over devices of arrays that are 0 elsewhere: twice the traffic of what JAX 0.10 does."""
    shape = (x.shape[0] * lax.axis_size(axes), *x.shape[1:])
    zeros = as_varying(jnp.zeros(shape, x.dtype), tuple(sorted(varying_axes(x))))
    return lax.psum(lax.dynamic_update_slice_in_dim(zeros, x, lax.axis_index(axes) * x.shape[0], 0), axes)


def linear_transpose(function: Callable, *arguments: Any) -> Callable:
    """`jax.linear_transpose`, for arguments that are pytrees of arrays or of their types (`jax.core.ShapedArray`).

    JAX 0.8 and 0.9 refuse loops that they have not linearised themselves, so there it is the derivative at 0.
    """
    if _IS_10:
        return jax.linear_transpose(function, *arguments)
    return jax.vjp(function, *jax.tree.map(_varying_zeros, arguments))[1]  # pragma: no cover


def _varying_zeros(like):  # pragma: no cover
    zeros = jnp.zeros(like.shape, like.dtype)
    axes = like.vma if hasattr(like, "vma") else varying_axes(like)
    return as_varying(zeros, tuple(sorted(axes))) if axes else zeros
