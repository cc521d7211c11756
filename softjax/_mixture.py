"""Mixtures: the classes are centers, and the scores are distances to them.

    h_k = -|z - c_k|^2 / temperature + log_prior_k        p = softmax(h)

They run over blocks of classes: nothing of size [N, K] is held, forward or backward.
"""

import dataclasses
import functools as ft
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arguments, _classes, losses
from ._gibbs import dot
from .losses import Loss


@ft.partial(jax.jit, static_argnames=("loss", "block_size"), inline=True)
def of_mixture(
    loss: Loss, z: Array, centers: Array, bias: Array, temperature: Array, example: Any, per_class: Any, block_size: int
) -> Array:
    """The loss [N, ...] of the scores -|z - c_k|^2 / temperature + bias_k, over `block_size` classes at a time.

    z [N, D], centers [K, D], bias [K], example a pytree of [N, ...], per_class one of [K, ...].
    """

    def columns(examples, block, ids):
        (z, example), (centers, bias, per_class) = examples, block
        return loss.columns(dot(z, centers.T) + bias[None], ids, example, per_class)

    # |z|^2 is the same for every class and drops out. A coordinate that is 0 everywhere is added: jaxlib 0.10.2
    # crashes on CPUs in the gradient of a ragged block under vmap, in a product that it fuses without it.
    with_0 = lambda a: jnp.concatenate([a, jnp.zeros_like(a[:, :1])], -1)
    examples = (with_0(2 / temperature * z), example)
    classes = (with_0(centers), bias - (centers**2).sum(-1) / temperature, per_class)
    totals = _classes.totals(columns, centers.shape[0], block_size, examples, classes)
    if loss.payoff is not None:
        totals = _with_exact_tops(totals, loss.payoff, (z, temperature, example), (centers, bias, per_class))
    return loss.finish(totals, example)


def _with_exact_tops(q, payoff, examples, classes):
    """The totals with the bases of t and e said again from the differences z - c_o and x - A_o themselves.

    The matrix products that make scores and payoffs of all classes lose digits where z or x is close
    to a center or a value. The bases are constants of the derivative, and so is what replaces them.
    """
    (z, temperature, example), classes = lax.stop_gradient((examples, classes))

    def at(top):
        centers, bias, per_class = jax.tree.map(lambda a: a.at[top].get(mode="clip"), classes)
        return bias - ((z - centers) ** 2).sum(-1) / temperature, payoff(example, per_class)

    h, t = at(q.a.top)
    known = q.a.top >= 0

    def exponent(pair, n):
        of_n, e = at(n.top)
        return dataclasses.replace(pair, base=jnp.where(known & (n.top >= 0), (of_n - h) + e, pair.base))

    return q._replace(
        t=tuple(dataclasses.replace(pair, base=jnp.where(known, t, pair.base)) for pair in q.t),
        e=tuple(map(exponent, q.e, q.n)),
    )


_NO_DATA = object()


def _mixture(loss, z, x, centers, values, log_prior, temperature, where, block_size):
    """The loss of checked arguments; without data, what the loss makes of z, moved back to the values."""
    z, centers, values = (_arguments.floating(n, a) for n, a in (("z", z), ("centers", centers), ("values", values)))
    for name, a, want in (("centers", centers, "[K, D]"), ("values", values, "[K, E]")):
        if a.ndim != 2:
            raise ValueError(f"`{name}` must have shape {want}, got {a.shape}.")
    (k, d), e = centers.shape, values.shape[1]
    if k == 0:
        raise ValueError(f"`centers` must hold at least one class, got shape {centers.shape}.")
    _arguments.shape("values", values, (k, e), "[K, E] for the K of `centers`")
    _arguments.shape("z", z, (*z.shape[:-1], d), "[..., D] for the D of `centers`")
    batch, n = z.shape[:-1], math.prod(z.shape[:-1])
    live, bias = jnp.ones(k, bool), None
    if where is not None:
        live = _arguments.booleans("where", where)
        _arguments.shape("where", live, (k,), "[K] for the K of `centers`")
    if log_prior is not None:
        bias = _arguments.floating("log_prior", log_prior)
        _arguments.shape("log_prior", bias, (k,), "[K] for the K of `centers`")
    decodes = x is _NO_DATA
    if not decodes:
        x = _arguments.floating("x", x)
        _arguments.shape("x", x, (*batch, e), "the leading axes of `z`, and the E of `values`")
    block_size = _arguments.size("block_size", block_size) or _classes.block_size(n, k)
    temperature = _arguments.scalar("temperature", temperature)

    given = [a for a in (z, x, centers, values, bias) if isinstance(a, Array)]
    dtype = _arguments.common_dtype(*given)
    to_wide = lambda a: a.astype(_arguments.wide(dtype))
    bias = jnp.zeros(k, _arguments.wide(dtype)) if bias is None else to_wide(bias)
    live &= ~jnp.isneginf(bias)
    # Only differences of the priors matter, and a common part would cost digits of them.
    bias = bias - lax.stop_gradient(jnp.max(bias, initial=jnp.finfo(bias.dtype).min, where=live))
    centers, middle = _around_0(to_wide(centers), live)
    z = to_wide(z).reshape(n, d) - middle[None]
    values, middle = _around_0(to_wide(values), live)
    x = None if decodes else to_wide(x).reshape(n, e) - middle[None]
    bias = jnp.where(live, bias, -jnp.inf)
    out = of_mixture(loss, z, centers, bias, to_wide(temperature), x, values, block_size=min(block_size, k))
    if not decodes:
        return out.reshape(batch)
    return (out + jnp.where(live.any(), middle, 0)[None]).reshape(*batch, e).astype(dtype)


