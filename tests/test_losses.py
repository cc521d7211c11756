"""Every loss on every placement, against its definition as a function of all the logits."""

import dataclasses
import functools as ft
import pickle
import pydoc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import softjax
from softjax import losses
from softjax.testing import MODES, assert_matches_autodiff

from . import cases, spelled, table
from .cases import D, E, K, N

pytestmark = pytest.mark.usefixtures("x64")

DERIVATIVES = MODES[:4]


class Case(NamedTuple):
    name: str
    loss: softjax.Loss
    definition: Callable  # (logits [N, K], example, per class) -> [N, ...]
    example: Callable
    per_class: Callable


def of_row(row):
    """The row of the table for K classes."""
    of_sizes = lambda make: lambda r: make(r, cases.SIZES)
    return Case(row.name, row.made(K), row.definition, of_sizes(row.example), of_sizes(row.per_class))


LABELLED, UNLABELLED, COMBINED = (
    [of_row(row) for row in rows] for rows in (table.LABELLED, table.UNLABELLED, table.COMBINED)
)
EVERY = LABELLED + UNLABELLED + COMBINED
CLASS_WEIGHTS = jnp.asarray(table.class_weights_of(K))
wide = lambda a: a.astype(jnp.float64)


# --- placements -----------------------------------------------------------------------------------


def linear_arguments(r, scale):
    return table.linear_arrays(r, cases.SIZES, scale)


def known_example(case, example, z):
    """The loss's data of the examples; weston_watkins also takes the logits of the labels."""
    return (example, table.at(z, example)) if case.name == "weston_watkins" else example


def definition(case, scores):
    def of(arguments, example, per_class):
        known = [example] if per_class is None else [example, per_class]
        return case.definition(scores(*arguments), *known)

    return of


def on_logits(case):
    return lambda z, example, per_class: spelled.of_logits(case.loss, *z, known_example(case, example, *z), per_class)


linear, distances = table.linear_scores, table.distance_scores
CAPPED = {"softcap": 3.0, "temperature": 0.6}
capped = ft.partial(linear, **CAPPED)


def on_linear(case, class_axis=-1, **options):
    def function(arguments, example, per_class):
        x, w, b = arguments
        example = known_example(case, example, linear(*arguments))
        w = w if class_axis else w.T
        return spelled.of_linear(case.loss, x, w, example, per_class, bias=b, class_axis=class_axis, **options)

    return function


def on_mixture(case, **options):
    def function(arguments, example, per_class):
        z, c, b = arguments
        example = known_example(case, example, distances(*arguments))
        return spelled.of_mixture(case.loss, z, c, example, per_class, log_prior=b, **options)

    return function


def check(case, function, scores, arguments, modes=DERIVATIVES, reduce=lambda x: x, rtol=None):
    random = cases.Random(jnp.float64, seed=2)
    given = (arguments, case.example(random), case.per_class(random))
    reference = definition(case, scores)
    assert_matches_autodiff(function, lambda *args: reduce(reference(*args)), *given, modes=modes, rtol=rtol)


by_name = {"argvalues": EVERY, "ids": lambda case: case.name}
TILES = softjax.Placement(3, 5, "backward")
FORWARD = softjax.Placement(3, 5, "forward")
WEIGHTS = jnp.asarray([0.5, 2.0, 0.0, 1.25], jnp.float32)  # not N in all


def weighed_mean(x):
    w = wide(WEIGHTS).reshape(-1, *(1,) * (x.ndim - 1))
    return (w * x).sum() / w.sum()


@ft.cache
def compiled_definition(name, scores):
    """The unreduced definition in all modes, in one program for all placements and reductions."""
    (case,) = (case for case in EVERY if case.name == name)
    return cases.compiled(cases.in_all_modes(definition(case, scores)))


