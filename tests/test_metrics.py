"""What a trainer logs, and log-probabilities of tokens with entropies, beside their definitions."""

import functools as ft
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import Placement
from softjax.sums import entropy

from . import cases, spelled, table

N, D, K = 6, 3, 13
LIVE = np.arange(K) % 5 != 2
PLACEMENTS = {
    "whole": None,
    "blocks": 4,
    "tiles": Placement(4, 5),
    "forward": Placement(4, 5, "forward"),
    "some kept": Placement(4, 5, "forward", 5),
}
every_placement = pytest.mark.parametrize("block_size", PLACEMENTS.values(), ids=PLACEMENTS)
ce = spelled.linear_softmax_cross_entropy


def arguments(dtype="float64", n=N):
    r = cases.Random(dtype, seed=2)
    return r.normal(n, D), r.normal(D, K), r.normal(K), jnp.asarray([0, 3, 11, 4, 1, 9, 5, 6], jnp.int32)[:n]


def in_numpy(*args):
    return tuple(np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else np.asarray(a) for a in args)


def assert_metrics(got, want, rtol=1e-9):
    assert isinstance(got, softjax.Metrics)
    for name, a, b in zip(got._fields, got, want, strict=True):
        if name in ("predicted", "correct"):
            assert a.dtype == (jnp.int32 if name == "predicted" else bool)
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, err_msg=name)


