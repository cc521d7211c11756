"""The fused functions over a mesh of devices, without writing `jax.shard_map`.

Each function has the name, arguments and result of a function in `softjax`, for global arrays. Every device of the
mesh computes with its shard of the classes, of the examples, or of both. The network traffic does not depend on the
number of classes.

    mesh = jax.make_mesh((2, 4), ("data", "classes"))
    loss = softjax.sharded.linear_softmax_cross_entropy(
        features, kernel, labels, mesh=mesh, class_axis_name="classes", batch_axis_name="data", reduction="mean"
    )

In place of `axis_name` they take

- `mesh`: the mesh; None for the mesh of `jax.set_mesh`.
- `class_axis_name`: the axis or axes over which the classes are sharded; () for none. None for the axes in the type of
  the kernel or the centers, if they are `jax.sharding.AxisType.Explicit`.
- `batch_axis_name`: the axis or axes over which the first axis of features, labels and other examples is sharded; ()
  for none. None for the axes in the type of the features, z or x, likewise, for all leading axes.

If the number of classes is not a multiple of the number of devices, every call pads copies of the class arrays. To
avoid the copies, call `pad_classes` once, when the arrays are made.
"""

from __future__ import annotations

import functools as ft
import inspect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import _checks, _contrastive, _decoding, _distillation, _explicit, _linear, _mesh, _mixture, losses
from ._arguments import ARGUMENTS, Role
from ._dtypes import PerPair
from ._mesh import Shards
from ._signatures import readable, with_texts


@readable
def pad_classes(x: ArrayLike, devices: int, *, class_axis: int = 0) -> tuple[Array, Array]:
    """Pads the classes with zeros, to a multiple of the number of devices.

    With the returned `where` as an argument, class ids, losses and gradients are as without padding, and the gradient
    of the padding is 0.

    Args:
        x: an array with K classes: a kernel, centers, values or a bias.
        devices: the number of devices over which the classes are sharded.
        class_axis: the class axis of x.

    Returns:
        (x with K' >= K classes, `where` [K']: booleans, True for the first K).

    Raises:
        ValueError: if x has no such axis, or `devices` is not positive.
        TypeError: if x is not an array.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> kernel, where = softjax.sharded.pad_classes(jnp.ones((2, 5)), 4, class_axis=-1)
        >>> print(kernel.shape, where)
        (2, 8) [ True  True  True  True  True False False False]
    """
    x, devices = _checks.array("x", x), _checks.positive("devices", devices)
    axis = _checks.integer("class_axis", class_axis, "an integer")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"`class_axis` must be an axis of `x`, got {axis} for shape {x.shape}.")
    k = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -k % devices)
    return jnp.pad(x, widths), jnp.arange(k + -k % devices) < k


def _names_of(*roles: Role) -> tuple[str, ...]:
    """The names of the arguments of some roles, in the order of the table."""
    return tuple(name for name, argument in ARGUMENTS.items() if argument.role in roles)


_KERNELS = "kernel", "teacher_kernel"  # the arrays whose class axis is `class_axis`
_VIEWS = (  # the functions in which the examples are the classes
    _contrastive.contrastive_loss,
    _contrastive.nt_xent_loss,
    _contrastive.siglip_loss,
    _contrastive.supervised_contrastive_loss,
)


class _Plan(NamedTuple):
    """A call, apart from its arrays."""

    function: Callable
    options: tuple[tuple[str, Any], ...]
    mesh: Mesh | None
    classes: _mesh.Names
    batch: tuple[_mesh.Names, ...]  # for each leading axis
    class_axis: int  # of a kernel
    unpadded: int | None  # the number of classes without padding, if there is padding

    @property
    def examples(self):
        return sum(self.batch, ())

    def spec(self, name, x=None):
        """The partition of the arrays of an argument."""
        of_batch = [axes or None for axes in self.batch]
        if isinstance(x, PerPair):
            return P(*of_batch, *[None] * (x.array.ndim - 1 - len(of_batch)), self.classes or None)
        if ARGUMENTS[name].role == "examples":
            return P(*of_batch)
        return P(*[None] * (self.class_axis if name in _KERNELS else 0), self.classes or None)


