"""What logits are made of: linear layers, distances, functions of pairs, arrays, and operations on these.

A node is a pytree of arrays. `flat` gives all examples one axis; `roles` says of every array what it is to a tile of
examples and a block of classes. A node whose arrays are those of a tile and a block computes the logits of both, and
one whose class arrays are gathered, [n, T, ...], those of T classes of each example.
"""

from __future__ import annotations

import dataclasses
import functools as ft
import math
import operator
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..arguments.dtypes import EXAMPLES, PAIRS, is_inexact
from ..compute import squares
from ..parallel import collectives
from ..parallel.collectives import Shards
from .functions import UserFunction
from .products import Product

NUMBER, ROWS = "number", "rows"
"""roles of arrays, beside EXAMPLES and PAIRS. The role of a class array is the axis of its classes, if it may be 0
where a class is masked, as a logit is a polynomial of it; else ROWS, with the classes on axis 0."""


@dataclass_transform(frozen_default=True)
def node(*static: str) -> Callable[[type], Any]:
    """A decorator: a frozen dataclass, a pytree of its other fields."""

    def of_class(cls):
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(cls, [n for n in names if n not in static], list(static))

    return of_class


class Node:
    """The common part of all nodes."""

    dtype: Any  # of the logits
    may_mask = True  # whether a logit may be -inf
    masks_pairs = False  # whether one may be -inf for some examples alone
    has_offset = False  # whether `relative` leaves out a number

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes of the examples."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """The number of classes on this device."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """The number of elements per class: the depth of a matrix product."""
        raise NotImplementedError

    @property
    def rounding(self) -> Any:
        """The half-precision type to which cotangents are rounded; None for none."""
        return None

    def indexed(self, index: Callable) -> Any:
        """The node with a function of the leading axes of its arrays of examples."""
        raise NotImplementedError

    def flat(self, n: int) -> Any:
        """The node with one axis for all n examples."""
        raise NotImplementedError

    def prepared(self, live: Array | None, shards: Shards) -> Any:  # noqa: ARG002
        """The node, flat, with what depends on all classes."""
        return self

    def roles(self) -> Any:
        """The node with roles in place of arrays."""
        raise NotImplementedError

    def relative(self, mask: Array | None = None) -> Array:
        """Logits [n, b], without `offset`; where a mask [n, b] is False they may be any, without a gradient."""
        return self.full(mask)

    def offset(self) -> Array | None:
        """A number [n] that all logits of an example have in common; None for 0."""
        return None

    def full(self, mask: Array | None = None) -> Array:
        """Logits [n, b], likewise."""
        raise NotImplementedError

    def at(self, mask: Array | None = None) -> Array:
        """Logits [n, T] of gathered classes, likewise."""
        raise NotImplementedError

    def _with(self, **fields: Any) -> Any:
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]


@node("class_axis", "product", "dtype")
class Linear(Node):
    """Features @ kernel + bias."""

    features: Array
    kernel: Array
    bias: Array | None
    class_axis: int
    product: Product
    dtype: Any

    @property
    def may_mask(self) -> bool:  # type: ignore[override]
        return self.bias is not None

    @property
    def batch(self) -> tuple[int, ...]:
        return self.features.shape[:-1]

    @property
    def classes(self) -> int:
        return self.kernel.shape[self.class_axis]

    width = property(lambda self: self.features.shape[-1])
    rounding = property(lambda self: self.product.rounding)

    def indexed(self, index: Callable) -> Linear:
        return self._with(features=index(self.features))

    def flat(self, n: int) -> Linear:
        return self._with(features=self.features.reshape(n, self.width))

    def roles(self) -> Linear:
        bias = None if self.bias is None else 0
        return self._with(features=EXAMPLES, kernel=self.class_axis, bias=bias)

    def full(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        z = self.product(self.features, self.kernel if self.class_axis else self.kernel.T)
        return z if self.bias is None else z + self.bias[None]

    def at(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        x, w = self.features, self.kernel
        if self.product.dtype is not None:
            x, w = (a.astype(self.product.dtype).astype(a.dtype) for a in (x, w))
        z = jnp.einsum("nd,ntd->nt", x, w, precision=lax.Precision.HIGHEST)
        return z if self.bias is None else z + self.bias


@node("dtype")
class Distances(Node):
    """-sum_d t_kd (z_d - c_kd)^2."""

    z: Array
    centers: Array
    of_classes: Array | None  # precisions [K, D] or [K, 1]
    of_all: Array | None  # precisions [D]
    reference: Array | None
    dtype: Any

    may_mask = False
    has_offset = True
    width = property(lambda self: self.z.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        return self.z.shape[:-1]

    @property
    def classes(self) -> int:
        return self.centers.shape[0]

    def indexed(self, index: Callable) -> Distances:
        return self._with(z=index(self.z))

    def flat(self, n: int) -> Distances:
        return self._with(z=self.z.reshape(n, self.width))

    def prepared(self, live: Array | None, shards: Shards) -> Distances:
        z = self.z.astype(self.dtype)
        of_class = jax.tree.map(lambda a: squares.of_classes(a, self.dtype), (self.centers, self.of_classes))
        reference = squares.reference_of(z, self.centers, live, shards)
        of_all = None if self.of_all is None else self.of_all.astype(self.dtype)
        return self._with(z=z, centers=of_class[0], of_classes=of_class[1], of_all=of_all, reference=reference)

    def roles(self) -> Distances:
        of_reference = EXAMPLES if self.width <= squares.FEW else NUMBER
        roles = {"z": EXAMPLES, "centers": 0, "of_classes": 0, "of_all": NUMBER, "reference": of_reference}
        known = {name: None if getattr(self, name) is None else role for name, role in roles.items()}
        return self._with(**known)

    def _precisions(self):
        return self.of_all if self.of_classes is None else self.of_classes

    def relative(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        return squares.scores(self.z, self.centers, self.reference, 1.0, None, self._precisions())

    def offset(self) -> Array:
        return -squares.common_part(self.z, self.reference, 1.0, self._precisions())

    def full(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        h = self.relative() + self.offset()[:, None]
        return h - lax.stop_gradient(jnp.maximum(h, 0))  # no distance is negative, but for rounding

    def at(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        squares = (self.z[:, None] - self.centers) ** 2
        t = self._precisions()
        return -(squares if t is None else t * squares).sum(-1)


@node("dtype", "batch_ndim")
class Pairwise(Node):
    """A function of an example and a class."""

    function: UserFunction
    examples: Any
    of_classes: Any
    dtype: Any
    batch_ndim: int

    masks_pairs = True

    @property
    def batch(self) -> tuple[int, ...]:
        return jax.tree.leaves(self.examples)[0].shape[: self.batch_ndim]

    @property
    def classes(self) -> int:
        return jax.tree.leaves(self.of_classes)[0].shape[0]

    @property
    def width(self) -> int:
        return max(math.prod(a.shape[1:]) for a in jax.tree.leaves(self.of_classes))

    def indexed(self, index: Callable) -> Pairwise:
        examples = jax.tree.map(index, self.examples)
        changed, given = (jax.tree.leaves(tree)[0].ndim for tree in (examples, self.examples))
        return self._with(examples=examples, batch_ndim=self.batch_ndim + changed - given)

    def flat(self, n: int) -> Pairwise:
        examples = jax.tree.map(lambda a: a.reshape(n, *a.shape[self.batch_ndim :]), self.examples)
        return self._with(examples=examples, batch_ndim=1)

    def roles(self) -> Pairwise:
        constant = lambda role, tree: jax.tree.map(lambda _: role, tree)
        function, examples = constant(NUMBER, self.function), constant(EXAMPLES, self.examples)
        return self._with(function=function, examples=examples, of_classes=constant(ROWS, self.of_classes))

    def full(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        pairs = jax.vmap(jax.vmap(self.function, (None, 0)), (0, None))
        return pairs(self.examples, self.of_classes).astype(self.dtype)

    def at(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        pairs = jax.vmap(jax.vmap(self.function, (None, 0)), (0, 0))
        return pairs(self.examples, self.of_classes).astype(self.dtype)


@node("kind", "number")
class Operand:
    """A number, or an array of examples [..., 1], of classes [K] or of pairs [..., K]."""

    array: Any  # None for a number that is known
    kind: str
    number: float | None = None
    common: Array | None = None  # of an array of classes: a number that `relative` leaves out; None for 0

    def indexed(self, index: Callable, shape: tuple[int, ...]) -> Operand:
        if self.kind not in (EXAMPLES, PAIRS):
            return self
        last = self.array.shape[-1]
        return dataclasses.replace(self, array=index(jnp.broadcast_to(self.array, (*shape[:-1], last))))

    def flat(self, n: int, shape: tuple[int, ...]) -> Operand:
        if self.kind not in (EXAMPLES, PAIRS):
            return self
        last = self.array.shape[-1]
        array = jnp.broadcast_to(self.array, (*shape[:-1], last)).reshape(n, last)
        return dataclasses.replace(self, array=array)

    def roles(self) -> Operand:
        role = ROWS if self.kind == "classes" else self.kind
        common: Any = None if self.common is None else NUMBER
        return dataclasses.replace(self, array=None if self.array is None else role, common=common)

    def without_common(self, live: Array | None, shards: Shards) -> Operand:
        """The operand, of which `relative` leaves out the largest number of a class that is not masked."""
        if self.kind != "classes" or not is_inexact(self.array):
            return self
        least = jnp.finfo(self.array.dtype).min
        known = jnp.isfinite(self.array) if live is None else live & jnp.isfinite(self.array)
        most = collectives.pmax(jnp.max(self.array, initial=least, where=known), shards.classes)
        return dataclasses.replace(self, common=jnp.where(most == least, 0, most))

    def relative(self) -> Any:
        """The operand without the number that all classes have in common."""
        return self.full() if self.common is None else self.full() - self.common

    def full(self) -> Any:
        """The operand, to be broadcast with [n, b], or with the [n, T] of gathered classes."""
        if self.array is None:
            return self.number
        return self.array[None] if self.kind == "classes" and self.array.ndim == 1 else self.array


@node("dtype")
class Dense(Node):
    """Logits in memory."""

    array: Array
    dtype: Any

    width = 1
    masks_pairs = True

    @property
    def batch(self) -> tuple[int, ...]:
        return self.array.shape[:-1]

    @property
    def classes(self) -> int:
        return self.array.shape[-1]

    def indexed(self, index: Callable) -> Dense:
        return self._with(array=index(self.array))

    def flat(self, n: int) -> Dense:
        return self._with(array=self.array.reshape(n, self.classes))

    def roles(self) -> Dense:
        return self._with(array=PAIRS)

    def full(self, mask: Array | None = None) -> Array:  # noqa: ARG002
        return self.array.astype(self.dtype)

    at = full


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@node("kind", "dtype")
class Operation(Node):
    """An elementwise function of nodes and arrays: one of `OPERATORS`, or a function of the user's."""

    kind: str
    function: UserFunction | None
    operands: tuple
    dtype: Any

    @property
    def nodes(self) -> list:
        return [a for a in self.operands if isinstance(a, Node)]

    batch = property(lambda self: self.nodes[0].batch)
    classes = property(lambda self: self.nodes[0].classes)
    width = property(lambda self: sum(a.width for a in self.nodes))
    shape = property(lambda self: (*self.batch, self.classes))

    @property
    def rounding(self) -> Any:
        """A half-precision type, if all products round to it."""
        of_nodes = {a.rounding for a in self.nodes}
        return of_nodes.pop() if len(of_nodes) == 1 else None

    @property
    def masks_pairs(self) -> bool:  # type: ignore[override]
        with_pairs = any(isinstance(a, Operand) and a.kind == PAIRS for a in self.operands)
        return self.kind == "map" or with_pairs or any(a.masks_pairs for a in self.nodes)

    def _of_operands(self, change: Callable) -> Operation:
        return self._with(operands=tuple(map(change, self.operands)))

    def indexed(self, index: Callable) -> Operation:
        return self._of_operands(lambda a: a.indexed(index) if isinstance(a, Node) else a.indexed(index, self.shape))

    def flat(self, n: int) -> Operation:
        return self._of_operands(lambda a: a.flat(n) if isinstance(a, Node) else a.flat(n, self.shape))

    def prepared(self, live: Array | None, shards: Shards) -> Operation:
        # A common part of a prior would cost the digits that distances keep without theirs.
        of_classes = self.kind in "+-" and self.has_offset

        def of_operand(a):
            if isinstance(a, Node):
                return a.prepared(live, shards)
            return a.without_common(live, shards) if of_classes else a

        return self._of_operands(of_operand)

    @property
    def has_offset(self) -> bool:  # type: ignore[override]
        return self._keeps_offset and any(a.has_offset for a in self.nodes)

    def roles(self) -> Operation:
        function = jax.tree.map(lambda _: NUMBER, self.function)
        return self._with(function=function, operands=tuple(a.roles() for a in self.operands))

    @property
    def _keeps_offset(self) -> bool:
        """Whether a number common to all classes stays one."""
        if self.kind in "+-":
            return True
        node, *_ = self.operands
        common = [a for a in self.operands if isinstance(a, Operand) and a.kind in (NUMBER, EXAMPLES)]
        return len(common) == 1 and (self.kind == "*" or (self.kind == "/" and isinstance(node, Node)))

    def offset(self) -> Array | None:
        if not self._keeps_offset:
            return None
        parts = [a.offset() if isinstance(a, Node) else a for a in self.operands]
        if self.kind in "+-":
            common = [a.common if isinstance(a, Operand) else a for a in parts]
            return None if all(a is None for a in common) else self._applied([0 if a is None else a for a in common])
        if all(a is None or isinstance(a, Operand) for a in parts):
            return None
        flat = lambda a: a if isinstance(a, Array) else a.full()[:, 0] if a.kind == EXAMPLES else a.full()
        return OPERATORS[self.kind](*map(flat, parts))

    def relative(self, mask: Array | None = None) -> Array:
        if not self._keeps_offset:
            return self.full(mask)
        return self._computed([a.relative(mask) if isinstance(a, Node) else a.relative() for a in self.operands], mask)

    def full(self, mask: Array | None = None) -> Array:
        return self._computed([a.full(mask) if isinstance(a, Node) else a.full() for a in self.operands], mask)

    def at(self, mask: Array | None = None) -> Array:
        return self._computed([a.at(mask) if isinstance(a, Node) else a.full() for a in self.operands], mask)

    def _computed(self, values, mask):
        """The function of the operands; where a logit is -inf, it stays, without a gradient."""
        if mask is not None:  # the derivative need not be finite where a class is masked
            is_node = [isinstance(a, Node) for a in self.operands]
            values = [jnp.where(mask, a, 1) if node else a for a, node in zip(values, is_node, strict=True)]
        may = [isinstance(a, Node) and a.may_mask for a in self.operands]
        if self.kind in "+-":  # as the bias of a class that is masked
            may = [
                m or (not isinstance(a, Node) and a.kind in ("classes", PAIRS))
                for m, a in zip(may, self.operands, strict=True)
            ]
        masked = [jnp.isneginf(value) for value, m in zip(values, may, strict=True) if m]
        values = [
            jnp.where(jnp.isneginf(value), 0, value) if m else value for value, m in zip(values, may, strict=True)
        ]
        out = self._applied(values)
        return jnp.where(ft.reduce(operator.or_, masked), -jnp.inf, out) if masked else out

    def _applied(self, values):
        if self.kind != "map":
            cast = lambda a: a.astype(self.dtype) if isinstance(a, Array) else a
            return OPERATORS[self.kind](*map(cast, values))
        is_node = [isinstance(a, Node) for a in self.operands]
        values = [a.astype(self.dtype) if node else a for a, node in zip(values, is_node, strict=True)]
        shape = jnp.broadcast_shapes(*map(jnp.shape, values))
        axes = [None if jnp.ndim(value) == 0 else 0 for value in values]
        whole = [value if jnp.ndim(value) == 0 else jnp.broadcast_to(value, shape) for value in values]
        pairs: Any = self.function
        return jax.vmap(jax.vmap(pairs, axes), axes)(*whole).astype(self.dtype)
