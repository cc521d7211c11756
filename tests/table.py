"""The table of all tests: each public function, score and loss with its definition in plain mathematics.

A definition has the name and the arguments of the function in the library, but for the options that only say how to
compute. It takes arrays of JAX, to be differentiated, and of NumPy, to be computed in float64. Nothing here uses the
library's own sums. The 50-digit truth in `softjax.tools.truth` does not depend on these definitions, nor they on it.
"""

import functools as ft
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import softjax
from softjax import losses

from . import spelled

# Options that no definition has.
HOW_TO_COMPUTE = {"block_size", "axis_name", "batch_axis_name", "engine", "precision", "dtype"}

# ---------------------------------------------------------------------------------------------
# Sums over the classes


def namespace(*arrays):
    """JAX's functions if one of the arrays is JAX's, else NumPy's."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def largest(z, axis):
    """The maximum as a constant, or 0 where it is not finite."""
    xp = namespace(z)
    m = z.max(axis, keepdims=True, initial=-np.inf)
    m = xp.where(xp.isfinite(m), m, 0)
    return jax.lax.stop_gradient(m) if xp is jnp else m


def left_out(z, where):
    """Scores with -inf for the classes that are left out."""
    return z if where is None else namespace(z, where).where(where, z, -np.inf)


def log_sum_exp(z, axis=-1, where=None, *, keepdims=False):
    xp, z = namespace(z), left_out(z, where)
    m = largest(z, axis)
    out = xp.log(xp.exp(z - m).sum(axis, keepdims=True)) + m
    return out if keepdims else out.squeeze(axis)


def log_p(z, axis=-1, where=None):
    """log p_k, and 0 for the classes that are left out."""
    out = z - log_sum_exp(z, axis, where, keepdims=True)
    return out if where is None else namespace(z, where).where(where, out, 0)


def hot(labels, k, dtype):
    """Labels [...] as weights [..., K]."""
    return (labels[..., None] == namespace(labels).arange(k, dtype=labels.dtype)).astype(dtype)


def dense_labels(pair, k):
    """A pair of classes and weights [..., T] as weights [..., K]."""
    labels, weights = pair
    return (hot(labels, k, weights.dtype) * weights[..., None]).sum(-2)


def at(z, labels):
    """The entries of z [..., K] at the labels [...]."""
    xp = namespace(z, labels)
    return xp.take_along_axis(z, xp.clip(labels, 0, z.shape[-1] - 1)[..., None], -1)[..., 0]


def reduced(loss, reduction="none", weights=None, shares=1.0):
    """sum(w l) / sum(w v) for the mean."""
    xp = namespace(loss)
    w = xp.ones_like(loss) if weights is None else weights
    if reduction == "none":
        return w * loss
    total = (w * loss).sum()
    return total if reduction == "sum" else total / (w * shares).sum()


# ---------------------------------------------------------------------------------------------
# Functions of dense logits


def softmax(x, axis=-1, where=None):
    """p_k = exp(z_k) / sum_j exp(z_j), shifted by the maximum as the second text does."""
    z = left_out(x, where)
    e = namespace(z).exp(z - largest(z, axis))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1, where=None):
    return left_out(log_p(x, axis, where), where)


def logsumexp(a, axis=None, *, where=None, keepdims=False):
    return log_sum_exp(a, axis, where, keepdims=keepdims)


def entropy(logits, axis=-1, where=None):
    safe = logits if where is None else namespace(logits, where).where(where, logits, 0)
    return log_sum_exp(logits, axis, where) - (softmax(logits, axis, where) * safe).sum(axis)


def expectation(logits, values, axis=-1, where=None):
    z, t = namespace(logits, values).broadcast_arrays(logits, values)
    return (softmax(z, axis, where) * t).sum(axis)


def axes_of(axis, ndim):
    return tuple(range(ndim)) if axis is None else tuple(a % ndim for a in np.atleast_1d(axis).tolist())


def of_examples(where, z, axes):
    """A mask in the rank of z, which may have one value for each example."""
    per_example = where is not None and where.shape == tuple(n for i, n in enumerate(z.shape) if i not in axes)
    return namespace(where).expand_dims(where, axes) if per_example else where


def softmax_cross_entropy(logits, labels, axis=-1, where=None):
    """-sum_k y_k log p_k."""
    axes = axes_of(axis, logits.ndim)
    return -(labels * log_p(logits, axes, of_examples(where, logits, axes))).sum(axes)


def softmax_cross_entropy_with_integer_labels(
    logits,
    labels,
    axis=-1,
    where=None,
    *,
    ignore_index=None,
    label_smoothing=0.0,
    z_loss=0.0,
    weights=None,
    reduction="none",
    has_aux=False,
):
    """-sum_k y_k log p_k + z_loss A^2, with y_k = (1 - smoothing) 1{k = label} + smoothing / K; 0 if it is ignored."""
    if has_aux:  # of classes on the last axis
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss}
        options |= {"weights": weights, "reduction": reduction}
        loss = softmax_cross_entropy_with_integer_labels(logits, labels, axis, where, **options)
        kept = namespace(labels).ones_like(labels) if ignore_index is None else labels != ignore_index
        return loss, metrics(logits, labels, where, z_loss, kept.astype(logits.dtype))
    if ignore_index is not None:
        xp = namespace(labels)
        kept = labels != ignore_index
        of_others = softmax_cross_entropy_with_integer_labels(
            logits, xp.where(kept, labels, 0), axis, where, label_smoothing=label_smoothing, z_loss=z_loss
        )
        w = kept.astype(logits.dtype) if weights is None else weights * kept.astype(logits.dtype)
        return reduced(xp.where(kept, of_others, 0), reduction, w)
    xp, axes = namespace(logits), axes_of(axis, logits.ndim)
    live = of_examples(where, logits, axes)
    costs = -log_p(logits, axes, live)
    costs = xp.moveaxis(costs, axes, tuple(range(-len(axes), 0)))
    costs = costs.reshape(*costs.shape[: costs.ndim - len(axes)], -1)
    loss = at(costs, labels)
    if label_smoothing:
        count = xp.broadcast_to(True if live is None else live, logits.shape).sum(axes).astype(logits.dtype)
        loss = (1 - label_smoothing) * loss + label_smoothing * costs.sum(-1) / xp.maximum(count, 1)
    loss = loss + z_loss * log_sum_exp(logits, axes, live) ** 2 if z_loss else loss
    return loss if reduction == "none" and weights is None else reduced(loss, reduction, weights)


def multiclass_svm_loss(scores, labels, *, margin=1.0):
    """sum_{k != y} max(0, s_k - s_y + margin)."""
    xp = namespace(scores, labels)
    over = xp.maximum(0, scores - at(scores, labels)[..., None] + margin)
    return xp.where(hot(labels, scores.shape[-1], bool), 0, over).sum(-1)


def multiclass_hinge_loss(scores, labels, *, margin=1.0):
    """max(0, max_{k != y} s_k - s_y + margin)."""
    xp = namespace(scores, labels)
    others = xp.where(hot(labels, scores.shape[-1], bool), -np.inf, scores)
    return xp.maximum(0, others.max(-1) - at(scores, labels) + margin)


_entropy = entropy  # which is also the name of an option


def log_probs(logits, ids, *, ignore_index=None, entropy=False):
    """log p_id and, if wanted, -sum_k p_k log p_k; 0 if the id is ignored."""
    kept = 1.0 if ignore_index is None else (ids != ignore_index).astype(logits.dtype)
    found = kept * at(log_p(logits), ids)
    return (found, kept * _entropy(logits)) if entropy else found


def kl_divergence(p, q, *, weights=None, reduction="none"):
    """sum_k p_k (log p_k - log q_k) of two logits."""
    return reduced((softmax(p) * (log_p(p) - log_p(q))).sum(-1), reduction, weights)


def js_divergence(p, q, *, weights=None, reduction="none"):
    """The mean of KL(p || m) and KL(q || m), for m = (p + q) / 2."""
    m = namespace(p, q).log((softmax(p) + softmax(q)) / 2)
    to_m = lambda z: (softmax(z) * (log_p(z) - m)).sum(-1)
    return reduced((to_m(p) + to_m(q)) / 2, reduction, weights)


# ---------------------------------------------------------------------------------------------
# Linear layers


def linear_scores(features, kernel, bias=None, class_axis=-1, softcap=None, temperature=1.0):
    """z = softcap tanh((features @ kernel + bias) / softcap) / temperature."""
    z = features @ (kernel if class_axis else kernel.T)
    z = z if bias is None else z + bias
    return (z if softcap is None else softcap * namespace(z).tanh(z / softcap)) / temperature


def linear_softmax_cross_entropy(
    features,
    kernel,
    labels,
    *,
    bias=None,
    class_axis=-1,
    where=None,
    weights=None,
    class_weights=None,
    ignore_index=None,
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    temperature=1.0,
    reduction="none",
    has_aux=False,
):
    """-sum_k y_k log p_k + z_loss A^2, with y_k = class_weights_k ((1 - smoothing) 1{k = label} + smoothing / K)."""
    z = linear_scores(features, kernel, bias, class_axis, softcap, temperature)
    xp, k = namespace(z), z.shape[-1]
    live = (xp.ones(k, bool) if where is None else where).astype(z.dtype)
    of_classes = xp.ones(k, z.dtype) if class_weights is None else class_weights
    kept = xp.ones(z.shape[:-1], z.dtype)
    if isinstance(labels, tuple):
        ids, probabilities = labels
        if ignore_index is not None:
            probabilities = xp.where(ids == ignore_index, 0, probabilities)
            kept = (ids != ignore_index).any(-1).astype(z.dtype)
        y, shares = dense_labels((ids, probabilities), k), 1.0
    else:
        if ignore_index is not None:
            kept = (labels != ignore_index).astype(z.dtype)
        y, shares = hot(labels, k, z.dtype), (hot(labels, k, z.dtype) * of_classes).sum(-1)
    y = of_classes * ((1 - label_smoothing) * y + label_smoothing * live / live.sum())
    loss = -(y * log_p(z, where=where)).sum(-1) + z_loss * log_sum_exp(z, where=where) ** 2
    loss = reduced(loss, reduction, kept if weights is None else weights * kept, shares)
    return (loss, metrics(z, labels, where, z_loss, kept)) if has_aux else loss


def metrics(z, labels, where, z_loss, kept):
    """log p_y, A, z_loss A^2, the entropy, the class with the largest logit, and whether it is the label."""
    xp, top = namespace(z), left_out(z, where).argmax(-1)
    y = dense_labels(labels, z.shape[-1]) if isinstance(labels, tuple) else hot(labels, z.shape[-1], z.dtype)
    a, log_probs = log_sum_exp(z, where=where), (y * log_p(z, where=where)).sum(-1)
    correct = top == (y.argmax(-1) if isinstance(labels, tuple) else labels)
    every = log_probs, a, z_loss * a**2, entropy(z, where=where)
    top = xp.where(kept == 1, top, -1).astype("int32")
    return *(kept * x for x in every), top, correct & (kept == 1)


def linear_log_probs(
    features,
    kernel,
    tokens,
    bias=None,
    *,
    class_axis=-1,
    where=None,
    ignore_index=None,
    softcap=None,
    temperature=1.0,
    entropy=False,
):
    """log p_token and, if wanted, -sum_k p_k log p_k."""
    z = linear_scores(features, kernel, bias, class_axis, softcap, temperature)
    kept = 1.0 if ignore_index is None else (tokens != ignore_index).astype(z.dtype)
    log_probs = kept * at(log_p(z, where=where), tokens)
    return (log_probs, kept * _entropy(z, where=where)) if entropy else log_probs


def linear_sigmoid_binary_cross_entropy(
    features,
    kernel,
    labels,
    *,
    bias=None,
    class_axis=-1,
    where=None,
    weights=None,
    ignore_index=None,
    softcap=None,
    temperature=1.0,
    reduction="none",
):
    """-sum_k (y_k log sigmoid(z_k) + (1 - y_k) log sigmoid(-z_k))."""
    z = linear_scores(features, kernel, bias, class_axis, softcap, temperature)
    if isinstance(labels, tuple) or namespace(labels).issubdtype(labels.dtype, np.integer):
        ids, targets = labels if isinstance(labels, tuple) else (labels, 1.0)
        targets = targets if ignore_index is None else targets * (ids != ignore_index).astype(z.dtype)
        y = (hot(ids, z.shape[-1], z.dtype) * namespace(z).expand_dims(targets, -1)).sum(-2)
    else:
        y = labels
    costs = binary_costs(z, y)
    return reduced((costs if where is None else namespace(z).where(where, costs, 0)).sum(-1), reduction, weights)


def binary_costs(z, y):
    return y * softplus(-z) + (1 - y) * softplus(z)


def softplus(z):
    """log(1 + exp z), whose second derivative keeps its digits: that of JAX's `softplus` is off by 1% at -30."""
    n = namespace(z)
    return n.where(z > 0, z, 0 * z) + n.log1p(n.exp(n.where(z > 0, -z, z)))


