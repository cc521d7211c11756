"""Checks of arguments, which return the argument in the checked form.

A refusal is one sentence with the argument, the form that it must have, and the value that came.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.typing import ArrayLike

Axis = int | Sequence[int] | None
Where = ArrayLike | Callable[..., Any] | None
INT32 = jnp.iinfo("int32")


def shown(x: Any) -> str:
    """x as it appears in a message: an array by its type and shape, anything else by its repr, shortened."""
    if hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, np.generic):
        return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
    text = " ".join(repr(x).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def array(name: str, x: ArrayLike) -> Array:
    """x as an array."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        known = f"`{name}` must be an array or a number that JAX can hold, got {type(x).__name__}"
        raise TypeError(f"{known}{_hint(name, x)}.") from error


def _hint(name, x):
    """Where the array is, of parameters and layers of Flax."""
    if hasattr(x, "unbox"):
        return f": give it unboxed, `{name}.unbox()`"
    if hasattr(x, "kernel"):
        return ": give its `.kernel`"
    return ": give its ['kernel']" if isinstance(x, dict) and "kernel" in x else ""


def floating(name: str, x: ArrayLike) -> Array:
    """x as an array of floating-point numbers; integers are promoted as in `jax.nn`."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype("float64" if x.dtype.itemsize == 8 else "float32")
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        raise TypeError(f"`{name}` must be real numbers of 16 bits or more, got dtype {x.dtype}.")
    return x


def floating_like(name: str, x: ArrayLike, other: Array) -> Array:
    """x as an array of floating-point numbers; integers and Python numbers take the type of `other`."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.integer) or (jnp.issubdtype(x.dtype, jnp.floating) and x.weak_type):
        return x.astype(other.dtype)
    return floating(name, x)


def integers(name: str, x: ArrayLike) -> Array:
    """x as an array of integers. One of 64 bits that JAX would wrap to 32 becomes the largest or least of these."""
    is_wide = isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "iu" and x.dtype.itemsize == 8
    if is_wide and jax.dtypes.canonicalize_dtype(np.int64) != np.int64:
        x = np.clip(x, INT32.min, INT32.max).astype(np.int32)
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        hint = f": `{name}.astype(int)` if they are class ids" if jnp.issubdtype(x.dtype, jnp.floating) else ""
        raise TypeError(f"`{name}` must be integers, got dtype {x.dtype}{hint}.")
    return x


