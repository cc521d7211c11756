"""The law of logits that are never in memory: every function of them is that of the logits in memory.

Both sides are plain: logits made by JAX's own operations, and functions by their definitions.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softjax
from softjax import Placement, losses

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
        lambda x, w, bias, t: softjax.softcap(softjax.linear(x, w) + bias, 3.0) / t[..., None],
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


def relu(x):
    return jnp.maximum(x, 0)


def over(z):
    """z_k - z_y + 1 for all other classes, which masked ones are far below."""
    is_label = LABELS[..., None] == np.arange(K)
    return jnp.where(is_label | jnp.isneginf(z), -1.0, finite(z) - finite(at(z, LABELS[..., None])) + 1)


def largest(x):
    """The maximum, of which there is one: that of a score that is computed twice may be neither."""
    return at(x, jax.lax.stop_gradient(x).argmax(-1, keepdims=True))[..., 0]


def divergence(p, q):
    """KL(p || q), inf where q masks a class that p has."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    has = log_p > -jnp.inf
    log_p, log_q = jnp.where(has, log_p, 0), jnp.where(has & (log_q > -jnp.inf), log_q, 0)
    total = jnp.where(has, jnp.exp(log_p) * (log_p - log_q), 0).sum(-1)
    return jnp.where((has & jnp.isneginf(q)).any(-1), jnp.inf, total)


def jensen_shannon(z):
    log_p, log_q = log_softmax(z), log_softmax(jnp.asarray(TEACHER))
    has = log_p > -jnp.inf
    log_p = jnp.where(has, log_p, 0)
    p, q = jnp.where(has, jnp.exp(log_p), 0), jnp.exp(log_q)
    m = jnp.log((p + q) / 2)
    return ((p * (log_p - m)).sum(-1) + (q * (log_q - m)).sum(-1)) / 2


