"""Cross entropies of logits, in memory or not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import losses
from ._dense import as_rows
from ._labelled import cross_entropy_of, is_off, label_sets
from ._of import evaluate
from ._statistics import of_last_axis
from .arguments import checks
from .arguments.checks import Axis
from .arguments.dtypes import common_dtype
from .arguments.signatures import readable
from .arguments.table import checked_array
from .compute import rows as of_rows
from .compute.reductions import Examples
from .logits import Logits, LogitsLike, as_logits, linear
from .parallel.explicit import sharded_like
from .sums.unknown import nan_unless


class _Masked(NamedTuple):
    """The logits of a cross entropy, and its mask: of examples, or of classes."""

    logits: Array
    axes: tuple[int, ...]  # of the classes
    kept: Array | None = None  # of the logits' shape less the axes; None for all examples
    live: Array | None = None  # of the logits' shape; None for all classes


def _cross_entropy_logits(x: ArrayLike, axis: Axis, where: ArrayLike | None) -> _Masked:
    """`where` may have one value per example, as in optax, or be broadcastable to the logits."""
    logits = checked_array("logits", x)
    axes = checks.axes(axis, logits.ndim)
    if where is None:
        return _Masked(logits, axes)
    where = checked_array("where", where)
    batch = tuple(n for a, n in enumerate(logits.shape) if a not in axes)
    if where.shape == batch:
        return _Masked(logits, axes, where)
    live = checks.broadcast("where", where, logits.shape, "that of the logits, or one value per example")
    where = where.reshape((1,) * (logits.ndim - where.ndim) + where.shape)
    if all(where.shape[a] == 1 for a in axes):
        return _Masked(logits, axes, jnp.broadcast_to(where.squeeze(axes), batch))
    return _Masked(logits, axes, None, live)


def _of_examples(logits, axis, where):
    """(the logits, True for the examples [N] that a mask keeps, or None), of a mask of examples or of classes."""
    if where is None or callable(where):
        return of_last_axis(logits, axis, where), None
    kept = checks.mask_of_examples(where, logits.shape)
    if kept is None:
        return of_last_axis(logits, axis, where), None
    return of_last_axis(logits, axis), kept.reshape(-1)


@readable
@sharded_like("logits")
def softmax_cross_entropy(logits: LogitsLike, labels: Any, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Cross entropy between soft labels and the softmax of the logits.

    L = -sum_k y_k log p_k, for labels that need not sum to 1; its gradient is p_k sum_j y_j - y_k.
    Takes the arguments of `optax.softmax_cross_entropy`. A class with logit -inf costs 0 where its label is 0, else
    +inf; a class with `where` False is not in the sum.

    Args:
        logits: z [...], or `softjax.Logits`, with axis -1.
        labels: y, broadcastable to the logits; or a pair (indices [..., T], probabilities [..., T]).
        axis: the axis or axes of the classes; None for all.
        where: booleans, one per example, or broadcastable to the logits: the examples or classes to include.

    Returns:
        L in nats, in at least float32, of the logits' shape less `axis`.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import jax, softjax, jax.numpy as jnp
        >>> y = jnp.array([0.5, 0.25, 0.25])
        >>> print(jax.grad(softjax.softmax_cross_entropy)(jnp.log(y), y))
        [0. 0. 0.]

    Source: CATSMILE-1012 (softargmax), cross entropy, there without its minus sign.
    """
    if isinstance(labels, tuple):
        z, kept = _of_examples(as_logits("logits", logits), axis, where)
        return cross_entropy_of(z, labels, kept=kept)
    if isinstance(logits, Logits):
        return _of_soft_labels(logits, labels, axis, where)
    z, axes, kept, live = _cross_entropy_logits(logits, axis, where)
    y = checks.floating_like("labels", labels, z)
    y = checks.broadcast("labels", y, z.shape, "that of the logits")
    dtype = common_dtype(z, y)
    z, rows = as_rows("logits", z, axes, live)
    y = rows.flatten(y if live is None else jnp.where(live, y, 0)).astype(dtype)
    return _of_kept(of_rows.row_cross_entropy, kept, z.astype(dtype), y)


def _of_soft_labels(logits, labels, axis, where):
    y = checks.floating("labels", labels)
    logits, kept = _of_examples(logits, axis, where)
    if where is not None and kept is None:  # a masked class is not in the sum
        if callable(where):
            raise TypeError("`where` must be booleans beside labels of all classes, got a function of ids.")
        y = jnp.where(where, y, 0)
    examples = Examples(kept=kept)
    if y.shape == logits.shape[-1:]:
        none = jnp.zeros((math.prod(logits.shape[:-1]), 0))
        return evaluate(losses.cross_entropy, logits, (none.astype(jnp.int32), none), y, examples=examples)
    y = checks.broadcast("labels", y, logits.shape, "that of the logits")
    return evaluate(losses.cross_entropy, (logits, as_logits("labels", y)), examples=examples)


