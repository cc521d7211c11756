"""The law of logits that are never in memory: every function of them is that of the logits in memory.

Both sides are plain: logits made by JAX's own operations, and functions by their definitions.
"""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softjax
from softjax import Placement

from . import cases

pytestmark = pytest.mark.usefixtures("x64")
B, L, D, K, R = 2, 3, 4, 13, 2
LIVE = np.arange(K) % 5 != 1
PAIRS = (np.arange(B * L * K).reshape(B, L, K) * 7 % 11) > 2
KEPT = np.asarray([[[0, 3, 12, -1], [1, 1, 2, 5], [4, 5, 6, 7]], [[12, 0, -1, -1], [2, 3, 4, 5], [9, 9, 9, 9]]])


def arrays(seed=0):
    r = cases.Random("float64", seed)
    return {
        "x": r.normal(B, L, D),
        "w": r.normal(D, K),
        "bias": r.normal(K),
        "a": r.normal(D, R),
        "b": r.normal(R, K),
        "t": jnp.exp(0.3 * r.normal(B, L)),
        "pairs": r.normal(B, L, K),
        "z": r.normal(B, L, 2),
        "c": r.normal(K, 2),
        "latents": r.normal(B, L, D),
        "centers": r.normal(K, D),
        "precisions": jnp.exp(r.normal(K, D)),
        "scales": jnp.exp(r.normal(D)),
        "s": jnp.exp(r.normal()),
    }


def squared(z, c, t=1.0):
    return -(t * (z[..., None, :] - c) ** 2).sum(-1)


