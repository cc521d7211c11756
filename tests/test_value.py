"""`Logits` as a value: what passes it on, what reads it in the wrong way, meshes, memory, and digits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

from . import cases

B, L, D, K = 4, 2, 3, 16
r = cases.Random("float32", 1)
X, W, Z, C, T = r.normal(B, L, D), r.normal(D, K), r.normal(B, L, 2), r.normal(K, 2), jnp.exp(0.3 * r.normal(B, L))
PAIRS, LABELS = r.normal(B, L, K), r.integers(K, B, L)
KEPT = jnp.concatenate([LABELS[..., None], r.integers(K, B, L, 3)], -1)
LOGITS = softjax.linear(X, W)
ce = softjax.softmax_cross_entropy_with_integer_labels
plain_ce = cases.softmax_loss


# --- read in the wrong way ---------------------------------------------------------------------------

MISUSES = {
    "jnp.exp": lambda z: jnp.exp(z),
    "np.asarray": lambda z: np.asarray(z),
    "jax.nn.softmax": lambda z: jax.nn.softmax(z),
    "a comparison": lambda z: z > 0,
    "an equality": lambda z: z == z,
    "float": lambda z: float(z),
    "a truth value": lambda z: bool(z),
    "len": lambda z: len(z),
    "iteration": lambda z: list(z),
    "a product of matrices": lambda z: z @ jnp.ones((K, 2)),
    "a power": lambda z: z**2,
}


@pytest.mark.parametrize("name", MISUSES)
def test_logits_are_no_array(name):
    with pytest.raises(TypeError, match="not in memory"):
        MISUSES[name](LOGITS)


REFUSED = {
    "the class axis is indexed": (lambda z: z[..., 0], IndexError, "`take` gives the logits of classes"),
    "too many indices": (lambda z: z[0, 0, 0], IndexError, "`take` gives the logits of classes"),
    "the last axis is reshaped": (lambda z: z.reshape(B, L * K), ValueError, "`shape` must keep the last axis"),
    "arrays do not broadcast": (
        lambda z: z + jnp.ones((3, 1)),
        ValueError,
        r"`other` must broadcast to the logits \(4, 2, 16\)",
    ),
    "logits of other shapes": (lambda z: z + z[0], ValueError, r"`other` logits must have the shape \(4, 2, 16\)"),
    "logits of other blocks": (
        lambda z: softjax.linear(X, W, block_size=4) + softjax.linear(X, W, block_size=8),
        ValueError,
        "`other` logits must have the block size 4, got 8",
    ),
    "a function that reduces": (lambda z: z.map(lambda a: a - a.max()), ValueError, "got one that reduces or sorts"),
    "a function of several numbers": (
        lambda z: z.map(lambda a: jnp.stack([a, a])),
        ValueError,
        "returns a floating-point number",
    ),
    "no function": (lambda z: z.map(3), TypeError, "`function` must be a function, got 3"),
    "a mask of numbers": (lambda z: z.where(jnp.ones(K)), TypeError, "`mask` must be booleans"),
    "a mask that does not broadcast": (lambda z: z.where(jnp.ones(3, bool)), ValueError, "`mask` must broadcast"),
    "a mask by ids, indexed": (lambda z: z.where(lambda n, k: n == k)[0], TypeError, "can't be indexed"),
    "ids of other examples": (lambda z: z.where_ids(KEPT[0]), ValueError, "`ids` must have shape"),
    "another axis": (lambda z: softjax.entropy(z, axis=0), ValueError, "`axis` must be -1"),
    "features of another size": (lambda z: softjax.linear(X, W.T), ValueError, "`features` must have shape"),
    "pairs without axes": (
        lambda z: softjax.pairwise(lambda x, c: x, 1.0, C),
        ValueError,
        r"`examples` must hold arrays \[N, ...\]",
    ),
    "values of all": (lambda z: softjax.expectation(z, jnp.ones((K, 2))), ValueError, "`values` must have shape"),
    "smoothing over unequal masks": (
        lambda z: ce(z.where(PAIRS > 0), LABELS, label_smoothing=0.1),
        ValueError,
        "`label_smoothing` must be 0 where `where` differs",
    ),
    "a scalar": (lambda z: softjax.argmax(1.0), ValueError, r"`logits` must have shape \[..., K\]"),
    "too many of the best": (lambda z: softjax.top_k(z, 17), ValueError, "at most the number of classes, 16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_logits_cannot_be_is_refused_in_words(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(LOGITS)


def test_an_array_of_an_object_is_named():
    class Model:
        tau = jnp.arange(3.0)

    model = Model()
    with pytest.raises(ValueError, match="must close over its arrays as variables"):
        LOGITS.map(lambda z: z / model.tau[0])

    def of_traced(tau):
        model.tau = tau
        return softjax.logsumexp(LOGITS.map(lambda z: z / model.tau))

    with pytest.raises(ValueError, match="must close over its arrays as variables"):
        jax.grad(of_traced)(2.0)


def test_functions_close_over_what_python_lets_them():
    """Vectors, trees, functions and NumPy arrays, traced or not."""
    v, tree = jnp.exp(r.normal(2)), {"scale": jnp.float32(2.0), "shift": np.float32(0.5)}

    def ours(v, tree):
        scaled = lambda z: z * tree["scale"] + tree["shift"]
        flat = Z.reshape(-1, 2)
        logits = softjax.pairwise(lambda z, c: -(v * (z - c) ** 2).sum(), flat, C).map(lambda z: jnp.sin(scaled(z)))
        return softjax.logsumexp(logits)

    def plain(v, tree):
        h = -(v * (Z.reshape(-1, 1, 2) - C) ** 2).sum(-1)
        return jax.nn.logsumexp(jnp.sin(h * tree["scale"] + tree["shift"]))

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(v, tree) for f in (ours, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    of_numbers = softjax.pairwise(lambda x, c: -jnp.abs(x - c).sum(), X[:, 0, 0], C[:, 0])
    np.testing.assert_allclose(of_numbers.dense(), -jnp.abs(X[:, 0, :1] - C[:, 0]), rtol=1e-6)


def test_a_function_is_what_it_reads_now():
    """A number of an object, a dictionary, a default or the module that was changed since is not the old program's."""

    class Model:
        tau = 1.0

    model, given = Model(), {"tau": 1.0, "first": 0}
    of = {
        "an object": lambda: LOGITS.map(lambda z: z * model.tau),
        "a dictionary": lambda: LOGITS.map(lambda z: z * given["tau"]),
        "the module": lambda: LOGITS.map(lambda z: z * SCALE[0]),
        "a default": lambda: LOGITS.map(lambda z, *, tau=given["tau"]: z * tau),
        "a method": lambda: LOGITS.map(model.scaled),
    }
    Model.scaled = lambda self, z: z * self.tau
    for tau in (1.0, 3.0, 2.0):
        model.tau = given["tau"] = SCALE[0] = tau
        for name, made in of.items():
            np.testing.assert_allclose(
                softjax.logsumexp(made()), jax.nn.logsumexp(tau * (X @ W)), rtol=1e-5, err_msg=name
            )
    late = LOGITS.map(lambda z: z * given["tau"])
    given["tau"] = 5.0
    np.testing.assert_allclose(softjax.logsumexp(late), jax.nn.logsumexp(5 * (X @ W)), rtol=1e-5)
    for first in (3, 7):
        mask = LOGITS.where(lambda n, k: k >= given["first"])
        given["first"] = first
        np.testing.assert_allclose(softjax.logsumexp(mask), jax.nn.logsumexp((X @ W)[..., first:]), rtol=1e-5)
    blocks = softjax.linear(X, W, block_size=4).map(lambda z: z * OF_MODULE)
    np.testing.assert_allclose(softjax.logsumexp(blocks), jax.nn.logsumexp(2 * (X @ W)), rtol=1e-5)