@readable
@sharded_like("logits")
def softmax_cross_entropy_with_integer_labels(
    logits: LogitsLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    has_aux: bool = False,
) -> Any:
    """Cross entropy between integer labels and the softmax of the logits.

    L = -log p_y = log(1 + sum_{k != y} exp(z_k - z_y)); its gradient is p - onehot(y). As the label is not in the sum,
    loss and gradient keep all digits, however sure a row is.
    Takes the arguments of `optax.softmax_cross_entropy_with_integer_labels`.

    Args:
        logits: z [...], or `softjax.Logits`.
        labels: y, integers in [0, K), of the logits' shape less `axis`; with several axes, indices into these
            flattened. A label out of range gives NaN, in loss and gradient; where the cotangent of the loss is
            0, the gradient is 0.
        axis: the axis or axes of the classes; None for all.
        where: booleans, one per example, or broadcastable to the logits: the examples or classes to include. A
            label that is left out costs +inf; an example without a class costs 0.
        ignore_index: a label whose examples have loss and gradient 0 and are left out of the mean; None for
            none. In a pair, its entries have weight 0, and an example with no other entry is ignored.
        label_smoothing: in [0, 1]: the share of the label that is spread over all classes that are not masked.
        z_loss: the factor of A^2 in the loss.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        has_aux: whether `softjax.Metrics` of every example are returned too, as in `jax.value_and_grad`.

    Returns:
        L in nats, in at least float32, of the labels' shape, or a scalar; with `has_aux`, the pair (L,
        `softjax.Metrics`).

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.softmax_cross_entropy_with_integer_labels(jnp.array([20.0, 0.0]), 0))  # 0. in optax
        2.061e-09

    Source: Notes on gradients, 1 (softmax loss), with the logarithm that its listing lacks;
    The softmax function and its derivative (cross entropy).
    """
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss, "weights": weights}
    options |= {"reduction": reduction, "has_aux": has_aux, "ignore_index": ignore_index}
    if isinstance(logits, Logits) or isinstance(labels, tuple):
        made, kept = _of_examples(as_logits("logits", logits), axis, where)
        return cross_entropy_of(made, labels, kept=kept, **options)
    z, axes, kept, live = _cross_entropy_logits(logits, axis, where)
    z, rows = as_rows("logits", z, axes, live)
    labels = checks.integers("labels", labels)
    checks.shape("labels", labels, rows.batch, "that of the logits less `axis`")
    if live is not None:
        possible = rows.flatten(live).any(-1)
        kept = possible if kept is None else possible & kept
    if not (is_off(label_smoothing) and is_off(z_loss) and weights is None and reduction == "none") or has_aux:
        of_examples = None if kept is None else kept.reshape(-1)
        return cross_entropy_of(as_logits("logits", z), labels, kept=of_examples, **options)
    if ignore_index is not None:
        others = ~checks.equals("ignore_index", labels, ignore_index)
        kept = others if kept is None else others & kept
    y, known = checks.class_ids(labels, rows.classes)
    return _of_kept(lambda z: nan_unless(known, of_rows.row_label_cross_entropy(z, y)), kept, z)


def _of_kept(function, kept, *rows):
    """The losses of the rows, with loss and gradient 0 where `kept` is False, even if a row has NaN."""
    if kept is None:
        return function(*rows)
    return jnp.where(kept, function(*(of_rows.still_unless(kept, x) for x in rows)), 0)


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
        labels: integers [..., T] in [0, K), the classes of the example, of which a repeated one counts once; any other
            label gives NaN, and integers of the shape of the logits are refused, as they may be targets.
            Or a pair (indices [..., T], targets [..., T]), with targets y in [0, 1]. Or the targets [..., K] of all
            classes. A label on a masked class costs +inf; in targets of all
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
    if not isinstance(labels, tuple):
        labels = checks.array("labels", labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            targets = checks.floating("labels", labels.astype(z.dtype) if labels.dtype == jnp.bool_ else labels)
            checks.shape("labels", targets, z.shape, "that of the logits")
            if ignore_index is not None:
                z = z.where(targets != checks.integer("ignore_index", ignore_index, "an integer or None"))
            both = z, as_logits("labels", targets)
            return evaluate(losses.binary_cross_entropy, both, None, None, weights, reduction)
        if labels.shape == z.shape:
            raise ValueError(
                f"`labels` of shape {labels.shape} may be class ids or the targets of all classes: give targets as "
                "booleans or floating-point numbers, and class ids as a pair (ids, ones)."
            )
    labels, known = label_sets(labels, ignore_index, z)
    examples = Examples(known=known)
    return evaluate(losses.binary_cross_entropy, z, labels, None, weights, reduction, examples=examples)


@readable
@sharded_like("features")
def linear_softmax_cross_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Cross entropy of a linear layer and its softmax, without the logits [..., K].

    `softmax_cross_entropy_with_integer_labels(softjax.linear(features, kernel, bias), labels, ...)`: logits that are
    made in another way, with a softcap, a temperature or a mask, are given to that function. The gradient of a mean or
    sum is taken in the forward pass, in three matrix products, where the placement says so; otherwise in the backward
    pass, in four.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        labels: integers [...] in [0, K), or a pair (indices [..., T], probabilities [..., T]), whose probabilities need
            not sum to 1 and are added for a repeated class. A label out of range gives NaN, in loss and gradient, which
            is 0 where the cotangent of the loss is 0; a label on a masked class costs +inf.
        bias: [K]; None for 0. A class with bias -inf is masked.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        ignore_index: a label whose examples have loss and gradient 0 and are left out of the mean; None for none. In a
            pair, its entries have weight 0, and an example with no other entry is ignored.
        label_smoothing: in [0, 1]: the share of the label that is spread over all classes that are not masked.
        z_loss: the factor of A^2 in the loss, for A = log sum_k exp z_k.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.

    Returns:
        L in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, labels = jnp.eye(2), 2 * jnp.eye(2, 3), jnp.array([0, 1])
        >>> print(softjax.linear_softmax_cross_entropy(features, kernel, labels, reduction="mean"))
        0.2395

    Source: Notes on gradients, 1 (softmax loss, a batch and its mean); The softmax function and its derivative (the
    softmax layer), whose Jacobian of size [K, D K] is never built.
    """
    return cross_entropy_of(
        linear(features, kernel, bias, class_axis=class_axis),
        labels,
        weights=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
    )
