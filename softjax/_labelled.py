"""Labels as arguments: their checks, and the cross entropy and the log-probabilities of labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike

from . import losses
from ._of import evaluate
from .arguments import checks
from .arguments.signatures import readable
from .arguments.table import checked, checked_scalar
from .compute.reductions import Examples
from .logits import Logits
from .logits.gathered import listed
from .losses.divergences import log_probabilities
from .losses.loss import before
from .parallel import collectives
from .sums.columns import CONSTANT_ENTROPY, ENTROPY
from .sums.unknown import nan_unless


@readable
class Metrics(NamedTuple):
    """What a trainer logs of every example [...], from the pass over the classes that computes the loss.

    They have no derivative: a gradient that uses one is NaN. An ignored example has 0, False and the class -1.
    """

    log_prob: Array
    """log p_y of the label; for a pair of labels, the sum of their log p_k, times their probabilities"""
    logsumexp: Array
    """A = log sum_k exp z_k"""
    z_loss: Array
    """z_loss A^2, the term of the loss"""
    entropy: Array
    """-sum_k p_k log p_k"""
    predicted: Array
    """the class with the largest logit, the lowest id at a tie; int32, -1 where all classes are masked"""
    correct: Array
    """booleans: whether that is the label; of a pair, the label with the largest probability, the first at a tie"""


def is_off(x: Any) -> bool:
    """Whether the factor of a term is a number that turns it off."""
    return x is None or (isinstance(x, int | float) and not isinstance(x, bool) and x == 0)


def cross_entropy_of(
    logits: Logits,
    labels: Any,
    *,
    kept: Array | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    reduction: str = "none",
    has_aux: bool = False,
) -> Any:
    """The cross entropy of integer labels, or of a pair, with the options of the public functions.

    `kept` [N] is False for more examples that are ignored.
    """
    has_aux = checked("has_aux", has_aux)
    labels, known, of_labels = _label_arrays(labels, ignore_index, logits.shape[:-1], logits.count)
    kept = of_labels if kept is None else kept if of_labels is None else kept & of_labels
    known = known if kept is None else known | ~kept
    found = listed(logits)
    if found is not None:
        logits, of_columns = found
        labels = _as_columns(labels, of_columns)
    weighted, added, loss = labels, None, losses.cross_entropy
    if not is_off(label_smoothing):
        rate = checked("label_smoothing", label_smoothing)
        if logits.masks_pairs:
            loss = losses.label_smoothing(loss, rate)
        else:
            weighted, added = _smoothed(labels, rate, logits)
    if not is_off(z_loss):
        loss = losses.z_loss(loss, checked_scalar("z_loss", z_loss))
    more: dict[str, Any] = {"examples": Examples(kept=kept, known=known)}
    if has_aux:
        loss = before(loss, _with_entropy, relative=True)
        more["observe"] = Partial(_metrics, checked_scalar("z_loss", 0.0 if z_loss is None else z_loss))
        more["of_observed"] = labels, known, kept
    out = evaluate(loss, logits, weighted, added, weights, reduction, **more)
    if found is None or not has_aux:
        return out
    loss, metrics = out
    return loss, metrics._replace(predicted=as_ids(metrics.predicted[..., None], of_columns)[..., 0])


def _smoothed(labels, rate, logits):
    """(labels with weights, weights [K] of this device's classes for every example): (1 - rate) 1{k = y} + rate / K."""
    dtype, live = logits.dtype, logits.live
    rate = jnp.asarray(rate, dtype)
    ids, of_ids = labels if isinstance(labels, tuple) else (labels[:, None], jnp.ones((labels.size, 1), dtype))
    if live is None:
        added = jnp.full(logits.node.classes, 1 / logits.count, dtype)
    else:
        count = collectives.psum(live.sum(), logits.shards.classes)
        added = live.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
    return (ids, (1 - rate) * of_ids.astype(dtype)), rate * added


def _as_columns(labels, ids):
    """Labels that are class ids as the columns of logits with ids [..., T], the last of which is masked."""
    if isinstance(labels, tuple):
        return _as_columns(labels[0], ids), labels[1]
    ids = ids.reshape(-1, ids.shape[-1])
    same = labels[..., None] == (ids if labels.ndim == 1 else ids[:, None])
    return jnp.where(same.any(-1), same.argmax(-1), ids.shape[-1] - 1).astype(jnp.int32)


def as_ids(columns: Array, ids: Array) -> Array:
    """The class ids of columns [..., S] of logits with ids [..., T]; -1 for -1."""
    return jnp.where(columns < 0, -1, jnp.take_along_axis(ids, jnp.maximum(columns, 0), -1))


def _with_entropy(columns, *given):
    made = columns(*given)
    return made._replace(entropies=(*made.entropies, CONSTANT_ENTROPY))


def _metrics(z_loss, q, of_examples):
    """The metrics of the totals, for the labels [N], or a pair of class ids and probabilities [N, T]."""
    labels, known, kept = of_examples
    log_p = log_probabilities(q)
    if isinstance(labels, tuple):
        labels, weights = labels
        log_p = jnp.where(weights == 0, 0, weights * log_p)
        labels = jnp.take_along_axis(labels, weights.argmax(-1, keepdims=True), -1)[:, 0]
    a, top = q.A.value, q.entropies[-1].top
    z_losses = z_loss * jnp.where(jnp.isneginf(a), 0, a) ** 2
    log_prob = jnp.where(known, log_p.sum(-1), jnp.nan)
    entropy = jnp.where(q.empty, -jnp.inf, q.entropies[-1].value)
    metrics = Metrics(log_prob, a, z_losses, entropy, top, known & (top == labels))
    if kept is None:
        return metrics
    return Metrics(*(jnp.where(kept, x, -1 if x is metrics.predicted else jnp.zeros_like(x)) for x in metrics))


def _label_arrays(labels, ignore_index, batch, count):
    """(class ids [N] or a pair [N, T], True where they are in range [N], True where they are kept [N] or None)."""
    if not isinstance(labels, tuple):
        labels = checks.integers("labels", labels)
        checks.shape("labels", labels, batch, "the leading axes of the logits")
        return _ids_known_kept(labels.reshape(-1), ignore_index, count)
    (ids, weights), known = label_pair(labels, batch, count, ignore_index)
    kept = None if ignore_index is None else ~_is_ignored(labels[0], ignore_index, ids.shape).all(-1)
    return (jnp.maximum(ids, 0), weights), known, kept


def label_pair(
    labels: tuple, batch: tuple[int, ...], count: int, ignore_index: int | None = None, name: str = "labels"
) -> tuple[tuple[Array, Array], Array]:
    """(the pair (class ids, probabilities) [N, T] with id -1 for none, True where all are classes or padding [N]).

    An entry is padding if it is ignored, or has probability 0 and an id that is no class.
    """
    if len(labels) != 2:
        raise ValueError(f"`{name}` must be integers or a pair (indices, probabilities), got {len(labels)} arrays.")
    ids, weights = checks.integers(name, labels[0]), checks.floating(name, labels[1])
    if ids.ndim == 0:
        raise ValueError(f"`{name}` must be a pair of arrays [..., T], got a single number.")
    checks.shape(name, ids, (*batch, ids.shape[-1]), "[..., T] for the leading axes of the logits")
    checks.shape(name, weights, ids.shape, "probabilities as indices")
    rows = math.prod(batch), ids.shape[-1]
    found, known = checks.class_ids(ids.reshape(rows), count, other=-1)
    weights = weights.reshape(rows)
    padding = ~known & (weights == 0)
    if ignore_index is not None:
        padding |= _is_ignored(ids, ignore_index, rows)
    return (jnp.where(padding, -1, found), jnp.where(padding, 0, weights)), (known | padding).all(-1)


def _is_ignored(ids, ignore_index, shape):
    return checks.equals("ignore_index", checks.integers("labels", ids), ignore_index).reshape(shape)


def _ids_known_kept(labels, ignore_index, count):
    ids, known = checks.class_ids(labels, count)
    if ignore_index is None:
        return ids, known, None
    ignored = checks.equals("ignore_index", labels, ignore_index)
    return jnp.where(ignored, 0, ids), known | ignored, ~ignored


def label_sets(labels: Any, ignore_index: int | None, logits: Logits) -> tuple[tuple[Array, Array], Array]:
    """(the pair (class ids, targets) [N, T] with a negative id for none, True where all labels are in range [N])."""
    if not isinstance(labels, tuple):
        labels = checks.integers("labels", labels)
        labels = labels, jnp.ones(labels.shape, logits.dtype)
    (ids, targets), known = label_pair(labels, logits.shape[:-1], logits.count, ignore_index)
    return (ids, targets), known & ((targets >= 0) & (targets <= 1)).all(-1)


def log_probs_of(logits: Logits, ids: ArrayLike, ignore_index: int | None, entropy: bool) -> Any:
    """The log-probabilities of classes [...] or [..., T]; with `entropy` also the entropies."""
    ids, entropy, batch = checks.integers("ids", ids), checked("entropy", entropy), logits.shape[:-1]
    several = ids.ndim == logits.ndim
    shape = (*batch, ids.shape[-1]) if several else batch
    checks.shape("ids", ids, shape, "the leading axes of the logits")
    if entropy and not several:  # the entropy of an unknown class is known
        log_probs, of_rows = log_probs_of(logits, ids[..., None], ignore_index, entropy)
        if ignore_index is not None:
            of_rows = jnp.where(checks.equals("ignore_index", ids, ignore_index), 0, of_rows)
        return log_probs[..., 0], of_rows
    flat = ids.reshape(math.prod(batch), *ids.shape[len(batch) :])
    of_labels, known, kept = _ids_known_kept(flat, ignore_index, logits.count)
    found = listed(logits)
    if found is not None:
        logits, of_labels = found[0], _as_columns(of_labels, found[1])
    if several:
        columns = before(losses.cross_entropy, _with_own_entropy, relative=True) if entropy else losses.cross_entropy
        of_labels = jnp.where(known, of_labels, 0), jnp.ones(of_labels.shape, logits.dtype)
        loss = columns._replace(finish=_log_probs_and_entropy if entropy else _log_probs)
        examples = Examples() if kept is None or entropy else Examples(kept=kept.any(-1))
        out = evaluate(loss, logits, of_labels, examples=examples)
        log_probs = nan_unless(known.reshape(shape), out[..., : shape[-1]])
        if kept is not None:
            log_probs = jnp.where(kept.reshape(shape), log_probs, 0)
        return (log_probs, out[..., -1]) if entropy else log_probs
    loss = losses.cross_entropy._replace(finish=_log_prob)
    return evaluate(loss, logits, of_labels, examples=Examples(kept=kept, known=known))


def _with_own_entropy(columns, *given):
    return columns(*given)._replace(entropies=(ENTROPY,))


_log_probs = lambda q, _: log_probabilities(q)
_log_probs_and_entropy = lambda q, _: jnp.concatenate([log_probabilities(q), q.H[:, None]], -1)
_log_prob = lambda q, _: -q.C
