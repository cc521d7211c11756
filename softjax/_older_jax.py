"""Functions that JAX 0.8 and 0.9 have under other names than JAX 0.10, or not for all arguments."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of the surrounding `jax.shard_map` along which an array varies."""
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def as_varying(x: Array, axes: tuple[str, ...]) -> Array:
    """The array, typed as varying along the axes."""
    if _NEWER:
        return lax.pcast(x, axes, to="varying")
    return _lax.pvary(x, axes)  # pragma: no cover


def gathered(x: Array, axes: tuple[str, ...], *, replicated: bool) -> Array:
    """The shards [N, ...] of all devices, typed as replicated or as varying."""
    if _NEWER:
        return lax.all_gather(x, axes, tiled=True, to="invarying" if replicated else "varying")
    gather = _lax.all_gather_invariant if replicated else lax.all_gather  # pragma: no cover
    return gather(x, axes, tiled=True)  # pragma: no cover


def linear_transpose(function: Callable, arguments: Sequence[Any]) -> Callable:
    """`jax.linear_transpose` for arguments of these types (`jax.core.ShapedArray`).

    JAX 0.8 and 0.9 refuse loops that they have not linearised themselves, so there it is the derivative at 0.
    """
    if _TRANSPOSES_LOOPS:
        return jax.linear_transpose(function, *arguments)
    return jax.vjp(function, *map(_zeros, arguments))[1]  # pragma: no cover


def _zeros(kind):  # pragma: no cover
    zeros, axes = jnp.zeros(kind.shape, kind.dtype), tuple(sorted(kind.vma))
    return as_varying(zeros, axes) if axes else zeros


_TRANSPOSES_LOOPS = jax.__version_info__ >= (0, 10)
_NEWER = hasattr(lax, "pcast")  # from JAX 0.9 on
_lax: Any = lax  # with names that the newer JAX, which the types are checked with, does not have
