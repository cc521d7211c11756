"""Losses of a linear layer, such as the last layer of a classifier or a language model, or the other view of a pair.

    z = features @ kernel + bias        p = softmax(z)

No array [N, K] is in memory, forward or backward, and the kernel is neither transposed nor padded by a copy.
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
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike

from . import _checks, _mesh, losses, scores
from ._arguments import checked, checked_array, checked_scalar
from ._checks import Where
from ._dtypes import PerPair, common_dtype, compute_dtype, is_inexact
from ._evaluate import evaluate, of
from ._explicit import sharded_like
from ._gibbs import Totals
from ._mesh import AxisName
from ._pair import Pair
from ._placement import BlockSize
from ._products import PrecisionLike
from ._reductions import Examples
from ._signatures import readable
from ._unknown import nan_unless
from .losses import Loss
from .scores import Scores


@readable
class Metrics(NamedTuple):
    """What a trainer logs of every example [...], from the pass over the classes that computes the loss.

    All are constants of differentiation. An ignored example has 0, False and the class -1.
    """

    log_prob: Array
    """log p_y of the label; for a pair of labels, the sum of their log p_k, times their probabilities"""
    logsumexp: Array
    """A = log sum_k exp z_k"""
    z_loss: Array
    """z_loss A^2, the term of the loss"""
    entropy: Array
    """-sum_k p_k log p_k"""
    predicted: Array
    """the class with the largest logit, the lowest id at a tie; int32, -1 where all classes are left out"""
    correct: Array
    """booleans: whether that is the label; of a pair, the label with the largest probability, the first at a tie"""


@readable
@sharded_like("features")
def of_linear(
    loss: Loss,
    features: ArrayLike,
    kernel: ArrayLike,
    example: Any = None,
    per_class: Any = None,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """A loss of a linear layer, z_k = sum_d features_d kernel_dk + bias_k, without the logits [..., K].

    Args:
        loss: a `softjax.Loss`, from `softjax.losses` or your own. One of several numbers per example, such as
            `losses.expectation`, is not reduced: take `reduction="none"`, and the mean of the result over its
            axes.
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        example: data of each example for the loss: a pytree of arrays [..., *].
        per_class: data of each class for the loss: a pytree of arrays [K, *].
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
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
        The loss [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])
        >>> print(softjax.of_linear(softjax.losses.focal(gamma=2.0), features, kernel, jnp.array([2])))
        [0.00414]

    Source: The softmax function and its derivative (the softmax layer), whose Jacobian of size [K, D K] is never built.
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    return of(loss, linear, example, per_class, weights=weights, reduction=reduction, block_size=block_size)


