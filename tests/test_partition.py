"""Under plain `jax.jit` over sharded arrays, the computation stays where the arrays are."""

import functools as ft

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax import Placement
from softjax.parallel import partition
from softjax.testing import collectives

from . import cases, spelled, table, test_explicit

B, L, D, K, E = 8, 16, 16, 512, 4
N = B * L
ce = spelled.linear_softmax_cross_entropy
# The partitions of features [B, L, D] and kernel [D, K].
PLACES = {
    "data": (P("data"), P()),
    "fully sharded data": (P("data"), P("data")),
    "vocabulary": (P(), P(None, "model")),
    "data and vocabulary": (P("data"), P(None, "model")),
    "two axes of data": (P(("data", "model")), P()),
}
BLOCKS = {
    "forward": Placement(32, 128, "forward"),
    "some kept": Placement(N, 128, "forward", 128),
    "backward": Placement(32, 128),
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def arguments():
    r = cases.Random("float32", seed=3)
    return r.normal(B, L, D), r.normal(D, K, scale=D**-0.5), r.integers(K, B, L), r.normal(B, L)


def put(mesh, array, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))


def placed(mesh, place):
    x, w, y, ct = arguments()
    of_examples, of_kernel = PLACES[place]
    of_rest = put(mesh, y, of_examples), put(mesh, ct, of_examples)
    return put(mesh, x, of_examples), put(mesh, w, of_kernel), *of_rest


def truth(x, w, y, ct):
    """sum(ct loss) and its gradients, in float64."""
    x, w, ct = (np.asarray(a, np.float64) for a in (x.reshape(N, D), w, ct.reshape(N)))
    z = x @ w
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y = np.asarray(y).reshape(N)
    dz = ct[:, None] * (p - np.eye(K)[y])
    return (ct * -np.log(p[np.arange(N), y])).sum(), (dz @ w.T).reshape(B, L, D), x.T @ dz


def total(x, w, y, ct, **options):
    if options.get("reduction", "none") == "none":
        return (ce(x, w, y, **options) * ct).sum()
    return ce(x, w, y, weights=ct, **options)


def total_of_optax(x, w, y, ct):
    return (optax.softmax_cross_entropy_with_integer_labels(x @ w, y) * ct).sum()


def program(function, args):
    return jax.jit(jax.value_and_grad(function, (0, 1))).lower(*args).compile()


def check(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("reduction", "block"), [("sum", "forward"), ("sum", "some kept"), ("none", "backward")])
@pytest.mark.each_value_once
def test_no_more_is_sent_than_by_optax_and_nothing_in_a_loop(mesh, place, reduction, block):
    args = placed(mesh, place)
    ours = program(ft.partial(total, reduction=reduction, block_size=BLOCKS[block]), args)
    theirs = program(total_of_optax, args)
    check(ours(*args), truth(*arguments()))
    sent, sent_by_optax = collectives(ours), collectives(theirs)
    in_loops = [one for one in sent if one.times > 1]
    assert all(one.bytes <= 4 * 8 * 32 for one in in_loops)  # the sums over the classes of a tile of 32 examples
    assert not in_loops or ("vocabulary" in place and block != "some kept")
    gathered = lambda found: sum(one.bytes for one in found if one.operation == "all-gather")
    assert gathered(sent) <= gathered(sent_by_optax)
    of_examples = 4 * 8 * N  # eight numbers per example: the sums over the classes
    assert sum(one.bytes * one.times for one in sent) <= sum(one.bytes for one in sent_by_optax) + of_examples
    temporaries = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
    assert temporaries(ours) < temporaries(theirs)
    for given, gradient in zip(args, ours.output_shardings[1], strict=False):
        assert gradient.is_equivalent_to(given.sharding, given.ndim) or place == "fully sharded data"


@pytest.mark.parametrize(("reduction", "block"), [("sum", "some kept"), ("none", "backward")])
def test_half_precision(mesh, reduction, block):
    x, w, y, ct = placed(mesh, "data and vocabulary")
    x, w = x.astype("bfloat16"), w.astype("bfloat16")
    loss = ft.partial(total, reduction=reduction, block_size=BLOCKS[block], precision="default")
    value, gradients = program(loss, (x, w, y, ct))(x, w, y, ct)
    want, *of_arrays = truth(x, w, y, ct)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for a, b in zip(gradients, of_arrays, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.sqrt(((np.asarray(a, np.float64) - b) ** 2).mean() / (b**2).mean()) <= 5e-3


@pytest.mark.usefixtures("optimised")
def test_a_loop_that_is_not_divided_is_found(mesh, monkeypatch):
    """The checks above would find loops that the partitioner cuts by itself."""
    monkeypatch.setattr(partition, "call", lambda local, args, *_, **__: local(partition.Shards(), *args))
    args = placed(mesh, "data")
    sent = collectives(program(ft.partial(total, block_size=Placement(32, 64)), args))
    assert any(one.operation == "all-gather" for one in sent)


def test_a_program_of_many_devices_can_be_exported(mesh):
    args = placed(mesh, "data")
    function = jax.jit(ft.partial(total, block_size=BLOCKS["backward"]))
    exported = jax.export.export(function)(*args)
    assert "CustomSPMDPartitioning" in function.lower(*args).as_text()
    assert "CustomSPMDPartitioning" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(*args), truth(*arguments())[0], rtol=1e-5)


