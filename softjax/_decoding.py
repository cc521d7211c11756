"""Classes chosen from a linear layer, block by block: the likeliest ones, and samples. No array [N, K] is in memory.

A block of classes is ranked by itself, and its best classes are merged with the best of the blocks before it. Samples
are the largest score after Gumbel noise (Gumbel, 1954): argmax_k (z_k + g_k) has the distribution p. The noise of an
example and a class depends on the key and on their two ids alone, so that a sample does not depend on the block, the
tile or the mesh. It is a counter-based random number: 20 rounds of Threefry-2x32 (Salmon et al., 2011) of the ids.

The results are constants of differentiation.
"""

from __future__ import annotations

import functools as ft
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from . import _dtypes, _gibbs, _mesh, _partition, _placement, losses, scores
from ._arguments import checked
from ._checks import Where
from ._evaluate import BlockColumns, whole_tile
from ._explicit import sharded_like
from ._linear import of_scaled_logits
from ._loops import Layout, block_ids, over_blocks, over_tiles, take_block, take_examples
from ._mesh import AxisName
from ._placement import BlockSize
from ._products import PrecisionLike
from ._rules import block_columns, divided
from ._signatures import readable
from .losses import Loss
from .scores import Scores


@readable
class TopK(NamedTuple):
    """The k likeliest classes of each example, in order. Of equal logits, the lowest id comes first."""

    logits: Array
    """z [..., k]; -inf where fewer classes than k are not left out"""
    log_probs: Array
    """log p [..., k], of all classes; -inf there"""
    ids: Array
    """int32 [..., k]; -1 there"""


class Ranked(NamedTuple):
    """Classes in the order of their values, of which equal ones are in the order of their ids."""

    values: Array  # [..., k]
    ids: Array  # [..., k]; -1 where the value is -inf


@readable
@sharded_like("features")
def linear_top_k(
    features: ArrayLike,
    kernel: ArrayLike,
    k: int,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    where: Where = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> TopK:
    """The k likeliest classes of a linear layer and their log-probabilities, without the logits [..., K].

    z = softcap tanh((features @ kernel + bias) / softcap) / temperature, p = softmax(z). The results are constants of
    differentiation; `linear_log_probs` of the ids has gradients.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        k: how many classes, at most K.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        softcap: a positive scalar, the bound of the logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        A `softjax.TopK` of logits, log-probabilities and ids [..., k]; the first two in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])
        >>> logits, log_probs, ids = softjax.linear_top_k(features, kernel, 2)
        >>> print(logits, log_probs.round(2), ids)
        [[4. 2.]] [[-0.17 -2.17]] [[2 0]]
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    k = checked("k", k)
    if k > linear.count:
        raise ValueError(f"`k` must be at most the number of classes, {linear.count}, got {k}.")
    best, log_probs = _searched(linear, softcap, temperature, block_size, Search(k, with_log_probs=True))
    return TopK(best.values, log_probs, best.ids)


@readable
@sharded_like("features")
def linear_argmax(
    features: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    where: Where = None,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """The class with the largest logit of a linear layer, without the logits [..., K]: greedy decoding.

    A softcap or a temperature does not change it. The result is a constant of differentiation.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        Class ids [...], int32: the lowest at a tie, as in `jax.numpy.argmax`; -1 where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.linear_argmax(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])))
        [2]
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    return _searched(linear, None, 1.0, block_size, Search(1))[0].ids[..., 0]


