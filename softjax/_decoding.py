"""Classes chosen from logits, block by block: the likeliest ones, and samples. No array [N, K] is in memory.

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
from jax.typing import ArrayLike

from . import losses
from ._labelled import as_ids
from ._of import BlockColumns, placement_of
from .arguments.dtypes import widened
from .arguments.signatures import readable
from .arguments.table import checked
from .compute.loops import Layout, block_ids, over_blocks, over_tiles, take_block
from .compute.rules import block_columns, divided
from .logits import LogitsLike, as_logits
from .logits.gathered import listed
from .logits.scores import scores_of
from .losses.loss import as_partials
from .parallel import collectives, partition
from .parallel.explicit import sharded_like
from .sums import sums as g
from .sums.elementary import log, log1p
from .sums.largest import largest


@readable
class TopK(NamedTuple):
    """The k likeliest classes of each example, in order. Of equal logits, the lowest id comes first."""

    logits: Array
    """z [..., k]; -inf where fewer classes than k are not masked"""
    log_probs: Array
    """log p [..., k], of all classes; -inf there"""
    ids: Array
    """int32 [..., k]; -1 there"""


class Ranked(NamedTuple):
    """Classes in the order of their values, of which equal ones are in the order of their ids."""

    values: Array  # [..., k]
    ids: Array  # [..., k]; -1 where the value is -inf


@readable
@sharded_like("logits")
def argmax(logits: LogitsLike) -> Array:
    """The likeliest class.

    Args:
        logits: z [..., K], an array or `softjax.Logits`.

    Returns:
        Class ids [...], int32: the lowest at a tie, as in `jax.numpy.argmax`; -1 where all classes are masked.

    Raises:
        ValueError: if there is no class.
        TypeError: if the logits are of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> logits = softjax.linear(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]]))
        >>> print(softjax.argmax(logits))
        [2]
    """
    z = as_logits("logits", logits)
    return _searched(z, Search(1))[0].ids[..., 0]


@readable
@sharded_like("logits")
def top_k(logits: LogitsLike, k: int) -> TopK:
    """The k likeliest classes of each example, without an array of all classes.

    Args:
        logits: z [..., K], an array or `softjax.Logits`.
        k: how many classes, at most K.

    Returns:
        A `softjax.TopK` of logits, log-probabilities and ids [..., k]; the first two in at least float32.

    Raises:
        ValueError: if `k` is not in [1, K].
        TypeError: if the logits or `k` are of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> logits = softjax.linear(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]]))
        >>> print(softjax.top_k(logits, 2).ids)
        [[2 0]]
    """
    z, k = as_logits("logits", logits), checked("k", k)
    if k > z.count:
        raise ValueError(f"`k` must be at most the number of classes, {z.count}, got {k}.")
    best, found = _searched(z, Search(k, with_log_probs=True))
    return TopK(best.values, found, best.ids)


@readable
@sharded_like("logits")
def sample(key: ArrayLike, logits: LogitsLike, *, shape: Any = ()) -> Array:
    """Classes drawn from the softmax of the logits, by the Gumbel trick in one pass over the classes.

    A sample is the same for every block size, tile and mesh.

    Args:
        key: a key of `jax.random`.
        logits: z [..., K], an array or `softjax.Logits`.
        shape: the shape of the samples of each example: an integer or a tuple.

    Returns:
        Class ids [..., *shape], int32; -1 where all classes are masked, or a logit is NaN or +inf.

    Raises:
        ValueError: if `shape` is out of range.
        TypeError: if the key or the logits are of the wrong kind.

    Example:
        >>> import jax, softjax, jax.numpy as jnp
        >>> samples = softjax.sample(jax.random.key(0), jnp.log(jnp.array([[0.1, 0.9]])), shape=1000)
        >>> print(abs((samples == 1).mean() - 0.9) < 0.05)
        True
    """
    key, sizes, z = checked("key", key), checked("shape", shape), as_logits("logits", logits)
    numbers = jnp.arange(math.prod(sizes), dtype=jnp.uint32)
    words = jax.vmap(lambda number: jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32))(numbers)
    best, _ = _searched(z, Search(1), words)
    ids = jnp.where(jnp.isposinf(best.values), -1, best.ids)
    return ids.reshape(*z.shape[:-1], *sizes)


class Search(NamedTuple):
    """What is looked for among the classes: a part of the program."""

    k: int
    with_log_probs: bool = False


def _searched(logits, search, words=None):
    """(the best classes [..., k], or [..., S, 1] with noise by the S pairs of words; their log-probabilities)."""
    found = listed(logits) if words is None else None  # the noise is that of the class ids
    if found is not None and search.k <= found[0].shape[-1]:
        best, log_probs = _searched(found[0], search)
        return best._replace(ids=as_ids(best.ids, found[1])), log_probs
    made = lax.stop_gradient(scores_of(logits).computed_in(logits.dtype))
    placement = placement_of(made, logits.block_size, "none", logits.dtype)
    out = _over_classes(made, words, search, placement)
    return jax.tree.map(lambda a: a.reshape(*made.batch, *a.shape[1:]), out)


@ft.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _over_classes(made, words, search, placement):
    shards = made.shards
    columns = BlockColumns(made.function, as_partials(losses.logsumexp).columns)
    classes = (*made.classes, made.live, None, None)
    examples = made.examples, collectives.example_index(shards, made.batch)
    tile, block = placement.tile, min(placement.block, made.k)
    layout = Layout((*made.axes, 0, 0, 0), made.n, made.k, tile, block, shards.classes, shards.unpadded)
    of_examples, replicated = partition.EXAMPLES, partition.REPLICATED
    # Also without loops: XLA would gather the scores to rank them.
    roles = replicated, layout.axes, of_examples, replicated
    function = ft.partial(_over_classes_of_device, search)
    return divided(function, layout, (columns, classes, examples, words), roles, of_examples, loops_alone=False)


def _over_classes_of_device(search, layout, _, *everything):
    axes = collectives.varying(everything) | set(layout.mesh)
    columns, classes, examples, words = collectives.vary(everything, axes)

    def of_tile(_, examples):
        features, index = examples

        def of_block(best, start, size, _):
            ids = block_ids(layout, start, size)
            of_examples = jax.tree.map(widened, features), None
            made = block_columns(columns, of_examples, take_block(classes, layout, start, size), ids, layout)
            found = _best_of_block(made, ids, index, words, search)
            return collectives.vary(found if best is None else _better(best, found, search.k), axes), None

        (ranked, sums), _ = over_blocks(of_block, None, layout)
        ranked = _ranked_over(ranked, search.k, layout.mesh)
        return None, (ranked, sums and _log_probs_of_best(ranked.values, g.close(_merged_over(sums, layout.mesh))))

    return over_tiles(of_tile, None, examples, layout.examples, layout.tile)[1]


def _best_of_block(made, ids, index, words, search):
    """(the best classes of a block, its sums or None)."""
    h = lax.optimization_barrier(
        made.logits
    )  # the largest is also the maximum of the sums, not one that is rounded again
    sums = g.fold(made._replace(logits=h), ids) if search.with_log_probs else None
    if words is None:
        return _ranked(h, ids, search.k), sums
    h = jnp.where(jnp.isnan(h), jnp.inf, h)  # such an example has no softmax, and no sample
    noisy = lambda pair: _ranked(h + _gumbel(pair, index, ids, h.dtype), ids, 1)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), lax.map(noisy, words)), sums


def _better(left, right, k):
    """The best classes and the sums of two sets of classes, of which the left has the lower ids."""
    (ranked, sums), (others, more) = left, right
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), ranked, others)
    return _first(both, k), sums and g.merge(sums, more)


def _ranked(h, ids, k):
    """The k best classes of scores [n, b]; there may be fewer classes."""
    if k == 1:
        values, positions = (a[..., None] for a in largest(h))
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
    gathered = lambda a: jnp.moveaxis(collectives.all_gather(jnp.moveaxis(a, -1, 0), axes), 0, -1)
    return _first(jax.tree.map(gathered, ranked), k)


def _merged_over(sums, axes):
    return g.merge_over(sums, axes) if axes else sums


def _log_probs_of_best(h, totals):
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
    return -log(-log1p(-jnp.minimum(u, 1 - 2.0**-24)))


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
