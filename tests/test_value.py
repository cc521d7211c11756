"""`Logits` as a value: what passes it on, what reads it in the wrong way, meshes, memory, and digits."""

import functools as ft

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses

from . import cases, table
from .test_platforms import equations

B, L, D, K = 4, 2, 3, 16
r = cases.Random("float32", 1)
X, W, Z, C, T = r.normal(B, L, D), r.normal(D, K), r.normal(B, L, 2), r.normal(K, 2), jnp.exp(0.3 * r.normal(B, L))
PAIRS, LABELS = r.normal(B, L, K), r.integers(K, B, L)
KEPT = jnp.concatenate([LABELS[..., None], r.integers(K, B, L, 3)], -1)
LOGITS = softjax.linear(X, W)
ce = softjax.softmax_cross_entropy_with_integer_labels
plain_ce = cases.softmax_loss


# --- read in the wrong way ---------------------------------------------------------------------------

MISUSES = {
    "jnp.exp": lambda z: jnp.exp(z),
    "np.asarray": lambda z: np.asarray(z),
    "jax.nn.softmax": lambda z: jax.nn.softmax(z),
    "a comparison": lambda z: z > 0,
    "an equality": lambda z: z == z,
    "float": lambda z: float(z),
    "a truth value": lambda z: bool(z),
    "len": lambda z: len(z),
    "iteration": lambda z: list(z),
    "a product of matrices": lambda z: z @ jnp.ones((K, 2)),
    "a power": lambda z: z**2,
}


@pytest.mark.parametrize("name", MISUSES)
def test_logits_are_no_array(name):
    with pytest.raises(TypeError, match="not in memory"):
        MISUSES[name](LOGITS)


class Holder:
    tau = jnp.arange(3.0)