masked = lambda mask, z: jnp.where(mask, z, -jnp.inf)
cauchy = lambda s: lambda x, c: -jnp.log1p(((x - c) ** 2).sum() / s)
of_kept = lambda z: masked((KEPT[..., None] == np.arange(K)).any(-2), z)
by_ids = lambda n, k: (n + k) % 3 != 1
of_ids = by_ids(np.arange(B * L).reshape(B, L, 1), np.arange(K))
# (logits that are never in memory, logits in memory), of arrays by their names
LOGITS = {
    "linear": (lambda x, w: softjax.linear(x, w), lambda x, w: x @ w),
    "linear with a bias": (lambda x, w, bias: softjax.linear(x, w, bias), lambda x, w, bias: x @ w + bias),
    "embedding": (lambda x, w: softjax.linear(x, w.T, class_axis=0), lambda x, w: x @ w),
    "distances in 2 dimensions": (lambda z, c: softjax.distances(z, c), squared),
    "distances in 4 dimensions": (lambda latents, centers: softjax.distances(latents, centers), squared),
    "distances with precisions": (
        lambda latents, centers, precisions: softjax.distances(latents, centers, precisions=precisions),
        squared,
    ),
    "distances with scales": (lambda z, c, s: softjax.distances(z, c, precisions=jnp.stack([s, 2 * s])), None),
    "a function of pairs": (
        lambda z, c, s: softjax.pairwise(cauchy(s), z.reshape(-1, 2), c).reshape(B, L, K),
        lambda z, c, s: -jnp.log1p(((z[..., None, :] - c) ** 2).sum(-1) / s),
    ),
    "an array": (lambda pairs: softjax.linear(pairs[..., :0], jnp.zeros((0, K))) + pairs, lambda pairs: pairs),
    "a LoRA head": (
        lambda x, w, a, b, s: softjax.linear(x, w) + s * softjax.linear(x @ a, b),
        lambda x, w, a, b, s: x @ w + s * (x @ a @ b),
    ),
    "softcap, then temperature of a token": (
        lambda x, w, bias, t: 3 * ((softjax.linear(x, w) + bias) / 3).map(jnp.tanh) / t[..., None],
        lambda x, w, bias, t: 3 * jnp.tanh((x @ w + bias) / 3) / t[..., None],
    ),
    "a function that closes over arrays": (
        lambda x, w, s, t: softjax.linear(x, w).map(lambda z, t: jnp.sin(z * s) / t, t[..., None]),
        lambda x, w, s, t: jnp.sin(x @ w * s) / t[..., None],
    ),
    "pairs are added and multiplied": (
        lambda x, w, pairs: (softjax.linear(x, w) + pairs) * pairs,
        lambda x, w, pairs: (x @ w + pairs) * pairs,
    ),
    "a number less logits, over logits": (
        lambda x, w, latents, centers: (1 - softjax.linear(x, w)) / (2 - softjax.distances(latents, centers)),
        lambda x, w, latents, centers: (1 - x @ w) / (2 - squared(latents, centers)),
    ),
    "a mixture with a prior and a temperature": (
        lambda latents, centers, bias, t: softjax.distances(latents, centers) / t[..., None] + bias,
        lambda latents, centers, bias, t: squared(latents, centers) / t[..., None] + bias,
    ),
    "distances less distances": (
        lambda latents, centers, z, c: 2 * softjax.distances(latents, centers) - softjax.distances(z, c),
        lambda latents, centers, z, c: 2 * squared(latents, centers) - squared(z, c),
    ),
    "distances, capped": (
        lambda latents, centers, s: softjax.distances(latents, centers).map(lambda h: s * jnp.tanh(h / s)),
        lambda latents, centers, s: s * jnp.tanh(squared(latents, centers) / s),
    ),
    "distances times classes": (
        lambda z, c, bias: softjax.distances(z, c) * bias,
        lambda z, c, bias: squared(z, c) * bias,
    ),
    "a mask of classes": (lambda x, w: softjax.linear(x, w).where(LIVE), lambda x, w: masked(LIVE, x @ w)),
    "a mask of pairs, and an operation": (
        lambda x, w, bias: -1 * softjax.linear(x, w, bias).where(PAIRS),
        lambda x, w, bias: masked(PAIRS, -(x @ w + bias)),
    ),
    "a mask by ids, of distances": (
        lambda latents, centers: softjax.distances(latents, centers).where(by_ids),
        lambda latents, centers: masked(of_ids, squared(latents, centers)),
    ),
    "integers and booleans": (
        lambda x, w: (softjax.linear(x, w) * 2 - np.arange(K)) * (np.arange(K) > 3),
        lambda x, w: (x @ w * 2 - np.arange(K, dtype=float)) * (np.arange(K) > 3).astype(float),
    ),
    "kept classes": (lambda x, w: softjax.linear(x, w).where_ids(KEPT), lambda x, w: of_kept(x @ w)),
    "kept classes of one operand": (
        lambda latents, centers, x, w: softjax.distances(latents, centers).where_ids(KEPT) * softjax.linear(x, w),
        lambda latents, centers, x, w: of_kept(squared(latents, centers) * (x @ w)),
    ),
    "indexed": (
        lambda x, w, t: (softjax.linear(x, w) / t[..., None])[:, ::-1],
        lambda x, w, t: (x @ w / t[..., None])[:, ::-1],
    ),
    "reshaped": (
        lambda latents, centers: softjax.distances(latents, centers).reshape(B * L, K).reshape(B, L, K),
        squared,
    ),
}
LOGITS["distances with scales"] = (
    LOGITS["distances with scales"][0],
    lambda z, c, s: squared(z, c, jnp.stack([s, 2 * s])),
)
LABELS = np.asarray([[0, 3, 5], [12, 2, 9]])  # none is masked for its example in any of the above, but by `by_ids`
TOKENS = np.stack([LABELS, np.full((B, L), 7)], -1)


def log_softmax(z):
    """With -inf and no gradient for a masked class."""
    live = z > -jnp.inf
    shifted = jnp.where(live, z - jax.lax.stop_gradient(z.max(-1, keepdims=True)), 0)
    a = jnp.log(jnp.where(live, jnp.exp(shifted), 0).sum(-1, keepdims=True))
    return jnp.where(live, shifted - a, -jnp.inf)


def entropy(z):
    log_p = log_softmax(z)
    known = jnp.where(log_p > -jnp.inf, log_p, 0)
    return -jnp.where(log_p > -jnp.inf, jnp.exp(known) * known, 0).sum(-1)


def at(a, ids):
    return jnp.take_along_axis(a, ids, -1)


def finite(a):
    """-inf of masked classes as a number, as nothing is compared with it."""
    return jnp.where(jnp.isneginf(a), -1e3, a)


def of_label(z):
    return -finite(at(log_softmax(z), LABELS[..., None])[..., 0])


def binary(z):
    """inf where a label is masked; other masked classes cost nothing."""
    live, y = z > -jnp.inf, LABELS[..., None] == np.arange(K)
    costs = jnp.where(live, optax.sigmoid_binary_cross_entropy(jnp.where(live, z, 0), y.astype(float)), 0)
    return jnp.where((y & ~live).any(-1), jnp.inf, costs.sum(-1))


