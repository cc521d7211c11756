"""Functions of dense logits, over any axis or axes."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _checks, _rows, losses, scores
from ._arguments import checked, checked_array, documented
from ._checks import Axis
from ._dtypes import common_dtype
from ._evaluate import evaluate, of
from .losses import Loss

# ---------------------------------------------------------------------------------------------
# Axes, masks and types


class _Rows:
    """The reshaping of an array [...] with its classes on some axes to rows [N, K], and back."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]):
        self.axes = axes
        self.order = tuple(a for a in range(len(shape)) if a not in axes) + axes
        self.moved = tuple(shape[a] for a in self.order)
        self.batch = self.moved[: len(shape) - len(axes)]
        self.size = (math.prod(self.batch), math.prod(self.moved[len(self.batch) :]))
        if self.size[1] == 0:
            raise ValueError(f"`axis` must hold at least one class, got shape {shape} and axis {axes}.")

    def flatten(self, x: Array) -> Array:
        return x.transpose(self.order).reshape(self.size)

    def restore(self, rows: Array) -> Array:
        return rows.reshape(self.moved).transpose([self.order.index(a) for a in range(len(self.order))])

    def without_axes(self, rows: Array, keepdims: bool = False) -> Array:
        x = rows.reshape(self.batch)
        return jnp.expand_dims(x, self.axes) if keepdims else x


def _as_rows(name: str, x: ArrayLike, axis: Axis, where: ArrayLike | None) -> tuple[Array, _Rows]:
    """(logits [N, K], -inf where a class is left out, their reshaping)."""
    logits = _checks.floating(name, x)
    rows = _Rows(logits.shape, _checks.axes(axis, logits.ndim))
    return rows.flatten(scores.masked_logits(logits, where)), rows


def _example_mask(where: ArrayLike | None, logits: Array, axes: tuple[int, ...]) -> Array | None:
    """`where` as the cross entropies take it: one value per example, as in optax, or broadcastable to the logits."""
    if where is None:
        return None
    where = checked_array("where", where)
    if where.shape == tuple(n for a, n in enumerate(logits.shape) if a not in axes):
        where = jnp.expand_dims(where, axes)
    return _checks.broadcast("where", where, logits.shape, "that of the logits, or one value per example")


# ---------------------------------------------------------------------------------------------
# The public functions