def linear_distillation_loss(
    features,
    kernel,
    *,
    teacher_features=None,
    teacher_kernel=None,
    teacher_bias=None,
    teacher_probs=None,
    divergence="forward",
    bias=None,
    class_axis=-1,
    where=None,
    weights=None,
    softcap=None,
    teacher_softcap=None,
    temperature=1.0,
    reduction="none",
):
    """KL(q || p), KL(p || q), or the mean of both for m = (p + q) / 2; the teacher q is a constant."""
    log_student = log_p(linear_scores(features, kernel, bias, class_axis, softcap, temperature), where=where)
    xp = namespace(log_student)
    p = xp.exp(left_out(log_student, where))
    if teacher_probs is None:
        arrays = teacher_features, teacher_kernel, teacher_bias, class_axis, teacher_softcap, temperature
        q = softmax(linear_scores(*arrays), where=where)
    else:
        q = dense_labels(teacher_probs, p.shape[-1]) if isinstance(teacher_probs, tuple) else teacher_probs
    q = jax.lax.stop_gradient(q) if xp is jnp else q
    x_log_x = lambda x, of: xp.where(x > 0, x * xp.log(xp.where(x > 0, of, 1)), 0)
    m = (p + q) / 2
    out = {
        "forward": lambda: (x_log_x(q, q) - q * log_student).sum(-1),
        "reverse": lambda: (p * log_student - x_log_x(p, q)).sum(-1),
        "jensen_shannon": lambda: (p * log_student + x_log_x(q, q) - 2 * x_log_x(m, m)).sum(-1) / 2,
    }
    return reduced(out[divergence](), reduction, weights)


