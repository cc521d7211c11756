"""Squared distances between a tile of examples and a block of classes.

In few dimensions, |z - c_k|^2 = sum_d (z_d - c_kd)^2: nothing cancels, wherever the centers lie, in value and
derivative. In more, it is |z'|^2 - 2 z' . c_k' + |c_k'|^2, where z' = z - m and c_k' = c_k - m for a middle m of the
centers: one matrix product, whose rounding error is eps |z'| |c_k'|.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import _mesh
from ._dtypes import compute_dtype
from ._gibbs import dot, outer
from ._mesh import Shards
from ._rules import both_modes

# The most dimensions in which sums of differences take as long as the products.
FEW = 2


def scores(z: Array, c: Array, middle: Array | None = None, temperature: Array | float = 1.0) -> Array:
    """-|z - c_k|^2 / temperature [N, B] for z [N, D] and c [B, D], plus the `common_part`."""
    if z.shape[-1] <= FEW:
        return _from_differences(z, c, temperature)
    z, c = _moved(z, middle), _moved(c, middle)
    return _product((2 / temperature * z, c), ()) - ((c**2).sum(-1) / temperature)[None]


def _from_differences(z, c, temperature):
    squares = [(z[:, d, None] - c[None, :, d]) ** 2 for d in range(z.shape[-1])]
    below = sum(squares, jnp.zeros((1, 1), z.dtype)) / temperature
    # A center too far away for a floating-point number is possible; its score is not that of one that is left out.
    unknown = jnp.where(jnp.isfinite(z).all(-1), 0, jnp.nan).astype(z.dtype)
    return jnp.maximum(-below, jnp.finfo(z.dtype).min) + unknown[:, None]


def common_part(z: Array, middle: Array | None = None, temperature: Array | float = 1.0) -> Array:
    """The part [N] of |z - c_k|^2 / temperature that all classes have in common, and `scores` leaves out."""
    if z.shape[-1] <= FEW:
        return jnp.zeros_like(z, shape=z.shape[:1])
    return (_moved(z, middle) ** 2).sum(-1) / temperature


def _moved(a, middle):
    return a if middle is None else a - middle[None]


def of_classes(a: Array, dtype: jnp.dtype) -> Array:
    """The class array, in the type of the computation where that saves time.

    A CPU's compiler would convert all of a half-precision array for each block of its gradient. Elsewhere, and in full
    precision, a block is converted when it is used.
    """
    return a.astype(dtype) if jax.default_backend() == "cpu" and a.dtype.itemsize < 4 else a


def middle_of(a: Array, live: Array | None, shards: Shards) -> Array:
    """The middle [D] of the classes of a [K, D], a constant of differentiation.

    Results do not depend on it, but their digits do. It is the mean of a sample of the live classes, without outliers.
    """
    step = max(1, a.shape[0] // max(1, 32 // _mesh.device_count(shards.classes)))
    sample = lax.stop_gradient(a[::step]).astype(compute_dtype(a.dtype))
    sample = sample if live is None else jnp.where(live[::step, None], sample, jnp.nan)
    sample = _mesh.all_gather(sample, shards.classes)
    median = lambda a: jnp.nan_to_num(jnp.nanmedian(a, 0), posinf=0.0, neginf=0.0)
    about = median(sample)
    distance = jnp.abs(sample - about[None])
    near = distance <= 8 * median(distance)[None]
    total = jnp.where(near, sample - about[None], 0).sum(0)
    return about + total / jnp.maximum(near.sum(0).astype(total.dtype), 1)


# z [N, D] @ c.T for c [B, D]. The gradient for c is a product of a transposed array, which CPUs take in another order.


@jax.custom_vjp
def _product_rule(operands, _):
    z, c = operands
    return dot(z, c.T)


def _product_fwd(operands, _):
    return _product(operands, ()), operands


def _product_bwd(operands, ct):
    z, c = operands
    return (dot(ct, c), outer(ct, z)), None


_product_rule.defvjp(_product_fwd, _product_bwd)
_product = both_modes(_product_rule)