@documented
def of_logits(
    loss: Loss,
    logits: ArrayLike,
    example: Any = None,
    per_class: Any = None,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """A loss of dense logits.

    Args:
        where: booleans broadcastable to the logits, the classes to include; None for all.

    Returns:
        The loss [...], or a scalar, in at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> import softjax
        >>> sure = jnp.array([[20.0, 0.0, 0.0]])
        >>> print(softjax.of_logits(softjax.losses.brier, sure, jnp.array([0])))  # (1 - p_0)^2 + p_1^2 + p_2^2
        [2.549e-17]

    Source: CATSMILE-1012 (softargmax), expectations under p.
    """
    dense = scores.dense(logits, where=where)
    return of(loss, dense, example, per_class, weights=weights, reduction=reduction)


def _of_rows(loss, logits):
    """A loss without data, of logits [N, K]."""
    return evaluate(loss, scores.dense(logits))


@documented(dense=True)
def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Softmax, which the source texts call softargmax.

    p_k = exp(x_k) / sum_j exp(x_j), with the derivative dp_k = p_k (dx_k - sum_j p_j dx_j).

    Takes the arguments of `jax.nn.softmax`. Gradients of rows that are sure of their class keep all digits. A class
    with logit -inf, or with `where` False, has probability and gradient 0; a row whose classes are all left out is 0.
    A logit of +inf or NaN makes its row NaN.

    Args:
        x: logits [...], of any floating-point type; integers are promoted.

    Returns:
        Probabilities of the shape and type of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import softmax
        >>> print(softmax(jnp.array([1000.0, 2000.0, 3000.0])))
        [0. 0. 1.]

    Source: CATSMILE-1012 (softargmax); The softmax function and its derivative.
    """
    logits, rows = _as_rows("x", x, axis, where)
    return rows.restore(_rows.row_softmax(logits).astype(logits.dtype))


softargmax = softmax


@documented(dense=True)
def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Logarithm of the softmax.

    log p_k = x_k - log sum_j exp(x_j), with all digits for likely classes too, where it is close to 0.

    Takes the arguments of `jax.nn.log_softmax`; a class that is left out gets -inf and gradient 0.

    Returns:
        Log-probabilities of the shape and type of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import log_softmax
        >>> print(log_softmax(jnp.array([20.0, 0.0])))  # jax.nn gives -0. for the first
        [-2.061e-09 -2.000e+01]

    Source: Notes on gradients, 1 (softmax loss).
    """
    logits, rows = _as_rows("x", x, axis, where)
    return rows.restore(_rows.row_log_softmax(logits).astype(logits.dtype))


@documented(dense=True)
def logsumexp(a: ArrayLike, axis: Axis = None, *, where: ArrayLike | None = None, keepdims: bool = False) -> Array:
    """Logarithm of the sum of exponentials: a smooth maximum.

    A = log sum_k exp(a_k), with the derivative dA = sum_k p_k da_k where p = softmax(a).

    Takes the arguments of `jax.nn.logsumexp`, except for signs and scales. It is -inf with gradient 0 where all classes
    are left out, and NaN where a class has +inf.

    Args:
        axis: the axis or axes to sum over; None for all.

    Returns:
        A of the type of a, and its shape less `axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import logsumexp
        >>> print(logsumexp(jnp.zeros(8)), jnp.log(8.0))
        2.0794 2.0794

    Source: CATSMILE-1012 (softargmax), which would reserve the name softmax for it.
    """
    logits, rows = _as_rows("a", a, axis, where)
    keepdims = checked("keepdims", keepdims)
    return rows.without_axes(_of_rows(losses.logsumexp, logits).astype(logits.dtype), keepdims)


@documented(dense=True)
def entropy(logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Entropy of the softmax, in nats.

    H(p) = -sum_k p_k log p_k = A - E_p[z], without loss of digits where p is nearly certain.

    Returns:
        H in at least float32, of the logits' shape less `axis`; -inf where all classes are left out.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import entropy
        >>> print(entropy(jnp.array([[0.0, 0.0], [30.0, 0.0]])))
        [6.931e-01 2.901e-12]

    Source: CATSMILE-1012 (softargmax), E_p[t] with t = log p.
    """
    rows_of, rows = _as_rows("logits", logits, axis, where)
    return rows.without_axes(_of_rows(losses.entropy, rows_of))


@documented(dense=True)
def expectation(logits: ArrayLike, values: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Expectation of the values under the softmax of the logits.

    E_p[t] = sum_k p_k t_k, with the derivative this library is built on,
    dE_p[t] = sum_k p_k (t_k - E_p[t]) dz_k + sum_k p_k dt_k.

    A class that is left out contributes 0, even where its value is infinite or NaN.

    Args:
        axis: the axis or axes of the classes, in the shape that the two broadcast to; None for all.
        where: booleans broadcastable to that shape, the classes to include; None for all.

    Returns:
        E_p[t], in the type that logits and values promote to; 0 where all classes are left out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softjax import expectation
        >>> z, t = jnp.zeros(4), jnp.array([1.0, 2.0, 3.0, 6.0])
        >>> print(expectation(z, t), jax.grad(expectation)(z, t))  # p_k (t_k - E)
        3.0 [-0.5  -0.25  0.    0.75]

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """
    z = checked_array("logits", logits)
    t = _checks.floating_like("values", values, z)
    dtype = common_dtype(z, t)
    try:
        shape = jnp.broadcast_shapes(z.shape, t.shape)
    except ValueError as error:
        raise ValueError(
            f"`values` must be broadcastable against `logits`, got shapes {t.shape} and {z.shape}."
        ) from error
    z, rows = _as_rows("logits", jnp.broadcast_to(z, shape), axis, where)
    t = rows.flatten(jnp.broadcast_to(t, shape)).astype(dtype)
    return rows.without_axes(_rows.row_expectation(z.astype(dtype), t).astype(dtype))


@documented(dense=True)
def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """Cross entropy between soft labels and the softmax of the logits.

    L = -sum_k y_k log p_k, for labels that need not sum to 1; its gradient is p_k sum_j y_j - y_k.

    Takes the arguments of `optax.softmax_cross_entropy`. A class of logit -inf costs 0 where its
    label is 0 and +inf otherwise; with `where` False it is no part of the sum.

    Args:
        labels: y, broadcastable to the logits.
        where: booleans, one per example, or broadcastable to the logits: the examples or classes to include.

    Returns:
        L in nats, in at least float32, of the logits' shape less `axis`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softjax import softmax_cross_entropy
        >>> y = jnp.array([0.5, 0.25, 0.25])
        >>> print(jax.grad(softmax_cross_entropy)(jnp.log(y), y))
        [0. 0. 0.]

    Source: CATSMILE-1012 (softargmax), cross entropy, there without its minus sign.
    """
    z = checked_array("logits", logits)
    axes = _checks.axes(axis, z.ndim)
    live = _example_mask(where, z, axes)
    y = _checks.floating_like("labels", labels, z)
    y = _checks.broadcast("labels", y, z.shape, "that of the logits")
    dtype = common_dtype(z, y)
    z, rows = _as_rows("logits", z, axes, live)
    y = rows.flatten(y if live is None else jnp.where(live, y, 0)).astype(dtype)
    return rows.without_axes(_rows.row_cross_entropy(z.astype(dtype), y))


@documented(dense=True)
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """Cross entropy between integer labels and the softmax of the logits.

    L = -log p_y = log(1 + sum_{k != y} exp(z_k - z_y)); its gradient is p - onehot(y).

    Takes the arguments of `optax.softmax_cross_entropy_with_integer_labels`. The label is left out of
    the sum, so that loss and gradient keep all digits, however sure a row is.

    Args:
        labels: y, integers in [0, K), of the logits' shape without `axis`; with several axes, indices into them
            flattened. Any other label gives NaN, in loss and gradient.
        where: booleans, one per example, or broadcastable to the logits: the examples or classes to include. A label
            that is not included costs +inf; an example without an included class costs 0.

    Returns:
        L in nats, in at least float32, of the labels' shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import softmax_cross_entropy_with_integer_labels
        >>> sure = jnp.array([[20.0, 0.0, 0.0]])
        >>> print(softmax_cross_entropy_with_integer_labels(sure, jnp.array([0])))  # 0. in optax
        [4.122e-09]

    Source: Notes on gradients, 1 (softmax loss), with the logarithm that its listing lacks;
    The softmax function and its derivative (cross entropy).
    """
    z = checked_array("logits", logits)
    axes = _checks.axes(axis, z.ndim)
    live = _example_mask(where, z, axes)
    z, rows = _as_rows("logits", z, axes, live)
    labels = _checks.integers("labels", labels)
    _checks.shape("labels", labels, rows.batch, "that of the logits less `axis`")
    y, known = _checks.class_ids(labels.reshape(-1), z.shape[-1])
    loss = _rows.row_label_cross_entropy(z, y)
    if live is None:
        return rows.without_axes(_nan_unless(known, loss))
    included = rows.flatten(live).any(-1)
    return rows.without_axes(jnp.where(included, _nan_unless(known | ~included, loss), 0))


def _nan_unless(known, loss):
    """The loss, with value and gradient NaN where a label is no class."""
    return loss * jnp.where(known, 1, jnp.nan).astype(loss.dtype)