def linear_expectation(features, kernel, values, *, bias=None, class_axis=-1, where=None, temperature=1.0):
    return softmax(linear_scores(features, kernel, bias, class_axis, None, temperature), where=where) @ values


def linear_logsumexp(features, kernel, *, bias=None, class_axis=-1, where=None, softcap=None, temperature=1.0):
    return log_sum_exp(linear_scores(features, kernel, bias, class_axis, softcap, temperature), where=where)


def contrastive_loss(x, y, *, temperature=1.0, symmetric=True, where=None, weights=None, reduction="none"):
    """The mean over both directions of -log softmax(x_i . y_j / temperature)_i."""
    one_way = lambda z, where: reduced(-namespace(z).diagonal(log_p(z, where=where)), reduction, weights)
    z, other_way = x @ y.T / temperature, None if where is None else where.T
    return (one_way(z, where) + one_way(z.T, other_way)) / 2 if symmetric else one_way(z, where)


def nt_xent_loss(x, y, *, temperature=1.0, weights=None, reduction="none"):
    """The mean over both views of an example of -log(exp(s_ij) / sum_{k != i} exp(s_ik)): Chen et al., equation 1."""
    xp, n = namespace(x), x.shape[0]
    v = xp.concatenate([x, y])
    s = v @ v.T / temperature
    e = xp.exp(s - largest(s, -1)) * (1 - xp.eye(2 * n, dtype=s.dtype))
    i = xp.arange(2 * n)
    losses_of_views = -xp.log(e[i, (i + n) % (2 * n)] / e.sum(-1))
    return reduced(losses_of_views.reshape(2, n).mean(0), reduction, weights)


