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
from jax.custom_derivatives import zero_from_primal
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from . import _mesh
from ._dtypes import is_inexact, is_per_pair, join, split, widened
from ._mesh import Shards
from ._older_jax import linear_transpose

# The roles of an array: its first axis is that of the examples, and in pairs the second that of the classes; or it is
# replicated; or an integer, its class axis.
EXAMPLES, PAIRS, REPLICATED = "examples", "pairs", "replicated"
ArrayRole = str | int


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A computation, and how it is divided."""

    jaxpr: core.ClosedJaxpr  # the computation itself, which derivatives and vmap use
    local: Callable  # (shards, *leaves) -> leaves, of the arrays of one device
    roles: tuple[tuple[ArrayRole, ...], tuple[ArrayRole, ...]]  # of the leaves of the arguments, and of the result
    linear: int  # the number of last arguments in which the result is linear


def call(local: Callable, args: tuple, roles: tuple, of_result: Any, *, linear: int = 0) -> Any:
    """`local(Shards(), *args)`, computed by every device for its shard.

    Args:
        local: (shards, *args) -> result, with sums over the devices of the shards.
        args: pytrees of arrays.
        roles: for each argument, a tree of roles that is a prefix of it.
        of_result: the same for the result.
        linear: the number of last arguments in which the result is linear.
    """
    if jax.sharding.get_abstract_mesh().manual_axes or _mesh.explicit_axes(jax.sharding.get_abstract_mesh()):
        return local(Shards(), *args)
    leaves, tree = jax.tree.flatten(args)
    of_leaves = lambda shards, *leaves: local(shards, *jax.tree.unflatten(tree, leaves))
    jaxpr, shape = jax.make_jaxpr(ft.partial(of_leaves, Shards()), return_shape=True)(*leaves)
    flat = lambda shards, *leaves: jax.tree.leaves(of_leaves(shards, *leaves))
    count = len(jax.tree.leaves(args[len(args) - linear :])) if linear else 0
    program = Program(jaxpr, flat, (_flat_roles(roles, args), _flat_roles(of_result, shape)), count)
    return jax.tree.unflatten(jax.tree.structure(shape), _bind(program, leaves))


def _bind(program, leaves, transposed=None):
    divided = custom_partitioning(core.jaxpr_as_fun(program.jaxpr))
    divided.def_partition(_partition_of(program), sharding_rule=_rule(program), decode_shardings=True)
    return _call_p.bind(*leaves, divided=jax.make_jaxpr(divided)(*leaves), program=program, transposed=transposed)


def _flat_roles(roles, tree):
    """A role for each leaf of the tree."""
    of_leaves = lambda role, part: jax.tree.map(lambda a: PAIRS if is_per_pair(a) else role, part, is_leaf=is_per_pair)
    return tuple(jax.tree.leaves(jax.tree.map(of_leaves, roles, tree)))


_call_p = core.Primitive("softjax_call")
_call_p.multiple_results = True
_call_p.def_impl(lambda *args, program, **_: core.jaxpr_as_fun(program.jaxpr)(*args))
_call_p.def_abstract_eval(lambda *_, program, **__: program.jaxpr.out_avals)


def _jvp(primals, tangents, *, program, **params):
    moving = [a for a in primals if is_inexact(a)]
    tangents = [ad.instantiate_zeros(t) for t, a in zip(tangents, primals, strict=True) if is_inexact(a)]

    def function(*moving):
        given = iter(moving)
        out = core.jaxpr_as_fun(program.jaxpr)(*(next(given) if is_inexact(a) else a for a in primals))
        return split(out)

    _, moved, fixed = jax.jvp(function, moving, tangents, has_aux=True)
    moved = join(moved, [None if a is None else zero_from_primal(a) for a in fixed])
    return _call_p.bind(*primals, program=program, **params), moved


def _batch(args, axes, *, program, **_):
    out = jax.vmap(core.jaxpr_as_fun(program.jaxpr), axes)(*args)
    return out, [0] * len(out)


def _transpose(cotangents, *args, program, transposed, **_):
    """The transpose, as an equation whose own transpose is the divided computation again."""
    fixed, linear = args[: len(args) - program.linear], args[len(args) - program.linear :]
    cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
    if transposed is not None:
        return [None] * len(fixed) + _bind(transposed, [*fixed, *cotangents])

    def transpose(*args):
        function = lambda *moving: core.jaxpr_as_fun(program.jaxpr)(*args[: len(fixed)], *moving)
        return linear_transpose(function, *(a.aval for a in linear))(list(args[len(fixed) :]))

    jaxpr = jax.make_jaxpr(transpose)(*fixed, *cotangents)
    pushed = dataclasses.replace(program, jaxpr=jaxpr, linear=len(cotangents))
    out = _call_p.bind(*fixed, *cotangents, divided=jaxpr, program=pushed, transposed=program)
    return [None] * len(fixed) + out


ad.primitive_jvps[_call_p] = _jvp
ad.primitive_transposes[_call_p] = _transpose
batching.primitive_batchers[_call_p] = _batch


def _lower(context, *args, divided, program, **_):
    module = context.module_context
    on_one_device = getattr(module.axis_context, "num_devices", 2) == 1
    plain = on_one_device or module.lowering_parameters.for_export  # an exported program cannot call back
    function = core.jaxpr_as_fun(program.jaxpr if plain else divided)
    return mlir.lower_fun(function, multiple_results=True)(context, *args)


mlir.register_lowering(_call_p, _lower)


def _partition_of(program):
    """The function that chooses how the arrays are sharded, for `custom_partitioning`."""
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def local(shards, *leaves):
        with jax.enable_x64(x64):  # XLA calls this in a thread of its own, which does not know of `with` statements
            return program.local(shards, *leaves)

    def partition(mesh, args, results):
        shards = _shards(mesh, args, program.roles[0])
        spec = lambda role, a: NamedSharding(mesh, _spec(shards, role, a.ndim))
        of_args, of_results = (
            tuple(map(spec, roles, arrays)) for roles, arrays in zip(program.roles, (args, results), strict=True)
        )
        return mesh, ft.partial(local, shards), list(of_results), of_args

    return partition


def _shards(mesh, args, roles):
    """The mesh axes over which the examples and the classes of the arguments are sharded."""

    def first(wanted):
        for role, a in zip(roles, args, strict=True):
            if wanted(role) and isinstance(a.sharding, NamedSharding):
                axis = role if isinstance(role, int) else 0
                names = (*_mesh.axes_of(a.sharding.spec), *[()] * a.ndim)[axis]
                if names and a.shape[axis] % _mesh.devices_along(mesh, names) == 0:
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


def sum_over_devices(tree: Any, axes: _mesh.Names) -> Any:
    """The sum over devices, in at least float32, of gradients that are then rounded again."""
    if not axes:
        return tree

    return jax.tree.map(lambda a: jax.lax.psum(widened(a), axes).astype(a.dtype), tree)
