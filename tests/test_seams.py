"""The seams, used from outside: logits of one's own under every loss, and another engine under the functions."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

import softjax
from softjax import Placement, engines, losses
from softjax.arguments.dtypes import join, split
from softjax.sums import sums

from . import cases
from .cases import K, N

pytestmark = pytest.mark.usefixtures("x64")

# ---------------------------------------------------------------------------------------------
# Logits of one's own: kernels of KeOps, of x [3] and y [3], and a formula with data of other kinds


def distance(x, y):
    return ((x - y) ** 2).sum()


def gaussian(scale, x, y):
    return -distance(x, y) / scale**2


def laplacian(scale, x, y):
    return -jnp.sqrt(distance(x, y)) / scale


def cauchy(scale, x, y):
    return 1 / (1 + distance(x, y) / scale**2)


def inverse_multiquadric(scale, x, y):
    return 1 / jnp.sqrt(1 + distance(x, y) / scale**2)


def diagonal_gaussian(scale, x, of_class):
    """The log-density of a normal distribution per class, whose log-scales are learned."""
    center, log_scales = of_class
    z = (x - center) * jnp.exp(-scale * log_scales)
    return -0.5 * (z**2).sum() - scale * log_scales.sum()


def formula(scale, example, of_class):
    """Pytrees of arrays of several ranks, and integers."""
    angle = example["angle"] - of_class["angle"]
    same = (example["group"] == of_class["group"]).astype(angle.dtype)
    return jnp.cos(scale * angle) + same * (example["gain"] @ of_class["gain"])


# Their definitions, of all pairs.


def squared(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def all_normals(scale, x, classes):
    centers, log_scales = classes
    z = (x[:, None] - centers[None]) * jnp.exp(-scale * log_scales)[None]
    return -0.5 * (z**2).sum(-1) - scale * log_scales.sum(-1)[None]


def all_formulas(scale, examples, classes):
    angles = examples["angle"][:, None] - classes["angle"][None]
    same = (examples["group"][:, None] == classes["group"][None]).astype(angles.dtype)
    return jnp.cos(scale * angles) + same * (examples["gain"] @ classes["gain"].T)


def points(r, count):
    return r.normal(count, 3)


def trees(r, count):
    return {"angle": r.normal(count), "group": r.integers(3, count), "gain": r.normal(count, 2)}


def normals(r, count):
    return (r.normal(count, 3), r.normal(count, 3, scale=0.3)) if count == K else r.normal(count, 3)


KINDS = {  # (function of one example and one class, its arguments, all logits)
    "gaussian": (gaussian, points, lambda scale, x, y: -squared(x, y) / scale**2),
    "laplacian": (laplacian, points, lambda scale, x, y: -jnp.sqrt(squared(x, y)) / scale),
    "cauchy": (cauchy, points, lambda scale, x, y: 1 / (1 + squared(x, y) / scale**2)),
    "inverse_multiquadric": (
        inverse_multiquadric,
        points,
        lambda scale, x, y: 1 / jnp.sqrt(1 + squared(x, y) / scale**2),
    ),
    "diagonal_gaussian": (diagonal_gaussian, normals, all_normals),
    "formula": (formula, trees, all_formulas),
}
REDUCTIONS = {  # of KeOps: (loss, its definition of the scores h [N, K] and the values v [K, 2])
    "logsumexp": (losses.logsumexp, lambda h, v: cases.log_sum_exp(h)),
    "softmax-weighted sum": (losses.expectation, lambda h, v: cases.softmax(h) @ v),
    "logsumexp of signed factors": (
        losses.weighted_logsumexp,
        lambda h, v: jnp.log(jnp.exp(h) @ v),
    ),
}
LABELS = np.arange(N, dtype=np.int32) * 3


def arguments(kind):
    r = cases.Random(jnp.float64, seed=11)
    make = KINDS[kind][1]
    signed = jnp.where(jnp.arange(K)[:, None] % 5 == 4, -0.1, 1.0) * jnp.exp(0.1 * r.normal(K, 2))
    return jnp.asarray(1.3), make(r, N), make(r, K), signed


def of_kind(kind, loss, **options):
    """The loss of the logits with values v [K, 2] per class, as a function of all arrays."""
    function = KINDS[kind][0]

    def call(scale, examples, classes, v):
        return softjax.of(loss, softjax.pairwise(Partial(function, scale), examples, classes, **options), None, v)

    return call


def reference(kind, definition):
    return lambda scale, examples, classes, v: definition(KINDS[kind][2](scale, examples, classes), v)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.each_value_once
def test_sums_over_kernels_match_their_definitions_in_every_mode(kind, reduction):
    loss, definition = REDUCTIONS[reduction]
    check = cases.agreement(of_kind(kind, loss, block_size=5), reference(kind, definition))
    check(*arguments(kind))


PLACEMENTS = {"whole": None, "tiles": Placement(3, 5), "forward": Placement(3, 5, "forward")}


@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("kind", ["laplacian", "formula"])
@pytest.mark.one_case_in(4)
def test_a_loss_of_labels_takes_any_logits_on_every_placement(kind, place):
    """The focal loss, smoothed, with a mean of weighted examples."""
    (function, _, of_all), weights = KINDS[kind], np.arange(1.0, 1 + N)
    loss = losses.label_smoothing(losses.focal(1.5), 0.1, 1 / K)

    def ours(scale, examples, classes):
        one = lambda example, of_class: function(scale, example, of_class)
        made = softjax.pairwise(one, examples, classes, block_size=PLACEMENTS[place])
        return softjax.of(loss, made, LABELS, weights=weights, reduction="mean")

    def definition(scale, examples, classes):
        log_p = cases.log_softmax(of_all(scale, examples, classes))
        y = 0.9 * jax.nn.one_hot(LABELS, K, dtype=log_p.dtype) + 0.1 / K
        cost = -(y * log_p).sum(-1)
        return (weights * (1 - jnp.exp(-cost)) ** 1.5 * cost).sum() / weights.sum()

    cases.agreement(ours, definition)(*arguments(kind)[:3])


def test_masked_classes_are_not_looked_at():
    """Their arrays may be NaN: value and gradients are as without them."""
    where = np.arange(K) % 3 != 1
    scale, x, y, v = arguments("cauchy")
    y = y.at[1].set(jnp.nan)
    v = v.at[4].set(jnp.inf)

    def ours(scale, x, y, v):
        made = softjax.pairwise(Partial(cauchy, scale), x, y, block_size=5).where(where)
        return softjax.of(losses.expectation, made, None, v)

    live = np.flatnonzero(where)
    definition = reference("cauchy", REDUCTIONS["softmax-weighted sum"][1])
    ct = cases.Random(jnp.float64).normal(N, 2)
    with_gradients = lambda f: cases.compiled(lambda *args: (f(*args), jax.vjp(f, *args)[1](ct)))
    got, (got_scale, got_x, got_y, got_v) = with_gradients(ours)(scale, x, y, v)
    want, (want_scale, want_x, want_y, want_v) = with_gradients(definition)(scale, x, y[live], v[live])
    cases.assert_close((got, got_scale, got_x, got_y[live], got_v[live]), (want, want_scale, want_x, want_y, want_v))
    dead = np.flatnonzero(~where)
    assert (got_y[dead] == 0).all()
    assert (got_v[dead] == 0).all()


def test_a_mesh_comes_for_nothing():
    """Classes over 4 devices and examples over 2, with the gradient taken outside of the shard_map."""
    scale, x, y, v = arguments("laplacian")
    y, v = jnp.concatenate([y, y[:3] + 1]), jnp.concatenate([v, v[:3]])  # 16 classes

    def local(scale, x, y, v):
        over = {"axis_name": "classes", "batch_axis_name": "data", "block_size": 3}
        return softjax.of(losses.expectation, softjax.pairwise(Partial(laplacian, scale), x, y, **over), None, v)

    specs = P(), P("data"), P("classes"), P("classes")
    ours = jax.shard_map(local, mesh=cases.mesh(2, 4), in_specs=specs, out_specs=P("data"))
    cases.agreement(ours, reference("laplacian", REDUCTIONS["softmax-weighted sum"][1]))(scale, x, y, v)


def test_all_kinds_of_logits_are_those_of_their_formulas():
    """softjax.of with the library's own kinds, against the definitions."""
    r = cases.Random(jnp.float64, seed=3)
    x, w, b = r.normal(N, 3), r.normal(3, K), r.normal(K)
    where = np.arange(K) % 4 != 2
    linear = lambda x, w, b: softjax.of(
        losses.entropy, softjax.linear(x, w.T, b, class_axis=0, block_size=5).where(where)
    )
    dense = lambda x, w, b: softjax.of(losses.entropy, jnp.where(where, x @ w + b, -jnp.inf))
    distances = lambda x, w, b: softjax.of(
        losses.entropy, (softjax.distances(x, w.T, block_size=5) / 0.7 + b).where(where)
    )
    definition = lambda x, w, b: cases.entropy(x @ w + b, where=where)
    cases.agreement(linear, definition)(x, w, b)
    cases.agreement(dense, definition)(x, w, b)
    cases.agreement(distances, lambda x, w, b: cases.entropy(-squared(x, w.T) / 0.7 + b, where=where))(x, w, b)


