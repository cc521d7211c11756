"""Linear scores: the logits are the features times a kernel, as in the last layer of a classifier or a language model.

    z = features @ kernel + bias        p = softmax(z)

Nothing of size [N, K] is held, forward or backward, and the kernel is neither transposed nor padded by a copy.
"""

import functools as ft
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _arguments, _mesh, _placement, losses
from ._examples import Problem, evaluate
from ._gibbs import Columns, Labels, dot
from ._mesh import AxisName, Shards
from ._placement import BlockSize
from .losses import Loss


def of_linear(
    loss: Loss,
    features: ArrayLike,
    kernel: ArrayLike,
    example: Any = None,
    per_class: Any = None,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """A loss of linear scores, which are never held all at once.

    z_k = sum_d features_d kernel_dk + bias_k

    Args:
        loss: a `softjax.Loss`; those of `softjax.losses` or your own.
        features: [..., D].
        kernel: [D, K] with `class_axis=-1`, as that of a Flax `Dense`; [K, D] with 0, as an embedding table.
        example: what the loss knows of an example: a pytree of arrays [..., *].
        per_class: what it knows of a class: a pytree of arrays [K, *].
        bias: [K]; None for 0. A class of -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: booleans [K], the classes to include; None for all.
        weights: of the examples [...]; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            kernel, per_class, bias and where are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        The loss [...], or a scalar, in at least float32.

    Raises:
        ValueError: if the shapes don't fit together, or an option is none of those above.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import softjax
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]])
        >>> print(softjax.of_linear(softjax.losses.focal(gamma=2.0), features, kernel, jnp.array([2])))
        [0.00414]

    Source: The softmax function and its derivative (the softmax layer), whose Jacobian of size [K, D K] is never built.
    """
    shards = Shards.named(axis_name, batch_axis_name)
    scores = _Linear(features, kernel, bias, class_axis, where, example, per_class, shards)
    weights = _arguments.weights(weights, scores.batch, scores.dtype)
    return scores.evaluate(loss, weights, _arguments.reduction(reduction), block_size)


class _Linear:
    """The checked arguments that all functions of linear scores have."""

    def __init__(self, features, kernel, bias, class_axis, where, example, per_class, shards):
        features = _arguments.floating("features", features)
        kernel, self.axis = checked_kernel(kernel, class_axis)
        shards.check("kernel", kernel, "features", features)
        self.shards, d, k = shards, kernel.shape[1 - self.axis], kernel.shape[self.axis]
        _arguments.shape("features", features, (*features.shape[:-1], d), "[..., D] for the D of `kernel`")
        self.k, self.count = k, shards.total or k * _mesh.size(shards.classes)  # on this device, and on all
        self.batch = features.shape[:-1]
        self.n = math.prod(self.batch)
        live, bias = _arguments.live_classes(where, "bias", bias, k, "[K] for the K of `kernel`")
        example = _arguments.leading("example", example, self.batch, "the leading axes of `features`")
        per_class = _arguments.leading("per_class", per_class, (k,), "[K] for the K of `kernel`")

        arrays = _arguments.inexact((features, kernel, bias, example, per_class))
        self.given_dtype = _arguments.common_dtype(*arrays)
        self.dtype = _arguments.wide(self.given_dtype)
        self.features, self.example = self.wide((features.reshape(self.n, d), example))
        self.classes = _Classes(*map(self.of_classes, (kernel, bias, live, per_class)))

    def wide(self, tree):
        return _arguments.cast(tree, self.dtype)

    def of_classes(self, tree):
        """Half-precision arrays of the classes are made wide block by block, not here."""
        return jax.tree.map(lambda a: self.wide(a) if a.dtype.itemsize >= 4 else a, tree)

    def uniform(self):
        """The probability of each of this device's classes [K] if all that are not left out have the same."""
        live = self.classes.live
        if live is None:
            return jnp.full(self.k, 1 / self.count, self.dtype)
        count = _mesh.total(live.sum(), self.shards.classes)
        return live.astype(self.dtype) / jnp.maximum(count, 1).astype(self.dtype)

    def evaluate(self, loss, weights, reduction, block_size, kept=None, known=None, shares=None):
        placement = _placement.of(block_size, self.n, self.k, self.features.shape[1], reduction, self.dtype)
        loss = losses.as_tree(loss, self.dtype)
        examples, of_examples = (self.features, self.example), (weights, kept, known, shares)
        options = self.axis, reduction, placement, self.shards
        out = _evaluate(loss, examples, tuple(self.classes), of_examples, *options)
        return out.reshape(*self.batch, *out.shape[1:]) if reduction == "none" else out


class _Classes(NamedTuple):
    kernel: Array
    bias: Array | None
    live: Array | None
    per_class: Any
    of_labels: Any = None  # per class, also of those that are left out; in place of the former


def checked_kernel(kernel: ArrayLike, class_axis: int) -> tuple[Array, int]:
    """(the checked kernel, the axis of its classes)."""
    kernel, axis = _arguments.floating("kernel", kernel), _arguments.integer("class_axis", class_axis, "0 or -1")
    if axis not in (0, 1, -1):
        raise ValueError(f"`class_axis` must be 0 or -1, got {class_axis!r}.")
    axis %= 2
    if kernel.ndim != 2 or kernel.shape[axis] == 0:
        wanted = ("[K, D]", "[D, K]")[axis]
        raise ValueError(f"`kernel` must have shape {wanted} with at least one class, got {kernel.shape}.")
    return kernel, axis


@ft.partial(jax.jit, static_argnums=(4, 5, 6, 7), inline=True)
def _evaluate(loss, examples, classes, of_examples, axis, reduction, placement, shards):
    weights, kept, known, shares = of_examples
    columns = Partial(_COLUMNS[axis], loss.columns)
    problem = Problem(columns, Partial(_finish, loss.finish), examples, examples[1], classes)
    n, k = examples[0].shape[0], classes[0].shape[axis]
    options = {"weights": weights, "kept": kept, "known": known, "shares": shares, "reduction": reduction}
    return evaluate(problem, (axis, 0, 0, 0, 0), n, k, placement, shards, **options)


def _columns(axis, columns, examples, block, ids):
    (features, example), (kernel, bias, live, per_class, of_labels) = examples, block
    if live is not None:
        kernel = jnp.where(jnp.expand_dims(live, 1 - axis), kernel, 0)
        bias = jnp.where(live, 0 if bias is None else bias, -jnp.inf).astype(kernel.dtype)
        per_class = _arguments.only(live, per_class)
    z = dot(features, kernel if axis else kernel.T)
    return columns(z if bias is None else z + bias[None], ids, example, per_class if of_labels is None else of_labels)


_COLUMNS = (ft.partial(_columns, 0), ft.partial(_columns, 1))  # made once: JAX compares functions by identity


def _finish(finish, totals, example, *_):
    return finish(totals, example)


def linear_softmax_cross_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Cross entropy of a linear layer and its softmax, without ever holding the logits [..., K].

    L = -sum_k y_k log p_k + z_loss A^2, with p = softmax(z), A = log sum_k exp z_k,
    z = softcap tanh((features @ kernel + bias) / softcap) / temperature,
    y_k = class_weights_k ((1 - label_smoothing) 1{k = label} + label_smoothing / K).

    With reduction "mean" or "sum" the gradient is taken in the forward pass, one tile of examples after
    the other, at the price of three matrix products; otherwise in the backward pass, at that of four.

    Args:
        features: [..., D].
        kernel: [D, K] with `class_axis=-1`, as that of a Flax `Dense`; [K, D] with 0, as an embedding table.
        labels: integers [...] in [0, K); or a pair (indices [..., T], probabilities [..., T]) of which
            a class named twice has the sum, and which need not sum to 1. Any other label gives NaN, in
            the loss and in the gradient; a label on a class that is left out costs +inf.
        bias: [K]; None for 0. A class of -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: booleans [K], the classes to include; None for all.
        weights: of the examples [...]; None for 1. Each loss is multiplied by its own.
        class_weights: [K]; None for 1. Those of the cross entropy, not of the z-loss.
        ignore_index: a label whose examples have loss and gradient 0, and are no part of the mean. In a
            pair, its indices have no weight, and an example that has no other is ignored.
        label_smoothing: in [0, 1]; K counts the classes that are not left out. Pairs are smoothed too.
        z_loss: the factor of A^2.
        softcap: the bound of the logits; None for none.
        temperature: what the logits are divided by, after the softcap: a scalar.
        reduction: "none", "sum", or "mean": sum(w L) / sum(w v), and 0 where that sum is 0; v is the class
            weight of the label, or 1 with a pair, as in PyTorch.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            kernel, bias, where and class_weights are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        L in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if the shapes don't fit together, or an option is none of those above.
        TypeError: if an array is not of the kind above.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softjax import linear_softmax_cross_entropy
        >>> features, kernel = jnp.eye(2), jnp.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> print(linear_softmax_cross_entropy(features, kernel, jnp.array([0, 1]), reduction="mean"))
        0.2395

    Source: Notes on gradients, 1 (softmax loss, a batch and its mean); The softmax function and its
    derivative (the softmax layer).
    """
    shards = Shards.named(axis_name, batch_axis_name)
    scores = _Linear(features, kernel, bias, class_axis, where, None, None, shards)
    reduction = _arguments.reduction(reduction)
    labels, known, kept = _labels(labels, ignore_index, scores.batch, scores.count)
    if kept is not None:
        scores.features = jnp.where(kept[:, None], scores.features, 0)  # what an ignored example is does not matter
    scores.example = scores.wide(labels)
    weights = _arguments.weights(weights, scores.batch, scores.dtype)

    loss, rate, shares = losses.cross_entropy, None, None
    if not _is(label_smoothing, 0):
        rate = _arguments.scalar("label_smoothing", label_smoothing)
    if class_weights is not None:
        class_weights = per_class = _arguments.floating("class_weights", class_weights).astype(scores.dtype)
        _arguments.shape("class_weights", per_class, (scores.k,), "[K] for the K of `kernel`")
        if reduction == "mean" and not isinstance(labels, tuple):
            shares = _mesh.of_class(scores.example, lambda place: per_class[place], scores.k, shards.classes)
    if not (rate is None and class_weights is None):
        loss = Loss(Partial(_weighed, rate), loss.finish)
        of_labels = None if rate is None else scores.uniform(), class_weights
        scores.classes = scores.classes._replace(of_labels=of_labels)
    if not _is(z_loss, 0):
        loss = losses.z_loss(loss, _arguments.scalar("z_loss", z_loss))
    loss = _of_logits_made(loss, softcap, temperature)
    return scores.evaluate(loss, weights, reduction, block_size, kept, known, shares)


def _weighed(rate, z, ids, labels, per_class):
    """Columns of the cross entropy of labels that are smoothed to a prior, and weighed, per class."""
    prior, weights = per_class
    y = losses.of_labels(labels, z)
    if rate is not None:
        y = losses.smoothed(y, rate, prior)
    return Columns(z, y=y if weights is None else losses.weighed(y, weights[Labels(y.ids, ids).within], weights))


def _labels(labels, ignore_index, batch, k):
    """(labels as class ids [N], or a pair [N, T]; whether they are classes [N]; whether they are kept [N] or None)."""
    if not isinstance(labels, tuple):
        labels = _arguments.integers("labels", labels)
        _arguments.shape("labels", labels, batch, "the leading axes of `features`")
        labels = labels.reshape(-1)
        ids, known = _arguments.class_ids(labels, k)
        if ignore_index is None:
            return ids, known, None
        ignored = _arguments.equals("ignore_index", labels, ignore_index)
        return jnp.where(ignored, 0, ids), known | ignored, ~ignored
    if len(labels) != 2:
        raise ValueError(f"`labels` must be integers or a pair (indices, probabilities), got {len(labels)} arrays.")
    labels, probabilities = _arguments.integers("labels", labels[0]), _arguments.floating("labels", labels[1])
    if labels.ndim == 0:
        raise ValueError("`labels` must be a pair of arrays [..., T], got a single number.")
    _arguments.shape("labels", labels, (*batch, labels.shape[-1]), "[..., T] for the leading axes of `features`")
    _arguments.shape("labels", probabilities, labels.shape, "probabilities as indices")
    labels, probabilities = (a.reshape(math.prod(batch), a.shape[-1]) for a in (labels, probabilities))
    ids, known = _arguments.class_ids(labels, k)
    if ignore_index is None:
        return (ids, probabilities), known.all(-1), None
    ignored = _arguments.equals("ignore_index", labels, ignore_index)
    pair = (jnp.where(ignored, 0, ids), jnp.where(ignored, 0, probabilities))
    return pair, (known | ignored).all(-1), ~ignored.all(-1)


def _is(x, number):
    """Whether an option was left at what does nothing."""
    return isinstance(x, int | float) and not isinstance(x, bool) and x == number


def _of_logits_made(loss, softcap, temperature):
    if not _is(temperature, 1):
        loss = losses.temperature(loss, _arguments.scalar("temperature", temperature))
    return loss if softcap is None else losses.softcap(loss, _arguments.scalar("softcap", softcap))


def linear_expectation(
    features: ArrayLike,
    kernel: ArrayLike,
    values: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
) -> Array:
    """Expectation of values under the softmax of a linear layer, without ever holding the logits [..., K].

    E_p[v] = sum_k p_k v_k, with p = softmax((features @ kernel + bias) / temperature).

    It is attention of the features to K keys, the kernel, with their values.

    Args:
        features: [..., D].
        kernel: [D, K] with `class_axis=-1`, as that of a Flax `Dense`; [K, D] with 0, as an embedding table.
        values: v [K, E].
        bias: [K]; None for 0. A class of -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: booleans [K], the classes to include; None for all.
        temperature: what the logits are divided by, a scalar.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            kernel, values, bias and where are then this device's shard; class ids are global.

    Returns:
        E_p[v] [..., E], in the type that the arguments promote to; 0 where no class is left.

    Raises:
        ValueError: if the shapes don't fit together, or an option is none of those above.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import linear_expectation
        >>> features, kernel, values = jnp.eye(2), jnp.zeros((2, 4)), jnp.array([[1.0], [2.0], [3.0], [6.0]])
        >>> print(linear_expectation(features, kernel, values))
        [[3.]
         [3.]]

    Source: CATSMILE-1012 (softargmax), expectation of t_k under p_k.
    """
    weights, axis = checked_kernel(kernel, class_axis)
    payoffs = _arguments.values(values, weights.shape[axis], "kernel")
    scores = _Linear(features, weights, bias, class_axis, where, None, payoffs, Shards.named(axis_name))
    out = scores.evaluate(_of_logits_made(losses.expectation, None, temperature), None, "none", block_size)
    return out.astype(scores.given_dtype)


def linear_logsumexp(
    features: ArrayLike,
    kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
) -> Array:
    """Logarithm of the sum of exponentials of linear scores, without ever holding them all.

    A = log sum_k exp z_k, with z = softcap tanh((features @ kernel + bias) / softcap) / temperature.

    Args:
        features: [..., D].
        kernel: [D, K] with `class_axis=-1`, as that of a Flax `Dense`; [K, D] with 0, as an embedding table.
        bias: [K]; None for 0. A class of -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: booleans [K], the classes to include; None for all.
        softcap: the bound of the logits; None for none.
        temperature: what the logits are divided by, after the softcap: a scalar.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            kernel, bias and where are then this device's shard; class ids are global.

    Returns:
        A [...], in at least float32; -inf where no class is left.

    Raises:
        ValueError: if the shapes don't fit together, or an option is none of those above.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import linear_logsumexp
        >>> print(linear_logsumexp(jnp.ones((1, 2)), jnp.zeros((2, 8))), jnp.log(8.0))
        [2.0794] 2.0794

    Source: CATSMILE-1012 (softargmax), which would reserve the name softmax for it.
    """
    scores = _Linear(features, kernel, bias, class_axis, where, None, None, Shards.named(axis_name))
    return scores.evaluate(_of_logits_made(losses.logsumexp, softcap, temperature), None, "none", block_size)
