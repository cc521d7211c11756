"""The soft cap of logits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from ..arguments.dtypes import widened
from ..arguments.signatures import readable
from ..arguments.table import checked_array, checked_scalar
from ..sums.elementary import exp, reciprocal, tanh
from .constructors import LogitsLike
from .value import Logits


@readable
def softcap(logits: LogitsLike, cap: ArrayLike) -> Any:
    """Logits that are held between -cap and cap.

    cap * tanh(logits / cap), with the derivative 4 u / (1 + u)^2 for u = exp(-2 |logits| / cap). Far above the cap,
    1 - tanh^2, which JAX's `tanh` has, loses all digits: at 10 times the cap it is 0 in float32.

    Args:
        logits: [..., K], an array or `softjax.Logits`.
        cap: a positive scalar.

    Returns:
        The capped logits, of the kind and type of the logits. A masked class, with logit -inf, keeps it.

    Raises:
        ValueError: if the cap is not positive.
        TypeError: if an argument is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.softcap(jnp.array([-1000.0, 0.0, 15.0]), 30.0))
        [-30.      0.     13.863]
        >>> print(softjax.softcap(softjax.linear(jnp.ones((1, 2)), jnp.zeros((2, 5))), 30.0))
        Logits(float32[1, 5], map of linear, a number, not in memory)

    Source: Gemma 2 (2024), logit soft-capping.
    """
    cap = checked_scalar("cap", cap)
    if isinstance(logits, Logits):
        return logits.map(_capped, cap)
    logits = checked_array("logits", logits)
    return _capped(widened(logits), widened(cap).astype(widened(logits).dtype)).astype(logits.dtype)


def _capped(logit, cap):
    x = logit / cap.astype(logit.dtype)
    near = jnp.abs(x) < 1
    u = exp(-2 * jnp.abs(jnp.where(near, 1, x)))
    capped = cap.astype(logit.dtype) * jnp.where(
        near, tanh(jnp.where(near, x, 0)), jnp.sign(x) * ((1 - u) * reciprocal(1 + u))
    )
    return jnp.where(jnp.isneginf(logit), -jnp.inf, capped)