@readable
@sharded_like("features")
def linear_softmax_cross_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "none",
    has_aux: bool = False,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Any:
    """Cross entropy of a linear layer and its softmax, without the logits [..., K].

    L = -sum_k y_k log p_k + z_loss A^2, with p = softmax(z), A = log sum_k exp z_k,
    z = softcap tanh((features @ kernel + bias) / softcap) / temperature,
    y_k = class_weights_k ((1 - label_smoothing) 1{k = label} + label_smoothing / K), K being the classes not left out.

    The gradient of a mean or sum is taken in the forward pass, in three matrix products, where the placement says so;
    otherwise in the backward pass, in four.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        labels: integers [...] in [0, K), or a pair (indices [..., T], probabilities [..., T]), whose
            probabilities need not sum to 1 and are added for a repeated class. A label out of range gives NaN,
            in loss and gradient, which is 0 where the cotangent of the loss is 0; a label on a class that is
            left out costs +inf.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        class_weights: [K], a factor of the cross entropy of each class; None for 1.
        ignore_index: a label whose examples have loss and gradient 0 and are left out of the mean; None for
            none. In a pair, its entries have weight 0, and an example with no other entry is ignored.
        label_smoothing: in [0, 1]: the share of the label that is spread over all classes that are not left
            out.
        z_loss: the factor of A^2 in the loss.
        softcap: a positive scalar, the bound of the logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        reduction: "none", "sum", or "mean": sum(w L) / sum(w v), and 0 if sum(w v) is 0; v is the class weight
            of the label, or 1 with a pair, as in PyTorch.
        has_aux: whether `softjax.Metrics` of every example are returned too, as in `jax.value_and_grad`.
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
        L in nats [...], or a scalar, in at least float32; with `has_aux`, the pair (L, `softjax.Metrics`).

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, labels = jnp.eye(2), 2 * jnp.eye(2, 3), jnp.array([0, 1])
        >>> print(softjax.linear_softmax_cross_entropy(features, kernel, labels, reduction="mean"))
        0.2395
        >>> loss, metrics = softjax.linear_softmax_cross_entropy(features, kernel, labels, has_aux=True)
        >>> print(metrics.entropy, metrics.correct)
        [0.6656 0.6656] [ True  True]

    Source: Notes on gradients, 1 (softmax loss, a batch and its mean); The softmax function and its derivative (the
    softmax layer).
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    return cross_entropy_of(
        linear,
        _without_ignored,
        labels,
        weights=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        z_loss=z_loss,
        reduction=reduction,
        has_aux=has_aux,
        block_size=block_size,
        scaled=ft.partial(of_scaled_logits, softcap=softcap, temperature=temperature),
    )


def cross_entropy_of(
    made: Scores,
    without: Callable[[Scores, Array | None], Scores],
    labels: Any,
    *,
    kept: Array | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    reduction: str = "none",
    has_aux: bool = False,
    block_size: BlockSize = None,
    scaled: Callable[[Loss], Loss] = lambda loss: loss,
) -> Any:
    """The cross entropy of scores, with the options of the public functions.

    `without(scores, kept)` are the scores without the data of ignored examples, which may be NaN; `kept` [N] is False
    for more examples that are ignored; `scaled` changes the loss's logits.
    """
    has_aux = checked("has_aux", has_aux)
    labels, known, of_labels = _label_arrays(labels, ignore_index, made.batch, made.count)
    kept = of_labels if kept is None else kept if of_labels is None else kept & of_labels
    known = known if kept is None else known | ~kept
    if not is_off(label_smoothing) and made.kind.startswith("masked"):
        raise ValueError("`label_smoothing` must be 0 where `where` differs between examples, got another number.")
    made = without(made, kept)
    of_metrics = (labels, known, kept)
    labels, added, shares = _weighted_labels(labels, label_smoothing, class_weights, made)
    loss = losses.cross_entropy
    if not is_off(z_loss):
        loss = losses.z_loss(loss, checked_scalar("z_loss", z_loss))
    examples = Examples(kept=kept, known=known, shares=shares if reduction == "mean" else None)
    more: dict[str, Any] = {"examples": examples}
    if has_aux:
        more |= {"observe": Partial(_metrics, checked_scalar("z_loss", z_loss)), "of_observed": of_metrics}
    return evaluate(scaled(loss), made, labels, added, weights, reduction, block_size, **more)


def _without_ignored(linear, kept):
    """The scores with features 0 in the examples that are ignored, as they may be NaN."""
    if kept is None:
        return linear
    zeroed = lambda features: jnp.where(kept[:, None], features, 0) if is_inexact(features) else features
    return dataclasses.replace(linear, examples=jax.tree.map(zeroed, linear.examples))


def _metrics(z_loss, q, of_examples):
    """The metrics of the totals, for the labels [N], or a pair of class ids and probabilities [N, T]."""
    labels, known, kept = of_examples
    log_p = log_probabilities(q)
    if isinstance(labels, tuple):
        labels, weights = labels
        log_p = jnp.where(weights == 0, 0, weights * log_p)
        labels = jnp.take_along_axis(labels, weights.argmax(-1, keepdims=True), -1)[:, 0]
    a = q.A.value
    z_losses = z_loss * jnp.where(jnp.isneginf(a), 0, a) ** 2
    correct = known & (q.s.top == labels)
    log_prob = jnp.where(known, log_p.sum(-1), jnp.nan)
    metrics = Metrics(log_prob, a, z_losses, _entropy_of(q), q.s.top, correct)
    if kept is None:
        return metrics
    return Metrics(*(jnp.where(kept, x, -1 if x is metrics.predicted else jnp.zeros_like(x)) for x in metrics))


def _entropy_of(q):
    """The entropy [N], as that of dense logits -inf where all classes are left out."""
    return jnp.where(jnp.isneginf(q.a.m), -jnp.inf, q.s.value)


def log_probabilities(q: Totals) -> Array:
    """log p_k [N, T] of the labels, with all digits of a row that is sure."""
    h = q.of_labels
    below = (Pair(*(x[:, None] for x in (q.A.base, q.A.rest))) - jnp.where(jnp.isneginf(h), 0, h)).value
    return jnp.where(jnp.isneginf(h), -jnp.inf, -below)


def _label_arrays(labels, ignore_index, batch, count):
    """(class ids [N] or a pair [N, T], True where they are in range [N], True where they are kept [N] or None)."""
    if not isinstance(labels, tuple):
        labels = _checks.integers("labels", labels)
        _checks.shape("labels", labels, batch, "the leading axes of `features`")
        return _ids_known_kept(labels.reshape(-1), ignore_index, count)
    labels, weights = label_pair(labels, batch)
    ids, known, kept = _ids_known_kept(labels, ignore_index, count)
    if kept is None:
        return (ids, weights), known.all(-1), None
    return (ids, jnp.where(kept, weights, 0)), known.all(-1), kept.any(-1)


def label_pair(labels: tuple, batch: tuple[int, ...], name: str = "labels") -> tuple[Array, Array]:
    """The pair (class ids, probabilities), checked and reshaped to [N, T]."""
    if len(labels) != 2:
        raise ValueError(f"`{name}` must be integers or a pair (indices, probabilities), got {len(labels)} arrays.")
    ids, weights = _checks.integers(name, labels[0]), _checks.floating(name, labels[1])
    if ids.ndim == 0:
        raise ValueError(f"`{name}` must be a pair of arrays [..., T], got a single number.")
    _checks.shape(name, ids, (*batch, ids.shape[-1]), "[..., T] for the leading axes of `features`")
    _checks.shape(name, weights, ids.shape, "probabilities as indices")
    rows = math.prod(batch), ids.shape[-1]
    return ids.reshape(rows), weights.reshape(rows)


def _ids_known_kept(labels, ignore_index, count):
    ids, known = _checks.class_ids(labels, count)
    if ignore_index is None:
        return ids, known, None
    ignored = _checks.equals("ignore_index", labels, ignore_index)
    return jnp.where(ignored, 0, ids), known | ignored, ~ignored


def _weighted_labels(labels, label_smoothing, class_weights, linear):
    """(labels with weights, weights [K] of the classes for every example, class weights [N] of integer labels).

    Both weights together are y_k = w_k ((1 - rate) 1{k = label} + rate / K).
    """
    if class_weights is None and is_off(label_smoothing):
        return labels, None, None
    dtype, shares = compute_dtype(linear.dtype), None
    ids, of_ids = labels if isinstance(labels, tuple) else (labels[:, None], jnp.ones((labels.size, 1), dtype))
    added = None
    if not is_off(label_smoothing):
        rate = checked_scalar("label_smoothing", label_smoothing).astype(dtype)
        of_ids, added = (1 - rate) * of_ids.astype(dtype), rate * _uniform(linear, dtype)
    if class_weights is not None:
        class_weights = checked_array("class_weights", class_weights).astype(dtype)
        _checks.shape("class_weights", class_weights, (linear.k,), "[K] for the K of `kernel`")
        of_labels = _mesh.at_class(ids, lambda position: class_weights[position], linear.k, linear.shards.classes)
        shares = None if isinstance(labels, tuple) else of_labels[:, 0]
        of_ids, added = of_labels * of_ids, None if added is None else class_weights * added
    return (ids, of_ids), added, shares


def _uniform(linear, dtype):
    """The probabilities [K] of this device's classes, equal for all classes that are not left out."""
    if linear.live is None:
        return jnp.full(linear.k, 1 / linear.count, dtype)
    count = _mesh.psum(linear.live.sum(), linear.shards.classes)
    return linear.live.astype(dtype) / jnp.maximum(count, 1).astype(dtype)