def _around_0(a, live):
    """(a [K, D] less its middle, the middle [D]); 0 for the classes that are left out.

    Scores and losses do not depend on where 0 is, but the digits of |c_k|^2 and of z c_k do. The middle
    is the median of some live classes, which one far away does not move.
    """
    some = jnp.where(live[:, None], a, jnp.nan)[:: max(1, a.shape[0] // 32)]
    middle = lax.stop_gradient(jnp.nan_to_num(jnp.nanmedian(some, 0), posinf=0.0, neginf=0.0))
    return jnp.where(live[:, None], a - middle[None], 0), middle


def mixture_autoencoder_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> Array:
    """L2 loss of a mixture autoencoder.

    LOE = |x - sum_k p_k A_k|^2, summed over the coordinates of x,
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.

    Never held are [N, K, D] or [N, K]; all arguments have gradients. The text's k-vector
    t_k = sum_e 2 (x_e - E_p[A]_e) A_ke is made one block of classes at a time.

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: A [K, E].
        log_prior: [K], added to the scores; None for 0. A class of -inf is left out.
        temperature: what the squared distances are divided by, a scalar.
        where: booleans [K], the classes to include; None for all.
        block_size: how many classes are held at a time, [N, block_size]; None for what stays in a cache.

    Returns:
        The loss [...], in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if the shapes don't fit together, or `block_size` is not positive.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import mixture_autoencoder_loss
        >>> z, x = jnp.array([0.0]), jnp.array([1.0])
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(mixture_autoencoder_loss(z, x, centers, values))
        1.0

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder, there without its minus sign.
    """
    return _mixture(losses.mixture_autoencoder, z, x, centers, values, log_prior, temperature, where, block_size)


def eol_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> Array:
    """Expected squared error of a mixture: the negative expected log-likelihood (EOL).

    -EOL = sum_k p_k |x - A_k|^2, where log p(x|k) = -|x - A_k|^2,
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.

    It is at least `mixture_autoencoder_loss`, from which it differs by tr Var_p(A), and at least
    `leop_loss`.

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: A [K, E].
        log_prior: [K], added to the scores; None for 0. A class of -inf is left out.
        temperature: what the squared distances are divided by, a scalar.
        where: booleans [K], the classes to include; None for all.
        block_size: how many classes are held at a time, [N, block_size]; None for what stays in a cache.

    Returns:
        The loss [...], in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if the shapes don't fit together, or `block_size` is not positive.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import eol_loss
        >>> z, x = jnp.array([0.0]), jnp.array([1.0])
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(eol_loss(z, x, centers, values))
        5.0

    Source: CATSMILE-1012 (softargmax), EOL, there to be maximised.
    """
    return _mixture(losses.eol, z, x, centers, values, log_prior, temperature, where, block_size)


def leop_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> Array:
    """Negative log-likelihood of a mixture (LEOP).

    LEOP = -log sum_k p_k exp(-|x - A_k|^2),
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.

    It is at most `eol_loss`, by Jensen's inequality.

    Args:
        z: latents [..., D].
        x: data [..., E], with the leading axes of z.
        centers: c [K, D].
        values: A [K, E].
        log_prior: [K], added to the scores; None for 0. A class of -inf is left out.
        temperature: what the squared distances are divided by, a scalar.
        where: booleans [K], the classes to include; None for all.
        block_size: how many classes are held at a time, [N, block_size]; None for what stays in a cache.

    Returns:
        The loss [...], in at least float32: a sum over e, not a mean.

    Raises:
        ValueError: if the shapes don't fit together, or `block_size` is not positive.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import leop_loss
        >>> z, x = jnp.array([0.0]), jnp.array([1.0])
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(leop_loss(z, x, centers, values))
        1.6928

    Source: the log-likelihood of the mixture whose expectation CATSMILE-1012 (softargmax) calls EOL.
    """
    return _mixture(losses.leop, z, x, centers, values, log_prior, temperature, where, block_size)


def mixture_expectation(
    z: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> Array:
    """Expectation of the values under a mixture: the decoder of the mixture autoencoder.

    E_p[A] = sum_k p_k A_k,
    with p = softmax(h), h_k = -|z - c_k|^2 / temperature + log_prior_k.

    Args:
        z: latents [..., D].
        centers: c [K, D].
        values: A [K, E].
        log_prior: [K], added to the scores; None for 0. A class of -inf is left out.
        temperature: what the squared distances are divided by, a scalar.
        where: booleans [K], the classes to include; None for all.
        block_size: how many classes are held at a time, [N, block_size]; None for what stays in a cache.

    Returns:
        E_p[A] [..., E], in the type that the arguments promote to; 0 where no class is left.

    Raises:
        ValueError: if the shapes don't fit together, or `block_size` is not positive.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import mixture_expectation
        >>> centers, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]])
        >>> print(mixture_expectation(jnp.array([[0.0], [9.0]]), centers, values))
        [[2.]
         [4.]]

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    return _mixture(losses.expectation, z, _NO_DATA, centers, values, log_prior, temperature, where, block_size)
