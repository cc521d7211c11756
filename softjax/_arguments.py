"""What the public functions accept: one sentence per refusal, with the argument, what came and what was wanted."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Axis = int | Sequence[int] | None
INT32 = jnp.iinfo("int32")


def shown(x: Any) -> str:
    """x in a message: an array by its type and shape, anything else in a few words."""
    if hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, np.generic):
        return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
    text = " ".join(repr(x).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def array(name: str, x: ArrayLike) -> Array:
    """x as an array."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"`{name}` must be an array or a number that JAX can hold, got {type(x).__name__}.") from error


def floating(name: str, x: ArrayLike) -> Array:
    """x as an array of floating-point numbers. Integers become such, of the type that `jax.nn` gives them."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype("float64" if x.dtype.itemsize == 8 else "float32")
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        raise TypeError(f"`{name}` must be real numbers of 16 bits or more, got dtype {x.dtype}.")
    return x


def floating_like(name: str, x: ArrayLike, other: Array) -> Array:
    """x as an array of floating-point numbers; integers and Python's numbers take the other's type."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.integer) or (jnp.issubdtype(x.dtype, jnp.floating) and x.weak_type):
        return x.astype(other.dtype)
    return floating(name, x)


def integers(name: str, x: ArrayLike) -> Array:
    """x as an array of integers."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got dtype {x.dtype}.")
    return x


def booleans(name: str, x: ArrayLike) -> Array:
    """x as an array of booleans."""
    x = array(name, x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be booleans, got dtype {x.dtype}.")
    return x


def scalar(name: str, x: ArrayLike) -> Array:
    """x as one floating-point number."""
    x = floating(name, x)
    if x.ndim:
        raise ValueError(f"`{name}` must be a scalar, got shape {x.shape}.")
    return x


def number(name: str, x: ArrayLike) -> ArrayLike:
    """x as one floating-point number. One of Python's stays so, with all its digits."""
    if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < jnp.finfo("float32").max:
        return float(x)
    return scalar(name, x)


def integer(name: str, x: Any, meaning: str) -> int:
    """x as an integer of Python's."""
    try:
        n = None if isinstance(x, bool | np.bool_) else operator.index(x)
    except TypeError:
        n = None
    if n is None:
        raise TypeError(f"`{name}` must be {meaning}, got {shown(x)}.")
    return n


def flag(name: str, x: bool) -> bool:
    """x, which is True or False."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {shown(x)}.")
    return bool(x)


def shape(name: str, x: Array, wanted: tuple[int, ...], meaning: str) -> None:
    """Refuses an x of another shape than `wanted`."""
    if x.shape != wanted:
        raise ValueError(f"`{name}` must have shape {wanted} ({meaning}), got {x.shape}.")


def broadcast(name: str, x: Array, wanted: tuple[int, ...], meaning: str) -> Array:
    """x broadcast to the shape `wanted`."""
    try:
        fits = jnp.broadcast_shapes(x.shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`{name}` must be broadcastable to shape {wanted} ({meaning}), got {x.shape}.")
    return jnp.broadcast_to(x, wanted)


def axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` names in an array of rank `ndim`, counted from 0."""
    if axis is None:
        given: tuple = tuple(range(ndim))
    else:
        given = tuple(axis) if isinstance(axis, Sequence) and not isinstance(axis, str | bytes) else (axis,)
    named = tuple(integer("axis", a, "an integer, a tuple of integers or None") for a in given)
    if named and ndim == 0:
        raise ValueError(f"`axis` must name an axis of the array, got {shown(axis)} for a single number.")
    for a in named:
        if not -ndim <= a < ndim:
            raise ValueError(f"`axis` must lie in [{-ndim}, {ndim}) for an array of rank {ndim}, got {shown(axis)}.")
    named = tuple(a % ndim for a in named)
    if len(set(named)) < len(named):
        raise ValueError(f"`axis` must not name an axis twice, got {shown(axis)} for an array of rank {ndim}.")
    return named


