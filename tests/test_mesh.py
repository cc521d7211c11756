"""Classes and examples over a mesh of 8 devices, inside `jax.shard_map` and by `softjax.shard`."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import _jax, losses

from . import cases, spelled, table
from .test_linear import option_sets

N, D, E, K = 8, 3, 5, 24
AXES = {"axis_name": "classes", "batch_axis_name": "data"}
OVER = {"class_axis_name": "classes", "batch_axis_name": "data"}
ce = spelled.linear_softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("x64")


def spread(function, mesh, specs, out):
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out)


def linear_arguments(dtype="float64", k=K):
    r = cases.Random(dtype, seed=8)
    return r.normal(N, D), r.normal(D, k), r.normal(k), r.integers(k, N).at[0].set(0).at[1].set(k - 1)


def mixture_arguments(dtype="float64", k=K):
    r = cases.Random(dtype, seed=9)
    return r.normal(N, D), r.normal(N, E), r.normal(k, D), r.normal(k, E)


def reduced(reduction, loss):
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


# --- inside shard_map: value, reverse and forward mode, Hessian-vector products ---------------------

PLACEMENTS = {
    "whole": None,
    "blocks": 2,
    "tiles": softjax.Placement(3, 2, "backward"),
    "forward": softjax.Placement(2, 2, "forward"),
}


@pytest.mark.parametrize(
    ("placement", "reduction"), [("whole", "none"), ("blocks", "mean"), ("tiles", "sum"), ("forward", "mean")]
)
def test_cross_entropy_over_classes_and_examples(placement, reduction):
    specs = P("data"), P(None, "classes"), P("classes"), P("data")
    options = {"reduction": reduction, "block_size": PLACEMENTS[placement], **AXES}
    f = lambda x, w, b, y: ce(x, w, y, bias=b, **options)
    over = spread(f, cases.mesh(2, 4), specs, P("data") if reduction == "none" else P())
    cases.agreement(over, lambda x, w, b, y: reduced(reduction, cases.softmax_loss(x @ w + b, y)))(*linear_arguments())


@pytest.mark.parametrize(("replicated", "shape"), [(False, (1, 8)), (False, (4, 2)), (False, (8, 1)), (True, (2, 4))])
def test_meshes_of_every_shape_and_features_that_are_sharded_or_not(shape, replicated):
    batch = P() if replicated else P("data")
    options = {"axis_name": "classes"} if replicated else AXES
    specs = batch, P(None, "classes"), P("classes"), batch
    f = lambda x, w, b, y: ce(x, w, y, bias=b, reduction="mean", **options)
    over = spread(f, cases.mesh(*shape), specs, P())
    cases.agreement(over, lambda x, w, b, y: cases.softmax_loss(x @ w + b, y).mean())(*linear_arguments())


@pytest.mark.parametrize("placement", ["blocks", "forward"])
@pytest.mark.parametrize("case", [case for case in cases.MIXTURES if case.name != "decode"], ids=lambda case: case.name)
@pytest.mark.one_case_in(2)
def test_mixtures_over_classes_and_examples(case, placement):
    z, *more = mixture_arguments()
    args = (z, *more) if case.name != "decode" else (z, *more[1:])
    specs = (P("data"),) * (len(args) - 2) + (P("classes"), P("classes"))
    block_size = PLACEMENTS[placement]
    reduction = "mean" if placement == "forward" and case.name != "decode" else "none"
    options = {} if case.name == "decode" else {"reduction": reduction, "batch_axis_name": "data"}
    f = ft.partial(case.function, axis_name="classes", block_size=block_size, **options)
    over = spread(f, cases.mesh(2, 4), specs, P("data") if reduction == "none" else P())
    cases.agreement(over, lambda *args: reduced(reduction, case.definition(*args)))(*args)


def test_classes_over_two_axes():
    """The first axis is the slower one, as in a PartitionSpec."""
    specs = P(), P(None, ("data", "classes")), P(("data", "classes")), P()
    f = lambda x, w, b, y: ce(x, w, y, bias=b, axis_name=("data", "classes"))
    over = spread(f, cases.mesh(2, 4), specs, P())
    cases.agreement(over, lambda x, w, b, y: cases.softmax_loss(x @ w + b, y))(*linear_arguments())


def test_examples_alone():
    over = spread(
        lambda x, w, b, y: ce(x, w, y, bias=b, reduction="mean", batch_axis_name=("data", "classes")),
        cases.mesh(2, 4),
        (P(("data", "classes")), P(), P(), P(("data", "classes"))),
        P(),
    )
    cases.agreement(over, lambda x, w, b, y: cases.softmax_loss(x @ w + b, y).mean())(*linear_arguments())


def test_functions_of_logits_know_of_arrays_that_are_spread():
    """Payoffs that all devices share have a gradient that all devices make."""
    z, t = cases.Random("float64").normal(N, K), cases.Random("float64", 2).normal(K)
    over = spread(softjax.expectation, cases.mesh(8, 1), (P("data"), P()), P("data"))
    cases.agreement(over, cases.expectation)(z, t)
    of_logits = lambda z, t: softjax.of(losses.expectation, z, None, t[:, None])[:, 0]
    over = spread(of_logits, cases.mesh(8, 1), (P("data"), P()), P("data"))
    cases.agreement(over, cases.expectation)(z, t)


def test_a_gradient_that_is_taken_inside_is_that_of_the_whole():
    """The gradient of a replicated array is already summed over the devices, and the same on each."""
    x, w, b, y = linear_arguments()

    def gradients(x, w, b, y):
        loss = lambda x, w, b: ce(x, w, y, bias=b, reduction="mean", **AXES)
        grads = jax.grad(loss, (0, 1, 2))(x, w, b)
        varying = [_jax.varying_axes(g) for g in grads]
        assert varying == [{"data"}, {"classes"}, {"classes"}]
        return grads

    specs = P("data"), P(None, "classes"), P("classes"), P("data")
    got = jax.jit(spread(gradients, cases.mesh(2, 4), specs, specs[:3]))(x, w, b, y)
    want = jax.grad(lambda x, w, b: cases.softmax_loss(x @ w + b, y).mean(), (0, 1, 2))(x, w, b)
    cases.assert_close(got, want)


def test_axes_that_no_function_needs_may_be_left_to_the_compiler():
    mesh = jax.make_mesh((2, 2, 2), ("data", "classes", "rest"), axis_types=(AxisType.Auto,) * 3)
    x, w, b, y = linear_arguments()
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    args = place(x, "data", None), place(w, None, "classes"), place(b, "classes"), place(y, "data")
    over = lambda x, w, b, y: spelled.linear_softmax_cross_entropy(x, w, y, bias=b, mesh=mesh, **OVER)
    cases.agreement(over, lambda x, w, b, y: cases.softmax_loss(x @ w + b, y))(*args)


# --- softjax.shard, of classes that the devices do not divide --------------------------------------

UNEVEN = 13  # of which 4 devices have 4, 4, 4 and 1


class Row(NamedTuple):
    name: str
    function: Callable  # (functions, arguments...) -> output
    definition: Callable
    arguments: tuple


def rows():
    x, w, b, y = linear_arguments(k=UNEVEN)
    z, data, centers, values = mixture_arguments(k=UNEVEN)
    r = cases.Random("float64", seed=4)
    prior, payoffs, weights, live = r.normal(UNEVEN), r.normal(UNEVEN, E), jnp.abs(r.normal(N)), np.arange(UNEVEN) != 2
    mixture = {"temperature": 1.7, "where": live}
    return [
        Row(
            "of_linear",
            lambda s, x, w, cap: s.of_linear(losses.entropy, x, w, where=live, softcap=cap),
            lambda x, w, cap: cases.entropy(table.linear_scores(x, w, softcap=cap), where=live),
            (x, w, jnp.asarray(3.0)),
        ),
        Row(
            "linear_expectation",
            lambda s, x, w, v, b: s.linear_expectation(x, w.T, v, bias=b, class_axis=0, temperature=0.7),
            lambda x, w, v, b: table.linear_expectation(x, w, v, bias=b, temperature=0.7),
            (x, w, payoffs, b),
        ),
        Row(
            "linear_log_probs",
            lambda s, x, w, b: s.linear_log_probs(x, w, y, b, softcap=5.0, entropy=True),
            lambda x, w, b: table.linear_log_probs(x, w, y, b, softcap=5.0, entropy=True),
            (x, w, b),
        ),
        Row(
            "linear_logsumexp",
            lambda s, x, w: s.linear_logsumexp(x.reshape(2, 4, D), w, softcap=5.0).reshape(N),
            lambda x, w: table.linear_logsumexp(x, w, softcap=5.0),
            (x, w),
        ),
        Row(
            "contrastive_loss",
            lambda s, x, y, t: s.contrastive_loss(x, y, temperature=t),
            lambda x, y, t: table.contrastive_loss(x, y, temperature=t),
            (x, r.normal(N, D), jnp.asarray(0.8)),
        ),
        Row(
            "contrastive_loss, weighed mean",
            lambda s, x, y, q: s.contrastive_loss(x, y, weights=q, reduction="mean"),
            lambda x, y, q: table.contrastive_loss(x, y, weights=q, reduction="mean"),
            (x, r.normal(N, D), weights),
        ),
        Row(
            "of_mixture",
            lambda s, z, c, y: s.of_mixture(losses.focal(1.5), z, c, y),
            lambda z, c, y: table.of_mixture(table.LOSSES["focal"], z, c, y),
            (z, centers, y),
        ),
        Row(
            "gaussian_mixture_nll_loss",
            lambda s, x, c, t, b: s.gaussian_mixture_nll_loss(x, c, t, log_prior=b),
            lambda x, c, t, b: table.gaussian_mixture_nll_loss(x, c, t, log_prior=b),
            (data, values, jnp.exp(r.normal(len(values), 1)), prior),
        ),
        Row(
            "eol_loss, precisions",
            lambda s, z, x, c, v, t: s.eol_loss(z, x, c, v, precisions=t),
            lambda z, x, c, v, t: table.eol_loss(z, x, c, v, precisions=t),
            (z, data, centers, values, jnp.exp(r.normal(*centers.shape))),
        ),
        Row(
            "leop_loss, scales",
            lambda s, z, x, c, v, t: s.leop_loss(z, x, c, v, precisions=t),
            lambda z, x, c, v, t: table.leop_loss(z, x, c, v, precisions=t),
            (z, data, centers, values, jnp.exp(r.normal(centers.shape[1]))),
        ),
        *(
            Row(
                case.name,
                lambda s, *a, case=case: getattr(s, case.function.__name__)(*a[:-1], log_prior=a[-1], **mixture),
                lambda *a, case=case: case.definition(*a[:-1], log_prior=a[-1], **mixture),
                (z, *((data,) if case.name != "decode" else ()), centers, values, prior),
            )
            for case in cases.MIXTURES
        ),
    ]


MIXTURE_OPTIONS = ("gaussian_mixture_nll_loss", "eol_loss, precisions", "leop_loss, scales")
ROWS = [
    *MIXTURE_OPTIONS,
    "of_linear",
    "linear_expectation",
    "linear_logsumexp",
    "contrastive_loss",
    "contrastive_loss, weighed mean",
]
ROWS += ["of_mixture", *(case.name for case in cases.MIXTURES)]


class OverMesh:
    """The functions of logits, told of a mesh."""

    def __init__(self, mesh, **axes):
        self.mesh, self.axes = mesh, axes

    def __getattr__(self, name):
        axes = dict(self.axes)
        if name == "contrastive_loss":
            axes = {"batch_axis_name": ("data", "classes")}
        return ft.partial(getattr(spelled, name), mesh=self.mesh, **axes)


ON_EXPLICIT = ("linear_expectation", "contrastive_loss", "leop")  # a linear layer, examples as classes, a mixture


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, AxisType.Auto, id=f"{name}-auto") for name in ROWS),
        *(pytest.param(name, AxisType.Explicit, id=f"{name}-explicit", marks=pytest.mark.slow) for name in ON_EXPLICIT),
    ],
)
@pytest.mark.one_case_in(2)
def test_sharded_functions_of_the_whole(name, kind):
    row = next(row for row in rows() if row.name == name)
    functions = OverMesh(cases.mesh(2, 4, kind), **OVER)
    cases.agreement(lambda *args: row.function(functions, *args), row.definition)(*row.arguments)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("number", [9])  # all options together; one device has each alone
def test_options_of_the_cross_entropy(number, reduction):
    """All options together, as on one device."""
    r = cases.Random("float64", seed=6)
    x, w, y = r.normal(cases.N, cases.D), r.normal(cases.D, cases.K), jnp.asarray([0, 5, 3, 11], jnp.int32)
    options = option_sets(r)[number] | {"reduction": reduction}
    moving = {k: v for k, v in options.items() if isinstance(v, jax.Array)}
    fixed = {k: v for k, v in options.items() if k not in moving}
    size = PLACEMENTS["forward" if reduction == "mean" else "blocks"]
    functions = OverMesh(cases.mesh(2, 4), **OVER)
    cases.agreement(
        lambda x, w, moving: functions.linear_softmax_cross_entropy(x, w, y, **fixed, **moving, block_size=size),
        lambda x, w, moving: table.linear_softmax_cross_entropy(x, w, y, **fixed, **moving),
    )(x, w, moving)


def test_classes_that_are_padded_once_and_masked():
    """As users do who avoid the copies of every call: the gradient of the padding is 0."""
    x, w, _, y = linear_arguments(k=UNEVEN)
    padded = jnp.pad(w, ((0, 0), (0, 3)))

    def f(x, w):
        logits = softjax.linear(x, w).where(np.arange(16) < UNEVEN)
        logits = softjax.shard(logits, cases.mesh(2, 4), examples="data", classes="classes")
        return softjax.softmax_cross_entropy_with_integer_labels(logits, y)

    cases.agreement(f, lambda x, w: cases.softmax_loss((x @ w)[:, :UNEVEN], y))(x, padded)


@pytest.mark.parametrize("padded_classes", [False, True])
def test_a_label_of_no_class_is_nan_on_a_mesh_too(padded_classes):
    k = UNEVEN if padded_classes else 16
    x, w, _, y = linear_arguments("float32", k)
    y = y.at[2].set(k).at[5].set(-1).at[6].set(2**31 - 1)
    f = lambda x: spelled.linear_softmax_cross_entropy(x, w, y, mesh=cases.mesh(2, 4), **OVER)
    loss, dx = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(x)
    np.testing.assert_array_equal(np.isnan(loss), [False, False, True, False, False, True, True, False])
    np.testing.assert_array_equal(np.isnan(dx).all(-1), np.isnan(loss))


# --- mesh axes from the arrays' types ----------------------------------------------------------------


def test_explicit_meshes_tell_where_the_arrays_are():
    x, w, _, y = linear_arguments()
    mesh = cases.mesh(2, 4, AxisType.Explicit)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    with jax.set_mesh(mesh):
        x_, w_, y_ = place(x, "data", None), place(w, None, "classes"), place(y, "data")
        loss = jax.jit(spelled.linear_softmax_cross_entropy)(x_, w_, y_)
        assert jax.typeof(loss).sharding.spec == P("data")
        mean = lambda x, w: spelled.linear_softmax_cross_entropy(x, w, y_, reduction="mean")
        value, (dx, dw) = jax.jit(jax.value_and_grad(mean, (0, 1)))(x_, w_)
        assert (jax.typeof(dx), jax.typeof(dw)) == (jax.typeof(x_), jax.typeof(w_))
        of_sequences = jax.jit(
            lambda x, w, y: spelled.linear_softmax_cross_entropy(x, w, y, reduction="mean", class_axis=0)
        )(place(x.reshape(2, 4, D), "data", "classes"), place(w.T), place(y.reshape(2, 4), "data", "classes"))
    want = lambda x, w: cases.softmax_loss(x @ w, y)
    np.testing.assert_allclose(loss, want(x, w), rtol=1e-12)
    np.testing.assert_allclose([value, of_sequences], want(x, w).mean(), rtol=1e-12)
    cases.assert_close((dx, dw), jax.grad(lambda x, w: want(x, w).mean(), (0, 1))(x, w))


def test_the_mesh_that_was_set_is_used():
    x, w, _, y = linear_arguments()
    with jax.set_mesh(cases.mesh(2, 4)):
        loss = jax.jit(ft.partial(spelled.linear_softmax_cross_entropy, **OVER))(x, w, y)
    np.testing.assert_allclose(loss, cases.softmax_loss(x @ w, y), rtol=1e-12)


# --- digits ----------------------------------------------------------------------------------------------


@ft.cache
def of_sure_rows():
    loss = lambda w: spelled.linear_softmax_cross_entropy(
        np.ones((2, 1), np.float32), w, np.full(2, 5), mesh=cases.mesh(2, 4), **OVER
    ).mean()
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("margin", [-80.0, -20.0, 0.0, 6.0, 17.0, 80.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_no_digit_is_lost_in_sure_rows_whoever_has_the_label(margin, offset):
    """The label's class is on the second of 4 devices; the truth is log(1 + 15 exp(-margin))."""
    z = np.full(16, offset, np.float32)
    z[5] += margin
    value, dw = of_sure_rows()(z[None])
    truth = np.log1p(15 * np.exp(-np.float64(margin)))
    others = np.exp(-np.float64(margin)) / (1 + 15 * np.exp(-np.float64(margin)))
    np.testing.assert_allclose(value, truth, rtol=2e-6)
    np.testing.assert_allclose(dw[0, 5], -15 * others, rtol=2e-6)
    np.testing.assert_allclose(dw[0, 6], others, rtol=2e-6)


