"""Rules over the rows of dense logits [..., K], which keep their class axis or use it more than once.

They compute in at least float32, whatever the type of the logits. A class with logit -inf is left out.

The leading axes are not flattened to one: XLA would not write a gradient [B, L, K] in the place of an array [N, K].
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export, lax
from jax.tree_util import Partial

from .._jax import elementwise
from ..arguments.dtypes import join, split, widened
from ..parallel import collectives
from ..sums import sums as g
from ..sums.elementary import exp, reciprocal
from ..sums.products import finite
from . import rules
from .loops import Layout, over_tiles

_SCORES_ALONE = Partial(lambda logits, _, ids: g.Columns(widened(logits)))


def _row_normaliser(logits):
    *batch, k = logits.shape
    n = math.prod(batch)
    return rules.totals(_SCORES_ALONE, logits, (), Layout((), n, k, n, k)).normaliser


@ft.partial(jax.jit, inline=True)
def row_logsumexp(logits: Array) -> Array:
    """log sum_k exp z_k [...] of the logits [..., K], in at least float32."""
    return _row_normaliser(logits).log.value


@jax.custom_vjp
def _softmax_rule(logits, _):
    z = widened(logits)
    m = jnp.max(z, -1, keepdims=True)
    w = exp(z - finite(m))
    return w * reciprocal(jnp.maximum(w.sum(-1, keepdims=True), 1))  # 0 where all classes are left out, else at least 1


def _softmax_fwd(logits, _):
    p = row_softmax(logits)
    # For half precision, p is computed again: it would take twice the memory of the logits.
    return p, (logits, p if p.dtype == logits.dtype else None)


def _softmax_bwd(residuals, ct):
    logits, p = residuals
    p = row_softmax(logits) if p is None else p
    return g.softmax_tangent(p, ct).astype(logits.dtype), None  # <ct, p> is an expectation, of payoffs ct


_softmax_rule.defvjp(_softmax_fwd, _softmax_bwd)
_softmax = jax.jit(rules.both_modes(_softmax_rule), inline=True)


def row_softmax(logits: Array) -> Array:
    """p [..., K] of the logits [..., K]."""
    return _softmax(logits, ())


def row_rule(kept: Callable, value: Callable, pull: Callable) -> Callable:
    """A function of (logits, ...) in both modes of differentiation.

    `kept(logits)` are the residuals of the backward pass in addition to the arrays, `value(kept, *arrays)` is the
    result, and `pull(kept, ct, *arrays)` the cotangents of the inexact arrays, with None for the others. `value` and
    `pull` get the arrays in at least float32.
    """

    def fwd(inexact, fixed):
        arrays = join(inexact, fixed)
        k = kept(arrays[0])
        return value(k, *jax.tree.map(widened, arrays)), (k, inexact, fixed)

    def bwd(residuals, ct):
        k, inexact, fixed = residuals
        cotangents = pull(k, ct, *jax.tree.map(widened, join(inexact, fixed)))
        return jax.tree.map(lambda x, d: d.astype(x.dtype), inexact, cotangents), None

    rule = jax.custom_vjp(lambda inexact, fixed: fwd(inexact, fixed)[0])
    rule.defvjp(fwd, bwd)
    function = jax.jit(rules.both_modes(rule), inline=True)
    return lambda *arrays: function(*split(collectives.vary_together(arrays)))


def still_unless(kept: Array, x: Array) -> Array:
    """x [..., K], whose rows are constants of differentiation where `kept` [...] is False.

    Their derivative is 0 even where it would be NaN. A selection from x has this derivative too, but is an array more.
    """
    return _still(*collectives.vary_together((x, kept)))


def _jvp_of_still(primals, tangents):
    (x, kept), (dx, _) = primals, tangents
    return _still(x, kept), None if dx is None else jnp.where(kept[..., None], dx, 0)


_still = elementwise("softjax_still", lambda x, _: x, _jvp_of_still)

_left_out = jnp.isneginf


def _if_left_out(z, careful, plain):
    """careful() if a class is left out, else plain(), which is faster as it selects nothing."""
    return lax.cond(_left_out(z.min(-1)).any(), careful, plain)


# log p_k
_log_p = lambda a, z: jnp.where(_left_out(z), -jnp.inf, z - a.log[..., None])
_log_p_pull = lambda a, ct, z: (g.log_softmax_cotangent(a.probabilities(z), jnp.where(_left_out(z), 0, ct)),)
row_log_softmax = row_rule(_row_normaliser, _log_p, _log_p_pull)


# E_p[t] for payoffs [..., K]: p_k (t_k - E_p[t]), and p_k
def _mean_payoff(p, z, t):
    return _if_left_out(z, lambda: (p * jnp.where(_left_out(z), 0, t)).sum(-1), lambda: (p * t).sum(-1))


def _mean_payoff_pull(p, ct, z, t):
    careful = lambda: g.softmax_tangent(p, jnp.where(_left_out(z), 0, t))
    return ct[..., None] * _if_left_out(z, careful, lambda: g.softmax_tangent(p, t)), ct[..., None] * p


row_expectation = row_rule(row_softmax, _mean_payoff, _mean_payoff_pull)


# -sum_k y_k log p_k for labels [..., K]: p_k sum_j y_j - y_k
def _soft_cost(a, z, y):
    costs = lambda a, z: (a.m[..., None] - z) + a.log.rest[..., None]

    def of_rows(_, rows):
        a, z, y = rows
        left_out = _left_out(z)
        loss = (y * jnp.where(left_out, 0, costs(a, jnp.where(left_out, 0, z)))).sum(-1)
        return None, jnp.where((left_out & (y != 0)).any(-1) & ~jnp.isnan(loss), jnp.inf, loss)

    def careful():  # some rows at a time, so that no selection is as large as the logits
        n = math.prod(z.shape[:-1])
        rows = jax.tree.map(lambda x: x.reshape(n, *x.shape[z.ndim - 1 :]), (a, z, y))
        tile: Any = n if export.is_symbolic_dim(n) else max(1, n // 16)
        return over_tiles(of_rows, None, rows, n, tile)[1].reshape(z.shape[:-1])

    return _if_left_out(z, careful, lambda: (y * costs(a, z)).sum(-1))


def _soft_cost_pull(a, ct, z, y):
    left_out = _left_out(z)
    total = y.sum(-1, keepdims=True)
    # p_k sum_j y_j - y_k sums to 0 over the classes, but for rounding. In a row that is nearly sure the rounded sum
    # matters, and is subtracted in proportion to p.
    slip = lambda: (y - a.probabilities(z) * total).sum(-1, keepdims=True)
    slip = lax.cond((a.r < 0.25).any(), slip, lambda: jnp.zeros_like(total))
    p = a.probabilities(z)
    dz = jnp.where(left_out, 0, (p * total - y) + p * slip)
    dy = jnp.where(left_out, 0, -_log_p(a, jnp.where(left_out, 0, z)))
    return ct[..., None] * dz, ct[..., None] * dy


row_cross_entropy = row_rule(_row_normaliser, _soft_cost, _soft_cost_pull)


# -log p_y for integer labels [...]: p - onehot(y)
def _label_cost(a, z, y):
    z_y = jnp.take_along_axis(z, y[..., None], -1)[..., 0]
    loss = (a.m - jnp.where(_left_out(z_y), 0, z_y)) + a.log.rest
    return jnp.where(_left_out(z_y) & ~jnp.isnan(loss), jnp.inf, loss)


def _label_cost_pull(a, ct, z, y):
    z_y = jnp.take_along_axis(z, y[..., None], -1)
    others = jnp.where(_left_out(z_y), 0, a.complement(z_y))
    is_label = lax.broadcasted_iota(y.dtype, z.shape, z.ndim - 1) == y[..., None]
    return ct[..., None] * jnp.where(is_label, -others, a.probabilities(z)), None


row_label_cross_entropy = row_rule(_row_normaliser, _label_cost, _label_cost_pull)
