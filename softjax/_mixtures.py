"""Losses of mixtures: the classes are centers, and the logits are distances to them.

    h_k = -|z - c_k|^2 / temperature + log_prior_k        p = softmax(h)

With precisions t, |z - c_k|^2 stands for sum_d t_kd (z_d - c_kd)^2. Where they differ between classes, the log-prior of
a Gaussian class includes sum_d log(t_kd) / 2, which `gaussian_mixture_nll_loss` adds and the other functions do not.
No array [N, K] is in memory, forward or backward.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import losses
from ._of import evaluate
from .arguments import checks
from .arguments.checks import Where
from .arguments.dtypes import cast, common_dtype, compute_dtype, inexact_leaves
from .arguments.signatures import readable
from .arguments.table import checked_array, checked_scalar
from .compute import squares
from .logits import distances
from .losses.loss import as_partials
from .parallel.explicit import over_explicit_axes, partition, sharded_like
from .sums.elementary import exp, log


def _mixture(z, centers, log_prior, precisions, temperature, where):
    """The logits of a mixture."""
    logits = distances(z, centers, precisions=precisions) / checked_scalar("temperature", temperature)
    if log_prior is not None:
        log_prior = checked_array("log_prior", log_prior)
        checks.shape("log_prior", log_prior, logits.shape[-1:], "[K] for the K of `centers`")
        logits = logits + log_prior
    return logits if where is None else logits.masked("where", where)


def _given_dtype(log_prior, precisions, *trees):
    """The floating-point type that all arrays promote to."""
    given = {"log_prior": log_prior, "precisions": precisions}
    return common_dtype(*(checked_array(name, x) for name, x in given.items() if x is not None), *inexact_leaves(trees))


def _of_data(loss, z, x, centers, values, of_logits, weights, reduction):
    """The loss of the data x and the values, both moved by the middle of the values."""
    z, centers = checks.latents_and_centers(z, centers)
    values, x = checks.class_values(values, centers.shape[0], "centers"), checked_array("x", x)
    checks.shape("x", x, (*z.shape[:-1], values.shape[1]), "the leading axes of `z`, and the E of `values`")
    log_prior, precisions, *_ = of_logits
    z, x = cast((z, x), compute_dtype(_given_dtype(log_prior, precisions, z, x, centers, values)))
    logits, values = _mixture(z, centers, *of_logits), squares.of_classes(values, x.dtype)
    loss, x = _centred(loss, values, logits, x.dtype), x.reshape(-1, values.shape[1])
    return evaluate(loss, logits, x, values, weights, reduction)


def _centred(loss, values, logits, dtype):
    """The loss with the middle of the values as their origin, unless it takes differences, which are exact."""
    if loss.payoff is not None and values.shape[1] <= squares.FEW:
        return loss
    return _about(_middle_of_values(values, logits, dtype), loss)


def _middle_of_values(values, logits, dtype):
    return squares.middle_of(values, logits.live, logits.shards).astype(dtype)


def _about(middle, loss):
    """The loss with the middle of the values as the origin of the values and of the data: their sums keep digits."""
    loss = as_partials(loss)
    columns, finish = Partial(_columns_about, middle, loss.columns), Partial(_finish_about, middle, loss.finish)
    return loss._replace(columns=columns, finish=finish)


def _columns_about(middle, columns, h, ids, x, of_classes):
    values, *precisions = cast(of_classes if isinstance(of_classes, tuple) else (of_classes,), middle.dtype)
    values = _about_middle(values, middle)
    return columns(h, ids, _about_middle(x, middle), (values, *precisions) if precisions else values)


def _finish_about(middle, finish, q, x):
    return finish(q, _about_middle(x, middle))


def _about_middle(a, middle):
    return None if a is None else a - middle[None]


@readable
@sharded_like("z")
def mixture_autoencoder_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    precisions: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """L2 loss of a mixture autoencoder.

    LOE = |x - sum_k p_k v_k|^2, with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    All arrays have gradients. The text's k-vector t_k = sum_e 2 (x_e - E_p[v]_e) v_ke is computed block by block.

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: v [K, E].
        log_prior: [K], added to the scores; None for 0. A class with -inf is masked.
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.
        temperature: a positive scalar that divides the logits or squared distances.
        where: the classes to include: booleans [K], booleans that broadcast to [..., K], or a function of two numbers,
            (example id, class id) -> boolean; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.mixture_autoencoder_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        1.0

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder, there without its minus sign.
    """
    of_logits = log_prior, precisions, temperature, where
    return _of_data(losses.mixture_autoencoder, z, x, centers, values, of_logits, weights, reduction)


@readable
@sharded_like("z")
def eol_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    precisions: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Expected squared error of a mixture: the negative expected log-likelihood (EOL).

    -EOL = sum_k p_k |x - v_k|^2, where log p(x|k) = -|x - v_k|^2,
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    It is at least `leop_loss`, and more than `mixture_autoencoder_loss` by tr Var_p(v).

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: v [K, E].
        log_prior: [K], added to the scores; None for 0. A class with -inf is masked.
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.
        temperature: a positive scalar that divides the logits or squared distances.
        where: the classes to include: booleans [K], booleans that broadcast to [..., K], or a function of two numbers,
            (example id, class id) -> boolean; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.eol_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        5.0

    Source: CATSMILE-1012 (softargmax), EOL, there to be maximised.
    """
    of_logits = log_prior, precisions, temperature, where
    return _of_data(losses.eol, z, x, centers, values, of_logits, weights, reduction)


