"""The place of global arrays on a mesh of devices: how they are sharded and padded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..arguments import checks
from . import collectives
from .collectives import Names, Shards


class Placed(NamedTuple):
    """A mesh, and its axes over which the classes and each leading axis of the examples are sharded."""

    mesh: Any  # None for the mesh of `jax.set_mesh`
    classes: Names
    batch: tuple[Names, ...]

    @classmethod
    def checked(cls, mesh: Any, classes: Any, batch: Any, typed: tuple) -> Placed:
        """The arguments of `softjax.shard`; `typed` are the explicit axes of the classes and of the examples."""
        devices = jax.sharding.get_abstract_mesh() if mesh is None else mesh
        if not isinstance(devices, AbstractMesh | Mesh) or not devices.axis_names:
            raise ValueError(f"`mesh` must be a mesh of devices, or set by `jax.set_mesh`, got {checks.shown(mesh)}.")
        of_classes, of_batch = typed if collectives.explicit_axes(devices) else ((), ())
        named = _names(devices, "classes", classes), _names(devices, "examples", batch)
        of_classes = of_classes if named[0] is None else named[0]
        of_batch = of_batch if named[1] is None else (named[1],)
        while of_batch and not of_batch[-1]:
            of_batch = of_batch[:-1]
        placed = cls(mesh, of_classes, of_batch)
        if not (of_classes or placed.examples):
            raise ValueError("`examples` or `classes` must name an axis of the mesh, got None.")
        if set(of_classes) & set(placed.examples):
            raise ValueError(f"`examples` must name other axes than `classes`, got {placed.examples} and {of_classes}.")
        return placed

    @property
    def examples(self) -> Names:
        """The axes over which the examples are sharded."""
        return sum(self.batch, ())

    @property
    def devices(self) -> Any:
        """The mesh."""
        return jax.sharding.get_abstract_mesh() if self.mesh is None else self.mesh

    def padding(self, k: int) -> int:
        """The number of classes that are missing for the devices to have the same number."""
        return -k % collectives.devices_along(self.devices, self.classes)

    def shards(self, k: int) -> Shards:
        """What a device is told, for K classes."""
        return Shards(self.classes, self.examples, k if self.padding(k) else None, self.batch)

    def of_examples(self) -> P:
        """The partition of an array [..., *] of the examples."""
        return P(*(axes or None for axes in self.batch))

    def of_classes(self, axis: int = 0) -> P:
        """The partition of an array with the classes on an axis."""
        return P(*[None] * axis, self.classes or None)

    def of_pairs(self, ndim: int) -> P:
        """The partition of an array [..., K]."""
        of_batch = [axes or None for axes in self.batch]
        return P(*of_batch, *[None] * (ndim - 1 - len(of_batch)), self.classes or None)

    def padded(self, a: Array, axis: int, k: int) -> Array:
        """The array with zeros for the classes that are missing."""
        widths = [(0, 0)] * a.ndim
        widths[axis] = (0, self.padding(k))
        return jnp.pad(a, widths) if self.padding(k) else a


def _names(devices, argument, axes):
    """The argument as names of axes of the mesh; None for None."""
    if axes is None:
        return None
    names = collectives.axis_names(argument, axes)
    if not set(names) <= set(devices.axis_names):
        raise ValueError(f"`{argument}` must name axes of the mesh, {devices.axis_names}, got {axes!r}.")
    if set(names) & set(jax.sharding.get_abstract_mesh().manual_axes):
        raise ValueError(f"`{argument}` must not name an axis of the `jax.shard_map` around, got {axes!r}.")
    return names


def placed_logits(given: Iterable[Any]) -> Any:
    """Logits that are placed on a mesh, among the arguments of a function; None if there are none."""
    for x in given:
        for one in x if isinstance(x, tuple) else (x,):
            if getattr(one, "placed", None) is not None:
                return one
    return None