def supervised_contrastive_loss(x, labels, *, temperature=1.0, weights=None, reduction="none"):
    """-1/|P| sum_{p in P} log(exp(s_ip) / sum_{a != i} exp(s_ia)): Khosla et al., equation 2."""
    xp, others = namespace(x), 1 - namespace(x).eye(x.shape[0], dtype=x.dtype)
    s = x @ x.T / temperature
    log_sums = xp.log((xp.exp(s - largest(s, -1)) * others).sum(-1, keepdims=True)) + largest(s, -1)
    positive = (labels[:, None] == labels).astype(x.dtype) * others
    return reduced(-(positive * (s - log_sums)).sum(-1) / xp.maximum(positive.sum(-1), 1), reduction, weights)


def siglip_loss(x, y, *, temperature=1.0, logit_bias=0.0, where=None, weights=None, reduction="none"):
    """sum_j log(1 + exp(s_ij (-t x_i . y_j - b))): Zhai et al., section 3.2, whose mean over i is their loss."""
    xp = namespace(x)
    signs = 2 * xp.eye(x.shape[0], dtype=x.dtype) - 1
    costs = xp.logaddexp(0 * signs, -signs * (x @ y.T / temperature + logit_bias))
    return reduced((costs if where is None else xp.where(where, costs, 0)).sum(-1), reduction, weights)


# ---------------------------------------------------------------------------------------------
# Mixtures


def distance_scores(z, centers, log_prior=None, precisions=None, temperature=1.0):
    """h_k = -sum_d t_kd (z_d - c_kd)^2 / temperature + log_prior_k."""
    squares = (z[..., None, :] - centers) ** 2
    h = -(squares if precisions is None else precisions * squares).sum(-1) / temperature
    return h if log_prior is None else h + log_prior


def mixture(z, centers, log_prior=None, precisions=None, temperature=1.0, where=None):
    """p = softargmax(h)."""
    return softmax(distance_scores(z, centers, log_prior, precisions, temperature), where=where)


def log_likelihood(x, values):
    """log p(x|k) = -sum_e (x_e - v_ke)^2."""
    return -((x[..., None, :] - values) ** 2).sum(-1)


def mixture_expectation(z, centers, values, *, log_prior=None, precisions=None, temperature=1.0, where=None):
    return mixture(z, centers, log_prior, precisions, temperature, where) @ values


def mixture_autoencoder_loss(
    z,
    x,
    centers,
    values,
    *,
    log_prior=None,
    precisions=None,
    temperature=1.0,
    where=None,
    weights=None,
    reduction="none",
):
    """sum_e (x_e - sum_k p_k v_ke)^2."""
    mean = mixture(z, centers, log_prior, precisions, temperature, where) @ values
    return reduced(((x - mean) ** 2).sum(-1), reduction, weights)


def eol_loss(
    z,
    x,
    centers,
    values,
    *,
    log_prior=None,
    precisions=None,
    temperature=1.0,
    where=None,
    weights=None,
    reduction="none",
):
    """-sum_k p_k log p(x|k)."""
    p = mixture(z, centers, log_prior, precisions, temperature, where)
    return reduced(-(p * log_likelihood(x, values)).sum(-1), reduction, weights)


def leop_loss(
    z,
    x,
    centers,
    values,
    *,
    log_prior=None,
    precisions=None,
    temperature=1.0,
    where=None,
    weights=None,
    reduction="none",
):
    """-log sum_k p_k p(x|k)."""
    h = distance_scores(z, centers, log_prior, precisions, temperature)
    both = log_sum_exp(h + log_likelihood(x, values), where=where)
    return reduced(log_sum_exp(h, where=where) - both, reduction, weights)


def log_gaussian(x, means, precisions=None):
    """log N(x; c_k, 1 / t_k) = sum_d (log t_kd - log 2 pi - t_kd (x_d - c_kd)^2) / 2."""
    xp = namespace(x, means)
    t = xp.ones_like(means) if precisions is None else xp.broadcast_to(precisions, means.shape)
    return (xp.log(t) - math.log(2 * math.pi) - t * (x[..., None, :] - means) ** 2).sum(-1) / 2


