"""The accuracy of losses with the elementary functions of TPUs, whose errors a CPU imitates here.

The largest errors of float32, in units in the last place, are those of JAX's document "Numerical accuracy" (2026).
"""

import contextlib
import functools as ft
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir

import softjax
from softjax import losses
from softjax.sums import elementary

from . import table, test_rows

# Of log and log1p, and of a reciprocal; exp and expm1 are asked for their mode of more digits.
UNITS = {"v5e": (4030, 198), "v5p": (62, 198), "v6e": (3, 198)}
OF_MODE = {"exp": 1.5, "expm1": 2}
SIGNS = {
    "random": lambda x: jnp.where(lax.bitcast_convert_type(x, "uint32") * jnp.uint32(2654435761) >> 31 == 0, 1, -1),
    "above": lambda x: jnp.ones(x.shape, int),
    "below": lambda x: -jnp.ones(x.shape, int),
}


def with_error(function, units, sign):
    def of(x, **mode):
        y = function(x, **mode)
        return y * (1 + units * jnp.finfo(y.dtype).eps * sign(x).astype(y.dtype)) if y.dtype == "float32" else y

    return of


@contextlib.contextmanager
def tpu(kind, sign="random", *, steps=True):
    """Programs that are compiled inside have the functions of a TPU, and the library's steps on these."""
    of_log, of_reciprocal = UNITS[kind]
    noisy = {name: with_error(getattr(lax, name), units, SIGNS[sign]) for name, units in OF_MODE.items()}
    plain = {
        "log": (jnp.log, of_log, elementary.LOG_STEP),
        "log1p": (jnp.log1p, of_log, elementary.LOG1P_STEP),
        "reciprocal": (lambda x: 1 / x, of_reciprocal, elementary.RECIPROCAL_STEP),
    }

    def lower(of):
        for name in plain:
            rule = mlir.lower_fun(of(name), multiple_results=False)
            mlir.register_lowering(getattr(elementary, name).__self__, rule, platform="cpu")
        jax.clear_caches()

    def imitated(name):
        function, units, step = plain[name]
        function = with_error(function, units, SIGNS[sign])
        return elementary.stepped(function, step) if steps else function

    shim = types.SimpleNamespace(**noisy, AccuracyMode=lax.AccuracyMode)
    lower(imitated)
    try:
        of_tpus = lambda *args, default, tpu=None, **_: (tpu or default)(*args)
        with mock.patch.object(elementary, "lax", shim), mock.patch.object(lax, "platform_dependent", of_tpus):
            yield
    finally:
        lower(lambda name: plain[name][0])


N, K, D, E = 24, 40, 8, 3
SCALES = {"unsure": 0.3, "sure": 4.0, "very sure": 30.0}


def arrays(scale):
    r = np.random.default_rng(1)
    normal = lambda *shape: r.normal(size=shape).astype(np.float32)
    return {
        "z": scale * normal(N, K),
        "y": r.integers(K, size=N),
        "values": normal(K),
        "latents": normal(N, D),
        "centers": (scale * normal(K, D)) if scale < 10 else 10 * normal(K, D),
        "x": normal(N, E),
        "v": normal(K, E),
        "p": np.exp(2 * normal(N, K)),
    }


LABELLED = softjax.softmax_cross_entropy_with_integer_labels
# name: (function, definition, names of its arrays, how many of them have gradients)
FUNCTIONS = {
    "logsumexp": (lambda z: softjax.logsumexp(z, axis=-1), lambda z: jax.nn.logsumexp(z, -1), "z", 1),
    "softmax": (softjax.softmax, jax.nn.softmax, "z", 1),
    "cross entropy": (LABELLED, table.softmax_cross_entropy_with_integer_labels, "z y", 1),
    "cross entropy in blocks": (
        lambda z, y: LABELLED(in_blocks(z), y),
        table.softmax_cross_entropy_with_integer_labels,
        "z y",
        1,
    ),
    "smoothing and z-loss": (
        lambda z, y: LABELLED(in_blocks(z), y, label_smoothing=0.1, z_loss=1e-3),
        lambda z, y: table.linear_softmax_cross_entropy(z, jnp.eye(K), y, label_smoothing=0.1, z_loss=1e-3),
        "z y",
        1,
    ),
    "entropy": (lambda z: softjax.entropy(in_blocks(z)), lambda z: test_rows.FUNCTIONS["entropy"][1](z, None), "z", 1),
    "expectation": (
        lambda z, v: softjax.expectation(in_blocks(z), v),
        lambda z, v: jax.nn.softmax(z) @ v,
        "z values",
        2,
    ),
    "binary cross entropy": (
        lambda z, y: softjax.sigmoid_binary_cross_entropy(in_blocks(z), y[:, None]),
        lambda z, y: test_rows.binary(z, y[:, None], k=K),
        "z y",
        1,
    ),
    "focal": (
        lambda z, y: softjax.of(losses.focal(2.0), in_blocks(z), y),
        lambda z, y: test_rows.focal(2.0, z, y, k=K),
        "z y",
        1,
    ),
    "mixture": (softjax.mixture_autoencoder_loss, table.mixture_autoencoder_loss, "latents x centers v", 4),
    "LEOP": (softjax.leop_loss, table.leop_loss, "latents x centers v", 4),
}


