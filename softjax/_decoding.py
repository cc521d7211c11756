"""Classes chosen from a linear layer, block by block: the likeliest ones, and samples. No array [N, K] is in memory.

A block of classes is ranked by itself, and its best classes are merged with the best of the blocks before it. Samples
are the largest score after Gumbel noise (Gumbel, 1954): argmax_k (z_k + g_k) has the distribution p. The noise of an
example and a class depends on the key and on their two ids alone, so that a sample does not depend on the block, the
tile or the mesh. It is a counter-based random number: 20 rounds of Threefry-2x32 (Salmon et al., 2011) of the ids.

The results are constants of differentiation.
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike

from . import _dtypes, _gibbs, _mesh, _placement, losses, scores
from ._arguments import checked, documented
from ._evaluate import BlockColumns
from ._linear import of_scaled_logits
from ._loops import Layout, block_ids, over_blocks, over_tiles, take_block
from ._mesh import AxisName
from ._placement import BlockSize
from ._products import PrecisionLike
from ._rules import block_columns


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


@documented()
def linear_top_k(
    features: ArrayLike,
    kernel: ArrayLike,
    k: int,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    where: ArrayLike | None = None,
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

    Returns:
        A `softjax.TopK` of logits, log-probabilities and ids [..., k]; the first two in at least float32.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])
        >>> logits, log_probs, ids = softjax.linear_top_k(features, kernel, 2)
        >>> print(logits, log_probs, ids)
        [[4. 2.]] [[-0.1698 -2.1698]] [[2 0]]
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    k = checked("k", k)
    if k > linear.count:
        raise ValueError(f"`k` must be at most the number of classes, {linear.count}, got {k}.")
    top = _over_classes(Partial(_top_step, k), Partial(_top_log_probs, linear.shards), linear, softcap, temperature, block_size)
    return TopK(*top)


@documented()
def linear_argmax(
    features: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    where: ArrayLike | None = None,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """The class with the largest logit of a linear layer, without the logits [..., K]: greedy decoding.

    Returns:
        Class ids [...], int32: the lowest at a tie, as in `jax.numpy.argmax`; -1 where all classes are left out.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.linear_argmax(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])))
        [2]
    """