def gaussian_mixture_nll_loss(
    x, centers, precisions=None, *, log_prior=None, where=None, weights=None, reduction="none"
):
    """-log sum_k p_k N(x; c_k, 1 / t_k), with p = softargmax(log_prior)."""
    xp = namespace(x, centers)
    prior = xp.zeros(centers.shape[0], centers.dtype) if log_prior is None else log_prior
    both = log_sum_exp(prior + log_gaussian(x, centers, precisions), where=where)
    prior = xp.broadcast_to(prior, (*x.shape[:-1], centers.shape[0]))
    return reduced(log_sum_exp(prior, where=where) - both, reduction, weights)


def soft_quantize(z, centers, values=None, *, log_prior=None, precisions=None, temperature=1.0, where=None):
    """E_p[c], its largest classes, and their usage, as `softjax.Quantized`."""
    xp, h = namespace(z, centers), left_out(distance_scores(z, centers, log_prior, precisions, temperature), where)
    ids = h.argmax(-1)
    usage = hot(ids.ravel(), centers.shape[0], "float32").mean(0)
    in_use = -(usage * xp.log(xp.where(usage > 0, usage, 1))).sum()
    return softjax.Quantized(softmax(h) @ (centers if values is None else values), ids, usage, xp.exp(in_use))


# ---------------------------------------------------------------------------------------------
# Losses, of logits z [N, K]: definition(z, example) or definition(z, example, per class)


class Sizes(NamedTuple):
    """The numbers of examples, classes and dimensions; no two are equal."""

    batch: tuple = (4,)
    k: int = 13
    d: int = 3
    e: int = 5


class LossRow(NamedTuple):
    name: str
    loss: Any
    """the loss; or a function that makes it for K classes"""
    definition: Callable
    example: Callable = lambda r, s: None
    """(random source, sizes) -> data of the examples"""
    per_class: Callable = lambda r, s: None
    public: tuple[str, ...] = ()
    """the names in `softjax.losses` that the row is for; () for its own name"""

    def made(self, k=13):
        return self.loss if isinstance(self.loss, softjax.Loss) else self.loss(k)


def labels(r, s):
    """The first and the last class among them."""
    ids = r.integers(s.k, *s.batch)
    return ids.reshape(-1).at[0].set(0).at[-1].set(s.k - 1).reshape(s.batch)


def label_pairs(r, s):
    """Three classes of each example, one of them twice."""
    ids = jnp.stack([labels(r, s), r.integers(s.k, *s.batch)], -1)
    return jnp.concatenate([ids, ids[..., :1]], -1), jnp.abs(r.normal(*s.batch, 3))


def cost(z, y):
    """-log p_y."""
    return softmax_cross_entropy_with_integer_labels(z, y)


def log_ratio(z, v):
    """log sum_k b_k exp z_k for b [K, E]."""
    m = largest(z, -1)
    return namespace(z).log(namespace(z).exp(z - m) @ v) + m


def to_a_prior(y, rate, prior):
    return (1 - rate) * y + rate * prior


def numbers_per_class(seed, low, high):
    """K numbers that are exact in float32."""
    return ft.cache(lambda k: np.random.default_rng(seed).uniform(low, high, k).astype(np.float32))


class_prior = ft.cache(lambda k: np.random.default_rng(8).dirichlet(np.ones(k)).astype(np.float32))
class_weights_of = numbers_per_class(9, 0.5, 2)


def in_type(z, numbers):
    return namespace(z).asarray(numbers, z.dtype)


def weights_of(z, y):
    """Labels or a pair as weights [N, K]."""
    return dense_labels(y, z.shape[-1]) if isinstance(y, tuple) else hot(y, z.shape[-1], z.dtype)


DATA = lambda r, s: r.normal(*s.batch, s.e)
VALUES = lambda r, s: r.normal(s.k, s.e)
MEAN_SQUARE = softjax.Loss(  # a user's, with a payoff that depends on the logits; finite where a logit is -inf
    lambda z, ids, _, __: softjax.Columns(z, payoffs=(jnp.where(jnp.isneginf(z), 0, z) ** 2,)),
    lambda q, _: q.payoffs[0].value,
)