def is_off(x: Any, number: float = 0) -> bool:
    """Whether an option has the value that turns it off."""
    return isinstance(x, int | float) and not isinstance(x, bool) and x == number


def of_scaled_logits(loss: Loss, softcap: ArrayLike | None, temperature: ArrayLike) -> Loss:
    """The loss of the logits after a softcap and a temperature."""
    if not is_off(temperature, 1):
        loss = losses.temperature(loss, checked_scalar("temperature", temperature))
    return loss if softcap is None else losses.softcap(loss, checked_scalar("softcap", softcap))


@readable
@sharded_like("features")
def linear_sigmoid_binary_cross_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Binary cross entropy of every class of a linear layer, for examples with any number of labels.

    L = -sum_k (y_k log sigmoid(z_k) + (1 - y_k) log sigmoid(-z_k)), without the logits [..., K], with
    z = softcap tanh((features @ kernel + bias) / softcap) / temperature. It is the sum over the classes of
    `optax.sigmoid_binary_cross_entropy`.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        labels: integers [..., T] in [0, K), the classes of the example, each at most once; any other label
            gives NaN. Or a pair (indices [..., T], targets [..., T]), with targets y in [0, 1]. Or the targets
            [..., K] of all classes, which are constants of differentiation. A label on a class that is left out
            costs +inf; in targets of all classes, that class is not in the sum.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        ignore_index: an entry that is no label, as lists may differ in length; None for none.
        softcap: a positive scalar, the bound of the logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
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
        L in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, labels = jnp.ones((1, 2)), jnp.zeros((2, 4)), jnp.array([[0, 3, -1]])
        >>> print(softjax.linear_sigmoid_binary_cross_entropy(features, kernel, labels, ignore_index=-1))  # 4 log 2
        [2.7726]
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    labels, known = label_sets(labels, ignore_index, linear)
    loss = of_scaled_logits(losses.binary_cross_entropy, softcap, temperature)
    return evaluate(loss, linear, labels, None, weights, reduction, block_size, examples=Examples(known=known))