@pytest.mark.parametrize("place", ["data", "data and vocabulary"])
@pytest.mark.parametrize(("reduction", "block"), [("sum", "forward"), ("none", "backward")])
@pytest.mark.each_value_once
def test_every_mode_and_transformation(mesh, place, reduction, block):
    x, w, y, ct = placed(mesh, place)
    loss = ft.partial(total, reduction=reduction, block_size=BLOCKS[block])
    r = cases.Random("float32", seed=4)
    tangents = r.normal(B, L, D), r.normal(D, K)
    along = lambda arrays: tuple(t.astype(a.dtype) for t, a in zip(tangents, arrays, strict=True))

    def modes(f):
        of = lambda x, w: f(x, w, y, ct.astype(x.dtype))
        gradient = jax.grad(of, (0, 1))
        steps = lambda x, w: jax.lax.scan(
            lambda a, _: (a + of(x * a, w) / N, None), jnp.ones((), x.dtype), None, length=2
        )[0]
        many = lambda x, w: jax.vmap(of, (0, None))(jnp.stack([x, 2 * x]), w).sum()
        return {
            "forward": lambda *a: jax.jvp(of, a, along(a))[1],
            "Hessian-vector product": lambda *a: jax.jvp(gradient, a, along(a))[1],
            "remat": jax.grad(jax.checkpoint(of), (0, 1)),
            "scan": jax.grad(steps, (0, 1)),
            "vmap": jax.grad(many, (0, 1)),
        }

    ours, theirs = modes(loss), modes(total_of_optax)
    x64, w64 = (np.asarray(a, np.float64) for a in (x, w))
    for name, function in ours.items():
        got = jax.jit(function)(x, w)
        with jax.enable_x64(True):
            want = jax.jit(theirs[name])(jnp.asarray(x64), jnp.asarray(w64))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max(), name


# --- the other functions ------------------------------------------------------------------------------

MEAN = {"reduction": "mean"}
OTHERS = {
    "linear_log_probs": {"entropy": True},
    "linear_softmax_cross_entropy": MEAN | {"has_aux": True},
    "contrastive_loss": MEAN,
    "mixture_autoencoder_loss": MEAN,
    "leop_loss": {},
}


def with_gradients(function, has_aux=False, **_):
    """(moving, fixed) -> the gradients of the sum of the losses, and all that the function returns."""

    def of(moving, fixed):
        out = function(**cases.joined(moving, fixed))
        return sum(a.sum() for a in jax.tree.leaves(out[0] if has_aux else out)), out

    return jax.grad(of, has_aux=True)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.one_case_in(2)
