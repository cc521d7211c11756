"""The arguments of the public functions: for each name its role and its check.

The role says what an argument is to a mesh and to a gradient: "examples" and "classes" are arrays that are sharded
with the examples or the classes and have gradients; "replicated" arguments may be traced and have gradients; "static"
ones are part of the program.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import checks

Role = Literal["examples", "classes", "replicated", "static"]
Function = TypeVar("Function", bound=Callable)


class Argument(NamedTuple):
    """A row of the table."""

    role: Role
    check: Callable[[str, Any], Any] = lambda name, x: x


def _number_in(low, high, text):
    """The check of a number. A Python number outside of the interval is refused; a traced one is not looked at."""

    def check(name, x):
        if isinstance(x, int | float) and not isinstance(x, bool) and not low <= x <= high:
            raise ValueError(f"`{name}` must be {text}, got {checks.shown(x)}.")
        return checks.number(name, x)

    return check


HUGE = float("inf")
TINY = float(jnp.finfo("float32").tiny)
_positive, _at_least_0 = _number_in(TINY, HUGE, "positive"), _number_in(0.0, HUGE, "at least 0")


def _temperature(name, x):
    """A positive number. A traced one that is not positive, or that devices take for 0, becomes NaN."""
    x = _positive(name, x)
    return jnp.where(x >= jnp.finfo(x.dtype).tiny, x, jnp.nan) if isinstance(x, Array) else x


_floating, _booleans = checks.floating, checks.booleans

ARGUMENTS = {
    # arrays of the examples
    "features": Argument("examples", _floating),
    "z": Argument("examples", _floating),
    "x": Argument("examples", _floating),
    "y": Argument("examples", _floating),
    "logits": Argument("examples", _floating),
    "p": Argument("examples", _floating),
    "q": Argument("examples", _floating),
    "ids": Argument("examples"),
    "a": Argument("examples", _floating),
    "scores": Argument("examples", _floating),
    "labels": Argument("examples"),
    "example": Argument("examples"),
    "examples": Argument("examples"),
    "weights": Argument("examples", _floating),
    # arrays of the classes
    "kernel": Argument("classes", _floating),
    "centers": Argument("classes", _floating),
    "values": Argument("classes", _floating),
    "per_class": Argument("classes"),
    "classes": Argument("classes"),
    "bias": Argument("classes", _floating),
    "log_prior": Argument("classes", _floating),
    "precisions": Argument("classes", _floating),
    "where": Argument("classes", _booleans),
    # numbers, and losses, which are pytrees of numbers and arrays
    "loss": Argument("replicated"),
    "loss_weights": Argument("replicated"),
    "label_smoothing": Argument("replicated", _number_in(0.0, 1.0, "in [0, 1]")),
    "z_loss": Argument("replicated", checks.number),
    "temperature": Argument("replicated", _temperature),
    "cap": Argument("replicated", _positive),
    "margin": Argument("replicated", _at_least_0),
    "gamma": Argument("replicated", _at_least_0),
    "epsilon": Argument("replicated", checks.number),
    "logit_bias": Argument("replicated", checks.number),
    "rate": Argument("replicated", _number_in(0.0, 1.0, "in [0, 1]")),
    "key": Argument("replicated", checks.key),
    # static
    "class_axis": Argument("static"),
    "ignore_index": Argument("static"),
    "reduction": Argument("static", lambda _, x: checks.reduction(x)),
    "has_aux": Argument("static", checks.flag),
    "entropy": Argument("static", checks.flag),
    "k": Argument("static", lambda name, x: checks.positive(name, x)),
    "shape": Argument("static", checks.sizes),
    "symmetric": Argument("static", checks.flag),
    "keepdims": Argument("static", checks.flag),
    "axis": Argument("static"),
    "block_size": Argument("static"),
    "axis_name": Argument("static"),
    "batch_axis_name": Argument("static"),
    "precision": Argument("static"),
    "dtype": Argument("static"),
    "engine": Argument("static"),
}


def checked(name: str, x: Any) -> Any:
    """The argument x, after the check of its name."""
    return ARGUMENTS[name].check(name, x)


def checked_array(name: str, x: ArrayLike) -> Array:
    """The same, for an argument that is an array."""
    return checked(name, x)


def checked_scalar(name: str, x: ArrayLike) -> Array:
    """The same, for a number, as an array of rank 0."""
    return checks.scalar(name, checked(name, x))
