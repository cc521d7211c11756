"""Contrastive losses: the classes of an example are the other view's examples."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _checks, _mesh
from ._arguments import checked, checked_array, documented
from ._dtypes import compute_dtype, widened
from ._linear import linear_softmax_cross_entropy
from ._mesh import AxisName, Shards
from ._placement import BlockSize


@documented()
def contrastive_loss(
    x: ArrayLike,
    y: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    symmetric: bool = True,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
) -> Array:
    """Contrastive loss of two views of N examples, without the similarities [N, N].

    InfoNCE, with `symmetric=False`:  L_i = -log softmax_j(x_i . y_j / temperature)_i
    CLIP, with `symmetric=True`:      the mean of L_i and of L_i with x and y exchanged

    It is the cross entropy of a linear layer whose kernel is the other view. For cosine similarities, as in CLIP,
    normalise the features first.

    Args:
        x: features of one view [N, D].
        temperature: a positive scalar that divides the similarities: CLIP's exp(-logit_scale).
        weights: [N], a factor of the loss of each example; None for 1.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the examples are sharded; None for none.
            x, y and weights are then this device's shard. Each example is compared with the examples of all devices,
            and a sum or mean is over all examples.

    Returns:
        L in nats [N], or a scalar, in at least float32. All arguments have gradients.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.contrastive_loss(jnp.eye(3), jnp.eye(3), temperature=0.5, reduction="mean"))
        0.2395

    Source: van den Oord et al., 2018 (InfoNCE); Radford et al., 2021 (CLIP); Notes on gradients, 1 (softmax loss).
    """
    x, y = checked_array("x", x), checked_array("y", y)
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"`x` must have shape [N, D] with at least one example, got {x.shape}.")
    _checks.shape("y", y, x.shape, "that of `x`")
    symmetric, reduction = checked("symmetric", symmetric), checked("reduction", reduction)
    shards, n = Shards.named(axis_name), x.shape[0]
    shards.check("x", x)
    shards.check("y", y)
    if symmetric or shards.classes:  # gradients of both directions and of all devices are added up, then rounded
        x, y = widened(x), widened(y)
    weights = _checks.example_weights(weights, (n,), compute_dtype(x.dtype))
    weights = None if weights is None else _mesh.all_gather(weights, shards.classes)
    labels = jnp.arange(n * _mesh.device_count(shards.classes), dtype=jnp.int32)
    options: dict[str, Any] = {"reduction": reduction, "block_size": block_size, "axis_name": axis_name}
    options["temperature"] = temperature

    def one_way(x, y):
        x = _mesh.all_gather(x, shards.classes, varying=True)
        return linear_softmax_cross_entropy(
            x, y, labels, class_axis=0, weights=weights, temperature=temperature, **options
        )

    loss = (one_way(x, y) + one_way(y, x)) / 2 if symmetric else one_way(x, y)
    if reduction != "none" or not shards.classes:
        return loss
    return lax.dynamic_slice_in_dim(loss, n * _mesh.device_index(shards.classes), n)