@pytest.mark.parametrize("where", ["inside a shard_map", "under jit"])
def test_logits_in_memory_over_a_mesh(where):
    z, mesh = cases.Random(jnp.float64, seed=4).normal(N, 16), cases.mesh(2, 4)
    if where == "under jit":
        ours, z = ft.partial(softjax.of, losses.entropy), jax.device_put(z, NamedSharding(mesh, P(None, "classes")))
    else:
        nothing = lambda z: softjax.linear(jnp.zeros((N, 0)), z[:0], axis_name="classes")
        local = lambda z: softjax.of(losses.entropy, nothing(z) + z)
        ours = jax.shard_map(local, mesh=mesh, in_specs=P(None, "classes"), out_specs=P())
    cases.agreement(ours, cases.entropy)(z)


one_pair = lambda x, y: -distance(x, y)
REFUSALS = {
    "no function": (lambda: softjax.pairwise(3, jnp.ones(2), jnp.ones(2)), TypeError, "`function` must be a function"),
    "no examples": (
        lambda: softjax.pairwise(one_pair, (), jnp.ones((2, 3))),
        ValueError,
        r"`examples` must hold arrays \[N, ...\], got shapes \[\]",
    ),
    "a number for classes": (
        lambda: softjax.pairwise(one_pair, jnp.ones((2, 3)), 1.0),
        ValueError,
        r"`classes` must hold arrays \[K, ...\], got shapes \[\(\)\]",
    ),
    "no class": (
        lambda: softjax.of(losses.logsumexp, softjax.pairwise(one_pair, jnp.ones((2, 3)), jnp.ones((0, 3)))),
        ValueError,
        "`classes` must hold at least one class",
    ),
    "other numbers of classes": (
        lambda: softjax.pairwise(lambda x, y: x @ y[0], jnp.ones((2, 3)), (jnp.ones((4, 3)), jnp.ones(5))),
        ValueError,
        r"`classes` must hold arrays whose shapes begin with \(4,\)",
    ),
    "a result of another shape": (
        lambda: softjax.pairwise(lambda x, y: x, jnp.ones((2, 3)), jnp.ones((4, 3))),
        ValueError,
        r"`function` must be a function of one example and one class .* number, got float64\[3\]",
    ),
    "no logits": (lambda: softjax.of(losses.entropy, "logits"), TypeError, "`logits` must be an array"),
    "no engine": (
        lambda: softjax.linear(jnp.ones((2, 3)), jnp.ones((3, 4)), engine="fast"),
        TypeError,
        "`engine` must be a `softjax.engines.Engine` or None, got 'fast'",
    ),
    "logits without classes": (
        lambda: softjax.of(losses.entropy, jnp.ones((2, 0))),
        ValueError,
        r"`logits` must have shape \[..., K\] with K classes, got \(2, 0\)",
    ),
    "a mask of numbers": (
        lambda: softjax.pairwise(one_pair, jnp.ones((2, 3)), jnp.ones((3, 3))).where(jnp.ones(3)),
        TypeError,
        "`mask` must be booleans",
    ),
    "factors without classes": (
        lambda: softjax.of(losses.weighted_logsumexp, jnp.ones((2, 3))),
        TypeError,
        "`example` and `per_class` must be arrays",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_logits_are_refused_in_words(name):
    call, error, message = REFUSALS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_kernel_that_is_not_sharded_is_refused_over_a_mesh():
    local = lambda x, w: softjax.of(losses.entropy, softjax.linear(x, w, axis_name="classes"))
    with pytest.raises(ValueError, match=r"`kernel` must vary over the axes \('classes',\) of `axis_name`"):
        jax.shard_map(local, mesh=cases.mesh(2, 4), in_specs=P(), out_specs=P())(jnp.ones((2, 3)), jnp.ones((3, 8)))


# ---------------------------------------------------------------------------------------------
# Another engine: the cross entropy of a linear layer in Pallas, run in interpret mode

BLOCK = 4


def _sums_kernel(x, w, y, m, mass, logit):
    """One block of classes: the running maximum, the sum of exponentials, and the logit of the label."""
    block = pl.program_id(0)

    @pl.when(block == 0)
    def _():
        m[...], mass[...], logit[...] = jnp.full(m.shape, -jnp.inf), jnp.zeros(m.shape), jnp.zeros(m.shape)

    h = x[...] @ w[...]
    ids = block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    highest = jnp.maximum(m[...], h.max(-1))
    mass[...] = mass[...] * jnp.exp(m[...] - highest) + jnp.exp(h - highest[:, None]).sum(-1)
    logit[...] += jnp.where(ids[None] == y[...][:, None], h, 0).sum(-1)
    m[...] = highest


def _cotangents_kernel(x, w, y, m, mass, weight, d, dx, dw):
    """One block of classes: dh = p (weight) - d 1{label}, and its products with the other operand."""
    block = pl.program_id(0)

    @pl.when(block == 0)
    def _():
        dx[...] = jnp.zeros(dx.shape)

    p = jnp.exp(x[...] @ w[...] - m[...][:, None]) / mass[...][:, None]
    ids = block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    dh = p * weight[...][:, None] - d[...][:, None] * jnp.where(ids[None] == y[...][:, None], 1.0, 0.0)
    dx[...] += dh @ w[...].T
    dw[...] = x[...].T @ dh


def _call(kernel, x, w, inputs, outputs):
    whole = lambda a: pl.BlockSpec(a.shape, lambda i: (0,) * a.ndim)
    of_block = pl.BlockSpec((w.shape[0], BLOCK), lambda i: (0, i))
    return pl.pallas_call(
        kernel,
        grid=w.shape[1] // BLOCK,
        in_specs=[whole(x), of_block, *map(whole, inputs)],
        out_specs=[of_block if a.shape == w.shape else whole(a) for a in outputs],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
        interpret=True,
    )(x, w, *inputs)


def _refuses(made, loss, example, per_class):
    if made.kind != "linear" or made.axes[0] != 1:
        return f"it multiplies by a kernel [D, K], not logits of kind {made.kind!r} with classes on axes {made.axes}"
    if loss.columns.func is not losses.cross_entropy.columns or per_class is not None:
        return "it knows the cross entropy of integer labels alone"
    if made.live is not None or len(made.classes) > 3:  # the kernel, masks of pairs, ids
        return "it knows no mask and no bias"
    if isinstance(example, tuple):
        return "it knows one label per example"
    return None if made.k % BLOCK == 0 else f"{made.k} classes are not a multiple of {BLOCK}"


CALLS = []


def _sums(columns, examples, classes, ids):  # noqa: ARG001
    CALLS.append("sums")
    (((x,), _, _), y), w = examples, classes[0]
    zeros = jnp.zeros(x.shape[0], x.dtype)
    m, mass, logit = _call(_sums_kernel, x, w, [y], [zeros] * 3)
    seen = ((y >= ids[0]) & (y <= ids[-1])).astype(x.dtype)
    a = engines.Normaliser(m, jnp.full(m.shape, -1, ids.dtype), mass - 1, zeros)
    return engines.Sums(a, labels=(engines.CrossEntropy(m - logit, zeros + 1, logit[:, None], seen[:, None]),))


def _cotangents(columns, examples, classes, ids, totals, ct):  # noqa: ARG001
    CALLS.append("cotangents")
    (((x,), *masks), y), (w, *others) = examples, classes
    # A = m + log(1 + r), C = A - z_y: the cotangent of h_k is p_k (mass dr + dC) - dC 1{k = y}
    d = ct.labels[0].sum
    weight = totals.normaliser.mass * ct.normaliser.r + d
    dx, dw = _call(_cotangents_kernel, x, w, [y, totals.normaliser.m, totals.normaliser.mass, weight, d], [x, w])
    return columns, (((dx,), *masks), None), (dw, *others)


PALLAS = engines.Engine("pallas", _refuses, _sums, _cotangents)
LABELS_12 = np.array([0, 3, 11, 7], np.int32)


def linear_arguments():
    r = cases.Random(jnp.float64, seed=8)
    return r.normal(N, 3), r.normal(3, 12)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.one_case_in(2)
def test_an_engine_computes_the_sums_and_their_cotangents(reduction):
    """Value, gradient and Hessian-vector product, with a z-loss, whose cotangent goes to the normaliser."""
    loss = losses.z_loss(losses.cross_entropy, 0.1)

    def ours(x, w):
        return softjax.of(loss, softjax.linear(x, w, engine=PALLAS), LABELS_12, reduction=reduction)

    def definition(x, w):
        z = x @ w
        of_each = cases.softmax_loss(z, LABELS_12) + 0.1 * cases.log_sum_exp(z) ** 2
        return of_each if reduction == "none" else of_each.mean()

    x, w = linear_arguments()
    CALLS.clear()
    jax.make_jaxpr(jax.grad(lambda x, w: ours(x, w).sum()))(x, w)
    assert set(CALLS) == {"sums", "cotangents"}
    softjax.testing.assert_matches_autodiff(ours, definition, x, w, modes=["value", "vjp", "jit", "vmap"])
    softjax.testing.assert_matches_autodiff(ours, definition, x, w, modes=["hessian-vector product"])


def test_an_engine_over_a_mesh_computes_the_sums_of_each_device():
    def local(x, w):
        made = softjax.linear(x, w, axis_name="classes", batch_axis_name="data", engine=LOGSUMEXP)
        return softjax.logsumexp(made, axis=-1)

    ours = jax.shard_map(local, mesh=cases.mesh(2, 2), in_specs=(P("data"), P(None, "classes")), out_specs=P("data"))
    x, w = linear_arguments()
    w = jnp.concatenate([w, w[:, :4]], 1)
    ct = cases.Random(jnp.float64).normal(N)
    got, want = (
        jax.jit(lambda x, w, f=f: (f(x, w), jax.grad(lambda x, w: (ct * f(x, w)).sum(), (0, 1))(x, w)))(x, w)
        for f in (ours, lambda x, w: cases.log_sum_exp(x @ w))
    )
    cases.assert_close(got, want)


def _plain_sums(columns, examples, classes, ids):  # noqa: ARG001
    h = examples[0][0][0] @ classes[0]
    m = jax.lax.stop_gradient(h.max(-1))
    a = engines.Normaliser(m, jnp.full(m.shape, -1, ids.dtype), jnp.exp(h - m[:, None]).sum(-1) - 1, 0 * m)
    return engines.Sums(a)


def _plain_cotangents(columns, examples, classes, ids, totals, ct):  # noqa: ARG001
    (((x,), *masks), example), (w, *others) = examples, classes
    dh = jnp.exp(x @ w - totals.normaliser.m[:, None]) * ct.normaliser.r[:, None]
    return columns, (((dh @ w.T,), *masks), example), (x.T @ dh, *others)


LOGSUMEXP = engines.Engine("plain", lambda *_: None, _plain_sums, _plain_cotangents)


# An engine for any logits and losses, which has all classes in memory.


def _whole_sums(columns, examples, classes, ids):
    CALLS.append("sums")
    return sums.each(lambda c: sums.fold(c, ids), columns(examples, classes, ids))


def _whole_cotangents(columns, examples, classes, ids, totals, ct):
    CALLS.append("cotangents")
    moving, fixed = split((columns, examples, classes))

    def made(moving):
        columns, examples, classes = join(moving, fixed)
        return split(columns(examples, classes, ids))

    inexact, back, others = jax.vjp(made, moving, has_aux=True)
    pulled = sums.each(lambda c, totals, ct: sums.pull(c, ids, totals, ct), join(inexact, others), totals, ct)
    return back(split(pulled)[0])[0]


SEEN = []
WHOLE = engines.Engine("whole", lambda made, *_: SEEN.append(made.kind), _whole_sums, _whole_cotangents)
T = np.array([[0.5], [1.0], [2.0], [4.0]])
MADE = {  # (logits, their definition, what they are made of)
    "linear": (lambda z: z, lambda z: z, "linear"),
    "temperature": (lambda z: z / 0.7, lambda z: z / 0.7, "(linear / a number)"),
    "of each example": (lambda z: z / T, lambda z: z / T, "(linear / examples)"),
    "softcap": (
        lambda z: 3 * (z / 3).map(jnp.tanh),
        lambda z: 3 * jnp.tanh(z / 3),
        "(a number * map of (linear / a number))",
    ),
    "masked": (
        lambda z: z.where(lambda n, k: k != n + 1),
        lambda z: jnp.where(np.arange(12) != np.arange(N)[:, None] + 1, z, -jnp.inf),
        "masked linear",
    ),
}
LISTED = jnp.asarray([[0, 5], [3, 3], [11, 0], [7, 9]], jnp.int32)
FUNCTIONS = {  # (function of logits, its definition)
    "logsumexp": (lambda z: softjax.logsumexp(z, axis=-1), cases.log_sum_exp),
    "entropy": (softjax.entropy, lambda z: cases.entropy(jnp.maximum(z, -500))),
    "expectation": (
        lambda z: softjax.expectation(z, jnp.arange(12.0)),
        lambda z: cases.softmax(z) @ jnp.arange(12.0),
    ),
    "log_probs": (
        lambda z: softjax.log_probs(z, LISTED),
        lambda z: jnp.take_along_axis(cases.log_softmax(z), LISTED, -1),
    ),
    "cross entropy": (
        lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, LABELS_12, z_loss=0.1, reduction="mean"),
        lambda z: (cases.softmax_loss(z, LABELS_12) + 0.1 * cases.log_sum_exp(z) ** 2).mean(),
    ),
    "metrics": (lambda z: softjax.metrics(z, LABELS_12).predicted.astype(float), lambda z: z.argmax(-1).astype(float)),
    "hinge": (
        lambda z: softjax.multiclass_hinge_loss(z, LABELS_12),
        lambda z: jnp.maximum(
            jnp.where(jax.nn.one_hot(LABELS_12, 12, dtype=bool), -jnp.inf, z).max(-1) - z[np.arange(N), LABELS_12] + 1,
            0,
        ),
    ),
    "several": (
        lambda z: softjax.of((losses.cross_entropy, losses.entropy), z, (LABELS_12, None)),
        lambda z: (cases.softmax_loss(z, LABELS_12), cases.entropy(jnp.maximum(z, -500))),
    ),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.each_value_once
def test_an_engine_applies_to_any_logits_in_every_function(name, made):
    (function, definition), (change, changed, kind) = FUNCTIONS[name], MADE[made]
    ours = lambda x, w: function(change(softjax.linear(x, w, engine=WHOLE)))
    x, w = linear_arguments()
    CALLS.clear(), SEEN.clear()
    theirs = lambda x, w: definition(changed(x @ w))
    ct = jax.tree.map(lambda a: cases.Random(a.dtype, 5).normal(*a.shape), jax.eval_shape(theirs, x, w))
    if name == "metrics":
        cases.assert_close(*(cases.compiled(f)(x, w) for f in (ours, theirs)))
    else:
        with_gradients = lambda f: cases.compiled(lambda x, w: (f(x, w), jax.vjp(f, x, w)[1](ct)))
        cases.assert_close(*(with_gradients(f)(x, w) for f in (ours, theirs)))
        assert "cotangents" in CALLS
    assert set(SEEN) == {kind}
    assert "sums" in CALLS


def test_an_engine_has_two_logits():
    """That of the first that has one."""
    (x, w), r = linear_arguments(), cases.Random(jnp.float64, 9)
    z = r.normal(N, 12)
    ours = lambda x, w, z: softjax.kl_divergence(softjax.linear(x, w, engine=WHOLE), z)
    log_ratio = lambda x, w, z: cases.log_softmax(x @ w) - cases.log_softmax(z)
    definition = lambda x, w, z: (cases.softmax(x @ w) * log_ratio(x, w, z)).sum(-1)
    CALLS.clear(), SEEN.clear()
    softjax.testing.assert_matches_autodiff(ours, definition, x, w, z, modes=["value", "vjp", "jit"])
    assert set(SEEN) == {"(linear, dense)"}
    assert set(CALLS) == {"sums", "cotangents"}


LEFT = {
    "distances": (
        lambda x, w: softjax.distances(x, w.T, engine=PALLAS),
        LABELS_12,
        losses.cross_entropy,
        "not logits of kind 'distances'",
    ),
    "an embedding table": (
        lambda x, w: softjax.linear(x, w.T, class_axis=0, engine=PALLAS),
        LABELS_12,
        losses.cross_entropy,
        r"with classes on axes \(0, ",
    ),
    "another loss": (
        lambda x, w: softjax.linear(x, w, engine=PALLAS),
        LABELS_12,
        losses.brier,
        "it knows the cross entropy of integer labels alone",
    ),
    "a bias": (
        lambda x, w: softjax.linear(x, w, jnp.arange(12.0), engine=PALLAS),
        LABELS_12,
        losses.cross_entropy,
        "it knows no mask and no bias",
    ),
    "a temperature": (
        lambda x, w: softjax.linear(x, w, engine=PALLAS) / 0.7,
        LABELS_12,
        losses.cross_entropy,
        r"not logits of kind '\(linear / a number\)'",
    ),
    "a ragged block": (
        lambda x, w: softjax.linear(x, w[:, :11], engine=PALLAS),
        LABELS_12 % 11,
        losses.cross_entropy,
        "11 classes are not a multiple of 4",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_an_engine_is_left_with_a_reason_where_it_does_not_apply(name):
    make, labels, loss, reason = LEFT[name]
    x, w = linear_arguments()
    CALLS.clear()
    with pytest.warns(UserWarning, match=f"The engine 'pallas' does not apply: .*{reason}"):
        got = softjax.of(loss, make(x, w), labels)
    assert not CALLS
    definitions = {
        "distances": lambda: cases.softmax_loss(-squared(x, w.T), labels),
        "an embedding table": lambda: cases.softmax_loss(x @ w, labels),
        "another loss": lambda: ((cases.softmax(x @ w) - np.eye(12)[labels]) ** 2).sum(-1),
        "a bias": lambda: cases.softmax_loss(x @ w + jnp.arange(12.0), labels),
        "a temperature": lambda: cases.softmax_loss(x @ w / 0.7, labels),
        "a ragged block": lambda: cases.softmax_loss((x @ w)[:, :11], labels),
    }
    np.testing.assert_allclose(got, definitions[name](), rtol=1e-10)


def test_forward_mode_of_an_engine_is_refused_by_jax():
    x, w = linear_arguments()
    f = ft.partial(lambda x: softjax.of(losses.cross_entropy, softjax.linear(x, w, engine=PALLAS), LABELS_12))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (x,), (x,))
