"""Precisions of mixtures, the likelihood of Gaussian mixtures on real data, and the soft codebook."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
import sklearn.mixture
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses

from . import cases, placed, spelled, table

N, K, D = 6, 13, 3
gaussian_mixture_nll_loss, soft_quantize, eol_loss, leop_loss = (
    placed.in_blocks(getattr(softjax, name))
    for name in ("gaussian_mixture_nll_loss", "soft_quantize", "eol_loss", "leop_loss")
)
PLACEMENTS = {"blocks": 5, "tiles": softjax.Placement(4, 5, "forward"), "whole": None}


def arrays(d=D, dtype="float64"):
    r = cases.Random(dtype)
    return r.normal(N, d), r.normal(K, d), r.normal(K)


def precisions_of(shape, dtype="float64"):
    return jnp.exp(cases.Random(dtype, seed=3).normal(*shape))


@pytest.mark.usefixtures("x64")
@pytest.mark.one_case_in(9)
@pytest.mark.parametrize("size", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("d", [2, 3])  # by differences and by a product
@pytest.mark.parametrize("of", ["classes and dimensions", "classes", "dimensions"])
def test_precisions_have_values_and_derivatives_of_the_definition(of, d, size):
    shape = {"classes and dimensions": (K, d), "classes": (K, 1), "dimensions": (d,)}[of]
    x, c, prior = arrays(d)
    function = lambda x, c, t, b: gaussian_mixture_nll_loss(x, c, t, log_prior=b, reduction="sum", block_size=size)
    definition = lambda x, c, t, b: table.gaussian_mixture_nll_loss(x, c, t, log_prior=b).sum()
    cases.agreement(function, definition)(x, c, precisions_of(shape), prior)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", [eol_loss, leop_loss], ids=["eol_loss", "leop_loss"])
def test_data_of_one_dimension_has_all_derivatives(loss):
    """The distances are taken relative to the data themselves, whose square still has a second derivative."""
    r = cases.Random("float64", seed=11)
    arguments = r.normal(N, 1), r.normal(N, 1), r.normal(K, 1), r.normal(K, 1)
    definition = table.eol_loss if loss is eol_loss else table.leop_loss
    cases.agreement(ft.partial(loss, block_size=5), definition)(*arguments)


@pytest.mark.usefixtures("x64")
def test_equal_precisions_are_a_temperature():
    z, c, prior = arrays()
    v = cases.Random("float64", seed=7).normal(K, 2)
    wanted = table.mixture_expectation(z, c, v, log_prior=prior, temperature=0.5)
    for shape in ((K, D), (K, 1), (D,)):
        got = spelled.mixture_expectation(z, c, v, log_prior=prior, precisions=jnp.full(shape, 2.0))
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("d", [2, 5])
def test_a_class_close_to_an_example_keeps_its_digits_however_narrow_and_far(d):
    """Clusters 1,000 widths apart, in float32, beside float64."""
    r = np.random.default_rng(0)
    c = r.normal(size=(K, d)) * 1000
    x = (c[:N] + r.normal(size=(N, d))).astype("float32")
    t, c = np.exp(r.normal(size=(K, d)) * 0.1).astype("float32"), c.astype("float32")
    got = gaussian_mixture_nll_loss(x, c, t, block_size=5)
    wanted = table.gaussian_mixture_nll_loss(*(a.astype("float64") for a in (x, c, t)))
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_the_likelihood_of_real_data_is_that_of_scikit_learn(covariance_type):
    data = sklearn.datasets.load_iris().data
    fitted = sklearn.mixture.GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(data)
    t = fitted.precisions_ if covariance_type == "diag" else fitted.precisions_[:, None]
    arguments = (jnp.asarray(a, jnp.float32) for a in (data, fitted.means_, t, np.log(fitted.weights_)))
    x, means, precisions, log_prior = arguments
    nll = ft.partial(softjax.gaussian_mixture_nll_loss, x, means, precisions, log_prior=log_prior)
    np.testing.assert_allclose(nll(), -fitted.score_samples(data), rtol=2e-5, atol=2e-5)  # of float32 parameters
    np.testing.assert_allclose(nll(reduction="mean"), -fitted.score(data), rtol=1e-6)


def test_one_gaussian_is_that_of_scipy():
    r = np.random.default_rng(1)
    x, mean, t = r.normal(size=(N, D)), r.normal(size=(1, D)), np.exp(r.normal(size=D))
    wanted = -scipy.stats.multivariate_normal(mean[0], np.diag(1 / t)).logpdf(x)
    got = softjax.gaussian_mixture_nll_loss(*(jnp.asarray(a, jnp.float32) for a in (x, mean, t)))
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@pytest.mark.usefixtures("x64")
def test_gradient_descent_fits_a_mixture_better_than_its_start():
    """All parameters are learned, and the likelihood comes close to that of scikit-learn's EM from the same start."""
    data = sklearn.datasets.load_iris().data[:, 2:]
    em = sklearn.mixture.GaussianMixture(2, covariance_type="diag", random_state=0, means_init=[[1.5, 0.2], [5, 1.7]])
    best = em.fit(data).score(data)
    start = jnp.array([[1.5, 0.2], [5, 1.7]]), jnp.zeros((2, 2)), jnp.zeros(2)
    nll = lambda p: softjax.gaussian_mixture_nll_loss(data, p[0], jnp.exp(p[1]), log_prior=p[2], reduction="mean")
    step = jax.jit(lambda p: jax.tree.map(lambda a, d: a - 0.05 * d, p, jax.grad(nll)(p)))
    params = start
    for _ in range(3000):
        params = step(params)
    assert -nll(start) < best - 0.5
    np.testing.assert_allclose(-nll(params), best, atol=2e-3)


