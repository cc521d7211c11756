"""The table that the tests cross: every public function beside its definition in the words of the texts.

The definitions are plain mathematics, differentiated by JAX; nothing here uses the library's own sums.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax


class Case(NamedTuple):
    name: str
    function: Callable
    definition: Callable
    arguments: Callable  # (random, scale) -> arguments


def mesh(data, classes, kind=jax.sharding.AxisType.Auto):
    """A mesh of the devices of the tests."""
    return jax.make_mesh((data, classes), ("data", "classes"), axis_types=(kind,) * 2)


class Random:
    """Seeded arrays of one type."""

    def __init__(self, dtype, seed=0):
        self.dtype, self.generator = dtype, np.random.default_rng(seed)

    def normal(self, *shape, scale=1.0, offset=0.0):
        return jnp.asarray(scale * self.generator.normal(size=shape) + offset, self.dtype)

    def integers(self, high, *shape):
        return jnp.asarray(self.generator.integers(high, size=shape), jnp.int32)


# --- tiers --------------------------------------------------------------------------------------


def in_tiers(cells, fast):
    """(parameters by their names), of which those whose name is not `fast` are slow."""
    marks = lambda name: [] if name in fast else [pytest.mark.slow]
    return [
        pytest.param(*(of if type(of) is tuple else (of,)), id=name, marks=marks(name))
        for name, of in cells.items()
    ]


# --- compiling and comparing --------------------------------------------------------------------


def known_to_xla(options):
    """Those that the installed compiler has."""

    def is_known(name):
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: options[name] for name in options if is_known(name)}


# Most of the tests' time is that of the compiler, and what is compiled runs once or twice. What users get is compiled
# as they do in the tests of accuracy, memory and edges.
QUICKLY = known_to_xla({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
compiled = ft.partial(jax.jit, compiler_options=QUICKLY)

PARTS = ("value", "gradient", "value along", "gradient along")


def in_all_modes(function):
    """The value, the gradient for a cotangent, and the derivatives of both along a tangent, in one program."""

    def of(moving, fixed, cotangent, tangent):
        def reverse_mode(moving):
            value, back = jax.vjp(lambda moving: function(*joined(moving, fixed)), moving)
            return value, back(cotangent)[0]

        (value, gradient), along = jax.jvp(reverse_mode, (moving,), (tangent,))
        return dict(zip(PARTS, (value, gradient, *along), strict=True))

    return of


def parted(args):
    """(the floating-point arrays, everything else), each with None where the other has something."""
    moves = lambda a: jnp.issubdtype(jnp.result_type(a), jnp.inexact)
    return jax.tree.map(lambda a: a if moves(a) else None, args), jax.tree.map(lambda a: None if moves(a) else a, args)


def joined(moving, fixed):
    return jax.tree.map(lambda a, b: b if a is None else a, moving, fixed, is_leaf=lambda a: a is None)


def assert_close(got, want, rtol=None):
    """Errors are relative to the largest element of each array; None allows eps^(2/3)."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        limit = rtol or float(jnp.finfo(b.dtype).eps) ** (2 / 3)
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0)
        assert error <= limit * (np.abs(b).max(initial=0) or 1), f"{where} is off by {error:.1e}, of {np.abs(b).max()}"


def agreement(function, definition):
    """A check that both have the same derivatives; one compilation serves all arguments of the same shapes."""
    ours, theirs = (compiled(in_all_modes(f)) for f in (function, definition))

    def check(*args, rtol=None, parts=PARTS):
        moving, fixed = parted(args)
        random = np.random.default_rng(5)
        normal_like = ft.partial(jax.tree.map, lambda a: jnp.asarray(random.normal(size=a.shape), a.dtype))
        given = moving, fixed, normal_like(jax.eval_shape(definition, *args)), normal_like(moving)
        got, want = ours(*given), theirs(*given)
        assert_close(*({part: both[part] for part in parts} for both in (got, want)), rtol)

    return check


# --- definitions --------------------------------------------------------------------------------