def label_sets(labels, ignore_index, linear):
    """(data of the examples for `losses.binary_cross_entropy`, True where all labels are in range [N] or None)."""
    dtype = compute_dtype(linear.dtype)
    if not isinstance(labels, tuple):
        labels = _checks.array("labels", labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            targets = _checks.floating("labels", labels.astype(dtype) if labels.dtype == jnp.bool_ else labels)
            _checks.shape("labels", targets, (*linear.batch, linear.k), "[..., K] for the K of `kernel`")
            return PerPair(targets.reshape(linear.n, linear.k)), None
        labels = labels, jnp.ones(labels.shape, dtype)
    labels, targets = label_pair(labels, linear.batch)
    ids, known = _checks.class_ids(labels, linear.count, other=-1)
    if ignore_index is not None:
        ignored = _checks.equals("ignore_index", labels, ignore_index)
        ids, known = jnp.where(ignored, -1, ids), known | ignored
    return (ids, targets), known.all(-1)


@readable
@sharded_like("features")
def linear_expectation(
    features: ArrayLike,
    kernel: ArrayLike,
    values: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Expectation of values under the softmax of a linear layer, without the logits [..., K].

    E_p[v] = sum_k p_k v_k, with p = softmax((features @ kernel + bias) / temperature): attention of the features to
    K keys, the kernel, and their values.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        values: v [K, E].
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        temperature: a positive scalar that divides the logits or squared distances.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.

    Returns:
        E_p[v] [..., E], in the type that the arguments promote to; 0 where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, values = jnp.ones((1, 2)), jnp.zeros((2, 4)), jnp.array([[1.0], [2.0], [3.0], [6.0]])
        >>> print(softjax.linear_expectation(features, kernel, values))
        [[3.]]

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, None, precision, dtype)
    values = _checks.class_values(values, linear.k, "kernel")
    loss = of_scaled_logits(losses.expectation, None, temperature)
    return evaluate(loss, linear, None, values, block_size=block_size).astype(common_dtype(linear, values))


@readable
@sharded_like("features")
def linear_logsumexp(
    features: ArrayLike,
    kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Logarithm of the sum of exponentials of a linear layer, without the logits [..., K].

    A = log sum_k exp z_k, with z = softcap tanh((features @ kernel + bias) / softcap) / temperature.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
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

    Returns:
        A [...], in at least float32; -inf where all classes are left out.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.linear_logsumexp(jnp.ones((1, 2)), jnp.zeros((2, 8))), jnp.log(8.0))
        [2.0794] 2.0794

    Source: CATSMILE-1012 (softargmax), which would reserve the name softmax for it.
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, None, precision, dtype)
    return evaluate(of_scaled_logits(losses.logsumexp, softcap, temperature), linear, block_size=block_size)


