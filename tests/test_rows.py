"""A net: every function of logits on rows of every kind, beside its definition in float64.

Value, gradient and a second derivative are compared wherever that of the definition is finite in float32.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses

K = 6
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]
FORMS = {
    "array": lambda z: z,
    "blocks": lambda z: softjax.linear(jnp.zeros((len(z), 1)), jnp.zeros((1, K)), block_size=4) + z,
}


def rows(random):
    """Logits [R, K] of every kind, in float32, by the names of the kinds."""
    normal = lambda scale: random.normal(size=K) * scale
    one = random.integers(K)
    put = lambda value, a: np.where(np.arange(K) == one, value, a)
    kinds = {
        "ordinary": normal(1),
        "wide": normal(30),
        "sure": put(60, normal(1)),
        "very sure": put(1e4, normal(1)),
        "far from 0": normal(1) + 1e4,
        "tied": np.round(normal(1)) + 0.0,  # without -0
        "of two ties": put(3, np.where(np.arange(K) == (one + 1) % K, 3, normal(1))),
        "zeros": np.zeros(K),
        "subnormal": normal(1e-40),
        "huge": normal(1e30),
        "the largest": put(1.6e38, np.full(K, -1.6e38)),
        "NaN": put(np.nan, normal(1)),
        "+inf": put(np.inf, normal(1)),
        "-inf": put(-np.inf, normal(1)),
        "one class": put(1.5, np.full(K, -np.inf)),
        "no class": np.full(K, -np.inf),
    }
    return {name: np.asarray(row, np.float32) for name, row in kinds.items()}


live = lambda z: ~jnp.isneginf(z)
known = lambda a, there: jnp.where(there, a, 0)


def nan_of(z):
    """NaN in every row that has a NaN or +inf, else 0."""
    return jnp.where(jnp.isnan(z) | jnp.isposinf(z), jnp.nan, 0).sum(-1)


def log_p(z):
    """log p with -inf for a masked class, and NaN for a row with a NaN or +inf."""
    shifted = known(z, live(z)) - jax.lax.stop_gradient(
        jnp.max(known(z, live(z)), -1, keepdims=True, where=live(z), initial=-jnp.inf)
    )
    shifted = known(shifted, live(z))
    total = known(jnp.exp(shifted), live(z)).sum(-1, keepdims=True)
    return jnp.where(live(z), shifted - jnp.log(jnp.where(live(z).any(-1, keepdims=True), total, 1)), -jnp.inf)


def mean(z, t):
    return known(jnp.exp(log_p(z)) * t, live(z)).sum(-1)


def cost(z, y, k=K):
    """-log p_y; NaN for a label that is no class, inf for one that is masked, and 0 for a row without classes."""
    is_class = (y >= 0) & (y < k)
    at_label = jnp.take_along_axis(log_p(z), jnp.where(is_class, y, 0)[..., None], -1)[..., 0]
    masked = jnp.isneginf(at_label)
    return jnp.where(is_class, jnp.where(masked, jnp.inf, -jnp.where(masked, 0, at_label)), jnp.nan)


def soft(z, y):
    costs = y * known(-log_p(z), live(z))
    return jnp.where((~live(z) & (y != 0)).any(-1), jnp.inf, costs.sum(-1))


def binary(z, y, k=K):
    bad = ((y < 0) | (y >= k)).any(-1)
    targets = (y[..., None] == jnp.arange(k)).any(-2)
    signed = jnp.where(targets, -1, 1) * known(z, live(z))
    costs = known(jax.nn.softplus(signed), live(z))
    return jnp.where(bad, jnp.nan, jnp.where((targets & ~live(z)).any(-1), jnp.inf, costs.sum(-1)))


def focal(gamma, z, y, k=K):
    c = cost(z, y, k)
    inside = jnp.isfinite(c) & (c > 0)
    within = jnp.where(inside, c, 1)
    return jnp.where(inside, (-jnp.expm1(-within)) ** gamma * within, c)


def brier(z, y):
    is_class = (y >= 0) & (y < K)
    squares = (known(jnp.exp(log_p(z)), live(z)) - (y[..., None] == jnp.arange(K)).astype(z.dtype)) ** 2
    return jnp.where(is_class, squares.sum(-1), jnp.nan)


def gaps(z, y, margin=1.0):
    """z_k - z_y + margin for the other classes, and 0 for the label; NaN for a label that is no class."""
    is_label = y[..., None] == jnp.arange(K)
    of_label = jnp.where(is_label, z, 0).sum(-1, keepdims=True)
    off = jnp.where(is_label | ~live(z), 0, known(z, live(z)) - known(of_label, live(of_label)) + margin)
    masked = (is_label & ~live(z)).any(-1, keepdims=True) & (~is_label & live(z))
    return jnp.where(((y >= 0) & (y < K))[..., None], jnp.where(masked, jnp.inf, off), jnp.nan) + nan_of(z)[..., None]


def jensen_shannon(p, q):
    """With p = 0 for a class that is masked, and for all classes of a row without one."""
    there, log_m = live(p), jnp.logaddexp(known(log_p(p), live(p)), log_p(q)) - jnp.log(2.0)
    log_m = jnp.where(there, log_m, log_p(q) - jnp.log(2.0))
    of_p = known(jnp.exp(log_p(p)) * (known(log_p(p), there) - log_m), there).sum(-1)
    return (of_p + (jnp.exp(log_p(q)) * (log_p(q) - log_m)).sum(-1)) / 2


def weighted(z, b):
    """log sum_k b_k exp z_k."""
    counts = live(z) & (b[:, 0] != 0)
    top = jnp.max(z, -1, keepdims=True, where=counts, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    total = known(b[:, 0] * jnp.exp(known(z, counts) - top), counts).sum(-1)
    return jnp.where(counts.any(-1), jnp.log(jnp.where(counts.any(-1), total, 1)) + top[:, 0], -jnp.inf)


def divergence(p, q):
    """KL(p || q): inf where q masks a class that p has, 0 where p has no class."""
    there = live(p)
    impossible = (there & ~live(q)).any(-1)
    gap = known(log_p(p), there) - known(log_p(q), there & live(q))
    return jnp.where(impossible & ~jnp.isnan(p).any(-1), jnp.inf, known(jnp.exp(log_p(p)) * gap, there).sum(-1))


def data(random, n):
    """Labels, of which some are none, sets of labels, of which some have duplicates or padding, teachers, values."""
    labels = random.integers(K, size=n)
    labels[::5] = random.choice([-1, -100, K, 2**31 - 1], size=len(labels[::5]))
    sets = random.integers(K, size=(n, 3))
    sets[::4, 1] = sets[::4, 0]
    teacher = random.normal(size=(n, K)).astype(np.float32)
    probabilities = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    values = random.normal(size=K).astype(np.float32)
    factors = np.where(np.arange(K) % 2 == random.integers(2), 0, np.abs(values))[:, None]
    weights = np.where(np.arange(n) % 3 == 0, 0, 1 + np.abs(teacher[:, 0]))
    of_rows = {"y": labels, "sets": sets, "teacher": teacher, "p": probabilities}
    return of_rows | {"values": values, "factors": factors, "weights": weights.astype(np.float32)}


of = softjax.of
dense = lambda z: z if isinstance(z, jax.Array) else z.dense()
# name: (function of logits and data, its definition)
FUNCTIONS = {
    "logsumexp": (lambda z, d: softjax.logsumexp(z, axis=-1), lambda z, d: jax.nn.logsumexp(z, -1) + nan_of(z)),
    "entropy": (
        lambda z, d: softjax.entropy(z),
        lambda z, d: jnp.where(
            live(z).any(-1), -known(jnp.exp(log_p(z)) * known(log_p(z), live(z)), live(z)).sum(-1), -jnp.inf
        ),
    ),
    "expectation": (lambda z, d: softjax.expectation(z, d["values"]), lambda z, d: mean(z, d["values"])),
    "expectation of pairs": (lambda z, d: softjax.expectation(z, d["teacher"]), lambda z, d: mean(z, d["teacher"])),
    "cross entropy": (
        lambda z, d: softjax.softmax_cross_entropy_with_integer_labels(z, d["y"]),
        lambda z, d: cost(z, d["y"]),
    ),
    "log-probabilities": (lambda z, d: softjax.log_probs(z, d["y"]), lambda z, d: -cost(z, d["y"])),
    "soft labels": (lambda z, d: softjax.softmax_cross_entropy(z, d["p"]), lambda z, d: soft(z, d["p"])),
    "pairs": (
        lambda z, d: softjax.softmax_cross_entropy(z, (d["sets"], jnp.full(d["sets"].shape, 0.3))),
        lambda z, d: 0.3 * sum(cost(z, d["sets"][:, i]) for i in range(3)),
    ),
    "sets": (lambda z, d: softjax.sigmoid_binary_cross_entropy(z, d["sets"]), lambda z, d: binary(z, d["sets"])),
    "focal": (lambda z, d: of(losses.focal(0.5), z, d["y"]), lambda z, d: focal(0.5, z, d["y"])),
    "poly": (
        lambda z, d: of(losses.poly_1(2.0), z, d["y"]),
        lambda z, d: cost(z, d["y"]) - 2 * jnp.expm1(-cost(z, d["y"])),
    ),
    "divergence": (lambda z, d: softjax.kl_divergence(d["teacher"], z), lambda z, d: divergence(d["teacher"], z)),
    "divergence from": (lambda z, d: softjax.kl_divergence(z, d["teacher"]), lambda z, d: divergence(z, d["teacher"])),
    "softmax": (
        lambda z, d: (softjax.softmax(dense(z)) * d["teacher"]).sum(-1),
        lambda z, d: known(jnp.exp(log_p(z)) * d["teacher"], live(z)).sum(-1),
    ),
    "log_softmax": (
        lambda z, d: known(softjax.log_softmax(dense(z)) * d["teacher"], live(dense(z))).sum(-1),
        lambda z, d: known(known(log_p(z), live(z)) * d["teacher"], live(z)).sum(-1),
    ),
    "sum of hinges": (
        lambda z, d: softjax.multiclass_svm_loss(z, d["y"]),
        lambda z, d: jnp.maximum(gaps(z, d["y"]), 0).sum(-1),
    ),
    "hinge": (
        lambda z, d: softjax.multiclass_hinge_loss(z, d["y"]),
        lambda z, d: jnp.maximum(gaps(z, d["y"]), 0).max(-1),
    ),
    "Brier": (lambda z, d: of(losses.brier, z, d["y"]), lambda z, d: brier(z, d["y"])),
    "Jensen-Shannon": (
        lambda z, d: softjax.js_divergence(z, d["teacher"]),
        lambda z, d: jensen_shannon(z, d["teacher"]),
    ),
    "weighted": (
        lambda z, d: of(losses.weighted_logsumexp, z, per_class=d["factors"])[:, 0],
        lambda z, d: weighted(z, d["factors"]),
    ),
    "weights of 0": (
        lambda z, d: softjax.softmax_cross_entropy_with_integer_labels(z, d["y"], weights=d["weights"]),
        lambda z, d: jnp.where(
            d["weights"] == 0, 0, d["weights"] * cost(jnp.where(d["weights"][:, None] == 0, 0, z), d["y"])
        ),
    ),
    "an ignored label": (
        lambda z, d: softjax.softmax_cross_entropy_with_integer_labels(z, d["y"], ignore_index=2),
        lambda z, d: jnp.where(d["y"] == 2, 0, cost(jnp.where(d["y"][:, None] == 2, 0, z), d["y"])),
    ),
    "soft cap": (
        lambda z, d: (capped if isinstance(capped := softjax.softcap(z, 7.0), jax.Array) else capped.dense()).sum(-1),
        lambda z, d: jnp.where(live(z), 7 * jnp.tanh(jnp.where(live(z), z, 0) / 7), -jnp.inf).sum(-1),
    ),
}
OF_GAPS = {"divergence", "divergence from", "Jensen-Shannon"}  # their errors are those of logits that are subtracted
OVERFLOW = {*OF_GAPS, "log_softmax"}  # in a difference, or in the sum that the test takes


def of_rows(function, z, given, ct, along):
    """(value [R], gradient [R, K], second derivative [R, K] along a direction)."""
    total = lambda z: jnp.where(jnp.isfinite(value := function(z, given)), value, 0) @ ct
    return function(z, given), jax.grad(total)(z), jax.jvp(jax.grad(total), (z,), (along,))[1]


def in_float32(a):
    with np.errstate(over="ignore"):
        return np.asarray(a).astype(np.float32).astype(float)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_of_every_kind(name, form, seed):
    random = np.random.default_rng([seed, 7])
    kinds = rows(random)
    z = np.stack(list(kinds.values()))
    given = data(random, len(z))
    ct, along = random.normal(size=len(z)).astype(np.float32), random.normal(size=z.shape).astype(np.float32)
    ours, definition = FUNCTIONS[name]
    got = jax.jit(ft.partial(of_rows, lambda z, d: ours(FORMS[form](z), d)))(z, given, ct, along)
    with jax.enable_x64(True):
        wide = lambda a: a.astype(float) if a.dtype == np.float32 else a
        args = wide(z), jax.tree.map(wide, given), wide(ct), wide(along)
        want = jax.jit(ft.partial(of_rows, definition))(*args)
    found = list(faults(kinds, z, [np.asarray(a) for a in got], [in_float32(a) for a in want], name))
    assert not found, "\n".join(map(str, found))


def faults(kinds, z, got, want, name):
    """Values of another kind, and values and derivatives that are not close; an error is relative to the logits."""
    size = np.where(np.isfinite(z), np.abs(z), 0).max(-1)
    for i, kind in enumerate(kinds):
        value, expected = got[0][i], want[0][i]
        if name in OVERFLOW and kind == "the largest" and not np.isfinite([value, *got[1][i]]).all():
            continue
        if not np.isfinite(expected):
            if not (value == expected or (np.isnan(value) and np.isnan(expected))):
                yield kind, value, expected
            continue
        if not abs(value - expected) <= 3e-6 * max(1, abs(expected), size[i]):
            yield kind, value, expected
        for order, (a, b) in enumerate(zip(got[1:], want[1:], strict=True), 1):
            finite = np.isfinite(b[i])
            error, scale = np.abs(a[i] - b[i])[finite], np.abs(b[i][finite])
            limit = 1e-5 * max(1.0, scale.max(initial=0)) + (1e-7 * size[i] if name in OF_GAPS else 0)
            if not (error <= limit).all():
                yield kind, order, a[i], b[i]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", FORMS)
def test_classes_that_are_chosen_in_rows_of_every_kind(form, seed):
    kinds = rows(np.random.default_rng([seed, 7]))
    z = np.stack([row for kind, row in kinds.items() if kind != "subnormal"])  # devices take these for 0
    is_empty, has_nan = np.isneginf(z).all(-1), np.isnan(z).any(-1)
    first = np.where(has_nan, np.isnan(z).argmax(-1), z.argmax(-1))
    logits = FORMS[form](jnp.asarray(z))
    np.testing.assert_array_equal(softjax.argmax(logits), np.where(is_empty, -1, first))
    best = softjax.top_k(logits, K)
    for i in np.flatnonzero(~has_nan):
        order = np.argsort(-z[i], kind="stable")
        np.testing.assert_array_equal(best.ids[i], np.where(np.isneginf(z[i][order]), -1, order), err_msg=str(i))
    drawn = np.asarray(softjax.sample(jax.random.key(seed), logits, shape=20))
    none = is_empty | has_nan | np.isposinf(z).any(-1)
    assert (drawn[none] == -1).all()
    assert (np.take_along_axis(z, np.maximum(drawn, 0), -1)[~none] >= z[~none].max(-1, keepdims=True) - 40).all()


# --- mixtures and contrastive losses ----------------------------------------------------------------------


def latents(random, centers):
    """Latents [R, D] of every kind."""
    d = centers.shape[1]
    kinds = {
        "ordinary": random.normal(size=d),
        "at a center": centers[1],
        "between two": (centers[0] + centers[1]) / 2,
        "far": 1e3 * random.normal(size=d),
        "zeros": np.zeros(d),
        "subnormal": np.full(d, 1e-40),
        "NaN": np.where(np.arange(d) == 0, np.nan, 1),
        "+inf": np.where(np.arange(d) == 0, np.inf, 1),
    }
    return {name: np.asarray(row, np.float32) for name, row in kinds.items()}


def squares(z, c):
    return ((z[:, None] - c) ** 2).sum(-1)


def log_mean(h, e):
    return jax.nn.logsumexp(h + e, -1) - jax.nn.logsumexp(h, -1)


MIXTURES = {
    "autoencoder": (
        lambda z, x, c, v: softjax.mixture_autoencoder_loss(z, x, c, v),
        lambda z, x, c, v: ((x - jax.nn.softmax(-squares(z, c)) @ v) ** 2).sum(-1),
    ),
    "EOL": (
        lambda z, x, c, v: softjax.eol_loss(z, x, c, v),
        lambda z, x, c, v: (jax.nn.softmax(-squares(z, c)) * squares(x, v)).sum(-1),
    ),
    "LEOP": (
        lambda z, x, c, v: softjax.leop_loss(z, x, c, v),
        lambda z, x, c, v: -log_mean(-squares(z, c), -squares(x, v)),
    ),
    "Gaussians": (
        lambda z, x, c, v: softjax.gaussian_mixture_nll_loss(z, c, jnp.ones(c.shape[1])),
        lambda z, x, c, v: (
            np.log(len(c)) + c.shape[1] / 2 * np.log(2 * np.pi) - jax.nn.logsumexp(-squares(z, c) / 2, -1)
        ),
    ),
    "codebook": (
        lambda z, x, c, v: softjax.soft_quantize(z, c).values.sum(-1),
        lambda z, x, c, v: (jax.nn.softmax(-squares(z, c)) @ c).sum(-1),
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MIXTURES)
def test_latents_of_every_kind(name, seed):
    """The values and the gradients for the latents; of one that is NaN or infinite, NaN in its own example alone."""
    random = np.random.default_rng([seed, 8])
    c, v = random.normal(size=(K, 2)).astype(np.float32), random.normal(size=(K, 3)).astype(np.float32)
    kinds = latents(random, c)
    z = np.stack(list(kinds.values()))
    x, ct = random.normal(size=(len(z), 3)).astype(np.float32), random.normal(size=len(z)).astype(np.float32)
    ours, definition = MIXTURES[name]
    both = lambda f: jax.jit(lambda z, x, c, v, ct: (f(z, x, c, v), jax.vjp(lambda z: f(z, x, c, v), z)[1](ct)[0]))
    got = [np.asarray(a) for a in both(ours)(z, x, c, v, ct)]
    with jax.enable_x64(True):
        want = [np.asarray(a) for a in both(definition)(*(a.astype(float) for a in (z, x, c, v, ct)))]
    for i, kind in enumerate(kinds):
        for a, b in zip(got, want, strict=True):
            if kind in ("NaN", "+inf"):
                assert np.isnan(a[i]).all(), (kind, a[i])
            else:
                assert np.abs(a[i] - b[i]).max() <= 1e-5 * max(1, np.abs(b[i]).max()), (kind, a[i], b[i])


def info_nce(x, y):
    return jax.nn.logsumexp(x @ y.T, -1) - (x * y).sum(-1)


def nt_xent(x, y):
    both = jnp.concatenate([x, y])
    z = jnp.where(jnp.eye(len(both), dtype=bool), -jnp.inf, both @ both.T)
    return jnp.stack(jnp.split(jax.nn.logsumexp(z, -1) - (both * jnp.roll(both, len(x), 0)).sum(-1), 2)).mean(0)


def siglip(x, y):
    return jax.nn.softplus(-(2 * jnp.eye(len(x), dtype=x.dtype) - 1) * (x @ y.T)).sum(-1)


CONTRASTIVE = {
    "InfoNCE": (lambda x, y: softjax.contrastive_loss(x, y, symmetric=False), info_nce),
    "NT-Xent": (lambda x, y: softjax.nt_xent_loss(x, y), nt_xent),
    "SigLIP": (lambda x, y: softjax.siglip_loss(x, y), siglip),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONTRASTIVE)
def test_views_of_every_kind(name, seed):
    """Each example is a class of the others: NaN in one is NaN in all."""
    random = np.random.default_rng([seed, 9])
    x, y, ct = random.normal(size=(5, 3)), random.normal(size=(5, 3)), random.normal(size=5)
    x[1], y[2], x[3], y[4] = 0, 0, 1e-40, 50 * x[4]
    x, y, ct = (a.astype(np.float32) for a in (x, y, ct))
    ours, definition = CONTRASTIVE[name]
    both = lambda f: jax.jit(lambda x, y, ct: (f(x, y), jax.vjp(f, x, y)[1](ct)))
    got = jax.tree.leaves(both(ours)(x, y, ct))
    with jax.enable_x64(True):
        want = jax.tree.leaves(both(definition)(*(a.astype(float) for a in (x, y, ct))))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert jnp.isnan(ours(np.where(np.arange(5)[:, None] == 1, np.nan, x), y)).any()