def booleans(name: str, x: ArrayLike) -> Array:
    """x as an array of booleans."""
    x = array(name, x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be booleans, got dtype {x.dtype}.")
    return x


def floating_dtype(name: str, dtype: Any) -> jnp.dtype:
    """The floating-point type."""
    try:
        found = jnp.dtype(dtype)
        jnp.finfo(found)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a floating-point type, got {shown(dtype)}.") from error
    return found


def scalar(name: str, x: ArrayLike) -> Array:
    """x as one floating-point number, an array of rank 0."""
    x = floating(name, x)
    if x.ndim:
        raise ValueError(f"`{name}` must be a scalar, got shape {x.shape}.")
    return x


def number(name: str, x: ArrayLike) -> ArrayLike:
    """x as one floating-point number; a Python number stays one, with all its digits."""
    if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < jnp.finfo("float32").max:
        return float(x)
    return scalar(name, x)


def integer(name: str, x: Any, meaning: str) -> int:
    """x as a Python integer."""
    try:
        n = None if isinstance(x, bool | np.bool_) else operator.index(x)
    except TypeError:
        n = None
    if n is None:
        raise TypeError(f"`{name}` must be {meaning}, got {shown(x)}.")
    return n


def flag(name: str, x: bool) -> bool:
    """x as a Python boolean."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {shown(x)}.")
    return bool(x)


def shape(name: str, x: Array, wanted: tuple[int, ...], meaning: str) -> None:
    """Refuses an array of another shape."""
    if x.shape != wanted:
        raise ValueError(f"`{name}` must have shape {wanted} ({meaning}), got {x.shape}.")


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of a shape can be broadcast to another."""
    try:
        return jnp.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


def mask_of_examples(where: ArrayLike, shape: tuple[int, ...]) -> Array | None:
    """A mask of the examples of logits [..., K], as in optax, as booleans [...]; None for a mask of classes."""
    where = booleans("where", where)
    if where.shape == shape[:-1]:
        return where
    is_column = where.ndim and where.shape[-1] == 1 < shape[-1]
    return jnp.broadcast_to(where[..., 0], shape[:-1]) if is_column else None


def broadcast(name: str, x: Array, wanted: tuple[int, ...], meaning: str) -> Array:
    """x, broadcast to a shape."""
    if not broadcasts(x.shape, wanted):
        raise ValueError(f"`{name}` must be broadcastable to shape {wanted} ({meaning}), got {x.shape}.")
    return jnp.broadcast_to(x, wanted)


def axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` names in an array of rank `ndim`, counted from 0."""
    several = isinstance(axis, Sequence) and not isinstance(axis, str | bytes)
    given: Any = range(ndim) if axis is None else axis if several else (axis,)
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


def positive(name: str, n: int, meaning: str = "a positive integer") -> int:
    """n as a positive Python integer."""
    n = integer(name, n, meaning)
    if n < 1:
        raise ValueError(f"`{name}` must be positive, got {n}.")
    return n


def sizes(name: str, shape: Any) -> tuple[int, ...]:
    """A shape: a tuple or list of integers, or one integer."""
    given = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    found = tuple(integer(name, n, "an integer or a tuple of integers") for n in given)
    if any(n < 0 for n in found):
        raise ValueError(f"`{name}` must hold sizes of at least 0, got {shown(shape)}.")
    return found


def key(name: str, x: Any) -> Array:
    """A key of `jax.random`; one of the older form, an array of integers, becomes one."""
    try:
        found = jnp.asarray(x)
        found = found if jnp.issubdtype(found.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"`{name}` must be a key of `jax.random`, got {shown(x)}.") from error
    if found.ndim:
        raise ValueError(f"`{name}` must be one key, got an array of shape {found.shape}.")
    return found


def leading(name: str, tree: Any, wanted: tuple[int, ...], meaning: str) -> Any:
    """A tree of arrays [*wanted, ...], with the wanted axes flattened: [N, ...]."""

    def flat(x):
        x = array(name, x)
        if not (x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer)):
            floating(name, x)
        if x.shape[: len(wanted)] != wanted:
            raise ValueError(f"`{name}` must hold arrays whose shapes begin with {wanted} ({meaning}), got {x.shape}.")
        return x.reshape(math.prod(wanted), *x.shape[len(wanted) :])

    return jax.tree.map(flat, tree)


def example_weights(x: ArrayLike | None, batch: tuple[int, ...], dtype: jnp.dtype) -> Array | None:
    """The weights of the examples, [N]."""
    if x is None:
        return None
    x = array("weights", x)
    x = x.astype(dtype) if x.dtype == jnp.bool_ else floating("weights", x)
    x = x[..., 0] if x.shape == (*batch, 1) else x
    shape("weights", x, batch, "one for each example")
    return x.reshape(-1).astype(dtype)


def equals(name: str, labels: Array, label: int) -> Array:
    """Which of the labels equal the label given as the argument `name`."""
    label = integer(name, label, "an integer or None")
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= label <= limits.max:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(label, labels.dtype)


def reduction(x: str | None) -> str:
    """The name of a reduction; None for "none"."""
    if x is None:
        return "none"
    if not isinstance(x, str) or x not in ("none", "sum", "mean"):
        raise ValueError(f"`reduction` must be 'none', 'sum' or 'mean', got {shown(x)}.")
    return x


def class_ids(labels: Array, count: int, other: int = 0) -> tuple[Array, Array]:
    """(class ids, True where a label is one of the `count` classes); any other label gets the `other` id."""
    if export.is_symbolic_dim(count):
        wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
        known = (labels >= 0) & (wide < jnp.asarray(count, wide.dtype))
    else:
        fits = count > jnp.iinfo(labels.dtype).max
        known = (labels >= 0) if fits else (labels >= 0) & (labels < count)
    return jnp.where(known, jnp.where(known, labels, jnp.zeros_like(labels)).astype(jnp.int32), other), known


def possible_classes(name: str, bias: ArrayLike | None, k: int, meaning: str) -> tuple:
    """(booleans [K], False for a class that a bias masks, or None if there is none; the bias [K] or None)."""
    if bias is None:
        return None, None
    bias = floating(name, bias)
    shape(name, bias, (k,), meaning)
    return ~(bias < jnp.finfo(bias.dtype).min), bias


def known_count(name: str, shape: tuple, k: Any) -> None:
    """Refuses a symbolic number of classes, which cannot be divided into blocks."""
    if export.is_symbolic_dim(k):
        raise ValueError(f"`{name}` must hold a known number of classes, got the symbolic shape {shape}.")


def class_values(x: ArrayLike, k: int, classes: str) -> Array:
    """The values of the classes, [K, E]."""
    x = floating("values", x)
    if x.ndim != 2:
        raise ValueError(f"`values` must have shape [K, E], got {x.shape}.")
    shape("values", x, (k, x.shape[1]), f"[K, E] for the K of `{classes}`")
    return x


def class_kernel(kernel: ArrayLike, class_axis: int) -> tuple[Array, int]:
    """(the kernel, its class axis as 0 or 1)."""
    kernel, axis = array("kernel", kernel), integer("class_axis", class_axis, "0 or -1")
    if jnp.issubdtype(kernel.dtype, jnp.integer) and kernel.dtype.itemsize == 1:
        raise TypeError(
            f"`kernel` must be floating-point numbers, got {kernel.dtype}: multiply it by its scales first."
        )
    kernel = floating("kernel", kernel)
    if axis not in (0, 1, -1):
        raise ValueError(f"`class_axis` must be 0 or -1, got {class_axis!r}.")
    axis %= 2
    if kernel.ndim != 2 or kernel.shape[axis] == 0:
        wanted = ("[K, D]", "[D, K]")[axis]
        raise ValueError(f"`kernel` must have shape {wanted} with at least one class, got {kernel.shape}.")
    known_count("kernel", kernel.shape, kernel.shape[axis])
    return kernel, axis


def precisions(x: ArrayLike | None, k: int, d: int) -> tuple[Array | None, Array | None]:
    """(precisions [K, D] or [K, 1] that differ between classes, or None; those [D] of all classes, or None)."""
    if x is None:
        return None, None
    x = floating("precisions", x)
    if x.shape not in ((k, d), (k, 1), (d,)):
        wanted = f"{(k, d)}, {(k, 1)} or {(d,)} ([K, D], [K, 1] or [D] for the shape [K, D] of `centers`)"
        raise ValueError(f"`precisions` must have shape {wanted}, got {x.shape}.")
    return (None, x) if x.ndim == 1 else (x, None)


def latents_and_centers(z: ArrayLike, centers: ArrayLike, name: str = "z") -> tuple[Array, Array]:
    """The latents [..., D] and the centers [K, D]."""
    z, centers = floating(name, z), floating("centers", centers)
    if centers.ndim != 2:
        raise ValueError(f"`centers` must have shape [K, D], got {centers.shape}.")
    if centers.shape[0] == 0:
        raise ValueError(f"`centers` must hold at least one class, got shape {centers.shape}.")
    known_count("centers", centers.shape, centers.shape[0])
    shape(name, z, (*z.shape[:-1], centers.shape[1]), "[..., D] for the D of `centers`")
    return z, centers
