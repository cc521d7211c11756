"""The tests themselves: a fault that is planted in the library fails a check of theirs, which passes without it."""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses
from softjax.arguments import checks, dtypes
from softjax.compute import reductions, rows, rules
from softjax.logits import nodes, value
from softjax.losses import combinators, divergences, loss
from softjax.sums import context, normaliser, sums
from softjax.sums.cross_entropy import OfLabels
from softjax.sums.entropy import OfLogits
from softjax.sums.exponent import OfExponent
from softjax.sums.mean import OfClassValue, OfPayoff
from softjax.sums.normaliser import Normaliser
from softjax.sums.pair import Pair
from softjax.sums.term import Term
from softjax.testing import assert_matches_autodiff

from . import cases, spelled, table, test_accuracy, test_linear, test_losses, test_mesh, test_value
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
def of_fixed_payoff():
    """The gradient for the logits, of payoffs that have none."""
    r = cases.Random(jnp.float64)
    x, w, data, v = r.normal(N, D), r.normal(D, K), r.normal(N, 2), r.normal(K, 2)
    row = table.LOSSES["eol"]
    ours = lambda x: softjax.of(row.loss, softjax.linear(x, w, block_size=BLOCKS), data, v)
    assert_matches_autodiff(ours, lambda x: row.definition(x @ w, data, v), x, modes=["vjp"])


@in_double
def of_scan(size):
    test_losses.test_a_hessian_vector_product_through_a_scan(test_losses.LABELLED[0], size)


SEVERAL = {  # losses, and their data of the examples
    "of the same logits": (("cross_entropy", "entropy"), ("mean_square", "logsumexp")),
    "of other logits": (("cross_entropy", "brier"),),
    "with sums of the same kind": (("cross_entropy", "cross_entropy_of_pairs"), ("mixture_autoencoder", "expectation")),
}


@in_double
def of_several(kind, mode="value", **options):
    """Several losses of one pass, or their weighted sum."""
    r = cases.Random(jnp.float64, seed=2)
    x, w, _ = test_losses.linear_arguments(r, 1.0)
    for names in SEVERAL[kind]:
        rows = [table.LOSSES[name] for name in names]
        examples, of_classes = (
            tuple(getattr(row, part)(r, cases.SIZES) for row in rows) for part in ("example", "per_class")
        )

        def ours(x, w, rows=rows, examples=examples, of_classes=of_classes):
            logits = softjax.linear(x, w, block_size=BLOCKS)
            return softjax.of(tuple(row.loss for row in rows), logits, examples, of_classes, **options)

        def definition(x, w, rows=rows, examples=examples, of_classes=of_classes):
            known = [[e] if c is None else [e, c] for e, c in zip(examples, of_classes, strict=True)]
            each = tuple(row.definition(x @ w, *of) for row, of in zip(rows, known, strict=True))
            if not options:
                return each
            return sum(a * b.sum() for a, b in zip(options["loss_weights"], each, strict=True)), tuple(
                jax.lax.stop_gradient(one.sum()) for one in each
            )

        assert_matches_autodiff(ours, definition, x, w, modes=[mode])


WEIGHTED = {"loss_weights": (1.0, -0.1), "reduction": "sum"}


def nan_in_each_block():
    random = cases.Random(jnp.float32)
    x, w = random.normal(N, D), random.normal(D, K)
    run = jax.jit(jax.value_and_grad(lambda b: spelled.linear_logsumexp(x, w, bias=b, block_size=BLOCKS).sum()))
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
    total = lambda b: spelled.linear_logsumexp(x, w, bias=b, block_size=1).sum()
    np.testing.assert_allclose(jax.jit(jax.grad(total))(b), p / p.sum(), rtol=1e-6)


@in_double
def masks_before_operations(size):
    """A mask, then a temperature; and -inf in an array of pairs, then a softcap."""
    (x, w), _, _ = test_linear.arguments(jnp.float64)
    live, pairs = np.arange(K) % 5 != 2, (np.arange(K) + np.arange(N)[:, None]) % 5 != 2
    ours = {
        "where": lambda x: softjax.linear(x, w, block_size=size).where(live) / 0.7,
        "array": lambda x: (
            2 * ((softjax.linear(x, w, block_size=size) + jnp.where(pairs, 0.0, -jnp.inf)) / 2).map(jnp.tanh)
        ),
    }
    theirs = {"where": {"where": live, "temperature": 0.7}, "array": {"where": pairs, "softcap": 2.0}}
    for name, made in ours.items():
        definition = lambda x, name=name: table.linear_logsumexp(x, w, **theirs[name])
        function = lambda x, made=made: softjax.logsumexp(made(x), axis=-1)
        assert_matches_autodiff(function, definition, x, modes=["value"])


