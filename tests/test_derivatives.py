"""Every public function, in every mode of differentiation, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax.testing import MODES, assert_matches_autodiff

from . import cases

DERIVATIVES = MODES[:4]
REVERSE = ["value", "vjp"]


def by_name(case):
    return case.name


def check(case, dtype, scale, modes):
    arguments = case.arguments(cases.Random(dtype), scale)
    # In float32 the definitions themselves lose digits; test_accuracy holds that type against the truth.
    rtol = 3e-5 if dtype == jnp.float32 else None
    assert_matches_autodiff(case.function, case.definition, *arguments, rtol=rtol, modes=modes)


@pytest.mark.parametrize("case", cases.ON_LOGITS, ids=by_name)
def test_functions_of_logits_match_their_definitions(case, dtype):
    check(case, dtype, 1.0, MODES if dtype == jnp.float64 else DERIVATIVES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [0.0, 30.0])
@pytest.mark.parametrize("case", cases.ON_LOGITS, ids=by_name)
def test_functions_of_small_and_of_large_logits_match_their_definitions(case, scale):
    check(case, jnp.dtype("float64"), scale, REVERSE)


@pytest.mark.parametrize("block", cases.BLOCKS)
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
def test_mixtures_match_their_definitions_in_blocks_of_any_size(case, block, dtype):
    check(cases.in_blocks(case, cases.BLOCKS[block]), dtype, 1.0, DERIVATIVES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [0.0, 30.0])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
def test_mixtures_of_near_and_of_far_centers_match_their_definitions(case, scale):
    check(cases.in_blocks(case, 5), jnp.dtype("float64"), scale, REVERSE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block", ["whole", "ragged"])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
def test_mixtures_with_priors_masks_and_temperature_match_their_definitions(case, block):
    case = cases.with_options(cases.in_blocks(case, cases.BLOCKS[block]))
    check(case, jnp.dtype("float64"), 1.0, MODES if block == "ragged" else DERIVATIVES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.MIXTURES, ids=by_name)
def test_the_temperature_has_a_gradient(case):
    check(cases.of_temperature(cases.in_blocks(case, 5)), jnp.dtype("float64"), 1.0, DERIVATIVES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.ON_LOGITS + cases.MIXTURES, ids=by_name)
def test_gradients_match_central_differences(case):
    random = cases.Random(jnp.float64, seed=3)
    arguments = case.arguments(random, 1.0)
    moving = [i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.inexact)]
    direction = {i: random.normal(*arguments[i].shape) for i in moving}
    weights = random.normal(*jax.eval_shape(case.function, *arguments).shape)

    def along(step):
        return (
            case.function(*(a + step * direction[i] if i in direction else a for i, a in enumerate(arguments)))
            * weights
        ).sum()

    gradients = jax.grad(lambda *args: (case.function(*args) * weights).sum(), moving)(*arguments)
    slope = sum((g * direction[i]).sum() for i, g in zip(moving, gradients, strict=True))
    step = 1e-5
    np.testing.assert_allclose((along(step) - along(-step)) / (2 * step), slope, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.ON_LOGITS[:1] + cases.ON_LOGITS[6:7] + cases.MIXTURES[:1], ids=by_name)
def test_derivatives_of_higher_order_agree(case):
    arguments = case.arguments(cases.Random(jnp.float64), 1.0)
    small = tuple(a[:2] for a in arguments)
    for order in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacfwd(jax.jacrev(jax.jacfwd(f)))):
        got, want = (order(lambda z, f=f: f(z, *small[1:]).sum())(small[0]) for f in (case.function, case.definition))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
