"""Moves points near the origin, where their squares and products keep their digits."""

import jax.numpy as jnp
from jax import Array, lax

from . import _mesh
from ._mesh import Shards


def centered(a: Array, live: Array | None, shards: Shards) -> tuple[Array, Array]:
    """(a [K, D] minus its middle and 0 for classes left out, the middle [D]).

    Scores and losses do not depend on the origin, but the digits of |c_k|^2, z . c_k and E_p[A] do. The middle is the
    mean of the live classes without outliers, which are found by the median of a sample.
    """
    sample = slice(None, None, max(1, a.shape[0] // max(1, 32 // _mesh.device_count(shards.classes))))
    sampled = a[sample] if live is None else jnp.where(live[sample, None], a[sample], jnp.nan)
    sampled = _mesh.all_gather(lax.stop_gradient(sampled), shards.classes)
    median = lambda a: jnp.nan_to_num(jnp.nanmedian(a, 0), posinf=0.0, neginf=0.0)
    about = median(sampled)
    spread = median(jnp.abs(sampled - about[None]))
    above = lax.stop_gradient(a) - about[None]
    near = jnp.abs(above) <= 8 * spread[None]
    near = near if live is None else near & live[:, None]
    sums = jnp.where(near, above, 0).sum(0), near.sum(0).astype(a.dtype)
    total, count = _mesh.psum(sums, shards.classes)
    middle = about + total / jnp.maximum(count, 1)
    moved = a - middle[None]
    return moved if live is None else jnp.where(live[:, None], moved, 0), middle


def normalised_prior(prior: Array, live: Array | None, shards: Shards) -> Array:
    """The log-priors [K], shifted so that the largest is 0: a common part would only cost digits."""
    if live is None:
        return prior
    prior -= _mesh.pmax(jnp.max(prior, initial=jnp.finfo(prior.dtype).min, where=live), shards.classes)
    return jnp.where(live, prior, -jnp.inf)
