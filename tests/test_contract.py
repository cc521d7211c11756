"""The contract, line by line: labels, masks, infinities, types, transformations, memory."""

import functools as ft
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases, spelled

INF, NAN = float("inf"), float("nan")
ce = softjax.softmax_cross_entropy_with_integer_labels


def value_and_grad(function, z):
    """Of the sum over the examples, both NaN-safe to compare."""

    @cases.compiled
    def of(z):
        value, pullback = jax.vjp(function, z)
        return value, pullback(jnp.ones_like(value))[0]

    return of(z)


def in_both_modes(function, z):
    """(value, gradient), after checking that forward mode gives the same gradient."""
    value, gradient = value_and_grad(function, z)
    along = cases.compiled(lambda direction: jax.jvp(function, (z,), (direction,))[1])
    columns = [along(jnp.zeros_like(z).at[i].set(1))[i[0]] for i in np.ndindex(z.shape)]
    np.testing.assert_allclose(jnp.stack(columns).reshape(z.shape), gradient, rtol=1e-5, atol=1e-7)
    return value, gradient


# --- labels ---------------------------------------------------------------------------------------

LABELLED = {
    "cross entropy": ce,
    "svm": softjax.multiclass_svm_loss,
    "hinge": softjax.multiclass_hinge_loss,
}


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32"])
def test_labels_may_be_of_any_integer_type(kind):
    z = cases.Random(jnp.float32).normal(2, 300)
    wanted = ce(z, jnp.array([5, 100]))
    np.testing.assert_array_equal(ce(z, jnp.array([5, 100], kind)), wanted)


def test_labels_of_a_wide_type_do_not_wrap():
    with jax.enable_x64(True):
        z = jnp.zeros((1, 3))
        assert np.isnan(ce(z, jnp.array([2**32 + 1]))).all()
        assert np.isnan(ce(z, jnp.array([2**63 + 1], jnp.uint64))).all()


def test_an_example_that_is_masked_whole_costs_nothing_whatever_its_label(dtype):
    z = jnp.asarray([[1.0, NAN, 3.0], [1.0, 2.0, 3.0]], dtype)
    for labels in ([1, 2], [-1, 2]):
        loss, gradient = in_both_modes(lambda z, y=labels: ce(z, jnp.array(y), where=jnp.array([False, True])), z)
        assert loss[0] == 0
        assert loss[1] > 0
        np.testing.assert_array_equal(gradient[0], np.zeros(3))


def test_soft_labels_on_impossible_classes_cost_nothing_or_infinity(dtype):
    z = jnp.asarray([[1.0, -INF, 3.0]], dtype)
    free, gradient = in_both_modes(lambda z: softjax.softmax_cross_entropy(z, jnp.asarray([[1.0, 0, 0]], dtype)), z)
    np.testing.assert_allclose(free, np.log(1 + np.exp(2.0)), rtol=1e-6)
    assert gradient[0, 1] == 0
    costly = softjax.softmax_cross_entropy(z, jnp.asarray([[0.5, 0.5, 0]], dtype))
    assert costly[0] == INF
    by_label = jax.grad(lambda y: softjax.softmax_cross_entropy(z, y).sum())(jnp.asarray([[1.0, 0, 0]], dtype))
    assert np.isfinite(by_label).all()


@pytest.mark.parametrize("junk", [INF, NAN])
def test_a_row_that_is_not_a_number_stays_so_beside_an_impossible_label(junk, dtype):
    z = jnp.asarray([junk, -INF, 1.0], dtype)
    assert np.isnan(ce(z, 1))
    assert np.isnan(softjax.softmax_cross_entropy(z, jnp.asarray([0.5, 0.5, 0.0], dtype)))


@pytest.mark.parametrize("name", ["svm", "hinge"])
def test_a_label_out_of_range_gives_nan_also_where_no_class_could_cost(name):
    for scores in (jnp.ones(1), jnp.array([5.0, -INF])):
        value, gradient = cases.compiled(jax.value_and_grad(LABELLED[name]))(scores, 7)
        assert np.isnan(value)
        assert np.isnan(gradient[scores > -INF]).all()