@pytest.mark.usefixtures("x64")
def test_a_mixture_density_network_is_the_same_loss_of_a_linear_layer():
    r = cases.Random("float64", seed=5)
    features, kernel, x, means, t = (
        r.normal(N, 4),
        r.normal(4, K),
        r.normal(N, D),
        r.normal(K, D),
        precisions_of((K, 1)),
    )

    def function(features, kernel, x, means, t):
        return spelled.of_linear(losses.gaussian_mixture(), features, kernel, x, (means, t), block_size=5)

    def definition(features, kernel, x, means, t):
        z = features @ kernel
        return table.log_sum_exp(z) - table.log_sum_exp(z + table.log_gaussian(x, means, t))

    cases.agreement(function, definition)(features, kernel, x, means, t)


def test_a_component_that_is_left_out_does_not_matter():
    x, c, prior = arrays(dtype="float32")
    t, where = precisions_of((K, D), "float32"), np.arange(K) % 3 != 1
    nll = lambda c, t: gaussian_mixture_nll_loss(x, c, t, log_prior=prior, where=where, block_size=5).sum()
    spoiled = jnp.where(where[:, None], c, jnp.nan), jnp.where(where[:, None], t, -1)
    value_and_gradients = cases.compiled(jax.value_and_grad(nll, (0, 1)))
    wanted, got = value_and_gradients(c, t), value_and_gradients(*spoiled)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert np.isfinite(jax.tree.leaves(got)[1]).all()


def test_wrong_precisions_are_refused_in_words():
    x, c, _ = arrays(dtype="float32")
    wanted = r"`precisions` must have shape \(13, 3\), \(13, 1\) or \(3,\) \(\[K, D\], \[K, 1\] or \[D\]"
    for shape in ((), (K,), (1, D), (K, D + 1)):
        with pytest.raises(ValueError, match=wanted):
            softjax.gaussian_mixture_nll_loss(x, c, jnp.ones(shape))
        with pytest.raises(ValueError, match=wanted):
            softjax.distances(x, c, precisions=jnp.ones(shape))
    with pytest.raises(ValueError, match=r"`precisions` must be a scalar or have shape \[D\], got \(13, 3\)"):
        losses.gaussian_mixture(jnp.ones((K, D)))
    with pytest.raises(ValueError, match=r"`x` must have shape \(6, 3\)"):
        softjax.gaussian_mixture_nll_loss(jnp.ones((N, 2)), c)