def softmax(z, axis=-1, where=None):
    """p_k = exp(z_k) / sum_j exp(z_j), shifted by the maximum as the second text does."""
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    e = jnp.exp(z - jax.lax.stop_gradient(z.max(axis, keepdims=True)))
    return e / e.sum(axis, keepdims=True)


def log_sum_exp(z, axis=-1, where=None):
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    m = jax.lax.stop_gradient(z.max(axis, keepdims=True))
    return (jnp.log(jnp.exp(z - m).sum(axis, keepdims=True)) + m).squeeze(axis)


def log_softmax(z, axis=-1):
    return z - jnp.expand_dims(log_sum_exp(z, axis), axis)


def expectation(z, t, axis=-1, where=None):
    return (softmax(z, axis, where) * t).sum(axis)


def entropy(z, axis=-1, where=None):
    safe = z if where is None else jnp.where(where, z, 0)
    return log_sum_exp(z, axis, where) - expectation(z, safe, axis, where)


def cross_entropy(z, y):
    """-sum_k y_k log p_k."""
    return -(y * log_softmax(z)).sum(-1)


def softmax_loss(z, y):
    """log sum_m exp(z_m) - z_y."""
    return log_sum_exp(z) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]


def svm(s, y, margin):
    """sum_{k != y} max(0, s_k - s_y + margin)."""
    over = jnp.maximum(0, s - jnp.take_along_axis(s, y[..., None], -1) + margin)
    return jnp.where(jnp.arange(s.shape[-1], dtype=y.dtype) == y[..., None], 0, over).sum(-1)


def hinge(s, y, margin):
    """max(0, max_{k != y} s_k - s_y + margin)."""
    others = jnp.where(jnp.arange(s.shape[-1], dtype=y.dtype) == y[..., None], -jnp.inf, s)
    return jnp.maximum(0, others.max(-1) - jnp.take_along_axis(s, y[..., None], -1)[..., 0] + margin)


def mixture(z, c, log_prior=None, temperature=1.0, where=None):
    """p_k = softargmax of h_k = sum_d -(z_d - c_kd)^2."""
    h = -((z[..., None, :] - c) ** 2).sum(-1) / temperature
    h = h if log_prior is None else h + log_prior
    return softmax(h, where=where)


def decode(z, c, a, **options):
    return mixture(z, c, **options) @ a


def autoencoder(z, x, c, a, **options):
    """sum_e (x_e - sum_k p_k A_ke)^2."""
    return ((x - decode(z, c, a, **options)) ** 2).sum(-1)


def log_likelihood(x, a):
    """log p(x|k) = -sum_e (x_e - A_ke)^2."""
    return -((x[..., None, :] - a) ** 2).sum(-1)


def minus_eol(z, x, c, a, **options):
    """-sum_k p(c_k) log p(x|c_k)."""
    return -(mixture(z, c, **options) * log_likelihood(x, a)).sum(-1)


def leop(z, x, c, a, **options):
    """-log sum_k p(c_k) p(x|c_k), shifted by the largest log-likelihood."""
    p, log_p_x = mixture(z, c, **options), log_likelihood(x, a)
    m = jax.lax.stop_gradient(log_p_x.max(-1, keepdims=True))
    return -(jnp.log((p * jnp.exp(log_p_x - m)).sum(-1)) + m[..., 0])


# --- the table ----------------------------------------------------------------------------------

N, K, D, E = 4, 13, 3, 5
WHERE = np.arange(K) % 3 != 1


def logits(r, scale):
    """A scale of 0 gives small logits, all about -20: there a class that is none would show."""
    return r.normal(N, K, scale=scale or 0.1, offset=0 if scale else -20)


def mixture_arguments(r, scale, *more):
    scale = scale or 0.1
    size = {"z": (N, D), "x": (N, E), "c": (K, D), "a": (K, E), "prior": (K,)}
    return tuple(r.normal(*size[name], scale=min(scale, 3.0)) for name in ("z", "x", "c", "a", *more))


def with_log_prior(function, **options):
    return lambda *args: function(*args[:-1], log_prior=args[-1], **options)


def with_temperature(function):
    return lambda *args: function(*args[:-1], temperature=jnp.exp(args[-1]))