SCALE, OF_MODULE = [1.0], jnp.float32(2.0)


def test_masked_data_gives_no_nan():
    """Neither in a denominator, nor where the data of masked classes and ignored examples would have no derivative."""
    live, t = jnp.arange(K) % 3 != 1, jnp.exp(r.normal(K))
    dense = lambda x, w: jnp.where(live, x @ w / t, -jnp.inf)
    ours = lambda x, w: softjax.logsumexp(softjax.linear(x, w, block_size=5).where(live) / t)
    got, want = (jax.grad(f, (0, 1))(X, W) for f in (ours, lambda x, w: jax.nn.logsumexp(dense(x, w))))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    cosine = lambda x, c: x @ c / jnp.sqrt((x @ x) * (c @ c))
    flat = Z.reshape(-1, 2)
    of_pairs = jax.grad(lambda c: softjax.logsumexp(softjax.pairwise(cosine, flat, c).where(live)))(C)
    assert bool(jnp.isfinite(of_pairs).all())
    labels = LABELS.at[0, 0].set(-1)
    share = lambda z, s: z / (1 - s)
    s = 0.5 * jax.nn.sigmoid(T)[..., None]
    ignored = jax.grad(lambda w: ce(softjax.linear(X, w).map(share, s), labels, ignore_index=-1).sum())(W)
    z = lambda w: X @ w / (1 - s)
    plain_sum = lambda w: plain_ce(z(w), LABELS).at[0, 0].set(0).sum()
    np.testing.assert_allclose(ignored, jax.grad(plain_sum)(W), rtol=1e-4, atol=1e-6)
    nan = X.at[0, 0].set(jnp.nan)
    several = lambda w: softjax.log_probs(softjax.linear(nan, w), jnp.stack([labels, labels], -1), ignore_index=-1)
    of_several = jax.grad(lambda w: several(w).sum())(W)
    defined = jax.grad(lambda w: -2 * plain_ce(X @ w, LABELS).at[0, 0].set(0).sum())(W)
    np.testing.assert_allclose(of_several, defined, rtol=1e-4, atol=1e-5)
    w = W.at[:, 1].set(jnp.nan)
    ids = jnp.broadcast_to(jnp.arange(K), (B, L, K))
    of_taken = jax.grad(lambda x: jnp.where(live, softjax.linear(x, w).where(live).take(ids), 0).sum())(X)
    np.testing.assert_allclose(of_taken, jnp.broadcast_to(jnp.where(live, W, 0).sum(-1), X.shape), rtol=1e-4, atol=1e-5)


