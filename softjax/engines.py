"""The seam beneath the losses: another way to compute the sums over classes, such as a hand-written kernel.

An `Engine` is given to `softjax.linear`, `distances` or `pairwise`. Where their logits are summed it is tried first,
and where it does not apply the library's own loops over blocks compute the sums, after a warning with the reason. It
has reverse mode, and derivatives of its gradient; forward mode alone is refused by JAX, as for any `jax.custom_vjp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from .arguments.signatures import readable
from .sums.cross_entropy import CrossEntropy
from .sums.mean import Mean
from .sums.normaliser import Normaliser
from .sums.sums import Sums, Totals

__all__ = ["CrossEntropy", "Engine", "Mean", "Normaliser", "Sums", "Totals"]


@readable
class Engine(NamedTuple):
    """A way to compute sums over all classes of a device, and the cotangents of the arrays that they depend on.

    In the functions, `columns` is the pytree of `Scores.function` and `Loss.columns`, as `columns.scores` and
    `columns.loss`; `examples` is the pair (`Scores.examples`, the loss's data of the examples [N, ...]); `classes` is
    the tuple (*`Scores.classes`, `Scores.live`, the loss's data of the classes [K, ...], None); `ids` [K] are the ids
    of the classes, negative for padding.
    """

    name: str
    refuses: Callable[..., str | None]  # (scores, loss, example, per_class) -> why it does not apply, or None
    sums: Callable[[Any, Any, tuple, Array], Sums]  # (columns, examples, classes, ids) -> the sums over the classes
    cotangents: Callable[[Any, Any, tuple, Array, Totals, Totals], tuple]
    """(columns, examples, classes, ids, totals, cotangents of the totals) -> cotangents of the first three"""
