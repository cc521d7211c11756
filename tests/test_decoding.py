"""The likeliest classes, greedy classes and samples of a linear layer, beside the same of its logits in NumPy."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import softjax
from softjax import _decoding

from . import cases, spelled

N, D, K = 8, 3, 13
LIVE = np.arange(K) % 5 != 2
TILES = softjax.Placement(3, 4)
PLACEMENTS = {"whole": None, "blocks of 1": 1, "blocks of 4": 4, "all classes": K, "tiles": TILES}
every_placement = pytest.mark.parametrize("block_size", PLACEMENTS.values(), ids=PLACEMENTS)


def arguments(dtype="float32", seed=0):
    """Scores that are exact in half precision, many of them equal."""
    r = np.random.default_rng(seed)
    x, w, b = (r.integers(-2, 3, shape) for shape in ((N, D), (D, K), (K,)))
    return tuple(jnp.asarray(a, dtype) for a in (x, w, b))


def scores_of(x, w, b, where=None):
    z = np.asarray(x, np.float64) @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    return z if where is None else np.where(where, z, -np.inf)


def sorted_classes(z, k):
    """(scores, log-probabilities, ids) of the k largest scores; of equal ones, the lowest id first."""
    order = np.argsort(-z, -1, kind="stable")[..., :k]
    of_order = np.take_along_axis(z, order, -1)
    m = z.max(-1, keepdims=True)
    log_p = of_order - m - np.log(np.exp(z - m).sum(-1, keepdims=True))
    return of_order, log_p, np.where(np.isneginf(of_order), -1, order)


def assert_sorted(top, z, k):
    want = sorted_classes(z, k)
    np.testing.assert_array_equal(top.ids, want[2])
    assert top.ids.dtype == jnp.int32
    np.testing.assert_allclose(top.logits, want[0], rtol=1e-6)
    np.testing.assert_allclose(top.log_probs, want[1], rtol=1e-6, atol=1e-6)


def meshes():
    for shape in ((2, 4), (1, 8), (8, 1), (4, 2)):
        yield {"mesh": cases.mesh(*shape), "class_axis_name": "classes", "batch_axis_name": "data"}


@pytest.mark.parametrize("where", [None, LIVE], ids=["all classes", "a mask"])
@pytest.mark.parametrize("k", [1, 3, K])
@every_placement
@pytest.mark.each_value_once
def test_the_likeliest_classes_are_those_of_the_sorted_scores(k, where, block_size):
    """Also with more classes than a block has, and more than are live; ties are everywhere."""
    x, w, b = arguments()
    top = spelled.linear_top_k(x, w, k, b, where=where, block_size=block_size)
    assert_sorted(top, scores_of(x, w, b, where), k)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_likeliest_classes_in_every_type_and_layout(dtype):
    x, w, b = arguments(dtype)
    z = scores_of(x, w, b)
    top = spelled.linear_top_k(x.reshape(2, 4, D), w.T, 4, bias=b, class_axis=0, softcap=3.0, temperature=0.5)
    capped = 3 * np.tanh(z.astype("float32") / np.float32(3)) / np.float32(0.5)
    assert top.log_probs.dtype == top.logits.dtype == jnp.float32
    np.testing.assert_array_equal(top.ids.reshape(N, 4), sorted_classes(z, 4)[2])
    np.testing.assert_allclose(top.log_probs.reshape(N, 4), sorted_classes(capped.astype(float), 4)[1], rtol=1e-5)


@every_placement
def test_the_greedy_class_is_the_first_of_the_largest(block_size):
    x, w, b = arguments()
    z = scores_of(x, w, b, LIVE)
    assert (z == z.max(-1, keepdims=True)).sum(-1).max() > 1
    found = spelled.linear_argmax(x, w, b, where=LIVE, block_size=block_size)
    np.testing.assert_array_equal(found, z.argmax(-1))
    assert found.dtype == jnp.int32


def test_where_all_classes_are_left_out_there_is_no_class():
    x, w, _ = arguments()
    nothing = {"where": np.zeros(K, bool), "block_size": 4}
    assert (spelled.linear_argmax(x, w, **nothing) == -1).all()
    assert (spelled.linear_sample(jax.random.key(0), x, w, **nothing) == -1).all()
    top = spelled.linear_top_k(x, w, 2, **nothing)
    assert (top.ids == -1).all()
    assert jnp.isneginf(top.log_probs).all()


@pytest.mark.parametrize("k", [1, 3, K])
@pytest.mark.one_case_in(2)
def test_the_likeliest_classes_over_a_mesh(k):
    """Of 13 classes 8 devices have 2 each, with 3 of padding."""
    x, w, b = arguments()
    z = scores_of(x, w, b - 20, LIVE)  # padding would have the score 0
    for options in meshes():
        assert_sorted(spelled.linear_top_k(x, w, k, b - 20, where=LIVE, **options), z, k)
        found = spelled.linear_argmax(x, w, b - 20, where=LIVE, **options)
        np.testing.assert_array_equal(found, z.argmax(-1))


def test_a_sure_class_keeps_the_digits_of_its_log_probability():
    """log p of the top class is -1.4e-6 at a logit of 1e4."""
    x, w = jnp.ones((1, 1)), 1e4 - jnp.array([[13.5, 0.0, 40.0]])
    top = spelled.linear_top_k(x, w, 2, block_size=1)
    np.testing.assert_allclose(top.log_probs, [[-np.log1p(np.exp(-13.5)), -13.5]], rtol=2e-6)


def test_the_results_are_constants_of_differentiation():
    x, w, b = arguments()
    gradient = jax.grad(lambda x: spelled.linear_top_k(x, w, 2, b).log_probs.sum())(x)
    assert (gradient == 0).all()


# --- samples ----------------------------------------------------------------------------------------


def test_threefry_is_that_of_its_authors():
    """The known answers of Threefry-2x32 with 20 rounds, in the Random123 library."""
    for key, counter, want in (
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ):
        got = _decoding._threefry(*(jnp.asarray(a, jnp.uint32) for a in (key, *counter)))
        assert tuple(map(int, got)) == want


def test_noise_has_the_gumbel_distribution_up_to_its_tail():
    """P(g <= x) = exp(-exp(-x)), by Kolmogorov and Smirnov; each of its halves by itself."""
    words, ids = jnp.asarray([1, 2], jnp.uint32), jnp.arange(2000, dtype=jnp.int32)
    noise = np.sort(np.asarray(_decoding._gumbel(words, ids[:500], ids, jnp.float32), np.float64).reshape(-1))
    n = noise.size
    assert np.abs(np.exp(-np.exp(-noise)) - (np.arange(n) + 0.5) / n).max() < 1.63 / np.sqrt(n)  # 1 in 100
    tail = noise[noise > 7]  # of numbers with 24 bits, some of the largest would be equal
    assert len(np.unique(tail)) == tail.size
    assert 0.8 < tail.size / (n * -np.expm1(-np.exp(-7.0))) < 1.2


def probabilities(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def chi_squared(samples, p):
    """Of samples [n] of classes with probabilities p; none has probability 0."""
    live = p > 0
    counts = np.bincount(np.asarray(samples), minlength=p.size)
    assert counts[~live].sum() == 0
    expected = p[live] * len(samples)
    return ((counts[live] - expected) ** 2 / expected).sum()


AT_1_IN_1000 = 31.3  # of the chi-squared distribution with 11 degrees of freedom


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_samples_have_the_distribution_of_the_softmax(temperature):
    x, w, b = arguments()
    x = x[:4] / 2
    samples = spelled.linear_sample(
        jax.random.key(1), x, w, b, where=LIVE, shape=20000, temperature=temperature, block_size=4
    )
    p = probabilities(scores_of(x, w, b, LIVE) / temperature)
    for i in range(4):
        assert chi_squared(samples[i], p[i]) < AT_1_IN_1000
    assert chi_squared(samples[0], probabilities(scores_of(x, w, b, LIVE) / temperature * 1.1)[0]) > AT_1_IN_1000


def test_samples_of_examples_and_of_one_example_are_independent():
    """The same features in every example: pairs of examples, and pairs of samples, have the product distribution."""
    x, w = jnp.zeros((5000, D)), jnp.zeros((D, 4))
    samples = np.asarray(spelled.linear_sample(jax.random.key(2), x, w, shape=2))
    uniform = np.full(16, 1 / 16)
    for pairs in (samples[::2, 0] * 4 + samples[1::2, 0], samples[:, 0] * 4 + samples[:, 1]):
        assert chi_squared(pairs, uniform) < 37.7  # 1 in 1000 at 15 degrees of freedom


@ft.cache
def wanted_samples():
    x, w, b = arguments()
    return np.asarray(spelled.linear_sample(jax.random.key(3), x, w, b, where=LIVE, shape=(2, 3)))


@every_placement
def test_samples_are_the_same_for_every_block_and_tile(block_size):
    x, w, b = arguments()
    options = {"where": LIVE, "block_size": block_size}
    got = spelled.linear_sample(jax.random.key(3), x, w, b, shape=(2, 3), **options)
    np.testing.assert_array_equal(got, wanted_samples())
    one = spelled.linear_sample(jax.random.key(3), x.reshape(2, 4, D), w, b, **options)
    np.testing.assert_array_equal(one.reshape(N), wanted_samples()[:, 0, 0])
    assert len(np.unique(wanted_samples(), axis=0)) > 4


def test_samples_are_the_same_for_every_mesh():
    x, w, b = arguments()
    draw = jax.jit(spelled.linear_sample, static_argnames=("shape", "mesh", "class_axis_name", "batch_axis_name"))
    for options in meshes():
        got = draw(jax.random.key(3), x, w, b, where=LIVE, shape=(2, 3), **options)
        np.testing.assert_array_equal(got, wanted_samples())


def test_samples_are_the_same_where_both_leading_axes_are_sharded():
    x, w, b = arguments()
    mesh = cases.mesh(2, 4, AxisType.Explicit)
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "classes"))
    with jax.set_mesh(mesh):
        spread = jax.device_put(x.reshape(2, 4, D), spec)
        got = spelled.linear_sample(jax.random.key(3), spread, w, b, where=LIVE, class_axis_name=())
    np.testing.assert_array_equal(got.reshape(N), wanted_samples()[:, 0, 0])


def test_samples_inside_shard_map_count_the_examples_of_all_devices():
    x, w, b = arguments()
    spec = jax.sharding.PartitionSpec
    over = jax.shard_map(
        lambda key, x, w, b, live: spelled.linear_sample(
            key, x, w, b, where=live, axis_name="classes", batch_axis_name="data", block_size=2
        ),
        mesh=cases.mesh(8, 1),
        in_specs=(spec(), spec("data"), spec(None, "classes"), spec("classes"), spec("classes")),
        out_specs=spec("data"),
    )
    np.testing.assert_array_equal(over(jax.random.key(3), x, w, b, LIVE), wanted_samples()[:, 0, 0])


def test_every_kind_of_key_is_taken():
    x, w, b = arguments()
    new, old = jax.random.key(3), jax.random.PRNGKey(3)
    np.testing.assert_array_equal(*(spelled.linear_sample(key, x, w, b) for key in (new, old)))
    spelled.linear_sample(jax.random.key(3, impl="rbg"), x, w, b)


def test_vmap_over_keys_and_examples():
    x, w, b = arguments()
    keys = jax.random.split(jax.random.key(4), N)
    got = jax.vmap(lambda key, x: spelled.linear_sample(key, x, w, b, block_size=4))(keys, x)
    want = jnp.stack([spelled.linear_sample(key, x, w, b) for key, x in zip(keys, x, strict=True)])
    np.testing.assert_array_equal(got, want)
    top = jax.vmap(lambda x: spelled.linear_top_k(x, w, 3, b, block_size=2))(x)
    assert_sorted(top, scores_of(x, w, b), 3)


# --- planted faults -----------------------------------------------------------------------------------


def fails(test, *args):
    try:
        test(*args)
    except AssertionError:
        return True
    return False


@pytest.mark.slow  # every fault is a compilation of its own
def test_planted_faults_are_found(monkeypatch):
    def planted(name, fault, test, *args):
        with monkeypatch.context() as patch:
            patch.setattr(_decoding, name, fault)
            jax.clear_caches()
            assert fails(test, *args), name
        jax.clear_caches()

    gumbel = _decoding._gumbel
    planted(
        "_gumbel",
        lambda words, index, ids, dtype: gumbel(words, index, ids - ids[0], dtype),
        test_samples_are_the_same_for_every_block_and_tile,
        4,
    )
    planted(
        "_gumbel",
        lambda words, index, ids, dtype: gumbel(words, index - index[0], ids, dtype),
        test_samples_are_the_same_for_every_mesh,
    )
    planted(
        "_gumbel",
        lambda words, index, ids, dtype: 1.1 * gumbel(words, index, ids, dtype),
        test_samples_have_the_distribution_of_the_softmax,
        1.0,
    )
    few_bits = lambda words, index, ids, dtype: -jnp.log(-jnp.log(jnp.exp(-jnp.exp(-gumbel(words, index, ids, dtype)))))
    planted("_gumbel", few_bits, test_noise_has_the_gumbel_distribution_up_to_its_tail)
    first = _decoding._first
    backwards = lambda ranked, k: first(jax.tree.map(lambda a: a[..., ::-1], ranked), k)
    planted("_first", backwards, test_the_likeliest_classes_are_those_of_the_sorted_scores, 3, None, 4)
    planted("_first", backwards, test_the_likeliest_classes_over_a_mesh, 3)