OPTIONS = {
    "none": {},
    "logits": {"where": LIVE, "softcap": 3.0, "temperature": 0.7, "z_loss": 0.1},
    "labels": {"label_smoothing": 0.1, "ignore_index": 3, "z_loss": 0.01},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_placement
@pytest.mark.each_value_once
def test_metrics_loss_and_gradient(block_size, options, reduction):
    x, w, b, y = arguments()
    call = lambda x, w, b: ce(x, w, y, bias=b, reduction=reduction, has_aux=True, block_size=block_size, **options)
    define = ft.partial(table.linear_softmax_cross_entropy, reduction=reduction, **options)

    @cases.compiled
    def run(x, w, b):
        loss, back, metrics = jax.vjp(call, x, w, b, has_aux=True)
        return loss, metrics, back(jnp.arange(1.0, 1.0 + loss.size).reshape(loss.shape))

    loss, metrics, gradients = run(x, w, b)
    x_, w_, b_, y_ = in_numpy(x, w, b, y)
    want, aux = define(x_, w_, y_, bias=b_, has_aux=True)
    np.testing.assert_allclose(loss, want, rtol=1e-9)
    assert_metrics(metrics, aux)
    _, back = jax.vjp(lambda x, w, b: define(x, w, y, bias=b), x, w, b)
    cases.assert_close(gradients, back(jnp.arange(1.0, 1.0 + loss.size).reshape(loss.shape)), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@every_placement
def test_metrics_of_pairs(block_size):
    x, w, b, _ = arguments()
    r = cases.Random("float64", seed=3)
    pair = r.integers(K, N, 3).at[:, 1].set(jnp.argmax(x @ w + b, -1).astype(jnp.int32)), jnp.abs(r.normal(N, 3))
    pair = pair[0].at[:, 2].set((pair[0][:, 0] + 1) % K), pair[1]  # no class twice
    pair = pair[0].at[:, 0].set((pair[0][:, 1] + 5) % K), pair[1].at[0].set(jnp.array([0.0, 1.0, 0.0]))
    reduction = "mean" if block_size is PLACEMENTS["forward"] else "none"
    _, got = ce(x, w, pair, bias=b, has_aux=True, block_size=block_size, reduction=reduction)
    x, w, b = in_numpy(x, w, b)
    _, want = table.linear_softmax_cross_entropy(x, w, tuple(map(np.asarray, pair)), bias=b, has_aux=True)
    assert_metrics(got, want)
    assert 0 < got.correct.sum() < N


@pytest.mark.usefixtures("x64")
def test_metrics_have_no_derivative_and_the_loss_beside_them_has_every_mode():
    x, w, b, y = arguments()
    every = lambda m: m.log_prob + m.logsumexp + m.z_loss + m.entropy
    f = lambda x, w: ce(x, w, y, z_loss=0.1, has_aux=True, reduction="mean", block_size=PLACEMENTS["forward"])
    plain = lambda x, w: ce(x, w, y, z_loss=0.1, reduction="mean")
    one = lambda x, y: ce(x, w, y, bias=b, has_aux=True, block_size=4)

    @cases.compiled
    def run(x, w):
        along = lambda f: jax.jvp(jax.grad(f, (0, 1)), (x, w), (w.T[:N], x.T @ jnp.ones((N, K))))
        return {
            "used": jax.grad(lambda x, w: f(x, w)[0] + 1e-3 * every(f(x, w)[1]).sum(), (0, 1))(x, w),
            "beside": (jax.grad(lambda x, w: f(x, w)[0], (0, 1))(x, w), jax.grad(plain, (0, 1))(x, w)),
            "tangents": every(jax.jvp(f, (x, w), (x, w))[1][1]),
            "of the loss": (along(lambda x, w: f(x, w)[0]), along(plain)),
            "of each": (jax.vmap(one)(x, y), one(x, y)),
        }

    found = run(x, w)
    # not a gradient that lacks a part
    assert all(jnp.isnan(a).all() for a in jax.tree.leaves((found["used"], found["tangents"])))
    cases.assert_close(*found["beside"], rtol=1e-9)
    cases.assert_close(*found["of the loss"], rtol=1e-9)
    cases.assert_close(*found["of each"], rtol=1e-9)


def test_ties_predict_the_first_class():
    x, w = jnp.ones((3, 1)), jnp.zeros((1, K))
    for block_size in PLACEMENTS.values():
        _, metrics = ce(x, w, jnp.array([0, 1, 0]), where=np.arange(K) > 0, has_aux=True, block_size=block_size)
        assert metrics.predicted.tolist() == [1, 1, 1]
        assert metrics.correct.tolist() == [False, True, False]


def test_labels_out_of_range_ignored_examples_and_rows_without_classes():
    x, w, _, _ = arguments("float32")
    x = x.at[1].set(jnp.nan)
    y = jnp.asarray([K, -7, 2, 2, 2, 2])
    _, m = ce(x, w, y, ignore_index=-7, has_aux=True, z_loss=0.1, block_size=4)
    assert jnp.isnan(m.log_prob).tolist() == [True] + 5 * [False]
    assert jnp.isfinite(m.entropy).all()
    assert not m.correct[:2].any()
    assert [float(a[1]) for a in m] == [0, 0, 0, 0, -1, 0]
    _, m = ce(x[2:], w, y[2:], where=np.zeros(K, bool), has_aux=True, z_loss=0.1, block_size=4)
    assert jnp.isneginf(jnp.stack([m.log_prob, m.logsumexp, m.entropy])).all()
    assert (m.z_loss == 0).all()
    assert (m.predicted == -1).all()
    assert not m.correct.any()


# --- confident rows -----------------------------------------------------------------------------------

GAPS = np.array([3.0, 10.0, 17.0, 40.0, 80.0], np.float32)


def sure_rows(offset):
    """Scores (offset, offset - gap, offset - gap - 1), exact in float32, with the top class last."""
    z = offset - np.stack([GAPS + 1, GAPS, 0 * GAPS], -1)
    return jnp.eye(len(GAPS)), jnp.asarray(z.astype(np.float32)), z.astype(np.float64)


def exact_entropy(z):
    """In float64, without the cancellation of A - E_p[z]."""
    below = z.max(-1, keepdims=True) - z
    w = np.exp(-below)
    r = np.where(below == 0, 0, w).sum(-1)
    return np.log1p(r) + (w * below).sum(-1) / (1 + r)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("block_size", [None, 1, 2, Placement(2, 1, "forward")])
@pytest.mark.each_value_once
def test_sure_rows_keep_the_digits_of_entropy_and_log_probability(block_size, offset):
    x, w, z = sure_rows(offset)
    want = exact_entropy(z)
    assert want[2] < 1.1e-6
    y = jnp.full(len(GAPS), 2)
    reduction = "mean" if isinstance(block_size, Placement) else "none"
    _, metrics = jax.jit(lambda x, w: ce(x, w, y, has_aux=True, block_size=block_size, reduction=reduction))(x, w)
    np.testing.assert_allclose(metrics.entropy, want, rtol=1e-6)
    np.testing.assert_allclose(-metrics.log_prob, np.log1p(np.exp(-GAPS.astype(float)) * (1 + np.exp(-1))), rtol=1e-6)
    _, entropies = jax.jit(lambda x, w: spelled.linear_log_probs(x, w, y, entropy=True, block_size=block_size))(x, w)
    np.testing.assert_allclose(entropies, want, rtol=1e-6)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("block_size", [None, 1, Placement(2, 2)])
def test_sure_rows_keep_the_digits_of_the_gradient_of_the_entropy(block_size):
    """dH / dz_k = -p_k (z_k - E_p[z]): of the last kernel column too, where it is the sum of the others."""
    x, w, z = sure_rows(10.0)
    f = lambda w: spelled.linear_log_probs(x, w, jnp.zeros(len(GAPS), int), entropy=True, block_size=block_size)[1]
    got = jax.jit(jax.grad(lambda w: f(w).sum()))(w)
    below = z.max(-1, keepdims=True) - z
    p = np.exp(-below) / np.exp(-below).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, p * (below - (p * below).sum(-1, keepdims=True)), rtol=3e-6)


# --- log-probabilities --------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 4, Placement(4, 5)], ids=["whole", "blocks", "tiles"])
@pytest.mark.parametrize("options", [{}, {"where": LIVE, "softcap": 3.0, "temperature": 0.7, "ignore_index": 3}])
@pytest.mark.each_value_once
def test_log_probabilities_and_entropies_in_every_mode(options, block_size):
    x, w, b, y = arguments()
    cases.agreement(
        lambda *args: spelled.linear_log_probs(*args, entropy=True, block_size=block_size, **options),
        lambda *args: table.linear_log_probs(*args, entropy=True, **options),
    )(x, w, y, b)


@pytest.mark.usefixtures("x64")
def test_the_entropy_in_a_scan_that_is_differentiated_twice():
    """JAX drops the custom rule there."""
    x, w, b, y = arguments()

    def total(log_probs):
        def step(carry, scale):
            log_p, entropy = log_probs(x * scale, w * carry, y, b, entropy=True)
            return carry + 0.01 * (log_p + entropy * entropy).sum(), None

        return lambda s: jax.lax.scan(step, s, jnp.arange(1.0, 3.0))[0]

    both = lambda slope: lambda s: (jax.grad(slope)(s), jax.jacfwd(slope)(s))
    ours, theirs = (both(jax.grad(total(f))) for f in (spelled.linear_log_probs, table.linear_log_probs))
    np.testing.assert_allclose(cases.compiled(ours)(1.0), cases.compiled(theirs)(1.0), rtol=1e-9)


def test_half_precision_has_results_in_float32():
    x, w, b, y = arguments("bfloat16")
    log_probs, entropies = spelled.linear_log_probs(x, w, y, b, entropy=True, block_size=4)
    want = table.linear_log_probs(*in_numpy(x, w, y, b), entropy=True)
    for got, right in zip((log_probs, entropies), want, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, right, rtol=1e-5)


@pytest.mark.parametrize("kept", [0, None])
@pytest.mark.one_case_in(2)
def test_metrics_with_scores_that_are_kept_in_half_precision(kept):
    """The scores that the gradient keeps are rounded; those of the metrics are not."""
    x, w, _, y = arguments("bfloat16")
    options = {"reduction": "mean", "block_size": Placement(N, 4, "forward", kept), "precision": "default"}
    run = lambda **more: cases.compiled(
        jax.value_and_grad(lambda x, w: ce(x, w, y, **options, **more), (0, 1), has_aux="has_aux" in more)
    )(x, w)
    (loss, metrics), gradients = run(has_aux=True)
    x_, w_, y_ = in_numpy(x, w, y)
    want, aux = table.linear_softmax_cross_entropy(x_, w_, y_, reduction="mean", has_aux=True)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert_metrics(metrics, aux, rtol=1e-5)
    cases.assert_close(gradients, run()[1], rtol=1e-6)


@pytest.mark.usefixtures("optimised")
def test_no_array_has_the_size_of_the_scores():
    """Forward and backward, of 64 x 16384 scores: 4 MB."""
    x, w, y = jnp.ones((64, 8)), jnp.ones((8, 16384)), jnp.zeros(64, int)

    def both(x, w):
        log_probs, entropies = spelled.linear_log_probs(x, w, y, entropy=True, block_size=512)
        loss, metrics = ce(x, w, y, has_aux=True, block_size=512)
        return (log_probs + entropies + loss).sum(), metrics

    compiled = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True)).lower(x, w).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 16384 * 4 / 2


