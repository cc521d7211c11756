"""Functions of logits that are not in memory, and those that take such logits or arrays alike."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _checks, losses
from ._arguments import checked
from ._checks import Axis
from ._decoding import Search, TopK, searched
from ._evaluate import evaluate
from ._explicit import sharded_like
from ._linear import Metrics, cross_entropy_of, label_sets, log_probs_of
from ._reductions import Examples
from ._signatures import readable
from .logits import Logits, LogitsLike, as_logits
from .logits.scores import scores_of


def of_last_axis(logits: Logits, axis: Axis, where: Any = None) -> Logits:
    """The logits of a function with the arguments `axis` and `where`: their classes are on the last axis."""
    if _checks.axes(axis, logits.ndim) != (logits.ndim - 1,):
        raise ValueError(f"`axis` must be -1 for logits that are not in memory, got {axis!r}.")
    return logits if where is None else logits.where(where)


def loss_of(loss: losses.Loss, logits: Logits, example: Any = None, per_class: Any = None) -> Array:
    """A loss [...] of logits that are not in memory."""
    return evaluate(loss, scores_of(logits), example, per_class, block_size=logits.block_size)


def logsumexp_of(logits: Logits, axis: Axis, where: Any, keepdims: bool) -> Array:
    """`softjax.logsumexp`; over all axes, of the results of the rows."""
    everything = axis is None
    rows = loss_of(losses.logsumexp, of_last_axis(logits, -1 if everything else axis, where))
    if everything:
        return jax.nn.logsumexp(rows, keepdims=keepdims)[..., None] if keepdims else jax.nn.logsumexp(rows)
    return rows[..., None] if keepdims else rows


def expectation_of(logits: Logits, values: ArrayLike, axis: Axis, where: Any) -> Array:
    """`softjax.expectation` of values [K]."""
    logits = of_last_axis(logits, axis, where)
    values = _checks.floating("values", values)
    _checks.shape("values", values, logits.shape[-1:], "[K] for logits that are not in memory")
    out = loss_of(losses.expectation, logits, None, values[:, None])[..., 0]
    return out.astype(jnp.promote_types(logits.dtype, values.dtype))


def labelled(logits: Logits, labels: Any, axis: Axis, where: Any, **options: Any) -> Any:
    """`softjax.softmax_cross_entropy_with_integer_labels`, or that of pairs (class ids, probabilities)."""
    kept = None
    if where is not None and not callable(where):
        where = _checks.booleans("where", where)
        if where.shape == logits.shape[:-1] or (where.ndim and where.shape[-1] == 1 < logits.shape[-1]):
            of_examples = where if where.shape == logits.shape[:-1] else where[..., 0]
            kept, where = jnp.broadcast_to(of_examples, logits.shape[:-1]).reshape(-1), None
    logits = of_last_axis(logits, axis, where)
    without = lambda made, kept: made if kept is None else scores_of(logits, kept)
    return cross_entropy_of(scores_of(logits), without, labels, kept=kept, block_size=logits.block_size, **options)


@readable
@sharded_like("logits")
def log_probs(
    logits: LogitsLike, ids: ArrayLike, *, ignore_index: int | None = None, entropy: bool = False
) -> Array | tuple[Array, Array]:
    """Log-probabilities of classes, such as tokens, under the softmax of logits.

    log p_k = z_k - log sum_j exp z_j, with all digits of a likely class.

    Args:
        logits: z [..., K], an array or `softjax.Logits`.
        ids: integers [...] or [..., T] in [0, K). Any other id gives NaN, in value and gradient.
        ignore_index: an id whose log-probability and gradient are 0; None for none. With ids [...], the entropy of its
            example is 0 too.
        entropy: whether the entropies -sum_k p_k log p_k are returned too.

    Returns:
        log p of the shape of the ids, in at least float32; -inf for a masked class. With `entropy`, the pair
        (log-probabilities, entropies [...]).

    Raises:
        ValueError: if shapes don't fit together.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> logits = softjax.linear(jnp.eye(2), 2 * jnp.eye(2, 3))
        >>> print(softjax.log_probs(logits, jnp.array([[0, 1], [2, 1]])).round(2))
        [[-0.24 -2.24]
         [-2.24 -0.24]]

    Source: Notes on gradients, 1 (softmax loss); CATSMILE-1012 (softargmax), expectations under p.
    """
    z = as_logits("logits", logits)
    without = lambda made, kept: made if kept is None else scores_of(z, kept)
    return log_probs_of(scores_of(z), without, ids, ignore_index, entropy, z.block_size)


@readable
@sharded_like("logits")
def metrics(logits: LogitsLike, labels: Any, *, ignore_index: int | None = None) -> Metrics:
    """What a trainer logs of every example, from one pass over the classes; constants of differentiation.

    Args:
        logits: z [..., K], an array or `softjax.Logits`.
        labels: integers [...] in [0, K), or a pair (indices [..., T], probabilities [..., T]).
        ignore_index: a label whose examples have metrics 0, False and the class -1; None for none.

    Returns:
        `softjax.Metrics` of arrays [...]. Its `z_loss` is 0.

    Raises:
        ValueError: if shapes don't fit together.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> found = softjax.metrics(softjax.linear(jnp.eye(2), 2 * jnp.eye(2, 3)), jnp.array([0, 2]))
        >>> print(found.predicted, found.correct)
        [0 1] [ True False]
    """
    return labelled(as_logits("logits", logits), labels, -1, None, ignore_index=ignore_index, has_aux=True)[1]


@readable
@sharded_like("logits")
def sigmoid_binary_cross_entropy(
    logits: LogitsLike,
    labels: Any,
    *,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Binary cross entropy of every class, summed over the classes, for examples with any number of labels.

    L = -sum_k (y_k log sigmoid(z_k) + (1 - y_k) log sigmoid(-z_k)): the sum over the classes of
    `optax.sigmoid_binary_cross_entropy`.

    Args:
        logits: z [..., K], an array or `softjax.Logits`.
        labels: integers [..., T] in [0, K), the classes of the example, each at most once; any other label gives NaN.
            Or a pair (indices [..., T], targets [..., T]), with targets y in [0, 1]. Or the targets [..., K] of all
            classes, which are constants of differentiation. A label on a masked class costs +inf; in targets of all
            classes, that class is not in the sum.
        ignore_index: a label that is none, for lists of unequal lengths; None for none.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.

    Returns:
        L in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> labels = jnp.array([[0, 3, -1]])
        >>> print(softjax.sigmoid_binary_cross_entropy(jnp.zeros((1, 4)), labels, ignore_index=-1))  # 4 log 2
        [2.7726]
    """
    z = as_logits("logits", logits)
    made = scores_of(z)
    labels, known = label_sets(labels, ignore_index, made)
    loss, examples = losses.binary_cross_entropy, Examples(known=known)
    return evaluate(loss, made, labels, None, weights, reduction, z.block_size, examples=examples)


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
    return searched(scores_of(z), z.block_size, Search(1))[0].ids[..., 0]


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
    made = scores_of(z)
    if k > made.count:
        raise ValueError(f"`k` must be at most the number of classes, {made.count}, got {k}.")
    best, found = searched(made, z.block_size, Search(k, with_log_probs=True))
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
        Class ids [..., *shape], int32; -1 where all classes are masked.

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
    best, _ = searched(scores_of(z), z.block_size, Search(1), words)
    return best.ids.reshape(*z.shape[:-1], *sizes)