@readable
@sharded_like("z")
def leop_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    precisions: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Negative log-likelihood of a mixture (LEOP).

    LEOP = -log sum_k p_k exp(-|x - v_k|^2), with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.
    It is at most `eol_loss`, by Jensen's inequality.

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: v [K, E].
        log_prior: [K], added to the scores; None for 0. A class with -inf is masked.
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.
        temperature: a positive scalar that divides the logits or squared distances.
        where: the classes to include: booleans [K], booleans that broadcast to [..., K], or a function of two numbers,
            (example id, class id) -> boolean; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(softjax.leop_loss(jnp.array([0.0]), jnp.array([1.0]), centers, values))
        1.6928

    Source: the log-likelihood of the mixture whose expectation CATSMILE-1012 (softargmax) calls EOL.
    """
    of_logits = log_prior, precisions, temperature, where
    return _of_data(losses.leop, z, x, centers, values, of_logits, weights, reduction)


@readable
@sharded_like("x")
def gaussian_mixture_nll_loss(
    x: ArrayLike,
    centers: ArrayLike,
    precisions: ArrayLike | None = None,
    *,
    log_prior: ArrayLike | None = None,
    where: Where = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Negative log-likelihood of a mixture of Gaussians with diagonal covariances.

    -log sum_k p_k N(x; c_k, 1 / t_k), with p = softmax(log_prior), means c and precisions t, the inverse variances.
    It is LEOP with scores that do not depend on the data.

    Args:
        x: data [..., D].
        centers: the means c [K, D].
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.
        log_prior: [K], the log-weights of the components, up to a number common to all; None for 0. A class
            with -inf is masked.
        where: the classes to include: booleans [K], booleans that broadcast to [..., K], or a function of two numbers,
            (example id, class id) -> boolean; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.

    Returns:
        The loss [...], or a scalar, in nats, in at least float32: a sum over d, not a mean.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> means, precisions = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [4.0]])
        >>> print(softjax.gaussian_mixture_nll_loss(jnp.array([[0.0], [1.0]]), means, precisions))
        [1.7431 0.8535]

    Source: the log-likelihood of the mixture in CATSMILE-1012 (softargmax); `GaussianMixture.score_samples` of
    scikit-learn, with `covariance_type="diag"`, has the other sign.
    """
    data, means = checks.latents_and_centers(x, centers, "x")
    of_each, of_all = checks.precisions(precisions, *means.shape)
    data = data.astype(compute_dtype(_given_dtype(log_prior, precisions, data, means)))
    # Distances in no dimension are 0: these logits are the log-prior alone.
    prior = _mixture(data[..., :0], means[:, :0], log_prior, None, 1.0, where)
    means, of_each = jax.tree.map(lambda a: squares.of_classes(a, data.dtype), (means, of_each))
    loss = _centred(losses.gaussian_mixture(1.0 if of_all is None else of_all), means, prior, data.dtype)
    of_classes = means if of_each is None else (means, of_each)
    return evaluate(loss, prior, data.reshape(-1, data.shape[-1]), of_classes, weights, reduction)


