"""Functions of global arrays over a mesh of devices, by `jax.shard_map`.

Every device computes with its shard of the classes, of the examples, or of both. The traffic of the network does not
depend on the number of classes.
"""

from __future__ import annotations

import functools as ft
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..arguments import checks
from ..arguments.table import ARGUMENTS
from ..parallel import collectives
from ..parallel.placed import placed_logits
from .constructors import as_logits


def over_mesh(function: Callable, given: inspect.BoundArguments, of_result: Callable) -> Any:
    """The result of a function of placed logits and of global arrays, by each device for its shard."""
    arrays, static = {}, {}
    for name, x in _with_masks_in_logits(given).items():
        if x is None or isinstance(x, str | bool | int | float) or ARGUMENTS[name].role == "static":
            static[name] = _hashable(name, x)
        else:
            arrays[name] = _as_arrays(name, x)
    return _over_mesh(function, of_result, tuple(static.items()), arrays)


@ft.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _over_mesh(function, of_result, static, arrays):
    first = placed_logits(arrays.values())
    placed, shape = first.placed, first.shape
    _check_examples(shape, placed)
    has_ids = bool({"ignore_index", "scores"} & set(inspect.signature(function).parameters))
    parts = {name: _argument(name, x, placed, shape, has_ids) for name, x in arrays.items()}
    arrays, specs = ({name: part[i] for name, part in parts.items()} for i in (0, 1))

    def local(arrays):
        on_device = {name: _inside(x, placed, shape) for name, x in arrays.items()}
        return function(**on_device, **dict(static))

    arrays = jax.tree.map(lambda spec, a: _resharded(placed.devices, spec, a), specs, arrays, is_leaf=_is_spec)
    axes = {*placed.classes, *placed.examples}
    out = of_result(placed.of_examples(), dict(static) | arrays)
    return jax.shard_map(local, mesh=placed.devices, in_specs=(specs,), out_specs=out, axis_names=axes)(arrays)


def _with_masks_in_logits(given):
    """The arguments, with a mask of classes in the logits: a shard of it might have the shape of one of examples."""
    arguments = dict(given.arguments)
    where = arguments.get("where")
    if where is None:
        return arguments
    shape = placed_logits(arguments.values()).shape
    if "labels" in arguments and not callable(where):  # as in optax, one boolean per example
        of_examples = checks.mask_of_examples(where, shape)
        if of_examples is not None:
            return arguments | {"where": of_examples}
    of = "a" if "a" in arguments else "logits"
    return arguments | {of: as_logits(of, arguments[of]).masked("where", where), "where": None}


def _hashable(name, x):
    x = tuple(x) if isinstance(x, list) else x
    try:
        hash(x)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a Python number, string or tuple, got {checks.shown(x)}.") from error
    return x


def _as_arrays(name, x):
    """An argument as a pytree of arrays."""
    if ARGUMENTS[name].role == "replicated":
        return jax.tree.map(jnp.asarray, _partials(x))
    if isinstance(x, tuple):
        return tuple(_as_arrays(name, one) for one in x)
    if hasattr(x, "partitioned") or name in ("example", "per_class"):
        return x
    return checks.array(name, x)


def _is_spec(x):
    return isinstance(x, P)


def _check_examples(shape, placed):
    if len(shape) <= len(placed.batch):
        raise ValueError(f"`logits` must have leading axes to be sharded over {placed.batch}, got {shape}.")
    for n, axes in zip(shape, placed.batch, strict=False):
        count = collectives.devices_along(placed.devices, axes)
        if n % count:
            raise ValueError(f"`logits` must have leading axes that {count} devices of {axes} divide, got {shape}.")


def _argument(name, x, placed, shape, has_ids):
    """(the arrays of an argument, their partitions)."""
    if isinstance(x, tuple) and any(hasattr(one, "partitioned") for one in x):
        parts = [_argument(name, one, placed, shape, has_ids) for one in x]
        return tuple(part[0] for part in parts), tuple(part[1] for part in parts)
    if hasattr(x, "partitioned"):
        if x.placed not in (None, placed):
            raise ValueError("`logits` must be sharded over the same mesh and axes.")
        return x.partitioned(placed)
    if ARGUMENTS[name].role == "replicated":
        return x, jax.tree.map(lambda _: P(), x)
    if name in ("logits", "p", "q") and not isinstance(x, tuple):
        checks.shape(name, x, shape, "that of the other logits")
        return as_logits(name, x).partitioned(placed)
    if name == "values" or (name == "labels" and not isinstance(x, tuple) and not (has_ids and _is_integer(x))):
        return _of_pairs(name, x, placed, shape)
    axes, of_array = (shape[-1:], "classes") if name == "per_class" else (shape[: len(placed.batch)], "leading axes")
    for a in jax.tree.leaves(x):
        if jnp.shape(a)[: len(axes)] != axes:
            got = f"{axes}, the {of_array} of the logits, got {jnp.shape(a)}"
            raise ValueError(f"`{name}` must have a shape that begins with {got}.")
    if name == "per_class":
        return jax.tree.map(lambda a: placed.padded(a, 0, *axes), x), jax.tree.map(lambda _: placed.of_classes(), x)
    return x, jax.tree.map(lambda _: placed.of_examples(), x)


def _is_integer(x):
    return jnp.issubdtype(x.dtype, jnp.integer)


def _of_pairs(name, a, placed, shape):
    """The same for an array that broadcasts to the logits [..., K]."""
    a = checks.array(name, a)
    over = (*placed.batch, *[()] * (len(shape) - 1 - len(placed.batch)), placed.classes)
    if not checks.broadcasts(a.shape, shape):
        raise ValueError(f"`{name}` must broadcast to the logits {shape}, got shape {a.shape}.")
    names = zip(a.shape, shape[len(shape) - a.ndim :], over[len(shape) - a.ndim :], strict=True)
    spec = P(*((axes or None) if n == m else None for n, m, axes in names))
    has_classes = a.ndim and a.shape[-1] == shape[-1]
    return placed.padded(a, -1, shape[-1]) if has_classes else a, spec


def _partials(x):
    """A loss, or losses, as pytrees of their numbers and arrays."""
    if hasattr(x, "partials"):
        return x.partials()
    return tuple(map(_partials, x)) if isinstance(x, tuple) else x


def _inside(x, placed, shape):
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return tuple(_inside(one, placed, shape) for one in x)
    return x.of_device(placed.shards(shape[-1])) if hasattr(x, "of_device") else x


def _resharded(mesh, spec, x):
    """Arrays, resharded along the explicit axes of a mesh."""
    explicit = collectives.explicit_axes(mesh)
    if not explicit:
        return x
    known = P(*(tuple(name for name in axes if name in explicit) or None for axes in collectives.axes_of(spec)))
    return jax.tree.map(lambda a: jax.sharding.reshard(a, NamedSharding(mesh, known)), x)
