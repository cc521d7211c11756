"""Each planted fault fails the testing helper, in the mode that shows it."""

import jax
import jax.numpy as jnp
import pytest

from softjax.compute import rules
from softjax.testing import MODES, assert_matches_autodiff, relative_errors

pytestmark = pytest.mark.usefixtures("x64")


def definition(x, w):
    return jnp.log(jnp.exp(x * w).sum(-1))


X = jnp.linspace(-1.0, 1.0, 6, dtype=jnp.float32).reshape(2, 3)
W = jnp.array([0.5, -1.0, 2.0], jnp.float32)


def rule_with(pull):
    """The definition, with `pull(p, ct, x, w)` for its pullback."""

    @jax.custom_vjp
    def rule(args, _):
        return definition(*args)

    rule.defvjp(lambda args, _: (definition(*args), args), lambda args, ct: (pull(ct, *args), None))
    both = rules.both_modes(rule)
    return lambda x, w: both((x, w), ())


def true_pull(ct, x, w):
    d = jax.nn.softmax(x * w) * ct[..., None]
    return d * w, (d * x).sum(tuple(range(x.ndim - 1)))


FAULTS = {
    "a lost cotangent": lambda ct, x, w: true_pull(jnp.ones_like(ct), x, w),
    "a wrong sign": lambda ct, x, w: (-true_pull(ct, x, w)[0], true_pull(ct, x, w)[1]),
    "a gradient of one argument lost": lambda ct, x, w: (true_pull(ct, x, w)[0], jnp.zeros_like(w)),
    "a small error": lambda ct, x, w: (true_pull(ct, x, w)[0] * (1 + 1e-4), true_pull(ct, x, w)[1]),
    "a missing normaliser": lambda ct, x, w: (jnp.exp(x * w) * w * ct[..., None], true_pull(ct, x, w)[1]),
}


def test_a_right_rule_passes():
    errors = assert_matches_autodiff(rule_with(true_pull), definition, X, W)
    assert set(errors) == set(MODES)
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_fails(fault):
    with pytest.raises(AssertionError, match="vjp of"):
        assert_matches_autodiff(rule_with(FAULTS[fault]), definition, X, W)
    with pytest.raises(AssertionError, match="jvp of"):
        assert_matches_autodiff(rule_with(FAULTS[fault]), definition, X, W, modes=["jvp"])


def test_a_wrong_value_fails():
    with pytest.raises(AssertionError, match="value of"):
        assert_matches_autodiff(lambda x, w: definition(x, w) + 1e-4, definition, X, W)


def test_a_gradient_that_is_right_only_to_first_order_fails():
    frozen = lambda ct, x, w: jax.tree.map(jax.lax.stop_gradient, true_pull(ct, x, w))
    function = jax.custom_vjp(definition)
    function.defvjp(lambda *args: (definition(*args), args), lambda args, ct: frozen(ct, *args))
    first_order = ["value", "vjp", "jit"]
    assert_matches_autodiff(function, definition, X, W, modes=first_order)
    with pytest.raises(AssertionError, match="hessian-vector product of"):
        assert_matches_autodiff(function, definition, X, W, modes=["hessian-vector product"])


def test_a_wrong_forward_mode_fails():
    @jax.custom_jvp
    def function(x, w):
        return definition(x, w)

    function.defjvp(lambda primals, tangents: (definition(*primals), 2 * jax.jvp(definition, primals, tangents)[1]))
    with pytest.raises(AssertionError, match="jvp of"):
        assert_matches_autodiff(function, definition, X, W, modes=["jvp"])


def test_a_function_that_mixes_examples_fails_under_vmap():
    @jax.custom_batching.custom_vmap
    def mixing(x, w):
        return definition(x, w)

    @mixing.def_vmap
    def _(size, batched, x, w):
        x = x if batched[0] else jnp.broadcast_to(x, (size, *x.shape))
        w = w if batched[1] else jnp.broadcast_to(w, (size, *w.shape))
        return jax.vmap(definition)(x[::-1], w), True

    function = jax.custom_vjp(lambda x, w: mixing(x, w))
    function.defvjp(lambda x, w: (mixing(x, w), (x, w)), lambda args, ct: true_pull(ct, *args))
    assert_matches_autodiff(function, definition, X, W, modes=["value", "vjp", "jit"])
    with pytest.raises(AssertionError, match="vmap of"):
        assert_matches_autodiff(function, definition, X, W, modes=["vmap"])


def test_nan_infinity_shape_and_type_are_compared():
    x = jnp.arange(3.0)
    with pytest.raises(AssertionError, match="off by inf"):
        assert_matches_autodiff(lambda x: x / 0, lambda x: x, x, modes=["value"])
    with pytest.raises(AssertionError, match="got float32"):
        assert_matches_autodiff(lambda x: x.astype(jnp.float32), lambda x: x, x, modes=["value"])
    with pytest.raises(AssertionError, match="structure"):
        assert_matches_autodiff(lambda x: (x, x), lambda x: x, x, modes=["value"])
    assert_matches_autodiff(lambda x: x / 0, lambda x: x / 0, x, modes=["value"])


def test_integers_are_held_fixed_and_compared_exactly():
    function = lambda z, y: (jnp.take(z, y), y + 1)
    assert_matches_autodiff(function, function, jnp.arange(3.0), jnp.array(1))
    with pytest.raises(AssertionError, match="value of"):
        assert_matches_autodiff(lambda z, y: (jnp.take(z, y), y + 2), function, jnp.arange(3.0), jnp.array(1))


def test_relative_errors_reports_without_asserting():
    errors = relative_errors(rule_with(FAULTS["a small error"]), definition, X, W)
    assert 1e-5 < errors["vjp"] < 1e-3


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`args` must hold a floating-point array"):
        assert_matches_autodiff(definition, definition, jnp.array(1))
    with pytest.raises(ValueError, match="`modes` must be some of"):
        assert_matches_autodiff(definition, definition, X, W, modes=["backwards"])


def test_the_definition_does_not_lend_its_rounding_to_the_function():
    """exp(x) - 1 in float32 is off by 3e-3 at 1e-5, and expm1 is right."""
    x = jnp.asarray([1e-5, 2e-5], jnp.float32)
    by_definition = lambda x: jnp.exp(x) - 1
    assert assert_matches_autodiff(jnp.expm1, by_definition, x, modes=["value"])["value"] < 1e-6
    with pytest.raises(AssertionError, match=r"is off by [1-9].*e-03 .*the reference in float32 is off by [1-9].*e-03"):
        assert_matches_autodiff(by_definition, by_definition, x, modes=["value"])


def test_a_definition_with_numbers_of_its_own_type_is_computed_in_it():
    in_float32 = lambda x: x + jnp.float32(1)
    assert_matches_autodiff(in_float32, in_float32, jnp.arange(3, dtype=jnp.float32))


def test_the_message_names_the_argument():
    def loss(x, w):
        return rule_with(FAULTS["a gradient of one argument lost"])(x, w)

    with pytest.raises(AssertionError, match=r"vjp of loss\[1\] \(the gradient of `w`\)"):
        assert_matches_autodiff(loss, definition, X, W)
