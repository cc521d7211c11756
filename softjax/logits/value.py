"""`Logits`: a value that behaves as the logits [..., K] do, and is never in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from .. import _checks, _products
from .._arguments import checked_array
from .._dtypes import EXAMPLES, PAIRS, common_dtype, compute_dtype, inexact_leaves
from .._mesh import AxisName, Shards
from .._placement import BlockSize
from .._products import PrecisionLike
from .._signatures import readable
from .functions import user_function
from .nodes import NUMBER, Dense, Distances, Linear, Node, Operand, Operation, Pairwise, node

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
        if callable(mask):
            ids = jax.ShapeDtypeStruct((), jnp.int32)
            taken = user_function("mask", mask, ids, ids, boolean=True)
            return dataclasses.replace(self, masks=(*self.masks, Mask(taken, "function")))
        mask = _checks.booleans("mask", mask)
        shape = self.shape
        _broadcastable("mask", mask, shape)
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
        ids = _checks.integers("ids", ids)
        _checks.shape("ids", ids, (*self.shape[:-1], *ids.shape[-1:]), "[..., T] for the leading axes of the logits")
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
        from .scores import taken

        ids = _checks.integers("ids", ids)
        _checks.shape("ids", ids, (*self.shape[:-1], *ids.shape[-1:]), "[..., T] for the leading axes of the logits")
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
        lead = tuple(np.empty((*self.shape[:-1], 1), np.bool_).reshape(*wanted[:-1], 1).shape[:-1])
        many = len(self.shape) - 1
        return self._changed(lambda a: a.reshape(*lead, *a.shape[many:]))

    def _changed(self, index):
        masks = tuple(mask.indexed(index, self.shape) for mask in self.masks)
        changed = self.node.indexed(index)
        return dataclasses.replace(self, node=changed, masks=masks, ndim=len(changed.batch) + 1)


def _int32_ids(ids):
    """Class ids as int32; -1 for any that is too large."""
    return jnp.where((ids >= 0) & (ids < _checks.INT32.max), ids, -1).astype(jnp.int32)


def _axes_of(index):
    """The number of axes that an index takes."""
    return index.ndim if getattr(index, "dtype", None) == np.bool_ else 1


def _shown(node):
    if not isinstance(node, Operation):
        return type(node).__name__.lower()
    inner = [_shown(a) if isinstance(a, Node) else "a number" if a.kind == NUMBER else a.kind for a in node.operands]
    return f"({f' {node.kind} '.join(inner)})" if node.kind != "map" else f"map of {', '.join(inner)}"


def _broadcastable(name, x, shape):
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`{name}` must broadcast to the logits {shape}, got shape {x.shape}.")


def _type_of(operand):
    return jnp.float32 if operand.array is None else operand.array.dtype


def _operand(like, x):
    """A number, an array or logits, beside logits `like`."""
    if isinstance(x, Logits):
        if x.shape != like.shape:
            raise ValueError(f"`other` logits must have the shape {like.shape}, got {x.shape}.")
        if x.shards != like.shards:
            raise ValueError("`other` logits must be sharded over the same mesh axes.")
        if None not in (x.block_size, like.block_size) and x.block_size != like.block_size:
            raise ValueError(f"`other` logits must have the block size {like.block_size}, got {x.block_size}.")
        return x.node
    if isinstance(x, int | float) and not isinstance(x, bool):
        return Operand(None, NUMBER, x)
    x = _checks.array("other", x)
    _broadcastable("other", x, like.shape)
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


def _composed(kind, function, parts, operands):
    of_logits = [a for a in parts if isinstance(a, Logits)]
    first = of_logits[0]
    arrays = [a.array for a in operands if isinstance(a, Operand) and a.array is not None and kind != "map"]
    dtype = common_dtype(*of_logits, *inexact_leaves(arrays))
    live = None
    for one in of_logits:
        live = one.live if live is None else live if one.live is None else live & one.live
    masks = sum((one.masks for one in of_logits), ())
    block = next((one.block_size for one in of_logits if one.block_size is not None), None)
    made = Operation(kind, function, tuple(operands), dtype)
    return dataclasses.replace(first, node=made, live=live, masks=masks, block_size=block)


# --- what makes logits -------------------------------------------------------------------------------


def _made(node, live, axis_name, batch_axis_name, block_size, names):
    shards = Shards.named(axis_name, batch_axis_name)
    of_classes, classes, of_examples, examples = names
    shards.check(of_classes, classes, of_examples, examples)
    return Logits(node, live, (), len(node.batch) + 1, shards, block_size)


@readable
def linear(
    features: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Logits:
    """The logits of a linear layer, features @ kernel + bias, which are never in memory.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        bias: [K]; None for 0. A class with bias -inf is masked.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own types.
            None for the type that they promote to.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library choose.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none. The
            arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples.

    Returns:
        Logits [..., K].

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> logits = softjax.linear(jnp.ones((2, 3)), jnp.zeros((3, 5))) / 0.7
        >>> print(logits)
        Logits(float32[2, 5], (linear / a number), not in memory)
        >>> print(softjax.entropy(logits))  # log 5
        [1.6094 1.6094]
    """
    features = checked_array("features", features)
    kernel, axis = _checks.class_kernel(kernel, class_axis)
    d, k = kernel.shape[1 - axis], kernel.shape[axis]
    if features.ndim == 0 or features.shape[-1] != d:
        raise ValueError(f"`features` must have shape [..., {d}] for the kernel {kernel.shape}, got {features.shape}.")
    live, of_classes = _checks.live_classes(None, "bias", bias, k, "[K] for the K of `kernel`")
    product = _products.chosen(precision, dtype, features, kernel)
    of_arrays = compute_dtype(common_dtype(*inexact_leaves((features, kernel, of_classes))))
    made = Linear(features, kernel, of_classes, axis, product, of_arrays)
    return _made(made, live, axis_name, batch_axis_name, block_size, ("kernel", kernel, "features", features))


@readable
def distances(
    z: ArrayLike,
    centers: ArrayLike,
    *,
    precisions: ArrayLike | None = None,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Logits:
    """Negative squared distances, -sum_d t_kd (z_d - c_kd)^2, as logits that are never in memory.

    Args:
        z: latents [..., D].
        centers: c [K, D].
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1], one of
            each class; or [D], one of each dimension; None for 1.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library choose.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
        batch_axis_name: likewise for the examples.

    Returns:
        Logits [..., K]. A temperature divides them, and the logarithm of a prior [K] is added to them.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.logsumexp(softjax.distances(jnp.ones((1, 3)), jnp.zeros((1, 3))), axis=-1))
        [-3.]

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    z, centers = _checks.latents_and_centers(z, centers)
    k, d = centers.shape
    of_classes, of_all = _checks.precisions(precisions, k, d)
    dtype = compute_dtype(common_dtype(*inexact_leaves((z, centers, of_classes, of_all))))
    made = Distances(z, centers, of_classes, of_all, None, dtype)
    return _made(made, None, axis_name, batch_axis_name, block_size, ("centers", centers, "z", z))


