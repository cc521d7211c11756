"""Computations that stay where their arrays are sharded, under plain `jax.jit`.

The partitioner of XLA cuts a loop over tiles or blocks in the wrong place: it gathers the examples or the classes.
`call` tells it how the computation is divided instead: over the devices that share the examples, over those that share
the classes, or both. Elsewhere, and in other transformations, it is the computation itself.
"""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from .. import _jax
from ..arguments.dtypes import EXAMPLES, PAIRS, widened
from . import collectives
from .collectives import Shards

# The roles of an array: its first axis is that of the examples, and in pairs the second that of the classes; or it is
# replicated; or an integer, its class axis.
REPLICATED = "replicated"
ArrayRole = str | int


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A computation, and how it is divided."""

    jaxpr: _jax.Jaxpr  # the computation itself, which derivatives and vmap use
    local: Callable | None = None  # (shards, *leaves) -> leaves, of the arrays of one device; None for a transpose
    roles: tuple[tuple[ArrayRole, ...], tuple[ArrayRole, ...]] = (
        (),
        (),
    )  # of the leaves of arguments and of the result
    linear: int = 0  # the number of last arguments in which the result is linear
    content: str = ""  # all of `local` that the computation itself does not say
    divided: _jax.Jaxpr | None = None  # the computation, divided; None for a transpose
    transposed: "Program | None" = None  # the program of which this is the transpose

    def lowered(self, context: Any, args: tuple) -> Any:
        """The computation in the program that is being lowered."""
        if self.divided is None or _jax.of_one_device(context):
            return _jax.lowered_jaxpr(context, args, self.jaxpr)
        return _jax.lowered_partitioned(context, args, self.divided, self.jaxpr, self.content)


def call(local: Callable, args: tuple, roles: tuple, of_result: Any, *, linear: int = 0, content: str) -> Any:
    """`local(Shards(), *args)`, computed by every device for its shard.

    Args:
        local: (shards, *args) -> result, with sums over the devices of the shards.
        args: pytrees of arrays.
        roles: for each argument, a tree of roles that is a prefix of it.
        of_result: the same for the result.
        linear: the number of last arguments in which the result is linear.
        content: the name and the options of `local`. Equal texts are one computation to a compilation cache, if
            `local(Shards(), *args)` is the same program too.
    """
    if jax.sharding.get_abstract_mesh().manual_axes or collectives.explicit_axes(jax.sharding.get_abstract_mesh()):
        return local(Shards(), *args)
    leaves, tree = jax.tree.flatten(args)
    of_leaves = lambda shards, *leaves: local(shards, *jax.tree.unflatten(tree, leaves))
    jaxpr, shape = jax.make_jaxpr(ft.partial(of_leaves, Shards()), return_shape=True)(*leaves)
    flat = lambda shards, *leaves: jax.tree.leaves(of_leaves(shards, *leaves))
    count = len(jax.tree.leaves(args[len(args) - linear :])) if linear else 0
    roles = _flat_roles(roles, args), _flat_roles(of_result, shape)
    program = Program(jaxpr, flat, roles, count, f"{content} {roles}")
    return jax.tree.unflatten(jax.tree.structure(shape), _bind(program, leaves))


def _bind(program, leaves):
    divided = _jax.custom_partitioned(program.jaxpr, _partition_of(program), _rule(program), leaves)
    return _divided_call(*leaves, call=dataclasses.replace(program, divided=divided))


def _flat_roles(roles, tree):
    """A role for each leaf of the tree."""
    of_leaves = lambda role, part: jax.tree.map(lambda _: role, part)
    return tuple(jax.tree.leaves(jax.tree.map(of_leaves, roles, tree)))


def _transpose(program, cotangents, args):
    """The transpose, as an equation whose own transpose is the divided computation again."""
    fixed, linear = args[: len(args) - program.linear], args[len(args) - program.linear :]
    if program.transposed is not None:
        return _bind(program.transposed, [*fixed, *cotangents])

    def transpose(*args):
        function = lambda *moving: _jax.of_jaxpr(program.jaxpr)(*args[: len(fixed)], *moving)
        return _jax.linear_transpose(function, *(a.aval for a in linear))(list(args[len(fixed) :]))

    jaxpr = jax.make_jaxpr(transpose)(*fixed, *cotangents)
    return _divided_call(*fixed, *cotangents, call=Program(jaxpr, linear=len(cotangents), transposed=program))


_divided_call: Callable = _jax.primitive_call("softjax_call", _transpose)


def _partition_of(program):
    """How arrays are sharded, and the computation of one device, for the partitioner."""

    def partition(mesh, args, results):
        shards = _shards(mesh, args, program.roles[0])
        spec = lambda role, a: NamedSharding(mesh, _spec(shards, role, a.ndim))
        of_args, of_results = (
            tuple(map(spec, roles, arrays)) for roles, arrays in zip(program.roles, (args, results), strict=True)
        )
        return ft.partial(program.local, shards), list(of_results), of_args

    return partition


def _shards(mesh, args, roles):
    """The mesh axes over which the examples and the classes of the arguments are sharded."""

    def first(wanted):
        for role, a in zip(roles, args, strict=True):
            if wanted(role) and isinstance(a.sharding, NamedSharding):
                axis = role if isinstance(role, int) else 0
                names = (*collectives.axes_of(a.sharding.spec), *[()] * a.ndim)[axis]
                if names and a.shape[axis] % collectives.devices_along(mesh, names) == 0:
                    return names
        return ()

    examples = first(lambda role: role == EXAMPLES)
    classes = first(lambda role: isinstance(role, int))
    return Shards(() if set(examples) & set(classes) else classes, examples)


def _spec(shards, role, ndim):
    if role == EXAMPLES:
        return P(shards.examples or None, *[None] * (ndim - 1))
    if role == PAIRS:
        return P(shards.examples or None, shards.classes or None)
    if isinstance(role, int):
        return P(*[None] * role, shards.classes or None, *[None] * (ndim - role - 1))
    return P(*[None] * ndim)


def _rule(program):
    """The factors of all arrays, for the propagation of shardings: n for examples, k for classes, others alone."""

    def rule(mesh, args, results):  # noqa: ARG001
        count = 0

        def factors(role, a):
            nonlocal count
            names = []
            for axis in range(len(a.shape)):
                shared = "nk"[axis] if role == PAIRS else "n" if (role, axis) == (EXAMPLES, 0) else None
                shared = "k" if role == axis else shared
                names.append(shared or f"a{count}")
                count += shared is None
            return " ".join(names)

        sides = [
            ", ".join(map(factors, roles, arrays)) for roles, arrays in zip(program.roles, (args, results), strict=True)
        ]
        return " -> ".join(sides)

    return rule


def sum_of_class_arrays(trees: tuple, class_axes: tuple, axes: collectives.Names) -> tuple:
    """The sum over the devices of the examples; arrays of examples and classes are sharded over these devices."""
    summed = lambda axis, tree: tree if axis == PAIRS else sum_over_devices(tree, axes)
    return tuple(map(summed, class_axes, trees))


def sum_over_devices(tree: Any, axes: collectives.Names) -> Any:
    """The sum over devices, in at least float32, of gradients that are then rounded again."""
    if not axes:
        return tree

    return jax.tree.map(lambda a: jax.lax.psum(widened(a), axes).astype(a.dtype), tree)
