"""Laws of the mathematics, on numbers that hypothesis draws; at the end each law is shown a function that breaks it."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softjax

from . import cases
from .test_transformations import FEWER, LIVE, ROWS, K, N, arrays, compiled, split

pytestmark = pytest.mark.usefixtures("x64")

drawn = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SEEDS = st.integers(0, 2**30)
SCALES = st.sampled_from([0.01, 0.3, 1.0, 3.0, 10.0])
SHIFTS = st.floats(-1e4, 1e4)
SCALED = ("logits", "features", "others", "z", "bias", "log_prior")  # the arrays that scale the scores


class Function(NamedTuple):
    name: str
    function: Callable
    names: str
    shifted: str | None = None  # of which array a number may be added to all classes
    out: int | None = None  # the axis of the result that has the classes


def functions():
    """The rows of the table, all classes at once, without softcaps and z-losses, which break the laws."""
    rows = {row.name: row for row in ROWS if not row.name.endswith("_mean")}
    for name, row in rows.items():
        names = [n for n in row.names.split() if n not in ("softcap", "z_loss")]
        of_softmax = name != "linear_sigmoid_binary_cross_entropy"
        shifted = next((n for n in ("logits", "bias", "log_prior") if n in names and of_softmax), None)
        sized = "logits" not in names
        function = ft.partial(row.function, block_size=None) if sized else row.function
        yield Function(name, function, " ".join(names), shifted, -1 if name in ("softmax", "log_softmax") else None)


FUNCTIONS = {f.name: f for f in functions()}
every_function = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)


class Probe(NamedTuple):
    """The quantities in the laws."""

    value: jax.Array
    gradients: dict  # J^T ct
    tangent: jax.Array  # J v
    curvature: dict  # H v, of <ct, f>


@ft.lru_cache
def probe(function):
    def of(moving, fixed, ct, v):
        f = lambda moving: function(**moving, **fixed)
        value, back = jax.vjp(f, moving)
        gradient = jax.grad(lambda moving: (ct * f(moving)).sum())
        curvature = jax.jvp(gradient, (moving,), (v,))[1]
        return Probe(value, back(ct)[0], jax.jvp(f, (moving,), (v,))[1], curvature)

    run = compiled(of)

    def on(given, ct, v=None):
        moving, fixed = split(given)
        v = {name: jnp.zeros_like(a) for name, a in moving.items()} if v is None else v
        return jax.tree.map(np.asarray, run(moving, fixed, ct, v))

    return on


def numbers(f, seed, scale=1.0):
    """Arguments of a function, with one of two masks."""
    r = cases.Random(jnp.float64, seed)
    given = arrays(f, jnp.float64, seed=seed + 1)
    given |= {name: scale * given[name] for name in SCALED if name in given}
    return given | ({"where": jnp.asarray((LIVE, FEWER)[seed % 2])} if "where" in given else {}), r


def cotangent(f, given, r):
    out = jax.eval_shape(lambda given: f.function(**given), given)
    return r.normal(*out.shape)


def largest(*arrays):
    return max(float(np.abs(a).max(initial=0)) for a in arrays)


def assert_near(got, want, size, rtol=1e-11):
    """Errors are relative to the size of the terms."""
    error = largest(np.asarray(got) - np.asarray(want))
    assert error <= rtol * size, f"{error} at a size of {size}"


def size_of(given, p, *more):
    """Scores of this size are summed, and an error in them is multiplied by a payoff."""
    of_scores = 1 + largest(*(given[name] for name in given if name != "where"), *more) ** 2
    return of_scores * (1 + largest(p.value, *p.gradients.values()))


# --- the laws -------------------------------------------------------------------------------------


def forward_and_reverse_mode_are_transposes(f, given, r):
    """<ct, J v> = <J^T ct, v>."""
    moving, _ = split(given)
    ct, v = cotangent(f, given, r), {name: r.normal(*a.shape) for name, a in moving.items()}
    p = probe(f.function)(given, ct, v)
    left, right = ct * p.tangent, [p.gradients[name] * v[name] for name in v]
    size = np.abs(left).sum() + sum(np.abs(a).sum() for a in right)
    assert_near(left.sum(), sum(a.sum() for a in right), size)


def second_derivatives_are_symmetric(f, given, r):
    """<u, H v> = <v, H u>. In rows that are sure, they are small differences of terms of the size of the scores."""
    moving, _ = split(given)
    ct = cotangent(f, given, r)
    u, v = ({name: r.normal(*a.shape) for name, a in moving.items()} for _ in "uv")
    p, q = (probe(f.function)(given, ct, along) for along in (u, v))
    left, right = ([a[name] * b.curvature[name] for name in moving] for a, b in ((u, q), (v, p)))
    size = size_of(given, p) + sum(np.abs(a).sum() for a in (*left, *right))
    assert_near(sum(a.sum() for a in left), sum(a.sum() for a in right), size)


def a_shift_of_all_classes_does_not_matter(f, given, r, shift=1.0):
    """f(z + s) = f(z), with its gradients, whose sum over the classes is 0; but A(z + s) = A(z) + s."""
    ct = cotangent(f, given, r)
    p = probe(f.function)(given, ct)
    q = probe(f.function)({**given, f.shifted: given[f.shifted] + shift}, ct)
    by = 1 / given.get("temperature", 1) if "logsumexp" in f.name else 0
    size = size_of(given, p) + abs(shift) * (1 + largest(*p.gradients.values()))
    assert_near(q.value, p.value + by * shift, size)
    for name in p.gradients:
        if not (name == "temperature" and "logsumexp" in f.name):
            assert_near(q.gradients[name], p.gradients[name], size)
    of_scores = p.gradients[f.shifted]
    per_shift = by * (ct if f.shifted == "logits" else ct.sum()) if by else 0
    assert_near(of_scores.sum(-1), per_shift, size)


OF_CLASSES = {
    "logits": -1,
    "soft_labels": -1,
    "payoffs": -1,
    "kernel": -1,
    "teacher_kernel": 1,
    "bias": 0,
    "centers": 0,
}
OF_CLASSES |= {"centers": 0, "values": 0, "log_prior": 0, "class_weights": 0, "where": 0}
OF_CLASSES |= {"precisions": 0, "precisions_of_values": 0, "temperatures": 0}
OF_PAIRS = {"features": 0, "others": 0, "weights": 0}  # whose examples are each other's classes


def the_order_of_the_classes_does_not_matter(f, given, r):
    ct = cotangent(f, given, r)
    pairs = "others" in given
    axes, out = (OF_PAIRS, 0) if pairs else (OF_CLASSES, f.out)
    order = r.generator.permutation(N if pairs else K)
    move = lambda name, a: jnp.take(a, order, axes[name]) if name in axes else a
    moved = {name: move(name, a) for name, a in given.items()}
    for name in {"labels", "label_sets"} & given.keys():
        moved[name] = jnp.asarray(np.argsort(order), jnp.int32)[given[name]]
    of_out = lambda a: a if out is None else jnp.take(a, order, out)
    p, q = probe(f.function)(given, ct), probe(f.function)(moved, of_out(ct))
    assert_near(q.value, of_out(p.value), size_of(given, p))
    for name in p.gradients:
        assert_near(q.gradients[name], move(name, p.gradients[name]), size_of(given, p))


def a_class_is_two_equal_halves_of_it(f, given, r):
    """A class twice, each with half of its weight exp(score), is that class; their gradients add up to its."""
    ct, last, one = cotangent(f, given, r), K - 1, int(r.generator.choice([1, 2, 5, 6]))
    given = given | {name: a for name, a in {"where": jnp.ones(K, bool)}.items() if name in given}
    given |= {"labels": given["labels"] % last} if "labels" in given else {}
    given |= {"label_smoothing": jnp.float64(0)} if "label_smoothing" in given else {}  # which counts the classes
    at = lambda name, k: (slice(None),) * (OF_CLASSES[name] % given[name].ndim) + (k,)
    for name in OF_CLASSES.keys() & given.keys():
        given[name] = given[name].at[at(name, last)].set(given[name][at(name, one)])
    scores, half = given[f.shifted], jnp.log(2) * (given.get("temperature", 1) if f.shifted == "bias" else 1)
    once = {**given, f.shifted: scores.at[at(f.shifted, last)].set(-jnp.inf)}
    twice = {**given, f.shifted: scores.at[at(f.shifted, jnp.array([one, last]))].add(-half)}
    # A temperature scales the halves of a bias, and smoothing counts the classes: their gradients differ.
    of_two = ("temperature", "label_smoothing") if f.shifted == "bias" else ()
    if f.out is not None:
        ct = ct.at[at("logits", last)].set(ct[at("logits", one)])
    p, q = probe(f.function)(once, ct), probe(f.function)(twice, ct)
    size = size_of(given, p)
    joined = q.value if f.out is None else q.value[..., :last] + q.value[..., last:] * (np.arange(last) == one)
    assert_near(joined, p.value if f.out is None else p.value[..., :last], size)
    for name, got in q.gradients.items():
        if name in OF_CLASSES:
            got, want = (np.moveaxis(a, OF_CLASSES[name], 0) for a in (got, p.gradients[name]))
            assert_near(got[one] + got[last], want[one], size)
            assert_near(np.delete(got, (one, last), 0), np.delete(want, (one, last), 0), size)
        elif name not in of_two:
            assert_near(got, p.gradients[name], size)


def an_expectation_is_linear_in_its_payoffs(f, given, r):
    """E_p[a t + b s] = a E_p[t] + b E_p[s], and so the derivative along s is E_p[s]."""
    name = "values" if "values" in given else "payoffs"
    moving, _ = split(given)
    ct, t, s, (a, b) = cotangent(f, given, r), given[name], r.normal(*given[name].shape), r.generator.normal(size=2)
    along = {n: s if n == name else jnp.zeros_like(x) for n, x in moving.items()}
    of = lambda t: probe(f.function)({**given, name: t}, ct, along)
    of_t, of_s = of(t), of(s)
    assert_near(of(a * t + b * s).value, a * of_t.value + b * of_s.value, (abs(a) + abs(b)) * largest(t, s))
    assert_near(of_t.tangent, of_s.value, largest(s))


SPLIT = ("softmax", "logsumexp", "expectation", "softmax_cross_entropy_with_integer_labels", "of_logits")
SPLIT += ("linear_softmax_cross_entropy", "linear_expectation", "linear_logsumexp")
SPLIT += ("mixture_autoencoder_loss", "eol_loss", "leop_loss", "mixture_expectation")
LAWS = {
    forward_and_reverse_mode_are_transposes: list(FUNCTIONS),
    # Second derivatives lose digits in rows that are sure, as all rows of that loss may be.
    second_derivatives_are_symmetric: [name for name in FUNCTIONS if name != "supervised_contrastive_loss"],
    a_shift_of_all_classes_does_not_matter: [name for name, f in FUNCTIONS.items() if f.shifted],
    the_order_of_the_classes_does_not_matter: list(FUNCTIONS),
    a_class_is_two_equal_halves_of_it: SPLIT,
    an_expectation_is_linear_in_its_payoffs: ["expectation", "linear_expectation", "mixture_expectation"],
}


@every_function
@drawn
@given(SEEDS, SCALES, SHIFTS)
@pytest.mark.one_case_in(6)
def test_the_laws_hold(f, seed, scale, shift):
    for law, names in LAWS.items():
        if f.name in names:
            options = {"shift": shift} if law is a_shift_of_all_classes_does_not_matter else {}
            law(f, *numbers(f, seed, scale), **options)


def eol_is_the_largest_and_leaves_loe_by_the_variance(loe, eol, leop, given):
    """LOE <= EOL >= LEOP, and EOL - LOE = tr Var_p(A)."""
    rest = {name: a for name, a in given.items() if name not in ("weights", "x", "values")}
    p = np.asarray(cases.mixture(**rest))
    a = np.asarray(given["values"])
    variance = given["weights"] * ((p[..., None] * (a - (p @ a)[:, None]) ** 2).sum((-1, -2)))
    ones = jnp.ones(N)
    of_loe, of_eol, of_leop = (probe(function)(given, ones).value for function in (loe, eol, leop))
    size = largest(given["weights"]) * largest(cases.log_likelihood(given["x"], a))
    assert (of_loe <= of_eol + 1e-12 * size).all()
    assert (of_leop <= of_eol + 1e-12 * size).all()
    assert_near(of_eol - of_loe, variance, size)


MIXTURES = [FUNCTIONS[name].function for name in ("mixture_autoencoder_loss", "eol_loss", "leop_loss")]


@drawn
@given(SEEDS, SCALES, st.sampled_from([0.0, 10.0, 1000.0]))
def test_jensens_laws_of_mixtures(seed, scale, offset):
    made, _ = numbers(FUNCTIONS["eol_loss"], seed, scale)
    moved = {name: made[name] + offset for name in ("x", "values")}
    eol_is_the_largest_and_leaves_loe_by_the_variance(*MIXTURES, {**made, **moved})


# --- blocks, tiles and padding --------------------------------------------------------------------

PLACEMENTS = [
    None,
    softjax.Placement(3, 5, "forward"),
    softjax.Placement(2, 3, "backward"),
    softjax.Placement(9, 3, "forward", 6),
]
PADDING = {"kernel": -1, "bias": 0, "centers": 0, "values": 0, "log_prior": 0, "class_weights": 0, "where": 0}
PADDING |= {"precisions": 0, "precisions_of_values": 0, "temperatures": 0}
PLACED = ("linear_softmax_cross_entropy", "mixture_autoencoder_loss", "leop_loss", "mixture_expectation")


def padded(given):
    """Five classes more, of weight exp(-inf)."""
    fill = {"bias": -np.inf, "log_prior": -np.inf, "where": True, "kernel": 7.0, "centers": 7.0}
    return {
        name: jnp.concatenate(
            [a, jnp.full_like(jnp.take(a, jnp.zeros(5, int), PADDING[name]), fill.get(name, 1.0))], PADDING[name]
        )
        if name in PADDING
        else a
        for name, a in given.items()
    }


@ft.lru_cache
def everywhere(function, sums):
    """Values and gradients in every placement, and with classes that are none."""

    def total(moving, fixed, pad=False, **options):
        given = {**moving, **fixed}
        return function(**(padded(given) if pad else given), **options).sum()

    def of(moving, fixed):
        options = [{"block_size": size} for size in PLACEMENTS]
        options += [] if "others" in moving else [{"pad": True, "block_size": 5}]
        options = [o | ({"reduction": "sum"} if sums else {}) for o in options]
        return [jax.value_and_grad(lambda m, o=o: total(m, fixed, **o))(moving) for o in options]

    return compiled(of)


def results_do_not_depend_on_the_placement(function, given, sums):
    moving, fixed = split(given)
    first, *others = jax.tree.map(np.asarray, everywhere(function, sums)(moving, fixed))
    for other in others:
        size = max(1, largest(*jax.tree.leaves(first)))  # of the terms: a gradient may be a small rest of them
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(first), strict=True):
            assert_near(a, b, size, rtol=1e-6)


@pytest.mark.parametrize("name", PLACED)
@drawn
@given(SEEDS)
@pytest.mark.one_case_in(4)
def test_results_do_not_depend_on_blocks_tiles_and_padding(name, seed):
    with jax.enable_x64(False):
        made = arrays(FUNCTIONS[name], jnp.float32, seed)
        results_do_not_depend_on_the_placement(FUNCTIONS[name].function, made, "expectation" not in name)


# --- the laws can be broken -----------------------------------------------------------------------


def leaky_softmax(logits):
    """With a padded class of logit 0."""
    return jnp.exp(logits) / (1 + jnp.exp(logits).sum(-1, keepdims=True))


def uncentred(logits):
    """Right in value, but for the centring -E in its derivative."""
    p = jax.lax.stop_gradient(cases.softmax(logits))
    return (p * logits).sum(-1) - (p * jax.lax.stop_gradient(logits)).sum(-1)


def wrong_transpose(logits):
    twice = jax.custom_derivatives.linear_call(lambda _, x: 2 * x, lambda _, ct: 2.001 * ct, (), logits)
    return twice.sum(-1)


@jax.custom_jvp
def no_gradient_field(logits):
    return logits.sum(-1)


@no_gradient_field.defjvp
def _(primals, tangents):
    return no_gradient_field(*primals), (jnp.roll(primals[0], 1, -1) * tangents[0]).sum(-1)


def by_place(logits):
    return cases.softmax(logits) @ jnp.arange(K, dtype=logits.dtype)


BREAKERS = [
    (forward_and_reverse_mode_are_transposes, wrong_transpose, "logits"),
    (second_derivatives_are_symmetric, no_gradient_field, "logits"),
    (a_shift_of_all_classes_does_not_matter, leaky_softmax, "logits"),
    (a_shift_of_all_classes_does_not_matter, uncentred, "logits"),
    (the_order_of_the_classes_does_not_matter, by_place, "logits"),
    (
        a_class_is_two_equal_halves_of_it,
        lambda logits, payoffs: (cases.softmax(logits) ** 2 * payoffs).sum(-1),
        "logits payoffs",
    ),
    (
        an_expectation_is_linear_in_its_payoffs,
        lambda logits, payoffs: cases.expectation(logits, jnp.tanh(payoffs)),
        "logits payoffs",
    ),
    (
        an_expectation_is_linear_in_its_payoffs,
        lambda logits, payoffs: cases.expectation(logits, jax.lax.stop_gradient(payoffs)),
        "logits payoffs",
    ),
]


@pytest.mark.parametrize(("law", "function", "names"), BREAKERS)
def test_a_function_that_breaks_a_law_is_found(law, function, names):
    out = -1 if function is leaky_softmax else None
    f = Function("a wrong one", function, names, "logits", out)
    with pytest.raises(AssertionError, match="at a size of"):
        law(f, *numbers(f, seed=3))


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.one_case_in(3)
def test_a_mixture_that_breaks_jensens_laws_is_found(wrong):
    made, _ = numbers(FUNCTIONS["eol_loss"], 3)
    eol_is_the_largest_and_leaves_loe_by_the_variance(*MIXTURES, made)
    functions = list(MIXTURES)
    functions[wrong] = lambda **given: MIXTURES[wrong](**given) * (0.9 if wrong == 1 else 1) + (wrong != 1) * 30.0
    with pytest.raises(AssertionError):
        eol_is_the_largest_and_leaves_loe_by_the_variance(*functions, made)


@pytest.mark.parametrize("leak", [lambda size, a: 1e-5 * (size == PLACEMENTS[2]), lambda size, a: 5e-5 * (a.size > K)])
def test_a_result_that_depends_on_its_placement_is_found(leak):
    def function(bias, block_size=None):
        return cases.log_sum_exp(bias) + leak(block_size, bias)

    with jax.enable_x64(False), pytest.raises(AssertionError, match="at a size of"):
        results_do_not_depend_on_the_placement(function, {"bias": cases.Random(jnp.float32).normal(K)}, sums=False)