# --- one pass, and devices ----------------------------------------------------------------------------


def program(has_aux, block_size, reduction):
    """The compiled value, metrics and gradients."""
    x, w, y = jnp.ones((64, 32)), jnp.ones((32, 256)), jnp.zeros(64, int)

    def f(x, w):
        out = ce(x, w, y, has_aux=has_aux, block_size=block_size, reduction=reduction)
        loss, metrics = out if has_aux else (out, None)
        return loss.sum(), metrics

    return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True)).lower(x, w).compile()


def products(compiled):
    return len(re.findall(r" dot\(", compiled.as_text()))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("block_size", "reduction", "wanted"),
    [
        (Placement(64, 256, "forward"), "mean", 3),
        (Placement(64, 64, "forward"), "mean", 1 + 1 + 2 + 2),  # the first block is outside of the loop of the others
        (Placement(64, 64), "none", 1 + 1 + 3),
    ],
)
def test_metrics_take_no_matrix_product_more(block_size, reduction, wanted):
    plain, observed = (program(has_aux, block_size, reduction) for has_aux in (False, True))
    assert products(plain) == products(observed) == wanted
    more = observed.cost_analysis()["flops"] - plain.cost_analysis()["flops"]
    assert more < 0.2 * 2 * 64 * 32 * 256
    assert observed.memory_analysis().temp_size_in_bytes < 1.6 * plain.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_metrics_over_a_mesh(reduction):
    """Of 13 classes 4 devices have 4, 4, 4 and 1."""
    x, w, b, y = arguments(n=8)
    b = b.at[:].add(-20)
    options = {"where": LIVE, "z_loss": 0.1, "reduction": reduction, "has_aux": True}
    x_, w_, b_, y_ = in_numpy(x, w, b, y)
    want, aux = table.linear_softmax_cross_entropy(x_, w_, y_, bias=b_, **options)
    definition = lambda x, w: table.linear_softmax_cross_entropy(x, w, y, bias=b, **{**options, "has_aux": False})
    wanted = cases.compiled(jax.grad(lambda x, w: definition(x, w).sum(), (0, 1)))(x, w)
    for shape in ((2, 4), (1, 8)):
        over = {"mesh": cases.mesh(*shape), "class_axis_name": "classes", "batch_axis_name": "data"}
        f = lambda x, w, over=over: spelled.linear_softmax_cross_entropy(x, w, y, bias=b, **options, **over)

        @cases.compiled
        def run(x, w, f=f):
            loss, back, metrics = jax.vjp(f, x, w, has_aux=True)
            return loss, metrics, back(jnp.ones_like(loss))

        loss, metrics, gradients = run(x, w)
        np.testing.assert_allclose(loss, want, rtol=1e-9)
        assert_metrics(metrics, aux)
        cases.assert_close(gradients, wanted, rtol=1e-9)


