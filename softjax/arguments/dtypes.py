"""Floating-point types: the common type of arrays, and the type in which sums are computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

EXAMPLES, PAIRS = "examples", "pairs"
"""what an array is: its first axis is that of the examples; or it is [N, K], of examples and classes"""


def is_inexact(a: Array) -> bool:
    """Whether an array has floating-point numbers."""
    return jnp.issubdtype(a.dtype, jnp.inexact)


def inexact_leaves(tree: Any) -> list[Array]:
    """The floating-point arrays of a tree."""
    return [a for a in jax.tree.leaves(tree) if is_inexact(a)]


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """The tree with its floating-point arrays converted to `dtype`."""
    return jax.tree.map(lambda a: a.astype(dtype) if is_inexact(a) else a, tree)


def cast_unless_half(tree: Any, dtype: jnp.dtype) -> Any:
    """The same, except for half-precision arrays, which are converted later, one block at a time."""
    return jax.tree.map(lambda a: a.astype(dtype) if is_inexact(a) and a.dtype.itemsize >= 4 else a, tree)


def common_dtype(*arrays: Any) -> jnp.dtype:
    """The floating-point type that holds the types of all the arrays, also under strict type promotion."""
    size = max(a.dtype.itemsize for a in arrays)
    widest = {a.dtype for a in arrays if a.dtype.itemsize == size}
    return widest.pop() if len(widest) == 1 else jnp.dtype("float32")


def compute_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which scores and sums are computed: at least float32."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def widened(a: Array) -> Array:
    """The array in the type in which it is computed with; integers stay."""
    return a.astype(compute_dtype(a.dtype)) if is_inexact(a) else a


def split(tree: Any) -> tuple[Any, Any]:
    """(the inexact leaves, the other leaves) of a tree, each with None where the other has one."""
    return (
        jax.tree.map(lambda a: a if is_inexact(a) else None, tree),
        jax.tree.map(lambda a: None if is_inexact(a) else a, tree),
    )


def join(inexact: Any, others: Any) -> Any:
    """The tree that `split` divided."""
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, others, is_leaf=lambda a: a is None)


def zeroed(live: Array | None, tree: Any) -> Any:
    """A tree of class arrays [K, ...], with 0 in the inexact arrays for the classes that are left out."""
    if live is None:
        return tree
    zero = lambda a: jnp.where(live.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)
    return jax.tree.map(lambda a: zero(a) if is_inexact(a) else a, tree)
