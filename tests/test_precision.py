"""Precision: half-precision operands in their own type, the rounding of cotangents, and `dtype`, beside float64."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import softjax

from . import cases, spelled
from .test_platforms import EXACT as HIGHEST
from .test_platforms import products

N, D, K = 48, 64, 301
ce = spelled.linear_softmax_cross_entropy
PLACES = {
    "whole": None,
    "tiles": softjax.Placement(20, 100, "forward"),
    "blocks": softjax.Placement(N, 100),
    "some kept": softjax.Placement(N, 100, "forward", 100),
    "none kept": softjax.Placement(N, 100, "forward", 0),
    "both": softjax.Placement(20, 100),
}
HALF = ("bfloat16", "float16")


def arguments(dtype="float32", scale=1.0):
    r = cases.Random("float32", seed=2)
    x, w = r.normal(N, D, scale=scale), r.normal(D, K, scale=D**-0.5)
    return x.astype(dtype), w.astype(dtype), r.integers(K, N)


def mean_loss(y, **options):
    return lambda x, w: ce(x, w, y, reduction="mean", **options)


def truth(x, w, y):
    """The mean of -log p_y and its gradients, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    z = x @ w
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dz = (p - np.eye(w.shape[1])[y]) / len(y)
    return -np.log(p[np.arange(len(y)), y]).mean(), (dz @ w.T, x.T @ dz)


def rms(got, want):
    got = np.asarray(got, np.float64)
    return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


# Errors of gradients that arrive in float32, by the rounding of the cotangent; then rounded to the type of the arrays.
LEVELS = {
    ("bfloat16", "default"): 3e-3,
    ("bfloat16", "high"): 5e-6,
    ("bfloat16", "highest"): 2e-6,
    ("float16", "default"): 2e-6,
    ("float16", "highest"): 2e-6,
}


@pytest.mark.parametrize(
    "place", [place if place == "tiles" else pytest.param(place, marks=pytest.mark.slow) for place in PLACES]
)
@pytest.mark.parametrize(("kind", "precision"), LEVELS)
@pytest.mark.one_case_in(2)
def test_gradients_are_as_exact_as_their_level(kind, precision, place):
    """For arrays of half precision, and for float32 arrays that `dtype` rounds."""
    x, w, y = arguments(kind)
    value, gradients = truth(x, w, y)
    options = {"precision": precision, "block_size": PLACES[place]}
    wide = [a.astype("float32") for a in (x, w)]
    for args, more, rounding in (((x, w), {}, float(jnp.finfo(kind).eps) / 3), (wide, {"dtype": kind}, 0.0)):
        got, found = cases.compiled(jax.value_and_grad(mean_loss(y, **options, **more), (0, 1)))(*args)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        for a, given, want in zip(found, args, gradients, strict=True):
            assert a.dtype == given.dtype
            assert rms(a, want) <= np.hypot(LEVELS[kind, precision], rounding)


def test_the_levels_differ():
    """The bounds above would not show a level that is taken for another."""
    x, w, y = arguments("bfloat16")
    x, w = x.astype("float32"), w.astype("float32")
    _, (_, want) = truth(x, w, y)
    grad = lambda p: cases.compiled(jax.grad(mean_loss(y, precision=p, dtype="bfloat16"), 1))(x, w)
    default, high, highest = (rms(grad(p), want) for p in ("default", "high", "highest"))
    assert default > 3e-4 > 30 * high
    assert highest < 1e-6


@pytest.mark.parametrize("kind", HALF)
def test_probabilities_of_1e_minus_8_do_not_underflow(kind):
    """The gradient for classes that are e^18 less likely than the label, with the weight 1/N of a mean."""
    w = jnp.zeros((1, 5), kind).at[0, 0].set(18)
    x, y = jnp.ones((4, 1), kind), jnp.zeros(4, int)
    slope = cases.compiled(jax.grad(mean_loss(y, precision="default", dtype=kind), 1))
    gradient = slope(x.astype("float32"), w.astype("float32"))
    p = np.exp(-18.0) / (1 + 4 * np.exp(-18.0))
    np.testing.assert_allclose(gradient[0], [-4 * p, p, p, p, p], rtol=4e-3)
    assert p < 2e-8


IN_BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32
ON_ACCELERATORS = {IN_BFLOAT16, HIGHEST}  # each product of bfloat16 beside one of float32 for CPUs


@pytest.mark.parametrize("place", PLACES)
def test_every_product_is_of_bfloat16_in_both_passes(place):
    x, w, y = arguments("bfloat16")
    for args, more in (((x, w), {}), ((x, w.astype("float32")), {"dtype": jnp.bfloat16})):
        loss = mean_loss(y, precision="default", block_size=PLACES[place], **more)
        found = products(jax.value_and_grad(loss, (0, 1)), *args)
        assert len(found) >= 3
        assert set(found) == ON_ACCELERATORS
        assert found.count(IN_BFLOAT16) == found.count(HIGHEST)