@readable
@sharded_like("features")
def linear_sample(
    key: ArrayLike,
    features: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    shape: int | tuple[int, ...] = (),
    class_axis: int = -1,
    where: Where = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Samples of the classes of a linear layer, without the logits [..., K].

    They have the distribution p = softmax(softcap tanh((features @ kernel + bias) / softcap) / temperature), by the
    maximum of z_k plus Gumbel noise of 64 random bits, and are independent. The noise is a function of the key, the
    number of the sample, the index of the example among those of all devices, and the class id. So the samples are the
    same for every block size, tile and mesh, but for ties within the rounding of the scores.

    Args:
        key: a key of `jax.random`.
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        bias: [K]; None for 0. A class with bias -inf is left out.
        shape: the shape of the samples of each example: an integer or a tuple.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        softcap: a positive scalar, the bound of the logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        Class ids [..., *shape], int32; -1 where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import jax, softjax, jax.numpy as jnp
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])
        >>> samples = softjax.linear_sample(jax.random.key(0), features, kernel, shape=1000)
        >>> print((samples == 2).mean() > 0.8)  # p_2 = 0.84
        True
    """
    key, sizes = checked("key", key), checked("shape", shape)
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    numbers = jnp.arange(math.prod(sizes), dtype=jnp.uint32)
    words = jax.vmap(lambda number: jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32))(numbers)
    best, _ = _searched(linear, softcap, temperature, block_size, Search(1), words)
    return best.ids.reshape(*linear.batch, *sizes)


class Search(NamedTuple):
    """What is looked for among the classes: a part of the program."""

    k: int
    with_log_probs: bool = False


def _searched(linear, softcap, temperature, block_size, search, words=None):
    return searched(linear, block_size, search, words, of_scaled_logits(losses.logsumexp, softcap, temperature))


def searched(
    made: Scores, block_size: BlockSize, search: Search, words: Array | None = None, loss: Loss = losses.logsumexp
) -> tuple[Ranked, Any]:
    """(the best classes [..., k], or [..., S, 1] with noise by the S pairs of words; their log-probabilities)."""
    dtype = _dtypes.compute_dtype(made.dtype)
    made = lax.stop_gradient(made.computed_in(dtype)).of_loss(relative=False)
    loss = lax.stop_gradient(losses.as_tree(loss, dtype))
    sizes = made.n, made.k, made.width
    placement = _placement.given_or_chosen(block_size, *sizes, "none", dtype, made.rounding)
    placement = whole_tile(placement, made)
    out = _over_classes(made, loss, words, search, placement)
    return jax.tree.map(lambda a: a.reshape(*made.batch, *a.shape[1:]), out)


@ft.partial(jax.jit, static_argnums=(3, 4), inline=True)
def _over_classes(linear, loss, words, search, placement):
    shards = linear.shards
    columns = BlockColumns(linear.function, loss.columns)
    classes = (*linear.classes, linear.live, None, None)
    examples = linear.examples, _mesh.example_index(shards, linear.batch)
    tile, block = placement.tile, min(placement.block, linear.k)
    layout = Layout((*linear.axes, 0, 0, 0), linear.n, linear.k, tile, block, shards.classes, shards.unpadded)
    of_examples, replicated = _partition.EXAMPLES, _partition.REPLICATED
    # Also without loops: XLA would gather the scores to rank them.
    roles = replicated, layout.axes, of_examples, replicated
    function = ft.partial(_over_classes_of_device, search)
    return divided(function, layout, (columns, classes, examples, words), roles, of_examples, loops_alone=False)


def _over_classes_of_device(search, layout, _, *everything):
    axes = _mesh.varying(everything) | set(layout.mesh)
    columns, classes, examples, words = _mesh.vary(everything, axes)

    def of_tile(_, examples):
        features, index = examples

        def of_block(best, start, size, _):
            ids = block_ids(layout, start, size)
            of_examples = take_examples(features, start, size), None
            made = block_columns(columns, of_examples, take_block(classes, layout, start, size), ids, layout)
            found = _best_of_block(made, ids, index, words, search)
            return _mesh.vary(found if best is None else _better(best, found, search.k), axes), None

        (ranked, sums), _ = over_blocks(of_block, None, layout)
        ranked = _ranked_over(ranked, search.k, layout.mesh)
        return None, (ranked, sums and _log_probs(ranked.values, _gibbs.close(_merged_over(sums, layout.mesh))))

    return over_tiles(of_tile, None, examples, layout.examples, layout.tile)[1]


def _best_of_block(made, ids, index, words, search):
    """(the best classes of a block, its sums or None)."""
    h = lax.optimization_barrier(made.h)  # the largest is also the maximum of the sums, not one that is rounded again
    sums = _gibbs.fold(made._replace(h=h), ids) if search.with_log_probs else None
    if words is None:
        return _ranked(h, ids, search.k), sums
    noisy = lambda pair: _ranked(h + _gumbel(pair, index, ids, h.dtype), ids, 1)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), lax.map(noisy, words)), sums


def _better(left, right, k):
    """The best classes and the sums of two sets of classes, of which the left has the lower ids."""
    (ranked, sums), (others, more) = left, right
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), ranked, others)
    return _first(both, k), sums and _gibbs.merge(sums, more)


def _ranked(h, ids, k):
    """The k best classes of scores [n, b]; there may be fewer classes."""
    if k == 1:
        values, positions = (a[..., None] for a in _gibbs.largest(h))
    else:
        values, positions = lax.top_k(h, min(k, h.shape[-1]))
    found = Ranked(values, jnp.where(jnp.isneginf(values), -1, ids[positions]))
    missing = ((0, 0), (0, k - values.shape[-1]))
    fill = lambda a, value: jnp.pad(a, missing, constant_values=value)
    return Ranked(fill(found.values, -jnp.inf), fill(found.ids, -1))


def _first(ranked, k):
    """The k best of classes whose equal values are in the order of their ids."""
    values, positions = lax.top_k(ranked.values, k)
    return Ranked(values, jnp.take_along_axis(ranked.ids, positions, -1))


def _ranked_over(ranked, k, axes):
    """The best classes of all devices of some mesh axes, from the best of each. They are replicated."""
    if not axes:
        return ranked
    gathered = lambda a: jnp.moveaxis(_mesh.all_gather(jnp.moveaxis(a, -1, 0), axes), 0, -1)
    return _first(jax.tree.map(gathered, ranked), k)


def _merged_over(sums, axes):
    return _gibbs.merge_over(sums, axes) if axes else sums


def _log_probs(h, totals):
    """log p_k [n, k] = h_k - A, with all digits of a row that is sure."""
    possible = ~jnp.isneginf(h)
    below = (jax.tree.map(lambda a: a[:, None], totals.A) - jnp.where(possible, h, 0)).value
    return jnp.where(possible, -below, -jnp.inf)


def _gumbel(words, index, ids, dtype):
    """Gumbel noise [n, b] = -log -log(1 - u) of the examples [n] and the classes [b].

    The largest noise is that of the smallest u. It has all digits, as u is made of 64 bits.
    """
    high, low = _threefry(words, index.astype(jnp.uint32)[:, None], ids.astype(jnp.uint32)[None])
    u = high.astype(dtype) * 2.0**-32 + (low.astype(dtype) * 2.0**-64 + 2.0**-65)
    return -jnp.log(-jnp.log1p(-jnp.minimum(u, 1 - 2.0**-24)))


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(words, a, b):
    """64 random bits of the counters a and b, in two words: Threefry-2x32 of 20 rounds, as in `jax.random`.

    It is written out, so that the compiler fuses it with the noise that is made of it.
    """
    keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = a + keys[0], b + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            a = a + b
            b = ((b << jnp.uint32(rotation)) | (b >> jnp.uint32(32 - rotation))) ^ a
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return a, b