def _over_mesh(function: Callable) -> Callable[..., Array]:
    """The function for global arrays, over a mesh."""
    of_mesh = ["mesh", "class_axis_name", "batch_axis_name"]
    if function in _VIEWS:
        of_mesh.remove("class_axis_name")
    types = {"mesh": "Mesh | AbstractMesh | None"}
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types.get(name, "AxisName"))
        for name in of_mesh
    ]
    own = inspect.signature(function).parameters
    kept = [parameter for name, parameter in own.items() if name not in ("axis_name", "batch_axis_name")]
    signature = inspect.Signature(kept + more, return_annotation=function.__annotations__["return"])
    optional = {name for name, parameter in signature.parameters.items() if parameter.default is None}

    @ft.wraps(function)
    def over_mesh(*args, **options):
        given = signature.bind(*args, **options).arguments
        given = {name: x for name, x in given.items() if not (x is None and name in optional)}
        return _run(function, given, **{name: given.pop(name, None) for name in of_mesh})

    with_texts(over_mesh, signature)
    over_mesh.__module__ = __name__
    over_mesh.__doc__ = f"""`softjax.{function.__name__}`, with the same arguments, over a mesh of devices.

    The arrays are global. `softjax.sharded` describes {", ".join(f"`{name}`" for name in of_mesh)}.
    """
    return over_mesh


def _run(function, given, mesh=None, class_axis_name=None, batch_axis_name=None):
    devices = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if not isinstance(devices, AbstractMesh | Mesh) or not devices.axis_names:
        raise ValueError(f"`mesh` must be a mesh of devices, or set by `jax.set_mesh`, got {_checks.shown(mesh)}.")
    arrays, numbers, options = _sorted(given)

    data = next(name for name in ("features", "z", "x") if name in arrays)
    batch = _names(devices, "batch_axis_name", batch_axis_name)
    batch = _of_type(devices, arrays[data])[:-1] if batch is None else (batch,)
    while batch and not batch[-1]:
        batch = batch[:-1]
    _check_examples(arrays, data, batch, devices)

    class_axis, unpadded, classes = 0, None, _names(devices, "class_axis_name", class_axis_name)
    if "kernel" in arrays:
        arrays["kernel"], class_axis = _checks.class_kernel(arrays["kernel"], options.get("class_axis", -1))
    of_classes = next((name for name in ("kernel", "centers") if name in arrays), None)
    if of_classes is not None:
        if arrays[of_classes].ndim != 2:
            raise ValueError(f"`{of_classes}` must have shape [K, D], got {arrays[of_classes].shape}.")
        classes = _of_type(devices, arrays[of_classes])[class_axis] if classes is None else classes
        count, has_mask = _mesh.devices_along(devices, classes), "where" in arrays or "where" in numbers
        arrays, unpadded = _padded(arrays, of_classes, class_axis, count, has_mask)

    plan = _Plan(function, tuple(options.items()), mesh, classes or (), batch, class_axis, unpadded)
    if not (plan.classes or plan.examples):
        raise ValueError("`class_axis_name` or `batch_axis_name` must name an axis of the mesh, got None.")
    if set(plan.classes) & set(plan.examples):
        got = f"{plan.examples} and {plan.classes}"
        raise ValueError(f"`batch_axis_name` must name other axes than `class_axis_name`, got {got}.")
    return _call(plan, arrays, numbers)