def in_blocks(z):
    return softjax.linear(jnp.zeros((len(z), 1)), jnp.zeros((1, K)), block_size=16) + z


def value_and_gradients(function, given, moving, ct):
    value, back = jax.vjp(lambda *moved: function(*moved, *given[moving:]), *given[:moving])
    return value, back(ct)


def errors(name, scale):
    """The largest error of the values, relative to each, and of the gradients, relative to the largest of an array.

    Values that are differences of larger terms are compared with the largest.
    """
    ours, definition, names, moving = FUNCTIONS[name]
    of_all = arrays(scale)
    given = [of_all[n] for n in names.split()]
    with jax.enable_x64(True):
        wide = [a.astype(float) if a.dtype == np.float32 else a for a in given]
        ct = np.random.default_rng(2).normal(size=jax.eval_shape(definition, *wide).shape).astype(np.float32)
        want = jax.jit(ft.partial(value_and_gradients, definition, moving=moving))(wide, ct=ct.astype(float))
        want = jax.tree.map(np.asarray, want)
    got = jax.jit(ft.partial(value_and_gradients, ours, moving=moving))(given, ct=ct)
    (value, gradients), (of_value, of_gradients) = jax.tree.map(np.asarray, got), want
    relative = lambda a, b: np.abs(a - b).max() / np.abs(b).max()
    cancels = name in ("softmax", "expectation", "mixture", "LEOP")
    size = np.abs(of_value).max() if cancels else np.maximum(np.abs(of_value), 1e-30)
    return (np.abs(value - of_value) / size).max(), max(map(relative, gradients, of_gradients))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("kind", "sign"),
    [("v5e", "random"), *(pytest.param(k, s, marks=pytest.mark.slow) for k in UNITS for s in SIGNS)],
)
def test_the_limits_of_the_contract_hold(kind, sign, name):
    """2e-6, or twice the error of a CPU where that of float32's logits is more."""
    for scale in SCALES.values():
        of_cpu = errors(name, scale)
        with tpu(kind, sign):
            found = errors(name, scale)
        assert all(a < max(2e-6, 2 * b) for a, b in zip(found, of_cpu, strict=True)), (scale, found, of_cpu)


def test_without_the_steps_they_do_not_hold():
    with tpu("v5e", steps=False):
        assert errors("cross entropy", SCALES["unsure"])[0] > 1e-4
        assert errors("expectation", SCALES["unsure"])[0] > 1e-5


def elementary_primitives(jaxpr):
    """The elementary functions of a program, and whether they are asked for all digits."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in OF_MODE:
            yield name, equation.params["accuracy"] is lax.AccuracyMode.HIGHEST
        elif name in ("log", "log1p", "logistic", "tanh", "pow", "erf", "sin", "cos", "exp2", "atan2", "rsqrt", "cbrt"):
            yield name, False
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from elementary_primitives(inner)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_other_function_of_the_device_is_used(name):
    ours, _, names, moving = FUNCTIONS[name]
    of_all = arrays(1.0)
    given = [of_all[n] for n in names.split()]
    ct = jnp.ones(jax.eval_shape(ours, *given).shape)
    jaxpr = jax.make_jaxpr(ft.partial(value_and_gradients, ours, moving=moving))(given, ct=ct)
    found = set(elementary_primitives(jaxpr.jaxpr))
    allowed = {("pow", False)} if name == "focal" else set()
    assert found <= {("exp", True), ("expm1", True)} | allowed
    assert found


def test_a_function_of_the_device_is_found():
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: lax.map(lambda x: jnp.exp(x) + jnp.tanh(x), x)))(jnp.ones(3))
    assert set(elementary_primitives(jaxpr.jaxpr)) == {("exp", False), ("tanh", False)}
