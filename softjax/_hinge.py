"""Multiclass hinge losses of dense scores."""

import functools as ft

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _checks, losses
from ._arguments import checked_array, checked_scalar, documented
from ._dtypes import compute_dtype
from ._logits import of_logits


@documented(dense=True)
def multiclass_svm_loss(scores: ArrayLike, labels: ArrayLike, *, margin: ArrayLike = 1.0) -> Array:
    """Multiclass SVM loss of Weston and Watkins.

    L = sum_{k != y} max(0, s_k - s_y + margin)

    Its gradient for s_k, k != y, is 1 where s_k - s_y + margin > 0 and 1/2 where it is 0, as in JAX's `maximum`
    (the text takes 1 there); for s_y it is minus their sum.

    Returns:
        L [...], in at least float32. A class of score -inf costs nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import multiclass_svm_loss
        >>> print(multiclass_svm_loss(jnp.array([[3.0, 2.5, -1.0]]), jnp.array([0])))
        [0.5]

    Source: Notes on gradients, 1 (multiclass SVM loss). The "j" inside its sum over m should read "m".
    """
    s, y, known, margin = _checked(scores, labels, margin)
    label_scores = jnp.take_along_axis(s, y[..., None], -1)[..., 0]
    return of_logits(losses.weston_watkins(margin), s, (jnp.where(known, y, -1), label_scores))


@documented(dense=True)
def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike, *, margin: ArrayLike = 1.0) -> Array:
    """Multiclass hinge loss of Crammer and Singer.

    L = max(0, max_{k != y} s_k - s_y + margin)

    With margin 1 it is `optax.losses.multiclass_hinge_loss`. Classes that tie for the maximum, the label included,
    share its gradient equally, as in JAX's `max`.

    Returns:
        L [...], in at least float32. A class of score -inf costs nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax import multiclass_hinge_loss
        >>> print(multiclass_hinge_loss(jnp.array([[3.0, 2.5, 2.75]]), jnp.array([0])))
        [0.75]

    Source: the maximum in place of the sum of Notes on gradients, 1 (multiclass SVM loss).
    """
    return _crammer_singer_of_rows(*_checked(scores, labels, margin))


def _checked(scores, labels, margin):
    """(scores, class ids, whether they are classes, margin)."""
    s = checked_array("scores", scores)
    if s.ndim == 0 or s.shape[-1] == 0:
        raise ValueError(f"`scores` must have shape [..., K] with at least one class, got {s.shape}.")
    labels = _checks.integers("labels", labels)
    _checks.shape("labels", labels, s.shape[:-1], "that of `scores` less its last axis")
    s = s.astype(compute_dtype(s.dtype))
    margin = checked_scalar("margin", margin).astype(s.dtype)
    return s, *_checks.class_ids(labels, s.shape[-1]), margin


@ft.partial(jax.jit, inline=True)
def _crammer_singer_of_rows(s, y, known, margin):
    """In 2/3 of the time and half of the memory of `losses.crammer_singer`, which does not need whole rows."""
    y, known = y[..., None], known[..., None]
    known_s = s * jnp.where(known & ~jnp.isposinf(s), 1, jnp.nan).astype(s.dtype)
    is_label = (jnp.expand_dims(jnp.arange(s.shape[-1], dtype=y.dtype), range(s.ndim - 1)) == y) & known
    of_label = jnp.take_along_axis(known_s, y, -1)
    left_out = jnp.isneginf(of_label)  # a label that is left out is infinitely below the others, without a gradient
    over = jnp.where(jnp.isneginf(known_s), -jnp.inf, known_s - jnp.where(left_out, 0, of_label) + margin)
    most = jnp.where(is_label, jnp.where(left_out, -jnp.inf, 0), over).max(-1)
    loss = jnp.where(jnp.isneginf(most), 0, jnp.where(left_out[..., 0], most + jnp.inf, most))
    unknown = jnp.isnan(loss)  # then the gradient of all scores is NaN too
    return loss + jnp.where(unknown, s.sum(-1), 0) * jnp.where(unknown, jnp.nan, 0).astype(s.dtype)
