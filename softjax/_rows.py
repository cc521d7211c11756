"""Rules over the rows of logits [N, K] that are in hand. A class of logit -inf is no class.

They compute in at least float32, whatever the type of the logits.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from . import _classes, _mesh, losses
from . import _gibbs as g
from ._arguments import wide
from ._examples import finished
from .losses import Loss


def of_logits(loss: Loss, logits: Array, example: Any = None, per_class: Any = None) -> Array:
    """The loss [N, ...] of the logits [N, K]."""
    return _of_logits(losses.as_tree(loss, wide(logits.dtype)), logits, example, per_class)


@ft.partial(jax.jit, inline=True)
def _of_logits(loss, logits, example, per_class):
    columns = Partial(_columns_of_rows, loss.columns)
    totals = _classes.totals(columns, (logits, example), (per_class,), _at_once(logits, 0))
    return finished(loss.finish(totals, example), logits.shape[0])


def _columns_of_rows(columns, examples, block, ids):
    logits, example = examples
    return columns(_classes.wide(logits), ids, example, *block)


def _normaliser(logits):
    return _classes.totals(_SCORES_ALONE, logits, (), _at_once(logits)).a


def _at_once(logits, *axes):
    n, k = logits.shape
    return _classes.Layout(axes, n, k, n, k)


_SCORES_ALONE = Partial(lambda logits, _, ids: g.Columns(_classes.wide(logits)))


@jax.custom_vjp
def _softmax_rule(logits, _):
    z = _classes.wide(logits)
    m = jnp.max(z, -1, keepdims=True)
    w = jnp.exp(z - g.finite(m))
    return w / jnp.maximum(w.sum(-1, keepdims=True), 1)  # it is 0 where no class is left, and at least 1 elsewhere


def _softmax_fwd(logits, _):
    p = softmax(logits)
    # From half precision, p is made again: it would take twice the memory of the logits.
    return p, (logits, p if p.dtype == logits.dtype else None)


def _softmax_bwd(residuals, ct):
    logits, p = residuals
    p = softmax(logits) if p is None else p
    return g.softmax_tangent(p, ct).astype(logits.dtype), None  # the payoffs of <ct, p> = E_p[ct] are ct


_softmax_rule.defvjp(_softmax_fwd, _softmax_bwd)
_softmax = jax.jit(_classes.both_modes(_softmax_rule), inline=True)


def softmax(logits: Array) -> Array:
    """p [N, K] of the logits [N, K]."""
    return _softmax(logits, ())


def _rule(kept: Callable, value: Callable, pull: Callable) -> Callable:
    """A function of (logits, ...) in both modes of differentiation.

    `kept(logits)` is what the backward pass keeps beside the arrays, `value(kept, *arrays)` the result,
    and `pull(kept, ct, *arrays)` the cotangents of the inexact arrays, with None for the others. All get
    the arrays in the type to compute in.
    """

    @jax.custom_vjp
    def rule(inexact, fixed):
        arrays = _classes.join(inexact, fixed)
        return value(kept(arrays[0]), *jax.tree.map(_classes.wide, arrays))

    def fwd(inexact, fixed):
        arrays = _classes.join(inexact, fixed)
        k = kept(arrays[0])
        return value(k, *jax.tree.map(_classes.wide, arrays)), (k, inexact, fixed)

    def bwd(residuals, ct):
        k, inexact, fixed = residuals
        cotangents = pull(k, ct, *jax.tree.map(_classes.wide, _classes.join(inexact, fixed)))
        return jax.tree.map(lambda x, d: d.astype(x.dtype), inexact, cotangents), None

    rule.defvjp(fwd, bwd)
    function = jax.jit(_classes.both_modes(rule), inline=True)
    return lambda *arrays: function(*_classes.split(_mesh.alike(arrays)))


def _impossible(logits):
    return jnp.isneginf(logits)


def _if_impossible(z, careful, plain):
    """careful() where some class is impossible, else plain(), which is faster for not having to select."""
    return lax.cond(_impossible(z.min(-1)).any(), careful, plain)


# log p_k
def _log_softmax(a, z):
    return jnp.where(_impossible(z), -jnp.inf, z - a.log[..., None])


def _log_softmax_pull(a, ct, z):
    return (g.log_softmax_cotangent(a.probabilities(z), jnp.where(_impossible(z), 0, ct)),)


log_softmax = _rule(_normaliser, _log_softmax, _log_softmax_pull)


# E_p[t] for payoffs [N, K]: p_k (t_k - E_p[t]), and p_k
def _expectation(p, z, t):
    return _if_impossible(z, lambda: (p * jnp.where(_impossible(z), 0, t)).sum(-1), lambda: (p * t).sum(-1))


def _expectation_pull(p, ct, z, t):
    careful = lambda: g.softmax_tangent(p, jnp.where(_impossible(z), 0, t))
    return ct[..., None] * _if_impossible(z, careful, lambda: g.softmax_tangent(p, t)), ct[..., None] * p


expectation = _rule(softmax, _expectation, _expectation_pull)


# -sum_k y_k log p_k for labels [N, K]: p_k sum_j y_j - y_k
def _cross_entropy(a, z, y):
    costs = lambda a, z: (a.m[..., None] - z) + a.log.rest[..., None]

    def of_rows(_, rows):
        a, z, y = rows
        impossible = _impossible(z)
        loss = (y * jnp.where(impossible, 0, costs(a, jnp.where(impossible, 0, z)))).sum(-1)
        return None, jnp.where((impossible & (y != 0)).any(-1) & ~jnp.isnan(loss), jnp.inf, loss)

    def careful():  # some rows at a time: what it selects from would be as large as the logits
        return _classes.over_tiles(of_rows, None, (a, z, y), z.shape[0], max(1, z.shape[0] // 16))[1]

    return _if_impossible(z, careful, lambda: (y * costs(a, z)).sum(-1))


def _cross_entropy_pull(a, ct, z, y):
    impossible = _impossible(z)
    total = y.sum(-1, keepdims=True)
    # p_k sum_j y_j - y_k adds up to 0 over the classes. What rounding makes of the sum matters where a row is
    # nearly sure, and is taken off its likely classes.
    slip = lambda: (y - a.probabilities(z) * total).sum(-1, keepdims=True)
    slip = lax.cond((a.r < 0.25).any(), slip, lambda: jnp.zeros_like(total))
    p = a.probabilities(z)
    dz = jnp.where(impossible, 0, (p * total - y) + p * slip)
    dy = jnp.where(impossible, 0, -_log_softmax(a, jnp.where(impossible, 0, z)))
    return ct[..., None] * dz, ct[..., None] * dy


cross_entropy = _rule(_normaliser, _cross_entropy, _cross_entropy_pull)


# -log p_y for integer labels [N]: p - onehot(y)
def _label_cross_entropy(a, z, y):
    z_y = jnp.take_along_axis(z, y[..., None], -1)[..., 0]
    loss = (a.m - jnp.where(_impossible(z_y), 0, z_y)) + a.log.rest
    return jnp.where(_impossible(z_y) & ~jnp.isnan(loss), jnp.inf, loss)


def _label_cross_entropy_pull(a, ct, z, y):
    z_y = jnp.take_along_axis(z, y[..., None], -1)
    others = jnp.where(_impossible(z_y), 0, a.complement(z_y))
    is_label = jnp.arange(z.shape[-1], dtype=y.dtype)[None] == y[:, None]
    return ct[..., None] * jnp.where(is_label, -others, a.probabilities(z)), None


label_cross_entropy = _rule(_normaliser, _label_cross_entropy, _label_cross_entropy_pull)
