"""What makes `Logits`: linear layers, distances, functions of pairs, arrays; and their place on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, export
from jax.typing import ArrayLike, DTypeLike

from ..arguments import checks
from ..arguments.dtypes import common_dtype, compute_dtype, inexact_leaves
from ..arguments.signatures import readable
from ..arguments.table import checked_array
from ..compute.placement import BlockSize, Placement
from ..engines import Engine
from ..parallel import collectives
from ..parallel.collectives import AxisName, Shards
from ..parallel.placed import Placed
from . import products
from .functions import user_function
from .nodes import ROWS, Dense, Distances, Linear, Pairwise
from .products import PrecisionLike
from .value import Logits


def _made(node, live, axis_name, batch_axis_name, block_size, engine, names):
    shards = Shards.named(axis_name, batch_axis_name)
    of_classes, classes, of_examples, examples = names
    if not (engine is None or isinstance(engine, Engine)):
        raise TypeError(f"`engine` must be a `softjax.engines.Engine` or None, got {checks.shown(engine)}.")
    if not (block_size is None or isinstance(block_size, Placement)):
        block_size = checks.positive("block_size", block_size, "a positive integer or None")
    shards.check(of_classes, classes, of_examples, examples)
    return Logits(node, live, (), len(node.batch) + 1, shards, block_size, engine)


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
    engine: Any = None,
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
        engine: a `softjax.engines.Engine` that computes the sums where it applies; None for the library's loops.
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
    kernel, axis = checks.class_kernel(kernel, class_axis)
    d, k = kernel.shape[1 - axis], kernel.shape[axis]
    if features.ndim == 0 or features.shape[-1] != d:
        fits = f": with `class_axis={0 if axis else -1}` it fits" if features.shape[-1:] == (k,) else ""
        wanted = f"`features` must have shape [..., {d}] for the kernel {kernel.shape}"
        raise ValueError(f"{wanted}, got {features.shape}{fits}.")
    live, of_classes = checks.possible_classes("bias", bias, k, "[K] for the K of `kernel`")
    product = products.chosen(precision, dtype, features, kernel)
    of_arrays = compute_dtype(common_dtype(*inexact_leaves((features, kernel, of_classes))))
    made = Linear(features, kernel, of_classes, axis, product, of_arrays)
    return _made(made, live, axis_name, batch_axis_name, block_size, engine, ("kernel", kernel, "features", features))


@readable
def distances(
    z: ArrayLike,
    centers: ArrayLike,
    *,
    precisions: ArrayLike | None = None,
    block_size: BlockSize = None,
    engine: Any = None,
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
        engine: a `softjax.engines.Engine` that computes the sums where it applies; None for the library's loops.
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
    z, centers = checks.latents_and_centers(z, centers)
    k, d = centers.shape
    of_classes, of_all = checks.precisions(precisions, k, d)
    dtype = compute_dtype(common_dtype(*inexact_leaves((z, centers, of_classes, of_all))))
    made = Distances(z, centers, of_classes, of_all, None, dtype)
    return _made(made, None, axis_name, batch_axis_name, block_size, engine, ("centers", centers, "z", z))


@readable
def pairwise(
    function: Callable[[Any, Any], Array],
    examples: Any,
    classes: Any,
    *,
    block_size: BlockSize = None,
    engine: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Logits:
    """Logits function(example, class), for any function in JAX of one example and one class.

    Args:
        function: (example [...], class [...]) -> a number. It may close over arrays, which have gradients.
        examples: a pytree of arrays [N, ...].
        classes: a pytree of arrays [K, ...].
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library choose.
        engine: a `softjax.engines.Engine` that computes the sums where it applies; None for the library's loops.
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
        shapes = [checks.array(name, a).shape for a in jax.tree.leaves(tree)]
        if not shapes or () in shapes:
            raise ValueError(f"`{name}` must hold arrays [{letter}, ...], got shapes {shapes}.")
        sizes.append(shapes[0][0])
    if not export.is_symbolic_dim(sizes[1]) and sizes[1] == 0:
        raise ValueError(f"`classes` must hold at least one class, got {sizes[1]}.")
    checks.known_count("classes", (sizes[1],), sizes[1])
    examples = checks.leading("examples", examples, (sizes[0],), "[N]")
    classes = checks.leading("classes", classes, (sizes[1],), "[K]")
    row = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)
    taken = user_function("function", function, row(examples), row(classes), of_numbers=False)
    dtype = compute_dtype(jax.eval_shape(taken, row(examples), row(classes)).dtype)
    made = Pairwise(taken, examples, classes, dtype, 1)
    return _made(made, None, axis_name, batch_axis_name, block_size, engine, ("classes", classes, "examples", examples))


@readable
def shard(logits: Logits, mesh: Any = None, *, examples: AxisName = None, classes: AxisName = None) -> Logits:
    """Logits of global arrays that functions of softjax compute over a mesh, each device with its shard.

    Without it, XLA divides a function under `jax.jit` by the shardings of the arrays. With it, the division is the one
    given here, and the traffic of the network does not depend on the number of classes. All arguments of the functions
    stay global arrays. Where the devices don't divide the classes, every call pads copies of the class arrays.

    Args:
        logits: [..., K].
        mesh: the mesh; None for the mesh of `jax.set_mesh`.
        examples: the axis or axes over which the first axis of the examples is sharded; () for none. None for the axes
            in the types of the arrays, if they are `jax.sharding.AxisType.Explicit`, for all leading axes.
        classes: the axis or axes over which the classes are sharded; () for none. None for those in the types.

    Returns:
        The logits, for functions of softjax.

    Raises:
        ValueError: if no axis is named, one is named twice, or it is not in the mesh.
        TypeError: if the logits are an array, or an axis is no name.

    Example:
        >>> import jax, softjax, jax.numpy as jnp
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> logits = softjax.shard(softjax.linear(jnp.ones((2, 3)), jnp.zeros((3, 5))), mesh, classes="model")
        >>> print(softjax.entropy(logits))  # log 5
        [1.6094 1.6094]
    """
    if not isinstance(logits, Logits):
        raise TypeError(f"`logits` must be `softjax.Logits`, got {checks.shown(logits)}.")
    if logits.placed is not None:
        raise ValueError("`logits` must not be placed on a mesh yet.")
    if logits.shards != Shards():
        raise ValueError("`logits` must be of global arrays, got logits that are made with `axis_name`.")
    leaves, roles = (jax.tree.leaves(tree) for tree in (logits.node, logits.node.roles()))
    of_classes = next(((a, 0 if r == ROWS else r) for a, r in zip(leaves, roles, strict=True) if _is_class(r)), None)
    typed: tuple = ()
    if of_classes is not None and isinstance(of_classes[0], Array):
        spec = (*collectives.axes_of(jax.typeof(of_classes[0]).sharding.spec), *[()] * of_classes[0].ndim)
        typed = spec[of_classes[1]]
    batch = collectives.axes_of(logits.examples_partition)[:-1]
    return dataclasses.replace(logits, placed=Placed.checked(mesh, classes, examples, (typed, batch)))


def _is_class(role):
    return role == ROWS or isinstance(role, int)


LogitsLike = ArrayLike | Logits


def as_logits(name: str, x: Any) -> Logits:
    """The logits, or an array of them, as `Logits`."""
    if isinstance(x, Logits):
        return x
    x = checked_array(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`{name}` must have shape [..., K] with K classes, got {x.shape}.")
    return Logits(Dense(x, compute_dtype(x.dtype)), None, (), x.ndim)
