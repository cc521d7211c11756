"""Checks of a function against a definition in plain JAX, and of the collectives of a program."""

from __future__ import annotations

import functools as ft
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .arguments.dtypes import cast, join, split
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

    The definition is computed in float64, so that an error is that of the function; where it can't be, as its numbers
    are of a given type, in its own. An error message says how far off the definition in its own type is.

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
    for mode, place, got, want, own in _comparisons(fun, reference, args, seed, modes):
        error = _relative_error(place, mode, got, want)
        exact = not jnp.issubdtype(got.dtype, jnp.inexact)
        limit = (0.0 if exact else float(jnp.finfo(got.dtype).eps) ** (2 / 3)) if rtol is None else rtol
        if not error <= limit:
            subject = f"{mode} of {getattr(fun, '__name__', repr(fun))}{place}"
            of_reference = f"the reference in {got.dtype} is off by {_relative_error(place, mode, own(), want):.1e}"
            allowed = f"no more than {limit:.1e} is allowed, and {of_reference}"
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


def _comparisons(fun, reference, args, seed, modes) -> Iterator[tuple[str, str, Array, np.ndarray, Callable]]:
    """(mode, place in the result, what fun gives, what the reference gives, that in its own type by a call)."""
    args = jax.tree.map(jnp.asarray, args)
    moving, fixed = split(args)
    leaves, tree = jax.tree.flatten(moving)
    if not set(modes) <= set(MODES):
        raise ValueError(f"`modes` must be some of {MODES}, got {tuple(modes)}.")
    if not leaves:
        raise ValueError("`args` must hold a floating-point array, by which to differentiate.")
    f, ref = (lambda moving, fun=fun: fun(*join(moving, fixed)) for fun in (fun, reference))
    keys = jax.random.split(jax.random.key(seed), 2)
    given = moving, _random_like(keys[0], jax.eval_shape(ref, moving)), _random_like(keys[1], moving)

    def vjp(f):
        return lambda moving, ct, along: jax.vjp(lambda m: split(f(m))[0], moving)[1](ct)[0]

    def jvp(f):
        return lambda moving, ct, along: jax.jvp(lambda m: split(f(m))[0], (moving,), (along,))[1]

    def hvp(f):
        return lambda moving, ct, along: jax.jvp(lambda m: vjp(f)(m, ct, along), (moving,), (along,))[1]

    def both(f):
        return lambda moving, ct, along: (f(moving), vjp(f)(moving, ct, along))

    names = _argument_names(fun, len(args))
    expected = _InFloat64(both(ref))
    for mode, ours, theirs, depth in (
        ("value", lambda moving, ct, along: f(moving), _InFloat64(lambda moving, ct, along: ref(moving)), None),
        ("vjp", vjp(f), _InFloat64(vjp(ref)), 0),
        ("jvp", jax.jit(jvp(f)), _InFloat64(jvp(ref)), None),
        ("hessian-vector product", jax.jit(hvp(f)), _InFloat64(hvp(ref)), 0),
        ("jit", jax.jit(both(f)), expected, 1),
    ):
        if mode in modes:
            got = ours(*given)
            yield from _leaves(mode, got, theirs(*given), ft.partial(theirs.in_own_type, *given), names, depth)
    if "vmap" not in modes:
        return
    everything = tuple(range(len(leaves)))
    for batched in dict.fromkeys([everything, *((i,) for i in everything)]):
        others = [leaf * jnp.asarray(0.5, leaf.dtype) if i in batched else leaf for i, leaf in enumerate(leaves)]
        pairs = [jnp.stack([a, b]) if i in batched else a for i, (a, b) in enumerate(zip(leaves, others, strict=True))]
        axes = jax.tree.unflatten(tree, [0 if i in batched else None for i in everything])
        got = jax.jit(jax.vmap(both(f), (axes, None, None)))(jax.tree.unflatten(tree, pairs), *given[1:])
        of_rows = [(jax.tree.unflatten(tree, of_one), *given[1:]) for of_one in (leaves, others)]
        stacked = lambda of, of_rows=of_rows: jax.tree.map(lambda *rows: np.stack(rows), *(of(*row) for row in of_rows))
        yield from _leaves("vmap", got, stacked(expected), ft.partial(stacked, expected.in_own_type), names, 1)


class _InFloat64:
    """A function of trees, in float64 where its code allows it, rounded to the type that it has."""

    def __init__(self, function):
        self.in_own_type = jax.jit(function)

    def __call__(self, *given):
        types = jax.eval_shape(self.in_own_type, *given)
        with jax.enable_x64(True):
            try:
                exact = self.in_own_type(*cast(given, jnp.dtype("float64")))
            except (TypeError, ValueError):  # a number or an array of another type in its code
                exact = self.in_own_type(*given)
            return jax.tree.map(lambda a, like: np.asarray(a).astype(like.dtype), exact, types)


def _argument_names(fun, count):
    """The names of the arguments of a function, or None."""
    try:
        names = list(inspect.signature(fun).parameters)
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else None for i in range(count)]


def _random_like(key, tree):
    """Normal random numbers in the shapes of a tree's inexact leaves."""
    leaves, structure = jax.tree.flatten(split(tree)[0])
    keys = jax.random.split(key, max(len(leaves), 1))
    numbers = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, numbers)


def _leaves(mode, got, want, own, names, depth):
    if str(jax.tree.structure(got)) != str(jax.tree.structure(want)):
        raise AssertionError(f"{mode}: the structure is {jax.tree.structure(got)}, not {jax.tree.structure(want)}.")
    of_want = jax.tree.leaves(want)
    for i, (path, a) in enumerate(jax.tree_util.tree_leaves_with_path(got)):
        argument = None
        if depth is not None and len(path) > depth and (depth == 0 or path[0].idx == depth):
            argument = names[path[depth].idx]
        place = jax.tree_util.keystr(path) + (f" (the gradient of `{argument}`)" if argument else "")
        yield mode, place, jnp.asarray(a), of_want[i], lambda i=i: np.asarray(jax.tree.leaves(own())[i])


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