@readable
def pairwise(
    function: Callable[[Any, Any], Array],
    examples: Any,
    classes: Any,
    *,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Logits:
    """Logits function(example, class), for any function in JAX of one example and one class.

    Args:
        function: (example [...], class [...]) -> a number. It may close over arrays, which have gradients.
        examples: a pytree of arrays [N, ...].
        classes: a pytree of arrays [K, ...].
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library choose.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
        batch_axis_name: likewise for the examples.

    Returns:
        Logits [N, K].

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> laplacian = lambda x, c: -jnp.abs(x - c).sum()
        >>> logits = softjax.pairwise(laplacian, jnp.zeros((1, 2)), jnp.ones((8, 2)))
        >>> print(softjax.logsumexp(logits, axis=-1))  # log 8 - 2
        [0.0794]
    """
    sizes = []
    for name, letter, tree in (("examples", "N", examples), ("classes", "K", classes)):
        shapes = [_checks.array(name, a).shape for a in jax.tree.leaves(tree)]
        if not shapes or () in shapes:
            raise ValueError(f"`{name}` must hold arrays [{letter}, ...], got shapes {shapes}.")
        sizes.append(shapes[0][0])
    examples = _checks.leading("examples", examples, (sizes[0],), "[N]")
    classes = _checks.leading("classes", classes, (sizes[1],), "[K]")
    row = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)
    taken = user_function("function", function, row(examples), row(classes), of_numbers=False)
    dtype = compute_dtype(jax.eval_shape(taken, row(examples), row(classes)).dtype)
    made = Pairwise(taken, examples, classes, dtype, 1)
    return _made(made, None, axis_name, batch_axis_name, block_size, ("classes", classes, "examples", examples))


LogitsLike = ArrayLike | Logits


def as_logits(name: str, x: Any) -> Logits:
    """The logits, or an array of them, as `Logits`."""
    if isinstance(x, Logits):
        return x
    x = checked_array(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`{name}` must have shape [..., K] with K classes, got {x.shape}.")
    return Logits(Dense(x, compute_dtype(x.dtype)), None, (), x.ndim)