def size(name: str, n: int, meaning: str = "a positive integer") -> int:
    """n as a positive integer."""
    n = integer(name, n, meaning)
    if n < 1:
        raise ValueError(f"`{name}` must be positive, got {n}.")
    return n


def leading(name: str, tree: Any, wanted: tuple[int, ...], meaning: str) -> Any:
    """A tree of arrays [*wanted, ...] as one of arrays [N, ...], N being the number of the wanted axes' elements."""

    def flat(x):
        x = array(name, x)
        if not (x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer)):
            floating(name, x)
        if x.shape[: len(wanted)] != wanted:
            raise ValueError(f"`{name}` must hold arrays whose shapes begin with {wanted} ({meaning}), got {x.shape}.")
        return x.reshape(math.prod(wanted), *x.shape[len(wanted) :])

    return jax.tree.map(flat, tree)


def weights(x: ArrayLike | None, batch: tuple[int, ...], dtype: jnp.dtype) -> Array | None:
    """The weights [N] of the examples."""
    if x is None:
        return None
    x = floating("weights", x)
    shape("weights", x, batch, "one for each example")
    return x.reshape(-1).astype(dtype)


def equals(name: str, labels: Array, label: int) -> Array:
    """Which of the labels are the one that `name` gives."""
    label = integer(name, label, "an integer or None")
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= label <= limits.max:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(label, labels.dtype)


def reduction(x: str) -> str:
    """x, which is one of the reductions."""
    if not isinstance(x, str) or x not in ("none", "sum", "mean"):
        raise ValueError(f"`reduction` must be 'none', 'sum' or 'mean', got {shown(x)}.")
    return x


def inexact(tree: Any) -> list[Array]:
    """The floating-point arrays of a tree."""
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """The tree with its floating-point arrays of another type."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a, tree)


def common_dtype(*arrays: Array) -> jnp.dtype:
    """The floating-point type that holds all the arrays, also where JAX is told not to promote by itself."""
    size = max(a.dtype.itemsize for a in arrays)
    widest = {a.dtype for a in arrays if a.dtype.itemsize == size}
    return widest.pop() if len(widest) == 1 else jnp.dtype("float32")


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which scores and sums are computed: at least float32."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def class_ids(labels: Array, count: int, other: int = 0) -> tuple[Array, Array]:
    """(class ids, whether they are any of `count` classes); an unknown label gets the `other` id."""
    fits = count > jnp.iinfo(labels.dtype).max
    known = (labels >= 0) if fits else (labels >= 0) & (labels < count)
    return jnp.where(known, jnp.where(known, labels, jnp.zeros_like(labels)).astype(jnp.int32), other), known


def live_classes(where: ArrayLike | None, name: str, bias: ArrayLike | None, k: int, meaning: str) -> tuple:
    """(which of K classes are none of those left out, or None; the bias [K] or None)."""
    live = None
    if where is not None:
        live = booleans("where", where)
        shape("where", live, (k,), meaning)
    if bias is None:
        return live, None
    bias = floating(name, bias)
    shape(name, bias, (k,), meaning)
    possible = ~(bias < jnp.finfo(bias.dtype).min)
    return possible if live is None else live & possible, bias


def values(x: ArrayLike, k: int, classes: str) -> Array:
    """The values [K, E] of K classes."""
    x = floating("values", x)
    if x.ndim != 2:
        raise ValueError(f"`values` must have shape [K, E], got {x.shape}.")
    shape("values", x, (k, x.shape[1]), f"[K, E] for the K of `{classes}`")
    return x


def only(live: Array | None, per_class: Any) -> Any:
    """A tree of arrays [K, ...], with numbers of 0 for the classes that are left out."""
    if live is None:
        return per_class
    zero = lambda a: jnp.where(live.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)
    return jax.tree.map(lambda a: zero(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a, per_class)