LABELLED = [
    LossRow("cross_entropy", losses.cross_entropy, cost, labels),
    LossRow(
        "cross_entropy_of_pairs",
        losses.cross_entropy,
        lambda z, pair: softmax_cross_entropy(z, weights_of(z, pair)),
        label_pairs,
        public=("cross_entropy",),
    ),
    LossRow(
        "cross_entropy_per_class",
        losses.cross_entropy,
        lambda z, y, more: softmax_cross_entropy(z, weights_of(z, y) + more),
        labels,
        lambda r, s: abs(r.normal(s.k)),
        public=("cross_entropy",),
    ),
    LossRow("focal", losses.focal(1.5), lambda z, y: (-namespace(z).expm1(-cost(z, y))) ** 1.5 * cost(z, y), labels),
    LossRow("poly_1", losses.poly_1(0.7), lambda z, y: cost(z, y) - 0.7 * namespace(z).expm1(-cost(z, y)), labels),
    LossRow("brier", losses.brier, lambda z, y: ((softmax(z) - weights_of(z, y)) ** 2).sum(-1), labels),
    LossRow(
        "binary_cross_entropy",
        losses.binary_cross_entropy,
        lambda z, y: binary_costs(z, weights_of(z, y)).sum(-1),
        labels,
    ),
    LossRow(
        "weston_watkins",
        losses.weston_watkins(0.7),
        lambda z, y: multiclass_svm_loss(z, y, margin=0.7),
        labels,
    ),
    LossRow(
        "crammer_singer",
        losses.crammer_singer(0.7),
        lambda z, y: multiclass_hinge_loss(z, y, margin=0.7),
        labels,
    ),
]
UNLABELLED = [
    LossRow("logsumexp", losses.logsumexp, lambda z, _: log_sum_exp(z)),
    LossRow(
        "weighted_logsumexp",
        losses.weighted_logsumexp,
        lambda z, _, b: log_ratio(z, b),
        per_class=lambda r, s: 0.1 + abs(r.normal(s.k, s.e)),
    ),
    LossRow("entropy", losses.entropy, lambda z, _: entropy(z)),
    LossRow("expectation", losses.expectation, lambda z, _, v: softmax(z) @ v, per_class=VALUES),
    LossRow(
        "mixture_autoencoder",
        losses.mixture_autoencoder,
        lambda z, x, v: ((x - softmax(z) @ v) ** 2).sum(-1),
        DATA,
        VALUES,
    ),
    LossRow("eol", losses.eol, lambda z, x, v: -(softmax(z) * log_likelihood(x, v)).sum(-1), DATA, VALUES),
    LossRow(
        "leop",
        losses.leop,
        lambda z, x, v: log_sum_exp(z) - log_sum_exp(z + log_likelihood(x, v)),
        DATA,
        VALUES,
    ),
    LossRow(
        "gaussian_mixture",
        losses.gaussian_mixture(0.7),
        lambda z, x, c: log_sum_exp(z) - log_sum_exp(z + log_gaussian(x, c, in_type(c, np.full(c.shape, 0.7)))),
        DATA,
        VALUES,
    ),
    LossRow("mean_square", MEAN_SQUARE, lambda z, _: (softmax(z) * z**2).sum(-1), public=("Loss",)),
]
COMBINED = [
    LossRow(
        "margin",
        losses.margin(losses.cross_entropy, 0.4),
        lambda z, y: cost(z - 0.4 * weights_of(z, y), y),
        labels,
    ),
    LossRow(
        "label_smoothing",
        lambda k: losses.label_smoothing(losses.cross_entropy, 0.2, 1 / k),
        lambda z, y: softmax_cross_entropy(z, to_a_prior(weights_of(z, y), 0.2, 1 / z.shape[-1])),
        labels,
    ),
    LossRow(
        "smoothed_pairs_to_a_prior",
        lambda k: losses.label_smoothing(losses.cross_entropy, 0.2, class_prior(k)),
        lambda z, pair: softmax_cross_entropy(
            z, to_a_prior(weights_of(z, pair), 0.2, in_type(z, class_prior(z.shape[-1])))
        ),
        label_pairs,
        public=("label_smoothing",),
    ),
    LossRow(
        "class_weights_of_smoothed",
        lambda k: losses.class_weights(losses.label_smoothing(losses.cross_entropy, 0.2, 1 / k), class_weights_of(k)),
        lambda z, y: softmax_cross_entropy(
            z, in_type(z, class_weights_of(z.shape[-1])) * to_a_prior(weights_of(z, y), 0.2, 1 / z.shape[-1])
        ),
        labels,
        public=("class_weights", "label_smoothing"),
    ),
    LossRow(
        "smoothed_over_live_classes",
        losses.label_smoothing(losses.cross_entropy, 0.2),
        lambda z, y: softmax_cross_entropy(z, to_a_prior(weights_of(z, y), 0.2, 1 / z.shape[-1])),
        labels,
        public=("label_smoothing",),
    ),
    LossRow(
        "z_loss",
        losses.z_loss(losses.cross_entropy, 0.1),
        lambda z, y: cost(z, y) + 0.1 * log_sum_exp(z) ** 2,
        labels,
    ),
]
LOSSES = {row.name: row for row in LABELLED + UNLABELLED + COMBINED}

# Losses of two logits: definition((z, t), None)
OF_TWO = {
    row.name: row
    for row in [
        LossRow("kl_divergence", losses.kl_divergence, lambda z, _: kl_divergence(*z)),
        LossRow("expectation_of_pairs", losses.expectation_of_pairs, lambda z, _: expectation(*z)),
        LossRow(
            "cross_entropy_of_targets",
            losses.cross_entropy,
            lambda z, _: softmax_cross_entropy(*z),
            public=("cross_entropy",),
        ),
        LossRow(
            "binary_cross_entropy_of_targets",
            losses.binary_cross_entropy,
            lambda z, _: binary_costs(*z).sum(-1),
            public=("binary_cross_entropy",),
        ),
    ]
}


def of_live_classes(row, z, example=None, per_class=None, where=None, weights=None, reduction="none"):
    """A loss of the live classes alone. The mask must not be traced."""
    if where is not None:
        live = np.flatnonzero(where)
        z, per_class = z[..., live], None if per_class is None else per_class[live]
        if row in LABELLED:
            example = jnp.searchsorted(jnp.asarray(live, example.dtype), example).astype(example.dtype)
    known = [example] if per_class is None else [example, per_class]
    return reduced(row.definition(z, *known), reduction, weights)


