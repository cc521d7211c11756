"""A loss: the terms that are summed over the classes, and a finish of their sums. Several losses as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ..arguments import checks
from ..arguments.dtypes import cast, common_dtype, inexact_leaves
from ..arguments.signatures import readable
from ..sums.columns import Columns, Wanted, Weights
from ..sums.sums import KINDS, Totals


@jax.tree_util.register_static
class Static(NamedTuple):
    """A part of the program, as a node without leaves: a loss is a pytree."""

    value: Any


@readable
class _Functions(NamedTuple):
    columns: Callable[[Any, Array, Any, Any], Any]
    """(logits [N, B], class ids [B], example [N, ...], per class [B, ...]) -> Columns, for B of the classes"""
    finish: Callable[[Any, Any], Any]
    """(Totals, example) -> [N, ...]"""
    payoff: Callable[[Any, Any], Array] | None = None
    """(example [N, ...], per class [N, ...]) -> t or e [N] of one class per example, without the error of a product"""
    relative: Any = None
    """whether `columns` may be given logits less a number common to all classes, which `Totals.A` has again"""
    logits: Any = 1
    """of how many logits it is, an integer or a tuple of such"""
    several: Any = 0
    """of how many losses it is made, 0 for one that stands alone"""


@readable
class Loss(_Functions):
    """The terms that are summed over the classes, and the loss from their sums: a named tuple of functions.

    - `columns`: (logits [N, B], class ids [B], example [N, ...], per class [B, ...]) -> `Columns`, for B of the
      classes. A loss of several logits is given a tuple of them, and one of several softmaxes returns a dictionary of
      `Columns`, of which `finish` is given a dictionary of `Totals`.
    - `finish`: (`Totals`, example) -> the losses [N, ...]
    - `payoff`: None, or (example [N, ...], per class [N, ...]) -> t or e [N] of one class per example, without the
      error of a product
    - `relative`: True if `columns` may be given logits less a number that all classes of an example have in common:
      `Totals.A` and `Totals.of_labels` have it again. Digits are then kept that the number would cost. Of several
      logits, a tuple of booleans, or True for the first.
    - `logits`: of how many logits the loss is; a tuple of integers where it may be of several numbers of them.

    The functions close over no arrays: numbers and arrays of the loss come by `jax.tree_util.Partial`. A loss can be
    pickled if its functions have names in a module.
    """

    def partials(self) -> Loss:
        """The loss as a pytree of its numbers and arrays."""
        return as_partials(self)

    @classmethod
    def _described(
        cls,
        text: str,
        columns: Callable,
        finish: Callable,
        payoff: Callable | None = None,
        *,
        relative: bool | tuple[bool, ...] = False,
        logits: int | tuple[int, ...] = 1,
    ) -> Loss:
        """A loss whose `help` is a text."""
        loss = cls(columns, finish, payoff, relative, logits)
        loss.__doc__ = text  # of this tuple alone, as the class has no `__slots__`
        return loss


def as_tree(loss: Loss, dtype: jnp.dtype) -> Loss:
    """The loss as a pytree of its numbers and arrays, in the type of the computation."""
    return cast(jax.tree.map(jnp.asarray, as_partials(loss)), dtype)


def as_partials(loss: Loss) -> Loss:
    """The loss as a pytree of its numbers and arrays."""
    if not isinstance(loss, Loss):
        raise TypeError(f"`loss` must be a `softjax.Loss`, got {getattr(loss, '__name__', checks.shown(loss))}.")
    payoff = None if loss.payoff is None else _partial("payoff", loss.payoff)
    options = (x if isinstance(x, Static) else Static(x) for x in (loss.relative, loss.logits, loss.several))
    return Loss(_partial("columns", loss.columns), _partial("finish", loss.finish), payoff, *options)


def _option(x):
    return x.value if isinstance(x, Static) else x


def is_several(loss: Loss) -> bool:
    """Whether the loss is made of several, whose values it returns."""
    return _option(loss.several) > 0


def relative_of(loss: Loss, count: int) -> tuple[bool, ...]:
    """For each of several logits, whether the loss may be given relative ones."""
    relative = _option(loss.relative)
    of_each = relative if isinstance(relative, tuple) else (relative is True, False)
    return tuple(of_each[min(i, len(of_each) - 1)] for i in range(count))


def check_count(loss: Loss, count: int) -> None:
    """Refuses a number of logits that a loss does not take."""
    wanted = _option(loss.logits)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    if count not in wanted:
        numbers = " or ".join(map(str, wanted))
        raise ValueError(f"`logits` must be {numbers} for this loss, several of them as a tuple, got {count}.")


def _partial(name, function):
    if not callable(function):
        raise TypeError(f"`{name}` of a loss must be a function, got {checks.shown(function)}.")
    return function if isinstance(function, Partial) else Partial(function)


def before(loss: Loss, function: Callable, *numbers: Any, relative: bool = False) -> Loss:
    """The loss with `function(loss.columns, *numbers, logits, ids, example, per class)` as its columns."""
    columns = Partial(function, as_partials(loss).columns, *numbers)
    # The payoff may depend on the logits, which change.
    return loss._replace(columns=columns, payoff=None, relative=loss.relative if relative else None)


def after(loss: Loss, function: Callable, *numbers: Any) -> Loss:
    """The loss with `function(loss.finish, *numbers, totals, example)` as its finish."""
    finish = Partial(function, as_partials(loss).finish, *numbers)
    return loss._replace(finish=finish)


# --- several losses ----------------------------------------------------------------------------------


def several(losses: Any) -> Loss:
    """One loss with the values of several as a tuple. Its data are tuples of theirs.

    Losses that return the same logits share one normaliser.
    """
    if not isinstance(losses, tuple | list) or not losses:
        got = getattr(losses, "__name__", checks.shown(losses))
        raise TypeError(f"`loss` must be a `softjax.Loss` or a tuple of these, got {got}.")
    of_each = [as_partials(loss) for loss in losses]
    numbers = [set(n if isinstance(n := _option(loss.logits), tuple) else (n,)) for loss in of_each]
    logits = tuple(sorted(set.intersection(*numbers)))
    if not logits:
        raise ValueError("`loss` must be losses of one number of logits, got some of one and some of two.")
    relative = zip(*(relative_of(loss, max(logits)) for loss in of_each), strict=True)
    return Loss(
        Partial(_several_columns, *(loss.columns for loss in of_each)),
        Partial(several_finished, *(loss.finish for loss in of_each)),
        None,
        tuple(map(all, relative)),
        logits,
        len(of_each),
    )


def _several_columns(*given):
    """Groups of columns with the same logits; a key says how many of each kind are those of which loss."""
    *functions, z, ids, examples, of_classes = given
    groups: list[list] = []
    for i, columns in enumerate(functions):
        made = columns(z, ids, examples[i], None if of_classes is None else of_classes[i])
        for name, c in (made if isinstance(made, dict) else {"": made}).items():
            c = _checked(c, ids)
            entry = (i, name, *(len(getattr(c, kind)) for kind in KINDS)), c
            same = next((group for group in groups if group[0][1].logits is c.logits), None)
            if same is None:
                groups.append([entry])
            else:
                same.append(entry)
    together = lambda group, kind: sum((getattr(c, kind) for _, c in group), ())
    return {
        tuple(key for key, _ in group): group[0][1]._replace(**{kind: together(group, kind) for kind in KINDS})
        for group in groups
    }


def several_finished(*given: Any) -> tuple:
    """The values of several losses."""
    *functions, groups, examples = given
    found: list[dict[str, Totals]] = [{} for _ in functions]
    for key, totals in groups.items():
        ends = dict.fromkeys(KINDS, 0)
        for i, name, *counts in key:
            own: dict[str, Any] = {}
            for kind, count in zip(KINDS, counts, strict=True):
                own[kind] = getattr(totals, kind)[ends[kind] : ends[kind] + count]
                ends[kind] += count
            found[i][name] = totals._replace(**own)
    of_each: list[Any] = [totals[""] if set(totals) == {""} else totals for totals in found]
    return tuple(finish(totals, example) for finish, totals, example in zip(functions, of_each, examples, strict=True))


def weighted_sum(loss: Loss, weights: Any) -> Loss:
    """The sum of several losses, each times a number."""
    count = _option(loss.several)
    if not isinstance(weights, tuple | list) or len(weights) != count:
        raise ValueError(f"`loss_weights` must be a tuple of {count} numbers, got {checks.shown(weights)}.")
    numbers = [checks.number("loss_weights", w) for w in weights]
    return loss._replace(finish=Partial(_weighted_sum, loss.finish, *numbers), several=0)


def _weighted_sum(finish, *given):
    *weights, totals, example = given
    of_each = finish(totals, example)
    for loss in of_each:
        if loss.ndim != 1:
            got = loss.shape
            raise ValueError(f"`reduction` must be 'none' for a loss of several numbers per example, got losses {got}.")
    return sum(w * loss for w, loss in zip(weights, of_each, strict=True))


# --- checks ------------------------------------------------------------------------------------------


def check_columns(made: Any, ids: Array) -> Any:
    """The result of `columns`, refused if it is not `Columns` of the classes `ids`, or a dictionary of these."""
    return {key: _checked(c, ids) for key, c in made.items()} if isinstance(made, dict) else _checked(made, ids)


def _checked(c, ids):
    if not isinstance(c, Columns):
        raise TypeError(f"`columns` of a loss must return `softjax.Columns`, got {checks.shown(c)}.")
    b, of_ids = ids.size, f"for the ids of {ids.size} classes"
    if isinstance(c.labels, Weights):
        c = c._replace(labels=(c.labels,))
    check_array("logits", c.logits, (None, b), f"[N, {b}] {of_ids}")
    if not jnp.issubdtype(c.logits.dtype, jnp.floating):
        raise TypeError(f"`logits` of `Columns` must be floating-point numbers, got dtype {c.logits.dtype}.")
    n = c.logits.shape[0]
    shapes: tuple[tuple[str, Any, str], ...] = (
        ("payoffs", (n, b), "[N, B] as `logits`"),
        ("class_values", (b, None), f"[{b}, E] {of_ids}"),
        ("exponents", (n, b), "[N, B] as `logits`"),
        ("terms", (n, None), "[N, B] as `logits`, or [N, 1]"),
        ("maxima", (n, b), "[N, B] as `logits`"),
        ("labels", None, ""),
        ("entropies", None, ""),
    )
    for name, wanted, meaning in shapes:
        found = getattr(c, name)
        if not isinstance(found, tuple):
            raise TypeError(f"`{name}` of `Columns` must be a tuple, got {checks.shown(found)}.")
        for x in found if wanted is not None else ():
            check_array(name, x, wanted, meaning)
    for x in c.entropies:
        if not isinstance(x, Wanted):
            raise TypeError(f"`entropies` of `Columns` must be `losses.ENTROPY`, got {checks.shown(x)}.")
    for y in c.labels:
        if not isinstance(y, Weights):
            raise TypeError(f"`labels` of `Columns` must be `softjax.Weights`, got {checks.shown(y)}.")
        check_array("labels.ids", y.ids, (n, None), "[N, T] for the N of `logits`")
        check_array("labels.of_ids", y.of_ids, y.ids.shape, "[N, T] as `labels.ids`")
        if not jnp.issubdtype(y.ids.dtype, jnp.integer):
            raise TypeError(f"`labels.ids` of `Columns` must be integers, got dtype {y.ids.dtype}.")
        if y.per_class is not None:
            of_all = (n, b) if getattr(y.per_class, "ndim", 1) == 2 else (b,)
            check_array("labels.per_class", y.per_class, of_all, f"[{b}] {of_ids}, or [N, {b}]")
    return c


def check_losses(loss: Any, n: int) -> None:
    """Refuses a result of `finish` that is not the losses of N examples."""
    if not isinstance(loss, Array):
        raise TypeError(f"`finish` of a loss must return a JAX array, got {checks.shown(loss)}.")
    if loss.shape[:1] != (n,):
        raise ValueError(f"`finish` of a loss must return an array [N, ...] of {n} losses, got shape {loss.shape}.")


def check_array(name: str, x: Any, wanted: tuple, meaning: str) -> None:
    """Refuses a column that is no array of a shape, in which None stands for any size."""
    if not isinstance(x, Array):
        raise TypeError(f"`{name}` of `Columns` must be a JAX array, got {checks.shown(x)}.")
    if len(x.shape) != len(wanted) or any(b not in (a, None) for a, b in zip(x.shape, wanted, strict=True)):
        raise ValueError(f"`{name}` of `Columns` must have shape {meaning}, got {x.shape}.")


def floats(*arrays: Any) -> tuple[Array, ...]:
    """The arrays in their common floating-point type."""
    for a in arrays:
        if not isinstance(a, Array):
            raise TypeError(f"`example` and `per_class` must be arrays for this loss, got {checks.shown(a)}.")
    inexact = inexact_leaves(arrays) or [jnp.zeros(0, "float32")]
    return tuple(a.astype(common_dtype(*inexact)) for a in arrays)
