"""The public functions by their definitions, with values and gradients in 50 digits.

Numbers have 100 digits, of which 1 - p of a confident row may lose half. They record the operations that made them,
so the gradients follow from the definitions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np

CONTEXT = mpmath.MPContext()  # its number of digits does not change mpmath's
CONTEXT.dps = 100
_exact = np.vectorize(CONTEXT.mpf, otypes=[object])
_exp, _log = np.frompyfunc(CONTEXT.exp, 1, 1), np.frompyfunc(CONTEXT.log, 1, 1)


# ---------------------------------------------------------------------------------------------
# Numbers and their gradients


class Numbers:
    """An array, and its sources: the arrays it was computed from, each with its pullback of cotangents."""

    __array_ufunc__ = None  # numpy then uses the methods below for + - * / @

    def __init__(self, value: Any, *sources: tuple[Numbers, Callable]):
        value = np.asarray(value)
        self.value = value if value.dtype == object else _exact(value.astype(float))
        self.shape, self.sources = value.shape, sources

    def __neg__(self):
        return self * -1

    def __add__(self, other):
        other = _numbers(other)
        return Numbers(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __sub__(self, other):
        other = _numbers(other)
        return Numbers(self.value - other.value, (self, lambda g: g), (other, lambda g: -g))

    def __mul__(self, other):
        other = _numbers(other)
        return Numbers(self.value * other.value, (self, lambda g: g * other.value), (other, lambda g: g * self.value))

    def __truediv__(self, other):
        other = _numbers(other)
        ratio = self.value / other.value
        return Numbers(ratio, (self, lambda g: g / other.value), (other, lambda g: -g * ratio / other.value))

    def __matmul__(self, other):
        other = _numbers(other)
        return Numbers(
            self.value @ other.value, (self, lambda g: g @ other.value.T), (other, lambda g: self.value.T @ g)
        )

    def __radd__(self, other):
        return self + other

    def __rsub__(self, other):
        return -self + other

    def __rmul__(self, other):
        return self * other

    def __getitem__(self, index):
        def back(g):
            whole = _exact(np.zeros(self.shape))
            np.add.at(whole, index, g)
            return whole

        return Numbers(self.value[index], (self, back))

    @property
    def T(self):  # noqa: N802
        return Numbers(self.value.T, (self, lambda g: g.T))

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Numbers:
        back = lambda g: np.broadcast_to(g if axis is None or keepdims else np.expand_dims(g, axis), self.shape)
        return Numbers(self.value.sum(axis, keepdims=keepdims), (self, back))


def _numbers(x):
    return x if isinstance(x, Numbers) else Numbers(x)


def exp(x: Numbers) -> Numbers:
    y = _exp(x.value)
    return Numbers(y, (x, lambda g: g * y))


def log(x: Numbers) -> Numbers:
    return Numbers(_log(x.value), (x, lambda g: g / x.value))


def square(x: Numbers) -> Numbers:
    return Numbers(x.value * x.value, (x, lambda g: 2 * g * x.value))


def largest(x: Numbers) -> Numbers:
    """The maximum over the last axis. Tied classes share its gradient."""
    top = x.value.max(-1, keepdims=True)
    attained = _exact((x.value == top).astype(float))
    share = attained / attained.sum(-1, keepdims=True)
    return Numbers(top[..., 0], (x, lambda g: g[..., None] * share))


def positive(x: Numbers) -> Numbers:
    """max(0, x), with the derivative 1/2 at 0."""
    slope = _exact(((x.value > 0) + (x.value >= 0).astype(float)) / 2)
    return Numbers(x.value * slope, (x, lambda g: g * slope))


def gradients(output: Numbers, cotangent: Any, inputs: Sequence[Numbers]) -> list[np.ndarray]:
    """The cotangents of the inputs, from the cotangent of the output."""
    depends: dict[Numbers, bool] = {}  # on an input; every array comes after its sources

    def visit(x):
        if x not in depends:
            sources = [visit(source) for source, _ in x.sources]
            depends[x] = x in inputs or any(sources)
        return depends[x]

    visit(output)
    found = {output: _numbers(cotangent).value}
    for x in reversed(depends):
        for source, back in x.sources:
            if depends[source]:
                found[source] = found.get(source, 0) + _unbroadcast(back(found[x]), source.shape)
    return [np.asarray(found[x] if x in found else _exact(np.zeros(x.shape)), object) for x in inputs]


def _unbroadcast(g, shape):
    g = np.asarray(g, object)
    g = np.asarray(g.sum(tuple(range(g.ndim - len(shape)))), object)
    return g.sum(tuple(i for i, n in enumerate(shape) if n == 1 != g.shape[i]), keepdims=True)


def along(
    f: Callable[..., Sequence[np.ndarray]], inputs: Sequence[Any], direction: Sequence[Any], h: float = 1e-25
) -> list[np.ndarray]:
    """The derivative of f along a direction by central differences, accurate to 50 of the 100 digits."""
    steps = [_exact(v) * CONTEXT.mpf(h) for v in direction]
    values = [_numbers(x).value for x in inputs]
    ahead, behind = (f(*(Numbers(x + sign * dx) for x, dx in zip(values, steps, strict=True))) for sign in (1, -1))
    return [np.asarray((a - b) / CONTEXT.mpf(2 * h), object) for a, b in zip(ahead, behind, strict=True)]


# ---------------------------------------------------------------------------------------------
# Definitions, with the names and arguments of the public functions


def logsumexp(a):
    top = a.value.max(-1, keepdims=True)
    return log(exp(a - top).sum(-1)) + top[..., 0]


def softcap(logits, *, cap):
    u = exp(logits * (-2 / cap))
    return (u * -1 + 1) / (u + 1) * cap


def weighted_logsumexp(logits, *, factors):
    top = logits.value.max(-1, keepdims=True)
    return log((exp(logits - top) * factors).sum(-1)) + top[..., 0]


def log_softmax(x):
    top = x.value.max(-1, keepdims=True)
    shifted = x - top
    return shifted - log(exp(shifted).sum(-1, keepdims=True))


def softmax(x):
    e = exp(x - x.value.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(logits):
    log_p = log_softmax(logits)
    return -(exp(log_p) * log_p).sum(-1)


def expectation(logits, values):
    return (softmax(logits) * values).sum(-1)


def softmax_cross_entropy(logits, labels):
    return -(labels * log_softmax(logits)).sum(-1)


def softmax_cross_entropy_with_integer_labels(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def multiclass_svm_loss(scores, labels):
    return positive(_over_the_label(scores, labels)).sum(-1)


def multiclass_hinge_loss(scores, labels):
    return largest(_over_the_label(scores, labels))


def _over_the_label(scores, labels):
    return (scores - scores[np.arange(len(labels)), labels, None] + 1) * (1 - one_hot(labels, scores.shape[-1]))


def one_hot(labels, classes):
    return (labels[..., None] == np.arange(classes)).astype(float)


def focal(logits, example):
    loss = softmax_cross_entropy_with_integer_labels(logits, example)
    return square(1 - exp(-loss)) * loss


def brier(logits, example):
    return square(softmax(logits) - one_hot(example, logits.shape[-1])).sum(-1)


def smoothed_cross_entropy(logits, labels, label_smoothing=0, z_loss=0, class_weights=1):
    """Of labels [N], or of a pair of ids and probabilities [N, T]; the weights of the classes also weigh the prior."""
    k = logits.shape[1]
    if isinstance(labels, tuple):
        ids, probabilities = labels
        y = (one_hot(ids, k) * probabilities[..., None]).sum(1)
    else:
        y = one_hot(labels, k)
    y = (y * (1 - label_smoothing) + label_smoothing / k) * class_weights
    return softmax_cross_entropy(logits, y) + z_loss * square(logsumexp(logits))


def tanh(x):
    e = exp(x * 2)
    return (e - 1) / (e + 1)


def reduced(loss, weights, reduction):
    if reduction == "none":
        return weights * loss
    return (weights * loss).sum() / _numbers(weights * np.ones(loss.shape)).sum()


def linear(features, kernel, bias=0, where=..., softcap=None, temperature=1):
    z = features @ kernel + bias
    return ((z if softcap is None else softcap * tanh(z / softcap)) / temperature)[:, where]


def of_linear(
    function, features, kernel, bias=0, where=..., softcap=None, temperature=1, weights=1, reduction="none", **given
):
    """A function of the logits of a linear layer."""
    logits = linear(features, kernel, bias, where, softcap, temperature)
    return reduced(function(logits, **given), weights, reduction)


def linear_softmax_cross_entropy(features, kernel, labels, **options):
    return of_linear(smoothed_cross_entropy, features, kernel, labels=labels, **options)


def vector_expectation(logits, values):
    return softmax(logits) @ values


def log_probs(logits, ids):
    rows = np.arange(len(ids))
    return log_softmax(logits)[rows if ids.ndim == 1 else rows[:, None], ids]


def top_k(logits):
    """The three largest log-probabilities."""
    log_p = log_softmax(logits)
    order = np.argsort(-log_p.value, -1, kind="stable")[:, :3]
    return log_p[np.arange(len(order))[:, None], order]


def sigmoid_binary_cross_entropy(logits, labels):
    """Of labels [N, T], or of the targets [N, K] of all classes."""
    of_ids = isinstance(labels, np.ndarray) and labels.dtype.kind == "i"
    return _binary_costs(logits, one_hot(labels, logits.shape[1]).sum(1) if of_ids else labels)


def _binary_costs(z, y):
    return (y * log(exp(-z) + 1) + (1 - y) * log(exp(z) + 1)).sum(-1)


def kl_divergence(p, q):
    """Of logits p, or of a pair of ids and probabilities [N, T], from logits q."""
    log_q = log_softmax(q)
    if isinstance(p, tuple):
        ids, probabilities = p
        return (probabilities * (log(probabilities) - log_q[np.arange(len(ids))[:, None], ids])).sum(-1)
    return (softmax(p) * (log_softmax(p) - log_q)).sum(-1)


def js_divergence(p, q):
    middle = log((softmax(p) + softmax(q)) / 2)
    of_each = [softmax(z) * (log_softmax(z) - middle) for z in (p, q)]
    return ((of_each[0] + of_each[1]) / 2).sum(-1)


def contrastive_loss(x, y, temperature, weights, reduction="none"):
    one_way = lambda x, y: softmax_cross_entropy_with_integer_labels(x @ y.T / temperature, np.arange(x.shape[0]))
    return reduced((one_way(x, y) + one_way(y, x)) / 2, weights, reduction)


def nt_xent_loss(x, y, temperature, weights, reduction="none"):
    def one_way(x, y):
        across, within = x @ y.T / temperature, x @ x.T / temperature
        total = exp(across).sum(-1) + (exp(within) * (1 - np.eye(x.shape[0]))).sum(-1)
        return log(total) - across[np.arange(x.shape[0]), np.arange(x.shape[0])]

    return reduced((one_way(x, y) + one_way(y, x)) / 2, weights, reduction)


def supervised_contrastive_loss(x, labels, temperature, weights, reduction="none"):
    n = len(labels)
    others = np.array([[k for k in range(n) if k != i] for i in range(n)])
    log_p = log_softmax((x @ x.T / temperature)[np.arange(n)[:, None], others])
    share = (labels[others] == labels[:, None]).astype(float)
    share /= np.maximum(share.sum(-1, keepdims=True), 1)
    return reduced(-(log_p * share).sum(-1), weights, reduction)


def siglip_loss(x, y, temperature, logit_bias, weights, reduction="none"):
    z = x @ y.T / temperature + logit_bias
    return reduced(_binary_costs(z, np.eye(x.shape[0])), weights, reduction)


def squared_distances(a, b, precisions=1):
    return (square(a[:, None] - b) * precisions).sum(-1)


def distances(z, centers, log_prior=None, temperature=1, where=..., precisions=None):
    """Logits of a mixture."""
    h = -squared_distances(z, centers[where], 1 if precisions is None else precisions[where]) / temperature
    return h if log_prior is None else h + log_prior[where]


def of_distances(function, z, centers, log_prior=None, temperature=1, where=..., weights=1, reduction="none",
                 precisions=None, **given):  # fmt: skip
    """A function of the logits of a mixture."""
    logits = distances(z, centers, log_prior, temperature, where, precisions)
    return reduced(function(logits, **given), weights, reduction)


def soft_quantize(z, centers, values, log_prior=None, temperature=1, where=..., precisions=None):
    return softmax(distances(z, centers, log_prior, temperature, where, precisions)) @ values[where]


def mixture_autoencoder_loss(
    z, x, centers, values, log_prior=None, temperature=1, where=..., weights=1, reduction="none", precisions=None
):
    decoded = soft_quantize(z, centers, values, log_prior, temperature, where, precisions)
    return reduced(square(x - decoded).sum(-1), weights, reduction)


def eol_loss(
    z, x, centers, values, log_prior=None, temperature=1, where=..., weights=1, reduction="none", precisions=None
):
    p = softmax(distances(z, centers, log_prior, temperature, where, precisions))
    return reduced((p * squared_distances(x, values[where])).sum(-1), weights, reduction)


def of_kernel(examples, classes, scale, reduction="none"):
    h = log(squared_distances(examples, classes) / square(scale) + 1) * -1  # a Cauchy kernel
    return reduced(logsumexp(h), 1, reduction)


def leop_loss(
    z, x, centers, values, log_prior=None, temperature=1, where=..., weights=1, reduction="none", precisions=None
):
    h = distances(z, centers, log_prior, temperature, where, precisions)
    loss = logsumexp(h) - logsumexp(h - squared_distances(x, values[where]))
    return reduced(loss, weights, reduction)


def gaussian_mixture_nll_loss(x, centers, precisions, log_prior=None, where=..., weights=1, reduction="none"):
    """-log sum_k p_k N(x; c_k, 1 / t_k)."""
    t = precisions[where]
    prior = Numbers(np.zeros(t.shape[0])) if log_prior is None else log_prior[where]
    volumes = (log(t) - log(TWO_PI)).sum(-1)
    joint = (volumes - squared_distances(x, centers[where], t)) / 2 + prior
    return reduced(logsumexp(prior) - logsumexp(joint), weights, reduction)


TWO_PI = Numbers(np.array([2 * CONTEXT.pi], dtype=object))