def check_at_all_scales(case, reduction, size, scores=linear, **of_logits):
    """All modes at usual and at small logits, and reverse mode at large ones, of one compilation.

    The weights are whole numbers, which have no gradient: where all rows cost the same, theirs would be rounding.
    The definition of a sum or a mean is that of its terms: with the cotangent times each term's share, summed.
    """
    theirs = compiled_definition(case.name, scores)

    def function(weights, *args):
        return on_linear(case, weights=wide(weights), reduction=reduction, block_size=size, **of_logits)(*args)

    ours = cases.compiled(cases.in_all_modes(function))
    random = cases.Random(jnp.float64, seed=2)
    of_case = case.example(random), case.per_class(random)

    # At a saturated softcap, 1 - tanh^2 is 4e-6 here, and has an error of eps / 4e-6 in the definition too.
    of_softcap = 1e-10 if scores is capped else None

    def check(weights, *args, rtol=of_softcap, parts=cases.PARTS):
        moving, fixed = cases.parted(args)
        shapes = jax.eval_shape(definition(case, linear), *args)
        tangent = jax.tree.map(lambda a: cases.Random(a.dtype, 6).normal(*a.shape), moving)
        terms = jnp.ones(shapes.shape) * wide(weights).reshape(-1, *(1,) * (shapes.ndim - 1))
        shares = terms / (wide(weights).sum() if reduction == "mean" else 1)
        out = () if reduction != "none" else shapes.shape
        ct = cases.Random(jnp.float64, 5).normal(*out)
        got = ours((None, *moving), (weights, *fixed), ct, (None, *tangent))
        got = {part: a[1:] if part.startswith("gradient") else a for part, a in got.items()}
        want = theirs(moving, fixed, ct * shares, tangent)
        total = (lambda a: shares * a) if reduction == "none" else (lambda a: (shares * a).sum())
        want |= {part: total(want[part]) for part in ("value", "value along")}
        cases.assert_close(*({part: of[part] for part in parts} for of in (got, want)), rtol)

    for scale in (1.0, 0.0):
        check(jnp.asarray([1, 4, 0, 3]), linear_arguments(cases.Random(jnp.float64), scale), *of_case)
    # Where every row is sure, the sum over the rows may be as small as the rounding error of the definition.
    large = linear_arguments(cases.Random(jnp.float64), 30.0)
    check(jnp.ones(N, int), large, *of_case, rtol=1e-7, parts=cases.PARTS[:2])


@pytest.mark.parametrize("case", **by_name)
def test_losses_of_logits(case):
    random = cases.Random(jnp.float64, seed=2)
    of_case = case.example(random), case.per_class(random)
    assert_agree = cases.agreement(on_logits(case), definition(case, lambda z: z))
    assert_agree((cases.logits(cases.Random(jnp.float64), 1.0),), *of_case)


@pytest.mark.parametrize("case", **by_name)
@pytest.mark.one_case_in(4)
def test_losses_in_ragged_blocks_with_the_gradient_in_the_backward_pass(case):
    check_at_all_scales(case, "none", 5)


# The arguments of a loss: a label, labels [N, T], payoffs of classes, data of examples beside them, logits alone.
IN_TILES = ("cross_entropy", "cross_entropy_of_pairs", "mixture_autoencoder", "label_smoothing", "mean_square")
REDUCED = [case for case in EVERY if case.name not in ("expectation", "weighted_logsumexp")]  # one number per example


@pytest.mark.parametrize("case", cases.in_tiers({case.name: case for case in REDUCED}, IN_TILES))
def test_losses_in_ragged_blocks_with_the_gradient_in_the_forward_pass(case):
    check_at_all_scales(case, "mean", softjax.Placement(N, 5, "forward"))


TILED = {"backward": ("sum", TILES), "forward": ("mean", FORWARD)}
FAST_IN_TILES = (
    "cross_entropy_of_pairs-backward",
    "smoothed_over_live_classes-backward",
    "mixture_autoencoder-forward",
    "cross_entropy-forward",
)


@pytest.mark.parametrize(
    ("case", "reduction", "size"),
    cases.in_tiers(
        {f"{c.name}-{name}": (c, *cell) for c in EVERY if c.name in IN_TILES for name, cell in TILED.items()},
        FAST_IN_TILES,
    ),
)
@pytest.mark.one_case_in(4)
def test_losses_in_ragged_tiles_and_blocks(case, reduction, size):
    check_at_all_scales(case, reduction, size)


OF_CAPPED = ("z_loss", "leop", "mixture_autoencoder", "brier")


