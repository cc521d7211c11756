"""Checks of a function against a definition in plain JAX, and of the collectives of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .arguments.dtypes import join, split
from .arguments.signatures import readable
from .parallel.network import Collective, collectives

MODES = ("value", "vjp", "jvp", "hessian-vector product", "jit", "vmap")

__all__ = ["MODES", "Collective", "assert_matches_autodiff", "collectives", "relative_errors"]


@readable
def assert_matches_autodiff(
    fun: Callable,
    reference: Callable,
    *args: Any,
    rtol: float | None = None,
    seed: int = 0,
    modes: Sequence[str] = MODES,
) -> dict[str, float]:
    """Asserts that a function and its derivatives agree with a definition in plain JAX.

    It compares the value, reverse mode with a random cotangent, forward mode along a random tangent, the
    Hessian-vector product of both, and value and reverse mode under `jit` and under `vmap`, over all arguments
    together and over each alone. The derivatives are for all floating-point arrays among the arguments.

    Args:
        fun: the function to check. Its arguments and its result are arrays or pytrees of arrays.
        reference: its definition, differentiated by JAX.
        *args: the arguments at which they are compared. Integers and booleans stay fixed.
        rtol: the largest error allowed, relative to the largest element of each compared array; None for eps^(2/3) of
            its type: 2e-5 in float32, 4e-11 in float64. Where a sum cancels, both sides lose digits: allow more.
        seed: for cotangents and tangents.
        modes: some of `MODES`.

    Returns:
        A dictionary from the name of each mode to its largest relative error.

    Raises:
        AssertionError: if an error is too large; it names the mode, the array and the error.
        ValueError: if no argument holds a floating-point array, or a mode is not one of `MODES`.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> definition = lambda x: jnp.log(jnp.exp(x).sum())
        >>> sorted(softjax.testing.assert_matches_autodiff(softjax.logsumexp, definition, jnp.arange(3.0)))
        ['hessian-vector product', 'jit', 'jvp', 'value', 'vjp', 'vmap']
    """
    worst: dict[str, float] = {}
    for mode, place, got, want in _comparisons(fun, reference, args, seed, modes):
        error = _relative_error(place, mode, got, want)
        exact = not jnp.issubdtype(want.dtype, jnp.inexact)
        limit = (0.0 if exact else float(jnp.finfo(want.dtype).eps) ** (2 / 3)) if rtol is None else rtol
        if not error <= limit:
            subject = f"{mode} of {getattr(fun, '__name__', repr(fun))}{place}"
            allowed = f"no more than {limit:.1e} is allowed"
            raise AssertionError(f"{subject} is off by {error:.1e} relative to its largest element; {allowed}.")
        worst[mode] = max(worst.get(mode, 0.0), error)
    return worst


@readable
def relative_errors(
    fun: Callable, reference: Callable, *args: Any, seed: int = 0, modes: Sequence[str] = MODES
) -> dict[str, float]:
    """The errors of `assert_matches_autodiff`, with its arguments, of any size.

    Returns:
        A dictionary from the name of each mode to its largest relative error.

    Raises:
        AssertionError: if the results differ in structure, shape or type.

    Example:
        >>> import jax.numpy as jnp
        >>> from softjax.testing import relative_errors
        >>> relative_errors(jnp.sin, jnp.sin, jnp.arange(3.0))["vjp"]
        0.0
    """
    return assert_matches_autodiff(fun, reference, *args, rtol=float("inf"), seed=seed, modes=modes)


def _comparisons(fun, reference, args, seed, modes) -> Iterator[tuple[str, str, Array, Array]]:
    """(mode, place in the result, what fun gives, what the reference gives)."""
    args = jax.tree.map(jnp.asarray, args)
    moving, fixed = split(args)
    leaves, tree = jax.tree.flatten(moving)
    if not set(modes) <= set(MODES):
        raise ValueError(f"`modes` must be some of {MODES}, got {tuple(modes)}.")
    if not leaves:
        raise ValueError("`args` must hold a floating-point array, by which to differentiate.")
    f, ref = (lambda moving, fun=fun: fun(*join(moving, fixed)) for fun in (fun, reference))
    keys = jax.random.split(jax.random.key(seed), 2)
    cotangent, tangent = _random_like(keys[0], jax.eval_shape(ref, moving)), _random_like(keys[1], moving)

    def vjp(f):
        return lambda moving: jax.vjp(lambda m: split(f(m))[0], moving)[1](cotangent)[0]

    def jvp(f):
        return lambda moving: jax.jvp(lambda m: split(f(m))[0], (moving,), (tangent,))[1]

    def hvp(f):
        return lambda moving: jax.jvp(vjp(f), (moving,), (tangent,))[1]

    def both(f):
        return lambda moving: (f(moving), vjp(f)(moving))

    expected = jax.jit(both(ref))
    for mode, ours, theirs in (
        ("value", f, ref),
        ("vjp", vjp(f), jax.jit(vjp(ref))),
        ("jvp", jax.jit(jvp(f)), jax.jit(jvp(ref))),
        ("hessian-vector product", jax.jit(hvp(f)), jax.jit(hvp(ref))),
        ("jit", jax.jit(both(f)), expected),
    ):
        if mode in modes:
            yield from _leaves(mode, ours(moving), theirs(moving))
    if "vmap" not in modes:
        return
    everything = tuple(range(len(leaves)))
    for batched in dict.fromkeys([everything, *((i,) for i in everything)]):
        others = [leaf * jnp.asarray(0.5, leaf.dtype) if i in batched else leaf for i, leaf in enumerate(leaves)]
        pairs = [jnp.stack([a, b]) if i in batched else a for i, (a, b) in enumerate(zip(leaves, others, strict=True))]
        axes = jax.tree.unflatten(tree, [0 if i in batched else None for i in everything])
        got = jax.jit(jax.vmap(both(f), (axes,)))(jax.tree.unflatten(tree, pairs))
        each = [expected(jax.tree.unflatten(tree, of_one)) for of_one in (leaves, others)]
        yield from _leaves("vmap", got, jax.tree.map(lambda *rows: jnp.stack(rows), *each))


def _random_like(key, tree):
    """Normal random numbers in the shapes of a tree's inexact leaves."""
    leaves, structure = jax.tree.flatten(split(tree)[0])
    keys = jax.random.split(key, max(len(leaves), 1))
    numbers = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, numbers)


def _leaves(mode, got, want):
    if str(jax.tree.structure(got)) != str(jax.tree.structure(want)):
        raise AssertionError(f"{mode}: the structure is {jax.tree.structure(got)}, not {jax.tree.structure(want)}.")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        yield mode, jax.tree_util.keystr(path), jnp.asarray(a), jnp.asarray(b)


def _relative_error(place, mode, got, want) -> float:
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        raise AssertionError(f"{mode}{place}: got {got.dtype}{got.shape}, wanted {want.dtype}{want.shape}.")
    a, b = (np.asarray(x).astype(np.float64) for x in (got, want))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if not np.isfinite(np.where(same, 0, a) + np.where(same, 0, b)).all():
        return float("inf")
    scale = np.abs(np.where(np.isfinite(b), b, 0)).max()
    return float(np.abs(np.where(same, 0, a) - np.where(same, 0, b)).max() / (scale or 1.0))