@in_double
def of_divergence(mode, masked=None, size=BLOCKS):
    """KL(p || q), where p, or q, or neither masks some classes."""
    r = cases.Random(jnp.float64, seed=3)
    x, w, q, live = r.normal(N, D), r.normal(D, K), r.normal(N, K), np.arange(K) % 4 != 2
    among = live if masked == "p" else np.ones(K, bool)
    keep = lambda z: z.where(live) if masked == "p" else z

    def ours(x, w, q):
        of_q = softjax.linear(q, jnp.eye(K)).where(live) if masked == "q" else q
        return softjax.of(losses.kl_divergence, (keep(softjax.linear(x, w, block_size=size)), of_q))

    def definition(x, w, q):
        log_p = cases.log_softmax((x @ w)[:, among])
        of_each = (jnp.exp(log_p) * (log_p - cases.log_softmax(q)[:, among])).sum(-1)
        return of_each + jnp.inf if masked == "q" else of_each

    assert_matches_autodiff(ours, definition, x, w, q, modes=[mode])


def exponent_of_sure_rows():
    """u - p where both are 1, but for some 1e-9: the gradient of the likelihood of data."""
    z, v = jnp.asarray([[20.0, 0, 0.5, -1]]), jnp.asarray([[0.0], [0.5], [1.0], [0.25]])
    got = jax.grad(lambda z: softjax.of(losses.leop, z, jnp.zeros((1, 1)), v).sum())(z)
    h, e = np.asarray(z, np.float64)[0, 1:] - 20, -(np.asarray(v, np.float64)[1:, 0] ** 2)
    p, u = np.exp(h) / (1 + np.exp(h).sum()), np.exp(h + e) / (1 + np.exp(h + e).sum())
    want = np.append((u - p).sum(), p - u)
    np.testing.assert_allclose(got[0], want, rtol=1e-5)


def log_probs_far_from_0():
    z = test_accuracy.logits(6.0, 1e4)
    truth = np.asarray(z, np.float64)
    want = truth - truth[0] - np.log(np.exp(truth - truth[0]).sum())
    got = softjax.log_probs(z[None], jnp.arange(4)[None])[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)