def test_the_second_derivative_at_a_center():
    hessian = jax.hessian(lambda z: softjax.distances(z[None], C).dense()[0, 2])(C[2])
    np.testing.assert_allclose(hessian, -2 * jnp.eye(2), atol=1e-6)


@pytest.mark.parametrize("made", [lambda x, w: softjax.linear(x, w), lambda x, w: x @ w], ids=["Logits", "an array"])
def test_a_mask_of_examples_in_a_mean(made):
    kept = jnp.arange(B * L).reshape(B, L) % 3 != 1
    each = plain_ce(X @ W, LABELS)
    want = jnp.where(kept, each, 0).sum() / float(kept.sum())
    for where in (kept, kept[..., None]):
        np.testing.assert_allclose(ce(made(X, W), LABELS, where=where, reduction="mean"), want, rtol=1e-5)
    moved = ce(jnp.moveaxis(X @ W, -1, 0), LABELS, axis=0, label_smoothing=0.1, reduction="sum")
    smoothed = 0.9 * each - 0.1 * jax.nn.log_softmax(X @ W).mean(-1)
    np.testing.assert_allclose(moved, smoothed.sum(), rtol=1e-5)


def test_it_says_what_it_is_made_of():
    text = "Logits(float32[4, 2, 16], (map of linear / examples), not in memory)"
    assert repr(LOGITS.map(jnp.tanh) / T[..., None]) == text
    assert (LOGITS.shape, LOGITS.ndim, LOGITS.size, LOGITS.dtype) == ((4, 2, 16), 3, 128, jnp.float32)


# --- passed on ----------------------------------------------------------------------------------------


def head(x, w, t):
    return softjax.linear(x, w).map(jnp.tanh) / t[..., None]


