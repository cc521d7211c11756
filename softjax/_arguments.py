"""The arguments of the public functions: for each name its text, its check, and its role.

The role says what an argument is to a mesh and to a gradient: "examples" and "classes" are arrays that are sharded
with the examples or the classes and have gradients; "replicated" arguments may be traced and have gradients; "static"
ones are part of the program.
"""

import functools as ft
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from jax import Array
from jax.typing import ArrayLike

from . import _checks

Role = Literal["examples", "classes", "replicated", "static"]
Function = TypeVar("Function", bound=Callable)


class Argument(NamedTuple):
    """A row of the table."""

    role: Role
    text: str
    """of functions of linear layers and mixtures"""
    check: Callable[[str, Any], Any] = lambda name, x: x
    dense: str = ""
    """the text of functions of dense logits, where it differs"""


def _number_in(low, high, text):
    """The check of a number. A Python number outside of the interval is refused; a traced one is not looked at."""

    def check(name, x):
        if isinstance(x, int | float) and not isinstance(x, bool) and not low <= x <= high:
            raise ValueError(f"`{name}` must be {text}, got {_checks.shown(x)}.")
        return _checks.number(name, x)

    return check


TINY, HUGE = 2.0**-149, float("inf")
_above_0, _at_least_0 = _number_in(TINY, HUGE, "positive"), _number_in(0.0, HUGE, "at least 0")
_floating, _booleans = _checks.floating, _checks.booleans

ARGUMENTS = {
    # arrays of the examples
    "features": Argument("examples", "[..., D].", _floating),
    "z": Argument("examples", "latents [..., D].", _floating),
    "x": Argument("examples", "data [..., E], with the leading axes of z.", _floating, "logits [...]."),
    "y": Argument("examples", "features of the other view [N, D], in the same order.", _floating),
    "logits": Argument("examples", "z [..., K].", _floating, "z [...]."),
    "a": Argument("examples", "logits [...].", _floating),
    "scores": Argument("examples", "s [..., K].", _floating),
    "labels": Argument("examples", "integers [...] in [0, K). Any other label gives NaN, in loss and gradient."),
    "tokens": Argument("examples", "integers [...] in [0, K). Any other token gives NaN, in value and gradient."),
    "example": Argument("examples", "data of each example for the loss: a pytree of arrays [..., *]."),
    "examples": Argument("examples", "a pytree of arrays [N, ...]."),
    "weights": Argument("examples", "[...], a factor of the loss of each example; None for 1.", _floating),
    "teacher_features": Argument("examples", "features of the teacher [..., D'].", _floating),
    "teacher_probs": Argument("examples", "probabilities of the teacher [..., K].", _floating),
    # arrays of the classes
    "kernel": Argument(
        "classes", "[D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.", _floating
    ),
    "teacher_kernel": Argument("classes", "the kernel of the teacher.", _floating),
    "teacher_bias": Argument("classes", "[K], of the teacher; None for 0.", _floating),
    "centers": Argument("classes", "c [K, D].", _floating),
    "values": Argument("classes", "v [K, E].", _floating, "t, broadcastable against the logits."),
    "per_class": Argument("classes", "data of each class for the loss: a pytree of arrays [K, *]."),
    "classes": Argument("classes", "a pytree of arrays [K, ...]."),
    "bias": Argument("classes", "[K]; None for 0. A class with bias -inf is left out.", _floating),
    "log_prior": Argument("classes", "[K], added to the scores; None for 0. A class with -inf is left out.", _floating),
    "precisions": Argument(
        "classes",
        "t, positive factors of the squared differences, such as inverse variances: [K, D]; [K, 1], one of each class; "
        "or [D], one of each dimension; None for 1.",
        _floating,
    ),
    "where": Argument(
        "classes",
        "the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids (example ids "
        "[n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by `jax.tree_util.Partial`; None for "
        "all.",
        _booleans,
        "booleans broadcastable to the logits, the classes to include; None for all.",
    ),
    "class_weights": Argument("classes", "[K], a factor of the cross entropy of each class; None for 1.", _floating),
    # numbers, and losses, which are pytrees of numbers and arrays
    "loss": Argument(
        "replicated",
        "a `softjax.Loss`, from `softjax.losses` or your own. One of several numbers per example, such as "
        '`losses.expectation`, is not reduced: take `reduction="none"`, and the mean of the result over its axes.',
    ),
    "label_smoothing": Argument(
        "replicated",
        "in [0, 1]: the share of the label that is spread over all classes that are not left out.",
        _number_in(0.0, 1.0, "in [0, 1]"),
    ),
    "z_loss": Argument("replicated", "the factor of A^2 in the loss.", _checks.number),
    "softcap": Argument("replicated", "a positive scalar, the bound of the logits; None for none.", _above_0),
    "teacher_softcap": Argument("replicated", "the bound of the teacher's logits; None for none.", _above_0),
    "temperature": Argument(
        "replicated",
        "a positive scalar that divides the logits or squared distances.",
        _above_0,
    ),
    "margin": Argument("replicated", "a scalar, at least 0; of a hinge.", _at_least_0),
    "gamma": Argument("replicated", "the exponent, at least 0.", _at_least_0),
    "epsilon": Argument("replicated", "the factor of 1 - p_y.", _checks.number),
    "logit_bias": Argument("replicated", "a scalar that is added to the logits.", _checks.number),
    "cap": Argument("replicated", "positive, the bound of the logits.", _above_0),
    "rate": Argument("replicated", "in [0, 1], the share of the prior.", _number_in(0.0, 1.0, "in [0, 1]")),
    "key": Argument("replicated", "a key of `jax.random`.", _checks.key),
    # static
    "class_axis": Argument("static", "the axis of the classes in the kernel, 0 or -1."),
    "divergence": Argument("static", '"forward", "reverse" or "jensen_shannon".'),
    "ignore_index": Argument(
        "static",
        "a label whose examples have loss and gradient 0 and are left out of the mean; None for none. In a pair, its "
        "entries have weight 0, and an example with no other entry is ignored.",
    ),
    "reduction": Argument(
        "static",
        '"none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.',
        lambda _, x: _checks.reduction(x),
    ),
    "has_aux": Argument(
        "static",
        "whether `softjax.Metrics` of every example are returned too, as in `jax.value_and_grad`.",
        _checks.flag,
    ),
    "entropy": Argument("static", "whether entropies are returned too.", _checks.flag),
    "k": Argument("static", "how many classes, at most K.", lambda name, x: _checks.positive(name, x)),
    "shape": Argument("static", "the shape of the samples of each example: an integer or a tuple.", _checks.sizes),
    "symmetric": Argument("static", "whether each view is also told apart given the other.", _checks.flag),
    "keepdims": Argument("static", "whether the summed axes stay, with size 1.", _checks.flag),
    "axis": Argument("static", "the axis or axes of the classes; None for all."),
    "block_size": Argument(
        "static",
        "how many classes are in memory at a time, or a `softjax.Placement`; None to let the library choose.",
    ),
    "axis_name": Argument(
        "static",
        "inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for none. The arrays "
        "of classes are then this device's shard; class ids stay global.",
    ),
    "batch_axis_name": Argument(
        "static", "likewise for the examples; a sum or mean is then taken over the examples of all devices."
    ),
    "precision": Argument(
        "static",
        '"default", "high" or "highest": of the products of features and kernel. None takes '
        '`jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".',
    ),
    "dtype": Argument(
        "static",
        "the type in which features and kernel are multiplied, as in Flax; their gradients keep their own types. None "
        "for the type that they promote to.",
    ),
    "engine": Argument(
        "static", "a `softjax.engines.Engine` that computes the sums where it applies; None for the library's loops."
    ),
}