# --- the soft codebook ------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [5, None])
@pytest.mark.parametrize("masked", [False, True])
def test_a_soft_codebook_is_its_definition(masked, size):
    z, c, prior = arrays()
    v = cases.Random("float64", seed=7).normal(K, 2)
    where = np.arange(K) % 3 != 1 if masked else None
    options = {"log_prior": prior, "temperature": 0.3, "where": where, "precisions": precisions_of((K, 1))}
    for values in (None, v):
        got = soft_quantize(z, c, values, block_size=size, **options)
        wanted = table.soft_quantize(z, c, values, **options)
        np.testing.assert_allclose(got.values, wanted.values, rtol=1e-11)
        np.testing.assert_array_equal(got.ids, wanted.ids)
        np.testing.assert_allclose(got.usage, wanted.usage, rtol=1e-6)
        np.testing.assert_allclose(got.perplexity, wanted.perplexity, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_values_of_a_codebook_have_the_derivatives_of_an_expectation():
    z, c, _ = arrays()
    function = lambda z, c: soft_quantize(z, c, temperature=0.5, block_size=5).values
    cases.agreement(function, lambda z, c: table.mixture_expectation(z, c, c, temperature=0.5))(z, c)


def test_a_cold_codebook_is_the_nearest_code():
    z, c, _ = arrays(dtype="float32")
    nearest = ((z[:, None] - c) ** 2).sum(-1).argmin(-1)
    got = soft_quantize(z[None], c, temperature=1e-4, block_size=5)
    np.testing.assert_array_equal(got.ids, nearest[None])
    np.testing.assert_allclose(got.values, c[nearest][None], rtol=1e-6)
    np.testing.assert_allclose(got.usage, np.bincount(nearest, minlength=K) / N, rtol=1e-6)
    assert 1 <= got.perplexity <= N


def test_usage_has_no_gradient_and_no_array_of_all_scores():
    n, k = 64, 4096
    r = cases.Random("float32")
    z, c = r.normal(n, D), r.normal(k, D)
    quantize = lambda z, c: soft_quantize(z, c, block_size=64)
    of_usage = jax.grad(lambda c: quantize(z, c).usage @ jnp.arange(k, dtype="float32"))(c)
    np.testing.assert_array_equal(of_usage, 0)
    compiled = jax.jit(jax.value_and_grad(lambda z, c: quantize(z, c).values.sum(), (0, 1))).lower(z, c).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * k * 4 / 2


def test_examples_without_a_code_have_id_minus_1():
    z, c, _ = arrays(dtype="float32")
    got = softjax.soft_quantize(z, c, where=np.zeros(K, bool))
    np.testing.assert_array_equal(got.values, 0)
    np.testing.assert_array_equal(got.ids, -1)
    np.testing.assert_array_equal(got.usage, 0)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_codebook_over_a_mesh(kind):
    mesh = cases.mesh(2, 4, kind)
    r = cases.Random("float32")
    z, c = r.normal(8, D), r.normal(16, D)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    quantize = jax.jit(ft.partial(softjax.soft_quantize, temperature=0.3))
    got, wanted = quantize(place(z, "data"), place(c, "classes")), softjax.soft_quantize(z, c, temperature=0.3)
    np.testing.assert_allclose(got.values, wanted.values, rtol=1e-5)
    np.testing.assert_array_equal(got.ids, wanted.ids)
    np.testing.assert_allclose(got.usage, wanted.usage)
    assert got.values.sharding.spec == P("data", *[None] * (len(got.values.sharding.spec) - 1))