VALUES = np.sin(np.arange(K))
TEACHER = np.cos(np.arange(B * L * K)).reshape(B, L, K)
SOFT = np.where((np.arange(K) == LABELS[..., None]), 0.7, 0.0)
ce = softjax.softmax_cross_entropy_with_integer_labels
# (function of logits that are never in memory, its definition on logits in memory)
FUNCTIONS = {
    "logsumexp": (lambda z: softjax.logsumexp(z, axis=-1), lambda z: jax.nn.logsumexp(z, -1)),
    "logsumexp of all": (softjax.logsumexp, jax.nn.logsumexp),
    "entropy": (softjax.entropy, entropy),
    "expectation": (lambda z: softjax.expectation(z, VALUES), lambda z: jnp.exp(log_softmax(z)) @ VALUES),
    "cross entropy": (lambda z: -finite(-ce(z, LABELS)), of_label),
    "log-probabilities": (lambda z: finite(softjax.log_probs(z, TOKENS)), lambda z: finite(at(log_softmax(z), TOKENS))),
    "mean of cross entropies": (lambda z: ce(z, LABELS, reduction="mean", ignore_index=3), None),
    "binary cross entropy": (
        lambda z: finite(-softjax.sigmoid_binary_cross_entropy(z, LABELS[..., None])),
        lambda z: finite(-binary(z)),
    ),
    "soft labels": (
        lambda z: finite(-softjax.softmax_cross_entropy(z, SOFT)),
        lambda z: finite((SOFT * jnp.where(SOFT > 0, log_softmax(z), 0)).sum(-1)),
    ),
    "hinge": (lambda z: softjax.multiclass_hinge_loss(z, LABELS), lambda z: relu(largest(over(z)))),
    "sum of hinges": (lambda z: softjax.multiclass_svm_loss(z, LABELS), lambda z: relu(over(z)).sum(-1)),
    "divergence from an array": (
        lambda z: softjax.kl_divergence(z, jnp.asarray(TEACHER)),
        lambda z: divergence(z, jnp.asarray(TEACHER)),
    ),
    "divergence of an array": (
        lambda z: finite(-softjax.kl_divergence(masked(np.isin(np.arange(K), LABELS), TEACHER), z)),
        lambda z: finite(-divergence(masked(np.isin(np.arange(K), LABELS), TEACHER), z)),
    ),
    "Jensen-Shannon": (lambda z: softjax.js_divergence(z, jnp.asarray(TEACHER)), lambda z: jensen_shannon(z)),
    "expectation of pairs": (
        lambda z: softjax.expectation(z, jnp.asarray(TEACHER)),
        lambda z: (jnp.exp(log_softmax(z)) * TEACHER).sum(-1),
    ),
    "losses from one pass": (
        lambda z: jnp.stack(softjax.of((losses.cross_entropy, losses.entropy), z, (LABELS, None))),
        lambda z: jnp.stack([of_label(z), entropy(z)]),
    ),
    "a weighted sum of losses": (
        lambda z: softjax.of(
            (losses.cross_entropy, losses.entropy), z, (LABELS, None), reduction="mean", loss_weights=(1.0, -0.3)
        )[0],
        lambda z: (of_label(z) - 0.3 * entropy(z)).mean(),
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
INFINITE = {
    *("mean of cross entropies", "hinge", "sum of hinges", "losses from one pass", "a weighted sum of losses"),
}
BLOCKS = {"all": None, "blocks": 5, "forward": Placement(4, 5, "forward"), "tiles": Placement(4, 5)}


def both_sides(logits, function, block, mesh=None):
    made, plain = LOGITS[logits]
    ours, defined = FUNCTIONS[function]
    names = made.__code__.co_varnames[: made.__code__.co_argcount]
    given = {name: a for name, a in arrays().items() if name in names}
    in_blocks = lambda given: dataclasses.replace(made(**given), block_size=BLOCKS[block])
    over_mesh = lambda given: softjax.shard(in_blocks(given), mesh, examples="data", classes="classes")
    of_block = in_blocks if mesh is None else over_mesh
    left, right = (lambda given: ours(of_block(given))), (lambda given: defined(plain(*(given[n] for n in names))))
    r = cases.Random("float64", 5)
    ct, along = r.normal(*jax.eval_shape(right, given).shape), jax.tree.map(lambda a: r.normal(*a.shape), given)
    moving, fixed = cases.parted((given,))
    return tuple(cases.compiled(cases.in_all_modes(f))(moving, fixed, ct, (along,)) for f in (left, right))


# In the fast tests each logits has one placement; loops, and loops in loops, take the longest to compile.
IN_TILES = {
    "embedding": "forward",
    "a function of pairs": "tiles",
    "a mask of classes": "forward",
    "a mask of pairs, and an operation": "tiles",
}


def all_or_one(logits):
    """Each logits with one placement in the fast tests, and with the others in the slow ones."""
    for i, name in enumerate(logits):
        fast = IN_TILES.get(name, ("blocks", "all", "all")[i % 3])
        for block in BLOCKS:
            yield pytest.param(name, block, marks=() if block == fast else pytest.mark.slow)


@pytest.mark.parametrize(("logits", "block"), list(all_or_one(LOGITS)))
def test_every_logits_in_every_placement(logits, block):
    cases.assert_close(*both_sides(logits, "several", block))


@pytest.mark.one_case_in(13)
@pytest.mark.parametrize("logits", LOGITS)
def test_every_logits_over_a_mesh(logits):
    """Two devices have the examples, and four the classes, which they do not divide."""
    cases.assert_close(*both_sides(logits, "several", "blocks", cases.mesh(2, 4)))


@pytest.mark.each_value_once
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "logits", ["a LoRA head", "a mixture with a prior and a temperature", "kept classes of one operand"]
)
def test_every_function(logits, function):
    if function in INFINITE and logits in MASKS_A_LABEL:
        pytest.skip("the loss of a masked label is inf")
    cases.assert_close(*both_sides(logits, function, "blocks"))


OF_TWO = {
    "expectation": (softjax.expectation, lambda z, t: (jnp.exp(log_softmax(z)) * t).sum(-1)),
    "divergence": (softjax.kl_divergence, divergence),
    "divergence of the second": (lambda z, t: softjax.kl_divergence(t, z), lambda z, t: divergence(t, z)),
    "entropy": (lambda z, _: softjax.entropy(z), lambda z, _: entropy(z)),
}


@pytest.mark.parametrize("scale", [1 / 0.7, 1.3])
@pytest.mark.parametrize("name", OF_TWO)
def test_a_factor_that_the_compiler_may_contract_with_a_difference(name, scale, optimised):  # noqa: ARG001
    """A score that is computed twice may be rounded in two ways: the largest is then not the maximum."""
    ours, definition = OF_TWO[name]
    r = cases.Random("float32", 3)
    x, w, teacher = r.normal(B, L, D), r.normal(D, K), jnp.asarray(TEACHER, "float32")
    got = jax.jit(lambda x, w, teacher: ours(softjax.linear(x, w) * scale, teacher))(x, w, teacher)
    want = definition(scale * (x.astype(float) @ w.astype(float)), TEACHER)
    np.testing.assert_allclose(got, want, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("name", ["eol_loss", "leop_loss", "mixture_autoencoder_loss"])
def test_mixtures_at_a_temperature_that_is_no_power_of_2(name, temperature, optimised):  # noqa: ARG001
    r = cases.Random("float32", 4)
    given = z, x, c, v = r.normal(64, 4), r.normal(64, 3), r.normal(20, 4), r.normal(20, 3)
    got = getattr(softjax, name)(*given, temperature=temperature)
    z, x, c, v = (np.asarray(a, float) for a in (z, x, c, v))
    want = getattr(cases.table, name)(z, x, c, v, temperature=temperature)
    np.testing.assert_allclose(got, want, rtol=2e-5)
