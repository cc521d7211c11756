"""Mesh axes inside `jax.shard_map`: their checks, and the collectives over them.

An array varies along the mesh axes over which it is sharded, and is replicated along the others; its type says which.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import as_varying, gather_shards, varying_axes

Names = tuple[str, ...]
AxisName = str | Names | None


def axis_names(argument: str, axes: AxisName) -> Names:
    """The argument as names of mesh axes."""
    given = () if axes is None else (axes,) if isinstance(axes, str) else axes
    if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"`{argument}` must be the name of a mesh axis, a tuple of such or None, got {axes!r}.")
    if len(set(given)) < len(given):
        raise ValueError(f"`{argument}` must not name an axis twice, got {axes!r}.")
    return given


def manual_axes(argument: str, axes: AxisName) -> Names:
    """The argument as names of axes of the surrounding `jax.shard_map`."""
    given = axis_names(argument, axes)
    for name in given:
        try:
            index = lax.axis_index(name)
        except NameError as error:
            raise ValueError(f"`{argument}` must name axes of the mesh of a `jax.shard_map`, got {axes!r}.") from error
        if name not in varying(index):  # without types, the transpose of a psum would be unknown
            raise ValueError(f"`{argument}` must name axes of a `jax.shard_map` with check_vma=True, got {axes!r}.")
    return given


class Shards(NamedTuple):
    """The mesh axes over which classes and examples are sharded."""

    classes: Names = ()
    examples: Names = ()
    unpadded: int | None = None  # the number of classes of all devices without padding, if there is padding
    batch: tuple[Names, ...] | None = None  # the axes of each leading axis of the examples; None for those of the first

    @classmethod
    def named(cls, axis_name: AxisName, batch_axis_name: AxisName = None) -> "Shards":
        """The shards from the arguments of these names, checked."""
        shards = cls(manual_axes("axis_name", axis_name), manual_axes("batch_axis_name", batch_axis_name))
        if set(shards.classes) & set(shards.examples):
            raise ValueError(f"`batch_axis_name` must name other axes than `axis_name`, got {batch_axis_name!r}.")
        return shards

    def check(self, of_classes: str, classes: Any, of_examples: str = "", examples: Any = None) -> None:
        """Refuses arrays that do not vary over the axes of their argument."""
        for name, arrays, argument, axes in (
            (of_classes, classes, "axis_name", self.classes),
            (of_examples, examples, "batch_axis_name", self.examples),
        ):
            for x in jax.tree.leaves(arrays):
                if not set(axes) <= varying(x):
                    got = jax.typeof(x)
                    raise ValueError(f"`{name}` must vary over the axes {axes} of `{argument}`, got {got}.")


def varying(*trees: Any) -> frozenset[str]:
    """The axes along which any of the arrays varies."""
    return frozenset().union(*map(varying_axes, jax.tree.leaves(trees)))


def vary(tree: Any, axes: frozenset[str], before: Callable = lambda a: a) -> Any:
    """Makes every array vary along the axes, after `before` of an array that does not yet.

    The transpose of this is a sum over the devices of the axes, which adds up their gradients.
    """
    axes = axes & frozenset(jax.sharding.get_abstract_mesh().manual_axes)

    def cast(a):
        more = axes - varying(a)
        return as_varying(before(a), tuple(sorted(more))) if more else a

    return jax.tree.map(cast, tree)


def explicit_axes(mesh: Any) -> Names:
    """The axes of a mesh that are in the types of arrays."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == jax.sharding.AxisType.Explicit)


def devices_along(mesh: Any, axes: Names) -> int:
    """The number of devices of a mesh along some of its axes."""
    return math.prod(mesh.shape[name] for name in axes)


def axes_of(spec: Any) -> tuple[Names, ...]:
    """The mesh axes over which each axis of an array is sharded, from its `PartitionSpec`."""
    return tuple(() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in spec)


def vary_together(tree: Any) -> Any:
    """Makes all arrays of a tree vary along the same axes."""
    return vary(tree, varying(tree))


