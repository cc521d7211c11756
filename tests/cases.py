"""Shared by the tests: compiling, comparing, and functions of the table with options and positional arguments."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import spelled, table


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
    """Test parameters from a dictionary of names; a name that is not in `fast` gets the marker `slow`."""
    marks = lambda name: [] if name in fast else [pytest.mark.slow]
    return [
        pytest.param(*(of if type(of) is tuple else (of,)), id=name, marks=marks(name)) for name, of in cells.items()
    ]


# --- compiling and comparing --------------------------------------------------------------------


def known_to_xla(options):
    """The options that the installed compiler has."""

    def is_known(name):
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: options[name] for name in options if is_known(name)}


# Compiling takes most of the tests' time, and most programs run once or twice. The fixture `optimised` is for the tests
# of digits and memory, whose programs are compiled as users compile them.
QUICKLY = known_to_xla(
    {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,  # modules of LLVM for one program
    }
)
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


# --- definitions of the table, by the names of the mathematics -----------------------------------

softmax, expectation, entropy = table.softmax, table.expectation, table.entropy
log_sum_exp, log_softmax = table.log_sum_exp, table.log_softmax
cross_entropy = table.softmax_cross_entropy
softmax_loss = table.softmax_cross_entropy_with_integer_labels
mixture, log_likelihood, decode = table.mixture, table.log_likelihood, table.mixture_expectation
autoencoder, minus_eol, leop = table.mixture_autoencoder_loss, table.eol_loss, table.leop_loss

# --- functions of positional arguments, some with options ----------------------------------------

SIZES = table.Sizes()
(N,), K, D, E = SIZES
WHERE = np.arange(K) % 3 != 1


def logits(r, scale):
    return table.logits(r, SIZES, scale)


def mixture_arguments(r, scale, *more):
    scale = scale or 0.1
    size = {"z": (N, D), "x": (N, E), "c": (K, D), "a": (K, E), "prior": (K,)}
    return tuple(r.normal(*size[name], scale=min(scale, 3.0)) for name in ("z", "x", "c", "a", *more))


def labels(r):
    """The first and the last class among them."""
    return r.integers(K, N).at[0].set(0).at[1].set(K - 1)


def of_table(name, function, arguments=lambda r, s: (logits(r, s),), **options):
    both = getattr(spelled, function), table.FUNCTIONS[function].definition
    return Case(name, *(ft.partial(f, **options) if options else f for f in both), arguments)


def scores_and_labels(r, scale):
    return logits(r, scale or 0.1), labels(r)


ON_LOGITS = [
    of_table("softmax", "softmax"),
    of_table("softmax_axis_0", "softmax", axis=0),
    of_table("softmax_axes_where", "softmax", lambda r, s: (r.normal(2, 3, K, scale=s),), axis=(0, 2), where=WHERE),
    of_table("log_softmax", "log_softmax"),
    of_table("logsumexp", "logsumexp", axis=-1),
    of_table("logsumexp_where", "logsumexp", axis=1, where=WHERE),
    of_table("entropy", "entropy"),
    of_table("entropy_where", "entropy", where=WHERE),
    of_table("expectation", "expectation", lambda r, s: (logits(r, s), r.normal(N, K))),
    of_table("expectation_where", "expectation", lambda r, s: (logits(r, s), r.normal(1, K)), where=WHERE),
    Case(
        "expectation_of_logits",
        lambda z: softjax.expectation(z, z**2),
        lambda z: expectation(z, z**2),
        lambda r, s: (logits(r, s),),
    ),
    of_table("cross_entropy", "softmax_cross_entropy", lambda r, s: (logits(r, s), r.normal(N, K))),
    of_table(
        "integer_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
        lambda r, s: (logits(r, s), labels(r)),
    ),
    of_table("svm", "multiclass_svm_loss", scores_and_labels, margin=0.7),
    of_table("hinge", "multiclass_hinge_loss", scores_and_labels, margin=0.7),
]

MIXTURES = [
    of_table("autoencoder", "mixture_autoencoder_loss", mixture_arguments),
    of_table("eol", "eol_loss", mixture_arguments),
    of_table("leop", "leop_loss", mixture_arguments),
    of_table(
        "decode",
        "mixture_expectation",
        lambda r, s: tuple(a for i, a in enumerate(mixture_arguments(r, s)) if i != 1),
    ),
]

BLOCKS = {"whole": None, "ragged": 5, "single": 1}  # classes at a time


def in_blocks(case, size):
    return case._replace(function=ft.partial(case.function, block_size=size))


def with_options(case):
    """The case with a prior per class as a last argument, a mask and a temperature."""
    with_log_prior = lambda function, **options: lambda *args: function(*args[:-1], log_prior=args[-1], **options)
    options = {"temperature": 1.7, "where": WHERE}
    return Case(
        case.name,
        with_log_prior(case.function, **options),
        with_log_prior(case.definition, **options),
        lambda r, s: (*case.arguments(r, s), r.normal(K)),
    )


def of_temperature(case):
    """The case with the logarithm of the temperature as a last argument."""
    with_temperature = lambda function: lambda *args: function(*args[:-1], temperature=jnp.exp(args[-1]))
    return Case(
        case.name,
        with_temperature(case.function),
        with_temperature(case.definition),
        lambda r, s: (*case.arguments(r, s), r.normal()),
    )