def _sorted(given):
    """(arrays of examples and classes, numbers that may have a gradient, static options), by their names."""

    def as_arrays(name, x):
        is_pair = name in ("labels", "teacher_probs") and isinstance(x, tuple)
        is_tree = name in ("example", "per_class") or is_pair
        x = jax.tree.map(ft.partial(_checks.array, name), x) if is_tree else _checks.array(name, x)
        per_pair = (
            (name == "where" and x.ndim > 1)
            or (name == "teacher_probs" and not is_tree)
            or (name == "labels" and not (is_tree or jnp.issubdtype(x.dtype, jnp.integer)))
        )
        return PerPair(x) if per_pair else x

    def as_numbers(name, x):
        if name == "where":  # a function of ids
            return jax.tree.map(ft.partial(_checks.array, name), x if isinstance(x, Partial) else Partial(x))
        return losses.as_partials(x) if name == "loss" else _checks.array(name, x)

    replicated = {x: given.pop(x) for x in _names_of("replicated") if not isinstance(given.get(x, 0), int | float)}
    replicated |= {"where": given.pop("where")} if _checks.is_function(given.get("where")) else {}
    if "precisions" in given and jnp.ndim(given["precisions"]) == 1:  # of dimensions, the same for all classes
        replicated["precisions"] = given.pop("precisions")
    arrays = {name: as_arrays(name, given.pop(name)) for name in _names_of("examples", "classes") if name in given}
    numbers = {name: as_numbers(name, x) for name, x in replicated.items()}
    for name, x in given.items():
        if not isinstance(x, Hashable):
            raise TypeError(f"`{name}` must be a Python number, string or tuple, got {_checks.shown(x)}.")
    return arrays, numbers, given


def _check_examples(arrays, data, batch, devices):
    """Refuses arrays whose numbers of examples differ or cannot be sharded."""
    shape = arrays[data].shape
    if len(shape) <= len(batch):
        raise ValueError(f"`{data}` must have shape [..., D] with axes to be sharded over {batch}, got {shape}.")
    for name in set(arrays) & set(_names_of("examples")):
        for a in jax.tree.leaves(arrays[name]):
            if a.shape[: len(batch)] != shape[: len(batch)]:
                wanted = f"{shape[: len(batch)]}, the leading axes of `{data}`"
                raise ValueError(f"`{name}` must have a shape that begins with {wanted}, got {a.shape}.")
    for n, axes in zip(shape, batch, strict=False):
        if n % _mesh.devices_along(devices, axes):
            got = f"{n} for {_mesh.devices_along(devices, axes)} devices"
            raise ValueError(f"`{data}` must have leading axes that the devices of its mesh axes divide, got {got}.")


@ft.partial(jax.jit, static_argnums=0, inline=True)
def _call(plan, arrays, numbers):
    def local(arrays, numbers):
        shards = Shards(plan.classes, plan.examples, plan.unpadded, plan.batch)
        axis_name = plan.examples if plan.function in _VIEWS else shards
        arrays = {name: x.array if isinstance(x, PerPair) else x for name, x in arrays.items()}
        return plan.function(**arrays, **numbers, **dict(plan.options), axis_name=axis_name)

    mesh = jax.sharding.get_abstract_mesh() if plan.mesh is None else plan.mesh
    specs = {name: plan.spec(name, x) for name, x in arrays.items()}
    arrays = {name: jax.tree.map(ft.partial(_placed, mesh, specs[name]), tree) for name, tree in arrays.items()}
    numbers = jax.tree.map(ft.partial(_placed, mesh, P()), numbers)
    out = _explicit.of_outputs(plan.spec("features"), dict(plan.options))
    axes = {*plan.classes, *plan.examples}
    return jax.shard_map(local, mesh=mesh, in_specs=(specs, P()), out_specs=out, axis_names=axes)(arrays, numbers)


def _placed(mesh, spec, x):
    """x, resharded along the explicit axes of a mesh."""
    explicit = _mesh.explicit_axes(mesh)
    if not explicit:
        return x
    known = (tuple(name for name in axes if name in explicit) or None for axes in _mesh.axes_of(spec))
    return jax.sharding.reshard(x, NamedSharding(mesh, P(*known)))


