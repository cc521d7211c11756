"""The contribution of a block of classes to the sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import Array

from ..arguments.signatures import readable


@readable
class Weights(NamedTuple):
    """Label weights y_k of the classes, of which a few belong to the example: its labels."""

    ids: Array  # [N, T] class ids
    of_ids: Array  # [N, T] their weights; the weights of a repeated id are added
    per_class: Array | None = None  # [B] an additional weight of each class; or [N, B], of each example and class


class RoundedScores(NamedTuple):
    """Scores h_k of a block, kept as exp(h_k - m) in half precision: the cotangents that they give are rounded too."""

    weights: Array  # [N, B] exp(h_k - m)
    m: Array  # [N] the largest score of the block


@jax.tree_util.register_static
class Wanted(NamedTuple):
    """A sum that needs no column of its own, as a node without leaves."""

    constant: bool  # whether it is a constant of differentiation


ENTROPY, CONSTANT_ENTROPY = Wanted(constant=False), Wanted(constant=True)


@readable
class Columns(NamedTuple):
    """The contribution of a block of B classes, with consecutive ids, to the sums of N examples.

    h, t, v, e, y and l are the letters of these in the mathematics.
    """

    logits: Any
    """h [N, B]; -inf for a masked class. `RoundedScores` where they are kept for the gradient"""
    payoffs: tuple[Array, ...] = ()
    """each t [N, B], of each example and class"""
    class_values: tuple[Array, ...] = ()
    """each v [B, E], a vector payoff of each class, the same for all examples"""
    exponents: tuple[Array, ...] = ()
    """each e [N, B], of each example and class"""
    labels: Any = ()
    """each y, the `Weights` of a cross entropy: a tuple, or the only one"""
    terms: tuple[Array, ...] = ()
    """each l [N, B], or [N, 1] if it is already summed over the block"""
    maxima: tuple[Array, ...] = ()
    """each a payoff t [N, B] of which the largest is wanted"""
    entropies: tuple[Wanted, ...] = ()
    """(softjax.losses.ENTROPY,) where the entropy is wanted"""
