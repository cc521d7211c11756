"""`Logits`: a value that behaves as the logits [..., K] do, and is never in memory."""

from __future__ import annotations

import dataclasses
import functools as ft
import math
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from ..arguments import checks
from ..arguments.dtypes import EXAMPLES, PAIRS, common_dtype, inexact_leaves
from ..arguments.signatures import readable
from ..compute.placement import BlockSize
from ..parallel import collectives
from ..parallel.collectives import Shards
from ..parallel.placed import Placed
from .functions import user_function
from .nodes import NUMBER, ROWS, Node, Operand, Operation, node

_NOT_IN_MEMORY = (
    "These logits are not in memory: give them to a function of softjax, change them by their operators and `map`, or "
    "make an array [..., K] of them by `dense()`."
)


class _NotInMemory:
    """What JAX and NumPy find in place of an array. An array on the left of an operator leaves it to `Logits`."""

    @property
    def dtype(self) -> NoReturn:
        """None: an error that says what to do."""
        raise TypeError(_NOT_IN_MEMORY)

    __array__ = __jax_array__ = shape = dtype

    def __repr__(self) -> str:
        return _NOT_IN_MEMORY


def _refused(*_: Any) -> NoReturn:
    raise TypeError(_NOT_IN_MEMORY)


@node("kind")
class Mask:
    """Which classes an example has: booleans of pairs, a function of ids, or the ids of those that it has."""

    data: Any
    kind: str  # EXAMPLES [..., 1], PAIRS [..., K], "function", or "ids" [..., T]

    def indexed(self, index: Callable, shape: tuple[int, ...]) -> Mask:
        """The mask of logits of a shape, with a function of the leading axes of its data."""
        if self.kind == "function":
            raise TypeError(
                "Logits with a mask by a function of ids can't be indexed: their examples would have other ids."
            )
        return dataclasses.replace(self, data=index(self._of_batch(shape)))

    def flat(self, n: int, shape: tuple[int, ...]) -> Array:
        """The data, with one axis for all n examples of logits of a shape."""
        return self._of_batch(shape).reshape(n, self.data.shape[-1])

    def _of_batch(self, shape):
        return jnp.broadcast_to(self.data, (*shape[:-1], self.data.shape[-1]))