def test_a_mask_of_classes_needs_no_axis_of_examples():
    z, where = jnp.zeros((5, 10)), jnp.arange(10) < 7
    np.testing.assert_allclose(ce(z, jnp.zeros(5, int), where=where), np.full(5, np.log(7.0)), rtol=1e-6)


# --- masks and infinities -------------------------------------------------------------------------

FUNCTIONS = {
    "softmax": softjax.softmax,
    "log_softmax": softjax.log_softmax,
    "logsumexp": ft.partial(softjax.logsumexp, axis=-1),
    "entropy": softjax.entropy,
    "expectation": lambda z, **kw: softjax.expectation(z, jnp.arange(3, dtype=z.dtype)[None], **kw),
    "cross entropy": lambda z, **kw: softjax.softmax_cross_entropy(z, jnp.zeros_like(z), **kw),
    "integer cross entropy": lambda z, **kw: ce(z, jnp.array([2]), **kw),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.each_value_once
def test_the_value_of_a_masked_logit_does_not_matter(name, dtype):
    function, where = FUNCTIONS[name], jnp.array([[True, False, True]])

    @cases.compiled
    def derivatives(z):
        value, pullback = jax.vjp(ft.partial(function, where=where), z)
        (gradient,) = pullback(jnp.where(jnp.isfinite(value), jnp.ones_like(value), 0))
        tangent = jax.jvp(ft.partial(function, where=where), (z,), (jnp.ones_like(z),))[1]
        return value, gradient, jnp.where(jnp.isfinite(value), tangent, 0)

    results = [derivatives(jnp.asarray([[1.0, junk, 3.0]], dtype)) for junk in (0.0, 1e30, -1e30, INF, -INF, NAN)]
    assert all(gradient[0, 1] == 0 for _, gradient, _ in results)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    short = cases.compiled(function)(jnp.asarray([[1.0, -INF, 3.0]], dtype))
    np.testing.assert_array_equal(results[0][0], short)


# --- types ----------------------------------------------------------------------------------------

KEEP_THE_TYPE = {
    "softmax": softjax.softmax,
    "log_softmax": softjax.log_softmax,
    "logsumexp": ft.partial(softjax.logsumexp, axis=-1),
    "expectation": lambda z: softjax.expectation(z, z),
}
WIDEN = {
    "decode": lambda z: spelled.mixture_expectation(z, z, z),
    "expectation of logits": lambda z: softjax.expectation(softjax.linear(z, z), z[0]),
    "divergence": lambda z: softjax.kl_divergence(z, 2 * z),
    "divergence of logits": lambda z: softjax.js_divergence(softjax.linear(z, z), 2 * softjax.distances(z, z)),
    "log-probabilities": lambda z: softjax.log_probs(softjax.linear(z, z), jnp.zeros(3, int)),
    "binary cross entropy": lambda z: softjax.sigmoid_binary_cross_entropy(z, jnp.zeros((3, 1), int)),
    "entropy": softjax.entropy,
    "cross entropy": lambda z: softjax.softmax_cross_entropy(z, z),
    "integer cross entropy": lambda z: ce(z, jnp.zeros(3, int)),
    "svm": lambda z: softjax.multiclass_svm_loss(z, jnp.zeros(3, int)),
    "hinge": lambda z: softjax.multiclass_hinge_loss(z, jnp.zeros(3, int)),
    "autoencoder": lambda z: softjax.mixture_autoencoder_loss(z, z, z, z),
    "eol": lambda z: softjax.eol_loss(z, z, z, z),
    "leop": lambda z: softjax.leop_loss(z, z, z, z),
}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", [*KEEP_THE_TYPE, *WIDEN])
@pytest.mark.each_value_once
def test_results_and_gradients_have_the_promised_types(name, kind):
    function = {**KEEP_THE_TYPE, **WIDEN}[name]
    with jax.enable_x64(kind == "float64"):
        z = jnp.asarray(np.eye(3), kind)

        def value_and_gradient(z):
            value, pullback = jax.vjp(function, z)
            return value, pullback(jnp.ones_like(value))[0]

        value, gradient = jax.eval_shape(value_and_gradient, z)
        wide = kind if kind in ("float32", "float64") else "float32"
        assert value.dtype == (kind if name in KEEP_THE_TYPE else wide)
        assert gradient.dtype == kind


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_integer_logits_are_promoted_as_jax_does(name, dtype):
    function = {**KEEP_THE_TYPE, **WIDEN}[name]
    z = np.array([[1, 2, 3], [0, 0, 5]], np.int32)
    for kind in ("int8", "int32", "uint32", *(["int64"] if dtype == jnp.float64 else [])):
        got = function(jnp.asarray(z, kind))
        assert got.dtype == jax.nn.softmax(jnp.asarray(z, kind)).dtype
        np.testing.assert_array_equal(got, function(jnp.asarray(z, got.dtype)))
    assert function(z.tolist()).dtype == function(jnp.asarray(z.tolist())).dtype


def test_mixed_types_meet_in_the_wider(dtype):
    half = jnp.ones((2, 3), jnp.bfloat16)
    full = jnp.ones((4, 3), dtype)
    of_types = lambda f, *args: jax.eval_shape(f, *args).dtype
    assert of_types(spelled.mixture_expectation, half, full, full) == dtype
    assert of_types(softjax.expectation, half, full[:2]) == dtype
    total = lambda z: spelled.mixture_expectation(z, full, full).sum()
    assert of_types(jax.grad(total), half) == jnp.bfloat16
    assert of_types(softjax.expectation, half, half.astype(jnp.float16)) == jnp.float32
    for values in (2.0, 1, jnp.arange(3)):
        assert of_types(lambda half, v=values: softjax.expectation(half, v), half) == jnp.bfloat16


# --- transformations ------------------------------------------------------------------------------

EVERY = cases.ON_LOGITS + cases.MIXTURES


@pytest.mark.usefixtures("checking_leaks")
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
@pytest.mark.one_case_in(2)
def test_gradients_leak_nothing_and_promote_no_rank(case):
    options = {"block_size": 5} if case in cases.MIXTURES else {}
    arguments = case.arguments(cases.Random(jnp.float32), 1.0)
    total = lambda *args: case.function(*args, **options).sum()
    with jax.numpy_rank_promotion("raise"):
        forward_over_reverse = lambda z, *rest: jax.jvp(lambda z: jax.grad(total)(z, *rest), (z,), (z,))
        jax.eval_shape(forward_over_reverse, *arguments)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
@pytest.mark.one_case_in(2)
def test_any_number_of_leading_axes(case):
    """None, and two that vmap over the function gives the same."""
    if "axis" in case.name or "axes" in case.name or "where" in case.name:
        pytest.skip("the case names its axes")
    arguments = case.arguments(cases.Random(jnp.float32), 1.0)
    batched = [a.shape[0] == cases.N for a in arguments]
    one = [a[0] if b else a for a, b in zip(arguments, batched, strict=True)]
    assert len({cases.N, cases.K, cases.D, cases.E}) == 4
    function = cases.compiled(case.function)
    whole = function(*arguments)
    np.testing.assert_allclose(function(*one), whole[0], rtol=1e-5)
    split = [a.reshape(2, 2, *a.shape[1:]) if b else a for a, b in zip(arguments, batched, strict=True)]
    np.testing.assert_allclose(function(*split), whole.reshape(2, 2, *whole.shape[1:]), rtol=1e-5)
    axes = [0 if b else None for b in batched]
    nested = cases.compiled(jax.vmap(jax.vmap(case.function, axes), axes))
    np.testing.assert_allclose(nested(*split), whole.reshape(2, 2, *whole.shape[1:]), rtol=1e-5)
    none = [a[:0] if b else a for a, b in zip(arguments, batched, strict=True)]
    assert jax.eval_shape(case.function, *none).shape == (0, *whole.shape[1:])


# --- the custom rule, and memory --------------------------------------------------------------------

ON_A_RULE = [
    c
    for c in EVERY
    if c.name in ("softmax", "expectation", "cross_entropy", "integer_cross_entropy", "autoencoder", "eol", "leop")
]


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@pytest.mark.parametrize("case", ON_A_RULE, ids=lambda case: case.name)
def test_the_custom_rule_is_in_use(case):
    """The gradient comes from the rule, not from differentiating the sums."""
    arguments = case.arguments(cases.Random(jnp.float32), 1.0)
    assert "custom_jvp_call" in set(primitives(jax.make_jaxpr(case.function)(*arguments).jaxpr))
    sure = jnp.asarray([[40.0, 0.0, 0.0]])
    if case.name == "softmax":
        # autodiff of the definition says 0, the rule p_0 (1 - p_0)
        assert jax.grad(lambda z: cases.softmax(z)[0, 0])(sure)[0, 0] == 0
        np.testing.assert_allclose(
            jax.grad(lambda z: softjax.softmax(z)[0, 0])(sure)[0, 0], 2 * np.exp(-40.0), rtol=1e-6
        )


MODES = {
    "value": lambda f, i: f,
    "reverse mode": lambda f, i: jax.grad(f, i),
    "forward mode": lambda f, i: lambda *args: jax.jvp(f, args, args),
    "forward over reverse": lambda f, i: lambda *args: jax.jvp(jax.grad(f, i), args, args),
    "reverse over reverse": lambda f, i: jax.grad(lambda *args: sum((g**2).sum() for g in jax.grad(f, i)(*args)), i),
    "reverse over forward": lambda f, i: jax.grad(lambda *args: jax.jvp(f, args, args)[1], i),
    "linearize": lambda f, i: lambda *args: jax.linearize(f, *args)[1](*args),
}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("case", "mode"),
    cases.in_tiers(
        {f"{case.name}-{mode}": (case, mode) for case in cases.MIXTURES for mode in MODES},
        [*(f"autoencoder-{mode}" for mode in MODES), *(f"{case.name}-reverse mode" for case in cases.MIXTURES)],
    ),
)
@pytest.mark.one_case_in(3)
def test_a_mixture_never_holds_its_scores(case, mode):
    n, k, d, e = 1024, 16384, 2, 4
    shapes = [(n, d), (n, e), (k, d), (k, e)]
    shapes = [shapes[i] for i in range(4) if case.name != "decode" or i != 1]
    f = lambda *args: case.function(*args, block_size=256).mean()
    program = MODES[mode](f, tuple(range(len(shapes))))
    compiled = jax.jit(program).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * 4 * n * k


