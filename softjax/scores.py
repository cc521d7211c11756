"""Scores of examples and classes: linear layers, distances to centers, dense logits, and functions of your own.

A function below returns `Scores`, a value that is given to `softjax.of` with any loss. Scores know nothing of losses.
They hold the arrays and the function from which a tile and block of the [N, K] scores is computed when needed.
"""

from __future__ import annotations

import dataclasses
import functools as ft
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike

from . import _checks, _distances, _explicit, _mesh, _products
from ._arguments import checked_array, checked_scalar
from ._checks import Where
from ._dtypes import (
    PerPair,
    cast,
    cast_unless_half,
    common_dtype,
    compute_dtype,
    inexact_leaves,
    is_inexact,
    widened,
    zeroed,
)
from ._mesh import AxisName, Shards
from ._products import PrecisionLike, Product
from ._signatures import readable


@readable
class Exact(NamedTuple):
    """The score of one class per example without the rounding error of a matrix product: a pytree."""

    score: Callable  # (examples, (the arrays of `Scores.classes`, `classes`)), all [N, ...] -> scores [N]
    examples: Any  # a pytree of arrays [N, ...]
    common: Array  # [N], a part common to all classes, which the scores do not have
    classes: Any  # a pytree of arrays [K, ...]


@readable
@ft.partial(
    jax.tree_util.register_dataclass,
    data_fields=["function", "examples", "classes", "live", "exact", "full", "offset"],
    meta_fields=["axes", "k", "width", "batch", "shards", "kind", "rounding"],
)
@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores [N, K] that are not in memory: their arrays, and the function that computes a tile and block of them.

    A pytree, made by `linear`, `distances`, `dense` or `of`.
    """

    kind: str  # the name of the function that made them
    function: Callable  # (tile of examples, block of classes, live [b]) -> scores [n, b], -inf for a class left out
    examples: Any  # a pytree of arrays [N, ...]
    classes: tuple  # pytrees of class arrays
    axes: tuple[int | str, ...]  # the class axis of the arrays in each pytree of `classes`; PAIRS for arrays [N, K]
    live: Array | None = None  # booleans [K], False for a class that is left out; None if there is none
    exact: Exact | None = None  # corrects the scores of the top classes
    k: int = 0  # the number of classes on this device
    width: int = 1  # the number of elements per class: the depth of a matrix product
    batch: tuple[int, ...] = ()  # the leading axes of the examples, which are flattened to N
    shards: Shards = Shards()  # noqa: RUF009 (a tuple)
    rounding: Any = None  # the half-precision type to which cotangents of the scores are rounded; None for no rounding
    full: Any = None  # the function of the scores with the offset; None where there is none
    offset: Array | None = None  # [N], what the scores of all classes have in common and `function` leaves out

    @property
    def n(self) -> int:
        """The number of examples on this device."""
        return math.prod(self.batch)

    @property
    def count(self) -> int:
        """The number of classes of all devices, without padding."""
        return self.shards.unpadded or self.k * _mesh.device_count(self.shards.classes)

    @property
    def dtype(self) -> jnp.dtype:
        """The floating-point type that the arrays promote to."""
        of_function = [a for a in inexact_leaves(self.function) if not a.weak_type]  # a Python number has no type
        return common_dtype(*of_function, *inexact_leaves((self.examples, self.classes)))

    def computed_in(self, dtype: jnp.dtype) -> Scores:
        """The scores with their arrays cast. Half-precision arrays are widened later, a tile and block at a time."""
        parts = ("function", "exact", "full", "offset")
        whole = {name: cast(getattr(self, name), dtype) for name in parts}
        later = {name: cast_unless_half(getattr(self, name), dtype) for name in ("examples", "classes")}
        return dataclasses.replace(self, **whole, **later)

    def of_loss(self, relative: bool) -> Scores:
        """The scores as a loss sees them: with the offset, unless the loss is the same for all offsets."""
        return self if relative or self.full is None else dataclasses.replace(self, function=self.full, offset=None)


@readable
def linear(
    features: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
) -> Scores:
    """Scores of a linear layer, z_k = sum_d features_d kernel_dk + bias_k.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.

    Returns:
        Scores of [...] examples and K classes.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.
    """
    shards = Shards.named(axis_name, batch_axis_name)
    features = checked_array("features", features)
    kernel, axis = _checks.class_kernel(kernel, class_axis)
    shards.check("kernel", kernel, "features", features)
    d, k = kernel.shape[1 - axis], kernel.shape[axis]
    other_axis = "; its classes are on the other axis with another `class_axis`" if features.shape[-1:] == (k,) else ""
    wanted = f"[..., D] for the D of `kernel`{other_axis}"
    _checks.shape("features", features, (*features.shape[:-1], d), wanted)
    batch = features.shape[:-1]
    of_classes, pairs = _by_pair(where, batch, k)
    live, bias = _checks.live_classes(of_classes, "bias", bias, k, "[K] for the K of `kernel`")
    arrays = features.reshape(math.prod(batch), d), (kernel, bias)
    product = _products.chosen(precision, dtype, features, kernel)
    function = Partial(_LinearScores(axis, product))
    made = Scores("linear", function, *arrays, (axis, 0), live, None, k, d, batch, shards, product.rounding)
    return _masked(made, pairs)


@dataclasses.dataclass(frozen=True)
class _LinearScores:
    """A function of the tile of features and the block of classes. Two are equal if their fields are."""

    axis: int
    product: Product

    def __call__(self, features, block, live):
        kernel, bias = block
        if live is not None:
            kernel = jnp.where(jnp.expand_dims(live, 1 - self.axis), kernel, 0)
            bias = jnp.where(live, 0 if bias is None else bias, -jnp.inf).astype(kernel.dtype)
        z = self.product(features, kernel if self.axis else kernel.T)
        return z if bias is None else z + bias[None]


def _by_pair(where: Any, batch: tuple[int, ...], k: int) -> tuple[Any, Any]:
    """(the argument `where` if it is of classes, else None; if it is of examples and classes, else None)."""
    if where is None or _checks.is_function(where):
        return None, where
    live = _checks.booleans("where", where)
    if live.ndim <= 1:
        return live, None
    _checks.shape("where", live, (*batch, k), "[K], or [..., K] with the leading axes of the examples")
    return None, live.reshape(math.prod(batch), k)


def _masked(scores, where):
    """The scores with -inf where `where`, booleans [N, K] or a function of ids, leaves out a class."""
    if where is None:
        return scores
    function, of_examples, more = _by_ids(scores, where) if _checks.is_function(where) else (None, PerPair(where), ())
    count, exact = len(scores.classes), scores.exact
    if exact is not None:
        exact = exact._replace(score=Partial(_UnmaskedScore(count), exact.score))
    return dataclasses.replace(
        scores,
        kind=f"masked {scores.kind}",
        function=Partial(_MaskedScores(count), scores.function, function),
        examples=(scores.examples, of_examples),
        classes=scores.classes + more,
        axes=(*scores.axes, *(0 for _ in more)),
        exact=exact,
    )


def _by_ids(scores, function):
    """(the function with its arrays, the ids of the examples, the ids of the classes)."""
    ids = scores.k * _mesh.device_index(scores.shards.classes) + jnp.arange(scores.k, dtype=jnp.int32)
    function = jax.tree.map(jnp.asarray, function if isinstance(function, Partial) else Partial(function))
    return function, _mesh.example_index(scores.shards, scores.batch), (ids,)


@dataclasses.dataclass(frozen=True)
class _MaskedScores:
    """Scores from the first `count` arrays of classes, with -inf where the data of the examples or a function says."""

    count: int

    def __call__(self, function, mask, examples, block, live):
        of_scores, where = examples
        h = function(of_scores, block[: self.count], live)
        if mask is not None:  # the data of the examples are their ids
            where = _checks.booleans("where", mask(where[:, None], block[self.count][None]))
            where = _checks.broadcast("where", where, h.shape, "that of a tile of examples and a block of classes")
        return jnp.where(where, h, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class _UnmaskedScore:
    """The exact score of one class per example, from the first `count` arrays of classes."""

    count: int

    def __call__(self, score, examples, classes):
        of_scores, more = classes
        return score(examples, (of_scores[: self.count], more))


@readable
def distances(
    z: ArrayLike,
    centers: ArrayLike,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
    precisions: ArrayLike | None = None,
) -> Scores:
    """Scores of a mixture, h_k = -sum_d t_kd (z_d - c_kd)^2 / temperature + log_prior_k, up to a common number.

    For classes that are Gaussians with precisions t_kd, the temperature is 2 and log_prior_k has sum_d log(t_kd) / 2.

    Args:
        z: latents [..., D].
        centers: c [K, D].
        log_prior: [K], added to the scores; None for 0. A class with -inf is left out.
        temperature: a positive scalar that divides the logits or squared distances.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.

    Returns:
        Scores of [...] examples and K classes.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    z, centers = _checks.latents_and_centers(z, centers)
    shards = Shards.named(axis_name, batch_axis_name)
    shards.check("centers", centers, "z", z)
    (k, d), batch = centers.shape, z.shape[:-1]
    of_classes, pairs = _by_pair(where, batch, k)
    live, prior = _checks.live_classes(of_classes, "log_prior", log_prior, k, "[K] for the K of `centers`")
    temperature = checked_scalar("temperature", temperature)
    of_each, of_all_classes = _checks.precisions(precisions, k, d)
    dtype = compute_dtype(common_dtype(*inexact_leaves((z, centers, prior, of_each, of_all_classes))))
    z, temperature = z.reshape(math.prod(batch), d).astype(dtype), jnp.asarray(temperature, dtype)
    centers, of_each = jax.tree.map(lambda a: _distances.of_classes(a, dtype), (centers, of_each))
    of_all_classes = cast(of_all_classes, dtype)
    known = of_all_classes if of_each is None else of_each
    reference, common = _reference(z, centers, temperature, known, live, shards)
    of_example, of_all = (reference, None) if reference.ndim == 2 else (None, reference)
    function = Partial(_distance_scores, of_all, temperature, _largest(prior, live, shards), of_all_classes)
    exact = Exact(Partial(_exact_distance, function), z, common, ())
    examples, classes = (z, of_example), ((centers, prior, of_each),)
    made = Scores("distances", function, examples, classes, (0,), live, exact, k, d, batch, shards)
    return _masked(made, pairs)