@pytest.mark.parametrize("size", [5, FORWARD], ids=["backward", "forward"])
@pytest.mark.parametrize("name", cases.in_tiers({name: name for name in OF_CAPPED}, ("z_loss",)))
def test_losses_of_a_softcap_and_a_temperature(name, size):
    (case,) = (case for case in EVERY if case.name == name)
    check_at_all_scales(case, "none" if size == 5 else "mean", size, capped, **CAPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("size", [5, FORWARD], ids=["backward", "forward"])
def test_cross_entropy_as_users_compile_it_in_every_mode(size):
    """Each mode in a program of its own, and over any argument."""
    function = on_linear(LABELLED[0], reduction="mean", weights=WEIGHTS, block_size=size)
    modes = MODES if size is FORWARD else DERIVATIVES
    check(LABELLED[0], function, linear, linear_arguments(cases.Random(jnp.float64), 1.0), modes, weighed_mean)


ON_MIXTURES = ("focal", "leop")


@pytest.mark.parametrize("case", cases.in_tiers({case.name: case for case in EVERY}, ON_MIXTURES))
def test_losses_of_mixtures_in_ragged_blocks(case):
    random = cases.Random(jnp.float64)
    arguments = (random.normal(N, D), random.normal(K, D), random.normal(K))
    random = cases.Random(jnp.float64, seed=2)
    assert_agree = cases.agreement(on_mixture(case, block_size=5), definition(case, distances))
    assert_agree(arguments, case.example(random), case.per_class(random))


def in_blocks(logits):
    return logits if isinstance(logits, jax.Array) else dataclasses.replace(logits, block_size=5)


OF_SCORES = ("weighted_logsumexp",)


@pytest.mark.parametrize("row", table.SCORES.values(), ids=table.SCORES)
@pytest.mark.parametrize("case", cases.in_tiers({case.name: case for case in EVERY}, OF_SCORES))
def test_losses_of_all_kinds_of_scores(case, row):
    random = cases.Random(jnp.float64)
    arrays = row.arguments(random, cases.SIZES)

    def function(arrays, example, per_class):
        example = known_example(case, example, row.definition(*arrays))
        return softjax.of(case.loss, in_blocks(row.made(*arrays)), example, per_class)

    assert_agree = cases.agreement(function, definition(case, row.definition))
    assert_agree(arrays, case.example(random), case.per_class(random))


SOME_NAMES = ("cross_entropy", "class_weights_of_smoothed", "mixture_autoencoder", "entropy")
SOME = [case for case in EVERY if case.name in SOME_NAMES]


SIZES = {
    "whole": (None, 0),
    "single": (1, -1),
    "blocks": (5, 0),
    "one tile": (softjax.Placement(4, 13, "forward"), 0),
    "single tiles": (softjax.Placement(1, 1, "forward"), -1),
}
FAST_SIZES = [f"cross_entropy-{name}" for name in SIZES] + [
    "entropy-one tile",
    "class_weights_of_smoothed-single tiles",
]


@pytest.mark.parametrize(
    ("case", "size", "class_axis"),
    cases.in_tiers({f"{case.name}-{name}": (case, *cell) for case in SOME for name, cell in SIZES.items()}, FAST_SIZES),
)
def test_placements_and_axes_of_the_kernel(case, size, class_axis):
    reference, random = definition(case, linear), cases.Random(jnp.float64, seed=2)
    function = on_linear(case, class_axis, reduction="sum", block_size=size)
    assert_agree = cases.agreement(function, lambda *args: reference(*args).sum())
    assert_agree(linear_arguments(cases.Random(jnp.float64), 1.0), case.example(random), case.per_class(random))


@pytest.mark.parametrize(
    ("case", "placement"),
    cases.in_tiers(
        {
            f"{case.name}-{name}": (case, placement)
            for case in SOME
            for name, placement in {"blocks": 5, "tiles": TILES, "forward": FORWARD}.items()
        },
        ("cross_entropy-blocks", "class_weights_of_smoothed-forward"),
    ),
)
def test_a_hessian_vector_product_through_a_scan(case, placement):
    """JAX 0.10 drops a custom_jvp there, and differentiates the function inside."""
    random = cases.Random(jnp.float64)
    (x, w, b), example, per_class = linear_arguments(random, 1.0), case.example(random), case.per_class(random)

    def product(function):
        def step(carry, x):
            return carry + (function((x, w, b), example, per_class) ** 2).sum(), None

        total = lambda x: jax.lax.scan(step, jnp.zeros(()), jnp.stack([x, 2 * x]))[0]
        return cases.compiled(lambda x: jax.jvp(jax.value_and_grad(total), (x,), (jnp.cos(x),)))(x)

    reduction = "sum" if placement is FORWARD else "none"
    reference = definition(case, linear)
    if reduction == "sum":
        reference = lambda *args: definition(case, linear)(*args).sum()
    got = product(on_linear(case, reduction=reduction, block_size=placement))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(product(reference)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def of_numbers():
    """(a function of a loss's numbers, its definition, the numbers, the features)."""
    random = cases.Random(jnp.float64)
    (x, w, b), y = linear_arguments(random, 1.0), cases.labels(random)

    def function(numbers, **options):
        gamma, cap, t, class_weights = numbers
        loss = losses.class_weights(losses.cross_entropy, class_weights)
        some = spelled.of_linear(loss, x, w, y, bias=b, softcap=cap, temperature=t, **options)
        return some + spelled.of_linear(losses.focal(gamma), x, w, y, bias=b, **options)

    def reference(numbers):
        gamma, cap, t, class_weights = numbers
        z = linear(x, w, b)
        log_p = -cases.softmax_loss(z, y)
        weighed = class_weights[y] * cases.softmax_loss(cap * jnp.tanh(z / cap) / t, y)
        return weighed - (1 - jnp.exp(log_p)) ** gamma * log_p

    return function, reference, (jnp.float64(1.5), jnp.float64(3.0), jnp.float64(0.6), wide(CLASS_WEIGHTS)), x


@pytest.mark.parametrize("place", ["forward", pytest.param("tiles", marks=pytest.mark.slow)])
def test_numbers_of_a_loss_have_gradients(place):
    function, reference, numbers, _ = of_numbers()
    if place == "tiles":
        cases.agreement(ft.partial(function, block_size=TILES), reference)(numbers)
    else:
        summed = ft.partial(function, block_size=FORWARD, reduction="sum")
        cases.agreement(summed, lambda numbers: reference(numbers).sum())(numbers)


@pytest.mark.slow
def test_numbers_of_a_loss_under_vmap():
    function, reference, numbers, x = of_numbers()

    def over_each_and_all(f):
        """[2, N, ...] for each number by itself, and for all."""
        pairs = jax.tree.map(lambda a: jnp.stack([a, a / 2]), numbers)
        each = [tuple(0 if i in (k, len(numbers)) else None for k in range(len(numbers))) for i in range(5)]
        axes_and_numbers = [
            (axes, tuple(a if axis is None else p for a, p, axis in zip(numbers, pairs, axes, strict=True)))
            for axes in each
        ]
        reverse_mode = lambda numbers: jax.vjp(f, numbers)[1](jnp.cos(jnp.arange(N, dtype=x.dtype)))
        return [jax.vmap(lambda n: (f(n), reverse_mode(n)), (axes,))(given) for axes, given in axes_and_numbers]

    got, want = (
        cases.compiled(lambda f=f: over_each_and_all(f))() for f in (ft.partial(function, block_size=5), reference)
    )
    cases.assert_close(got, want)


@pytest.mark.usefixtures("optimised")
def test_results_do_not_depend_on_blocks_or_tiles():
    with jax.enable_x64(False):
        random = cases.Random(jnp.float32)
        x, w, y = random.normal(50, 8), random.normal(8, 301), random.integers(301, 50)
        z = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
        exact = (np.log(np.exp(z).sum(-1)) - z[np.arange(50), y]).mean()
        sizes, reference = [None, 1, 7, 1000], None
        sizes += [softjax.Placement(7, 16, "forward"), softjax.Placement(99, 64, "backward")]
        for size in sizes:
            loss = ft.partial(spelled.of_linear, losses.cross_entropy, reduction="mean", block_size=size)
            value, gradients = jax.jit(jax.value_and_grad(lambda x, w, f=loss: f(x, w, y), (0, 1)))(x, w)
            reference = reference or (value, *gradients)
            np.testing.assert_allclose(value, exact, rtol=1e-6)
            for a, b in zip((value, *gradients), reference, strict=True):
                assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


# --- the contract -----------------------------------------------------------------------------------


@pytest.mark.slow  # test_edges has it for other losses
def test_payoffs_of_classes_with_a_bias_of_minus_infinity_contribute_nothing():
    random = cases.Random(jnp.float64)
    x, w, b = linear_arguments(random, 1.0)
    b, values, data = b.at[3].set(-jnp.inf), random.normal(K, E), random.normal(N, E)
    bad = values.at[3].set(jnp.inf)
    for loss in (losses.expectation, losses.mixture_autoencoder, losses.eol, losses.leop):
        f = lambda x, v, d, loss=loss: spelled.of_linear(loss, x, w, d, v, bias=b, block_size=5).sum()
        value_and_gradients = cases.compiled(jax.value_and_grad(f, (0, 1, 2)))
        got, want = (value_and_gradients(x, v, data) for v in (bad, values))
        for a, b_ in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b_)


def test_a_weight_of_0_rules_out_a_loss_of_infinity():
    x, w, y = jnp.eye(2), jnp.asarray([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]]), jnp.asarray([2, 0], jnp.int32)
    loss = lambda x, weights: spelled.linear_softmax_cross_entropy(
        x, w, y, where=np.array([True, True, False]), weights=weights, reduction="mean"
    )
    assert loss(x, jnp.zeros(2)) == 0
    value, gradient = cases.compiled(jax.value_and_grad(loss))(x, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(value, np.log1p(np.exp(-1.0)))
    assert (gradient[0] == 0).all()
    assert np.isfinite(gradient).all()


def test_a_temperature_or_a_softcap_of_the_logits_is_also_that_of_the_most_likely_class():
    """Whose logit is computed again."""
    z, x = jnp.zeros((1, 1)), jnp.zeros((1, 1))
    c, v = jnp.asarray([[1.0], [2.0]]), jnp.asarray([[3.0], [0.0]])
    h = table.distance_scores(z, c)
    for logits, of_definition in (
        (softjax.distances(z, c) / 4, h / 4),
        (5 * (softjax.distances(z, c) / 5).map(jnp.tanh), 5 * jnp.tanh(h / 5)),
    ):
        for name in ("eol", "leop"):
            got, want = (
                softjax.of(table.LOSSES[name].loss, logits, x, v),
                table.LOSSES[name].definition(of_definition, x, v),
            )
            np.testing.assert_allclose(got, want, rtol=1e-12)


# --- losses of two logits ---------------------------------------------------------------------------


def kl(p, q):
    """sum_k p_k (log p_k - log q_k)."""
    return (cases.softmax(p) * (cases.log_softmax(p) - cases.log_softmax(q))).sum(-1)


def binary(z, y):
    return table.binary_costs(z, y).sum(-1)


OF_TWO = {
    "kl_divergence": (losses.kl_divergence, kl),
    "expectation_of_pairs": (losses.expectation_of_pairs, cases.expectation),
    "cross_entropy of soft labels": (losses.cross_entropy, cases.cross_entropy),
    "binary_cross_entropy of targets": (losses.binary_cross_entropy, binary),
}
DIVIDED = {"whole": None, "blocks": 5, "tiles": TILES, "forward": FORWARD}
KINDS_OF_TWO = {  # (the two logits, their definitions) of arrays
    "arrays": (lambda x, w, b, z, c: (x @ w + b, table.distance_scores(z, c))),
    "linear, distances": (
        lambda x, w, b, z, c, size: (softjax.linear(x, w, b, block_size=size), softjax.distances(z, c))
    ),
    "linear, array": (
        lambda x, w, b, z, c, size: (softjax.linear(x, w, b, block_size=size), table.distance_scores(z, c))
    ),
    "pairwise, linear": (
        lambda x, w, b, z, c, size: (
            softjax.pairwise(lambda x, w: x @ w[:-1] + w[-1], x, jnp.concatenate([w, b[None]]).T, block_size=size),
            -softjax.linear(z, -2 * c, class_axis=0) - (c**2).sum(-1) - (z**2).sum(-1, keepdims=True),
        )
    ),
}


def in_the_unit_interval(both):
    """The two logits, the second of which are targets."""
    z, y = both
    return z, y.map(jax.nn.sigmoid) if isinstance(y, softjax.Logits) else jax.nn.sigmoid(y)


def arrays_of_two(scale):
    r = cases.Random(jnp.float64, 4)
    x, w, b = linear_arguments(r, scale)
    return x, w, b, r.normal(N, D), r.normal(K, D)


@pytest.mark.parametrize("place", DIVIDED)
@pytest.mark.parametrize("kind", list(KINDS_OF_TWO)[1:])
@pytest.mark.parametrize("name", OF_TWO)
@pytest.mark.each_value_once
def test_losses_of_two_logits(name, kind, place):
    """In all modes; with two arrays too, which are taken whole."""
    loss, definition = OF_TWO[name]
    reduction = "mean" if place == "forward" else "none"
    reduce = weighed_mean if reduction == "mean" else lambda x: wide(WEIGHTS) * x
    both = in_the_unit_interval if name.startswith("binary") else lambda both: both
    options = {"weights": wide(WEIGHTS), "reduction": reduction}
    ours = lambda *given: softjax.of(loss, both(KINDS_OF_TWO[kind](*given, DIVIDED[place])), **options)
    of_arrays = lambda *given: softjax.of(loss, both(KINDS_OF_TWO["arrays"](*given)), **options)
    theirs = lambda *given: reduce(definition(*both(KINDS_OF_TWO["arrays"](*given))))
    for function in (ours, of_arrays) if place == "forward" else (ours,):
        check = cases.agreement(function, theirs)
        check(*arrays_of_two(1.0))
        check(*arrays_of_two(3.0), rtol=1e-9, parts=cases.PARTS[:2])


def test_a_class_that_is_masked_in_both_is_in_no_part_of_a_divergence():
    random = cases.Random(jnp.float64)
    p, q, live = random.normal(N, K), random.normal(N, K), np.arange(K) % 3 != 1
    masked = lambda z: jnp.where(live, z, -jnp.inf)
    got = softjax.of(losses.kl_divergence, (masked(p), masked(q)))
    np.testing.assert_allclose(got, kl(p[:, live], q[:, live]), rtol=1e-10)
    assert np.isposinf(softjax.of(losses.kl_divergence, (p, masked(q)))).all()
    of_some = softjax.of(losses.kl_divergence, (masked(p), q))
    log_p = cases.log_softmax(p[:, live])
    np.testing.assert_allclose(of_some, (jnp.exp(log_p) * (log_p - cases.log_softmax(q)[:, live])).sum(-1), rtol=1e-10)


# --- losses as values -----------------------------------------------------------------------------


def unpickled(x):
    return pickle.loads(pickle.dumps(x))


def is_the_program_of(a, b):
    """Whether JAX takes two pytrees for the arguments of one compiled program."""
    return jax.tree.structure(a.partials()) == jax.tree.structure(b.partials())


@pytest.mark.parametrize("case", [case for case in EVERY if case.name != "mean_square"], ids=lambda case: case.name)
def test_a_loss_is_pickled(case):
    r, again = cases.Random(jnp.float64), unpickled(case.loss)
    z, example, per_class = table.logits(r, cases.SIZES), case.example(r), case.per_class(r)
    example = known_example(case, example, z)
    want, got = (spelled.of_logits(loss, z, example, per_class) for loss in (case.loss, again))
    np.testing.assert_array_equal(got, want)
    assert is_the_program_of(again, case.loss)
    assert again.__doc__ == case.loss.__doc__


def cauchy(scale, x, y):
    return 1 / (1 + ((x - y) ** 2).sum() / scale**2)


def halved(z):
    return z / 2


def is_near(example, label):
    return example + 2 > label


OF_NAMED_FUNCTIONS = {
    **{name: table.SCORES[name].made for name in ("linear", "distances")},
    "of": lambda scale, x, y: softjax.pairwise(Partial(cauchy, scale), x, y),
}


@pytest.mark.parametrize("name", OF_NAMED_FUNCTIONS)
def test_logits_are_pickled(name):
    arrays = table.SCORES[name].arguments(cases.Random(jnp.float64), cases.SIZES)
    logits = in_blocks(OF_NAMED_FUNCTIONS[name](*arrays)).map(halved).where(is_near)
    again = unpickled(logits)
    np.testing.assert_array_equal(*(softjax.of(losses.logsumexp, z) for z in (again, logits)))
    assert jax.tree.structure(again) == jax.tree.structure(logits)


def test_a_placement_is_pickled():
    size = softjax.Placement(3, 4, "forward", 5)
    assert unpickled(size) == size
    assert type(unpickled(size)) is softjax.Placement


@pytest.mark.parametrize("name", [name for name, value in vars(losses).items() if isinstance(value, softjax.Loss)])
def test_help_says_which_loss_it_is(name):
    loss = getattr(losses, name)
    text = pydoc.plain(pydoc.render_doc(loss))
    for word in (loss.__doc__.splitlines()[0], "example:", "per_class:", "Source: "):
        assert word in text
    assert "alias for field" not in text
    assert losses.focal(2.0).__doc__ == softjax.Loss.__doc__
    assert isinstance(jax.tree.map(lambda x: x, loss.partials()), softjax.Loss)
