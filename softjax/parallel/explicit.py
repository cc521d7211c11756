"""Functions of arrays whose types say how they are sharded: meshes with explicit axes.

There every operation has to say how its result is sharded, and JAX refuses those that leave it open. Here only the
result of a function says it; its operations are left to the partitioner of XLA, as on meshes with `Auto` axes.
"""

import functools as ft
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..arguments import checks
from ..arguments.table import Function
from . import collectives
from .placed import placed_logits


def over_explicit_axes(of_result: Callable[[Mapping[str, Any]], Any]) -> Callable[[Function], Function]:
    """A decorator: a function of arrays that are sharded over explicit axes computes over `Auto` axes.

    `of_result` gives the partition of the result, or a prefix of its tree, from the arguments by their names.
    """
    return ft.partial(_over_explicit_axes, of_result)


def sharded_like(*names: str, with_classes: bool = False) -> Callable[[Function], Function]:
    """The same decorator, for a result [...] of examples, which is sharded as they are.

    Args:
        names: arguments [..., classes or features] that are broadcast against each other; the largest has all examples.
        with_classes: whether the result has the shape of that argument, else its shape less `axis` or the last axis.
    """

    def of_function(given):
        of_examples = _partition_of_rows(max((given[name] for name in names), key=_size), given, with_classes)
        return of_outputs(of_examples, given)

    def over(function):
        on_device = over_explicit_axes(of_function)(function)
        signature = inspect.signature(function)

        @ft.wraps(function)
        def over_global_arrays(*args, **options):
            placed = placed_logits((*args, *options.values()))
            if placed is None:
                return on_device(*args, **options)
            return placed.over_mesh(function, signature.bind(*args, **options), of_outputs)

        return over_global_arrays

    return over


def of_outputs(of_examples: P, options: Mapping[str, Any]) -> Any:
    """The partition of a function's result, for that of the examples and the function's options."""
    out = of_examples if options.get("reduction", "none") == "none" else P()
    if options.get("loss_weights") is not None:
        return P()
    return (out, of_examples) if options.get("has_aux", False) else out


def partition(x: Any) -> P:
    """The partition in the type of an array, or in those of logits; of anything else, that of a replicated one."""
    if isinstance(x, tuple) and x:
        return partition(x[0])
    if hasattr(x, "examples_partition"):
        return x.examples_partition
    return jax.typeof(x).sharding.spec if isinstance(x, Array) else P()


def _over_explicit_axes(of_result, function):
    signature = inspect.signature(function)

    @ft.wraps(function)
    def over_auto_axes(*args, **options):
        leaves, tree = jax.tree.flatten((args, options))
        arrays = [a if isinstance(a, Array) else None for a in leaves]
        mesh = _mesh_of(arrays)
        if mesh is None:
            return function(*args, **options)

        def of_arrays(arrays):
            merged = [leaf if a is None else a for a, leaf in zip(arrays, leaves, strict=True)]
            args, options = jax.tree.unflatten(tree, merged)
            return function(*args, **options)

        given = signature.bind(*args, **options)
        given.apply_defaults()
        is_partition = lambda x: isinstance(x, P)
        out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), of_result(given.arguments), is_leaf=is_partition)
        axes = collectives.explicit_axes(mesh)
        over_auto = jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=out)
        # JAX 0.10 cannot pass residuals over `Auto` axes out of a `jax.shard_map` over some of the axes.
        return (jax.checkpoint(over_auto) if mesh.manual_axes else over_auto)(arrays)

    return over_auto_axes


def _mesh_of(arrays):
    """The mesh of one of the arrays, with explicit axes that are in the types of arrays; None if there is none."""
    for a in arrays:
        sharding = None if a is None else jax.typeof(a).sharding
        # In a `jax.shard_map` over some of the axes, arrays may vary along those alone.
        if (
            sharding
            and collectives.explicit_axes(sharding.mesh)
            and (any(sharding.spec) or not sharding.mesh.manual_axes)
        ):
            return sharding.mesh
    return None


def _size(x):
    x = x[0] if isinstance(x, tuple) and x else x
    return math.prod(getattr(x, "shape", ()))


def _partition_of_rows(x, given, with_classes):
    spec = partition(x)
    if with_classes or not spec:
        return spec
    of_classes = checks.axes(given.get("axis", -1), len(spec))
    kept = given.get("keepdims", False)
    return P(*(None if a in of_classes else names for a, names in enumerate(spec) if kept or a not in of_classes))