@pytest.mark.slow  # a process start
def test_the_gradient_of_a_ragged_block_under_vmap_does_not_crash_the_compiler():
    assert (
        exit_code("""
        import jax, jax.numpy as jnp, softjax
        z, x, c, v = (jnp.ones(s) for s in ((32, 4), (32, 8), (10_000, 4), (10_000, 8)))
        loss = lambda c: jax.vmap(softjax.mixture_autoencoder_loss, (0, 0, None, None))(z, x, c, v).mean()
        jax.block_until_ready(jax.jit(jax.grad(loss))(c))
    """)
        == 0
    )


@pytest.mark.slow  # a process start
@pytest.mark.xfail(strict=True, reason="jaxlib 0.10.2 crashes on CPUs, in the fusion of a padded product and sum")
def test_a_padded_product_and_a_padded_sum_do_not_crash_the_compiler():
    """Where this passes, a gradient may be added outside of the blocks to that of a block, as here, again."""
    assert (
        exit_code("""
        import jax, jax.numpy as jnp
        pad = lambda a: jnp.pad(a, [(9728, 0)] + [(0, 0)] * (a.ndim - 1))
        f = jax.jit(lambda a, b: pad(a @ b) + pad(a.sum(1))[:, None])
        jax.block_until_ready(f(jnp.ones((272, 32)), jnp.ones((32, 4))))
    """)
        == 0
    )


def exit_code(program):
    """That of a process of its own, so that a crash is not the end of the tests."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, check=False, timeout=120, env=environment).returncode


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["mixture_autoencoder_loss", "leop_loss"])
@pytest.mark.one_case_in(2)
def test_no_temporary_of_a_mixture_has_the_size_of_its_centers(name):
    def temporaries(k):
        def loss(z, x, centers, values, log_prior, where):
            options = {"log_prior": log_prior, "where": where, "reduction": "mean"}
            return getattr(softjax, name)(z, x, centers, values, **options)

        shapes = (64, 16), (64, 8), (k, 16), (k, 8), (k,)
        arguments = [jax.ShapeDtypeStruct(s, "float32") for s in shapes] + [jax.ShapeDtypeStruct((k,), bool)]
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = 100_000, 100_000 + 2**17  # with a last block of the same size
    assert temporaries(many) - temporaries(few) <= 8 * (many - few)  # the log-priors and what is left out
