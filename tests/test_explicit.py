"""Arrays whose types say how they are sharded: every public function, over a mesh with explicit axes."""

import collections
import contextlib
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses
from softjax.testing import collectives

from . import cases, spelled, table

N, K, D, E = 8, 16, 4, 12
LIVE = np.arange(K) % 3 != 1
# Of each kind of argument, an array and the roles of its axes.
MADE = {
    "logits": (lambda r: r.normal(N, K), "nk"),
    "soft_labels": (lambda r: r.normal(N, K), "nk"),
    "payoffs": (lambda r: r.normal(N, K), "nk"),
    "labels": (lambda r: jnp.asarray([0, 3, 5, 15], jnp.int32)[r.integers(4, N)], "n"),  # none is masked
    "groups": (lambda r: r.integers(3, N), "n"),
    "label_sets": (lambda r: jnp.asarray([[0, 3], [5, 15], [3, 5]], jnp.int32)[r.integers(3, N)], "n"),
    "features": (lambda r: r.normal(N, D), "nd"),
    "teacher_features": (lambda r: r.normal(N, D), "nd"),
    "teacher_kernel": (lambda r: r.normal(D, K), "dk"),
    "others": (lambda r: r.normal(N, D), "nd"),
    "kernel": (lambda r: r.normal(D, K), "dk"),
    "bias": (lambda r: r.normal(K), "k"),
    "z": (lambda r: r.normal(N, D), "nd"),
    "x": (lambda r: r.normal(N, E), "n"),
    "centers": (lambda r: r.normal(K, D), "kd"),
    "values": (lambda r: r.normal(K, E), "k"),
    "log_prior": (lambda r: r.normal(K), "k"),
    "precisions": (lambda r: jnp.exp(r.normal(K, D)), "kd"),
    "precisions_of_values": (lambda r: jnp.exp(r.normal(K, E)), "k"),
    "temperatures": (lambda r: jnp.exp(r.normal(K, 1)), "k"),
    "scales": (lambda r: jnp.exp(r.normal(D)), ""),
    "class_weights": (lambda r: jnp.exp(r.normal(K)), "k"),
    "weights": (lambda r: jnp.exp(r.normal(N)), "n"),
    "where": (lambda r: jnp.asarray(LIVE), "k"),
    "temperature": (lambda r: jnp.exp(r.normal(scale=0.3)), ""),
    "softcap": (lambda r: 2 + jnp.exp(r.normal()), ""),
    "margin": (lambda r: r.normal(), ""),
    "logit_bias": (lambda r: r.normal(), ""),
    "label_smoothing": (lambda r: jax.nn.sigmoid(r.normal()), ""),
    "z_loss": (lambda r: jnp.exp(r.normal()), ""),
}
# The mesh axes over which examples, classes and features are sharded.
PLACES = {
    "examples": {"n": "data"},
    "classes": {"k": "classes"},
    "both": {"n": "data", "k": "classes"},
    "fully sharded data": {"n": "data", "d": "classes"},
    "two axes": {"n": ("data", "classes")},
}


pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def mesh():
    return cases.mesh(2, 4, AxisType.Explicit)


def put(mesh, array, *spec):
    return jax.device_put(array, NamedSharding(mesh, P(*spec)))


def placed(mesh, kinds, place, dtype="float64"):
    """(the arrays by their kinds, the same sharded)."""
    r = cases.Random(dtype, seed=3)
    whole = {kind: MADE[kind][0](r) for kind in kinds}
    spread = {kind: put(mesh, a, *(PLACES[place].get(role) for role in MADE[kind][1])) for kind, a in whole.items()}
    return whole, spread


def value_and_derivatives(function, fixed, moving, cotangent, tangent):
    of = lambda moving: function(**cases.joined(moving, fixed))
    value, back = jax.vjp(of, moving)
    return value, back(cotangent)[0], jax.jvp(of, (moving,), (tangent,))[1]


def finite(name, function):
    """Where a class is masked, its log-probability is -inf, and not summed."""
    if name != "log_softmax":
        return function
    return lambda logits, where: jnp.where(where, function(logits=logits, where=where), 0)


