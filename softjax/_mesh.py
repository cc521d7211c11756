"""Axes of a mesh of devices, inside `jax.shard_map`: what each device has, and what they know together.

The type of an array says along which axes it varies, that is, along which the devices hold different parts of it.
What varies along none of some axes is one and the same number on their devices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Names = tuple[str, ...]
AxisName = str | Names | None


def as_tuple(argument: str, axes: AxisName) -> Names:
    """The different names that an argument gives."""
    given = () if axes is None else (axes,) if isinstance(axes, str) else axes
    if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"`{argument}` must be the name of a mesh axis, a tuple of such or None, got {axes!r}.")
    if len(set(given)) < len(given):
        raise ValueError(f"`{argument}` must not name an axis twice, got {axes!r}.")
    return given


def names(argument: str, axes: AxisName) -> Names:
    """The names of the axes that an argument gives, if they are those of a mesh."""
    given = as_tuple(argument, axes)
    for name in given:
        try:
            place = lax.axis_index(name)
        except NameError as error:
            raise ValueError(f"`{argument}` must name axes of the mesh of a `jax.shard_map`, got {axes!r}.") from error
        if name not in varying(place):  # the transpose of a sum over devices would not be known
            raise ValueError(f"`{argument}` must name axes of a `jax.shard_map` with check_vma=True, got {axes!r}.")
    return given


class Shards(NamedTuple):
    """The axes of a mesh over which classes and examples are spread."""

    classes: Names = ()
    examples: Names = ()
    total: int | None = None  # of the classes, if behind them is what makes up their number

    @classmethod
    def named(cls, axis_name: "AxisName | Shards", batch_axis_name: AxisName = None) -> "Shards":
        """The checked axes that the arguments of these names give."""
        if isinstance(axis_name, Shards):
            return axis_name
        shards = cls(names("axis_name", axis_name), names("batch_axis_name", batch_axis_name))
        if set(shards.classes) & set(shards.examples):
            raise ValueError(f"`batch_axis_name` must name other axes than `axis_name`, got {batch_axis_name!r}.")
        return shards

    def check(self, of_classes: str, classes: Array, of_examples: str = "", examples: Array | None = None) -> None:
        """Refuses arrays that are not spread over the axes."""
        for name, x, argument, axes in (
            (of_classes, classes, "axis_name", self.classes),
            (of_examples, examples, "batch_axis_name", self.examples),
        ):
            if not set(axes) <= varying(x):
                raise ValueError(f"`{name}` must vary over the axes {axes} of `{argument}`, got {jax.typeof(x)}.")


def varying(*trees: Any) -> frozenset[str]:
    """The axes along which any of the arrays varies."""
    axes = [jax.typeof(a).manual_axis_type.varying for a in jax.tree.leaves(trees)]
    return frozenset().union(*axes)


def vary(tree: Any, axes: frozenset[str], before: Callable = lambda a: a) -> Any:
    """The tree, with every array varying along the axes; those that did not are changed `before`.

    The transpose is the sum over their devices: of what the gradient for an array is from each.
    """

    def cast(a):
        more = axes - varying(a)
        return lax.pcast(before(a), tuple(sorted(more)), to="varying") if more else a

    return jax.tree.map(cast, tree)


def alike(tree: Any) -> Any:
    """The tree, with every array varying along the axes along which any of them varies."""
    return vary(tree, varying(tree))


def size(axes: Names) -> int:
    """How many devices there are."""
    return lax.axis_size(axes) if axes else 1


def place(axes: Names) -> Array | int:
    """Which of them this one is."""
    return lax.axis_index(axes) if axes else 0


def total(tree: Any, axes: Names) -> Any:
    """The sums over devices, of arrays [N, ...] of one type in one go."""
    return _at_once(lambda a: lax.psum(a, axes), vary(tree, frozenset(axes))) if axes else tree


def most(x: Array, axes: Names) -> Array:
    """The maximum over devices, a constant to a derivative. It is NaN where one of them is."""
    x = lax.stop_gradient(x)
    if not axes:
        return x
    x = lax.pmax(vary(jnp.where(jnp.isnan(x), jnp.inf, x), frozenset(axes)), axes)  # not all networks keep NaN
    return jnp.where(jnp.isposinf(x), jnp.nan, x)


def least(x: Array, axes: Names) -> Array:
    """The minimum over devices of integers."""
    return lax.pmin(vary(x, frozenset(axes)), axes) if axes else x


def gathered(x: Array, axes: Names, *, varying: bool = False) -> Array:
    """The parts [N, ...] of all devices, one after the other, in the order of their places.

    They are the same on each device. Where they are made to vary, their gradient is what each device has of it.
    """
    if not axes:
        return x
    return lax.all_gather(vary(x, frozenset(axes)), axes, tiled=True, to="varying" if varying else "invarying")


def of_class(ids: Array, values: Callable, count: int, axes: Names) -> Any:
    """`values(places)` [N, ...] of one class per example, made by the device that has it; 0 for no class.

    The places are those of the classes in its arrays, of `count` classes on each device.
    """
    places = ids - count * place(axes)
    here = (places >= 0) & (places < count)
    known = lambda a: jnp.where(here.reshape(*here.shape, *(1,) * (a.ndim - here.ndim)), a, 0)
    return total(jax.tree.map(known, values(jnp.where(here, places, 0))), axes)


def _at_once(function: Callable, tree: Any) -> Any:
    """The function of numbers, or of arrays [N, ...], of which those of one type are laid side by side."""
    leaves, structure = jax.tree.flatten(tree)
    done = list(leaves)
    for dtype in dict.fromkeys(a.dtype for a in leaves):
        places = [i for i, a in enumerate(leaves) if a.dtype == dtype]
        flat = [leaves[i].reshape(*leaves[i].shape[:1], math.prod(leaves[i].shape[1:])) for i in places]
        ends = np.cumsum([a.shape[-1] for a in flat])[:-1]
        parts = jnp.split(function(jnp.concatenate(flat, -1)), ends, -1)
        for i, part in zip(places, parts, strict=True):
            done[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, done)