@readable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Logits:
    """Logits [..., K] that are never in memory: what users write on logits, they write on these.

    Made by `softjax.linear`, `softjax.distances` and `softjax.pairwise`, and taken by the functions of softjax in place
    of an array. They take `+ - * /` with a number, an array [..., 1] of examples, [K] of classes or [..., K] of both,
    or other logits; `map`, `where`, `where_ids`, `take`, `dense`; and indices and shapes of their leading axes. Every
    function f of softjax that takes them has f(z) = f(z.dense()), with its derivatives.

    A pytree of its arrays, which a model may return inside of `jax.jit`. The outermost `jit` copies what it returns:
    return the features there.
    """

    node: Node
    live: Array | None = None  # booleans [K]; None for all
    masks: tuple[Mask, ...] = ()
    ndim: int = dataclasses.field(default=2, metadata={"static": True})
    shards: Shards = dataclasses.field(default=Shards(), metadata={"static": True})
    block_size: BlockSize = dataclasses.field(default=None, metadata={"static": True})
    engine: Any = dataclasses.field(default=None, metadata={"static": True})
    placed: Placed | None = dataclasses.field(default=None, metadata={"static": True})

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., K], of this device."""
        batch, k = self.node.batch, self.node.classes
        if len(batch) != self.ndim - 1:
            raise ValueError(
                f"Logits of rank {self.ndim} must have that many axes, got {len(batch) + 1}: return features from "
                "`vmap` and `scan`, not logits, whose kernel would be repeated."
            )
        return (*batch, k)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the logits, at least float32."""
        return self.node.dtype

    @property
    def count(self) -> int:
        """The number of classes of all devices, without padding."""
        return self.shards.unpadded or self.node.classes * collectives.device_count(self.shards.classes)

    @property
    def kind(self) -> str:
        """What they are made of."""
        return _shown(self.node)

    @property
    def may_mask(self) -> bool:
        """Whether a class may be masked."""
        return self.node.may_mask or self.live is not None or bool(self.masks)

    @property
    def masks_pairs(self) -> bool:
        """Whether the masked classes of examples may differ, or are not known from `live`."""
        return bool(self.masks) or self.node.masks_pairs

    @property
    def size(self) -> int:
        """The number of logits."""
        return math.prod(self.shape)

    @property
    def examples_partition(self) -> P:
        """The partition of the leading axes, from the type of one of the arrays that have them; one axis more."""
        leaves, roles = (jax.tree.leaves(tree) for tree in (self.node, self.node.roles()))
        of_examples = next((a for a, role in zip(leaves, roles, strict=True) if role in (EXAMPLES, PAIRS)), None)
        spec = jax.typeof(of_examples).sharding.spec if isinstance(of_examples, Array) else P()
        return P(*spec[: self.ndim - 1], None) if len(spec) >= self.ndim - 1 else P()

    def __repr__(self) -> str:
        return f"Logits({self.dtype}[{', '.join(map(str, self.shape))}], {_shown(self.node)}, not in memory)"

    def __jax_array__(self) -> _NotInMemory:
        return _NotInMemory()

    __array__ = __bool__ = __float__ = __int__ = __len__ = __iter__ = __index__ = __contains__ = _refused
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __matmul__ = __rmatmul__ = __pow__ = _refused

    def __add__(self, other: Any) -> Logits:
        return _operation("+", self, other)

    def __radd__(self, other: Any) -> Logits:
        return _operation("+", other, self)

    def __sub__(self, other: Any) -> Logits:
        return _operation("-", self, other)

    def __rsub__(self, other: Any) -> Logits:
        return _operation("-", other, self)

    def __mul__(self, other: Any) -> Logits:
        return _operation("*", self, other)

    def __rmul__(self, other: Any) -> Logits:
        return _operation("*", other, self)

    def __truediv__(self, other: Any) -> Logits:
        return _operation("/", self, other)

    def __rtruediv__(self, other: Any) -> Logits:
        return _operation("/", other, self)

    def __neg__(self) -> Logits:
        return self * -1

    def map(self, function: Callable[..., Array], *arrays: Any) -> Logits:
        """`function(logit, *numbers)` of every logit, and of the numbers of the arrays for its example and class.

        Args:
            function: of numbers; it may close over arrays, which have gradients.
            arrays: numbers, arrays that broadcast to [..., K], or logits of this shape.

        Returns:
            Logits [..., K]. A class with logit -inf keeps it; for a class that `where` masks, the derivative of the
            function has to be finite too.

        Raises:
            ValueError: if the function reduces or sorts a number, as one that is written for all classes does.
            TypeError: if it is not a function.
        """
        parts = [self, *arrays]
        operands = [_operand(self, a) for a in parts]
        number = lambda a: jax.ShapeDtypeStruct((), self.dtype if isinstance(a, Node) else _type_of(a))
        taken = user_function("function", function, *map(number, operands))
        return _composed("map", taken, parts, operands)

    def where(self, mask: Any) -> Logits:
        """The logits of the classes that a mask has; -inf and no gradient elsewhere, whatever stood there.

        Args:
            mask: booleans [K], booleans that broadcast to [..., K], or a function of two numbers, (example id, class
                id) -> boolean, where the examples count along all leading axes.

        Returns:
            Logits [..., K].

        Raises:
            ValueError: if the mask does not broadcast to [..., K].
            TypeError: if it holds no booleans.
        """
        return self.masked("mask", mask)

    def masked(self, name: str, mask: Any) -> Logits:
        """`where` of a mask that is the argument `name` of a function."""
        if callable(mask):
            ids = jax.ShapeDtypeStruct((), jnp.int32)
            taken = user_function(name, mask, ids, ids, boolean=True)
            return dataclasses.replace(self, masks=(*self.masks, Mask(taken, "function")))
        mask = checks.booleans(name, mask)
        shape = self.shape
        _check_broadcasts(name, mask, shape)
        if math.prod(mask.shape[:-1]) == 1 and mask.shape[-1:] == shape[-1:]:
            mask = mask.reshape(shape[-1])
            return dataclasses.replace(self, live=mask if self.live is None else self.live & mask)
        if mask.size == 1:  # the same for all
            return self.where(jnp.broadcast_to(mask.reshape(()), shape[-1:]))
        kind = EXAMPLES if mask.shape[-1] == 1 else PAIRS
        return dataclasses.replace(self, masks=(*self.masks, Mask(mask, kind)))

    def where_ids(self, ids: ArrayLike) -> Logits:
        """The logits of the classes that each example lists; -inf elsewhere. No array [..., K] is made.

        Args:
            ids: class ids [..., T]; a negative id, or one that is repeated, counts for nothing.

        Returns:
            Logits [..., K].

        Raises:
            ValueError: if the leading axes are not those of the logits.
            TypeError: if the ids are no integers.
        """
        ids = checks.integers("ids", ids)
        checks.shape("ids", ids, (*self.shape[:-1], *ids.shape[-1:]), "[..., T] for the leading axes of the logits")
        return dataclasses.replace(self, masks=(*self.masks, Mask(_int32_ids(ids), "ids")))

    def take(self, ids: ArrayLike) -> Array:
        """The logits of listed classes, as an array with gradients.

        Args:
            ids: class ids [..., T] in [0, K); any other gives NaN.

        Returns:
            [..., T], of the type of the logits.

        Raises:
            ValueError: if the leading axes are not those of the logits.
            TypeError: if the ids are no integers.
        """
        from .gathered import taken

        ids = checks.integers("ids", ids)
        checks.shape("ids", ids, (*self.shape[:-1], *ids.shape[-1:]), "[..., T] for the leading axes of the logits")
        return taken(self, _int32_ids(ids))

    def dense(self) -> Array:
        """The logits as an array [..., K]."""
        from .scores import in_memory

        return in_memory(self)

    def __getitem__(self, index: Any) -> Logits:
        given = index if isinstance(index, tuple) else (index,)
        used = sum(_axes_of(i) for i in given if i is not None and i is not Ellipsis)
        if used >= self.ndim or (
            given and given[-1] is not Ellipsis and Ellipsis in [i for i in given if not hasattr(i, "shape")]
        ):
            raise IndexError(
                "The class axis of logits that are not in memory can't be indexed: `take` gives the logits of classes."
            )
        return self._changed(lambda a: a[index])

    def reshape(self, *shape: Any) -> Logits:
        """The logits with other leading axes; the last axis stays."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if not wanted or wanted[-1] not in (self.shape[-1], -1):
            raise ValueError(f"`shape` must keep the last axis of {self.shape}, got {wanted}.")
        try:
            lead = tuple(np.empty((*self.shape[:-1], 1), np.bool_).reshape(*wanted[:-1], 1).shape[:-1])
        except (TypeError, ValueError) as error:
            raise ValueError(f"`shape` must have the number of examples of {self.shape}, got {wanted}.") from error
        many = len(self.shape) - 1
        return self._changed(lambda a: a.reshape(*lead, *a.shape[many:]))

    def over_mesh(self, function: Callable, given: Any, of_result: Callable) -> Any:
        """The result of a function of placed logits, for its bound arguments."""
        from .over_mesh import over_mesh

        return over_mesh(function, given, of_result)

    def partitioned(self, placed: Placed) -> tuple[Logits, Logits]:
        """(the logits with padded class arrays, their partitions over a mesh in place of the arrays)."""
        k = self.shape[-1]
        live = jnp.ones(k, bool) if self.live is None and placed.padding(k) else self.live
        masks = tuple(m if m.kind == "function" else m.indexed(lambda a: a, self.shape) for m in self.masks)
        whole = dataclasses.replace(self, node=self.node.indexed(lambda a: a), live=live, masks=masks, placed=None)

        def padded(a, role):
            if role in (NUMBER, EXAMPLES):
                return a
            return placed.padded(a, -1 if role == PAIRS else 0 if role == ROWS else role, k)

        def spec(a, role):
            if role == NUMBER:
                return P()
            if role == EXAMPLES:
                return placed.of_examples()
            return placed.of_pairs(a.ndim) if role == PAIRS else placed.of_classes(0 if role == ROWS else role)

        roles = whole.roles()
        return jax.tree.map(padded, whole, roles), jax.tree.map(spec, whole, roles)

    def roles(self) -> Logits:
        """The logits with roles in place of arrays."""
        of_masks = {"function": NUMBER, "ids": EXAMPLES, EXAMPLES: EXAMPLES, PAIRS: PAIRS}
        role_of = lambda m: dataclasses.replace(m, data=jax.tree.map(lambda _: of_masks[m.kind], m.data))
        live: Any = None if self.live is None else 0
        return dataclasses.replace(self, node=self.node.roles(), live=live, masks=tuple(map(role_of, self.masks)))

    def of_device(self, shards: Shards) -> Logits:
        """The logits that a device has, of placed ones."""
        return dataclasses.replace(self, shards=shards, placed=None)

    def _changed(self, index):
        masks = tuple(mask.indexed(index, self.shape) for mask in self.masks)
        changed = self.node.indexed(index)
        return dataclasses.replace(self, node=changed, masks=masks, ndim=len(changed.batch) + 1)


def _int32_ids(ids):
    """Class ids as int32; -1 for any that is too large. Ids that are int32 are the same array."""
    if ids.dtype == jnp.int32:
        return ids
    return jnp.where((ids >= 0) & (ids < checks.INT32.max), ids, -1).astype(jnp.int32)


def _axes_of(index):
    """The number of axes that an index takes."""
    return index.ndim if getattr(index, "dtype", None) == np.bool_ else 1


def _shown(node):
    if not isinstance(node, Operation):
        return type(node).__name__.lower()
    inner = [_shown(a) if isinstance(a, Node) else "a number" if a.kind == NUMBER else a.kind for a in node.operands]
    return f"({f' {node.kind} '.join(inner)})" if node.kind != "map" else f"map of {', '.join(inner)}"


def _check_broadcasts(name, x, shape):
    if not checks.broadcasts(x.shape, shape):
        raise ValueError(f"`{name}` must broadcast to the logits {shape}, got shape {x.shape}.")


def _type_of(operand):
    return jnp.float32 if operand.array is None else operand.array.dtype


def check_alike(name: str, like: Logits, other: Logits) -> None:
    """Refuses logits that are computed in another way than the logits with which they are computed."""
    if other.shards != like.shards:
        raise ValueError(f"`{name}` must be sharded over the same mesh axes as the other logits.")
    if other.placed != like.placed:
        raise ValueError(f"`{name}` must be placed on the same mesh as the other logits.")
    if None not in (other.block_size, like.block_size) and other.block_size != like.block_size:
        raise ValueError(f"`{name}` must have the block size {like.block_size}, got {other.block_size}.")


def _operand(like, x):
    """A number, an array or logits, beside logits `like`."""
    if isinstance(x, Logits):
        if x.shape != like.shape:
            raise ValueError(f"`other` logits must have the shape {like.shape}, got {x.shape}.")
        check_alike("other", like, x)
        return x.node
    if isinstance(x, int | float) and not isinstance(x, bool):
        return Operand(None, NUMBER, x)
    x = checks.array("other", x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`other` must be real numbers or logits, got {checks.shown(x)}.")
    _check_broadcasts("other", x, like.shape)
    if x.ndim == 1 and x.shape[0] == like.shape[-1]:
        return Operand(x, "classes")
    if x.size == 1 and (x.ndim == 0 or like.shape[-1] == 1):
        return Operand(x.reshape(()), NUMBER)
    if x.ndim == 0 or x.shape[-1] == 1 != like.shape[-1] or like.shape[-1] == 1:
        return Operand(x.reshape(()), NUMBER) if x.size == 1 else Operand(x, EXAMPLES)
    if math.prod(x.shape[:-1]) == 1:
        return Operand(x.reshape(-1), "classes")
    return Operand(x, PAIRS)


def _operation(kind, left, right):
    like = left if isinstance(left, Logits) else right
    return _composed(kind, None, (left, right), [_operand(like, a) for a in (left, right)])


def _is_bias(a):
    return isinstance(a, Operand) and a.kind == "classes" and jnp.issubdtype(a.array.dtype, jnp.floating)


def _composed(kind, function, parts, operands):
    of_logits = [a for a in parts if isinstance(a, Logits)]
    first = of_logits[0]
    arrays = [a.array for a in operands if isinstance(a, Operand) and a.array is not None and kind != "map"]
    dtype = common_dtype(*of_logits, *(a for a in inexact_leaves(arrays) if not a.weak_type))
    lives = [one.live for one in of_logits if one.live is not None]
    if kind in "+-":  # as the bias of a linear layer
        signs = 1, -1 if kind == "-" else 1
        of_classes = [(a.array, sign) for a, sign in zip(operands, signs, strict=True) if _is_bias(a)]
        lives += [~(sign * bias < jnp.finfo(bias.dtype).min) for bias, sign in of_classes]
    live = ft.reduce(operator.and_, lives) if lives else None
    masks = sum((one.masks for one in of_logits), ())
    block = next((one.block_size for one in of_logits if one.block_size is not None), None)
    engine = next((one.engine for one in of_logits if one.engine is not None), None)
    made = Operation(kind, function, tuple(operands), dtype)
    return dataclasses.replace(first, node=made, live=live, masks=masks, block_size=block, engine=engine)