@pytest.mark.parametrize("shape", [(4, 2), pytest.param((1, 8), marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_number_of_devices(shape):
    """In float32, beside the definition in float64; where all scores are equal, each device has the largest."""
    x, w, _, y = linear_arguments("float32", k=4096)
    z, data, centers, values = mixture_arguments("float32", k=4096)
    over = OverMesh(cases.mesh(*shape), **OVER)
    wide = lambda *arrays: tuple(a.astype("float64") if a.dtype == "float32" else a for a in arrays)

    assert_close = lambda got, want, rtol=2e-6: cases.assert_close(
        jax.tree.map(lambda a: a.astype("float64"), got), want, rtol
    )

    def of(function, *args):
        moving = tuple(i for i, a in enumerate(args) if a.dtype != "int32")
        return jax.jit(jax.value_and_grad(lambda *args: function(*args).sum(), moving))

    ours = of(over.linear_softmax_cross_entropy, x, w, y)
    theirs = of(lambda x, w, y: cases.softmax_loss(x @ w, y), x, w, y)
    for scale in (0.0, 1.0, 30.0):
        assert_close(ours(scale * x, w, y), theirs(*wide(scale * x, w, y)))
    for function, definition in (
        (over.mixture_autoencoder_loss, cases.autoencoder),
        (over.eol_loss, cases.minus_eol),
        (over.leop_loss, cases.leop),
    ):
        ours, theirs = (of(f, z, data, centers, values) for f in (function, definition))
        for scale in (0.1, 3.0):
            args = z, data, scale * centers, values
            assert_close(ours(*args), theirs(*wide(*args)), 3e-6)  # 2.2e-6 with JAX 0.12, 1.1e-6 with 0.10


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("kind", ["quickly", "as users do"])
def test_a_class_each_whose_score_is_computed_twice(kind):
    """With one feature and one class on a device, scores are products that compilers fuse, and may round otherwise."""
    r = cases.Random("float64", seed=0)
    x, w, b = r.normal(32, 1), 2 * r.normal(1, 8), r.normal(8)
    compiled = cases.compiled if kind == "quickly" else jax.jit
    for shape in ((1, 8), (2, 4), (4, 2)):
        k = shape[1]
        over = OverMesh(cases.mesh(*shape), **OVER)
        f = lambda x, w, b, over=over: over.linear_logsumexp(x, w, bias=b)
        args = x, w[:, :k], b[:k]
        value, slope = compiled(lambda *args, f=f: jax.jvp(f, args, args))(*args)
        want = jax.jvp(lambda x, w, b: cases.log_sum_exp(x @ w + b), args, args)
        cases.assert_close((value, slope), want)


# --- in training loops -------------------------------------------------------------------------------------


def test_a_loop_that_is_compiled_whole():
    """Steps of gradient descent under `lax.scan`, with the batch made again under `jax.checkpoint`."""
    x, w, _, y = linear_arguments()
    over = OverMesh(cases.mesh(2, 4), **OVER)

    def train(loss):
        def step(w, _):
            value, dw = jax.value_and_grad(jax.checkpoint(lambda w: loss(jnp.tanh(x), w).mean()))(w)
            return w - dw, value

        return jax.jit(lambda w: lax.scan(step, w, length=5))(w)

    got = train(lambda x, w: over.linear_softmax_cross_entropy(x, w, y))
    cases.assert_close(got, train(lambda x, w: cases.softmax_loss(x @ w, y)))


def test_sharded_functions_under_vmap():
    x, w, _, y = linear_arguments()
    over = OverMesh(cases.mesh(2, 4), **OVER)
    stack = jnp.stack([w, 2 * w, w - 1])
    got = jax.vmap(lambda w: jax.grad(lambda w: over.linear_softmax_cross_entropy(x, w, y).sum())(w))(stack)
    want = jax.vmap(lambda w: jax.grad(lambda w: cases.softmax_loss(x @ w, y).sum())(w))(stack)
    cases.assert_close(got, want)


@pytest.mark.parametrize(("dtype", "shape"), [("bfloat16", (2, 4)), ("float16", (1, 8)), ("bfloat16", (8, 1))])
@pytest.mark.one_case_in(2)
def test_half_precision_is_rounded_once(dtype, shape):
    """The parts of a gradient are summed over the devices before rounding, also where they cancel."""
    x, w, _, y = linear_arguments("float32")
    random = cases.Random("float32", seed=3)
    values, ct = random.normal(K, 2), np.resize(np.float32([1, -1]), (N, 1)) + 0.01 * random.normal(N, 2)
    over = OverMesh(cases.mesh(*shape), **OVER)
    args = tuple(a.astype(dtype) for a in (x, w, values))

    def both(linear, expectation):
        mean = lambda x, w: linear(x, w).mean()
        paid = lambda x, w, v: (ct.astype(max(x.dtype, "float32")) * expectation(x, w, v)).sum()
        return jax.jit(lambda x, w, v: (jax.grad(mean, (0, 1))(x, w), jax.grad(paid, (0, 1, 2))(x, w, v)))

    ours = both(lambda x, w: over.linear_softmax_cross_entropy(x, w, y), over.linear_expectation)
    theirs = both(lambda x, w: cases.softmax_loss(x @ w, y), lambda x, w, v: cases.softmax(x @ w) @ v)
    want = theirs(*(a.astype("float64") for a in args))
    for a, b in zip(jax.tree.leaves(ours(*args)), jax.tree.leaves(want), strict=True):
        assert a.dtype == dtype
        rounding = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(b)
        smallest = float(jnp.finfo(dtype).smallest_subnormal)
        assert (np.abs(np.asarray(a, np.float64) - b) <= 1.01 * rounding + smallest + 1e-6 * np.abs(b).max()).all()


def test_no_example_and_no_coordinate():
    over = OverMesh(cases.mesh(2, 4), **OVER)
    x, w, _, y = linear_arguments("float32")
    z, data, centers, values = mixture_arguments("float32")
    for reduction, want in (("none", np.zeros(0)), ("mean", 0.0), ("sum", 0.0)):
        loss, (dx, dw) = jax.value_and_grad(
            lambda x, w, r=reduction: over.linear_softmax_cross_entropy(x, w, y[:0], reduction=r).sum(), (0, 1)
        )(x[:0], w)
        np.testing.assert_array_equal(loss, np.sum(want))
        assert dx.shape == (0, D)
        np.testing.assert_array_equal(dw, np.zeros((D, K)))
    np.testing.assert_array_equal(over.eol_loss(z, data[:, :0], centers, values[:, :0]), np.zeros(N))
    assert over.mixture_expectation(z[:0], centers, values).shape == (0, E)


OF_PADDING = {  # losses that would change if padding were a class, and their definitions for logits z
    "label_smoothing": (
        losses.label_smoothing(losses.cross_entropy, 0.1, 1 / UNEVEN),
        lambda z, y: 0.9 * cases.softmax_loss(z, y) - 0.1 * cases.log_softmax(z).mean(-1),
    ),
    "label_smoothing over the classes": (
        losses.label_smoothing(losses.cross_entropy, 0.1),
        lambda z, y: 0.9 * cases.softmax_loss(z, y) - 0.1 * cases.log_softmax(z).mean(-1),
    ),
    "terms": (
        softjax.Loss(
            lambda z, *_: softjax.Columns(z, terms=((jnp.where(jnp.isneginf(z), 0, z) - 3) ** 2,)),
            lambda q, _: q.terms[0],
        ),
        lambda z, y: ((z - 3) ** 2).sum(-1),
    ),
    "logits": (
        softjax.Loss(lambda z, *_: softjax.Columns(jnp.cos(jnp.where(jnp.isneginf(z), 0, z))), lambda q, _: q.A.value),
        lambda z, y: cases.log_sum_exp(jnp.cos(z)),
    ),
    "entropies": (
        softjax.Loss(
            lambda z, *_: softjax.Columns(jnp.cos(jnp.where(jnp.isneginf(z), 0, z)), entropies=(losses.ENTROPY,)),
            lambda q, _: q.H,
        ),
        lambda z, y: cases.entropy(jnp.cos(z)),
    ),
    "weights": (
        softjax.Loss(
            lambda z, ids, y, _: softjax.Columns(
                z, labels=softjax.Weights(y[:, None], jnp.ones((y.size, 1), z.dtype), jnp.full(ids.shape, 0.5, z.dtype))
            ),
            lambda q, _: q.C,
        ),
        lambda z, y: cases.softmax_loss(z, y) - 0.5 * cases.log_softmax(z).sum(-1),
    ),
    "weights of pairs": (
        softjax.Loss(
            lambda z, ids, y, _: softjax.Columns(
                z, labels=softjax.Weights(y[:, None], jnp.ones((y.size, 1), z.dtype), jnp.full(z.shape, 0.5, z.dtype))
            ),
            lambda q, _: q.C,
        ),
        lambda z, y: cases.softmax_loss(z, y) - 0.5 * cases.log_softmax(z).sum(-1),
    ),
    "payoffs and exponents": (
        softjax.Loss(
            lambda z, *_: softjax.Columns(
                0 * z, payoffs=(jnp.where(jnp.isneginf(z), 5, z),), exponents=(jnp.ones_like(z),)
            ),
            lambda q, _: (q.payoffs[0] - q.exponents[0]).value,
        ),
        lambda z, y: z.mean(-1) - 1,
    ),
    "class values": (
        softjax.Loss(
            lambda z, ids, *_: softjax.Columns(z, class_values=(jnp.ones((ids.size, 1), z.dtype),)),
            lambda q, _: q.class_values[0].value[:, 0] + q.A.value,
        ),
        lambda z, y: 1 + cases.log_sum_exp(z),
    ),
    "integers": (
        softjax.Loss(
            lambda z, ids, y, _: softjax.Columns(z, terms=((ids[None] == y[:, None]).astype(jnp.int32), z > 0)),
            lambda q, _: q.A.value * q.terms[0].astype(q.normaliser.m.dtype) + q.terms[1].astype(q.normaliser.m.dtype),
        ),
        lambda z, y: cases.log_sum_exp(z) + (z > 0).astype(z.dtype).sum(-1),
    ),
}


@pytest.mark.parametrize("name", OF_PADDING)
@pytest.mark.one_case_in(2)
def test_padding_has_no_part_in_any_loss(name):
    loss, definition = OF_PADDING[name]
    x, w, _, y = linear_arguments(k=UNEVEN)
    over = OverMesh(cases.mesh(2, 4), **OVER)
    cases.agreement(lambda x, w: over.of_linear(loss, x, w, y, block_size=2), lambda x, w: definition(x @ w, y))(x, w)


# --- refusals ----------------------------------------------------------------------------------------


def inside(*, check_vma=True, mesh=(2, 4), specs=None, **options):
    specs = specs or (P("data"), P(None, "classes"), P("data"))
    x, w, _, y = linear_arguments("float32")
    f = lambda x, w, y: ce(x, w, y, **options)
    return jax.shard_map(f, mesh=cases.mesh(*mesh), in_specs=specs, out_specs=P("data"), check_vma=check_vma)(x, w, y)


def on_mesh(logits=None, mesh="a mesh", examples="data", classes="classes"):
    x, w, _, _ = linear_arguments("float32")
    logits = softjax.linear(x, w) if logits is None else logits
    mesh = cases.mesh(2, 4) if isinstance(mesh, str) else mesh
    return softjax.shard(logits, mesh, examples=examples, classes=classes)


LABELS = np.zeros(N, np.int32)
labelled = softjax.softmax_cross_entropy_with_integer_labels


REFUSALS = {
    "no name": (lambda: inside(axis_name=1), TypeError, "`axis_name` must be the name of a mesh axis, a tuple of such"),
    "a name twice": (lambda: inside(axis_name=("classes",) * 2), ValueError, "must not name an axis twice"),
    "no such axis": (
        lambda: inside(axis_name="k"),
        ValueError,
        "`axis_name` must name axes of the mesh of a `jax.shard_map`",
    ),
    "outside of shard_map": (
        lambda: ce(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.zeros(2, int), axis_name="classes"),
        ValueError,
        "`axis_name` must name axes of the mesh of a `jax.shard_map`, got 'classes'",
    ),
    "unchecked": (
        lambda: inside(axis_name="classes", check_vma=False),
        ValueError,
        "with check_vma=True, got 'classes'",
    ),
    "one axis for both": (
        lambda: inside(axis_name="classes", batch_axis_name="classes"),
        ValueError,
        "`batch_axis_name` must name other axes than `axis_name`, got 'classes'",
    ),
    "a kernel that all have": (
        lambda: inside(axis_name="classes", specs=(P("data"), P(), P("data"))),
        ValueError,
        r"`kernel` must vary over the axes \('classes',\) of `axis_name`, got float32\[3,24\]",
    ),
    "features that all have": (
        lambda: inside(**AXES, specs=(P(), P(None, "classes"), P())),
        ValueError,
        r"`features` must vary over the axes \('data',\) of `batch_axis_name`",
    ),
    "no mesh": (
        lambda: on_mesh(mesh=None),
        ValueError,
        "`mesh` must be a mesh of devices, or set by `jax.set_mesh`, got None",
    ),
    "a mesh that is none": (lambda: on_mesh(mesh=8), ValueError, "`mesh` must be a mesh of devices, .* got 8"),
    "no axis of the mesh": (
        lambda: on_mesh(classes="model"),
        ValueError,
        r"`classes` must name axes of the mesh, \('data', 'classes'\), got 'model'",
    ),
    "no name of an axis": (lambda: on_mesh(examples=0), TypeError, "`examples` must be the name of a mesh axis"),
    "no axes": (
        lambda: on_mesh(classes=None, examples=None),
        ValueError,
        "`examples` or `classes` must name an axis of the mesh, got None",
    ),
    "the same axis": (
        lambda: on_mesh(examples="classes"),
        ValueError,
        r"`examples` must name other axes than `classes`, got \('classes',\) and \('classes',\)",
    ),
    "an axis twice": (
        lambda: on_mesh(classes=("classes", "classes")),
        ValueError,
        r"`classes` must not name an axis twice, got \('classes', 'classes'\)",
    ),
    "logits in memory": (
        lambda: on_mesh(jnp.zeros((N, K), jnp.float32)),
        TypeError,
        r"`logits` must be `softjax.Logits`, got float32\[8, 24\]",
    ),
    "examples that do not divide": (
        lambda: softjax.entropy(on_mesh(softjax.linear(np.ones((9, D)), np.ones((D, K))))),
        ValueError,
        r"`logits` must have leading axes that 2 devices of \('data',\) divide, got \(9, 24\)",
    ),
    "features of one example": (
        lambda: softjax.entropy(on_mesh(softjax.linear(np.ones(D), np.ones((D, K))))),
        ValueError,
        r"`logits` must have leading axes to be sharded over \(\('data',\),\), got \(24,\)",
    ),
    "labels of other examples": (
        lambda: labelled(on_mesh(), LABELS[:4]),
        ValueError,
        r"`labels` must have a shape that begins with \(8,\), the leading axes of the logits, got \(4,\)",
    ),
    "weights of other examples": (
        lambda: labelled(on_mesh(), LABELS, weights=np.ones(4)),
        ValueError,
        r"`weights` must have a shape that begins with \(8,\), the leading axes of the logits, got \(4,\)",
    ),
    "values of other classes": (
        lambda: softjax.of(losses.expectation, on_mesh(), None, np.ones((K + 1, 2))),
        ValueError,
        r"`per_class` must have a shape that begins with \(24,\), the classes of the logits, got \(25, 2\)",
    ),
    "payoffs of other classes": (
        lambda: softjax.expectation(on_mesh(), np.ones((N, K + 1), np.float32)),
        ValueError,
        r"`values` must broadcast to the logits \(8, 24\), got shape \(8, 25\)",
    ),
    "logits of two meshes": (
        lambda: softjax.kl_divergence(on_mesh(), on_mesh(classes=None)),
        ValueError,
        "`logits` must be sharded over the same mesh and axes",
    ),
    "a sum of logits of two meshes": (
        lambda: on_mesh() + on_mesh(classes=None),
        ValueError,
        "`other` must be placed on the same mesh as the other logits",
    ),
    "logits of a shard": (
        lambda: jax.shard_map(
            lambda x, w: softjax.entropy(on_mesh(softjax.linear(x, w, axis_name="classes"))),
            mesh=cases.mesh(2, 4),
            in_specs=(P(), P(None, "classes")),
            out_specs=P(),
        )(jnp.ones((8, 3)), jnp.ones((3, 8))),
        ValueError,
        "`logits` must be of global arrays, got logits that are made with `axis_name`",
    ),
    "within a shard_map": (
        lambda: jax.shard_map(
            lambda x, w: softjax.entropy(on_mesh(softjax.linear(x, w), mesh=None)),
            mesh=cases.mesh(2, 4),
            in_specs=P(),
            out_specs=P(),
        )(jnp.ones((8, 3)), jnp.ones((3, 8))),
        ValueError,
        "`classes` must not name an axis of the `jax.shard_map` around, got 'classes'",
    ),
    "an option that is an array": (
        lambda: labelled(on_mesh(), LABELS, ignore_index=np.zeros(2, int)),
        TypeError,
        r"`ignore_index` must be a Python number, string or tuple, got int64\[2\]",
    ),
    "a reduction that is none": (
        lambda: labelled(on_mesh(), LABELS, reduction="average"),
        ValueError,
        "`reduction` must be 'none', 'sum' or 'mean', got 'average'",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_the_argument(name):
    call, error, message = REFUSALS[name]
    with pytest.raises(error, match=message):
        call()
