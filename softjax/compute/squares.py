"""Squared distances between a tile of examples and a block of classes, relative to that of a reference point.

    |z - c_k|^2 - |z - r|^2 = -sum_d (c_kd - r_d) (2 z_d - r_d - c_kd)

The last part is common to all classes; what counts are differences of scores. In few dimensions this is summed from
the differences, where r = z, or the middle of the centers if z is far away from all of them: nothing cancels, wherever
the centers lie, in value and derivative. In more, r is the middle m for all examples, and the sum is 2 z' . c_k' -
|c_k'|^2 with z' = z - m and c_k' = c_k - m: one matrix product, whose rounding error is eps |z'| |c_k'|.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..arguments.dtypes import compute_dtype
from ..parallel import collectives
from ..parallel.collectives import Shards
from ..sums.products import dot, outer
from .rules import both_modes

# The most dimensions in which sums of differences take as long as the products.
FEW = 2


def scores(
    z: Array,
    c: Array,
    reference: Array | None = None,
    temperature: Array | float = 1.0,
    offset: Array | None = None,
    precisions: Array | None = None,
) -> Array:
    """(|z - r|^2 - |z - c_k|^2) / temperature + offset_k [N, B] for z [N, D], c [B, D] and the reference r of z.

    Precisions [D] are factors of the squares in both distances. With precisions [B, D] or [B, 1], which differ between
    classes, nothing is common to all classes: the scores are -|z - c_k|^2 / temperature + offset_k.
    """
    of_classes = precisions is not None and precisions.ndim == 2
    s = jnp.atleast_2d((1 if precisions is None else precisions) / jnp.asarray(temperature, z.dtype))
    if z.shape[-1] <= FEW:
        h = _from_differences(z, c, z if reference is None else reference, s, of_classes)
        return h if offset is None else h + offset[None]
    z, c = _moved(z, reference), _moved(c, reference)
    squares = (s * c**2).sum(-1)
    offset = -squares if offset is None else offset - squares
    if not of_classes:
        return _affine((2 * s * z, c, offset), ())
    square = z**2 if s.shape[-1] > 1 else (z**2).sum(-1, keepdims=True)
    return _affine((jnp.concatenate([z, square], -1), jnp.concatenate([2 * s * c, -s], -1), offset), ())


def _from_differences(z, c, reference, s, of_classes):
    """The scores for factors s of the squares, [1, 1] or [1, D], or [B, 1] or [B, D] of the classes."""
    r = lax.stop_gradient(reference)

    def of_dimension(d):
        of_z, of_c = z[:, d, None], c[None, :, d]
        of_d = s[None, :, d % s.shape[1]]
        if of_classes:
            return -of_d * (of_z - of_c) ** 2
        return of_d * ((of_c - r[:, d, None]) * ((2 * z - r)[:, d, None] - of_c))

    above = sum(map(of_dimension, range(z.shape[-1])), jnp.zeros((z.shape[0], c.shape[0]), z.dtype))
    # A center too far away for a floating-point number is possible; its score is not that of one that is left out.
    unknown = jnp.where(jnp.isfinite(z).all(-1), 0, jnp.nan).astype(z.dtype)
    return jnp.maximum(above, jnp.finfo(z.dtype).min) + unknown[:, None]


def common_part(
    z: Array,
    reference: Array | None = None,
    temperature: Array | float = 1.0,
    precisions: Array | None = None,
) -> Array:
    """|z - r|^2 / temperature [N], the part that all classes have in common and `scores` leaves out."""
    if precisions is not None and precisions.ndim == 2:
        return jnp.zeros(z.shape[0], z.dtype)
    of_few = lambda: z - lax.stop_gradient(z if reference is None else reference)  # the reference of `scores`
    above = of_few() if z.shape[-1] <= FEW else _moved(z, reference)
    return (above**2 if precisions is None else precisions[None] * above**2).sum(-1) / temperature


def reference_of(z: Array, a: Array, live: Array | None, shards: Shards) -> Array:
    """The reference of z [N, D] for classes a [K, D], a constant of differentiation: [N, D], or [D] for a product."""
    if z.shape[-1] > FEW:
        return middle_of(a, live, shards).astype(z.dtype)
    low, high = _box(lax.stop_gradient(a), live, shards)
    z, middle, radius = lax.stop_gradient(z), (low + high).astype(z.dtype) / 2, (high - low).astype(z.dtype) / 2
    is_far = ((z - middle[None]) ** 2).sum(-1) > 16 * (radius**2).sum()
    return jnp.where(is_far[:, None], middle[None], z)


def _box(a, live, shards):
    """(the least, the largest) of the coordinates of the live classes, each [D]."""
    where, most = None if live is None else live[:, None], float(jnp.finfo(a.dtype).max)
    low, high = jnp.min(a, 0, initial=most, where=where), jnp.max(a, 0, initial=-most, where=where)
    return -collectives.pmax(-low, shards.classes), collectives.pmax(high, shards.classes)


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
    step = max(1, a.shape[0] // max(1, 32 // collectives.device_count(shards.classes)))
    sample = lax.stop_gradient(a[::step]).astype(compute_dtype(a.dtype))
    sample = sample if live is None else jnp.where(live[::step, None], sample, jnp.nan)
    sample = collectives.all_gather(sample, shards.classes)
    median = lambda a: jnp.nan_to_num(jnp.nanmedian(a, 0), posinf=0.0, neginf=0.0)
    about = median(sample)
    distance = jnp.abs(sample - about[None])
    near = distance <= 8 * median(distance)[None]
    total = jnp.where(near, sample - about[None], 0).sum(0)
    return about + total / jnp.maximum(near.sum(0).astype(total.dtype), 1)


# z [N, D] @ c.T + b for c [B, D] and b [B]. The gradient for b comes with that for c, without another pass.


@jax.custom_vjp
def _affine_rule(operands, _):
    z, c, b = operands
    return dot(_with(1, z), jnp.concatenate([c, b[:, None]], -1).T)


def _affine_fwd(operands, _):
    return _affine(operands, ()), operands


def _affine_bwd(operands, ct):
    z, c, _ = operands
    of_classes = outer(ct, _with(1, z))
    return (dot(ct, c), of_classes[:, :-1], of_classes[:, -1]), None


def _with(number, z):
    return jnp.concatenate([z, jnp.full_like(z, number, shape=(z.shape[0], 1))], -1)


_affine_rule.defvjp(_affine_fwd, _affine_bwd)
_affine = both_modes(_affine_rule)