def labels(r):
    return r.integers(K, N).at[0].set(0).at[1].set(K - 1)


ON_LOGITS = [
    Case("softmax", softjax.softmax, softmax, lambda r, s: (logits(r, s),)),
    Case("softmax_axis_0", lambda z: softjax.softmax(z, 0), lambda z: softmax(z, 0), lambda r, s: (logits(r, s),)),
    Case(
        "softmax_axes_where",
        lambda z: softjax.softmax(z, (0, 2), where=WHERE),
        lambda z: softmax(z, (0, 2), WHERE),
        lambda r, s: (r.normal(2, 3, K, scale=s),),
    ),
    Case("log_softmax", softjax.log_softmax, log_softmax, lambda r, s: (logits(r, s),)),
    Case("logsumexp", lambda z: softjax.logsumexp(z, -1), log_sum_exp, lambda r, s: (logits(r, s),)),
    Case(
        "logsumexp_where",
        lambda z: softjax.logsumexp(z, 1, where=WHERE),
        lambda z: log_sum_exp(z, 1, WHERE),
        lambda r, s: (logits(r, s),),
    ),
    Case("entropy", softjax.entropy, entropy, lambda r, s: (logits(r, s),)),
    Case(
        "entropy_where",
        lambda z: softjax.entropy(z, where=WHERE),
        lambda z: entropy(z, where=WHERE),
        lambda r, s: (logits(r, s),),
    ),
    Case("expectation", softjax.expectation, expectation, lambda r, s: (logits(r, s), r.normal(N, K))),
    Case(
        "expectation_where",
        lambda z, t: softjax.expectation(z, t, where=WHERE),
        lambda z, t: expectation(z, t, where=WHERE),
        lambda r, s: (logits(r, s), r.normal(1, K)),
    ),
    Case(
        "expectation_of_logits",
        lambda z: softjax.expectation(z, z**2),
        lambda z: expectation(z, z**2),
        lambda r, s: (logits(r, s),),
    ),
    Case("cross_entropy", softjax.softmax_cross_entropy, cross_entropy, lambda r, s: (logits(r, s), r.normal(N, K))),
    Case(
        "integer_cross_entropy",
        softjax.softmax_cross_entropy_with_integer_labels,
        softmax_loss,
        lambda r, s: (logits(r, s), labels(r)),
    ),
    Case(
        "svm",
        lambda s, y: softjax.multiclass_svm_loss(s, y, margin=0.7),
        lambda s, y: svm(s, y, 0.7),
        lambda r, s: (logits(r, s or 0.1), labels(r)),
    ),
    Case(
        "hinge",
        lambda s, y: softjax.multiclass_hinge_loss(s, y, margin=0.7),
        lambda s, y: hinge(s, y, 0.7),
        lambda r, s: (logits(r, s or 0.1), labels(r)),
    ),
]

MIXTURES = [
    Case("autoencoder", softjax.mixture_autoencoder_loss, autoencoder, mixture_arguments),
    Case("eol", softjax.eol_loss, minus_eol, mixture_arguments),
    Case("leop", softjax.leop_loss, leop, mixture_arguments),
    Case(
        "decode",
        softjax.mixture_expectation,
        decode,
        lambda r, s: tuple(a for i, a in enumerate(mixture_arguments(r, s)) if i != 1),
    ),
]

BLOCKS = {"whole": None, "ragged": 5, "single": 1}  # classes at a time


def in_blocks(case, size):
    return case._replace(function=ft.partial(case.function, block_size=size))


def with_options(case):
    """The case with a prior per class as a last argument, a mask and a temperature."""
    options = {"temperature": 1.7, "where": WHERE}
    return Case(
        case.name,
        with_log_prior(case.function, **options),
        with_log_prior(case.definition, **options),
        lambda r, s: (*case.arguments(r, s), r.normal(K)),
    )


def of_temperature(case):
    """The case with the logarithm of the temperature as a last argument."""
    return Case(
        case.name,
        with_temperature(case.function),
        with_temperature(case.definition),
        lambda r, s: (*case.arguments(r, s), r.normal()),
    )