def test_every_function_sends_the_gradients_of_the_classes_alone(mesh, name):
    row, options = table.FUNCTIONS[name], OTHERS[name]
    whole, spread = test_explicit.placed(mesh, row.kinds.split(), "examples", "float32")
    block_size = Placement(4, 8, "forward" if "reduction" in options else "backward")
    function = with_gradients(row.function(**options, block_size=block_size), **options)
    program = jax.jit(function).lower(*cases.parted(spread)).compile()
    want = jax.jit(with_gradients(row.defined(**options), **options))(*cases.parted(whole))
    for got, wanted in zip(*map(jax.tree.leaves, (program(*cases.parted(spread)), want)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    sent = collectives(program)
    views = sum(a.nbytes for kind, a in spread.items() if name == "contrastive_loss" and a.ndim == 2)
    of_classes = sum(a.nbytes for a in spread.values() if a.sharding.is_fully_replicated)
    assert all(one.times == 1 for one in sent)
    assert sum(one.bytes for one in sent if one.operation != "all-reduce") <= views
    assert sum(one.bytes for one in sent) <= 2 * views + 1.2 * of_classes + 64


def decoded(x, w):
    z = jnp.float32(2)
    return (
        spelled.linear_top_k(x, w, 5, temperature=z, block_size=Placement(32, 128)),
        spelled.linear_argmax(x, w),
        spelled.linear_sample(jax.random.key(1), x, w, shape=2, block_size=Placement(32, 128)),
    )


@pytest.mark.parametrize("place", ["data", "data and vocabulary"])
def test_classes_are_chosen_where_the_scores_are(mesh, place):
    whole, (x, w) = arguments()[:2], placed(mesh, place)[:2]
    program = jax.jit(decoded).lower(x, w).compile()
    top, best, samples = program(x, w)
    z = np.einsum("...d,dk", *(np.asarray(a, np.float64) for a in whole)) / 2
    of_top = np.argsort(-z, -1)[..., :5]
    np.testing.assert_array_equal(top.ids, of_top)
    log_probs = np.take_along_axis(z - np.log(np.exp(z).sum(-1, keepdims=True)), of_top, -1)
    np.testing.assert_allclose(top.log_probs, log_probs, rtol=1e-5)
    np.testing.assert_array_equal(best, z.argmax(-1))
    np.testing.assert_array_equal(samples, jax.jit(decoded)(*whole)[2])
    sent = sum(one.bytes * one.times for one in collectives(program))
    ranked = 2 * (5 + 1 + 2) + 8  # values and ids of each device, and the sums over the classes
    of_ranked = 4 * N * 2 * ranked if "vocabulary" in place else 0
    assert sent <= of_ranked < 4 * N * K


N_MASKED, K_MASKED = 64, 2048


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("data", ["none", "mask", "ids", "teacher", "probabilities"])
@pytest.mark.one_case_in(3)
def test_data_of_each_example_and_class_stay_where_they_are(mesh, data):
    """The gradients are summed, and a few numbers per example; masks and a teacher's probabilities are not sent."""
    n, k, d = N_MASKED, K_MASKED, 16

    def shape(spec, *sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    of_pairs, dtype = P("data", "model"), bool if data == "mask" else jnp.float32
    given = shape(P("data"), n, d), shape(P(None, "model"), d, k), shape(of_pairs, n, k, dtype=dtype)

    def loss(x, w, pairs):
        if data == "probabilities":
            return spelled.linear_distillation_loss(x, w, teacher_probs=pairs, block_size=128).sum()
        if data == "teacher":
            teacher = {"teacher_features": x, "teacher_kernel": w, "divergence": "reverse"}
            return spelled.linear_distillation_loss(x, w, **teacher, block_size=128).sum()
        where = {"mask": pairs, "ids": differ}.get(data)
        labels = jnp.zeros(n, jnp.int32)
        return spelled.linear_softmax_cross_entropy(x, w, labels, where=where, block_size=128).sum()

    sent = collectives(jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile())
    assert {one.operation for one in sent} == {"all-reduce"}
    dw, dx = 4 * d * k // 2, 4 * n * d // 4
    assert sum(one.bytes for one in sent) <= dw + dx + 4 * 12 * n


def differ(i, k):
    return i != k


# --- the functions that XLA calls, in a thread of its own ---------------------------------------------


def chosen_specs(mesh, x, w, roles=(partition.EXAMPLES, 1)):
    """The partitions of (features, kernel) that are chosen, for the partitions that the arrays have."""
    program = partition.Program(None, lambda *_: None, (roles, (partition.REPLICATED,)))
    array = lambda shape, spec: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
    args, result = (array((16, 8), x), array((8, 24), w)), (array((), P()),)
    _, (of_result,), of_args = partition._partition_of(program)(mesh, args, result)
    assert of_result.spec == P()
    return tuple(sharding.spec for sharding in of_args)


def test_examples_and_classes_stay_and_features_are_gathered(mesh):
    none = P(None, None)
    assert chosen_specs(mesh, P("data"), P()) == (P(("data",), None), none)
    assert chosen_specs(mesh, P(), P(None, "model")) == (none, P(None, ("model",)))
    assert chosen_specs(mesh, P("data"), P("data")) == (P(("data",), None), none)
    assert chosen_specs(mesh, P("data"), P("data", "model")) == (P(("data",), None), P(None, ("model",)))
    both = P(("data", "model"))
    assert chosen_specs(mesh, both, P(None, "model")) == (P(("data", "model"), None), none)  # no axis for both


def test_an_axis_that_the_devices_do_not_divide_is_gathered(mesh):
    program = partition.Program(None, lambda *_: None, ((partition.EXAMPLES,), ()))
    x = jax.ShapeDtypeStruct((6, 8), "float32", sharding=NamedSharding(mesh, P("model")))
    assert partition._shards(mesh, [x], program.roles[0]).examples == ("model",)
    odd = jax.ShapeDtypeStruct((7, 8), "float32")
    odd = type("Odd", (), {"shape": odd.shape, "ndim": 2, "sharding": x.sharding})
    assert partition._shards(mesh, [odd], program.roles[0]).examples == ()


def test_half_precision_is_added_up_over_devices_in_float32(mesh):
    x = jnp.asarray([256.0] + [1.0] * 7, jnp.bfloat16)  # in bfloat16, 256 + 1 is 256
    total = lambda x: partition.sum_over_devices(x, ("data", "model"))
    got = jax.shard_map(total, mesh=mesh, in_specs=P(("data", "model")), out_specs=P())(x)
    assert got.dtype == jnp.bfloat16
    assert got == jnp.asarray(263.0, jnp.bfloat16)
