"""Sums over the classes, and their one derivative.

For scores h_k, payoffs t_k, exponents e_k, label weights y_k and plain terms l_k of the classes k = 1..K,

    A = log sum_k exp h_k        p_k = exp(h_k - A)
    E = sum_k p_k t_k
    H = -sum_k p_k log p_k
    D = log sum_k p_k exp e_k    u_k = p_k exp(e_k - D)
    C = sum_k y_k (A - h_k)      Y = sum_k y_k
    L = sum_k l_k
    M = max_k t_k

have the derivatives

    dA = sum_k p_k dh_k
    dE = sum_k p_k (t_k - E) dh_k + sum_k p_k dt_k
    dH = -sum_k p_k (h_k - sum_j p_j h_j) dh_k
    dD = sum_k (u_k - p_k) dh_k + sum_k u_k de_k
    dC = sum_k (Y p_k - y_k) dh_k + sum_k (A - h_k) dy_k
    dL = sum_k dl_k
    dM = sum_k 1{t_k = M} dt_k / sum_k 1{t_k = M}

(CATSMILE-1012 derives the first half of dE; the second half holds when the payoffs move too. D is the logarithm
of E for the payoff exp e_k, which would overflow. C is the cross entropy of y and p.) A loss chooses
(h, t, e, y, l); a placement chooses which classes are in memory at a time.

Rows that are sure of their class keep all digits. Let o be the top class, the one with the largest score:

    m = h_o        r = sum_{k != o} exp(h_k - m)        A = m + log(1 + r)
    E = t_o + sum_{k != o} exp(h_k - m) (t_k - t_o) / (1 + r)
    H = log(1 + r) + sum_{k != o} exp(h_k - m) (m - h_k) / (1 + r)

r is summed without the 1 of the top class, next to which it would be rounded away, and payoffs are taken relative
to the payoff of the top class. A, E and D stay unevaluated pairs, base + rest, until a loss has subtracted the
number that it compares them with.

Rows that are unsure of many classes keep their digits too. The gradient sum_k p_k (t_k - E) dh_k is a sum of terms
that cancel, in which an error of E counts once per term. So E is merged as a mean of means, E + share (E' - E),
and the rounding error goes to the rest of the pair.

The base of a pair is a constant of differentiation: dA, dE and dD above are the derivatives of the rests, both by
`pull` and, should JAX drop the custom rule, by JAX's own derivative of the code below. C is a sum of terms that are
not negative, y_k (m - h_k) and Y log(1 + r).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..arguments.signatures import readable
from ..parallel import collectives
from .columns import Columns, RoundedScores
from .context import Block, Merged, Pulled
from .cross_entropy import CrossEntropy, OfLabels
from .devices import together
from .entropy import Entropy, OfLogits
from .exponent import LogMean, OfExponent
from .maximum import Maximum, OfLargest
from .mean import Mean, OfClassValue, OfPayoff
from .normaliser import Normaliser, Over
from .pair import Pair
from .term import Term

KINDS: dict[str, Any] = {
    "payoffs": OfPayoff,
    "class_values": OfClassValue,
    "exponents": OfExponent,
    "labels": OfLabels,
    "terms": Term,
    "maxima": OfLargest,
    "entropies": OfLogits,
}
"""The sums, by the names of their columns. Each has fold, merge, over, close and pull; a new one is a row here, a field
of `Columns`, `Sums` and `Totals`, and a file."""


@readable
class Sums(NamedTuple):
    """Running sums over classes. `merge` is associative and commutative."""

    normaliser: Normaliser
    payoffs: tuple[Mean, ...] = ()
    class_values: tuple[Mean, ...] = ()
    exponents: tuple[Normaliser, ...] = ()  # of h + e
    labels: tuple[CrossEntropy, ...] = ()
    terms: tuple[Array, ...] = ()
    maxima: tuple[Maximum, ...] = ()
    entropies: tuple[Entropy, ...] = ()


@readable
class Totals(NamedTuple):
    """The sums over all classes, from which a loss is finished."""

    normaliser: Normaliser
    """of h: `A` is its logarithm"""
    payoffs: tuple[Mean, ...] = ()
    """each E_p[t] [N]"""
    class_values: tuple[Mean, ...] = ()
    """each E_p[v] [N, E]"""
    exponents: tuple[LogMean, ...] = ()
    """each log E_p[exp e] [N]"""
    labels: tuple[CrossEntropy, ...] = ()
    """each of label weights: `C` is the first"""
    terms: tuple[Array, ...] = ()
    """each sum_k l_k [N]"""
    maxima: tuple[Maximum, ...] = ()
    """each max_k t_k [N]"""
    entropies: tuple[Entropy, ...] = ()
    """where the entropy is wanted: `H`"""
    offset: Array | None = None
    """[N] what all logits of an example have in common and h leaves out; None for 0"""

    @property
    def A(self) -> Pair:  # noqa: N802 (the formula's letter)
        """Log sum_k exp z_k, of the logits z_k = h_k + offset."""
        return self.normaliser.log if self.offset is None else self.normaliser.log - (-self.offset)

    @property
    def C(self) -> Array:  # noqa: N802
        """sum_k y_k (A - h_k), the cross entropy of the label weights."""
        return self._first("labels", "C").sum

    @property
    def Y(self) -> Array:  # noqa: N802
        """sum_k y_k, the sum of the label weights."""
        return self._first("labels", "Y").weight

    @property
    def H(self) -> Array:  # noqa: N802
        """The entropy -sum_k p_k log p_k; -inf where all classes are masked, as that of dense logits."""
        return jnp.where(self.empty, -jnp.inf, self._first("entropies", "H").value)

    @property
    def of_labels(self) -> Array:
        """The logits [N, T] of the labels."""
        h = self._first("labels", "of_labels").of_ids
        return h if self.offset is None else h + self.offset[..., None]

    @property
    def empty(self) -> Array:
        """Whether all classes of an example are masked."""
        return jnp.isneginf(self.normaliser.m)

    def _first(self, columns: str, name: str) -> Any:
        found = getattr(self, columns)
        if not found:
            raise ValueError(f"`{name}` needs `Columns` with `{columns}`, got none.")
        return found[0]


def _of_kinds(function: Any, *all_sums: Any) -> dict[str, Any]:
    """`function(kind, *sums)` for each of the sums of each kind."""
    return {
        name: tuple(function(kind, *each) for each in zip(*(getattr(x, name) for x in all_sums), strict=True))
        for name, kind in KINDS.items()
    }


def _needs_top(x: Any) -> bool:
    return any(kind.needs_top and getattr(x, name) for name, kind in KINDS.items())


def each(function: Any, *trees: Any) -> Any:
    """`function` of the columns, sums or totals in each of the trees."""
    return jax.tree.map(function, *trees, is_leaf=lambda a: isinstance(a, Columns | Sums | Totals))


def fold(c: Columns, ids: Array) -> Sums:
    """Sums over one block of classes, with ids [B]."""
    needs_top = _needs_top(c)
    if (
        needs_top or c.entropies
    ):  # else the top score may be computed twice, rounded in two ways, and not be the maximum
        c = c._replace(logits=lax.optimization_barrier(c.logits))
    block = Block.of(c.logits, ids, needs_top=needs_top)
    return Sums(block.a, **_of_kinds(lambda kind, column: kind.fold(column, block), c))


def rounded(c: Columns, sums: Sums, dtype: jnp.dtype) -> tuple[Columns, Sums]:
    """(the columns to keep for `pull`, rounded to `dtype` where `pull` rounds their cotangents, the sums over them)."""
    with_logits = any(y.per_class is not None for y in c.labels) or not all(wanted.constant for wanted in c.entropies)
    if _needs_top(c) or with_logits:
        return c, sums
    kept = RoundedScores(sums.normaliser.weights(c.logits).astype(dtype), sums.normaliser.m)
    # One pass takes the sums and rounds. Without the barrier, XLA would keep the scores and compute this again.
    kept, sums = lax.optimization_barrier((kept, sums))
    return c._replace(logits=kept), sums


def all_rounded(columns: Any, sums: Any, dtype: jnp.dtype) -> tuple[Any, Any]:
    """`rounded` of each group of columns."""
    if isinstance(columns, Columns):
        return rounded(columns, sums, dtype)
    both = {key: rounded(c, sums[key], dtype) for key, c in columns.items()}
    return {key: c for key, (c, _) in both.items()}, {key: s for key, (_, s) in both.items()}


def merge(left: Sums, right: Sums) -> Sums:
    """Sums over two sets of classes from the sums over each."""
    both = Merged.of(left.normaliser, right.normaliser)
    return Sums(both.a, **_of_kinds(lambda kind, left, right: kind.merge(left, right, both), left, right))


def merge_over(x: Sums, axes: collectives.Names) -> Sums:
    """Sums over the classes of all devices of some mesh axes, from the sums of each device. They are replicated.

    It takes up to four rounds: the largest scores; the id of the top class, where payoffs are involved; the sums
    relative to the largest score; the expectations relative to the expectation on the device of the top class.
    """
    shared = Over(x.normaliser, needs_top=_needs_top(x))
    parts = [(name, kind.over(one, shared)) for name, kind in KINDS.items() for one in getattr(x, name)]
    a, *others = together([x.normaliser.over(shared), *(steps for _, steps in parts)], axes)
    found: dict[str, list] = {name: [] for name in KINDS}
    for (name, _), one in zip(parts, others, strict=True):
        found[name].append(one)
    return Sums(a, **{name: tuple(each) for name, each in found.items()})


def close(x: Sums) -> Totals:
    """Totals from the sums over all classes."""
    a = x.normaliser.close()
    return Totals(a, **_of_kinds(lambda kind, one: kind.close(one, a), x))


def pull(c: Columns, ids: Array, totals: Totals, ct: Totals) -> Columns:
    """Cotangents of the columns from the cotangents of the totals: the library's one derivative."""
    at = Pulled(c.logits, ids, totals.normaliser)
    of_each = _of_kinds(lambda kind, total, ct, column: kind.pull(total, ct, column, at), totals, ct, c)
    dh = at.w * ct.normaliser.r[..., None]  # dr = sum_k exp(h_k - m) dh_k
    for pulled in of_each.values():
        for more, _ in pulled:
            dh = dh if more is None else dh + more
    return Columns(dh, **{name: tuple(d for _, d in pulled) for name, pulled in of_each.items()})


def softmax_tangent(p: Array, dh: Array) -> Array:
    """p_k (dh_k - E_p[dh]), the tangent of p for the tangent dh of the scores.

    It is also the cotangent of h for the cotangent g of p: <g, dp> = dE_p[g] = sum_k p_k (g_k - E_p[g]) dh_k.

    The exact tangent sums to 0 over the classes. Subtracting the rounded sum, in proportion to p, keeps the digits
    of a top class with p_o = 1 - tiny, and is its own transpose.
    """
    tangent = p * (dh - (p * dh).sum(-1, keepdims=True))
    return tangent - p * tangent.sum(-1, keepdims=True)


def log_softmax_cotangent(p: Array, g: Array) -> Array:
    """g_k - p_k sum_j g_j, the cotangent of h for the cotangent g of log p.

    The exact cotangent sums to 0 over the classes; the rounded sum is subtracted in proportion to p.
    """
    total = g.sum(-1, keepdims=True)
    slip = (g - p * total).sum(-1, keepdims=True)
    return (g - p * total) - p * slip
