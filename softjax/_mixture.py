"""Losses of mixtures: the classes are centers, and the scores are distances to them.

    h_k = -|z - c_k|^2 / temperature + log_prior_k        p = softmax(h)

No array [N, K] is in memory, forward or backward.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _checks, _distances, losses, scores
from ._arguments import checked_array, documented
from ._checks import Where
from ._dtypes import cast, common_dtype, compute_dtype, inexact_leaves
from ._evaluate import evaluate
from ._explicit import sharded_like
from ._mesh import AxisName
from ._placement import BlockSize
from .losses import Loss


@documented()
@sharded_like("z")
def of_mixture(
    loss: Loss,
    z: ArrayLike,
    centers: ArrayLike,
    example: Any = None,
    per_class: Any = None,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """A loss of a mixture, without the scores [..., K].

    h_k = -|z - c_k|^2 / temperature + log_prior_k, up to a number that is common to all classes.

    Returns:
        The loss [...], or a scalar, in at least float32.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers = jnp.array([[-1.0], [1.0]])
        >>> print(softjax.of_mixture(softjax.losses.entropy, jnp.array([[0.0], [9.0]]), centers))
        [6.931e-01 8.582e-15]

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    z, centers = _checks.latents_and_centers(z, centers)
    example = _checks.leading("example", example, z.shape[:-1], "the leading axes of `z`")
    per_class = _checks.leading("per_class", per_class, centers.shape[:1], "[K] for the K of `centers`")
    z = z.astype(compute_dtype(_given_dtype(log_prior, z, centers, example, per_class)))
    distances = scores.distances(z, centers, log_prior, temperature, where, axis_name, batch_axis_name)
    return evaluate(loss, distances, example, per_class, weights, reduction, block_size)


def _given_dtype(log_prior, *trees):
    """The floating-point type that all arrays promote to."""
    prior = [] if log_prior is None else [checked_array("log_prior", log_prior)]
    return common_dtype(*prior, *inexact_leaves(trees))


def _of_data(loss, z, x, centers, values, of_scores, weights, reduction, block_size):
    """The loss of the data x and the values, both moved by the middle of the values."""
    z, centers = _checks.latents_and_centers(z, centers)
    values, x = _checks.class_values(values, centers.shape[0], "centers"), checked_array("x", x)
    _checks.shape("x", x, (*z.shape[:-1], values.shape[1]), "the leading axes of `z`, and the E of `values`")
    z, x = cast((z, x), compute_dtype(_given_dtype(of_scores[0], z, x, centers, values)))
    distances, values = scores.distances(z, centers, *of_scores), _distances.of_classes(values, x.dtype)
    middle = _middle_of_values(values, distances, x.dtype)
    x = x.reshape(distances.n, values.shape[1])
    return evaluate(_about(middle, loss), distances, x, values, weights, reduction, block_size)


def _middle_of_values(values, distances, dtype):
    return _distances.middle_of(values, distances.live, distances.shards).astype(dtype)


def _about(middle, loss):
    """The loss with the middle of the values as the origin of the values and of the data: their sums keep digits."""
    loss = losses.as_partials(loss)
    columns, finish = Partial(_columns_about, middle, loss.columns), Partial(_finish_about, middle, loss.finish)
    return loss._replace(columns=columns, finish=finish)


def _columns_about(middle, columns, h, ids, x, values):
    return columns(h, ids, _about_middle(x, middle), _about_middle(values.astype(middle.dtype), middle))


def _finish_about(middle, finish, q, x):
    return finish(q, _about_middle(x, middle))


def _about_middle(a, middle):
    return None if a is None else a - middle[None]


@documented()
@sharded_like("z")
def mixture_autoencoder_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """L2 loss of a mixture autoencoder.

    LOE = |x - sum_k p_k v_k|^2, with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    All arrays have gradients. The text's k-vector t_k = sum_e 2 (x_e - E_p[v]_e) v_ke is computed block by block.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.mixture_autoencoder_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        1.0

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder, there without its minus sign.
    """
    of_scores = log_prior, temperature, where, axis_name, batch_axis_name
    return _of_data(losses.mixture_autoencoder, z, x, centers, values, of_scores, weights, reduction, block_size)


@documented()
@sharded_like("z")
def eol_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Expected squared error of a mixture: the negative expected log-likelihood (EOL).

    -EOL = sum_k p_k |x - v_k|^2, where log p(x|k) = -|x - v_k|^2,
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    It is at least `leop_loss`, and more than `mixture_autoencoder_loss` by tr Var_p(v).

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.eol_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        5.0

    Source: CATSMILE-1012 (softargmax), EOL, there to be maximised.
    """
    of_scores = log_prior, temperature, where, axis_name, batch_axis_name
    return _of_data(losses.eol, z, x, centers, values, of_scores, weights, reduction, block_size)


@documented()
@sharded_like("z")
def leop_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Negative log-likelihood of a mixture (LEOP).

    LEOP = -log sum_k p_k exp(-|x - v_k|^2), with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    It is at most `eol_loss`, by Jensen's inequality.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.leop_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        1.6928

    Source: the log-likelihood of the mixture whose expectation CATSMILE-1012 (softargmax) calls EOL.
    """
    of_scores = log_prior, temperature, where, axis_name, batch_axis_name
    return _of_data(losses.leop, z, x, centers, values, of_scores, weights, reduction, block_size)


@documented()
@sharded_like("z")
def mixture_expectation(
    z: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
) -> Array:
    """Expectation of the values under a mixture: the decoder of the mixture autoencoder.

    E_p[v] = sum_k p_k v_k, with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.

    Returns:
        E_p[v] [..., E], in the type that the arguments promote to; 0 where all classes are left out.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.mixture_expectation(jnp.array([0.0]), centers, values))
        [2.]

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    z, centers = _checks.latents_and_centers(z, centers)
    payoffs = _checks.class_values(values, centers.shape[0], "centers")
    given = _given_dtype(log_prior, z, centers, payoffs)
    z = z.astype(compute_dtype(given))
    distances = scores.distances(z, centers, log_prior, temperature, where, axis_name)
    payoffs = _distances.of_classes(payoffs, z.dtype)
    middle = _middle_of_values(payoffs, distances, z.dtype)
    loss = _about(middle, losses.expectation._replace(finish=Partial(_moved_back, middle)))
    return evaluate(loss, distances, None, payoffs, block_size=block_size).astype(given)


def _moved_back(middle, q, _):
    """E_p[v] for values that were moved by their middle; 0 where all classes are left out."""
    any_class = jnp.expand_dims(~jnp.isneginf(q.a.m), -1)
    return (q.v[0] - jnp.where(any_class, -middle, 0)).value