REFUSED = {
    "the class axis is indexed": (lambda z: z[..., 0], IndexError, "`take` gives the logits of classes"),
    "too many indices": (lambda z: z[0, 0, 0], IndexError, "`take` gives the logits of classes"),
    "the last axis is reshaped": (lambda z: z.reshape(B, L * K), ValueError, "`shape` must keep the last axis"),
    "arrays do not broadcast": (
        lambda z: z + jnp.ones((3, 1)),
        ValueError,
        r"`other` must broadcast to the logits \(4, 2, 16\)",
    ),
    "logits of other shapes": (lambda z: z + z[0], ValueError, r"`other` logits must have the shape \(4, 2, 16\)"),
    "logits of other blocks": (
        lambda z: softjax.linear(X, W, block_size=4) + softjax.linear(X, W, block_size=8),
        ValueError,
        "`other` must have the block size 4, got 8",
    ),
    "a function that reduces": (lambda z: z.map(lambda a: a - a.max()), ValueError, "got one that reduces or sorts"),
    "a function of several numbers": (
        lambda z: z.map(lambda a: jnp.stack([a, a])),
        ValueError,
        "returns a floating-point number",
    ),
    "no function": (lambda z: z.map(3), TypeError, "`function` must be a function, got 3"),
    "a mask of numbers": (lambda z: z.where(jnp.ones(K)), TypeError, "`mask` must be booleans"),
    "a mask that does not broadcast": (lambda z: z.where(jnp.ones(3, bool)), ValueError, "`mask` must broadcast"),
    "a mask by ids, indexed": (lambda z: z.where(lambda n, k: n == k)[0], TypeError, "can't be indexed"),
    "ids of other examples": (lambda z: z.where_ids(KEPT[0]), ValueError, "`ids` must have shape"),
    "another axis": (lambda z: softjax.entropy(z, axis=0), ValueError, "`axis` must be -1"),
    "features of another size": (lambda z: softjax.linear(X, W.T), ValueError, "`features` must have shape"),
    "pairs without axes": (
        lambda z: softjax.pairwise(lambda x, c: x, 1.0, C),
        ValueError,
        r"`examples` must hold arrays \[N, ...\]",
    ),
    "values of all": (
        lambda z: softjax.expectation(z, jnp.ones((K, 2))),
        ValueError,
        r"`values` .* \(4, 2, 16\) .*vectors \[K, E\] go to `softjax.of`",
    ),
    "weights of one loss": (
        lambda z: softjax.of(losses.entropy, z, loss_weights=(1.0,)),
        ValueError,
        "`loss_weights` must be None for one loss",
    ),
    "weights of fewer losses": (
        lambda z: softjax.of((losses.entropy,) * 2, z, loss_weights=(1.0,), reduction="sum"),
        ValueError,
        "`loss_weights` must be a tuple of 2 numbers",
    ),
    "weights without a reduction": (
        lambda z: softjax.of((losses.entropy,) * 2, z, loss_weights=(1.0, 2.0)),
        ValueError,
        "`reduction` must be 'sum' or 'mean' with `loss_weights`, got 'none'",
    ),
    "no losses": (lambda z: softjax.of((), z), TypeError, "`loss` must be a `softjax.Loss` or a tuple of these"),
    "one example for several losses": (
        lambda z: softjax.of((losses.cross_entropy, losses.entropy), z, LABELS),
        ValueError,
        "`example` must be a tuple of 2 parts, one of each loss",
    ),
    "logits of two shapes": (
        lambda z: softjax.of(losses.kl_divergence, (z, z[0])),
        ValueError,
        "`logits` must have one shape",
    ),
    "two logits for a loss of one": (
        lambda z: softjax.of(losses.entropy, (z, z)),
        ValueError,
        "`logits` must be 1 for this loss, several of them as a tuple, got 2",
    ),
    "one of two logits": (
        lambda z: softjax.of(losses.kl_divergence, z),
        ValueError,
        "`logits` must be 2 for this loss",
    ),
    "no logits": (lambda z: softjax.of(losses.kl_divergence, ()), ValueError, "`logits` must be logits or a tuple"),
    "losses of one and of two logits": (
        lambda z: softjax.of((losses.kl_divergence, losses.entropy), (z, z)),
        ValueError,
        "`loss` must be losses of one number of logits",
    ),
    "a weighted sum of vectors": (
        lambda z: softjax.of(
            (losses.expectation, losses.entropy),
            z,
            None,
            (jnp.ones((K, 2)), None),
            loss_weights=(1.0, 1.0),
            reduction="sum",
        ),
        ValueError,
        "for a loss of several numbers",
    ),
    "vectors of several losses, reduced": (
        lambda z: softjax.of((losses.expectation, losses.entropy), z, None, (jnp.ones((K, 2)), None), reduction="mean"),
        ValueError,
        "`reduction` must be 'none' for a loss of several numbers per example",
    ),
    "logits that vmap returns": (
        lambda z: softjax.entropy(jax.vmap(lambda x: softjax.linear(x, W))(X)),
        ValueError,
        "return features from `vmap` and `scan`, not logits",
    ),
    "logits of other mesh axes": (
        lambda z: jax.shard_map(
            lambda x, w: softjax.entropy(softjax.linear(x, w, axis_name="classes") + softjax.linear(x, w)),
            mesh=cases.mesh(2, 4),
            in_specs=(P(), P(None, "classes")),
            out_specs=P(),
        )(X, W),
        ValueError,
        "`other` must be sharded over the same mesh axes",
    ),
    "logits of another mesh": (
        lambda z: softjax.shard(z, cases.mesh(2, 4), classes="classes") + z,
        ValueError,
        "`other` must be placed on the same mesh",
    ),
    "logits placed twice": (
        lambda z: softjax.shard(
            softjax.shard(z, cases.mesh(2, 4), classes="classes"), cases.mesh(2, 4), classes="classes"
        ),
        ValueError,
        "`logits` must not be placed on a mesh yet",
    ),
    "another number of examples": (
        lambda z: z.reshape(3, K),
        ValueError,
        r"`shape` must have the number of examples of \(4, 2, 16\)",
    ),
    "complex numbers": (lambda z: z + 1j, TypeError, "`other` must be real numbers or logits"),
    "an array of an object": (
        lambda z: z.map(lambda a: a / Holder.tau[0]),
        ValueError,
        "`function` must close over its arrays as variables",
    ),
    "soft labels, and a mask by ids": (
        lambda z: softjax.softmax_cross_entropy(z, PAIRS, where=lambda n, k: n != k),
        TypeError,
        "`where` must be booleans beside labels of all classes, got a function of ids",
    ),
    "values of rank 1": (
        lambda z: softjax.soft_quantize(Z, C, jnp.ones(K)),
        ValueError,
        r"`values` must have shape \[K, E\], got \(16,\)",
    ),
    "a scalar": (lambda z: softjax.argmax(1.0), ValueError, r"`logits` must have shape \[..., K\]"),
    "too many of the best": (lambda z: softjax.top_k(z, 17), ValueError, "at most the number of classes, 16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_logits_cannot_be_is_refused_in_words(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(LOGITS)


def test_an_array_of_an_object_is_named():
    class Model:
        tau = jnp.arange(3.0)

    model = Model()
    with pytest.raises(ValueError, match="must close over its arrays as variables"):
        LOGITS.map(lambda z: z / model.tau[0])

    def of_traced(tau):
        model.tau = tau
        return softjax.logsumexp(LOGITS.map(lambda z: z / model.tau))

    with pytest.raises(ValueError, match="must close over its arrays as variables"):
        jax.grad(of_traced)(2.0)


def test_functions_close_over_what_python_lets_them():
    """Vectors, trees, functions and NumPy arrays, traced or not."""
    v, tree = jnp.exp(r.normal(2)), {"scale": jnp.float32(2.0), "shift": np.float32(0.5)}

    def ours(v, tree):
        scaled = lambda z: z * tree["scale"] + tree["shift"]
        flat = Z.reshape(-1, 2)
        logits = softjax.pairwise(lambda z, c: -(v * (z - c) ** 2).sum(), flat, C).map(lambda z: jnp.sin(scaled(z)))
        return softjax.logsumexp(logits)

    def plain(v, tree):
        h = -(v * (Z.reshape(-1, 1, 2) - C) ** 2).sum(-1)
        return jax.nn.logsumexp(jnp.sin(h * tree["scale"] + tree["shift"]))

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(v, tree) for f in (ours, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    of_numbers = softjax.pairwise(lambda x, c: -jnp.abs(x - c).sum(), X[:, 0, 0], C[:, 0])
    np.testing.assert_allclose(of_numbers.dense(), -jnp.abs(X[:, 0, :1] - C[:, 0]), rtol=1e-6)


def test_a_function_is_what_it_reads_now():
    """A number of an object, a dictionary, a default or the module that was changed since is not the old program's."""

    class Model:
        tau = 1.0

    model, given = Model(), {"tau": 1.0, "first": 0}
    of = {
        "an object": lambda: LOGITS.map(lambda z: z * model.tau),
        "a dictionary": lambda: LOGITS.map(lambda z: z * given["tau"]),
        "the module": lambda: LOGITS.map(lambda z: z * SCALE[0]),
        "a default": lambda: LOGITS.map(lambda z, *, tau=given["tau"]: z * tau),
        "a method": lambda: LOGITS.map(model.scaled),
    }
    Model.scaled = lambda self, z: z * self.tau
    for tau in (1.0, 3.0, 2.0):
        model.tau = given["tau"] = SCALE[0] = tau
        for name, made in of.items():
            np.testing.assert_allclose(
                softjax.logsumexp(made()), jax.nn.logsumexp(tau * (X @ W)), rtol=1e-5, err_msg=name
            )
    late = LOGITS.map(lambda z: z * given["tau"])
    given["tau"] = 5.0
    np.testing.assert_allclose(softjax.logsumexp(late), jax.nn.logsumexp(5 * (X @ W)), rtol=1e-5)
    for first in (3, 7):
        mask = LOGITS.where(lambda n, k: k >= given["first"])
        given["first"] = first
        np.testing.assert_allclose(softjax.logsumexp(mask), jax.nn.logsumexp((X @ W)[..., first:]), rtol=1e-5)
    blocks = softjax.linear(X, W, block_size=4).map(lambda z: z * OF_MODULE)
    np.testing.assert_allclose(softjax.logsumexp(blocks), jax.nn.logsumexp(2 * (X @ W)), rtol=1e-5)


SCALE, OF_MODULE = [1.0], jnp.float32(2.0)


def test_masked_data_gives_no_nan():
    """Neither in a denominator, nor where the data of masked classes and ignored examples would have no derivative."""
    live, t = jnp.arange(K) % 3 != 1, jnp.exp(r.normal(K))
    dense = lambda x, w: jnp.where(live, x @ w / t, -jnp.inf)
    ours = lambda x, w: softjax.logsumexp(softjax.linear(x, w, block_size=5).where(live) / t)
    cosine = lambda x, c: x @ c / jnp.sqrt((x @ x) * (c @ c))
    flat = Z.reshape(-1, 2)
    of_pairs = lambda c: softjax.logsumexp(softjax.pairwise(cosine, flat, c).where(live))
    labels = LABELS.at[0, 0].set(-1)
    share = lambda z, s: z / (1 - s)
    s = 0.5 * jax.nn.sigmoid(T)[..., None]
    ignored = lambda w: ce(softjax.linear(X, w).map(share, s), labels, ignore_index=-1).sum()
    nan = X.at[0, 0].set(jnp.nan)
    several = lambda w: softjax.log_probs(softjax.linear(nan, w), jnp.stack([labels, labels], -1), ignore_index=-1)
    spoiled = W.at[:, 1].set(jnp.nan)
    ids = jnp.broadcast_to(jnp.arange(K), (B, L, K))
    taken = lambda x: jnp.where(live, softjax.linear(x, spoiled).where(live).take(ids), 0).sum()
    first_costs_nothing = lambda z: plain_ce(z, LABELS).at[0, 0].set(0).sum()

    @jax.jit
    def gradients(x, w, c):
        return {
            "of both": jax.grad(ours, (0, 1))(x, w),
            "of pairs": jax.grad(of_pairs)(c),
            "ignored": jax.grad(ignored)(w),
            "several": jax.grad(lambda w: several(w).sum())(w),
            "taken": jax.grad(taken)(x),
        }

    @jax.jit
    def defined(x, w):
        return {
            "of both": jax.grad(lambda x, w: jax.nn.logsumexp(dense(x, w)), (0, 1))(x, w),
            "ignored": jax.grad(lambda w: first_costs_nothing(x @ w / (1 - s)))(w),
            "several": jax.grad(lambda w: -2 * first_costs_nothing(x @ w))(w),
            "taken": jnp.broadcast_to(jnp.where(live, w, 0).sum(-1), x.shape),
        }

    got, want = gradients(X, W, C), defined(X, W)
    assert bool(jnp.isfinite(got.pop("of pairs")).all())
    for name, rtol, atol in (
        ("of both", 1e-5, 1e-6),
        ("ignored", 1e-4, 1e-6),
        ("several", 1e-4, 1e-5),
        ("taken", 1e-4, 1e-5),
    ):
        chex.assert_trees_all_close(got[name], want[name], rtol=rtol, atol=atol)


def test_the_second_derivative_at_a_center():
    hessian = jax.jit(jax.hessian(lambda z: softjax.distances(z[None], C).dense()[0, 2]))(C[2])
    np.testing.assert_allclose(hessian, -2 * jnp.eye(2), atol=1e-6)


@pytest.mark.parametrize("made", [lambda x, w: softjax.linear(x, w), lambda x, w: x @ w], ids=["Logits", "an array"])
def test_a_mask_of_examples_in_a_mean(made):
    kept = jnp.arange(B * L).reshape(B, L) % 3 != 1
    each = plain_ce(X @ W, LABELS)
    want = jnp.where(kept, each, 0).sum() / float(kept.sum())
    for where in (kept, kept[..., None]):
        np.testing.assert_allclose(ce(made(X, W), LABELS, where=where, reduction="mean"), want, rtol=1e-5)
    moved = ce(jnp.moveaxis(X @ W, -1, 0), LABELS, axis=0, label_smoothing=0.1, reduction="sum")
    smoothed = 0.9 * each - 0.1 * jax.nn.log_softmax(X @ W).mean(-1)
    np.testing.assert_allclose(moved, smoothed.sum(), rtol=1e-5)


def test_it_says_what_it_is_made_of():
    text = "Logits(float32[4, 2, 16], (map of linear / examples), not in memory)"
    assert repr(LOGITS.map(jnp.tanh) / T[..., None]) == text
    assert (LOGITS.shape, LOGITS.ndim, LOGITS.size, LOGITS.dtype) == ((4, 2, 16), 3, 128, jnp.float32)


# --- passed on ----------------------------------------------------------------------------------------


def head(x, w, t):
    return softjax.linear(x, w).map(jnp.tanh) / t[..., None]


def test_a_model_returns_logits():
    class Head(nnx.Linear):
        def __call__(self, x):
            return softjax.linear(x, self.kernel[...], self.bias[...])

    head = Head(D, K, rngs=nnx.Rngs(0))

    @nnx.jit
    def gradient(head):
        return nnx.value_and_grad(lambda head: ce(nnx.jit(lambda head, x: head(x))(head, X), LABELS).mean())(head)

    loss, gradients = gradient(head)
    w, b = head.kernel[...], head.bias[...]
    want, of_arrays = jax.value_and_grad(lambda p: plain_ce(X @ p[0] + p[1], LABELS).mean())((w, b))
    chex.assert_trees_all_close(
        (loss, gradients["kernel"][...], gradients["bias"][...]), (want, *of_arrays), rtol=1e-5, atol=1e-6
    )


PASSED = {
    "jit": lambda x, w, t: jax.jit(head)(x, w, t),
    "checkpoint": lambda x, w, t: jax.checkpoint(head)(x, w, t),
    "cond": lambda x, w, t: jax.lax.cond(x.sum() > -1e9, head, lambda x, w, t: head(-x, w, t), x, w, t),
    "flattened and unflattened": lambda x, w, t: jax.tree.map(lambda a: a, head(x, w, t)),
}


@pytest.mark.parametrize("name", PASSED)
def test_logits_pass_through_transformations(name):
    loss = lambda x, w, t: ce(PASSED[name](x, w, t), LABELS).sum()
    defined = lambda x, w, t: plain_ce(jnp.tanh(x @ w) / t[..., None], LABELS).sum()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(X, W, T) for f in (loss, defined))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_scan_over_chunks_of_examples():
    chunk = lambda w: lambda total, xyt: (total + ce(head(xyt[0], w, xyt[2]), xyt[1]).sum(), None)
    loss = lambda w: jax.lax.scan(jax.checkpoint(chunk(w)), 0.0, (X, LABELS, T))[0]
    defined = lambda w: plain_ce(jnp.tanh(X @ w) / T[..., None], LABELS).sum()
    chex.assert_trees_all_close(*(jax.jit(jax.value_and_grad(f))(W) for f in (loss, defined)), rtol=1e-5, atol=1e-5)


def test_logits_in_vmap_and_out_of_it():
    each = jax.vmap(lambda x, t: softjax.entropy(head(x, W, t)))(X, T)
    np.testing.assert_allclose(each, softjax.entropy(head(X, W, T)), rtol=1e-5)
    out = jax.vmap(lambda x, t: head(x, W, t))(X, T)
    with pytest.raises(ValueError, match="return features from `vmap` and `scan`"):
        softjax.entropy(out)


def test_a_fresh_lambda_compiles_nothing_again():
    of = jax.jit(softjax.entropy)
    for scale in jnp.array([2.0, 3.0]):
        of(LOGITS.map(lambda z, scale=scale: z * scale))
    assert of._cache_size() == 1
    of(LOGITS.map(lambda z: z * 2))
    assert of._cache_size() == 2


# --- several losses of one pass -------------------------------------------------------------------------

PLACEMENTS = {
    "whole": None,
    "blocks": 5,
    "tiles": softjax.Placement(3, 5),
    "forward": softjax.Placement(3, 5, "forward"),
}
of_reverse = lambda z, *data: losses.kl_divergence.columns(z[::-1], *data)
REVERSE = losses.kl_divergence._replace(columns=of_reverse)


def kl(p, q):
    return (cases.softmax(p) * (cases.log_softmax(p) - cases.log_softmax(q))).sum(-1)


def brier(z, y):
    return ((cases.softmax(z) - jax.nn.one_hot(y, K, dtype=z.dtype)) ** 2).sum(-1)


def of_labels(function):
    return lambda z, data: function(z, data["labels"])


def focal(z, y):
    c = plain_ce(z, y)
    return (1 - jnp.exp(-c)) ** 1.5 * c


# (losses, names of their data of examples, of their data of classes, definitions of the logits and the data)
SEVERAL = {
    "of the same logits": (
        (losses.cross_entropy, losses.entropy, losses.focal(1.5), losses.logsumexp),
        ("labels", None, "labels", None),
        None,
        (of_labels(plain_ce), lambda z, _: cases.entropy(z), of_labels(focal), lambda z, _: cases.log_sum_exp(z)),
    ),
    "of other logits": (
        (losses.cross_entropy, losses.brier, losses.margin(losses.cross_entropy, 0.4), losses.crammer_singer()),
        ("labels",) * 4,
        None,
        (
            of_labels(plain_ce),
            of_labels(brier),
            of_labels(lambda z, y: plain_ce(z - 0.4 * jax.nn.one_hot(y, K, dtype=z.dtype), y)),
            of_labels(table.multiclass_hinge_loss),
        ),
    ),
    "with data of classes": (
        (losses.mixture_autoencoder, losses.leop, losses.cross_entropy, losses.eol),
        ("x", "x", "labels", "x"),
        ("v", "v", None, "v"),
        (
            lambda z, data: ((data["x"] - cases.softmax(z) @ data["v"]) ** 2).sum(-1),
            lambda z, data: cases.log_sum_exp(z) - cases.log_sum_exp(z + cases.log_likelihood(data["x"], data["v"])),
            of_labels(plain_ce),
            lambda z, data: -(cases.softmax(z) * cases.log_likelihood(data["x"], data["v"])).sum(-1),
        ),
    ),
    "of a softmax each": (
        (losses.kl_divergence, REVERSE, losses.expectation_of_pairs),
        (None, None, None),
        None,
        (
            lambda z, _: kl(*z),
            lambda z, _: kl(*z[::-1]),
            lambda z, _: cases.expectation(*z),
        ),
    ),
}


def arrays_of_several():
    r = cases.Random("float64", 2)
    moving = {"f": r.normal(B, L, D), "w": r.normal(D, K), "x": r.normal(B, L, 2), "v": r.normal(K, 2)}
    return moving | {"z": r.normal(B, L, K), "weights": jnp.exp(r.normal(B, L))}


def agreement_of_several(name, size, reduction, loss_weights=None):
    """Of all losses, in all modes, with weights of the examples, over all arrays and the weights of the losses."""
    of_each, of_examples, of_classes, definitions = SEVERAL[name]
    pair = name == "of a softmax each"
    labels = LABELS

    def ours(moving, loss_weights):
        data = moving | {"labels": labels, None: None}
        logits = softjax.linear(moving["f"], moving["w"], block_size=size)
        found = softjax.of(
            of_each,
            (logits / 0.7, moving["z"]) if pair else logits / 0.7,
            tuple(data[n] for n in of_examples),
            None if of_classes is None else tuple(data[n] for n in of_classes),
            weights=moving["weights"],
            reduction=reduction,
            loss_weights=loss_weights,
        )
        return found if loss_weights is None else (found[0], jax.lax.stop_gradient(found[1]))

    def theirs(moving, loss_weights):
        z = moving["f"] @ moving["w"] / 0.7
        data = moving | {"labels": labels}
        each = tuple(definition((z, moving["z"]) if pair else z, data) for definition in definitions)
        reduced = tuple(table.reduced(one, reduction, moving["weights"]) for one in each)
        if loss_weights is None:
            return reduced
        total = sum(a * one for a, one in zip(loss_weights, reduced, strict=True))
        return total, jax.lax.stop_gradient(reduced)

    if loss_weights is None:
        cases.agreement(lambda m: ours(m, None), lambda m: theirs(m, None))(arrays_of_several())
    else:
        numbers = tuple(map(jnp.float64, loss_weights[: len(of_each)]))
        cases.agreement(ours, theirs)(arrays_of_several(), numbers)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.one_case_in(13)
def test_several_losses_of_one_pass(name, place, reduction):
    agreement_of_several(name, PLACEMENTS[place], reduction)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("place", [*PLACEMENTS][::-1])
@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.one_case_in(7)
def test_a_weighted_sum_of_losses_and_its_parts(name, place, reduction):
    agreement_of_several(name, PLACEMENTS[place], reduction, (1.0, -0.3, 0.5, 2.0))


@pytest.mark.usefixtures("x64")
def test_one_loss_in_a_tuple_and_the_same_loss_twice():
    x, w = (arrays_of_several()[name] for name in "fw")
    z = softjax.linear(x, w, block_size=5)
    (one,) = jax.jit(lambda z: softjax.of((losses.cross_entropy,), z, (LABELS,)))(z)
    np.testing.assert_allclose(one, plain_ce(x @ w, LABELS), rtol=1e-12)
    other = (LABELS + 1) % K
    both = losses.cross_entropy, losses.cross_entropy
    two = jax.jit(lambda z: softjax.of(both, z, (LABELS, other), loss_weights=None))(z)
    for got, y in zip(two, (LABELS, other), strict=True):
        np.testing.assert_allclose(got, plain_ce(x @ w, y), rtol=1e-12)


def test_losses_of_the_same_logits_share_one_pass():
    """The products of several losses are those of one."""
    both = losses.cross_entropy, losses.entropy

    def products(function):
        step = jax.value_and_grad(lambda x, w: function(softjax.linear(x, w, block_size=4)), (0, 1))
        found = equations(jax.make_jaxpr(step)(X, W).jaxpr)
        return sum(e.primitive is jax.lax.dot_general_p for e in found)

    several = lambda z: softjax.of(both, z, (LABELS, None), loss_weights=(1.0, 0.1), reduction="mean")[0]
    assert products(several) == products(lambda z: softjax.of(both[0], z, LABELS, reduction="mean"))


@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_several_losses_over_a_mesh(how):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x, w, y = X, W, LABELS

    def of(z, y):
        weighted, parts = softjax.of(
            (losses.cross_entropy, losses.brier, losses.entropy),
            z,
            (y, y, None),
            reduction="mean",
            loss_weights=FACTORS,
        )
        return weighted, parts

    if how == "jit":
        ours = lambda x, w: of(softjax.shard(softjax.linear(x, w), mesh, examples="data", classes="model"), y)
    else:
        local = lambda x, w, y: of(softjax.linear(x, w, axis_name="model", batch_axis_name="data"), y)
        over = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P(None, "model"), P("data")), out_specs=P())
        ours = lambda x, w: over(x, w, y)

    def theirs(x, w):
        z = x @ w
        each = plain_ce(z, y).mean(), brier(z, y).mean(), cases.entropy(z).mean()
        return sum(a * one for a, one in zip(FACTORS, each, strict=True)), each

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, w) for f in (ours, theirs))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


