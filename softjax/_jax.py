"""JAX's experimental and internal interfaces, and its names that differ between versions: all of them are here.

A new version of JAX is a change of this module alone. tests/test_house.py sees that no other module imports from
`jax.experimental`, `jax.extend`, `jax.interpreters` or `jax._src`.
"""

import contextlib
import functools as ft
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal
from jax.experimental import topologies
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout as Format
from jax.experimental.layout import with_layout_constraint
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .arguments.dtypes import join, split

_IS_10 = jax.__version_info__ >= (0, 10)
_lax: Any = lax  # with names that the newer JAX, which the types are checked with, does not have
_ir: Any = mlir.ir

Jaxpr = core.ClosedJaxpr
of_jaxpr = core.jaxpr_as_fun
"""the function of a `Jaxpr`"""


def setting(name: str) -> Any:
    """The value of one of JAX's settings, such as "jax_enable_x64"."""
    return getattr(jax.config, name)


def device_to_compile_for(platform: str, **options: Any) -> Any:
    """The first device of a topology that need not be there."""
    return topologies.get_topology_desc(platform=platform, **options).devices[0]


# --- mesh axes ------------------------------------------------------------------------------------------


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of the surrounding `jax.shard_map` along which an array varies."""
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def as_varying(x: Array, axes: tuple[str, ...]) -> Array:
    """The array, typed as varying along the axes."""
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return _lax.pvary(x, axes)  # pragma: no cover


def gather_shards(x: Array, axes: tuple[str, ...], *, replicated: bool) -> Array:
    """The shards [N, ...] of all devices, typed as replicated or as varying."""
    if replicated and not _IS_10:  # pragma: no cover
        return _summed_shards(x, axes)
    return lax.all_gather(x, axes, tiled=True, **({"to": "invarying"} if replicated else {}))


def _summed_shards(x, axes):  # pragma: no cover
    """The shards as a sum over devices of arrays that are 0 elsewhere: twice the traffic of what JAX 0.10 does."""
    shape = (x.shape[0] * lax.axis_size(axes), *x.shape[1:])
    zeros = as_varying(jnp.zeros(shape, x.dtype), tuple(sorted(varying_axes(x))))
    return lax.psum(lax.dynamic_update_slice_in_dim(zeros, x, lax.axis_index(axes) * x.shape[0], 0), axes)


# --- transposes -----------------------------------------------------------------------------------------


def linear_transpose(function: Callable, *arguments: Any) -> Callable:
    """`jax.linear_transpose`, for arguments that are pytrees of arrays or of their types (`jax.core.ShapedArray`).

    JAX 0.8 and 0.9 refuse loops that they have not linearised themselves, so there it is the derivative at 0.
    """
    if _IS_10:
        return jax.linear_transpose(function, *arguments)
    return jax.vjp(function, *jax.tree.map(_varying_zeros, arguments))[1]  # pragma: no cover


def _varying_zeros(like):  # pragma: no cover
    zeros = jnp.zeros(like.shape, like.dtype)
    axes = like.vma if hasattr(like, "vma") else varying_axes(like)
    return as_varying(zeros, tuple(sorted(axes))) if axes else zeros


# --- primitives -----------------------------------------------------------------------------------------


def elementwise(
    name: str,
    function: Callable,
    jvp: Callable,
    transpose: Callable | None = None,
    *,
    on_tpus: Callable | None = None,
    static: tuple[str, ...] = (),
) -> Callable:
    """`function(x, *arrays, **static)` as a primitive with rules of its own. The result has the type of x.

    Args:
        name: of the primitive.
        function: its value; the arrays have the shape of x, or of its first axes.
        jvp: (primals, tangents, **static) -> (value, tangent), where a tangent of None is 0.
        transpose: (cotangent, x, *arrays, **static) -> the cotangent of x.
        on_tpus: the function that TPUs compute, except in exported programs.
        static: the names of options.
    """
    primitive = core.Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames=static))
    primitive.def_abstract_eval(lambda x, *_, **__: x)
    lowered = mlir.lower_fun(_in_type(function), multiple_results=False)
    mlir.register_lowering(primitive, lowered)
    if on_tpus is not None:
        of_tpus = mlir.lower_fun(_in_type(on_tpus), multiple_results=False)
        exported = lambda context: context.module_context.lowering_parameters.for_export
        choose = lambda context, *args, **options: (lowered if exported(context) else of_tpus)(
            context, *args, **options
        )
        mlir.register_lowering(primitive, choose, platform="tpu")

    def of_primals(primals, tangents, **options):
        known = [None if isinstance(t, ad.Zero) else t for t in tangents]
        out, moved = jvp(primals, known, **options)
        return out, tangents[0] if moved is None else moved

    def batched(args, axes, **options):
        if len(args) == 1:
            return primitive.bind(*args, **options), axes[0]
        return primitive.bind(*_batched_in_front(args, axes), **options), 0

    ad.primitive_jvps[primitive] = of_primals
    if transpose is not None:

        def of_cotangent(ct, *args, **options):
            moved = ct if isinstance(ct, ad.Zero) else transpose(ct, *args, **options)
            return moved, *[None] * (len(args) - 1)

        ad.primitive_transposes[primitive] = of_cotangent
    batching.primitive_batchers[primitive] = batched
    return primitive.bind


def _in_type(function):
    """The function, in the thread of a partitioner too, where 64 bits may be off."""

    def of(x, *args, **options):
        with jax.enable_x64(x.dtype.itemsize == 8):
            return function(x, *args, **options)

    return of


def _batched_in_front(args, axes):
    """The arguments of a batching rule, all with the batch as their first axis."""
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    front = lambda a, axis: jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
    return [front(a, axis) for a, axis in zip(args, axes, strict=True)]


def primitive_call(name: str, transpose: Callable) -> Callable:
    """A primitive that computes a `Jaxpr` by a program of its own.

    Its value, derivatives and batches are those of the `Jaxpr`, `call.jaxpr`; its program is `call.lowered`. JAX looks
    into `call.divided` for primitives that need to know the devices.

    Args:
        name: of the primitive.
        transpose: (call, cotangents, arguments) -> the cotangents of the last arguments.

    Returns:
        (*arrays, call=...) -> list of arrays.
    """
    primitive = core.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(lambda *args, call, **_: of_jaxpr(call.jaxpr)(*args))
    primitive.def_abstract_eval(lambda *_, call, **__: call.jaxpr.out_avals)

    def bind(*args, call):
        return primitive.bind(*args, call=call, divided=call.divided)

    def jvp(primals, tangents, *, call, **_):
        moving, still = split(list(primals))
        instantiated = [ad.instantiate_zeros(t) for t in tangents]
        moved = [None if a is None else t for a, t in zip(moving, instantiated, strict=True)]
        of_moving = lambda moving: split(of_jaxpr(call.jaxpr)(*join(moving, still)))
        _, moved, fixed = jax.jvp(of_moving, (moving,), (moved,), has_aux=True)
        return bind(*primals, call=call), join(moved, jax.tree.map(zero_from_primal, fixed))

    def batch(args, axes, *, call, **_):
        out = jax.vmap(of_jaxpr(call.jaxpr), axes)(*args)
        return out, [0] * len(out)

    def of_cotangents(cotangents, *args, call, **_):
        moved = transpose(call, [ad.instantiate_zeros(ct) for ct in cotangents], args)
        return [None] * (len(args) - len(moved)) + moved

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = of_cotangents
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lambda context, *args, call, **_: call.lowered(context, args))
    return bind


def lowered_jaxpr(context: Any, args: tuple, jaxpr: Jaxpr) -> Any:
    """A `Jaxpr` in the program that is being lowered."""
    return mlir.lower_fun(of_jaxpr(jaxpr), multiple_results=True)(context, *args)


def of_one_device(context: Any) -> bool:
    """Whether the program that is being lowered is for one device, or exported: such a program cannot call back."""
    module = context.module_context
    return getattr(module.axis_context, "num_devices", 2) == 1 or module.lowering_parameters.for_export


def _in_rows(a):
    return with_layout_constraint(a, Format(tuple(range(a.ndim))))


# In the layout that arrays have on TPUs, whose compiler would otherwise transpose the whole array.
row_major: Callable = elementwise(
    "softjax_row_major",
    lambda block: block,
    lambda primals, tangents: tuple(None if a is None else row_major(a) for a in (*primals, *tangents)),
    lambda ct, _: row_major(ct),
    on_tpus=_in_rows,
)


# --- computations that are divided over devices ----------------------------------------------------------
#
# XLA's partitioner calls back to Python. The call has no more than the address of a Python object, so two programs with
# different computations of equal shapes have the same text but for addresses. JAX's persistent cache takes the text for
# the program. With the address in its key, no later process finds a program again; without it, by
# `jax_remove_custom_partitioning_ptr_from_cache_key`, it would find another loss. Here the call has a hash of the
# computation in place of the address, and again in an attribute that this setting leaves alone.

try:
    from jax._src.custom_partitioning import _sharding_callbacks as _callbacks
except ImportError:  # pragma: no cover
    _callbacks = {}  # type: ignore[assignment]  # the address stays


@contextlib.contextmanager
def _of_callbacks(x64: bool) -> Iterator[None]:
    """What JAX traces when XLA calls back, in any thread: `with` statements around the compilation do not matter."""
    with jax.enable_x64(x64), jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        yield


def custom_partitioned(jaxpr: Jaxpr, partition: Callable, rule: Callable, types: list[Any]) -> Jaxpr:
    """A `Jaxpr` that XLA's partitioner divides as `partition` says.

    Args:
        jaxpr: the computation.
        partition: (mesh, arguments, results) -> (function of the arrays of one device, shardings of the results,
            shardings of the arguments), where arguments and results are arrays' types with shardings.
        rule: (mesh, arguments, results) -> the text of a sharding rule.
        types: of the arguments.
    """
    x64 = setting("jax_enable_x64")

    def of_mesh(mesh, args, results):
        function, of_results, of_args = partition(mesh, args, results)

        def of_device(*args):
            with _of_callbacks(x64):
                return function(*args)

        return mesh, of_device, of_results, of_args

    function = custom_partitioning(of_jaxpr(jaxpr))
    function.def_partition(of_mesh, sharding_rule=rule, decode_shardings=True)
    return jax.make_jaxpr(function)(*types)


def lowered_partitioned(context: Any, args: tuple, jaxpr: Jaxpr, whole: Jaxpr, content: str) -> Any:
    """The same as `lowered_jaxpr`, of a `Jaxpr` that was made by `custom_partitioned`, with a hash for the address.

    Args:
        context: of the lowering.
        args: its arguments.
        jaxpr: made by `custom_partitioned`.
        whole: the computation.
        content: how it is divided: all that `whole` does not say.
    """
    out = lowered_jaxpr(context, args, jaxpr)
    (equation,) = jaxpr.jaxpr.eqns
    module, partition = context.module_context, equation.params["partition"]
    known = ft.cache(lambda mesh: _hash(whole, content, module.platforms, str(mesh.shape)))

    def of_operation(operation):
        attributes = operation.attributes
        if operation.name == "stablehlo.custom_call" and "backend_config" in attributes:
            address = getattr(attributes["backend_config"], "value", "")
            info = _callbacks.get(address.encode()) if isinstance(address, str) else None
            if info is not None and info.partition is partition and address.isdigit():
                key = known(info.mesh)
                named = {"softjax_program": _ir.StringAttr.get(key)}
                attributes["mhlo.frontend_attributes"] = _ir.DictAttr.get(named)
                attributes["backend_config"] = _ir.StringAttr.get(key)
                # The object of an equal computation that is still compiled stays.
                module.add_keepalive(_callbacks.setdefault(key.encode(), info))
        return _ir.WalkResult.ADVANCE

    # The function that is being lowered need not be in the module yet.
    for around in (_ir.InsertionPoint.current.block.owner, module.module):
        around.operation.walk(of_operation)
    return out


def _hash(whole, content, platforms, mesh):
    types = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in whole.in_avals]
    with _of_callbacks(setting("jax_enable_x64")):
        program = jax.jit(of_jaxpr(whole)).trace(*types).lower(lowering_platforms=tuple(platforms))
    hashed = hashlib.sha256(program.as_text().encode())
    for constant in whole.consts:
        hashed.update(jax.device_get(constant).tobytes())
    for text in (content, mesh, jax.__version__, _sources()):
        hashed.update(text.encode())
    return f"softjax-{hashed.hexdigest()}"


@ft.cache
def _sources():
    """A hash of this library: what it divides is computed by it."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