def _partition_of_reference(given):
    of_examples = P(*_explicit.partition(given["z"])[:1])
    return of_examples if given["z"].shape[-1] <= _distances.FEW else P(), of_examples


@_explicit.over_explicit_axes(_partition_of_reference)
def _reference(z, centers, temperature, precisions, live, shards):
    """(the reference of the distances, the part that all classes have in common)."""
    reference = _distances.reference_of(z, centers, live, shards)
    return reference, _distances.common_part(z, reference, temperature, precisions)


def _largest(prior, live, shards):
    """The largest log-prior, or None: a part common to all would only cost digits."""
    if prior is None:
        return None
    return _mesh.pmax(jnp.max(prior, initial=jnp.finfo(prior.dtype).min, where=live), shards.classes)


def _distance_scores(reference, temperature, largest, precisions, examples, classes, live):
    """Relative to the distance of the reference, which is one of each example or of all."""
    (z, of_example), ((centers, prior, of_each),) = examples, classes
    centers, prior, of_each = zeroed(live, (centers.astype(z.dtype), prior, cast(of_each, z.dtype)))
    offset = None if prior is None else prior.astype(z.dtype) - largest
    reference = reference if of_example is None else of_example
    h = _distances.scores(z, centers, reference, temperature, offset, precisions if of_each is None else of_each)
    return h if live is None else jnp.where(live[None], h, -jnp.inf)


