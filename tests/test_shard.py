"""`softjax.shard`: every function of logits over a mesh, beside its definition of dense logits."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses

from . import cases, table

B, L, D, E = 4, 2, 3, 5
N = B * L
UNEVEN = 13  # of which 4 devices have 4, 4, 4 and 1
KEPT = jnp.asarray(np.arange(N) % 3 != 1)
BOTH = {"examples": "data", "classes": "classes"}

pytestmark = pytest.mark.usefixtures("x64")


def data_of(k, batch=(N,)):
    """Data of the functions, by their names; all floating-point arrays have gradients."""
    r = cases.Random("float64", seed=5)
    n = int(np.prod(batch))
    ids = jnp.asarray(np.stack([np.random.default_rng(i).permutation(k)[:3] for i in range(n)]), jnp.int32)
    shaped = lambda a: a.reshape(*batch, *a.shape[1:])
    made = {
        "x": r.normal(n, D),
        "w": r.normal(D, k),
        "b": r.normal(k),
        "t": jnp.exp(r.normal(n, 1)),
        "c": r.normal(k, D),
        "precisions": jnp.exp(r.normal(k, D)),
        "pairs": r.normal(n, k),
        "teacher": r.normal(n, k),
        "probs": jax.nn.softmax(r.normal(n, k)),
        "prior": jax.nn.softmax(r.normal(k)),
        "targets": jax.nn.sigmoid(r.normal(n, k)),
        "few": jnp.abs(r.normal(n, 3)) / 6,
        "payoffs": r.normal(k),
        "values": r.normal(k, E),
        "data": r.normal(n, E),
        "weights": jnp.exp(r.normal(n)),
        "labels": r.integers(k, n).at[0].set(0).at[1].set(k - 1),
        "ids": ids,
        "order": r.integers(k, n, k),
    }
    of_classes = ("w", "b", "c", "precisions", "prior", "payoffs", "values")
    return {name: a if name in of_classes else shaped(a) for name, a in made.items()}


# --- logits ------------------------------------------------------------------------------------------


def cosine(x, c):
    return 3 * (x @ c) / jnp.sqrt((x @ x) * (c @ c))


def far(x, c, t):
    return ((x[..., None, :] - c) ** 2 * t).sum(-1)


def cosines(x, c):
    return 3 * (x @ c.T) / jnp.sqrt((x**2).sum(-1)[..., None] * (c**2).sum(-1))


class Made(NamedTuple):
    logits: object  # data -> Logits
    definition: object  # data -> an array


LOGITS = {
    "linear": Made(
        lambda d: softjax.linear(d["x"], d["w"], d["b"], block_size=2) - 20,
        lambda d: d["x"] @ d["w"] + d["b"] - 20,
    ),
    "linear, changed": Made(
        lambda d: 3 * (softjax.linear(d["x"], d["w"].T, class_axis=0) / 3).map(jnp.tanh) / d["t"] + d["pairs"],
        lambda d: 3 * jnp.tanh((d["x"] @ d["w"]) / 3) / d["t"] + d["pairs"],
    ),
    "distances": Made(
        lambda d: softjax.distances(d["x"], d["c"], precisions=d["precisions"], block_size=3) / d["t"] + d["b"],
        lambda d: -far(d["x"], d["c"], d["precisions"]) / d["t"] + d["b"],
    ),
    "pairwise": Made(
        lambda d: softjax.pairwise(cosine, d["x"], d["c"], block_size=2),
        lambda d: cosines(d["x"], d["c"]),
    ),
    "two linear layers": Made(
        lambda d: softjax.linear(d["x"], d["w"]).map(jnp.maximum, softjax.linear(d["x"], d["c"].T)) * d["b"],
        lambda d: jnp.maximum(d["x"] @ d["w"], d["x"] @ d["c"].T) * d["b"],
    ),
}


# --- functions ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    function: object  # (logits, data) -> a pytree
    definition: object  # (dense logits, data) -> the same


def hot(labels, z):
    return table.hot(labels, z.shape[-1], z.dtype)


def kl(log_p, log_q):
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def js(log_p, log_q):
    log_m = jnp.logaddexp(log_p, log_q) - np.log(2)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


def weighted_mean(loss, weights):
    return (weights * loss).sum() / weights.sum()


def smoothed(z, labels, rate):
    return table.softmax_cross_entropy(z, (1 - rate) * hot(labels, z) + rate / z.shape[-1])


labelled = softjax.softmax_cross_entropy_with_integer_labels
cost = table.softmax_cross_entropy_with_integer_labels
log_p = table.log_softmax
of_sets = lambda labels, z: hot(labels, z).sum(-2)
of_pair = lambda d, z: (hot(d["ids"], z) * d["few"][..., None]).sum(-2)
binary = lambda z, y: table.binary_costs(z, y).sum(-1)

FUNCTIONS = {
    "logsumexp": Row(lambda z, d: softjax.logsumexp(z, -1), lambda z, d: cases.log_sum_exp(z)),
    "logsumexp of all": Row(lambda z, d: softjax.logsumexp(z), lambda z, d: cases.log_sum_exp(z.reshape(-1))),
    "logsumexp, keepdims": Row(
        lambda z, d: softjax.logsumexp(z, axis=-1, keepdims=True), lambda z, d: cases.log_sum_exp(z)[..., None]
    ),
    "entropy": Row(lambda z, d: softjax.entropy(z), lambda z, d: cases.entropy(z)),
    "expectation": Row(
        lambda z, d: softjax.expectation(z, d["payoffs"]), lambda z, d: cases.expectation(z, d["payoffs"])
    ),
    "expectation of pairs": Row(
        lambda z, d: softjax.expectation(z, d["pairs"]), lambda z, d: cases.expectation(z, d["pairs"])
    ),
    "expectation of integers": Row(
        lambda z, d: softjax.expectation(z, (10 * d["targets"]).astype(int)),
        lambda z, d: cases.expectation(z, (10 * d["targets"]).astype(int).astype(z.dtype)),
    ),
    "expectation of a row": Row(
        lambda z, d: softjax.expectation(z, d["payoffs"].reshape(*[1] * (z.ndim - 1), -1)),
        lambda z, d: cases.expectation(z, d["payoffs"]),
    ),
    "expectation of a number": Row(lambda z, d: softjax.expectation(z, 2.5), lambda z, d: 2.5 + 0 * z.sum(-1)),
    "expectation of examples": Row(
        lambda z, d: softjax.expectation(z, d["t"]), lambda z, d: d["t"][..., 0] + 0 * z[..., 0]
    ),
    "expectation of logits": Row(
        lambda z, d: softjax.expectation(z, z.map(jnp.cos)), lambda z, d: cases.expectation(z, jnp.cos(z))
    ),
    "expectation of logits under an array": Row(
        lambda z, d: softjax.expectation(d["teacher"], z), lambda z, d: cases.expectation(d["teacher"], z)
    ),
    "log_probs": Row(lambda z, d: softjax.log_probs(z, d["labels"]), lambda z, d: -cost(z, d["labels"])),
    "log_probs of several, and the entropy": Row(
        lambda z, d: softjax.log_probs(z, d["ids"], entropy=True),
        lambda z, d: (jnp.take_along_axis(log_p(z), d["ids"], -1), cases.entropy(z)),
    ),
    "metrics": Row(
        lambda z, d: tuple(map(jax.lax.stop_gradient, softjax.metrics(z, d["labels"]))),
        lambda z, d: tuple(
            map(jax.lax.stop_gradient, table.metrics(z, d["labels"].astype(int), None, 0.0, jnp.ones_like(z[..., 0])))
        ),
    ),
    "softmax_cross_entropy": Row(
        lambda z, d: softjax.softmax_cross_entropy(z, d["probs"]), lambda z, d: cases.cross_entropy(z, d["probs"])
    ),
    "softmax_cross_entropy, the same labels": Row(
        lambda z, d: softjax.softmax_cross_entropy(z, d["prior"]), lambda z, d: cases.cross_entropy(z, d["prior"])
    ),
    "softmax_cross_entropy, one label": Row(
        lambda z, d: softjax.softmax_cross_entropy(z, hot(d["labels"], z).astype(int)),
        lambda z, d: cost(z, d["labels"]),
    ),
    "softmax_cross_entropy of pairs": Row(
        lambda z, d: softjax.softmax_cross_entropy(z, (d["ids"], d["few"])),
        lambda z, d: cases.cross_entropy(z, of_pair(d, z)),
    ),
    "softmax_cross_entropy of the ids of all classes": Row(
        lambda z, d: softjax.softmax_cross_entropy(z, (d["order"], d["probs"])),
        lambda z, d: cases.cross_entropy(z, (hot(d["order"], z) * d["probs"][..., None]).sum(-2)),
    ),
    "softmax_cross_entropy_with_integer_labels": Row(
        lambda z, d: labelled(z, d["labels"], label_smoothing=0.1, z_loss=0.01),
        lambda z, d: smoothed(z, d["labels"], 0.1) + 0.01 * cases.log_sum_exp(z) ** 2,
    ),
    "the mean of integer labels": Row(
        lambda z, d: labelled(z, d["labels"], weights=d["weights"], reduction="mean"),
        lambda z, d: weighted_mean(cost(z, d["labels"]), d["weights"]),
    ),
    "the mean of integer labels, of which some are ignored": Row(
        lambda z, d: labelled(z, d["labels"], ignore_index=0, reduction="mean", has_aux=True)[0],
        lambda z, d: cost(z, d["labels"], ignore_index=0, reduction="mean"),
    ),
    "the mean of some examples": Row(
        lambda z, d: labelled(z, d["labels"], where=kept_of(z), reduction="mean"),
        lambda z, d: weighted_mean(cost(z, d["labels"]), kept_of(z).astype(z.dtype)),
    ),
    "the mean of some examples, with an axis": Row(
        lambda z, d: labelled(z, d["labels"], where=kept_of(z)[..., None], reduction="mean"),
        lambda z, d: weighted_mean(cost(z, d["labels"]), kept_of(z).astype(z.dtype)),
    ),
    "sigmoid_binary_cross_entropy": Row(
        lambda z, d: softjax.sigmoid_binary_cross_entropy(z, d["ids"], weights=d["weights"], reduction="mean"),
        lambda z, d: weighted_mean(binary(z, of_sets(d["ids"], z)), d["weights"]),
    ),
    "sigmoid_binary_cross_entropy of targets": Row(
        lambda z, d: softjax.sigmoid_binary_cross_entropy(z, d["targets"]), lambda z, d: binary(z, d["targets"])
    ),
    "sigmoid_binary_cross_entropy of pairs": Row(
        lambda z, d: softjax.sigmoid_binary_cross_entropy(z, (d["ids"], d["few"])),
        lambda z, d: binary(z, of_pair(d, z)),
    ),
    "multiclass_svm_loss": Row(
        lambda z, d: softjax.multiclass_svm_loss(z, d["labels"], margin=jnp.exp(d["payoffs"][0])),
        lambda z, d: table.multiclass_svm_loss(z, d["labels"], margin=jnp.exp(d["payoffs"][0])),
    ),
    "multiclass_hinge_loss": Row(
        lambda z, d: softjax.multiclass_hinge_loss(z, d["labels"], margin=0.5),
        lambda z, d: table.multiclass_hinge_loss(z, d["labels"], margin=0.5),
    ),
    "kl_divergence": Row(
        lambda z, d: softjax.kl_divergence(z, z.map(jnp.sin), weights=d["weights"]),
        lambda z, d: d["weights"] * kl(log_p(z), log_p(jnp.sin(z))),
    ),
    "kl_divergence of an array": Row(
        lambda z, d: softjax.kl_divergence(d["teacher"], z, reduction="sum"),
        lambda z, d: kl(log_p(d["teacher"]), log_p(z)).sum(),
    ),
    "kl_divergence from an array": Row(
        lambda z, d: softjax.kl_divergence(z, d["teacher"]), lambda z, d: kl(log_p(z), log_p(d["teacher"]))
    ),
    "kl_divergence of a pair": Row(
        lambda z, d: softjax.kl_divergence((d["ids"], normal(d["few"])), z),
        lambda z, d: (normal(d["few"]) * (jnp.log(normal(d["few"])) - jnp.take_along_axis(log_p(z), d["ids"], -1))).sum(
            -1
        ),
    ),
    "js_divergence": Row(
        lambda z, d: softjax.js_divergence(d["teacher"], z), lambda z, d: js(log_p(d["teacher"]), log_p(z))
    ),
    "of": Row(
        lambda z, d: softjax.of(losses.focal(1.5), z, d["labels"]),
        lambda z, d: (1 - jnp.exp(-cost(z, d["labels"]))) ** 1.5 * cost(z, d["labels"]),
    ),
    "of data of the classes": Row(
        lambda z, d: softjax.of(
            losses.mixture_autoencoder, z, d["data"], d["values"], weights=d["weights"], reduction="mean"
        ),
        lambda z, d: weighted_mean(((d["data"] - cases.softmax(z) @ d["values"]) ** 2).sum(-1), d["weights"]),
    ),
    "of vectors": Row(
        lambda z, d: softjax.of(losses.expectation, z, None, d["values"]),
        lambda z, d: cases.softmax(z) @ d["values"],
    ),
    "of several losses": Row(
        lambda z, d: softjax.of(
            (losses.cross_entropy, losses.entropy, losses.eol), z, *several_data(d), reduction="mean"
        ),
        lambda z, d: tuple(loss.mean() for loss in several(z, d)),
    ),
    "of a weighted sum": Row(
        lambda z, d: with_constant_parts(
            softjax.of(
                (losses.cross_entropy, losses.entropy, losses.eol),
                z,
                *several_data(d),
                reduction="sum",
                loss_weights=(1.0, d["payoffs"][0], -0.1),
            )
        ),
        lambda z, d: weighted_parts(several(z, d), (1.0, d["payoffs"][0], -0.1)),
    ),
    "of several logits": Row(
        lambda z, d: softjax.of(losses.binary_cross_entropy, (z, d["targets"])),
        lambda z, d: binary(z, d["targets"]),
    ),
    "of losses with arrays": Row(
        lambda z, d: softjax.of(
            losses.class_weights(losses.label_smoothing(losses.cross_entropy, 0.2, d["prior"]), jnp.exp(d["b"])),
            z,
            d["labels"],
        ),
        lambda z, d: cases.cross_entropy(z, jnp.exp(d["b"]) * (0.8 * hot(d["labels"], z) + 0.2 * d["prior"])),
    ),
    "softcap": Row(
        lambda z, d: softjax.entropy(softjax.softcap(z, 2.0)), lambda z, d: cases.entropy(2 * jnp.tanh(z / 2))
    ),
    "take": Row(lambda z, d: z.take(d["ids"]), lambda z, d: jnp.take_along_axis(z, d["ids"], -1)),
    "dense": Row(lambda z, d: z.dense(), lambda z, d: z),
    "argmax": Row(lambda z, d: softjax.argmax(z), lambda z, d: z.argmax(-1).astype(jnp.int32)),
    "top_k": Row(lambda z, d: tuple(softjax.top_k(z, 3)), lambda z, d: likeliest(z, 3)),
    "sample": Row(
        lambda z, d: softjax.sample(jax.random.key(1), z, shape=[2, 3]),
        lambda z, d: jnp.asarray(softjax.sample(jax.random.key(1), z, shape=(2, 3))),  # a fixed function of the ids
    ),
}


def kept_of(z):
    return KEPT.reshape(z.shape[:-1])


def normal(probs):
    return probs / probs.sum(-1, keepdims=True)


def several_data(d):
    return (d["labels"], None, d["data"]), (None, None, d["values"])


def several(z, d):
    errors = ((d["data"][..., None, :] - d["values"]) ** 2).sum(-1)
    return cost(z, d["labels"]), cases.entropy(z), (cases.softmax(z) * errors).sum(-1)


def with_constant_parts(found):
    return found[0], jax.tree.map(jax.lax.stop_gradient, found[1])


def weighted_parts(of_each, weights):
    sums = [loss.sum() for loss in of_each]
    return sum(w * loss for w, loss in zip(weights, sums, strict=True)), tuple(map(jax.lax.stop_gradient, sums))


def likeliest(z, k):
    ids = jnp.argsort(-z, -1)[..., :k]
    at = lambda a: jax.lax.stop_gradient(jnp.take_along_axis(a, ids, -1))
    return at(z), at(log_p(z)), ids.astype(jnp.int32)


def check(function, definition, data):
    """All modes of differentiation for the floating-point results; integers and booleans are compared as they are."""
    floats = lambda out: [a for a in jax.tree.leaves(out) if jnp.issubdtype(a.dtype, jnp.inexact)]
    others = lambda out: [a for a in jax.tree.leaves(out) if not jnp.issubdtype(a.dtype, jnp.inexact)]
    for got, want in zip(*(others(jax.jit(f)(data)) for f in (function, definition)), strict=True):
        np.testing.assert_array_equal(got, want)
    if floats(jax.eval_shape(definition, data)):
        cases.agreement(lambda d: floats(function(d)), lambda d: floats(definition(d)))(data)


def sharded(logits, mesh=None, **axes):
    """The logits over a mesh of 2 x 4 devices."""
    return softjax.shard(logits, cases.mesh(2, 4) if mesh is None else mesh, **(axes or BOTH))


def test_every_function_of_logits_is_there():
    annotation = lambda f: str(inspect.signature(f).parameters)
    of_logits = {n for n, f in vars(softjax).items() if inspect.isfunction(f) and "LogitsLike" in annotation(f)}
    named = {name for name in of_logits for row in FUNCTIONS if row.split(",")[0].split(" ")[0] == name}
    assert named == of_logits


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_case_in(7)
def test_functions_of_logits(name):
    """Of 13 classes: all padding is on one device."""
    row, made = FUNCTIONS[name], LOGITS["linear, changed"]
    check(
        lambda d: row.function(sharded(made.logits(d)), d),
        lambda d: row.definition(made.definition(d), d),
        data_of(UNEVEN),
    )


FEW = (
    *("entropy", "expectation of pairs", "log_probs of several, and the entropy", "kl_divergence", "js_divergence"),
    *("the mean of integer labels", "softmax_cross_entropy", "of a weighted sum", "multiclass_svm_loss", "top_k"),
)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("kind", [kind for kind in LOGITS if kind != "linear, changed"])
@pytest.mark.one_case_in(11)
def test_logits_of_every_kind(kind, name):
    row, made = FUNCTIONS[name], LOGITS[kind]
    check(
        lambda d: row.function(sharded(made.logits(d)), d),
        lambda d: row.definition(made.definition(d), d),
        data_of(UNEVEN),
    )


SIZES = {  # numbers of classes, and axes: on a device, 4 classes of 4 examples; one class; padding alone
    "as many classes as examples": (16, BOTH),
    "as many classes as examples in all": (N, BOTH),
    "a class each": (4, BOTH),
    "a device without a class": (5, BOTH),
    "fewer classes than devices": (3, BOTH),
    "classes alone": (UNEVEN, {"classes": "classes"}),
    "classes over two axes": (UNEVEN, {"classes": ("data", "classes")}),
    "examples alone": (UNEVEN, {"examples": "data"}),
    "examples over two axes": (UNEVEN, {"examples": ("classes", "data"), "classes": ()}),
}


@pytest.mark.parametrize(
    "name", [*FEW, "the mean of some examples", "the mean of some examples, with an axis", "sample"]
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.one_case_in(14)
def test_numbers_of_classes_and_axes(size, name):
    (k, axes), row, made = SIZES[size], FUNCTIONS[name], LOGITS["linear, changed"]
    check(
        lambda d: row.function(sharded(made.logits(d), **axes), d),
        lambda d: row.definition(made.definition(d), d),
        data_of(k),
    )


ON_MESH = [name for name in FUNCTIONS if name not in ("dense", "take")]


@pytest.mark.parametrize("name", ON_MESH)
@pytest.mark.one_case_in(25)
def test_two_leading_axes_and_a_mesh_that_is_set(name):
    """The first of the leading axes is sharded."""
    row, made = FUNCTIONS[name], LOGITS["linear, changed"]
    with jax.set_mesh(cases.mesh(2, 4)):
        check(
            lambda d: row.function(softjax.shard(made.logits(d), **BOTH), d),
            lambda d: row.definition(made.definition(d), d),
            data_of(UNEVEN, (B, L)),
        )


OF_EXAMPLES = ("x", "t", "pairs", "teacher", "probs", "targets", "few", "data", "weights", "labels", "ids", "order")


@pytest.mark.parametrize("name", ON_MESH)
@pytest.mark.parametrize("spec", [P("data"), P("data", "classes")], ids=["classes too", "both leading axes"])
@pytest.mark.one_case_in(24)
def test_axes_that_are_in_the_types_of_the_arrays(spec, name):
    row, made = FUNCTIONS[name], LOGITS["linear, changed"]
    of_two = len(spec) == 2
    mesh = cases.mesh(*((4, 2) if of_two else (2, 4)), AxisType.Explicit)
    data = data_of(UNEVEN, (B, L) if of_two else (N,))
    put = lambda name, a: jax.device_put(a, NamedSharding(mesh, spec if name in OF_EXAMPLES else P()))
    of = lambda d: row.function(softjax.shard(made.logits(d), classes=() if of_two else "classes"), d)
    with jax.set_mesh(mesh):
        got = cases.compiled(value_and_gradients(of))({name: put(name, a) for name, a in data.items()})
    want = cases.compiled(value_and_gradients(lambda d: row.definition(made.definition(d), d)))(data)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def value_and_gradients(function):
    """(the result, the gradient of the sum of its floating-point numbers)."""

    def of(data):
        moving, fixed = cases.parted(data)

        def total(moving):
            out = function(cases.joined(moving, fixed))
            inexact = [a for a in jax.tree.leaves(out) if jnp.issubdtype(a.dtype, jnp.inexact)]
            return sum((jnp.cos(a).sum() for a in inexact), jnp.zeros(())), out

        return jax.value_and_grad(total, has_aux=True)(moving)

    return of


# --- masks -------------------------------------------------------------------------------------------

LISTED = jnp.asarray([[0, 12, 5, 3], [7, -1, 4, 7], [1, 2, 3, 0], [9, 6, 0, 12]] * 2, jnp.int32)
OF_PAIRS = (np.arange(N)[:, None] + 1) % 5 != np.arange(UNEVEN)[None] % 7
OF_CLASSES = np.arange(UNEVEN) % 5 != 2
FIRST = jnp.arange(UNEVEN)


def by_ids(n, k):
    return (n + k) % 7 != 1


def closing_over_an_array(n, k):
    return FIRST[k] >= n % 5


ids = np.arange(UNEVEN)[None], np.arange(N)[:, None]
MASKS = {
    "classes": (lambda z: z.where(OF_CLASSES), OF_CLASSES[None] & (ids[1] >= 0)),
    "pairs": (lambda z: z.where(OF_PAIRS), OF_PAIRS),
    "a row": (lambda z: z.where(OF_CLASSES[None]), OF_CLASSES[None] & (ids[1] >= 0)),
    "a function": (lambda z: z.where(by_ids), by_ids(ids[1], ids[0])),
    "a function with an array": (lambda z: z.where(closing_over_an_array), ids[0] >= ids[1] % 5),
    "listed ids": (lambda z: z.where_ids(LISTED), (np.asarray(LISTED)[:, None] == ids[0].T).any(-1)),
    "all of these": (
        lambda z: z.where_ids(LISTED).where(by_ids).where(OF_CLASSES).where(OF_PAIRS),
        (np.asarray(LISTED)[:, None] == ids[0].T).any(-1) & by_ids(ids[1], ids[0]) & OF_CLASSES & OF_PAIRS,
    ),
}
OF_MASKED = {
    "logsumexp": (lambda z, d: softjax.logsumexp(z, -1), lambda z, m, d: cases.log_sum_exp(z, where=m)),
    "entropy": (lambda z, d: softjax.entropy(z), lambda z, m, d: cases.entropy(z, where=m)),
    "expectation": (
        lambda z, d: softjax.expectation(z, d["payoffs"]),
        lambda z, m, d: cases.expectation(z, d["payoffs"], where=m),
    ),
    "mixture_autoencoder": (
        lambda z, d: softjax.of(losses.mixture_autoencoder, z, d["data"], d["values"]),
        lambda z, m, d: ((d["data"] - cases.softmax(z, where=m) @ d["values"]) ** 2).sum(-1),
    ),
    "smoothed, with z_loss": (
        lambda z, d: labelled(z.where(lambda n, k: k < 99), d["likely"], label_smoothing=0.1, z_loss=0.01),
        lambda z, m, d: (
            table.softmax_cross_entropy(z, 0.9 * hot(d["likely"], z) + 0.1 * m / m.sum(-1, keepdims=True), where=m)
            + 0.01 * cases.log_sum_exp(z, where=m) ** 2
        ),
    ),
    "kl_divergence": (
        lambda z, d: softjax.kl_divergence(z, d["teacher"]),
        lambda z, m, d: (cases.softmax(z, where=m) * (table.log_p(z, where=m) - table.log_softmax(d["teacher"]))).sum(
            -1
        ),
    ),
}


@pytest.mark.parametrize("name", OF_MASKED)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.each_value_once
def test_masks(mask, name):
    (function, definition), (masked, has) = OF_MASKED[name], MASKS[mask]
    made, data = LOGITS["linear, changed"], data_of(UNEVEN)
    data["likely"] = jnp.asarray(has.argmax(-1), jnp.int32)  # a class that is not masked
    check(
        lambda d: function(masked(sharded(made.logits(d))), d),
        lambda d: definition(made.definition(d), has, d),
        data,
    )


FORMS = {  # of a class, of an example, or of both; some have the shape that a shard of others has
    "function": lambda live, pairs: (lambda n, i: i != 2, live),
    "row": lambda live, pairs: (live[None], live),
    "pairs": lambda live, pairs: (pairs, pairs),
    "classes": lambda live, pairs: (live, live),
}


def masks_of(k, form):
    """(data, the mask as an argument, the classes that the examples have)."""
    data, live = data_of(k), np.arange(k) != 2
    data["labels"] = jnp.where(data["labels"] == 2, 1, data["labels"])
    of_labels = np.asarray(data["labels"])[:, None] == np.arange(k)
    pairs = live & (np.arange(k) != (np.arange(N)[:, None] + 3) % k) | of_labels
    return data, *FORMS[form](live, pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [4, N, 16])
@pytest.mark.each_value_once
def test_masks_as_an_argument_of_a_loss(k, form):
    if (k, form) == (N, "classes"):
        pytest.skip("of as many examples, it is a mask of these")
    made, (data, where, has) = LOGITS["linear, changed"], masks_of(k, form)
    check(
        lambda d: labelled(sharded(made.logits(d)), d["labels"], where=where, reduction="mean"),
        lambda d: cost(made.definition(d), d["labels"], where=np.broadcast_to(has, (N, k))).mean(),
        data,
    )


@pytest.mark.parametrize("form", ["classes", "row", "pairs"])
@pytest.mark.parametrize("k", [4, N, 16])
@pytest.mark.each_value_once
def test_masks_as_an_argument_of_the_entropy(k, form):
    made, (data, where, has) = LOGITS["linear, changed"], masks_of(k, form)
    check(
        lambda d: softjax.entropy(sharded(made.logits(d)), where=where),
        lambda d: cases.entropy(made.definition(d), where=has),
        data,
    )


def test_classes_that_are_masked_on_a_whole_device_have_no_part():
    """Their data are NaN, and so would be their logits."""
    made, data = LOGITS["pairwise"], data_of(16)
    live = np.arange(16) // 4 != 1
    some = {name: data[name] for name in ("x", "c")}

    def function(d):
        c = jnp.where(live[:, None], d["c"], jnp.nan)
        return softjax.entropy(sharded(made.logits({"x": d["x"], "c": c}).where(live)))

    check(function, lambda d: cases.entropy(made.definition(d), where=live), some)
