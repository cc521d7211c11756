"""From `Logits` to the sums: their tiles and blocks."""

from __future__ import annotations

import dataclasses
import functools as ft
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from ..arguments.dtypes import EXAMPLES, PAIRS, cast, cast_unless_half, inexact_leaves, is_inexact, widened
from ..compute.loops import Layout, take_block
from ..compute.rows import still_unless
from ..parallel import collectives
from ..parallel.collectives import Shards
from .functions import UserFunction
from .nodes import NUMBER, ROWS, Dense, Distances, Node, Operation
from .value import Logits


@ft.partial(
    jax.tree_util.register_dataclass,
    data_fields=["function", "examples", "classes", "live", "offset", "exact"],
    meta_fields=["axes", "k", "width", "batch", "shards", "kind", "rounding"],
)
@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits as they are summed over the classes: their arrays, and the function of a tile and block of these."""

    kind: str  # the text of their nodes
    function: Callable  # (tile of examples, block of classes, live [b]) -> logits [n, b], or a tuple of such
    examples: Any  # a pytree of arrays [N, ...]
    classes: tuple  # pytrees of class arrays
    axes: tuple[int | str, ...]  # the class axis of the arrays in each pytree of `classes`; PAIRS for arrays [N, K]
    live: Array | None = None  # booleans [K], False for a masked class; None if there is none
    offset: Array | None = None  # [N], what the logits of all classes have in common and `function` leaves out
    exact: Callable | None = None  # (examples, classes at one of each example) -> its logit without a product's error
    k: int = 0  # the number of classes on this device
    width: int = 1  # the number of elements per class: the depth of a matrix product
    batch: tuple[int, ...] = ()  # the leading axes of the examples, which are flattened to N
    shards: Shards = Shards()  # noqa: RUF009 (a tuple)
    rounding: Any = None  # the half-precision type to which cotangents of the scores are rounded; None for no rounding

    @property
    def n(self) -> int:
        """The number of examples on this device."""
        return math.prod(self.batch)

    def computed_in(self, dtype: jnp.dtype) -> Scores:
        """The scores with their arrays cast. Half-precision arrays are widened later, a tile and block at a time."""
        whole = {name: cast(getattr(self, name), dtype) for name in ("function", "exact", "offset")}
        later = {name: cast_unless_half(getattr(self, name), dtype) for name in ("examples", "classes")}
        return dataclasses.replace(self, **whole, **later)


@dataclasses.dataclass(frozen=True)
class _Block:
    """The logits of a tile and a block, from the arrays of both: a part of the program."""

    tree: Any
    roles: tuple
    masks: tuple[str, ...]
    relative: bool

    def __call__(self, numbers, examples, block, live):
        of_examples, of_masks, index = examples
        *of_classes, of_pairs, ids = block
        given = {NUMBER: iter(numbers[0]), EXAMPLES: iter(of_examples)}
        of_class = iter(of_classes)
        leaves = [next(given[role]) if role in given else _zeroed(next(of_class), role, live) for role in self.roles]
        node = jax.tree.unflatten(self.tree, leaves)
        live = None if live is None else live[None]
        functions, of_masks, of_pairs = iter(numbers[1]), iter(of_masks), iter(of_pairs)
        for kind in self.masks:
            if kind == "function":
                mask = jax.vmap(jax.vmap(next(functions), (None, 0)), (0, None))(index, ids)
            elif kind == "ids":
                mask = _is_listed(next(of_masks), ids)
            else:
                mask = next(of_pairs if kind == PAIRS else of_masks)
            live = mask if live is None else live & mask
        h = node.relative(live) if self.relative else node.full(live)
        return h if live is None else jnp.where(live, h, -jnp.inf)


def _zeroed(a, role, live):
    """A class array without the data of masked classes, which may be NaN: zeros, or the row of a class that is not."""
    if live is None or not is_inexact(a):
        return a
    if role == ROWS:
        return filled(a, live)
    axis = 1 if role == PAIRS else role
    return jnp.where(jnp.expand_dims(live, [i for i in range(a.ndim) if i != axis % a.ndim]), a, 0)


def filled(a: Array, known: Array) -> Array:
    """Rows of a [n, ...] where `known` [n], and elsewhere the first such row, as a constant; ones if there is none."""
    if a.shape[0] == 0:
        return a
    row = lax.stop_gradient(jnp.where(known.any(), a[lax.argmax(known, 0, jnp.int32)], 1))
    return jnp.where(jnp.expand_dims(known, range(1, a.ndim)), a, row[None])


def _is_listed(listed, ids):
    """Whether each class of a block is among those listed [n, T]; ids are consecutive, but for padding."""
    position = listed - ids[0]
    here = (listed >= 0) & (position >= 0) & (position < ids.size)
    rows = jnp.arange(listed.shape[0])[:, None]
    mask = jnp.zeros((listed.shape[0], ids.size), bool)
    return mask.at[rows, jnp.where(here, position, ids.size)].set(True, mode="drop")


def of_now(logits):
    """The logits with functions, of nodes and masks, that are what they compute now."""
    is_function = lambda a: isinstance(a, UserFunction)
    return jax.tree.map(lambda a: a.again() if is_function(a) else a, logits, is_leaf=is_function)


def _data_of_examples(node):
    """(array [n, ...], its role) of the floating-point arrays of examples, and of pairs, in a flat node."""
    both = zip(jax.tree.leaves(node), jax.tree.leaves(node.roles()), strict=True)
    return [(a, role) for a, role in both if role in (EXAMPLES, PAIRS) and is_inexact(a)]


def sound_examples(logits: tuple[Logits, ...], example: Any) -> Array:
    """Which examples [N] have numbers for data: no NaN, and no infinity but that of a masked class."""
    n = math.prod(logits[0].shape[:-1])
    sound = jnp.ones(n, bool)
    for z in logits:
        for a, role in _data_of_examples(z.node.flat(n)):
            number = a <= jnp.finfo(a.dtype).max if role == PAIRS else jnp.isfinite(a)
            is_sound = number.all(range(1, a.ndim))
            axes = tuple(name for name in z.shards.classes if name in collectives.varying(is_sound))
            sound &= collectives.pmin(is_sound.astype(jnp.int32), axes) == 1
    return ft.reduce(operator.and_, (jnp.isfinite(a).all(range(1, a.ndim)) for a in inexact_leaves(example)), sound)


def flat_node(logits, counting=None, *, copied=True):
    """The node of the logits, with one axis for all examples, and other data for those that do not count.

    Unless it is `copied`, an array of pairs stays, as a constant for these examples.
    """
    node = logits.node.flat(math.prod(logits.shape[:-1])).prepared(logits.live, logits.shards)
    if counting is None or counting.none:
        return node

    def of_counted(a, role):
        if role not in (EXAMPLES, PAIRS) or not is_inexact(a):
            return a
        return counting.filled(a) if copied or role == EXAMPLES else still_unless(counting.all, a)

    return jax.tree.map(of_counted, node, node.roles())


class Counting(NamedTuple):
    """Which examples [N] count; the others get other data, so that theirs lend no NaN to a gradient."""

    kept: Array | None = None  # those that are not ignored: the others get the data of one of these
    sound: Array | None = None  # those whose data are numbers, or whose weight is not 0: the others get ones

    @property
    def none(self) -> bool:
        """Whether all examples count."""
        return self.kept is None and self.sound is None

    @property
    def all(self) -> Array:
        """Which examples count."""
        return ft.reduce(operator.and_, (a for a in self if a is not None))

    def filled(self, a: Array) -> Array:
        """The data [N, ...] of the examples that count, and other data in place of the others."""
        if self.sound is not None:
            a = jnp.where(jnp.expand_dims(self.sound, range(1, a.ndim)), a, 1)
        return a if self.kept is None else filled(a, self.kept)


def scores_of(
    logits: Any,
    relative: tuple[bool, ...] = (False,),
    counting: Counting = Counting(),  # noqa: B008 (a tuple)
    *,
    isolated: bool = False,
) -> Scores:
    """The scores of logits, or of several with the same examples and classes, of which a loss sees a tuple.

    Args:
        logits: `Logits`, or a tuple of these.
        relative: for each of them whether a number that all classes of an example have in common is left out.
        counting: which examples count.
        isolated: whether no array that has a gradient is common to the examples, beside those of the logits.
    """
    several = logits if isinstance(logits, tuple) else (logits,)
    copied = not (isolated and all(isinstance(z.node, Dense) for z in several))
    if not isinstance(logits, tuple):
        return _of_one(of_now(logits), relative[0], counting, copied=copied, alone=True)
    of_each = [
        _of_one(of_now(z), left_out, counting, copied=copied) for z, left_out in zip(logits, relative, strict=True)
    ]
    roundings = {one.rounding for one in of_each}
    return dataclasses.replace(
        of_each[0],
        kind=f"({', '.join(one.kind for one in of_each)})",
        function=Partial(_Together(tuple(len(one.classes) for one in of_each)), *(one.function for one in of_each)),
        examples=tuple(one.examples for one in of_each),
        classes=sum(((*one.classes, one.live) for one in of_each), ()),
        axes=sum(((*one.axes, 0) for one in of_each), ()),
        live=None,
        exact=None,
        width=sum(one.width for one in of_each),
        rounding=roundings.pop() if len(roundings) == 1 else None,
    )


@dataclasses.dataclass(frozen=True)
class _Together:
    """The logits of several scores, of which each has some of the class arrays, and then its booleans of classes."""

    counts: tuple[int, ...]

    def __call__(self, *given):
        *functions, examples, block, _ = given
        ends = list(itertools.accumulate(count + 1 for count in self.counts))
        parts = [block[end - count - 1 : end] for end, count in zip(ends, self.counts, strict=True)]
        return tuple(f(x, part[:-1], part[-1]) for f, x, part in zip(functions, examples, parts, strict=True))


def _of_one(logits, relative, counting, *, copied, alone=False):
    batch, k = logits.shape[:-1], logits.node.classes
    n, shards = math.prod(batch), logits.shards
    node = flat_node(logits, counting, copied=copied)
    if alone and isinstance(node, Dense) and not any(m.kind in ("function", "ids") for m in logits.masks):
        return _of_memory(logits, node)
    offset = node.offset() if relative else None
    leaves, tree = jax.tree.flatten(node)
    roles = tuple(jax.tree.leaves(node.roles()))
    of_role = lambda role: tuple(a for a, r in zip(leaves, roles, strict=True) if r == role)
    class_roles = tuple(r for r in roles if r not in (NUMBER, EXAMPLES))
    of_classes = tuple(a for a, r in zip(leaves, roles, strict=True) if r not in (NUMBER, EXAMPLES))
    functions = tuple(m.data for m in logits.masks if m.kind == "function")
    of_masks = tuple(m.flat(n, logits.shape) for m in logits.masks if m.kind in (EXAMPLES, "ids"))
    pairs = tuple(m.flat(n, logits.shape) for m in logits.masks if m.kind == PAIRS)
    index = collectives.example_index(shards, batch) if functions else None
    needs_ids = any(m.kind in ("function", "ids") for m in logits.masks)
    ids = k * collectives.device_index(shards.classes) + jnp.arange(k, dtype=jnp.int32) if needs_ids else None
    kinds = tuple(m.kind for m in logits.masks)
    exact = None
    if offset is not None and _has_distances(node) and not set(class_roles) - {0, ROWS}:
        exact = Partial(_AtOne(tree, roles), of_role(NUMBER))
    return Scores(
        f"masked {logits.kind}" if kinds else logits.kind,
        Partial(_Block(tree, roles, kinds, relative), (of_role(NUMBER), functions)),
        (of_role(EXAMPLES), of_masks, index),
        (*of_classes, pairs, ids),
        (*(0 if r == ROWS else r if r == PAIRS else r % 2 for r in class_roles), PAIRS, 0),
        logits.live,
        offset,
        exact,
        k,
        node.width,
        batch,
        shards,
        node.rounding,
    )


def _of_memory(logits, node):
    """Logits that are in memory: they are used whole, whatever the block size is."""
    n, z = node.array.shape[0], node.array
    for mask in logits.masks:
        z = jnp.where(mask.flat(n, logits.shape), z, -jnp.inf)
    z = z if logits.live is None else jnp.where(logits.live, z, -jnp.inf)
    return Scores("an array", _IN_MEMORY, z, (), (), k=node.classes, batch=logits.shape[:-1], shards=logits.shards)


_IN_MEMORY = Partial(lambda logits, block, live: widened(logits))


def _has_distances(node: Node) -> bool:
    of_operands = node.nodes if isinstance(node, Operation) else ()
    return isinstance(node, Distances) or any(map(_has_distances, of_operands))


@dataclasses.dataclass(frozen=True)
class _AtOne:
    """The logit [N] of one class per example, without the rounding error of a matrix product."""

    tree: Any
    roles: tuple

    def __call__(self, numbers, examples, classes):
        given = {NUMBER: iter(numbers), EXAMPLES: iter(examples[0])}
        of_class = iter(classes)
        leaves = [next(given[r]) if r in given else next(of_class)[:, None] for r in self.roles]
        return jax.tree.unflatten(self.tree, leaves).at()[:, 0]


def in_memory(logits: Logits) -> Array:
    """The logits [..., K], by the function of the blocks."""
    scores = scores_of(logits).computed_in(logits.dtype)
    layout = Layout((*scores.axes, 0), scores.n, scores.k, scores.n, scores.k)
    *classes, live = take_block((*scores.classes, scores.live), layout, 0, scores.k)
    h = scores.function(jax.tree.map(widened, scores.examples), tuple(classes), live)
    return h.reshape(logits.shape).astype(logits.dtype)
