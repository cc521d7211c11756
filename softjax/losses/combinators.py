"""Combinators, which turn a loss into another."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from ..arguments import checks
from ..arguments.signatures import readable
from ..arguments.table import checked
from ..sums.columns import Weights
from .labelled import is_label, label_ids
from .loss import Loss, after, before


@readable
def margin(loss: Loss, margin: ArrayLike) -> Loss:
    """The loss with `margin` subtracted from the logit of the label [N], as in CosFace (Wang et al., 2018)."""
    return before(loss, _margin, checks.number("margin", margin), relative=True)


def _margin(columns, margin, z, ids, y, per_class):
    return columns(jnp.where(is_label(ids, label_ids(y, z)), z - margin, z), ids, y, per_class)


@readable
def label_smoothing(loss: Loss, rate: ArrayLike, prior: ArrayLike | None = None) -> Loss:
    """The loss of labels with weights (1 - rate) y_k + rate * prior_k.

    The prior is [K], or a number; None for 1 over the number of the example's classes that are not masked.
    """
    rate = checked("rate", rate)
    if prior is None:
        return after(before(loss, _smoothed_over_classes, relative=True), _mixed, rate)
    if not isinstance(prior, int | float):
        prior = checks.floating("prior", prior)
        if prior.ndim > 1 or not prior.size:
            raise ValueError(f"`prior` must be a scalar or have shape [K], got {prior.shape}.")
    return before(loss, _label_smoothing, rate, prior, relative=True)


def _label_smoothing(columns, rate, prior, z, ids, example, per_class):
    c, y = _with_weights("label_smoothing", columns(z, ids, example, per_class))
    of_block = jnp.full(ids.shape, prior, y.of_ids.dtype) if prior.ndim == 0 else _of_each(prior, ids)
    of_classes = rate * of_block
    if y.per_class is not None:
        of_classes = (1 - rate) * y.per_class + (of_classes if y.per_class.ndim == 1 else of_classes[None])
    return c._replace(labels=(Weights(y.ids, (1 - rate) * y.of_ids, of_classes),))


def _smoothed_over_classes(columns, *given):
    """Beside the labels, weights 1 of the classes that are not masked, and their number."""
    c, y = _with_weights("label_smoothing", columns(*given))
    live = (~jnp.isneginf(c.logits)).astype(y.of_ids.dtype)
    return c._replace(labels=(y, Weights(y.ids[:, :0], y.of_ids[:, :0], live)), terms=(*c.terms, live))


def _mixed(finish, rate, q, example):
    """The finish of the labels, of which `rate` is spread over the classes."""
    of_labels, of_classes = q.labels
    count = jnp.maximum(q.terms[-1], 1)
    mixed = (1 - rate) * of_labels.sum + rate * (of_classes.sum / count)
    labels = of_labels._replace(sum=mixed, weight=(1 - rate) * of_labels.weight + rate * of_classes.weight / count)
    return finish(q._replace(labels=(labels,), terms=q.terms[:-1]), example)


def _with_weights(name, c):
    """The columns, and their weights."""
    if not c.labels:
        raise ValueError(f"`{name}` must be given a loss whose columns have weights `labels`, got one without.")
    y = c.labels if isinstance(c.labels, Weights) else c.labels[0]
    return c, y


def _of_each(of_classes, ids):
    """The entries of an array [K] at class ids: NaN beyond K, 0 for padding."""
    known = of_classes.at[jnp.where(ids < 0, of_classes.size, ids)].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(ids < 0, 0, known)


@readable
def class_weights(loss: Loss, weights: ArrayLike) -> Loss:
    """The loss of labels with weights `weights_k y_k` in place of y_k, for weights [K]."""
    weights = checks.floating("weights", weights)
    if weights.ndim != 1 or not weights.size:
        raise ValueError(f"`weights` must have shape [K], got {weights.shape}.")
    return before(loss, _class_weights, weights, relative=True)


def _class_weights(columns, weights, z, ids, example, per_class):
    c, y = _with_weights("class_weights", columns(z, ids, example, per_class))
    of_block, others = _of_each(weights, ids), () if isinstance(c.labels, Weights) else c.labels[1:]

    def weighted(y):
        of_classes = None
        if y.per_class is not None:
            of_classes = (of_block if y.per_class.ndim == 1 else of_block[None]) * y.per_class
        return Weights(y.ids, _of_each(weights, y.ids) * y.of_ids, of_classes)

    return c._replace(labels=tuple(map(weighted, (y, *others))))


@readable
def z_loss(loss: Loss, weight: ArrayLike) -> Loss:
    """The loss + weight * A^2, which keeps A = log sum_k exp z_k near 0 (Mesh TensorFlow; PaLM)."""
    return after(loss, _z_loss, checks.number("weight", weight))


def _z_loss(finish, weight, q, example):
    a = jnp.where(q.empty, 0, q.A.value)  # not where all classes are left out
    return finish(q, example) + weight * a**2