def _padded(arrays, of_classes, class_axis, devices, has_mask):
    """(the arrays with padded classes, the number of classes without padding or None)."""
    k = arrays[of_classes].shape[class_axis]
    of_pairs = {name: tree for name, tree in arrays.items() if isinstance(tree, PerPair)}
    of_class = {name: tree for name, tree in arrays.items() if name in _names_of("classes") and name not in of_pairs}
    axis_of = lambda name: -1 if name in of_pairs else class_axis if name in _KERNELS else 0
    for name, tree in (of_class | of_pairs).items():
        axis = axis_of(name)
        for a in jax.tree.leaves(tree):
            if a.ndim <= axis or a.shape[axis] != k:
                raise ValueError(f"`{name}` must have the {k} classes of `{of_classes}`, got shape {a.shape}.")
    if k % devices == 0:
        return arrays, None
    if not has_mask:
        of_class["where"] = jnp.ones(k, bool)
    pad = lambda name, a: pad_classes(a, devices, class_axis=axis_of(name))[0]
    return arrays | {name: jax.tree.map(ft.partial(pad, name), tree) for name, tree in (of_class | of_pairs).items()}, k


def _names(devices, argument, axes):
    """The argument as names of axes of the mesh; None for None."""
    if axes is None:
        return None
    names = _mesh.axis_names(argument, axes)
    if not set(names) <= set(devices.axis_names):
        raise ValueError(f"`{argument}` must name axes of the mesh, {devices.axis_names}, got {axes!r}.")
    if set(names) & set(jax.sharding.get_abstract_mesh().manual_axes):
        got = f"{axes!r}: use `axis_name`"
        raise ValueError(f"`{argument}` must not name an axis of the `jax.shard_map` around, got {got}.")
    return names


def _of_type(devices, x):
    """The explicit mesh axes over which each axis of an array is sharded."""
    return _mesh.axes_of(_explicit.partition(x)) if _mesh.explicit_axes(devices) else ((),) * x.ndim


contrastive_loss = _over_mesh(_contrastive.contrastive_loss)
nt_xent_loss = _over_mesh(_contrastive.nt_xent_loss)
siglip_loss = _over_mesh(_contrastive.siglip_loss)
supervised_contrastive_loss = _over_mesh(_contrastive.supervised_contrastive_loss)
linear_argmax = _over_mesh(_decoding.linear_argmax)
linear_sample = _over_mesh(_decoding.linear_sample)
linear_top_k = _over_mesh(_decoding.linear_top_k)
linear_distillation_loss = _over_mesh(_distillation.linear_distillation_loss)
linear_expectation = _over_mesh(_linear.linear_expectation)
linear_log_probs = _over_mesh(_linear.linear_log_probs)
linear_logsumexp = _over_mesh(_linear.linear_logsumexp)
linear_sigmoid_binary_cross_entropy = _over_mesh(_linear.linear_sigmoid_binary_cross_entropy)
linear_softmax_cross_entropy = _over_mesh(_linear.linear_softmax_cross_entropy)
of_linear = _over_mesh(_linear.of_linear)
eol_loss = _over_mesh(_mixture.eol_loss)
gaussian_mixture_nll_loss = _over_mesh(_mixture.gaussian_mixture_nll_loss)
leop_loss = _over_mesh(_mixture.leop_loss)
mixture_autoencoder_loss = _over_mesh(_mixture.mixture_autoencoder_loss)
mixture_expectation = _over_mesh(_mixture.mixture_expectation)
of_mixture = _over_mesh(_mixture.of_mixture)

FUNCTIONS = (
    *(linear_argmax, linear_sample, linear_top_k, linear_log_probs),
    *(contrastive_loss, nt_xent_loss, siglip_loss, supervised_contrastive_loss),
    *(linear_distillation_loss, linear_sigmoid_binary_cross_entropy),
    *(linear_expectation, linear_logsumexp, linear_softmax_cross_entropy, of_linear),
    *(eol_loss, gaussian_mixture_nll_loss, leop_loss, mixture_autoencoder_loss, mixture_expectation, of_mixture),
)