def _exact_distance(function, z, classes):
    """h [N] of one class per example."""
    _, temperature, largest, precisions = function.args
    (((centers, prior, of_each),), _) = classes
    precisions = precisions if of_each is None else of_each
    squares = (z - centers) ** 2
    h = -(squares if precisions is None else jnp.atleast_2d(precisions) * squares).sum(-1) / temperature
    return h if prior is None else h + (prior - largest)


@readable
def dense(
    logits: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Scores:
    """Scores that are already in memory. They are used whole, whatever `block_size` is.

    Args:
        logits: z [..., K].
        where: booleans broadcastable to the logits, the classes to include; None for all.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        Scores of [...] examples and K classes.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.
    """
    shards = Shards.named(axis_name, batch_axis_name)
    logits = checked_array("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        got = "a single number" if logits.ndim == 0 else logits.shape
        raise ValueError(f"`logits` must have shape [..., K] with at least one class, got {got}.")
    logits = masked_logits(logits, where)
    shards.check("logits", logits, "logits", logits)
    *batch, k = logits.shape
    rows = logits.reshape(math.prod(batch), k)
    return Scores("dense", _DENSE, rows, (), (), shards=shards, k=k, batch=tuple(batch))


def masked_logits(logits: Array, where: ArrayLike | None) -> Array:
    """The logits, with -inf where `where` leaves out a class."""
    if where is None:
        return logits
    live = _checks.broadcast("where", checked_array("where", where), logits.shape, "that of the logits")
    return jnp.where(live, logits, -jnp.inf)


def _dense_scores(logits, block, live):  # noqa: ARG001 (-inf for a class left out is among the logits)
    return widened(logits)


_DENSE = Partial(_dense_scores)


@readable
def of(
    function: Callable[[Any, Any], Array],
    examples: Any,
    classes: Any,
    *,
    where: Where = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Scores:
    """Scores h_k = function(example, class k), for any function in JAX.

    Args:
        function: (tile of examples [n, ...], block of classes [b, ...]) -> scores [n, b]. It closes over no
            arrays: those come by `jax.tree_util.Partial`, and have gradients. Make it once, as JAX compares
            functions by identity.
        examples: a pytree of arrays [N, ...].
        classes: a pytree of arrays [K, ...].
        where: the classes to include: booleans [K]; booleans [N, K] for each example; a function of ids, as for
            `linear`; None for all. The function sees zeros in place of classes that booleans [K] leave out.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        Scores of N examples and K classes.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import jax.numpy as jnp
        >>> import softjax
        >>> laplacian = lambda x, y: -jnp.abs(x[:, None] - y[None]).sum(-1)
        >>> scores = softjax.scores.of(laplacian, jnp.zeros((1, 2)), jnp.ones((8, 2)))
        >>> print(softjax.of(softjax.losses.logsumexp, scores))  # log 8 - 2
        [0.0794]
    """
    shards = Shards.named(axis_name, batch_axis_name)
    if not callable(function):
        raise TypeError(f"`function` must be a function of examples and classes, got {_checks.shown(function)}.")
    sizes = {}
    for name, letter, tree in (("examples", "N", examples), ("classes", "K", classes)):
        shapes = [_checks.array(name, a).shape for a in jax.tree.leaves(tree)]
        if not shapes or () in shapes:
            raise ValueError(f"`{name}` must hold arrays [{letter}, ...], got shapes {shapes}.")
        sizes[name] = shapes[0][0]
    n, k = sizes["examples"], sizes["classes"]
    if k == 0:
        raise ValueError(f"`classes` must hold at least one class, got {k}.")
    _checks.known_count("classes", (k,), k)
    examples = _checks.leading("examples", examples, (n,), "[N]")
    classes = _checks.leading("classes", classes, (k,), "[K]")
    shards.check("classes", classes, "examples", examples)
    of_classes, pairs = _by_pair(where, (n,), k)
    live, _ = _checks.live_classes(of_classes, "", None, k, "[K] for the K of `classes`")
    own = function if isinstance(function, Partial) else Partial(function)
    function = Partial(_own_scores, jax.tree.map(jnp.asarray, own))
    return _masked(Scores("of", function, examples, (classes,), (0,), live, shards=shards, k=k, batch=(n,)), pairs)


def _own_scores(function, examples, block, live):
    (classes,) = block
    h = function(examples, classes if live is None else zeroed(live, classes))
    n, b = (jax.tree.leaves(tree)[0].shape[0] for tree in (examples, classes))
    if not isinstance(h, Array) or h.shape != (n, b) or not is_inexact(h):
        wanted = f"floating-point scores of shape {(n, b)} for {n} examples and {b} classes"
        raise ValueError(f"`function` must return {wanted}, got {_checks.shown(h)}.")
    return h if live is None else jnp.where(live[None], h, -jnp.inf)