VALUES = np.sin(np.arange(K))
ce = softjax.softmax_cross_entropy_with_integer_labels
# (function of logits that are never in memory, its definition on logits in memory)
FUNCTIONS = {
    "logsumexp": (lambda z: softjax.logsumexp(z, axis=-1), lambda z: jax.nn.logsumexp(z, -1)),
    "logsumexp of all": (softjax.logsumexp, jax.nn.logsumexp),
    "entropy": (softjax.entropy, entropy),
    "expectation": (lambda z: softjax.expectation(z, VALUES), lambda z: jnp.exp(log_softmax(z)) @ VALUES),
    "cross entropy": (lambda z: -finite(-ce(z, LABELS)), of_label),
    "mean of cross entropies": (lambda z: ce(z, LABELS, reduction="mean", ignore_index=3), None),
    "log-probabilities": (lambda z: finite(softjax.log_probs(z, TOKENS)), lambda z: finite(at(log_softmax(z), TOKENS))),
    "binary cross entropy": (
        lambda z: finite(-softjax.sigmoid_binary_cross_entropy(z, LABELS[..., None])),
        lambda z: finite(-binary(z)),
    ),
    "taken": (lambda z: finite(z.take(TOKENS)), lambda z: finite(at(z, TOKENS))),
    "dense": (lambda z: finite(z.dense()), finite),
}
FUNCTIONS["mean of cross entropies"] = (
    FUNCTIONS["mean of cross entropies"][0],
    lambda z: jnp.where(LABELS == 3, 0, of_label(z)).sum() / float((LABELS != 3).sum()),
)
SEVERAL = ("logsumexp", "entropy", "cross entropy")
FUNCTIONS["several"] = tuple(
    lambda z, side=side: jnp.stack([FUNCTIONS[name][side](z) for name in SEVERAL]) for side in (0, 1)
)
# The cost of a label that is masked is inf, and so is the mean.
MASKS_A_LABEL = {name for name in LOGITS if "mask" in name or "kept" in name}
BLOCKS = {"all": None, "blocks": 5, "forward": Placement(4, 5, "forward"), "tiles": Placement(4, 5)}


def modes(function, given, ct, along, more):
    """Value, both modes, and a second derivative."""
    value, back = jax.vjp(function, given)
    pull = lambda given: jax.vjp(function, given)[1](ct)[0]
    return value, back(ct)[0], jax.jvp(function, (given,), (along,))[1], jax.jvp(pull, (given,), (more,))[1]


def both_sides(logits, function, block):
    made, plain = LOGITS[logits]
    ours, defined = FUNCTIONS[function]
    names = made.__code__.co_varnames[: made.__code__.co_argcount]
    given = {name: a for name, a in arrays().items() if name in names}
    of_block = lambda given: dataclasses.replace(made(**given), block_size=BLOCKS[block])
    left, right = (lambda given: ours(of_block(given))), (lambda given: defined(plain(*(given[n] for n in names))))
    r = cases.Random("float64", 5)
    out = jax.eval_shape(right, given)
    ct, along, more = r.normal(*out.shape), *(jax.tree.map(lambda a: r.normal(*a.shape), given) for _ in "uv")
    compiled = lambda f: jax.jit(ft.partial(modes, f))(given, ct, along, more)
    return compiled(left), compiled(right)


def all_or_one(logits):
    """Each logits with one placement in the fast tests, and with the others in the slow ones."""
    for i, name in enumerate(logits):
        for j, block in enumerate(BLOCKS):
            yield pytest.param(name, block, marks=() if i % len(BLOCKS) == j else pytest.mark.slow)


@pytest.mark.parametrize(("logits", "block"), list(all_or_one(LOGITS)))
def test_every_logits_in_every_placement(logits, block):
    cases.assert_close(*both_sides(logits, "several", block))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "logits", ["a LoRA head", "a mixture with a prior and a temperature", "kept classes of one operand"]
)
def test_every_function(logits, function):
    if function == "mean of cross entropies" and logits in MASKS_A_LABEL:
        pytest.skip("the mean is inf")
    cases.assert_close(*both_sides(logits, function, "blocks"))