def check(mesh, name, place, compiled=cases.compiled, **options):
    row = table.FUNCTIONS[name]
    of_definition = {name: option for name, option in options.items() if name != "block_size"}
    function, definition = (finite(name, f) for f in (row.function(**options), row.defined(**of_definition)))
    whole, spread = placed(mesh, row.kinds.split(), place)
    of_result, (moving, fixed) = jax.eval_shape(lambda spread: function(**spread), spread), cases.parted(spread)
    normal_like = lambda a: put(mesh, cases.Random("float64", 9).normal(*a.shape), *a.sharding.spec)
    more = normal_like(of_result), jax.tree.map(normal_like, moving)
    got = compiled(ft.partial(value_and_derivatives, function))(fixed, moving, *more)
    moving_whole, fixed_whole = cases.parted(whole)  # the mask of a definition may not be traced
    of_whole = jax.jit(ft.partial(value_and_derivatives, definition, fixed_whole))
    want = of_whole(moving_whole, *jax.tree.map(np.asarray, more))
    cases.assert_close(got, want)
    assert jax.tree.map(jax.typeof, got[1]) == jax.tree.map(jax.typeof, moving)
    return of_result.sharding.spec


LOOPS = softjax.Placement(4, 8)
FORWARD = {"block_size": LOOPS._replace(gradient="forward"), "reduction": "mean"}


def is_fused(name):
    return bool({"features", "z", "x"} & set(table.FUNCTIONS[name].kinds.split()))


def has_blocks(name):
    """Whether the options of the row are also those of its logits."""
    return is_fused(name) and name != "of"


def set_or_not(mesh, is_set):
    """A trainer sets the mesh, or its arrays alone have it."""
    return jax.set_mesh(mesh) if is_set else contextlib.nullcontext()


def with_and_without_a_mesh_that_is_set():
    """In the fast tests each function is in one of both."""
    for i, name in enumerate(table.FUNCTIONS):
        for is_set in (False, True)[: 1 + is_fused(name)]:
            of_other = is_fused(name) and is_set != i % 2
            yield pytest.param(name, is_set, marks=[pytest.mark.slow] if of_other else [])


@pytest.mark.parametrize(("name", "is_set"), list(with_and_without_a_mesh_that_is_set()))
def test_every_function_where_examples_and_classes_are_sharded(mesh, name, is_set):
    with set_or_not(mesh, is_set):
        spec = check(mesh, name, "both", **({"block_size": LOOPS} if has_blocks(name) else {}))
    assert spec[0] == "data"
    assert spec[1:] == (("classes",) if name in ("softmax", "log_softmax") else (None,) * (len(spec) - 1))


