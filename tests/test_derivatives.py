"""Every public function, in every mode of differentiation, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax.testing import MODES, assert_matches_autodiff

from . import cases

FIRST_ORDER = cases.PARTS[:2]


def by_name(case):
    return case.name


def check(case, dtype, *extreme_scales):
    """All modes at the scale 1, and reverse mode at the others."""
    assert_agree = cases.agreement(case.function, case.definition)
    # In float32 the definitions themselves lose digits; test_accuracy holds that type against the truth.
    rtol = 3e-5 if dtype == jnp.float32 else None
    assert_agree(*case.arguments(cases.Random(dtype), 1.0), rtol=rtol)
    for scale in extreme_scales:
        assert_agree(*case.arguments(cases.Random(dtype), scale), rtol=rtol, parts=FIRST_ORDER)


@pytest.mark.parametrize("case", cases.ON_LOGITS, ids=by_name)
@pytest.mark.each_value_once
def test_functions_of_small_and_of_large_logits_match_their_definitions(case, dtype):
    check(case, dtype, *((0.0, 30.0) if dtype == jnp.float64 else ()))


@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
@pytest.mark.one_case_in(4)
def test_mixtures_of_near_and_of_far_centers_match_their_definitions_in_ragged_blocks(case, dtype):
    check(cases.in_blocks(case, 5), dtype, *((0.0, 30.0) if dtype == jnp.float64 else ()))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block", ["whole", "single"])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
@pytest.mark.one_case_in(4)
def test_mixtures_match_their_definitions_in_blocks_of_other_sizes(case, block):
    check(cases.in_blocks(case, cases.BLOCKS[block]), jnp.dtype("float64"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block", ["whole", "ragged"])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
@pytest.mark.one_case_in(2)
def test_mixtures_with_priors_masks_and_temperature_match_their_definitions(case, block):
    check(cases.with_options(cases.in_blocks(case, cases.BLOCKS[block])), jnp.dtype("float64"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
@pytest.mark.one_case_in(4)
def test_the_temperature_has_a_gradient(case):
    check(cases.of_temperature(cases.in_blocks(case, 5)), jnp.dtype("float64"))


# One of each kind, as users compile it, and as they don't: each mode in a program of its own, and over any argument.
AS_USERS_DO = [c for c in cases.ON_LOGITS if c.name in ("expectation", "integer_cross_entropy")] + [
    cases.in_blocks(c, 5) for c in cases.MIXTURES if c.name == "decode"
]


@pytest.mark.slow
@pytest.mark.usefixtures("x64", "optimised")
@pytest.mark.parametrize("case", AS_USERS_DO, ids=by_name)
def test_every_mode_by_itself_and_under_jit_and_vmap_matches_the_definition(case):
    arguments = case.arguments(cases.Random(jnp.float64), 1.0)
    assert_matches_autodiff(case.function, case.definition, *arguments, modes=MODES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.ON_LOGITS + cases.MIXTURES, ids=by_name)
@pytest.mark.one_case_in(2)
def test_gradients_match_central_differences(case):
    random = cases.Random(jnp.float64, seed=3)
    arguments = case.arguments(random, 1.0)
    moving = [i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.inexact)]
    direction = {i: random.normal(*arguments[i].shape) for i in moving}
    weights = random.normal(*jax.eval_shape(case.function, *arguments).shape)
    total = lambda *args: (case.function(*args) * weights).sum()

    @cases.compiled
    def along(step):
        return total(*(a + step * direction[i] if i in direction else a for i, a in enumerate(arguments)))

    gradients = cases.compiled(jax.grad(total, moving))(*arguments)
    slope = sum((g * direction[i]).sum() for i, g in zip(moving, gradients, strict=True))
    step = 1e-5
    np.testing.assert_allclose((along(step) - along(-step)) / (2 * step), slope, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.ON_LOGITS[:1] + cases.ON_LOGITS[6:7] + cases.MIXTURES[:1], ids=by_name)
def test_derivatives_of_higher_order_agree(case):
    arguments = case.arguments(cases.Random(jnp.float64), 1.0)
    z, *others = (a[:2, :3] if i == 0 else a[:3] for i, a in enumerate(arguments))
    if others:  # x has a row for each of z, the others one for each class
        others[0] = others[0][:2]

    def orders(f):
        total = lambda z: f(z, *others).sum()
        third = jax.jacfwd(jax.jacrev(jax.jacfwd(total)))
        return cases.compiled(lambda z: (jax.hessian(total)(z), jax.jacrev(jax.jacrev(total))(z), third(z)))(z)

    for got, want in zip(orders(case.function), orders(case.definition), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
