"""Statistics of the softmax of logits, in memory or not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import losses
from ._dense import as_rows
from ._labelled import Metrics, cross_entropy_of, log_probs_of
from ._of import as_each, evaluate
from .arguments import checks
from .arguments.checks import Axis
from .arguments.dtypes import common_dtype
from .arguments.signatures import readable
from .arguments.table import checked, checked_array
from .compute import rows as of_rows
from .logits import Logits, LogitsLike, as_logits
from .logits.gathered import listed
from .parallel.explicit import sharded_like


def of_last_axis(logits: Logits, axis: Axis, where: Any = None) -> Logits:
    """The logits of a function with the arguments `axis` and `where`: their classes are on the last axis."""
    if checks.axes(axis, logits.ndim) != (logits.ndim - 1,):
        raise ValueError(f"`axis` must be -1 for logits that are not in memory, got {axis!r}.")
    return logits if where is None else logits.masked("where", where)


def of_few(logits: Logits) -> Logits:
    """The logits; those that each example lists alone, where that is faster."""
    found = listed(logits)
    return logits if found is None else found[0]


@readable
def logsumexp(a: LogitsLike, axis: Axis = None, *, where: ArrayLike | None = None, keepdims: bool = False) -> Array:
    """Logarithm of the sum of exponentials: a smooth maximum.

    A = log sum_k exp(a_k), with the derivative dA = sum_k p_k da_k where p = softmax(a).
    Takes the arguments of `jax.nn.logsumexp`, except for signs and scales. A is -inf with gradient 0 where all classes
    are left out or there are none, and NaN where a class has +inf.

    Args:
        a: logits [...], or `softjax.Logits`, with axis -1 or None.
        axis: the axis or axes to sum over; None for all.
        where: booleans broadcastable to the logits, the classes to include; None for all.
        keepdims: whether the summed axes stay, with size 1.

    Returns:
        A of the type of a, and its shape less `axis`.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.logsumexp(jnp.zeros(8)), jnp.log(8.0))
        2.0794 2.0794

    Source: CATSMILE-1012 (softargmax), which would reserve the name softmax for it.
    """
    if isinstance(a, Logits) and axis is None:  # of the results of the rows
        rows = _logsumexp_over(a, -1, where=where, keepdims=keepdims)
        return jax.nn.logsumexp(rows, keepdims=checked("keepdims", keepdims))
    return _logsumexp_over(a, axis, where=where, keepdims=keepdims)


@sharded_like("a")
def _logsumexp_over(a, axis, *, where, keepdims):
    if isinstance(a, Logits):
        rows = evaluate(losses.logsumexp, of_few(of_last_axis(a, axis, where)))
        return rows[..., None] if checked("keepdims", keepdims) else rows
    logits, reshaped = as_rows("a", a, axis, where)
    total = of_rows.row_logsumexp(logits).astype(logits.dtype)
    return jnp.expand_dims(total, reshaped.axes) if checked("keepdims", keepdims) else total


@readable
@sharded_like("logits")
def entropy(logits: LogitsLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Entropy of the softmax, in nats.

    H(p) = -sum_k p_k log p_k = A - E_p[z], without loss of digits where p is nearly certain.

    Args:
        logits: z [...], or `softjax.Logits`, with axis -1.
        axis: the axis or axes of the classes; None for all.
        where: booleans broadcastable to the logits, the classes to include; None for all.

    Returns:
        H in at least float32, of the logits' shape less `axis`; -inf where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.entropy(jnp.array([[0.0, 0.0], [30.0, 0.0]])))
        [6.931e-01 2.901e-12]

    Source: CATSMILE-1012 (softargmax), E_p[t] with t = log p.
    """
    if isinstance(logits, Logits):
        return evaluate(losses.entropy, of_few(of_last_axis(logits, axis, where)))
    rows, _ = as_rows("logits", logits, axis, where)
    return evaluate(losses.entropy, as_logits("logits", rows))


@readable
@sharded_like("logits", "values")
def expectation(logits: LogitsLike, values: LogitsLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Expectation of the values under the softmax of the logits.

    E_p[t] = sum_k p_k t_k, with the derivative this library is built on,
    dE_p[t] = sum_k p_k (t_k - E_p[t]) dz_k + sum_k p_k dt_k.
    A class that is left out contributes 0, even where its value is infinite or NaN.

    Args:
        logits: z [...], or `softjax.Logits`, with axis -1.
        values: t, broadcastable against the logits, or `softjax.Logits` of their shape. The expectation of vectors
            [K, E] is `softjax.of(softjax.losses.expectation, logits, per_class=values)`.
        axis: the axis or axes of the classes, in the shape that the two broadcast to; None for all.
        where: booleans broadcastable to that shape, the classes to include; None for all.

    Returns:
        E_p[t], in the type that logits and values promote to; 0 where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import jax, softjax, jax.numpy as jnp
        >>> z, t = jnp.zeros(4), jnp.array([1.0, 2.0, 3.0, 6.0])
        >>> print(softjax.expectation(z, t), jax.grad(softjax.expectation)(z, t))  # p_k (t_k - E)
        3.0 [-0.5  -0.25  0.    0.75]

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """
    if isinstance(logits, Logits):
        return _expectation_of(of_last_axis(logits, axis, where), values)
    if isinstance(values, Logits):
        return _expectation_of(of_last_axis(as_logits("logits", logits), axis, where), values)
    z = checked_array("logits", logits)
    t = checks.floating_like("values", values, z)
    dtype = common_dtype(z, t)
    try:
        z, t = jnp.broadcast_arrays(z, t)
    except ValueError as error:
        got = f"shapes {t.shape} and {z.shape}"
        raise ValueError(f"`values` must be broadcastable against `logits`, got {got}.") from error
    z, rows = as_rows("logits", z, axis, where)
    t = rows.flatten(t).astype(dtype)
    return of_rows.row_expectation(z.astype(dtype), t).astype(dtype)


def _expectation_of(logits, values):
    """The expectation under logits that are not in memory."""
    if isinstance(values, Logits):
        both = as_each("values", (logits, values))
        return evaluate(losses.expectation_of_pairs, both).astype(common_dtype(*both))
    values = checks.floating("values", values)
    found = listed(logits) if values.shape == logits.shape[-1:] else None
    if found is not None:
        logits, ids = found
        values = values[ids]
    dtype = common_dtype(logits, values)
    if values.shape == logits.shape[-1:]:
        return evaluate(losses.expectation, logits, None, values[:, None])[..., 0].astype(dtype)
    values = checks.broadcast("values", values, logits.shape, "that of the logits; vectors [K, E] go to `softjax.of`")
    return evaluate(losses.expectation_of_pairs, (logits, as_logits("values", values))).astype(dtype)


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
    return log_probs_of(as_logits("logits", logits), ids, ignore_index, entropy)


@readable
@sharded_like("logits")
def metrics(logits: LogitsLike, labels: Any, *, ignore_index: int | None = None) -> Metrics:
    """What a trainer logs of every example, from one pass over the classes, without derivatives.

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
    return cross_entropy_of(as_logits("logits", logits), labels, ignore_index=ignore_index, has_aux=True)[1]