def test_a_model_returns_logits():
    class Head(nnx.Linear):
        def __call__(self, x):
            return softjax.linear(x, self.kernel[...], self.bias[...])

    head = Head(D, K, rngs=nnx.Rngs(0))

    @nnx.jit
    def gradient(head):
        return nnx.value_and_grad(lambda head: ce(nnx.jit(lambda head, x: head(x))(head, X), LABELS).mean())(head)

    loss, gradients = gradient(head)
    w, b = head.kernel[...], head.bias[...]
    want, of_arrays = jax.value_and_grad(lambda p: plain_ce(X @ p[0] + p[1], LABELS).mean())((w, b))
    chex.assert_trees_all_close(
        (loss, gradients["kernel"][...], gradients["bias"][...]), (want, *of_arrays), rtol=1e-5, atol=1e-6
    )


PASSED = {
    "jit": lambda x, w, t: jax.jit(head)(x, w, t),
    "checkpoint": lambda x, w, t: jax.checkpoint(head)(x, w, t),
    "cond": lambda x, w, t: jax.lax.cond(x.sum() > -1e9, head, lambda x, w, t: head(-x, w, t), x, w, t),
    "flattened and unflattened": lambda x, w, t: jax.tree.map(lambda a: a, head(x, w, t)),
}


@pytest.mark.parametrize("name", PASSED)
def test_logits_pass_through_transformations(name):
    loss = lambda x, w, t: ce(PASSED[name](x, w, t), LABELS).sum()
    defined = lambda x, w, t: plain_ce(jnp.tanh(x @ w) / t[..., None], LABELS).sum()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(X, W, T) for f in (loss, defined))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_scan_over_chunks_of_examples():
    chunk = lambda w: lambda total, xyt: (total + ce(head(xyt[0], w, xyt[2]), xyt[1]).sum(), None)
    loss = lambda w: jax.lax.scan(jax.checkpoint(chunk(w)), 0.0, (X, LABELS, T))[0]
    defined = lambda w: plain_ce(jnp.tanh(X @ w) / T[..., None], LABELS).sum()
    chex.assert_trees_all_close(*(jax.jit(jax.value_and_grad(f))(W) for f in (loss, defined)), rtol=1e-5, atol=1e-5)


def test_logits_in_vmap_and_out_of_it():
    each = jax.vmap(lambda x, t: softjax.entropy(head(x, W, t)))(X, T)
    np.testing.assert_allclose(each, softjax.entropy(head(X, W, T)), rtol=1e-5)
    out = jax.vmap(lambda x, t: head(x, W, t))(X, T)
    with pytest.raises(ValueError, match="return features from `vmap` and `scan`"):
        softjax.entropy(out)


def test_a_fresh_lambda_compiles_nothing_again():
    of = jax.jit(softjax.entropy)
    for scale in jnp.array([2.0, 3.0]):
        of(LOGITS.map(lambda z, scale=scale: z * scale))
    assert of._cache_size() == 1
    of(LOGITS.map(lambda z: z * 2))
    assert of._cache_size() == 2


# --- over devices -------------------------------------------------------------------------------------


def composed(x, w, t, pairs, kept):
    return (softjax.linear(x, w, block_size=4).map(jnp.tanh) / t[..., None] + pairs).where_ids(kept)


def plain(x, w, t, pairs, kept):
    z = jnp.tanh(x @ w) / t[..., None] + pairs
    return jnp.where((kept[..., None] == jnp.arange(K)).any(-2), z, -jnp.inf)


def mean_of(made):
    def mean(x, w, t, pairs):
        return (
            ce(made(x, w, t, pairs, KEPT), LABELS)
            if made is composed
            else plain_ce(plain(x, w, t, pairs, KEPT), LABELS)
        ).mean()

    return jax.value_and_grad(mean, (0, 1, 2, 3))


