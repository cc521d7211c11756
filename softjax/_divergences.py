"""Divergences between the softmaxes of two logits, such as a teacher and a student, or a policy and its reference."""

from __future__ import annotations

from typing import Any

from jax import Array
from jax.typing import ArrayLike

from . import losses
from ._labelled import label_pair
from ._of import as_each, counted, evaluate
from .arguments import checks
from .arguments.signatures import readable
from .compute.reductions import Examples
from .logits import LogitsLike, as_logits
from .logits.gathered import listed
from .losses import divergences
from .losses.loss import Loss
from .parallel.explicit import sharded_like


@readable
@sharded_like("q")
def kl_divergence(
    p: LogitsLike | tuple[ArrayLike, ArrayLike],
    q: LogitsLike,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Kullback-Leibler divergence between the softmaxes of two logits, in memory or not.

    KL(p || q) = sum_k p_k (log p_k - log q_k). A teacher's p and a student's q give the loss of distillation; a
    policy's p and its reference's q give the penalty of reinforcement learning. Both have gradients: a teacher is a
    constant by `jax.lax.stop_gradient`, of `softjax.Logits` too. Some authors multiply the divergence of logits over
    a temperature by its square (Hinton et al., 2015); it is not done here.

    The absolute error is eps |z|; of a pair, the error is relative to the divergence.

    Args:
        p: logits [..., K], an array or `softjax.Logits`. Or a pair (indices [..., T], probabilities [..., T]) with
            different indices in [0, K), of which all other classes have probability 0.
        q: logits [..., K], likewise.
        weights: [...], a factor of the divergence of each example; None for 1.
        reduction: "none" for the divergence of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.

    Returns:
        KL(p || q) in nats [...], or a scalar, in at least float32. inf where q masks a class that p has; 0 where p
        masks all.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> teacher = jnp.log(jnp.array([[0.5, 0.5, 0.0, 0.0]]))
        >>> student = softjax.linear(jnp.ones((1, 2)), jnp.zeros((2, 4)))
        >>> print(softjax.kl_divergence(teacher, student))  # log 2
        [0.6931]

    Source: Kullback and Leibler, 1951; Hinton et al., 2015 (distillation); CATSMILE-1012 (softargmax), expectations
    under p.
    """
    if isinstance(p, tuple):
        return _of_pair(divergences.kl_divergence_of_pair, p, q, weights, reduction)
    both = _both(p, q)
    loss = losses.kl_divergence if both[0].may_mask else divergences.kl_divergence_of_all
    return evaluate(loss, both, None, None, weights, reduction)


@readable
@sharded_like("q")
def js_divergence(
    p: LogitsLike | tuple[ArrayLike, ArrayLike],
    q: LogitsLike,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "none",
) -> Array:
    """Jensen-Shannon divergence between the softmaxes of two logits, in memory or not.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2, with m = (p + q) / 2: at most log 2, also where one masks a class that the
    other has. Its error is relative to the divergence. It takes two passes over the classes; of a pair, one.

    Args:
        p: logits [..., K], an array or `softjax.Logits`. Or a pair (indices [..., T], probabilities [..., T]) with
            different indices in [0, K), of which all other classes have probability 0.
        q: logits [..., K], likewise.
        weights: [...], a factor of the divergence of each example; None for 1.
        reduction: "none" for the divergence of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is 0.

    Returns:
        JS(p, q) in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> print(softjax.js_divergence(jnp.array([[0.0, -jnp.inf]]), jnp.array([[-jnp.inf, 0.0]])))  # log 2
        [0.6931]

    Source: Lin, Divergence measures based on the Shannon entropy (1991).
    """
    if isinstance(p, tuple):
        return _of_pair(divergences.js_divergence_of_pair, p, q, weights, reduction)
    both = _both(p, q)
    rows = checks.example_weights(weights, both[0].shape[:-1], both[0].dtype)
    examples = Examples(sound=counted(rows, both))
    ratio = evaluate(divergences.log_ratio, both, examples=examples).reshape(-1)
    return evaluate(divergences.js_divergence, both, ratio, None, weights, reduction)


def _both(p: Any, q: Any) -> Any:
    """Both logits, of the classes that they list if these are few and the same."""
    shapes = as_logits("p", p).shape, as_logits("q", q).shape
    if shapes[0] != shapes[1]:
        raise ValueError(f"`p` must have the shape of `q`, {shapes[1]}, got {shapes[0]}.")
    both: Any = as_each("p", (p, q))
    lists = [[mask.data for mask in z.masks] for z in both]
    if len(lists[0]) == len(lists[1]) == 1 and lists[0][0] is lists[1][0]:
        few = [found[0] for z in both if (found := listed(z)) is not None]
        if len(few) == 2:
            return tuple(few)
    return both


def _of_pair(loss: Loss, pair: tuple, q: Any, weights: Any, reduction: str) -> Array:
    """The divergence from a p with probability 0 for most classes, in one pass."""
    q = as_logits("q", q)
    pair, known = label_pair(pair, q.shape[:-1], q.count, name="p")
    return evaluate(loss, q, pair, None, weights, reduction, examples=Examples(known=known))