def test_ties_over_a_mesh_predict_the_first_class():
    over = {"mesh": cases.mesh(1, 8), "class_axis_name": "classes", "batch_axis_name": "data"}
    x, w, y = jnp.ones((3, 1)), jnp.zeros((1, K)), jnp.array([0, 5, 0])
    _, metrics = spelled.linear_softmax_cross_entropy(x, w, y, where=np.arange(K) > 4, has_aux=True, **over)
    assert metrics.predicted.tolist() == [5, 5, 5]


# --- planted faults -----------------------------------------------------------------------------------


def fails(test, *args):
    try:
        test(*args)
    except AssertionError:
        return True
    return False


@pytest.mark.usefixtures("optimised")
def test_a_second_pass_is_found(monkeypatch):
    """An entropy from logits of its own."""

    def twice(x, w, y, *, has_aux=False, **options):
        out = spelled.linear_softmax_cross_entropy(x, w, y, **options)
        return (out, spelled.of_linear(softjax.losses.entropy, x, w, block_size=64)) if has_aux else out

    monkeypatch.setitem(globals(), "ce", twice)
    assert fails(test_metrics_take_no_matrix_product_more, Placement(64, 64), "none", 5)


@pytest.mark.slow  # every fault is a compilation of its own
def test_planted_faults_are_found(monkeypatch):
    def planted(module, name, fault, test, *args):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fault)
            jax.clear_caches()
            assert fails(test, *args), (name, test)
        jax.clear_caches()

    relative_to, of_logits, largest = entropy._relative_to, entropy.OfLogits, entropy.largest
    pull, close = of_logits.pull, of_logits.close
    unshifted = lambda m, total, a: jnp.exp(a.m - m) * total.below
    larger = lambda *args: 1.001 * relative_to(*args)

    def wrong_pull(*args):
        dh, wanted = pull(*args)
        return None if dh is None else 1.001 * dh, wanted

    def closed(fault):
        def of(total, a):
            right = close(total, a)
            return right._replace(value=fault(right.value, a.log.value))

        return staticmethod(of)

    last = lambda h: (largest(h)[0], h.shape[-1] - 1 - largest(h[..., ::-1])[1])
    with jax.enable_x64(True):
        planted(entropy, "_relative_to", unshifted, test_metrics_loss_and_gradient, 4, {}, "none")
        planted(entropy, "_relative_to", larger, test_metrics_over_a_mesh, "none")
        entropies_in_every_mode = test_log_probabilities_and_entropies_in_every_mode
        planted(of_logits, "pull", staticmethod(wrong_pull), entropies_in_every_mode, {}, 4)
        planted(of_logits, "close", closed(lambda h, a: 1.001 * h), test_metrics_of_pairs, 4)
    planted(entropy, "largest", last, test_ties_predict_the_first_class)
    naive = closed(lambda h, a: a - (a - h))
    planted(of_logits, "close", naive, test_sure_rows_keep_the_digits_of_entropy_and_log_probability, 1, 1e4)