def checked(name: str, x: Any) -> Any:
    """The argument x, after the check of its name."""
    return ARGUMENTS[name].check(name, x)


def checked_array(name: str, x: ArrayLike) -> Array:
    """The same, for an argument that is an array."""
    return checked(name, x)


def checked_scalar(name: str, x: ArrayLike) -> Array:
    """The same, for a number, as an array of rank 0."""
    return _checks.scalar(name, checked(name, x))


_OWN = re.compile(r"\n    Args:\n((?:        .*\n)*)")
_ENTRY = re.compile(r"^        (\w+): (.*(?:\n {12}.*)*)", re.MULTILINE)
_RAISES = """
    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.
"""


def documented(*, dense: bool = False) -> Callable[[Function], Function]:
    """A decorator that writes the `Args:` of a docstring, in the order of the signature, from the table.

    A text that holds for one function stands in its own `Args:`. The `Raises:` are those of all functions.
    """
    return ft.partial(_with_arguments, dense)


def _with_arguments(dense, function):
    text = function.__doc__ or ""
    own = dict(_ENTRY.findall("".join(_OWN.findall(text))))
    entries = []
    for name in inspect.signature(function).parameters:
        row = ARGUMENTS.get(name)
        entry = own.pop(name, None) or (row and (row.dense if dense and row.dense else row.text))
        if not entry:
            raise ValueError(f"`{name}` must have a text in the table or in the docstring of {function.__name__}.")
        entries.append(_wrapped(f"{name}: {' '.join(entry.split())}"))
    if own:
        raise ValueError(f"`Args` must name parameters of {function.__name__}, got {sorted(own)}.")
    head, returns, tail = _OWN.sub("", text).partition("\n    Returns:")
    returned, example, tail = (returns + tail).partition("\n    Example:")
    function.__doc__ = "\n".join([head, "    Args:", *entries, returned]) + _RAISES + example + tail
    return function


_wrapped = ft.partial(textwrap.fill, width=112, initial_indent=" " * 8, subsequent_indent=" " * 12)