@readable
class Quantized(NamedTuple):
    """The result of `soft_quantize`. Only `values` has a gradient."""

    values: Array  # [..., D] or [..., E], the expectation of the codes
    ids: Array  # [...] the code with the largest score, as integers in [0, K); -1 where all codes are masked
    usage: Array  # [K], the share of the examples with this id; float32
    perplexity: Array  # exp(-sum_k usage_k log usage_k), the number of codes in use: a scalar in [1, K]


def _partition_of_quantized(given):
    of_examples = P(*partition(given["z"])[:-1])
    return Quantized._make((of_examples, of_examples, P(), P()))


@readable
@over_explicit_axes(_partition_of_quantized)
def soft_quantize(
    z: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike | None = None,
    *,
    log_prior: ArrayLike | None = None,
    precisions: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: Where = None,
) -> Quantized:
    """A soft codebook: the expectation of the codes under a mixture, and the usage of the codes.

    E_p[c] = sum_k p_k c_k, with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k. As the temperature goes
    to 0, it becomes the nearest code, as in the vector quantiser of a VQ-VAE. z and the codes have exact gradients at
    every temperature, so that neither a straight-through estimate nor a commitment loss is needed. The ids come from
    the same pass.

    Args:
        z: latents [..., D].
        centers: the codes c [K, D].
        values: v [K, E], to take the expectation of, in place of the codes; None for the codes.
        log_prior: [K], added to the scores; None for 0. A class with -inf is masked.
        precisions: t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1],
            one of each class; or [D], one of each dimension; None for 1.
        temperature: a positive scalar that divides the logits or squared distances.
        where: the classes to include: booleans [K], booleans that broadcast to [..., K], or a function of two numbers,
            (example id, class id) -> boolean; None for all.

    Returns:
        The `Quantized` values [..., D] or [..., E], ids [...], usage [K] and perplexity.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> codes = jnp.array([[0.0], [1.0], [5.0]])
        >>> out = softjax.soft_quantize(jnp.array([[0.1], [0.2], [0.9], [1.1]]), codes, temperature=0.01)
        >>> print(out.values[:, 0], out.ids, out.usage, out.perplexity)
        [0. 0. 1. 1.] [0 0 1 1] [0.5 0.5 0. ] 2.0

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder; van den Oord et al., Neural discrete representation
    learning (2017), for the hard limit and the perplexity.
    """
    z, centers = checks.latents_and_centers(z, centers)
    payoffs = centers if values is None else checks.class_values(values, centers.shape[0], "centers")
    given = _given_dtype(log_prior, precisions, z, centers, payoffs)
    z = z.astype(compute_dtype(given))
    logits, payoffs = (
        _mixture(z, centers, log_prior, precisions, temperature, where),
        squares.of_classes(payoffs, z.dtype),
    )
    middle = _middle_of_values(payoffs, logits, z.dtype)
    loss = _about(middle, losses.expectation._replace(finish=Partial(_moved_back, middle)))
    codes, ids = evaluate(loss, logits, None, payoffs, observe=Partial(_top_class))
    return Quantized(codes.astype(given), ids, *_usage(ids, centers.shape[0]))


def _moved_back(middle, q, _):
    """E_p[v] for values that were moved by their middle; 0 where all classes are masked."""
    any_class = jnp.expand_dims(~q.empty, -1)
    return (q.class_values[0] - jnp.where(any_class, -middle, 0)).value


def _top_class(totals, _):
    return totals.normaliser.top


def _usage(ids, k):
    """(the share of each class in the ids, the perplexity of the shares)."""
    counts = jnp.zeros(k, jnp.float32).at[jnp.where(ids < 0, k, ids).ravel()].add(1, mode="drop")
    usage = counts / jnp.maximum(counts.sum(), 1)
    return usage, exp(-jnp.where(usage > 0, usage * log(jnp.where(usage > 0, usage, 1)), 0).sum())
