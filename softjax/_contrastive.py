"""Contrastive losses: every example is compared with all others, whose features are the classes of a linear layer.

The similarities [N, N] are not in memory. On a mesh, each device has some of the classes, and all examples: their
features are gathered.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import losses
from ._labelled import cross_entropy_of
from ._of import evaluate
from .arguments import checks
from .arguments.checks import Where
from .arguments.dtypes import common_dtype, compute_dtype, widened
from .arguments.signatures import readable
from .arguments.table import checked, checked_array, checked_scalar
from .compute.placement import BlockSize
from .logits import linear
from .logits.products import PrecisionLike
from .losses import Loss
from .parallel import collectives
from .parallel.collectives import AxisName, Shards
from .parallel.explicit import sharded_like
from .sums.columns import Columns, Weights


@readable
@sharded_like("x")
def contrastive_loss(
    x: ArrayLike,
    y: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    symmetric: bool = True,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
) -> Array:
    """Contrastive loss of two views of N examples, without the similarities [N, N].

    InfoNCE, with `symmetric=False`:  L_i = -log softmax_j(x_i . y_j / temperature)_i
    CLIP, with `symmetric=True`:      the mean of L_i and of L_i with x and y exchanged

    It is the cross entropy of a linear layer whose kernel is the other view. For cosine similarities, as in CLIP,
    normalise the features first.

    Args:
        x: features of one view [N, D].
        y: features of the other view [N, D], in the same order.
        temperature: a positive scalar that divides the similarities: CLIP's exp(-logit_scale).
        symmetric: whether each view is also told apart given the other.
        where: the pairs to include: booleans [N, N] (not on a mesh), or a function of two
            numbers, (example id, class id) -> boolean; None for all. Leave out known false negatives.
        weights: [N], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the examples are sharded; None for
            none. x, y and weights are then this device's shard. Each example is compared with the examples of
            all devices, and a sum or mean is over all examples.

    Returns:
        L in nats [N], or a scalar, in at least float32. All arguments have gradients.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.contrastive_loss(jnp.eye(3), jnp.eye(3), temperature=0.5, reduction="mean"))
        0.2395

    Source: van den Oord et al., 2018 (InfoNCE); Radford et al., 2021 (CLIP); Notes on gradients, 1 (softmax loss).
    """
    views = _Views(x, y, weights, reduction, axis_name, block_size, precision)
    symmetric, temperature = checked("symmetric", symmetric), checked_scalar("temperature", temperature)

    def one_way(x, y, where):
        logits = views.similarities(x, y) / temperature
        logits = logits if where is None else logits.masked("where", where)
        return cross_entropy_of(logits, views.ids, weights=views.weights, reduction=reduction)

    where = _mask(where, views)
    loss = one_way(views.x, views.y, where)
    if symmetric:
        loss = (loss + one_way(views.y, views.x, _transposed(where))) / 2
    return views.of_device(loss)


@readable
@sharded_like("x")
def nt_xent_loss(
    x: ArrayLike,
    y: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
) -> Array:
    """NT-Xent, the contrastive loss of SimCLR, of two views of N examples, without the similarities [2N, 2N].

    With the 2N views v = (x, y) and the other view j of the same example,
    l_i = -log(exp(v_i . v_j / temperature) / sum_{k != i} exp(v_i . v_k / temperature)),
    and L is the mean of the l of both views. For cosine similarities, as in SimCLR, normalise the features first.

    Args:
        x: features of one view [N, D].
        y: features of the other view [N, D], in the same order.
        temperature: a positive scalar that divides the similarities.
        weights: [N], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the examples are sharded; None for
            none. Each view is compared with the views of all devices, and a sum or mean is over all examples.

    Returns:
        L in nats [N], or a scalar, in at least float32. All arguments have gradients.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.nt_xent_loss(jnp.eye(3), jnp.eye(3), temperature=0.5, reduction="mean"))
        0.4327

    Source: Chen et al., 2020 (SimCLR), equation 1; Notes on gradients, 1 (softmax loss).
    """
    views = _Views(x, y, weights, reduction, axis_name, block_size, precision)
    n, reduction = views.n, views.reduction
    both = jnp.concatenate([views.x, views.y])  # the classes of this device
    ids = jnp.arange(2 * n * views.devices, dtype=jnp.int32)
    other_view = jnp.where(ids % (2 * n) < n, ids + n, ids - n)
    weights = None if views.weights is None else jnp.tile(views.weights.reshape(-1, 1, n), (1, 2, 1)).reshape(-1)
    logits = (views.similarities(both, both) / checked_scalar("temperature", temperature)).where(_OTHERS)
    loss = cross_entropy_of(logits, other_view, weights=weights, reduction=reduction)
    if reduction != "none":
        return loss / 2 if reduction == "sum" else loss
    return views.of_device(loss.reshape(-1, 2, n).mean(1).reshape(-1))


@readable
@sharded_like("x")
def supervised_contrastive_loss(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
) -> Array:
    """Supervised contrastive loss (SupCon) of N examples, without the similarities [N, N].

    L_i = -1 / |P_i| sum_{p in P_i} log(exp(x_i . x_p / temperature) / sum_{k != i} exp(x_i . x_k / temperature)),
    where P_i are the other examples with the label of example i; 0 where there are none. Several views of an example
    are several examples. For cosine similarities, as in the paper, normalise the features first.

    Args:
        x: features [N, D].
        labels: integers [N]; any integer is a label.
        temperature: a positive scalar that divides the similarities.
        weights: [N], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the examples are sharded; None for
            none. Each example is compared with the examples of all devices, and a sum or mean is over all
            examples.

    Returns:
        L in nats [N], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> x, labels = jnp.repeat(jnp.eye(2), 2, axis=0), jnp.array([0, 0, 1, 1])
        >>> print(softjax.supervised_contrastive_loss(x, labels, temperature=0.5, reduction="mean"))
        0.2395

    Source: Khosla et al., 2020 (supervised contrastive learning), equation 2.
    """
    views = _Views(x, None, weights, reduction, axis_name, block_size, precision)
    labels = checks.integers("labels", labels)
    checks.shape("labels", labels, (views.n,), "[N] for the N of `x`")
    example = collectives.all_gather(labels, views.shards.classes), views.ids
    logits = (views.similarities(views.x, views.x) / checked_scalar("temperature", temperature)).where(_OTHERS)
    loss = evaluate(_SUPERVISED, logits, example, labels, views.weights, reduction)
    return views.of_device(loss)


def _supervised_columns(z, ids, example, labels):
    """Those of a cross entropy, with weight 1 for the other examples that have the label."""
    of_examples, own = example
    positive = (of_examples[:, None] == labels[None]) & (ids[None] != own[:, None])
    none = jnp.zeros((z.shape[0], 0), ids.dtype)
    return Columns(z, labels=(Weights(none, none.astype(z.dtype), positive.astype(z.dtype)),))


_SUPERVISED = Loss(_supervised_columns, lambda q, _: q.C / jnp.maximum(q.Y, 1))


@readable
@sharded_like("x")
def siglip_loss(
    x: ArrayLike,
    y: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    logit_bias: ArrayLike = 0.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
) -> Array:
    """Sigmoid loss of two views of N examples (SigLIP), without the similarities [N, N].

    L_i = -sum_j log sigmoid(s_ij (x_i . y_j / temperature + logit_bias)), with s_ij = 1 for i = j, and -1 otherwise.
    The mean over i is the loss of the paper, which normalises the features.

    Args:
        x: features of one view [N, D].
        y: features of the other view [N, D], in the same order.
        temperature: a positive scalar that divides the similarities: 1 / t of the paper, which starts at 1/10.
        logit_bias: a scalar that is added to them; the paper starts at -10.
        where: the pairs to include: booleans [N, N] (not on a mesh), or a function of two
            numbers, (example id, class id) -> boolean; None for all.
        weights: [N], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the examples are sharded; None for
            none. Each example is compared with the examples of all devices, and a sum or mean is over all
            examples.

    Returns:
        L in nats [N], or a scalar, in at least float32. All arguments have gradients.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.siglip_loss(jnp.eye(3), jnp.eye(3), temperature=0.1, logit_bias=-5.0, reduction="mean"))
        0.02015

    Source: Zhai et al., 2023 (sigmoid loss for language image pre-training), section 3.2.
    """
    views = _Views(x, y, weights, reduction, axis_name, block_size, precision)
    scale, bias = checked_scalar("temperature", temperature), checked_scalar("logit_bias", logit_bias)
    logits = views.similarities(views.x, views.y) / scale + bias
    where = _mask(where, views)
    logits = logits if where is None else logits.masked("where", where)
    return views.of_device(evaluate(losses.binary_cross_entropy, logits, views.ids, None, views.weights, reduction))


_OTHERS = lambda i, k: i != k  # all classes but the example itself


class _Views:
    """The checked arguments of a contrastive loss: features x of N examples, and y of their other views or None."""

    def __init__(self, x, y, weights, reduction, axis_name, block_size, precision):
        x = checked_array("x", x)
        if x.ndim != 2 or x.shape[0] == 0:
            raise ValueError(f"`x` must have shape [N, D] with at least one example, got {x.shape}.")
        checks.known_count("x", x.shape, x.shape[0])  # each example is a class of the others
        y = x if y is None else checked_array("y", y)
        checks.shape("y", y, x.shape, "that of `x`")
        self.axis_name, self.shards = axis_name, Shards.named(axis_name)
        self.shards.check("x", x)
        self.shards.check("y", y)
        self.n, self.devices = x.shape[0], collectives.device_count(self.shards.classes)
        self.ids = jnp.arange(self.n * self.devices, dtype=jnp.int32)
        self.reduction = checked("reduction", reduction)
        # Features are examples and classes, on several devices: their gradients are added up, then rounded.
        dtype = common_dtype(x, y)
        self.how = {"dtype": dtype if dtype.itemsize < 4 else None, "block_size": block_size, "precision": precision}
        self.x, self.y = widened(x), widened(y)
        weights = checks.example_weights(weights, (self.n,), compute_dtype(x.dtype))
        self.weights = None if weights is None else collectives.all_gather(weights, self.shards.classes)

    def similarities(self, x, y):
        """The logits of all examples x and of this device's classes y."""
        everyone = collectives.all_gather(x, self.shards.classes, varying=True)
        return linear(everyone, y, class_axis=0, axis_name=self.axis_name, **self.how)

    def of_device(self, loss):
        """The losses of this device's examples, of those of all examples."""
        if self.reduction != "none" or not self.shards.classes:
            return loss
        return lax.dynamic_slice_in_dim(loss, self.n * collectives.device_index(self.shards.classes), self.n)


def _mask(where, views):
    """The argument `where` of two views."""
    if where is None or callable(where):
        return where
    if views.shards.classes:
        raise ValueError("`where` must be a function of ids where the examples are sharded, got an array.")
    where = checks.booleans("where", where)
    checks.shape("where", where, (views.n, views.n), "[N, N] for the N of `x`")
    return where


def _transposed(where):
    if callable(where):
        return lambda i, k: where(k, i)
    return None if where is None else where.T