(MIXTURE,) = (case for case in cases.MIXTURES if case.name == "autoencoder")
CHECKS = {
    "value, small logits in ragged blocks": (of_loss, "cross_entropy", BLOCKS, "value"),
    "value, large logits in ragged blocks": (of_loss, "cross_entropy", BLOCKS, "value", 30.0),
    "gradient, a payoff that depends on the logits": (of_loss, "mean_square", WHOLE, "vjp"),
    "gradient, a payoff of scores that do not move": (of_loss, "crammer_singer", WHOLE, "vjp"),
    "gradient, a payoff that does not depend on the logits": (of_loss, "expectation", WHOLE, "vjp"),
    "gradient, of a payoff that does not move": (of_fixed_payoff,),
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
    "digits of log-probabilities far from 0": (log_probs_far_from_0,),
    "digits of an entropy far from 0": (test_accuracy.test_no_digit_is_lost_at_any_margin, "entropy", 1e4),
    "mask and softcap": (ft.partial(of_options, softcap=2.0, where=np.arange(K) % 5 != 2), BLOCKS),
    "masks before operations": (masks_before_operations, BLOCKS),
    "smoothing over unequal masks": (test_value.test_smoothing_is_over_the_classes_that_an_example_has, "pairs"),
    "gradient, of the entropy": (of_loss, "entropy", BLOCKS, "vjp"),
    "gradient, an exponent": (of_loss, "leop", BLOCKS, "vjp"),
    "gradient, plain terms": (of_loss, "binary_cross_entropy", BLOCKS, "vjp"),
    "gradient, weights of all classes": (of_loss, "cross_entropy_per_class", BLOCKS, "vjp"),
    "value, a vector payoff": (of_loss, "expectation", BLOCKS, "value"),
    "value, an exponent": (of_loss, "leop", BLOCKS, "value"),
    "divergence": (of_divergence, "value"),
    "divergence, gradient": (of_divergence, "vjp"),
    "divergence, where p masks": (of_divergence, "value", "p"),
    "divergence, where q masks": (of_divergence, "value", "q"),
    "gradient, an exponent of sure rows": (exponent_of_sure_rows,),
    "value, plain terms": (of_loss, "binary_cross_entropy", BLOCKS, "value"),
    "several losses of the same logits": (of_several, "of the same logits"),
    "several losses of other logits": (of_several, "of other logits"),
    "several losses with sums of the same kind": (of_several, "with sums of the same kind"),
    "several losses, gradient": (of_several, "with sums of the same kind", "vjp"),
    "a weighted sum of losses": (ft.partial(of_several, **WEIGHTED), "of the same logits"),
    "a weighted sum of losses, gradient": (ft.partial(of_several, **WEIGHTED), "of the same logits", "vjp"),
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

    def leaky(c, ids):
        if ids.size != K % BLOCKS:
            return fold(c, ids)
        return fold(c._replace(logits=jnp.pad(c.logits, ((0, 0), (0, 1)))), jnp.append(ids, K))

    return leaky


def uncentred(d, c, q, ct):
    means = ((d.rest * mean.value)[..., None] for d, mean in zip(ct.payoffs, q.payoffs, strict=True))
    return d._replace(logits=d.logits + q.normaliser.probabilities(c.logits) * sum(means))


def nothing_of_the_column(pull):
    """No cotangent of the column itself."""

    def without(total, ct, column, at):
        dh, d = pull(total, ct, column, at)
        return dh, jax.tree.map(jnp.zeros_like, d)

    return without


def nothing_of_the_logits(pull):
    """No cotangent of the logits."""

    def without(total, ct, column, at):
        dh, d = pull(total, ct, column, at)
        return jnp.zeros_like(dh), d

    return without


def first_alone(merge):  # noqa: ARG001
    return lambda left, right, both: left


def kernel_in_bfloat16(over_tiles):
    def rounding(step, carry, *rest):
        if carry is not None:
            others, dclasses = carry
            carry = others, dtypes.cast(dclasses, jnp.bfloat16)
        return over_tiles(step, carry, *rest)

    return rounding


def rounded(pull_block):
    return lambda *args: jax.tree.map(lambda d: d.astype(jnp.bfloat16).astype(d.dtype), pull_block(*args))


def wrapping(class_ids):
    return lambda labels, count, **options: class_ids(jnp.where(labels < 0, labels + count, labels), count, **options)


def label_cross_entropy_of(value):
    return lambda _: rows.row_rule(rows._row_normaliser, value, rows._label_cost_pull)


def added_first(a, z, y):
    return (a.m + a.log.rest) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]


def subtracted_from_the_sum(pair, other):
    return Pair(pair.value - (other.value if isinstance(other, Pair) else other), jnp.zeros_like(pair.rest))


def one_less_p(a, h):
    return 1 - a.probabilities(h)


def keeping_no_mask(composed):
    """An operation on logits forgets which classes are masked."""
    return lambda *args: dataclasses.replace(composed(*args), live=None, masks=())


def applied_to_minus_infinity(operation, values):
    return operation._applied(values)


def entropy_of_a_difference(total, a):
    """A - E_p[h], of two large numbers."""
    return total._replace(value=(a.m + a.log.rest) - (a.m - total.below / a.mass))


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
    choose = lambda y, a, b: jnp.where(jnp.expand_dims(jnp.isnan(y.normaliser.m), range(1, a.ndim)), a, b)
    return lambda x, y: jax.tree.map(ft.partial(choose, y), x, merge(x, y))


def counting_masked(columns):
    def counting(*given):
        c = columns(*given)
        return c._replace(terms=(*c.terms[:-1], jnp.ones_like(c.terms[-1])))

    return counting


def still_p(compared):
    """The gap between the logits does not move with those of p."""
    return lambda z, **options: compared((jax.lax.stop_gradient(z[0]), z[1]), **options)


def costing_nothing(compared):
    def made(z, **options):
        gap, impossible, columns = compared(z, **options)
        return gap, jnp.zeros_like(impossible), columns

    return made


def two_probabilities(total, ct, e, at):
    """u - p of two rounded probabilities, at the top class too."""
    u = total.tilted.probabilities(at.h + jnp.where(jnp.isneginf(at.h), 0, e))
    return ct.rest[..., None] * (u - at.p), ct.rest[..., None] * u


def of_the_first_logits(columns):
    """All losses get the normaliser of the first."""

    def of_first(*given):
        *functions, z, ids, examples, of_classes = given
        seen = []

        def same(function):
            def made(*of_loss):
                c = function(*of_loss)
                seen.append(c.logits)
                return c._replace(logits=seen[0])

            return made

        return columns(*map(same, functions), z, ids, examples, of_classes)

    return of_first


