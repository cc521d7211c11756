"""The tests themselves: a fault that is planted in the library fails a check of theirs, which passes without it."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import _checks, _dtypes, _reductions, _rows, _rules, losses
from softjax import _gibbs as g
from softjax.testing import assert_matches_autodiff

from . import cases, table, test_accuracy, test_linear, test_losses, test_mesh
from .cases import D, K, N

pytestmark = pytest.mark.slow

# --- checks, as the other tests make them -----------------------------------------------------------

WHOLE, BLOCKS, FORWARD = None, 5, test_losses.FORWARD  # K classes end in a ragged block


def in_double(test):
    """A test that uses the fixture `x64`."""

    def in_x64(*args, **options):
        with jax.enable_x64(True):
            test(*args, **options)

    return in_x64


@in_double
def of_loss(name, size, mode, scale=0.0):
    """A loss on a placement, in one mode, at small logits: all about -20."""
    (case,) = (case for case in test_losses.EVERY if case.name == name)
    options, reduce = {"block_size": size}, lambda x: x
    if size is FORWARD:
        options |= {"reduction": "mean", "weights": test_losses.WEIGHTS}
        reduce = test_losses.weighed_mean
    arguments = test_losses.linear_arguments(cases.Random(jnp.float64), scale)
    rtol = 1e-7 if scale > 1 else None
    test_losses.check(case, test_losses.on_linear(case, **options), test_losses.linear, arguments, [mode], reduce, rtol)


@in_double
def of_options(size, **options):
    """Some options of the linear cross entropy, in value."""
    (x, w), _, _ = test_linear.arguments(jnp.float64)
    y = jnp.asarray([0, 5, 3, 11], jnp.int32)
    assert_matches_autodiff(
        lambda x: test_linear.ce(x, w, y, **options, block_size=size),
        lambda x: table.linear_softmax_cross_entropy(x, w, y, **options),
        x,
        modes=["value"],
    )


@in_double
def of_scan(size):
    test_losses.test_a_hessian_vector_product_through_a_scan(test_losses.LABELLED[0], size)


def nan_in_each_block():
    random = cases.Random(jnp.float32)
    x, w = random.normal(N, D), random.normal(D, K)
    run = jax.jit(jax.value_and_grad(lambda b: softjax.linear_logsumexp(x, w, bias=b, block_size=BLOCKS).sum()))
    for place in (0, 7, K - 1):
        value, gradient = run(jnp.zeros(K).at[place].set(jnp.nan))
        assert np.isnan(value), f"a NaN is lost in class {place}"
        assert np.isnan(gradient).all(), f"a NaN is lost in the gradient of class {place}"


def equal_classes_one_at_a_time():
    """Each has the same weight, whose rounding adds up."""
    k = 4096
    b = jnp.zeros(k).at[0].set(1.1)
    p = np.exp(np.asarray(b, np.float64))
    x, w = jnp.zeros((1, 1)), jnp.zeros((1, k))
    total = lambda b: softjax.linear_logsumexp(x, w, bias=b, block_size=1).sum()
    np.testing.assert_allclose(jax.jit(jax.grad(total))(b), p / p.sum(), rtol=1e-6)


(MIXTURE,) = (case for case in cases.MIXTURES if case.name == "autoencoder")
CHECKS = {
    "value, small logits in ragged blocks": (of_loss, "cross_entropy", BLOCKS, "value"),
    "value, large logits in ragged blocks": (of_loss, "cross_entropy", BLOCKS, "value", 30.0),
    "gradient, a payoff that depends on the logits": (of_loss, "mean_square", WHOLE, "vjp"),
    "gradient, a payoff of scores that do not move": (of_loss, "crammer_singer", WHOLE, "vjp"),
    "gradient, a payoff that does not depend on the logits": (of_loss, "expectation", WHOLE, "vjp"),
    "gradient, of a payoff that does not move": (of_loss, "entropy", WHOLE, "vjp"),
    "gradient, backward": (of_loss, "logsumexp", WHOLE, "vjp"),
    "gradient, forward": (of_loss, "logsumexp", FORWARD, "vjp"),
    "forward mode": (of_loss, "logsumexp", WHOLE, "jvp"),
    "Hessian": (of_loss, "cross_entropy", WHOLE, "hessian-vector product"),
    "Hessian through a scan": (of_scan, WHOLE),
    "half precision in blocks": (test_linear.test_half_precision_is_rounded_once, "blocks", "bfloat16"),
    "half precision in tiles": (test_linear.test_half_precision_is_rounded_once, "tiles", "bfloat16"),
    "a label of -1": (test_linear.test_a_label_out_of_range_gives_nan_in_loss_and_gradient, -1, "whole"),
    "a label of K": (test_linear.test_a_label_out_of_range_gives_nan_in_loss_and_gradient, K, "whole"),
    "digits of a label's loss": (test_accuracy.test_no_digit_is_lost_at_any_margin, "cross entropy, integer labels", 0),
    "and far from 0": (test_accuracy.test_no_digit_is_lost_at_any_margin, "cross entropy, integer labels", 1e4),
    "digits of an entropy far from 0": (test_accuracy.test_no_digit_is_lost_at_any_margin, "entropy", 1e4),
    "mask and softcap": (ft.partial(of_options, softcap=2.0, where=np.arange(K) % 5 != 2), BLOCKS),
    "weighed mean": (ft.partial(of_options, weights=np.arange(1.0, 1 + N), reduction="mean"), FORWARD),
    "mean without the ignored": (ft.partial(of_options, ignore_index=0, reduction="mean"), FORWARD),
    "NaN in each block": (nan_in_each_block,),
    "equal classes one at a time": (equal_classes_one_at_a_time,),
    "sure rows over devices": (in_double(test_mesh.test_no_digit_is_lost_in_sure_rows_whoever_has_the_label), 17.0, 0),
    "cross entropy over devices": (in_double(test_mesh.test_cross_entropy_over_classes_and_examples), "whole", "mean"),
    "a mixture over devices": (in_double(test_mesh.test_mixtures_over_classes_and_examples), MIXTURE, "blocks"),
    "half precision over devices": (in_double(test_mesh.test_half_precision_is_rounded_once), "bfloat16", (8, 1)),
    "padding": (
        in_double(test_mesh.test_padding_has_no_part_in_any_loss),
        "label_smoothing",
    ),
}


def check(name):
    test, *args = CHECKS[name]
    test(*args)


# --- faults -----------------------------------------------------------------------------------------


class Fault(NamedTuple):
    name: str
    place: tuple  # (module or class, name)
    planted: Callable  # original function -> faulty function
    found: str  # the check that fails
    unseen: str | None = None  # one that passes all the same, so that the tests need the other


def in_pull(change):
    """A change of the cotangents of the columns."""
    return lambda pull: lambda c, ids, q, ct: change(pull(c, ids, q, ct), c, q, ct)


def instead(function):
    return lambda _: function


def leaking(fold):
    """The ragged block has a column of zeros more."""

    def leaky(c, ids, **options):
        if ids.size != K % BLOCKS:
            return fold(c, ids, **options)
        return fold(c._replace(h=jnp.pad(c.h, ((0, 0), (0, 1)))), jnp.append(ids, K), **options)

    return leaky


def uncentred(d, c, q, ct):
    means = ((d.rest * mean.value)[..., None] for d, mean in zip((*ct.t, *ct.t_fixed), (*q.t, *q.t_fixed), strict=True))
    return d._replace(h=d.h + q.a.probabilities(c.h) * sum(means))


def without(name):
    return lambda d, c, q, ct: d._replace(**{name: jax.tree.map(jnp.zeros_like, getattr(d, name))})


def kernel_in_bfloat16(over_tiles):
    def rounding(step, carry, *rest):
        if carry is not None:
            others, dclasses = carry
            carry = others, _dtypes.cast(dclasses, jnp.bfloat16)
        return over_tiles(step, carry, *rest)

    return rounding


def rounded(pull_block):
    return lambda *args: jax.tree.map(lambda d: d.astype(jnp.bfloat16).astype(d.dtype), pull_block(*args))


def wrapping(class_ids):
    return lambda labels, count, **options: class_ids(jnp.where(labels < 0, labels + count, labels), count, **options)


def label_cross_entropy_of(value):
    return lambda _: _rows.row_rule(_rows._row_normaliser, value, _rows._label_cost_pull)


def added_first(a, z, y):
    return (a.m + a.log.rest) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]


def subtracted_from_the_sum(pair, other):
    return g.Pair(pair.value - (other.value if isinstance(other, g.Pair) else other), jnp.zeros_like(pair.rest))


def one_less_p(a, h):
    return 1 - a.probabilities(h)


def capped_masked(columns, cap, z, ids, example, per_class):
    return columns(cap * jnp.tanh(z / cap), ids, example, per_class)


def twice_forward(linear_transpose):
    """Twice the pushforward, with the right transpose."""

    def transpose(*args):
        pushforward = linear_transpose(*args)
        twice = lambda x: jax.custom_derivatives.linear_call(lambda _, x: 2 * x, lambda _, ct: ct, (), x)
        return lambda tangents: jax.tree.map(twice, pushforward(tangents))

    return transpose


def moving_maximum(normaliser):
    def moving(h, ids):
        a, m = normaliser(h, ids), h.max(-1)
        return a._replace(m=a.m + (m - jax.lax.stop_gradient(m)))

    return moving


def top_twice(normaliser):
    def twice(h, ids):
        a, _, first = normaliser(h, ids)
        return a._replace(r=a.r + 1), a.weights(h), first

    return twice


def forgetful(merge_normalisers):
    def forgetting(x, y):
        merged = merge_normalisers(x, y)
        return merged._replace(lost=jnp.zeros_like(merged.lost))

    return forgetting


def losing_nan(merge):
    return lambda x, y: jax.tree.map(ft.partial(g._choose, jnp.isnan(y.a.m)), x, merge(x, y))


def merging(change):
    """Changes the sums of a device before they are merged over devices."""
    return lambda merge_over: lambda x, axes: merge_over(change(x), axes)


FAULTS = [
    Fault(
        "the label's share of another device is lost",
        (g, "merge_over"),
        merging(lambda x: x._replace(y=x.y and x.y._replace(sum=0 * x.y.sum))),
        "cross entropy over devices",
        "a mixture over devices",
    ),
    Fault(
        "the 1 of the top class is added over devices",
        (g, "merge_over"),
        merging(lambda x: x._replace(a=x.a._replace(r=jnp.exp(jnp.log(1 + x.a.r)) - 1))),
        "sure rows over devices",
        "cross entropy over devices",
    ),
    Fault(
        "the ids of a device's classes begin at 0",
        (_rules, "block_ids"),
        lambda ids: lambda layout, start, size: ids(layout._replace(mesh=()), start, size),
        "cross entropy over devices",
    ),
    Fault(
        "gradients are rounded before devices add them up",
        (_rules, "_vary_with_mesh"),
        lambda vary: lambda tree, layout, before=None: vary(tree, layout),
        "half precision over devices",
        "cross entropy over devices",
    ),
    Fault(
        "padding is taken for classes",
        (_rules, "without_padding"),
        lambda without_padding: lambda c, is_class: c,
        "padding",
    ),
    Fault(
        "a padded column leaks",
        (g, "fold"),
        leaking,
        "value, small logits in ragged blocks",
        "value, large logits in ragged blocks",
    ),
    Fault(
        "the centring -E is dropped",
        (g, "pull"),
        in_pull(uncentred),
        "gradient, a payoff that depends on the logits",
        "gradient, a payoff of scores that do not move",
    ),
    Fault(
        "E_p[dt] is dropped",
        (g, "pull"),
        in_pull(without("t")),
        "gradient, a payoff that depends on the logits",
        "gradient, of a payoff that does not move",
    ),
    Fault(
        "E_p[dv] is dropped",
        (g, "pull"),
        in_pull(without("v")),
        "gradient, a payoff that does not depend on the logits",
    ),
    Fault(
        "dW is accumulated in bfloat16",
        (_rules, "over_tiles"),
        kernel_in_bfloat16,
        "half precision in tiles",
    ),
    Fault(
        "the gradient of each block is rounded",
        (_rules, "pull_block"),
        rounded,
        "half precision in blocks",
    ),
    Fault(
        "a cotangent is lost",
        (g, "pull"),
        lambda pull: lambda c, ids, q, ct: pull(c, ids, q, jax.tree.map(jnp.ones_like, ct)),
        "gradient, backward",
    ),
    Fault(
        "the cotangent of a gradient taken in the forward pass is lost",
        (_rules._sum_rule, "bwd"),
        lambda bwd: lambda layout, residuals, ct: bwd(layout, residuals, jax.tree.map(jnp.ones_like, ct)),
        "gradient, forward",
    ),
    Fault("a negative label wraps", (_checks, "class_ids"), wrapping, "a label of -1", "a label of K"),
    Fault(
        "A - z_y is formed after adding",
        (_rows, "row_label_cross_entropy"),
        label_cross_entropy_of(added_first),
        "and far from 0",
    ),
    Fault(
        "a pair is summed before a subtraction",
        (g.Pair, "__sub__"),
        instead(subtracted_from_the_sum),
        "digits of an entropy far from 0",
    ),
    Fault(
        "the gradient for the label is p - 1",
        (g.Normaliser, "complement"),
        instead(one_less_p),
        "digits of a label's loss",
    ),
    Fault(
        "merging does not rescale the sums of the lower",
        (g, "_weight_of_lower"),
        instead(lambda x, y: jnp.ones_like(x.m)),
        "value, small logits in ragged blocks",
    ),
    Fault(
        "merging loses a NaN",
        (g, "merge"),
        losing_nan,
        "NaN in each block",
    ),
    Fault(
        "the rounding error of merged sums is lost",
        (g, "_merge_normalisers"),
        forgetful,
        "equal classes one at a time",
    ),
    Fault(
        "the ids of a block are off by one",
        (_rules, "block_ids"),
        lambda ids: lambda layout, start, size: ids(layout, start, size) + 1,
        "value, small logits in ragged blocks",
    ),
    Fault(
        "the top class is taken twice",
        (g, "_normaliser_and_top"),
        top_twice,
        "gradient, a payoff that depends on the logits",
    ),
    Fault("a mask is applied before the softcap", (losses, "_softcap"), instead(capped_masked), "mask and softcap"),
    Fault(
        "a mean is over N, not over the weights",
        (_reductions, "mean_weights"),
        instead(lambda weights, *_: weights / weights.size),
        "weighed mean",
    ),
    Fault(
        "ignored examples stay in the denominator",
        (_reductions, "mean_weights"),
        lambda mean_weights: lambda weights, shares=None, kept=None, axes=(): mean_weights(weights, shares),
        "mean without the ignored",
    ),
    Fault(
        "forward mode alone is wrong",
        (jax, "linear_transpose"),
        twice_forward,
        "forward mode",
        "gradient, backward",
    ),
    Fault(
        "the maximum moves with the scores",
        (g, "_normaliser"),
        moving_maximum,
        "Hessian through a scan",
        "Hessian",
    ),
]


@pytest.fixture(autouse=True, scope="module")
def compiled_in_haste():
    """Compiling is most of the work here, and none of it is kept."""
    flag = "jax_disable_most_optimizations"
    before = jax.config.read(flag)
    jax.config.update(flag, True)
    yield
    jax.config.update(flag, before)
    jax.clear_caches()


@pytest.mark.parametrize("name", dict.fromkeys(fault.found for fault in FAULTS))
def test_a_check_passes_where_no_fault_is_planted(name):
    check(name)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault, monkeypatch):
    jax.clear_caches()
    with monkeypatch.context() as patch:
        patch.setattr(*fault.place, fault.planted(getattr(*fault.place)))
        try:
            if fault.unseen:
                check(fault.unseen)
            with pytest.raises(AssertionError) as caught:
                check(fault.found)
        finally:
            jax.clear_caches()
    assert "jax" not in caught.traceback[-1].path.parts, "an assertion of JAX's is no finding"