@readable
@sharded_like("features")
def linear_log_probs(
    features: ArrayLike,
    kernel: ArrayLike,
    tokens: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    class_axis: int = -1,
    where: Where = None,
    ignore_index: int | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    entropy: bool = False,
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Any:
    """Log-probabilities of tokens under the softmax of a linear layer, without the logits [..., K].

    log p_token = z_token - log sum_k exp z_k of a policy or its reference in PPO, GRPO and DPO, with
    z = softcap tanh((features @ kernel + bias) / softcap) / temperature. Both results have gradients, from one pass
    over the classes forward and one backward.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        tokens: integers [...] in [0, K). Any other token gives NaN, in value and gradient.
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        ignore_index: a token whose log-probability, entropy and gradient are 0; None for none.
        softcap: a positive scalar, the bound of the logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        entropy: whether the entropies -sum_k p_k log p_k are returned too.
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
        log p_token [...], in at least float32; -inf for a class that is left out. With `entropy`, the pair
        (log-probabilities, entropies).

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, tokens = jnp.eye(2), 2 * jnp.eye(2, 3), jnp.array([0, 2])
        >>> log_probs, entropies = softjax.linear_log_probs(features, kernel, tokens, entropy=True)
        >>> print(log_probs.round(2), entropies.round(2))
        [-0.24 -2.24] [0.67 0.67]

    Source: Notes on gradients, 1 (softmax loss); CATSMILE-1012 (softargmax), expectations under p.
    """
    linear = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    scaled = ft.partial(of_scaled_logits, softcap=softcap, temperature=temperature)
    return log_probs_of(linear, _without_ignored, tokens, ignore_index, entropy, block_size, scaled)


def log_probs_of(
    made: Scores,
    without: Callable[[Scores, Array | None], Scores],
    tokens: ArrayLike,
    ignore_index: int | None,
    entropy: bool,
    block_size: BlockSize,
    scaled: Callable[[Loss], Loss] = lambda loss: loss,
) -> Any:
    """The log-probabilities of tokens [...] or [..., T]; the other arguments are those of `cross_entropy_of`."""
    tokens = _checks.integers("tokens", tokens)
    entropy = checked("entropy", entropy)
    several = tokens.ndim == len(made.batch) + 1
    shape = (*made.batch, tokens.shape[-1]) if several else made.batch
    _checks.shape("tokens", tokens, shape, "the leading axes of `features`")
    ids, known, kept = _ids_known_kept(
        tokens.reshape(made.n, *tokens.shape[len(made.batch) :]), ignore_index, made.count
    )
    if several:
        ids, of_ids = jnp.where(known, ids, 0), jnp.ones(ids.shape, compute_dtype(made.dtype))
        finish = _log_probs_and_entropy if entropy else _several_log_probs
        loss = scaled(losses.cross_entropy._replace(finish=finish))
        made = made if kept is None else without(made, kept.any(-1) | entropy)
        out = evaluate(loss, made, (ids, of_ids), block_size=block_size, entropy=entropy)
        log_probs = nan_unless(known.reshape(shape), out[..., : shape[-1]])
        if kept is not None:
            log_probs = jnp.where(kept.reshape(shape), log_probs, 0)
        return (log_probs, out[..., -1]) if entropy else log_probs
    loss = scaled(losses.cross_entropy._replace(finish=_log_prob_and_entropy if entropy else _log_prob))
    examples = Examples(kept=kept, known=known)
    out = evaluate(loss, without(made, kept), ids, block_size=block_size, examples=examples, entropy=entropy)
    return (out[..., 0], out[..., 1]) if entropy else out


_several_log_probs = lambda q, _: log_probabilities(q)
_log_probs_and_entropy = lambda q, _: jnp.concatenate([log_probabilities(q), _entropy_of(q)[:, None]], -1)
_log_prob = lambda q, _: -q.C
_log_prob_and_entropy = lambda q, _: jnp.stack([-q.C, _entropy_of(q)], -1)