@pytest.mark.parametrize("of_kernel", [P(), P(None, "classes"), P("data"), P("data", "classes")], ids=str)
@pytest.mark.parametrize("of_examples", [P("data"), P(("data", "classes"))], ids=str)
@pytest.mark.parametrize("is_set", [True, False], ids=["set", "known from the arrays"])
@pytest.mark.parametrize("options", [FORWARD, {"block_size": LOOPS}], ids=["forward", "backward"])
@pytest.mark.each_value_once
def test_a_step_of_training(mesh, is_set, of_examples, of_kernel, options):
    """Value, both modes, `scan` and `checkpoint`, under `jit` in several blocks, as explicit mode runs."""
    r = cases.Random("float64", seed=4)
    x, w, y, dx, dw = r.normal(N, 2, D), r.normal(D, K), r.integers(K, N, 2), r.normal(N, 2, D), r.normal(D, K)

    def modes(loss):
        of = lambda x, w, y: loss(x, w, y).sum()
        gradient = jax.grad(of, (0, 1))
        in_scan = lambda x, w, y: jax.lax.scan(lambda a, _: (a + of(x * a, w, y), None), 1.0, length=2)[0]
        remat = jax.checkpoint(of)
        return {
            "value": loss,
            "reverse": gradient,
            "forward": lambda x, w, y, *moved: jax.jvp(lambda x, w: of(x, w, y), (x, w), moved)[1],
            "Hessian": lambda x, w, y, *moved: jax.jvp(lambda x, w: gradient(x, w, y), (x, w), moved)[1],
            "scan": jax.grad(in_scan, (0, 1)),
            "checkpoint": jax.grad(remat, (0, 1)),
        }

    ours = modes(lambda *a: spelled.linear_softmax_cross_entropy(*a, **options))
    mean = (lambda a: a.mean()) if "reduction" in options else (lambda a: a)
    defined = modes(lambda x, w, y: mean(cases.softmax_loss(x @ w, y)))
    of_modes = lambda name, moved: moved if name in ("forward", "Hessian") else ()
    at_once = lambda modes: lambda args, moved: {name: f(*args, *of_modes(name, moved)) for name, f in modes.items()}
    whole = jax.jit(at_once(defined))((x, w, y), (dx, dw))
    args = put(mesh, x, *of_examples), put(mesh, w, *of_kernel), put(mesh, y, *of_examples)
    moved = put(mesh, dx, *of_examples), put(mesh, dw, *of_kernel)
    with set_or_not(mesh, is_set):
        found = jax.jit(at_once(ours))(args, moved)
    cases.assert_close(found, whole)
    for name in ("reverse", "scan", "checkpoint"):
        if name == "scan" and not is_set and jax.__version_info__ >= (0, 11):
            continue  # the sums over its steps have no mesh there, and lose an axis of the kernel's type
        assert [jax.typeof(a) for a in found[name]] == [jax.typeof(a) for a in args[:2]], name


@pytest.mark.parametrize(
    ("name", "place", "options", "spec"),
    [
        ("linear_softmax_cross_entropy", "fully sharded data", FORWARD, P()),
        ("eol_loss", "both", FORWARD, P()),
        ("linear_logsumexp", "two axes", {"block_size": LOOPS}, P(("data", "classes"))),
        ("softmax_cross_entropy", "two axes", {}, P(("data", "classes"))),
        ("expectation", "classes", {}, P(None)),
    ],
)
def test_other_places_and_reductions(mesh, name, place, options, spec):
    assert check(mesh, name, place, **options) == spec


@pytest.mark.parametrize("name", ["entropy", "softmax_cross_entropy", "multiclass_hinge_loss"])
def test_operation_by_operation(mesh, name):
    """Not under `jax.jit`, and with the mesh set, or known from the arrays alone."""
    check(mesh, name, "both", compiled=lambda function: function)
    with jax.set_mesh(mesh):
        check(mesh, name, "both", compiled=lambda function: function)


def test_the_axes_of_dense_logits(mesh):
    z = cases.Random("float64").normal(4, 8, 6)
    a = put(mesh, z, "classes", "data", None)
    for name, options, want, spec in (
        ("softmax", {"axis": 1}, jax.nn.softmax(z, 1), P("classes", "data", None)),
        ("logsumexp", {}, jax.nn.logsumexp(z), P()),
        (
            "logsumexp",
            {"axis": (-1, 0), "keepdims": True},
            cases.log_sum_exp(z, (0, 2), keepdims=True),
            P(None, "data", None),
        ),
        ("entropy", {"axis": 0}, cases.entropy(z, 0), P("data", None)),
    ):
        got = jax.jit(ft.partial(getattr(softjax, name), **options))(a)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert jax.typeof(got).sharding.spec == spec
    got = jax.jit(softjax.expectation)(z[0, 0], a)
    np.testing.assert_allclose(got, (jax.nn.softmax(z[0, 0]) * z).sum(-1), rtol=1e-12)
    assert jax.typeof(got).sharding.spec == P("classes", "data")
    with pytest.raises(ValueError, match=r"`axis` must lie in \[-3, 3\) for an array of rank 3, got 3"):
        softjax.entropy(a, axis=3)