def from_the_start(finished):  # noqa: ARG001
    """Each loss gets the first sums of each kind."""

    def finish(*given):
        *functions, groups, examples = given
        out = []
        for i, function in enumerate(functions):
            for key, totals in groups.items():
                for j, _, *counts in key:
                    if i == j:
                        own = {n: getattr(totals, n)[:many] for n, many in zip(sums.KINDS, counts, strict=True)}
                        out.append(function(totals._replace(**own), examples[i]))
        return tuple(out)

    return finish


def unweighted(weighted_sum):  # noqa: ARG001
    return lambda finish, *given: sum_of(finish(*given[-2:]))


def sum_of(losses):
    return ft.reduce(jnp.add, losses)


def weights_in_value_alone(weighted_sum):
    def summed(finish, *given):
        right, wrong = weighted_sum(finish, *given), sum_of(finish(*given[-2:]))
        return wrong + jax.lax.stop_gradient(right - wrong)

    return summed


def merging(change):
    """Changes the sums of a device before they are merged over devices."""
    return lambda merge_over: lambda x, axes: merge_over(change(x), axes)


FAULTS = [
    Fault(
        "the label's share of another device is lost",
        (sums, "merge_over"),
        merging(lambda x: x._replace(labels=tuple(y._replace(sum=0 * y.sum) for y in x.labels))),
        "cross entropy over devices",
        "a mixture over devices",
    ),
    Fault(
        "the 1 of the top class is added over devices",
        (sums, "merge_over"),
        merging(lambda x: x._replace(normaliser=x.normaliser._replace(r=jnp.exp(jnp.log(1 + x.normaliser.r)) - 1))),
        "sure rows over devices",
        "cross entropy over devices",
    ),
    Fault(
        "the ids of a device's classes begin at 0",
        (rules, "block_ids"),
        lambda ids: lambda layout, start, size: ids(layout._replace(mesh=()), start, size),
        "cross entropy over devices",
    ),
    Fault(
        "gradients are rounded before devices add them up",
        (rules, "_vary_with_mesh"),
        lambda vary: lambda tree, layout, before=None: vary(tree, layout),
        "half precision over devices",
        "cross entropy over devices",
    ),
    Fault(
        "padding is taken for classes",
        (rules, "without_padding"),
        lambda without_padding: lambda c, is_class: c,
        "padding",
    ),
    Fault(
        "a padded column leaks",
        (sums, "fold"),
        leaking,
        "value, small logits in ragged blocks",
        "value, large logits in ragged blocks",
    ),
    Fault(
        "the centring -E is dropped",
        (sums, "pull"),
        in_pull(uncentred),
        "gradient, a payoff that depends on the logits",
        "gradient, a payoff of scores that do not move",
    ),
    Fault(
        "E_p[dt] is dropped",
        (OfPayoff, "pull"),
        nothing_of_the_column,
        "gradient, a payoff that depends on the logits",
        "gradient, of a payoff that does not move",
    ),
    Fault(
        "E_p[dv] is dropped",
        (OfClassValue, "pull"),
        nothing_of_the_column,
        "gradient, a payoff that does not depend on the logits",
    ),
    Fault(
        "dW is accumulated in bfloat16",
        (rules, "over_tiles"),
        kernel_in_bfloat16,
        "half precision in tiles",
    ),
    Fault(
        "the gradient of each block is rounded",
        (rules, "pull_block"),
        rounded,
        "half precision in blocks",
    ),
    Fault(
        "a cotangent is lost",
        (sums, "pull"),
        lambda pull: lambda c, ids, q, ct: pull(c, ids, q, jax.tree.map(jnp.ones_like, ct)),
        "gradient, backward",
    ),
    Fault(
        "the cotangent of a gradient taken in the forward pass is lost",
        (rules._sum_rule, "bwd"),
        lambda bwd: lambda layout, residuals, ct: bwd(layout, residuals, jax.tree.map(jnp.ones_like, ct)),
        "gradient, forward",
    ),
    Fault("a negative label wraps", (checks, "class_ids"), wrapping, "a label of -1", "a label of K"),
    Fault(
        "A - z_y is formed after adding",
        (rows, "row_label_cross_entropy"),
        label_cross_entropy_of(added_first),
        "and far from 0",
    ),
    Fault(
        "a pair is summed before a subtraction",
        (Pair, "__sub__"),
        instead(subtracted_from_the_sum),
        "digits of log-probabilities far from 0",
        "digits of an entropy far from 0",
    ),
    Fault(
        "the gradient for the label is p - 1",
        (Normaliser, "complement"),
        instead(one_less_p),
        "digits of a label's loss",
    ),
    Fault(
        "merging does not rescale the sums of the lower",
        (normaliser, "weight_of_lower"),
        instead(lambda x, y: jnp.ones_like(x.m)),
        "value, small logits in ragged blocks",
    ),
    Fault(
        "merging loses a NaN",
        (sums, "merge"),
        losing_nan,
        "NaN in each block",
    ),
    Fault(
        "the rounding error of merged sums is lost",
        (Normaliser, "merge"),
        forgetful,
        "equal classes one at a time",
    ),
    Fault(
        "the ids of a block are off by one",
        (rules, "block_ids"),
        lambda ids: lambda layout, start, size: ids(layout, start, size) + 1,
        "value, small logits in ragged blocks",
    ),
    Fault(
        "the top class is taken twice",
        (context, "with_top"),
        top_twice,
        "gradient, a payoff that depends on the logits",
    ),
    Fault("a mask is lost by an operation", (value, "_composed"), keeping_no_mask, "masks before operations"),
    Fault(
        "a masked logit is changed by an operation",
        (nodes.Operation, "_computed"),
        instead(applied_to_minus_infinity),
        "masks before operations",
        "mask and softcap",
    ),
    Fault(
        "smoothing counts masked classes",
        (combinators, "_smoothed_over_classes"),
        counting_masked,
        "smoothing over unequal masks",
    ),
    Fault(
        "an entropy is a difference of large numbers",
        (OfLogits, "close"),
        instead(entropy_of_a_difference),
        "digits of an entropy far from 0",
        "gradient, of the entropy",
    ),
    Fault("the entropy has no gradient", (OfLogits, "pull"), nothing_of_the_logits, "gradient, of the entropy"),
    Fault(
        "an exponent has no gradient",
        (OfExponent, "pull"),
        nothing_of_the_column,
        "gradient, an exponent",
        "value, an exponent",
    ),
    Fault("merging forgets an exponent", (OfExponent, "merge"), first_alone, "value, an exponent"),
    Fault("plain terms have no gradient", (Term, "pull"), nothing_of_the_column, "gradient, plain terms"),
    Fault("merging forgets a term", (Term, "merge"), first_alone, "value, plain terms"),
    Fault("merging forgets a mean", (OfClassValue, "merge"), first_alone, "value, a vector payoff"),
    Fault(
        "label weights have no gradient",
        (OfLabels, "pull"),
        nothing_of_the_column,
        "gradient, weights of all classes",
        "cross entropy over devices",
    ),
    Fault(
        "the classes that p masks are no part of q",
        (divergences, "_log_of_rest"),
        instead(lambda totals: 0.0),
        "divergence, where p masks",
        "divergence",
    ),
    Fault(
        "a class that only q masks costs nothing",
        (divergences, "_compared"),
        costing_nothing,
        "divergence, where q masks",
        "divergence, where p masks",
    ),
    Fault(
        "a divergence has no gradient for p",
        (divergences, "_compared"),
        still_p,
        "divergence, gradient",
        "divergence",
    ),
    Fault(
        "an exponent has the gradient of two rounded probabilities",
        (OfExponent, "pull"),
        instead(two_probabilities),
        "gradient, an exponent of sure rows",
        "gradient, an exponent",
    ),
    Fault(
        "several losses have the logits of the first",
        (loss, "_several_columns"),
        of_the_first_logits,
        "several losses of other logits",
        "several losses of the same logits",
    ),
    Fault(
        "several losses have the sums of the first",
        (loss, "_several_finished"),
        from_the_start,
        "several losses with sums of the same kind",
        "several losses of other logits",
    ),
    Fault("the weights of losses are lost", (loss, "_weighted_sum"), unweighted, "a weighted sum of losses"),
    Fault(
        "the weights of losses are lost in the gradient",
        (loss, "_weighted_sum"),
        weights_in_value_alone,
        "a weighted sum of losses, gradient",
        "a weighted sum of losses",
    ),
    Fault(
        "a mean is over N, not over the weights",
        (reductions, "mean_weights"),
        instead(lambda weights, *_: weights / weights.size),
        "weighed mean",
    ),
    Fault(
        "ignored examples stay in the denominator",
        (reductions, "mean_weights"),
        lambda mean_weights: lambda weights, shares=None, kept=None, axes=(): mean_weights(weights, shares),
        "mean without the ignored",
    ),
    Fault(
        "forward mode alone is wrong",
        (rules, "linear_transpose"),
        twice_forward,
        "forward mode",
        "gradient, backward",
    ),
    Fault(
        "the maximum moves with the scores",
        (context, "without_top"),
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