def device_count(axes: Names) -> int:
    """The number of devices along the axes."""
    return lax.axis_size(axes) if axes else 1


def device_index(axes: Names) -> Array | int:
    """The index of this device along the axes."""
    return lax.axis_index(axes) if axes else 0


def example_index(shards: Shards, batch: tuple[int, ...]) -> Array:
    """The index [N] of the examples of this device, with leading axes `batch`, among those of all devices."""
    index = jnp.zeros((), jnp.int32)
    of_axes = (shards.examples,) if shards.batch is None else shards.batch
    padded = of_axes + ((),) * (len(batch) - len(of_axes))
    for size, axes in zip(batch or (1,), padded, strict=True):
        here = size * device_index(axes) + jnp.arange(size, dtype=jnp.int32)
        index = index[..., None] * (size * device_count(axes)) + here
    return index.reshape(-1)


def psum(tree: Any, axes: Names) -> Any:
    """Sums over devices, of arrays [N, ...]: one collective per dtype."""
    return _side_by_side(lambda a: lax.psum(a, axes), vary(tree, frozenset(axes))) if axes else tree


def pmax(x: Array, axes: Names) -> Array:
    """The maximum over devices, a constant of differentiation. A NaN on one device gives NaN."""
    x = lax.stop_gradient(x)
    if not axes:
        return x
    x = lax.pmax(vary(jnp.where(jnp.isnan(x), jnp.inf, x), frozenset(axes)), axes)  # not all networks keep NaN
    return jnp.where(jnp.isposinf(x), jnp.nan, x)


def pmin(x: Array, axes: Names) -> Array:
    """The minimum of integers over devices."""
    return lax.pmin(vary(x, frozenset(axes)), axes) if axes else x


def pmax_together(tree: Any, axes: Names) -> Any:
    """The maxima of arrays [N, ...], by one collective per dtype."""
    return _side_by_side(lambda x: pmax(x, axes), tree)


def pmin_together(tree: Any, axes: Names) -> Any:
    """The minima of arrays of integers [N, ...], likewise."""
    return _side_by_side(lambda x: pmin(x, axes), tree)


def all_gather(x: Array, axes: Names, *, varying: bool = False) -> Array:
    """The shards [N, ...] of all devices, concatenated in the order of the devices.

    The result is replicated, or with `varying` typed as varying, so that the gradients of the devices are added up.
    """
    if not axes:
        return x
    typed = not varying and bool(jax.sharding.get_abstract_mesh().manual_axes)  # else it is called by `_partition`
    return gather_shards(vary(x, frozenset(axes)), axes, replicated=typed)


def at_class(ids: Array, values: Callable, count: int, axes: Names) -> Any:
    """`values(positions)` [N, ...] of one class per example, from the device that has the class; 0 for no class.

    A position is the index of a class in the arrays of its device, which hold `count` classes.
    """
    positions = ids - count * device_index(axes)
    here = (positions >= 0) & (positions < count)
    known = lambda a: jnp.where(here.reshape(*here.shape, *(1,) * (a.ndim - here.ndim)), a, 0)
    return psum(jax.tree.map(known, values(jnp.where(here, positions, 0))), axes)


def _side_by_side(function: Callable, tree: Any) -> Any:
    """Applies a function of an array to a tree, with the arrays of each type concatenated along their last axes."""
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) == 1:
        return jax.tree.unflatten(structure, [function(leaves[0])])
    done = list(leaves)
    for dtype in dict.fromkeys(a.dtype for a in leaves):
        places = [i for i, a in enumerate(leaves) if a.dtype == dtype]
        flat = [leaves[i].reshape(*leaves[i].shape[:1], math.prod(leaves[i].shape[1:])) for i in places]
        ends = np.cumsum([a.shape[-1] for a in flat])[:-1]
        parts = jnp.split(function(jnp.concatenate(flat, -1)), ends, -1)
        for i, part in zip(places, parts, strict=True):
            done[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, done)
