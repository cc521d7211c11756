"""Mixtures: the classes are centers, and the scores are distances to them.

    h_k = -|z - c_k|^2 / temperature + log_prior_k        p = softmax(h)

Nothing of size [N, K] is held, forward or backward.
"""

import functools as ft
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _arguments, _mesh, _placement, losses
from ._examples import Problem, evaluate
from ._gibbs import Pair, dot
from ._mesh import AxisName, Shards
from ._placement import BlockSize
from .losses import Loss


def of_mixture(
    loss: Loss,
    z: ArrayLike,
    centers: ArrayLike,
    example: Any = None,
    per_class: Any = None,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """A loss of the scores of a mixture, which are never held all at once.

    h_k = -|z - c_k|^2 / temperature + log_prior_k, up to what all classes have in common.

    Args:
        loss: a `softjax.Loss`; those of `softjax.losses` or your own.
        z: latents [..., D].
        centers: c [K, D].
        example: what the loss knows of an example: a pytree of arrays [..., *].
        per_class: what it knows of a class: a pytree of arrays [K, *].
        log_prior: [K], added to the scores; None for 0. A class of -inf is left out.
        temperature: what the squared distances are divided by, a scalar.
        where: booleans [K], the classes to include; None for all.
        weights: of the examples [...]; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            centers, per_class, log_prior and where are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        The loss [...], or a scalar, in at least float32.

    Raises:
        ValueError: if the shapes don't fit together, or `block_size` is not positive.
        TypeError: if an array is not real, or `where` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import softjax
        >>> centers = jnp.array([[-1.0], [1.0]])
        >>> print(softjax.of_mixture(softjax.losses.entropy, jnp.array([[0.0], [9.0]]), centers))
        [6.931e-01 8.582e-15]

    Source: CATSMILE-1012 (softargmax), L2 mixture autoencoder.
    """
    latents, means = _latents(z, centers)
    shards = Shards.named(axis_name, batch_axis_name)
    m = _Mixture(latents, means, log_prior, temperature, where, example, per_class, shards)
    return m.evaluate(loss, m.example, _arguments.only(m.live, m.per_class), weights, reduction, block_size)


class _Mixture:
    """The arguments that all functions of a mixture have, checked and in a type to compute in.

    The latents and centers were checked before, as others are compared with them.
    """

    def __init__(self, z, centers, log_prior, temperature, where, example, per_class, shards):
        k, d = centers.shape
        shards.check("centers", centers, "z", z)
        self.shards = shards
        self.batch, self.k = z.shape[:-1], k
        self.n = math.prod(self.batch)
        live, bias = _arguments.live_classes(where, "log_prior", log_prior, k, "[K] for the K of `centers`")
        temperature = _arguments.scalar("temperature", temperature)
        example = _arguments.leading("example", example, self.batch, "the leading axes of `z`")
        per_class = _arguments.leading("per_class", per_class, (k,), "[K] for the K of `centers`")

        self.given_dtype = _arguments.common_dtype(*_arguments.inexact((z, centers, bias, example, per_class)))
        self.dtype = _arguments.wide(self.given_dtype)
        self.live, self.temperature = live, temperature.astype(self.dtype)
        self.z, self.centers, self.example, self.per_class = self.wide(
            (z.reshape(self.n, d), centers, example, per_class)
        )
        self.bias = _prior(jnp.zeros(k, self.dtype) if bias is None else self.wide(bias), live, shards)

    def wide(self, tree):
        return _arguments.cast(tree, self.dtype)

    def evaluate(self, loss, example, per_class, weights, reduction, block_size):
        reduction = _arguments.reduction(reduction)
        placement = _placement.of(block_size, self.n, self.k, self.centers.shape[1], reduction, self.dtype)
        weights = _arguments.weights(weights, self.batch, self.dtype)
        centers, middle = _around_0(self.centers, self.live, self.shards)
        z = self.z - middle[None]
        loss = losses.as_tree(loss, self.dtype)
        arrays = z, centers, self.bias, self.temperature, example, per_class, weights
        out = _evaluate(loss, *arrays, reduction, placement, self.shards)
        return out.reshape(*self.batch, *out.shape[1:]) if reduction == "none" else out


@ft.partial(jax.jit, static_argnums=2, inline=True)
def _prior(bias, live, shards):
    """The logarithms of the priors [K], the largest 0: a common part does not matter, and would cost digits."""
    if live is None:
        return bias
    bias -= _mesh.most(jnp.max(bias, initial=jnp.finfo(bias.dtype).min, where=live), shards.classes)
    return jnp.where(live, bias, -jnp.inf)


def _latents(z, centers):
    """The checked latents [..., D] and centers [K, D]."""
    z, centers = _arguments.floating("z", z), _arguments.floating("centers", centers)
    if centers.ndim != 2:
        raise ValueError(f"`centers` must have shape [K, D], got {centers.shape}.")
    if centers.shape[0] == 0:
        raise ValueError(f"`centers` must hold at least one class, got shape {centers.shape}.")
    _arguments.shape("z", z, (*z.shape[:-1], centers.shape[1]), "[..., D] for the D of `centers`")
    return z, centers


@ft.partial(jax.jit, static_argnums=(8, 9, 10), inline=True)
def _evaluate(loss, z, centers, bias, temperature, example, per_class, weights, reduction, placement, shards):
    # |z|^2 is the same for every class and drops out. A coordinate that is 0 everywhere is added: jaxlib 0.10.2
    # crashes on CPUs in the gradient of a ragged block under vmap, in a product that it fuses without it.
    with_0 = lambda a: jnp.concatenate([a, jnp.zeros_like(a[:, :1])], -1)
    examples = (with_0(2 / temperature * z), example)
    classes = (with_0(centers), bias - (centers**2).sum(-1) / temperature, per_class, loss.payoff and bias)
    finish = Partial(_finish, loss.finish, loss.payoff, temperature)
    problem = Problem(Partial(_columns, loss.columns), finish, examples, (z, example), classes)
    n, k = z.shape[0], centers.shape[0]
    return evaluate(problem, (0, 0, 0, 0), n, k, placement, shards, weights=weights, reduction=reduction)


def _columns(columns, examples, block, ids):
    (z, example), (centers, bias, per_class, _) = examples, block
    return columns(dot(z, centers.T) + bias[None], ids, example, per_class)


def _finish(finish, payoff, temperature, totals, targets, classes, layout):
    if payoff is not None:
        totals = _with_exact_tops(totals, payoff, temperature, targets, classes, layout)
    return finish(totals, targets[1])


def _with_exact_tops(q, payoff, temperature, targets, classes, layout):
    """The totals with what the top classes have said again, from the differences z - c_o and x - A_o themselves.

    The matrix products that make scores and payoffs of all classes lose digits where z or x is close
    to a center or a value. What a top class has is a constant of the derivative, and so is what replaces it.
    """
    temperature, (z, example), classes = lax.stop_gradient((temperature, targets, classes))
    known = q.a.top >= 0

    def at(top):
        def values(place):
            centers, _, per_class, bias = jax.tree.map(lambda a: a[place], classes)
            return bias - ((z - centers[:, :-1]) ** 2).sum(-1) / temperature, payoff(example, per_class)

        return _mesh.of_class(top, values, layout.classes, layout.mesh)

    h, t = at(q.a.top)
    left_out = (z**2).sum(-1) / temperature  # of the scores

    def mean(a):
        return jax.tree.map(ft.partial(jnp.where, known), a.rebased(t, q.a.r / q.a.s), a)

    def log_mean(a, n):
        of_n, e = at(n.top)
        # A score counts as far as its class is likely, log sum_k exp h_k moving by p_k dh_k.
        slip = n.r / n.s * (n.m - (of_n + e + left_out)) - q.a.r / q.a.s * (q.a.m - (h + left_out))
        better = Pair((of_n - h) + e, a.rest + lax.stop_gradient(slip))
        return jax.tree.map(ft.partial(jnp.where, known & (n.top >= 0)), better, a)

    return q._replace(t=tuple(map(mean, q.t)), s=tuple(map(mean, q.s)), e=tuple(map(log_mean, q.e, q.n)))


def _around_0(a, live, shards):
    """(a [K, D] less its middle, the middle [D]); 0 for the classes that are left out.

    Scores and losses do not depend on where 0 is, but the digits of |c_k|^2, of z c_k and of E_p[A] do. The
    middle is the mean of the live classes but for those far away, as the median of some of them tells.
    """
    some = slice(None, None, max(1, a.shape[0] // max(1, 32 // _mesh.size(shards.classes))))
    of_some = a[some] if live is None else jnp.where(live[some, None], a[some], jnp.nan)
    of_some = _mesh.gathered(lax.stop_gradient(of_some), shards.classes)
    median = lambda a: jnp.nan_to_num(jnp.nanmedian(a, 0), posinf=0.0, neginf=0.0)
    about = median(of_some)
    spread = median(jnp.abs(of_some - about[None]))
    above = lax.stop_gradient(a) - about[None]
    near = jnp.abs(above) <= 8 * spread[None]
    near = near if live is None else near & live[:, None]
    sums = jnp.where(near, above, 0).sum(0), near.sum(0).astype(a.dtype)
    total, count = _mesh.total(sums, shards.classes)
    middle = about + total / jnp.maximum(count, 1)
    moved = a - middle[None]
    return moved if live is None else jnp.where(live[:, None], moved, 0), middle


def _mixture(loss, z, x, centers, values, log_prior, temperature, where, shards, weights, reduction, block_size):
    """The loss of the data and the values of a mixture."""
    z, centers = _latents(z, centers)
    values, x = _arguments.values(values, centers.shape[0], "centers"), _arguments.floating("x", x)
    _arguments.shape("x", x, (*z.shape[:-1], values.shape[1]), "the leading axes of `z`, and the E of `values`")
    m = _Mixture(z, centers, log_prior, temperature, where, x, values, shards)
    values, middle = _around_0(m.per_class, m.live, shards)
    return m.evaluate(loss, m.example - middle[None], values, weights, reduction, block_size)


def mixture_autoencoder_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
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
        weights: of the examples [...]; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            centers, values, log_prior and where are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

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
    shards = Shards.named(axis_name, batch_axis_name)
    options = log_prior, temperature, where, shards, weights, reduction, block_size
    return _mixture(losses.mixture_autoencoder, z, x, centers, values, *options)


def eol_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
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
        weights: of the examples [...]; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            centers, values, log_prior and where are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

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
    shards = Shards.named(axis_name, batch_axis_name)
    options = log_prior, temperature, where, shards, weights, reduction, block_size
    return _mixture(losses.eol, z, x, centers, values, *options)


def leop_loss(
    z: ArrayLike,
    x: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    block_size: BlockSize = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
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
        weights: of the examples [...]; None for 1.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            centers, values, log_prior and where are then this device's shard; class ids are global.
        batch_axis_name: likewise for the examples, whose sum or mean is then that of all devices.

    Returns:
        The loss [...], or a scalar, in at least float32: a sum over e, not a mean.

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
    shards = Shards.named(axis_name, batch_axis_name)
    options = log_prior, temperature, where, shards, weights, reduction, block_size
    return _mixture(losses.leop, z, x, centers, values, *options)


def mixture_expectation(
    z: ArrayLike,
    centers: ArrayLike,
    values: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    block_size: BlockSize = None,
    axis_name: AxisName = None,
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
        block_size: how many classes are held at a time, or a `softjax.Placement`; None for what suits the shapes.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none.
            centers, values, log_prior and where are then this device's shard; class ids are global.

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
    latents, means = _latents(z, centers)
    payoffs = _arguments.values(values, means.shape[0], "centers")
    m = _Mixture(latents, means, log_prior, temperature, where, None, payoffs, Shards.named(axis_name))
    payoffs, middle = _around_0(m.per_class, m.live, m.shards)
    of_classes = losses.expectation._replace(finish=Partial(_moved_back, middle))
    return m.evaluate(of_classes, None, payoffs, None, "none", block_size).astype(m.given_dtype)


def _moved_back(middle, q, _):
    """E_p[A], for values A that were moved by their middle; 0 where no class is left."""
    any_class = jnp.expand_dims(~jnp.isneginf(q.a.m), -1)
    return (q.v[0] - jnp.where(any_class, -middle, 0)).value