def test_a_batch_of_sequences_and_metrics(mesh):
    given, spread = placed(mesh, ("features", "kernel", "labels"), "classes")
    sequences = {"features": (2, 4, D), "labels": (2, 4)}
    spread |= {name: put(mesh, given[name].reshape(shape), "data") for name, shape in sequences.items()}
    of = jax.jit(ft.partial(spelled.linear_softmax_cross_entropy, has_aux=True, reduction="mean", z_loss=0.1))
    loss, metrics = of(**spread)
    given["labels"] = given["labels"].astype("int64")  # as positions are
    want, of_examples = table.linear_softmax_cross_entropy(**given, has_aux=True, reduction="mean", z_loss=0.1)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    for got, wanted in zip(metrics, of_examples, strict=True):
        np.testing.assert_allclose(got.reshape(N), wanted, rtol=1e-12)
        assert jax.typeof(got).sharding.spec == P("data", None)


def test_logits_of_sharded_arrays(mesh):
    given, spread = placed(mesh, ("z", "centers", "log_prior", "where"), "both")
    made = (softjax.distances(spread["z"], spread["centers"]) + spread["log_prior"]).where(spread["where"])
    got = jax.jit(lambda made: softjax.of(losses.entropy, made))(made)
    h = table.distance_scores(given["z"], given["centers"], given["log_prior"])
    np.testing.assert_allclose(got, cases.entropy(h, where=given["where"]), rtol=1e-12)
    assert jax.typeof(got).sharding.spec == P("data")
    sequences = softjax.distances(spread["z"].reshape(2, 4, D), spread["centers"])
    assert softjax.of(losses.entropy, sequences).shape == (2, 4)


def test_classes_that_are_chosen(mesh):
    given, spread = placed(mesh, ("features", "kernel"), "both")
    z = given["features"] @ given["kernel"]
    best = spelled.linear_argmax(**spread)
    top = spelled.linear_top_k(**spread, k=3)
    draw = ft.partial(spelled.linear_sample, jax.random.key(2), shape=(2,))
    samples = jax.jit(draw)(*spread.values())
    np.testing.assert_array_equal(best, z.argmax(-1))
    np.testing.assert_array_equal(top.ids, np.argsort(-z, -1)[:, :3])
    np.testing.assert_array_equal(samples, draw(**given))
    assert [jax.typeof(a).sharding.spec[0] for a in (best, *top, samples)] == ["data"] * 5


def test_inside_a_shard_map_over_the_other_axis(mesh):
    """The examples are this device's, and the kernel is sharded over an axis that is in its type."""
    given, spread = placed(mesh, ("features", "kernel", "labels"), "both")

    def mean(features, kernel, labels):
        options = {"batch_axis_name": "data", **FORWARD}
        return spelled.linear_softmax_cross_entropy(features, kernel, labels, **options)

    specs = P("data"), P(), P("data")
    over = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"data"})
    definition = lambda x, w, y: cases.softmax_loss(x @ w, y).mean()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(*a.values()) for f, a in ((over, spread), (definition, given)))
    cases.assert_close(got, want)
    assert jax.typeof(got[1][1]) == jax.typeof(spread["kernel"])


def test_vmap_over_sharded_examples(mesh):
    given, spread = placed(mesh, ("features", "kernel"), "both")
    got = jax.vmap(lambda x: spelled.linear_logsumexp(x, spread["kernel"]))(spread["features"])
    np.testing.assert_allclose(got, cases.log_sum_exp(given["features"] @ given["kernel"]), rtol=1e-12)
    assert jax.typeof(got).sharding.spec == P("data")


@pytest.mark.parametrize("options", [FORWARD, {"block_size": LOOPS}], ids=["forward", "backward"])
def test_as_much_is_sent_as_on_a_mesh_with_auto_axes(mesh, options):
    given, _ = placed(mesh, ("features", "kernel", "labels"), "both")

    def sent(mesh):
        specs = P("data"), P(None, "classes"), P("data")
        args = [put(mesh, a, *spec) for a, spec in zip(given.values(), specs, strict=True)]
        loss = lambda *args: spelled.linear_softmax_cross_entropy(*args, **options).sum()
        return collections.Counter(collectives(jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()))

    assert sent(mesh) == sent(cases.mesh(2, 4))
    assert sent(mesh).total() > 0