def of_gradient(x, w, y, **options):
    return set(products(jax.value_and_grad(mean_loss(y, **options), (0, 1)), x, w))


def test_float32_is_multiplied_as_asked_by_argument_or_by_default():
    both = lambda level: {(level, level)}
    given = arguments()
    with jax.default_matmul_precision(None):
        assert of_gradient(*given) == {HIGHEST}
        assert of_gradient(*given, precision="high") == both(lax.Precision.HIGH)
        assert of_gradient(*given, precision=lax.Precision.DEFAULT) == both(lax.Precision.DEFAULT)
    for name, level in (("default", lax.Precision.DEFAULT), ("high", lax.Precision.HIGH)):
        with jax.default_matmul_precision(name):
            assert of_gradient(*given) == both(level)
            assert of_gradient(*given, precision="highest") == {HIGHEST}


@pytest.mark.parametrize(
    ("name", "found"),
    {"bfloat16": ON_ACCELERATORS, "default": ON_ACCELERATORS, "float32": {HIGHEST}, "highest": {HIGHEST}}.items(),
)
def test_bfloat16_is_multiplied_as_the_default_says(name, found):
    with jax.default_matmul_precision(name):
        assert of_gradient(*arguments("bfloat16")) == found
        assert of_gradient(*arguments("float16")) == {HIGHEST}


def test_without_a_default_cpus_multiply_bfloat16_in_float32(monkeypatch):
    with jax.default_matmul_precision(None):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        assert of_gradient(*arguments("bfloat16")) == {HIGHEST}
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        assert of_gradient(*arguments("bfloat16")) == ON_ACCELERATORS


def test_forward_mode_and_hessians():
    """Of the rounded product: within the rounding of the tangents."""
    x, w, y = arguments("bfloat16")
    loss = mean_loss(y, precision="default", block_size=PLACES["blocks"])
    exact = lambda x, w: (jax.nn.logsumexp(x @ w, -1) - jnp.take_along_axis(x @ w, y[:, None], 1)[:, 0]).mean()
    wide = [a.astype("float32") for a in (x, w)]
    tangent = cases.compiled(lambda *args: jax.jvp(loss, args, args)[1])(x, w)
    np.testing.assert_allclose(tangent, jax.jvp(exact, wide, wide)[1], rtol=5e-3)
    hvp = lambda f: cases.compiled(lambda *args: jax.jvp(jax.grad(f, (0, 1)), args, args)[1])
    for got, want in zip(hvp(loss)(x, w), hvp(exact)(*wide), strict=True):
        assert rms(got, np.asarray(want, np.float64)) < 2e-2


@pytest.mark.parametrize("place", ["tiles", "blocks"])
def test_hessians_through_a_scan(place):
    """Reverse and then forward mode, in which JAX 0.10 drops the custom rules of a scan."""
    x, w, y = arguments("bfloat16")

    def of(loss):
        run = lambda w: lax.scan(lambda w, _: ((0.9 * w).astype(w.dtype), loss(x, w)), w, length=2)[1].sum()
        return cases.compiled(lambda w: jax.jvp(jax.grad(run), (w,), (w,))[1])(w)

    exact = lambda x, w: mean_loss(y, precision="highest")(x.astype("float32"), w.astype("float32"))
    got = of(mean_loss(y, precision="default", block_size=PLACES[place]))
    assert rms(got, np.asarray(of(exact), np.float64)) < 2e-2


def test_vmap_over_kernels():
    x, w, y = arguments("bfloat16")
    loss = mean_loss(y, precision="default")
    kernels = jnp.stack([w, w / 2])
    got = cases.compiled(jax.vmap(jax.grad(loss, 1), (None, 0)))(x, kernels)
    for a, kernel in zip(got, kernels, strict=True):
        assert rms(a, truth(x, kernel, y)[1][1]) < 4e-3


def test_over_a_mesh_gradients_of_devices_are_added_up_before_they_are_rounded():
    x, w, y = arguments("bfloat16")
    w = w[:, :300]
    y = y % 300
    over = ft.partial(
        spelled.linear_softmax_cross_entropy,
        mesh=cases.mesh(2, 4),
        class_axis_name="classes",
        batch_axis_name="data",
        reduction="mean",
        precision="high",
    )
    value, gradients = jax.jit(jax.value_and_grad(lambda x, w: over(x, w, y), (0, 1)))(x, w)
    want, wanted = truth(x, w, y)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for a, b in zip(gradients, wanted, strict=True):
        assert rms(a, b) < 2e-3