# ---------------------------------------------------------------------------------------------
# Scores: the arguments, and the logits [N, K] that they stand for


class ScoresRow(NamedTuple):
    name: str
    arguments: Callable
    """(random source, sizes, scale of the scores) -> arrays; with scale 0, scores near -20 if there is a bias"""
    made: Callable
    """arrays -> `Logits` or an array"""
    definition: Callable
    """arrays -> logits [N, K]"""


def logits(r, s, scale=1.0):
    """Scale 0 gives small logits near -20, where a padded class with logit 0 would change every result."""
    return r.normal(*s.batch, s.k, scale=scale or 0.1, offset=0 if scale else -20)


def linear_arrays(r, s, scale=1.0):
    """Features, kernel and bias of logits of about this scale; small ones are all about -20."""
    bias = lambda: r.normal(s.k, scale=scale or 0.1, offset=0 if scale else -20)
    return r.normal(*s.batch, s.d, scale=scale or 0.1), r.normal(s.d, s.k), bias()


def cauchy(scale, x, y):
    """Log-densities 1 / (1 + |x - y|^2 / scale^2)."""
    return 1 / (1 + ((x[:, None] - y[None]) ** 2).sum(-1) / scale**2)


def of_cauchy(scale, x, y):
    """The same as a function of a user, of one example and one class."""
    return softjax.pairwise(lambda x, y: 1 / (1 + ((x - y) ** 2).sum() / scale**2), x, y)


SCORES = {
    row.name: row
    for row in [
        ScoresRow(
            "linear",
            linear_arrays,
            lambda x, w, b: softjax.linear(x, w, bias=b),
            lambda x, w, b: linear_scores(x, w, b),
        ),
        ScoresRow(
            "distances",
            lambda r, s, scale=1.0: (r.normal(*s.batch, s.d), r.normal(s.k, s.d), r.normal(s.k)),
            lambda z, c, b: softjax.distances(z, c) + b,
            lambda z, c, b: distance_scores(z, c, b),
        ),
        ScoresRow("dense", lambda r, s, scale=1.0: (logits(r, s, scale),), lambda z: z, lambda z: z),
        ScoresRow(
            "of",
            lambda r, s, scale=1.0: (r.normal() + 3, r.normal(*s.batch, s.d), r.normal(s.k, s.d)),
            of_cauchy,
            cauchy,
        ),
    ]
}


# ---------------------------------------------------------------------------------------------
# Functions


class Row(NamedTuple):
    """A function of arrays by their kinds."""

    name: str
    definition: Callable
    """of the function's own arguments"""
    kinds: str
    """the kinds of its arguments, from `MADE` in test_transformations.py"""
    arguments: Mapping = MappingProxyType({})
    """the name of an argument where that is not its kind"""
    loss: LossRow | None = None
    """the loss that it is given"""
    apart: bool = True
    """True if no example depends on the others"""
    options: Mapping = MappingProxyType({})
    """of the function and of the definition"""
    call: Callable | None = None
    """arguments by their names -> output, if that is not a plain call"""
    public: tuple[str, ...] = ()
    """the functions in `softjax` that the row is for; () for its own name"""

    def given(self, by_kind):
        """The arguments by their names."""
        return {self.arguments.get(kind, kind): a for kind, a in by_kind.items()}

    def function(self, /, **options):
        """The library's function of arrays by their kinds."""
        more = {} if self.loss is None else {"loss": self.loss.made()}

        def call(**by_kind):
            # an option that the caller gives, such as a placement, replaces one of these
            given = {**more, **self.options, **options, **self.given(by_kind)}
            return (self.call or getattr(spelled, self.name))(**given)

        return call

    def defined(self, **options):
        """The definition of arrays by their kinds."""
        return lambda **by_kind: self.definition(**self.given(by_kind), **self.options, **options)


def of_logits(loss, logits, example=None, per_class=None, *, where=None, weights=None, reduction="none"):
    return of_live_classes(loss, logits, example, per_class, where, weights, reduction)


def of_linear(
    loss,
    features,
    kernel,
    example=None,
    per_class=None,
    *,
    bias=None,
    class_axis=-1,
    where=None,
    weights=None,
    reduction="none",
):
    z = linear_scores(features, kernel, bias, class_axis)
    return of_live_classes(loss, z, example, per_class, where, weights, reduction)


def of_mixture(
    loss,
    z,
    centers,
    example=None,
    per_class=None,
    *,
    log_prior=None,
    precisions=None,
    temperature=1.0,
    where=None,
    weights=None,
    reduction="none",
):
    h = distance_scores(z, centers, log_prior, precisions, temperature)
    return of_live_classes(loss, h, example, per_class, where, weights, reduction)


def of(z, x, centers, values, *, temperature, where=None, weights=None, reduction="none"):
    """The error of a mixture autoencoder whose scores are a function of the user's."""
    row = LOSSES["mixture_autoencoder"]
    return of_live_classes(row, cauchy(temperature, z, centers), x, values, where, weights, reduction)


