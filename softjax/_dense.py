"""Softmax and its logarithm, of logits in memory, over any axis or axes; the rows of such logits."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .arguments import checks
from .arguments.checks import Axis
from .arguments.signatures import readable
from .arguments.table import checked_array
from .compute import rows as of_rows
from .parallel.explicit import sharded_like


class Rows:
    """The reshaping of an array [...] with its classes on some axes to rows [..., K], and back.

    Rows without a class become rows of one class, which is left out.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]):
        self.axes = axes
        self.order = tuple(a for a in range(len(shape)) if a not in axes) + axes
        self.moved = tuple(shape[a] for a in self.order)
        self.batch = self.moved[: len(shape) - len(axes)]
        self.classes = math.prod(self.moved[len(self.batch) :])

    def flatten(self, x: Array, left_out: float = 0) -> Array:
        rows = x.transpose(self.order).reshape(*self.batch, self.classes)
        one_more = [(0, 0)] * len(self.batch) + [(0, 1)]
        return rows if self.classes != 0 else jnp.pad(rows, one_more, constant_values=left_out)

    def restore(self, rows: Array) -> Array:
        rows = rows if self.classes != 0 else rows[..., :0]
        return rows.reshape(self.moved).transpose([self.order.index(a) for a in range(len(self.order))])


def as_rows(name: str, x: ArrayLike, axis: Axis, where: ArrayLike | None) -> tuple[Array, Rows]:
    """(logits [..., K], -inf where a class is left out, their reshaping)."""
    logits = checks.floating(name, x)
    rows = Rows(logits.shape, checks.axes(axis, logits.ndim))
    return rows.flatten(masked(logits, where), -jnp.inf), rows


def masked(logits: Array, where: ArrayLike | None) -> Array:
    """The logits, with -inf where `where` masks a class."""
    if where is None:
        return logits
    live = checks.broadcast("where", checked_array("where", where), logits.shape, "that of the logits")
    return jnp.where(live, logits, -jnp.inf)


@readable
@sharded_like("x", with_classes=True)
def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Softmax, which the source texts call softargmax.

    p_k = exp(x_k) / sum_j exp(x_j), with the derivative dp_k = p_k (dx_k - sum_j p_j dx_j).
    Takes the arguments of `jax.nn.softmax`. The gradient keeps all digits in a row that is sure of its class. A class
    that is left out, by logit -inf or `where`, has probability and gradient 0, even if its whole row is left out. A
    logit of +inf or NaN makes its row NaN. The softmax over no class is empty.

    Args:
        x: logits [...], of any floating-point type; integers are promoted.
        axis: the axis or axes of the classes; None for all.
        where: booleans broadcastable to the logits, the classes to include; None for all.

    Returns:
        Probabilities of the shape and type of x.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.softmax(jnp.array([1000.0, 2000.0, 3000.0])))
        [0. 0. 1.]

    Source: CATSMILE-1012 (softargmax); The softmax function and its derivative.
    """
    logits, rows = as_rows("x", x, axis, where)
    return rows.restore(of_rows.row_softmax(logits).astype(logits.dtype))


softargmax = softmax


@readable
@sharded_like("x", with_classes=True)
def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """Logarithm of the softmax.

    log p_k = x_k - log sum_j exp(x_j), with all digits also for a likely class, where it is close to 0.
    Takes the arguments of `jax.nn.log_softmax`; a class that is left out has -inf and gradient 0.

    Args:
        x: logits [...].
        axis: the axis or axes of the classes; None for all.
        where: booleans broadcastable to the logits, the classes to include; None for all.

    Returns:
        Log-probabilities of the shape and type of x.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.log_softmax(jnp.array([20.0, 0.0])))  # jax.nn gives -0. for the first
        [-2.061e-09 -2.000e+01]

    Source: Notes on gradients, 1 (softmax loss).
    """
    logits, rows = as_rows("x", x, axis, where)
    return rows.restore(of_rows.row_log_softmax(logits).astype(logits.dtype))
