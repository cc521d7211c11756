"""Checks of what the functions of a loss return."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ._checks import shown
from ._gibbs import Columns, Weights


def check_columns(c: Any, ids: Array) -> None:
    """Refuses a result of `columns` that is not `Columns` of the classes `ids`."""
    if not isinstance(c, Columns):
        raise TypeError(f"`columns` of a loss must return `softjax.Columns`, got {shown(c)}.")
    _check_array("h", c.h, (None, ids.size), f"[N, {ids.size}] for the ids of {ids.size} classes")
    if not jnp.issubdtype(c.h.dtype, jnp.floating):
        raise TypeError(f"`h` of `Columns` must be floating-point numbers, got dtype {c.h.dtype}.")
    for name, wanted, meaning in (
        ("t", c.h.shape, "[N, B] as `h`"),
        ("v", (ids.size, None), f"[{ids.size}, E] for the ids of {ids.size} classes"),
        ("e", c.h.shape, "[N, B] as `h`"),
        ("l", (c.h.shape[0], None), "[N, B] as `h`, or [N, 1]"),
    ):
        terms = getattr(c, name)
        if not isinstance(terms, tuple):
            raise TypeError(f"`{name}` of `Columns` must be a tuple of arrays, got {shown(terms)}.")
        for x in terms:
            _check_array(name, x, wanted, meaning)
    if c.y is not None:
        if not isinstance(c.y, Weights):
            raise TypeError(f"`y` of `Columns` must be `softjax.Weights`, got {shown(c.y)}.")
        _check_array("y.ids", c.y.ids, (c.h.shape[0], None), "[N, T] for the N of `h`")
        _check_array("y.of_ids", c.y.of_ids, c.y.ids.shape, "[N, T] as `y.ids`")
        if not jnp.issubdtype(c.y.ids.dtype, jnp.integer):
            raise TypeError(f"`y.ids` of `Columns` must be integers, got dtype {c.y.ids.dtype}.")
        if c.y.per_class is not None:
            _check_array("y.per_class", c.y.per_class, (ids.size,), f"[{ids.size}] for the ids of {ids.size} classes")


def check_losses(loss: Any, n: int) -> None:
    """Refuses a result of `finish` that is not the losses of N examples."""
    if not isinstance(loss, Array):
        raise TypeError(f"`finish` of a loss must return a JAX array, got {shown(loss)}.")
    if loss.shape[:1] != (n,):
        raise ValueError(f"`finish` of a loss must return an array [N, ...] of {n} losses, got shape {loss.shape}.")


def _check_array(name, x, wanted, meaning):
    if not isinstance(x, Array):
        raise TypeError(f"`{name}` of `Columns` must be a JAX array, got {shown(x)}.")
    if len(x.shape) != len(wanted) or any(b not in (a, None) for a, b in zip(x.shape, wanted, strict=True)):
        raise ValueError(f"`{name}` of `Columns` must have shape {meaning}, got {x.shape}.")