FACTORS = (1.0, -0.3, 0.5)


# --- gradients that nobody asks for --------------------------------------------------------------------

FROZEN = {
    "argnums": lambda loss: lambda x, w: jax.grad(loss)(x, w),
    "a constant": lambda loss: lambda x, w: jax.grad(lambda x: loss(x, w))(x),
    "stop_gradient": lambda loss: lambda x, w: jax.grad(lambda x: loss(x, jax.lax.stop_gradient(w)))(x),
    "under jit": lambda loss: lambda x, w: jax.grad(jax.jit(loss))(x, w),
    "forward mode": lambda loss: lambda x, w: jax.linearize(lambda x: loss(x, w), x)[1](x),
}
UNASKED = {
    "blocks, none": (5, "none"),
    "blocks, mean": (5, "mean"),
    "tiles, mean": (softjax.Placement(3, 5), "mean"),
    "forward, mean": (softjax.Placement(3, 5, "forward"), "mean"),
    "forward, sum of whole": (softjax.Placement(8, 5, "forward"), "sum"),
}


def shapes_of(function, *args):
    """The shapes of all arrays that a program makes; `stop_gradient` makes none."""
    made = (e for e in equations(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name != "stop_gradient")
    return {v.aval.shape for e in made for v in e.outvars}


@pytest.mark.parametrize("how", FROZEN)
@pytest.mark.parametrize("place", UNASKED)
@pytest.mark.each_value_once
def test_the_gradient_of_a_frozen_kernel_is_not_computed(place, how):
    """No array of its size is made, but where its gradient is wanted; and the other gradient is right."""
    size, reduction = UNASKED[place]
    loss = lambda x, w: ce(softjax.linear(x, w, block_size=size), LABELS, reduction=reduction).sum()
    assert (D, K) not in shapes_of(FROZEN[how](loss), X, W)
    assert (D, K) in shapes_of(jax.grad(loss, (0, 1)), X, W)
    defined = lambda x: plain_ce(x @ W, LABELS)
    want = jax.grad(lambda x: defined(x).mean() if reduction == "mean" else defined(x).sum())(X)
    want = (want * X).sum() if how == "forward mode" else want
    np.testing.assert_allclose(FROZEN[how](loss)(X, W), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", UNASKED)
@pytest.mark.one_case_in(2)
def test_the_gradient_of_frozen_features_is_not_computed(place):
    size, reduction = UNASKED[place]
    loss = lambda x, w: ce(softjax.linear(x, w, block_size=size), LABELS, reduction=reduction).sum()
    of_kernel = jax.grad(loss, 1)
    last = lambda function: [
        e
        for e in equations(jax.make_jaxpr(function)(X, W).jaxpr)
        if e.primitive is jax.lax.dot_general_p and e.outvars[0].aval.shape[-1:] == (D,)
    ]
    made = lambda function: [e for e in last(function) if e.outvars[0].aval.shape[0] in (3, 2, 8)]
    assert not made(of_kernel)
    assert made(jax.grad(loss, (0, 1)))
    defined = lambda w: plain_ce(X @ w, LABELS)
    want = jax.grad(lambda w: defined(w).mean() if reduction == "mean" else defined(w).sum())(W)
    np.testing.assert_allclose(of_kernel(X, W), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", UNASKED)
@pytest.mark.one_case_in(2)
def test_numbers_have_gradients_where_all_arrays_are_frozen(place):
    size, reduction = UNASKED[place]
    loss = lambda t: ce(softjax.linear(X, W, block_size=size) / t, LABELS, reduction=reduction).sum()
    defined = lambda t: plain_ce(X @ W / t, LABELS).mean() if reduction == "mean" else plain_ce(X @ W / t, LABELS).sum()
    np.testing.assert_allclose(jax.grad(loss)(0.7), jax.grad(defined)(0.7), rtol=1e-5)


@pytest.mark.parametrize("place", UNASKED)
@pytest.mark.one_case_in(2)
def test_a_frozen_teacher_has_no_gradient_and_no_room_for_one(place):
    size, reduction = UNASKED[place]
    u, v = r.normal(B, L, D + 1), r.normal(D + 1, K)

    def loss(x, w, freeze=jax.lax.stop_gradient):
        teacher = freeze(softjax.linear(u, v, block_size=size))
        return softjax.kl_divergence(teacher, softjax.linear(x, w, block_size=size), reduction=reduction).sum()

    shapes = shapes_of(jax.grad(loss, (0, 1)), X, W)
    assert (D + 1, K) not in shapes
    assert (D, K) in shapes
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(X, W)
    defined = lambda x, w: kl(u @ v, x @ w).mean() if reduction == "mean" else kl(u @ v, x @ w).sum()
    want = jax.jit(jax.value_and_grad(defined, (0, 1)))(X, W)
    chex.assert_trees_all_close((value, gradients), want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_frozen_kernel_takes_no_memory_for_a_gradient(reduction):
    n, d, k = 64, 64, 20_000
    x, w, y = r.normal(n, d), r.normal(d, k), r.integers(k, n)
    size = 512 if reduction == "none" else softjax.Placement(n, 512, "forward", 0)
    loss = lambda x, w: ce(softjax.linear(x, w, block_size=size), y, reduction=reduction).sum()

    def memory(argnums):
        found = jax.jit(jax.grad(loss, argnums)).lower(x, w).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    frozen, both = memory(0), memory((0, 1))
    assert frozen < 4 * d * k / 4
    assert both >= 4 * d * k


# --- over devices -------------------------------------------------------------------------------------


def composed(x, w, t, pairs, kept):
    return (softjax.linear(x, w, block_size=4).map(jnp.tanh) / t[..., None] + pairs).where_ids(kept)


def plain(x, w, t, pairs, kept):
    z = jnp.tanh(x @ w) / t[..., None] + pairs
    return jnp.where((kept[..., None] == jnp.arange(K)).any(-2), z, -jnp.inf)


def mean_of(made):
    def mean(x, w, t, pairs):
        return (
            ce(made(x, w, t, pairs, KEPT), LABELS)
            if made is composed
            else plain_ce(plain(x, w, t, pairs, KEPT), LABELS)
        ).mean()

    return jax.value_and_grad(mean, (0, 1, 2, 3))


PLACES = {
    "examples": (P("data"), P(), P("data"), P("data")),
    "classes": (P(), P(None, "model"), P(), P(None, None, "model")),
    "both": (P("data"), P(None, "model"), P("data"), P("data", None, "model")),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.each_value_once
def test_over_a_mesh(place, kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    args = [
        jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((X, W, T, PAIRS), PLACES[place], strict=True)
    ]
    rows = jax.jit(lambda *args: softjax.entropy(composed(*args, KEPT)))(*args)
    assert jax.typeof(rows).sharding.spec[0] == (PLACES[place][0][:1] or (None,))[0] or kind == AxisType.Auto
    taken = jax.jit(lambda *args: composed(*args, KEPT).take(KEPT).sum())(*args)
    at_kept = jnp.take_along_axis(plain(X, W, T, PAIRS, KEPT), KEPT, -1)
    np.testing.assert_allclose(taken, at_kept.sum(), rtol=1e-5)
    got = jax.jit(mean_of(composed))(*args)
    chex.assert_trees_all_close(got, jax.jit(mean_of(plain))(X, W, T, PAIRS), rtol=1e-5, atol=1e-6)


def test_inside_a_shard_map():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def local(x, w, t, pairs, kept, labels):
        z = softjax.linear(x, w, block_size=2, axis_name="model", batch_axis_name="data")
        z = (z.map(jnp.tanh) / t[..., None] + pairs).where_ids(kept)
        return ce(z, labels, reduction="mean")

    specs = P("data"), P(None, "model"), P("data"), P("data", None, "model"), P("data"), P("data")
    over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    mean = jax.value_and_grad(lambda *a: over(*a, KEPT, LABELS), (0, 1, 2, 3))
    chex.assert_trees_all_close(
        jax.jit(mean)(X, W, T, PAIRS), jax.jit(mean_of(plain))(X, W, T, PAIRS), rtol=1e-5, atol=1e-6
    )


# --- memory and digits --------------------------------------------------------------------------------


@pytest.mark.usefixtures("optimised")
def test_a_support_of_listed_classes_takes_no_more_memory():
    n, d, k, t = 64, 32, 20_000, 128
    x, w, y = r.normal(n, d), r.normal(d, k), r.integers(k, n)
    kept = jnp.concatenate([y[:, None], r.integers(k, n, t)], -1)

    def temporaries(made):
        step = jax.value_and_grad(lambda x, w: ce(made(softjax.linear(x, w, block_size=1024)), y).mean(), (0, 1))
        return jax.jit(step).lower(x, w).compile().memory_analysis().temp_size_in_bytes

    limited, whole = temporaries(lambda z: z.where_ids(kept)), temporaries(lambda z: z)
    assert limited < 1.5 * whole  # the mask of a block, and the positions of the listed ids in it
    assert limited < 4 * n * k


def test_distances_between_far_clusters_keep_their_digits():
    """The number that all classes have in common costs none, unless the logits are added to it."""
    far = 1e4 * (np.arange(K) % 2)[:, None]
    random = np.random.default_rng(0)
    c = (random.normal(size=(K, 2)) + far).astype(np.float32)
    z = (random.normal(size=(B, 2)) + far[:B]).astype(np.float32)
    labels = jnp.arange(B) + 2
    exact = lambda: plain_ce(jnp.asarray(-((z.astype(float)[:, None] - c.astype(float)) ** 2).sum(-1) / 4), labels)
    with jax.enable_x64(True):
        want = np.asarray(exact())
    np.testing.assert_allclose(ce(softjax.distances(z, c) / 4, labels), want, rtol=2e-6)


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_one_center_and_a_prior(d):
    """The distance and the prior of a single class are its logsumexp, with their gradients."""
    a = lambda x, prior: softjax.logsumexp(softjax.distances(x, jnp.zeros((1, d))) + prior, axis=-1).sum()
    value, (dx, dprior) = jax.jit(jax.value_and_grad(a, (0, 1)))(jnp.ones((1, d)), jnp.array([5.0]))
    np.testing.assert_allclose(value, 5.0 - d)
    np.testing.assert_allclose(dx, -2 * jnp.ones((1, d)))
    np.testing.assert_allclose(dprior, [1.0])


def test_nan_in_masked_classes_and_ignored_examples():
    w = W.at[:, 3].set(jnp.nan)
    labels = jnp.where(LABELS == 3, 4, LABELS).at[0, 0].set(-1)
    x, t = X.at[0, 0].set(jnp.nan), T.at[0, 0].set(0)

    def loss(x, w, t):
        z = softjax.linear(x, w).where(jnp.arange(K) != 3) / t[..., None]
        return ce(z, labels, ignore_index=-1, reduction="mean")

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, w, t)
    z = jnp.delete(X @ W, 3, -1) / T[..., None]
    each = plain_ce(z, jnp.where(labels > 3, labels - 1, labels)).at[0, 0].set(0)
    np.testing.assert_allclose(value, each.sum() / (B * L - 1), rtol=1e-5)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    assert not gradients[1][:, 3].any()


def test_a_mask_of_examples():
    mask = jnp.array([True, False, True, True])[:, None, None]
    of = lambda w: softjax.logsumexp(softjax.linear(X, w).where(mask), axis=-1)
    ct = r.normal(B, L)
    value, gradient = jax.jit(lambda w: (of(w), jax.vjp(of, w)[1](ct)[0]))(W)
    np.testing.assert_allclose(value, jnp.where(mask[..., 0], jax.nn.logsumexp(X @ W, -1), -jnp.inf), rtol=1e-6)
    defined = jax.vjp(lambda w: jnp.where(mask[..., 0], jax.nn.logsumexp(X @ w, -1), 0), W)[1](ct)[0]
    np.testing.assert_allclose(gradient, defined, rtol=1e-4, atol=1e-6)
    assert not softjax.argmax(softjax.linear(X, W).where(False) + 1).max() >= 0


def test_best_classes_and_samples():
    z, dense = head(X, W, T), jnp.tanh(X @ W) / T[..., None]
    np.testing.assert_array_equal(softjax.argmax(z), dense.argmax(-1))
    best = softjax.top_k(z.where_ids(KEPT), 3)
    kept = jnp.where((KEPT[..., None] == jnp.arange(K)).any(-2), dense, -jnp.inf)
    np.testing.assert_allclose(best.logits, jax.lax.top_k(kept, 3)[0], rtol=1e-6)
    key = jax.random.key(3)
    np.testing.assert_array_equal(softjax.sample(key, z, shape=5), softjax.sample(key, z.dense(), shape=5))
    found = softjax.metrics(z, LABELS)
    np.testing.assert_array_equal(found.predicted, dense.argmax(-1))
    np.testing.assert_allclose(found.log_prob, -plain_ce(dense, LABELS), rtol=1e-5)
    log_probs, entropies = softjax.log_probs(z, KEPT, entropy=True)
    log_p = jax.nn.log_softmax(dense)
    np.testing.assert_allclose(log_probs, jnp.take_along_axis(log_p, KEPT, -1), rtol=1e-5)
    np.testing.assert_allclose(entropies, -(jnp.exp(log_p) * log_p).sum(-1), rtol=1e-5)
    assert jnp.isnan(softjax.log_probs(z, KEPT.at[0, 0, 0].set(K))).tolist()[0][0] == [True, False, False, False]


UNEQUAL = jnp.logical_or(PAIRS > 0, jnp.arange(K) == LABELS[..., None])
UNEQUAL_IDS = jnp.where(UNEQUAL, jnp.arange(K), -1)
UNEQUALLY = {  # logits of which each example has the classes of `UNEQUAL`
    "pairs": lambda z: z.where(UNEQUAL),
    "ids": lambda z: z.where_ids(UNEQUAL_IDS),
    "a function": lambda z: z.where(lambda n, k: UNEQUAL.reshape(-1, K)[n, k]),
    "an added array": lambda z: z + jnp.where(UNEQUAL, 0, -jnp.inf),
    "an array, added to": lambda z: (jnp.where(UNEQUAL, 0, -jnp.inf) - (-z)) / 1,
    "an added bias and a mask": lambda z: (z + jnp.where(jnp.arange(K) == 20, -jnp.inf, 0.0)).where(UNEQUAL),
    "an array": lambda z: jnp.where(UNEQUAL, z.dense(), -jnp.inf),
    "a map": lambda z: z.where(UNEQUAL).map(lambda a, b: a + 0 * b, PAIRS),
}


@ft.cache
def smoothed_unequally():
    """The definition of the weighted mean and its gradients, of the rate too."""

    def defined(x, w, rate):
        z = jnp.where(UNEQUAL, x @ w, -jnp.inf)
        a = jax.nn.logsumexp(z, -1)
        costs = jnp.where(UNEQUAL, a[..., None] - x @ w, 0)
        at_label = jnp.take_along_axis(costs, LABELS[..., None], -1)[..., 0]
        each = (1 - rate) * at_label + rate * costs.sum(-1) / UNEQUAL.sum(-1).astype(x.dtype) + 0.01 * a**2
        return (T * each).sum() / T.sum()

    return jax.jit(jax.value_and_grad(defined, (0, 1, 2)))(X, W, 0.1)


@pytest.mark.parametrize("how", UNEQUALLY)
def test_smoothing_is_over_the_classes_that_an_example_has(how):
    """1 / their number, which differs between examples: the mask may be in any place."""

    def ours(x, w, rate):
        z = UNEQUALLY[how](softjax.linear(x, w, block_size=5))
        return ce(z, LABELS, label_smoothing=rate, z_loss=0.01, weights=T, reduction="mean")

    got = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(X, W, 0.1)
    chex.assert_trees_all_close(got, smoothed_unequally(), rtol=2e-5, atol=1e-6)


# --- dense data of logits that are not in memory -----------------------------------------------------------


VALUES = {  # (values of the classes, or of each example and class; what they are of the arrays)
    "of classes": (lambda t, v, u: v, lambda t, v, u: v),
    "of pairs": (lambda t, v, u: t, lambda t, v, u: t),
    "of an example": (lambda t, v, u: t[0, 0] + v, lambda t, v, u: t[0, 0] + v),
    "logits": (lambda t, v, u: softjax.linear(t[..., :D], u) / 0.7 + v, lambda t, v, u: t[..., :D] @ u / 0.7 + v),
    "distances": (
        lambda t, v, u: softjax.distances(t[..., :D], u.T),
        lambda t, v, u: table.distance_scores(t[..., :D], u.T),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dense", [False, True], ids=["Logits", "an array"])
@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.each_value_once
def test_expectations_of_all_kinds_of_values(name, place, dense):
    """Under logits that are not in memory, or of values that are not, in all modes."""
    (values, plain_values), g = VALUES[name], cases.Random("float64", 3)
    size = PLACEMENTS[place]

    def ours(x, w, t, v, u):
        z = x @ w if dense else softjax.linear(x, w, block_size=size).map(jnp.tanh)
        return softjax.expectation(z, values(t, v, u))

    def theirs(x, w, t, v, u):
        z = x @ w if dense else jnp.tanh(x @ w)
        return (cases.softmax(z) * jnp.broadcast_to(plain_values(t, v, u), z.shape)).sum(-1)

    moving = g.normal(B, L, D), g.normal(D, K), g.normal(B, L, K), g.normal(K), g.normal(D, K)
    cases.agreement(ours, theirs)(*moving)


def test_the_expectation_of_values_that_all_classes_have_in_common():
    total = lambda x: softjax.expectation(softjax.linear(x, W), PAIRS[..., :1]).sum()
    value, gradient = jax.jit(jax.value_and_grad(total))(X)
    np.testing.assert_allclose(value, PAIRS[..., 0].sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros_like(X), atol=1e-6)


def test_the_expectation_of_infinite_values_of_masked_classes():
    live = jnp.arange(K) % 3 != 1
    z, p = LOGITS.where(live), jax.nn.softmax(jnp.where(live, X @ W, -jnp.inf))
    of_pairs, of_class = jnp.where(live, PAIRS, jnp.inf), jnp.where(live, PAIRS[0, 0], jnp.nan)
    np.testing.assert_allclose(
        softjax.expectation(z, of_pairs), (p * jnp.where(live, PAIRS, 0)).sum(-1), rtol=1e-4, atol=1e-6
    )
    want = (p * jnp.where(live, PAIRS[0, 0], 0)).sum(-1)
    np.testing.assert_allclose(softjax.expectation(z, of_class), want, rtol=1e-4, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: softjax.expectation(softjax.linear(x, W).where(live), of_pairs).sum()))(X)
    assert bool(jnp.isfinite(gradient).all())


SOFT = {  # labels of arrays y [..., K] and of the classes [K]
    "of pairs": lambda y, c: y,
    "of classes": lambda y, c: c,
    "of a part of the batch": lambda y, c: y[0],
    "an axis of 1": lambda y, c: y[:, :1],
}
KEEPING = {
    "all": None,
    "examples": jnp.arange(B * L).reshape(B, L) % 3 != 1,
    "examples, with an axis more": (jnp.arange(B * L).reshape(B, L) % 3 != 1)[..., None],
    "classes": jnp.arange(K) % 3 != 1,
    "pairs": UNEQUAL,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("where", KEEPING)
@pytest.mark.parametrize("name", SOFT)
@pytest.mark.each_value_once
def test_soft_labels_of_logits_that_are_not_in_memory(name, where):
    """In all modes; labels of masked classes count for nothing."""
    g, mask = cases.Random("float64", 3), KEEPING[where]
    of_classes = None if mask is None or where.startswith("examples") else mask
    kept = mask if where == "examples" else mask[..., 0] if where.startswith("examples") else None

    def labels(y, c):
        y = SOFT[name](y, c)
        return y if of_classes is None else jnp.where(of_classes, y, 0)

    def ours(x, w, y, c):
        return softjax.softmax_cross_entropy(softjax.linear(x, w, block_size=5) / 0.7, SOFT[name](y, c), where=mask)

    def theirs(x, w, y, c):
        z = x @ w / 0.7
        a = cases.log_sum_exp(z if of_classes is None else jnp.where(of_classes, z, -jnp.inf))
        cost = (labels(y, c) * (a[..., None] - z)).sum(-1)
        return cost if kept is None else jnp.where(kept, cost, 0)

    cases.agreement(ours, theirs)(g.normal(B, L, D), g.normal(D, K), g.normal(B, L, K), g.normal(K))


def test_a_soft_label_on_a_masked_class_costs_infinity_and_0_costs_nothing():
    live, y = jnp.arange(K) != 3, jnp.full((B, L, K), 1 / K).at[0, 0, 3].set(0)
    got = softjax.softmax_cross_entropy(LOGITS.map(lambda z: z).where(live), y)
    assert bool(jnp.isfinite(got[0, 0]))
    assert bool(jnp.isposinf(got.ravel()[1:]).all())
    pair = jnp.stack([LABELS, LABELS], -1), jnp.full((B, L, 2), 0.5)
    np.testing.assert_allclose(softjax.softmax_cross_entropy(LOGITS, pair), plain_ce(X @ W, LABELS), rtol=1e-5)


HINGES = {
    "multiclass_svm_loss": (softjax.multiclass_svm_loss, table.multiclass_svm_loss),
    "multiclass_hinge_loss": (softjax.multiclass_hinge_loss, table.multiclass_hinge_loss),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("name", HINGES)
@pytest.mark.one_case_in(3)
def test_hinges_of_logits_that_are_not_in_memory(name, place):
    (ours, definition), g = HINGES[name], cases.Random("float64", 4)
    function = lambda x, w, t, m: ours(
        softjax.linear(x, w, block_size=PLACEMENTS[place]).map(jnp.tanh) / t[..., None], LABELS, margin=m
    )
    defined = lambda x, w, t, m: definition(jnp.tanh(x @ w) / t[..., None], LABELS, margin=m)
    moving = g.normal(B, L, D), g.normal(D, K), jnp.exp(0.3 * g.normal(B, L)), jnp.float64(0.7)
    cases.agreement(function, defined)(*moving)


TWICE = {
    "with an array": lambda z, b: z + b,
    "of a function": lambda z, b: z.map(lambda z, b: jnp.sin(z) * 1.3 + b, b),
}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("jitted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["eager", "jit"])
@pytest.mark.parametrize("how", TWICE)
def test_the_hinge_of_logits_that_are_computed_twice(how, jitted):
    """The backward pass may round them in another way; one class and the label have all of the gradient."""
    n, d, k = 256, 64, 1000
    g = cases.Random("float32", 0)
    x, w, y, b = g.normal(n, d), g.normal(d, k, scale=1 / 8), g.integers(k, n), jnp.zeros((n, k))
    loss = lambda b: softjax.multiclass_hinge_loss(TWICE[how](softjax.linear(x, w, block_size=128), b), y).sum()
    gradient = (jax.jit if jitted else lambda f: f)(jax.grad(loss))(b)
    z = TWICE["with an array"](x @ w, b) if how == "with an array" else jnp.sin(x @ w) * 1.3
    at_label = jnp.take_along_axis(z, y[:, None], 1)
    others = jnp.where(jax.nn.one_hot(y, k, dtype=bool), -jnp.inf, z)
    over = (others.max(-1) - at_label[:, 0] + 1 > 0)[:, None]
    close = others.max(-1, keepdims=True) - others < 1e-5  # the largest may be another, after rounding
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_allclose(jnp.where(close, gradient, 0).sum(-1), over[:, 0].astype(b.dtype), rtol=1e-5)
    np.testing.assert_allclose(jnp.take_along_axis(gradient, y[:, None], 1), -over.astype(b.dtype), rtol=1e-5)


@pytest.mark.parametrize("name", HINGES)
def test_hinges_without_masked_classes_and_of_unknown_labels(name):
    ours, definition = HINGES[name]
    live = jnp.arange(K) != 3
    labels = jnp.where(LABELS == 3, 4, LABELS)
    got = jax.jit(ours)(LOGITS.where(live), labels)
    want = definition(jnp.delete(X @ W, 3, -1), jnp.where(labels > 3, labels - 1, labels))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    unknown = labels.at[0, 0].set(K).at[1, 1].set(-1)
    total = lambda x: ours(softjax.linear(x, W), unknown)[1:].sum()
    value, gradient = jax.jit(jax.value_and_grad(total))(X.at[1].set(0))
    assert bool(jnp.isnan(value))
    assert bool(jnp.isnan(gradient[1, 1]).all())
    assert bool(jnp.isfinite(gradient[2:]).all())


def test_options_of_the_cross_entropy():
    weights = jnp.exp(r.normal(B, L))
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "weights": weights, "ignore_index": int(LABELS[0, 0])}
    for z in (LOGITS, X @ W):
        got = ce(z, LABELS, reduction="mean", **options)
        log_p, kept = jax.nn.log_softmax(X @ W), (LABELS[0, 0] != LABELS).astype(X.dtype)
        each = 0.9 * plain_ce(X @ W, LABELS) - 0.1 * log_p.mean(-1) + 0.01 * jax.nn.logsumexp(X @ W, -1) ** 2
        np.testing.assert_allclose(got, (kept * weights * each).sum() / (kept * weights).sum(), rtol=1e-5)


def test_a_loss_of_ones_own():
    cosine = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    z = softjax.linear(cosine(X), cosine(W.T), class_axis=0) / 0.07
    dense = cosine(X) @ cosine(W.T).T / 0.07
    p = jax.nn.softmax(dense)
    want = ((p - jax.nn.one_hot(LABELS, K)) ** 2).sum(-1)
    np.testing.assert_allclose(softjax.of(softjax.losses.brier, z, LABELS), want, rtol=1e-4)