def call_of(loss, z, x, centers, values, temperature, where=None, **options):
    logits = of_cauchy(temperature, z, centers)
    logits = logits if where is None else logits.where(where)
    return softjax.of(loss, logits, x, values, **options)


ON_LOGITS = "logits where"
LINEAR = "features kernel labels bias where weights class_weights label_smoothing z_loss softcap temperature"
MIXTURE = "z x centers values log_prior temperature where weights"
with_loss = lambda definition, loss: ft.partial(definition, LOSSES[loss])

FUNCTIONS = {
    row.name: row
    for row in [
        Row("softmax", softmax, ON_LOGITS, {"logits": "x"}),
        Row("log_softmax", log_softmax, ON_LOGITS, {"logits": "x"}),
        Row("logsumexp", logsumexp, ON_LOGITS, {"logits": "a"}, options={"axis": -1}),
        Row("entropy", entropy, ON_LOGITS),
        Row("expectation", expectation, "logits payoffs where", {"payoffs": "values"}),
        Row("softmax_cross_entropy", softmax_cross_entropy, "logits soft_labels where", {"soft_labels": "labels"}),
        Row(
            "softmax_cross_entropy_with_integer_labels",
            softmax_cross_entropy_with_integer_labels,
            "logits labels where",
        ),
        Row("multiclass_svm_loss", multiclass_svm_loss, "logits labels margin", {"logits": "scores"}),
        Row("multiclass_hinge_loss", multiclass_hinge_loss, "logits labels margin", {"logits": "scores"}),
        Row(
            "of_logits",
            with_loss(of_logits, "focal"),
            "logits labels where weights",
            {"labels": "example"},
            LOSSES["focal"],
            public=("of",),
        ),
        Row("log_probs", log_probs, "logits labels", {"labels": "ids"}),
        Row("kl_divergence", kl_divergence, "logits payoffs weights", {"logits": "q", "payoffs": "p"}),
        Row("js_divergence", js_divergence, "logits payoffs weights", {"logits": "q", "payoffs": "p"}),
        Row("linear_softmax_cross_entropy", linear_softmax_cross_entropy, LINEAR),
        Row(
            "linear_log_probs",
            linear_log_probs,
            "features kernel labels bias where softcap temperature",
            {"labels": "tokens"},
            public=("linear", "log_probs"),
        ),
        Row(
            "linear_sigmoid_binary_cross_entropy",
            linear_sigmoid_binary_cross_entropy,
            "features kernel label_sets bias where weights softcap temperature",
            {"label_sets": "labels"},
            public=("linear", "sigmoid_binary_cross_entropy"),
        ),
        Row(
            "linear_distillation_loss",
            linear_distillation_loss,
            "features kernel teacher_features teacher_kernel bias where weights softcap temperature",
            public=("linear", "kl_divergence", "js_divergence"),
        ),
        Row(
            "linear_expectation",
            linear_expectation,
            "features kernel values bias where temperature",
            public=("linear", "of"),
        ),
        Row(
            "linear_logsumexp",
            linear_logsumexp,
            "features kernel bias where softcap temperature",
            public=("linear", "logsumexp"),
        ),
        Row(
            "of_linear",
            with_loss(of_linear, "brier"),
            "features kernel labels bias where weights",
            {"labels": "example"},
            LOSSES["brier"],
            public=("linear", "of"),
        ),
        Row(
            "contrastive_loss",
            contrastive_loss,
            "features others temperature weights",
            {"features": "x", "others": "y"},
            apart=False,
        ),
        Row(
            "nt_xent_loss",
            nt_xent_loss,
            "features others temperature weights",
            {"features": "x", "others": "y"},
            apart=False,
        ),
        Row(
            "supervised_contrastive_loss",
            supervised_contrastive_loss,
            "features groups temperature weights",
            {"features": "x", "groups": "labels"},
            apart=False,
        ),
        Row(
            "siglip_loss",
            siglip_loss,
            "features others temperature logit_bias weights",
            {"features": "x", "others": "y"},
            apart=False,
        ),
        Row("mixture_autoencoder_loss", mixture_autoencoder_loss, MIXTURE),
        Row("eol_loss", eol_loss, MIXTURE + " precisions"),
        Row("leop_loss", leop_loss, MIXTURE + " scales", {"scales": "precisions"}),
        Row(
            "gaussian_mixture_nll_loss",
            gaussian_mixture_nll_loss,
            "x values precisions_of_values log_prior where weights",
            {"values": "centers", "precisions_of_values": "precisions"},
        ),
        Row(
            "mixture_expectation",
            mixture_expectation,
            "z centers values log_prior temperature temperatures where",
            {"temperatures": "precisions"},
            public=("distances", "of"),
        ),
        Row(
            "of_mixture",
            with_loss(of_mixture, "entropy"),
            "z centers log_prior temperature where weights",
            loss=LOSSES["entropy"],
            public=("distances", "of"),
        ),
        Row(
            "of",
            of,
            "z x centers values temperature where weights",
            loss=LOSSES["mixture_autoencoder"],
            apart=False,  # `pairwise` needs an axis of examples
            call=call_of,
            public=("pairwise", "of"),
        ),
    ]
}