PLACES = {
    "examples": (P("data"), P(), P("data"), P("data")),
    "classes": (P(), P(None, "model"), P(), P(None, None, "model")),
    "both": (P("data"), P(None, "model"), P("data"), P("data", None, "model")),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_over_a_mesh(place, kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    args = [
        jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((X, W, T, PAIRS), PLACES[place], strict=True)
    ]
    rows = jax.jit(lambda *args: softjax.entropy(composed(*args, KEPT)))(*args)
    assert jax.typeof(rows).sharding.spec[0] == (PLACES[place][0][:1] or (None,))[0] or kind == AxisType.Auto
    taken = jax.jit(lambda *args: composed(*args, KEPT).take(KEPT).sum())(*args)
    at_kept = jnp.take_along_axis(plain(X, W, T, PAIRS, KEPT), KEPT, -1)
    np.testing.assert_allclose(taken, at_kept.sum(), rtol=1e-5)
    got = jax.jit(mean_of(composed))(*args)
    chex.assert_trees_all_close(got, jax.jit(mean_of(plain))(X, W, T, PAIRS), rtol=1e-5, atol=1e-6)


def test_inside_a_shard_map():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def local(x, w, t, pairs, kept, labels):
        z = softjax.linear(x, w, block_size=2, axis_name="model", batch_axis_name="data")
        z = (z.map(jnp.tanh) / t[..., None] + pairs).where_ids(kept)
        return ce(z, labels, reduction="mean")

    specs = P("data"), P(None, "model"), P("data"), P("data", None, "model"), P("data"), P("data")
    over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    mean = jax.value_and_grad(lambda *a: over(*a, KEPT, LABELS), (0, 1, 2, 3))
    chex.assert_trees_all_close(
        jax.jit(mean)(X, W, T, PAIRS), jax.jit(mean_of(plain))(X, W, T, PAIRS), rtol=1e-5, atol=1e-6
    )


# --- memory and digits --------------------------------------------------------------------------------


@pytest.mark.usefixtures("optimised")
def test_a_support_of_listed_classes_takes_no_more_memory():
    n, d, k, t = 64, 32, 20_000, 128
    x, w, y = r.normal(n, d), r.normal(d, k), r.integers(k, n)
    kept = jnp.concatenate([y[:, None], r.integers(k, n, t)], -1)

    def temporaries(made):
        step = jax.value_and_grad(lambda x, w: ce(made(softjax.linear(x, w, block_size=1024)), y).mean(), (0, 1))
        return jax.jit(step).lower(x, w).compile().memory_analysis().temp_size_in_bytes

    limited, whole = temporaries(lambda z: z.where_ids(kept)), temporaries(lambda z: z)
    assert limited < 1.5 * whole  # the mask of a block, and the positions of the listed ids in it
    assert limited < 4 * n * k


def test_distances_between_far_clusters_keep_their_digits():
    """The number that all classes have in common costs none, unless the logits are added to it."""
    far = 1e4 * (np.arange(K) % 2)[:, None]
    random = np.random.default_rng(0)
    c = (random.normal(size=(K, 2)) + far).astype(np.float32)
    z = (random.normal(size=(B, 2)) + far[:B]).astype(np.float32)
    labels = jnp.arange(B) + 2
    exact = lambda: plain_ce(jnp.asarray(-((z.astype(float)[:, None] - c.astype(float)) ** 2).sum(-1) / 4), labels)
    with jax.enable_x64(True):
        want = np.asarray(exact())
    np.testing.assert_allclose(ce(softjax.distances(z, c) / 4, labels), want, rtol=2e-6)


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_one_center_and_a_prior(d):
    """The distance and the prior of a single class are its logsumexp, with their gradients."""
    a = lambda x, prior: softjax.logsumexp(softjax.distances(x, jnp.zeros((1, d))) + prior, axis=-1).sum()
    value, (dx, dprior) = jax.value_and_grad(a, (0, 1))(jnp.ones((1, d)), jnp.array([5.0]))
    np.testing.assert_allclose(value, 5.0 - d)
    np.testing.assert_allclose(dx, -2 * jnp.ones((1, d)))
    np.testing.assert_allclose(dprior, [1.0])


def test_nan_in_masked_classes_and_ignored_examples():
    w = W.at[:, 3].set(jnp.nan)
    labels = jnp.where(LABELS == 3, 4, LABELS).at[0, 0].set(-1)
    x, t = X.at[0, 0].set(jnp.nan), T.at[0, 0].set(0)

    def loss(x, w, t):
        z = softjax.linear(x, w).where(jnp.arange(K) != 3) / t[..., None]
        return ce(z, labels, ignore_index=-1, reduction="mean")

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(x, w, t)
    z = jnp.delete(X @ W, 3, -1) / T[..., None]
    each = plain_ce(z, jnp.where(labels > 3, labels - 1, labels)).at[0, 0].set(0)
    np.testing.assert_allclose(value, each.sum() / (B * L - 1), rtol=1e-5)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    assert not gradients[1][:, 3].any()


def test_a_mask_of_examples():
    mask = jnp.array([True, False, True, True])[:, None, None]
    of = lambda w: softjax.logsumexp(softjax.linear(X, w).where(mask), axis=-1)
    value, back = jax.vjp(of, W)
    np.testing.assert_allclose(value, jnp.where(mask[..., 0], jax.nn.logsumexp(X @ W, -1), -jnp.inf), rtol=1e-6)
    ct = r.normal(B, L)
    defined = jax.vjp(lambda w: jnp.where(mask[..., 0], jax.nn.logsumexp(X @ w, -1), 0), W)[1](ct)[0]
    np.testing.assert_allclose(back(ct)[0], defined, rtol=1e-4, atol=1e-6)
    assert not softjax.argmax(softjax.linear(X, W).where(False) + 1).max() >= 0


def test_best_classes_and_samples():
    z, dense = head(X, W, T), jnp.tanh(X @ W) / T[..., None]
    np.testing.assert_array_equal(softjax.argmax(z), dense.argmax(-1))
    best = softjax.top_k(z.where_ids(KEPT), 3)
    kept = jnp.where((KEPT[..., None] == jnp.arange(K)).any(-2), dense, -jnp.inf)
    np.testing.assert_allclose(best.logits, jax.lax.top_k(kept, 3)[0], rtol=1e-6)
    key = jax.random.key(3)
    np.testing.assert_array_equal(softjax.sample(key, z, shape=5), softjax.sample(key, z.dense(), shape=5))
    found = softjax.metrics(z, LABELS)
    np.testing.assert_array_equal(found.predicted, dense.argmax(-1))
    np.testing.assert_allclose(found.log_prob, -plain_ce(dense, LABELS), rtol=1e-5)
    log_probs, entropies = softjax.log_probs(z, KEPT, entropy=True)
    log_p = jax.nn.log_softmax(dense)
    np.testing.assert_allclose(log_probs, jnp.take_along_axis(log_p, KEPT, -1), rtol=1e-5)
    np.testing.assert_allclose(entropies, -(jnp.exp(log_p) * log_p).sum(-1), rtol=1e-5)
    assert jnp.isnan(softjax.log_probs(z, KEPT.at[0, 0, 0].set(K))).tolist()[0][0] == [True, False, False, False]


def test_options_of_the_cross_entropy():
    weights = jnp.exp(r.normal(B, L))
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "weights": weights, "ignore_index": int(LABELS[0, 0])}
    for z in (LOGITS, X @ W):
        got = ce(z, LABELS, reduction="mean", **options)
        log_p, kept = jax.nn.log_softmax(X @ W), (LABELS[0, 0] != LABELS).astype(X.dtype)
        each = 0.9 * plain_ce(X @ W, LABELS) - 0.1 * log_p.mean(-1) + 0.01 * jax.nn.logsumexp(X @ W, -1) ** 2
        np.testing.assert_allclose(got, (kept * weights * each).sum() / (kept * weights).sum(), rtol=1e-5)


def test_a_loss_of_ones_own():
    cosine = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    z = softjax.linear(cosine(X), cosine(W.T), class_axis=0) / 0.07
    dense = cosine(X) @ cosine(W.T).T / 0.07
    p = jax.nn.softmax(dense)
    want = ((p - jax.nn.one_hot(LABELS, K)) ** 2).sum(-1)
    np.testing.assert_allclose(softjax.of(softjax.losses.brier, z, LABELS), want, rtol=1e-4)
