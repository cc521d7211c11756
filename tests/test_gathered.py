"""Logits of few classes that each example lists, which are gathered: the same as all others masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax.logits import gathered

from . import cases

pytestmark = pytest.mark.usefixtures("x64")
N, T, D = 5, 2, 3
K = T * gathered.FEW_OF + 1
# An id twice, none, the first class and the last.
IDS = np.asarray([[7, 7], [-1, 3], [0, K - 1], [K - 1, 5], [11, 2]], np.int32)
LABELS = np.asarray([7, 3, 0, 5, 11], np.int32)
LISTED = (IDS[..., None] == np.arange(K)).any(1)
ARRAYS = lambda r: (r.normal(N, D), r.normal(K, D), r.normal(K))


def linear(x, w, b):
    return (softjax.linear(x, w, class_axis=0) * 1.5 + b).where_ids(IDS)


def distances(x, w, b):
    return (softjax.distances(x, w) + b).where_ids(IDS)


def masked(z):
    return jnp.where(LISTED, z, -jnp.inf)


def linear_in_memory(x, w, b):
    return masked(1.5 * (x @ w.T) + b)


def distances_in_memory(x, w, b):
    return masked(-((x[:, None] - w) ** 2).sum(-1) + b)


def log_p(z):
    return z - jax.nn.logsumexp(z, -1, keepdims=True)


def p_log_p(z):
    return jnp.where(LISTED, jnp.exp(jnp.where(LISTED, log_p(z), 0)) * jnp.where(LISTED, log_p(z), 0), 0)


at = lambda a, labels: jnp.take_along_axis(a, labels[:, None], 1)[:, 0]
values = np.sin(np.arange(K))
ce = softjax.softmax_cross_entropy_with_integer_labels
FUNCTIONS = {
    "logsumexp": (lambda z: softjax.logsumexp(z, -1), lambda z: jax.nn.logsumexp(z, -1)),
    "entropy": (softjax.entropy, lambda z: -p_log_p(z).sum(-1)),
    "cross entropy": (lambda z: ce(z, LABELS), lambda z: -at(log_p(z), LABELS)),
    "smoothed mean": (
        lambda z: ce(z, LABELS, label_smoothing=0.2, ignore_index=3, reduction="mean"),
        lambda z: (
            jnp.where(
                LABELS == 3,
                0.0,
                -0.8 * at(log_p(z), LABELS)
                - 0.2 * jnp.where(LISTED, log_p(z), 0).sum(-1) / LISTED.sum(-1).astype(float),
            ).sum()
            / 4
        ),
    ),
    "log-probabilities": (
        lambda z: softjax.log_probs(z, np.stack([LABELS, LABELS], 1)),
        lambda z: jnp.stack([at(log_p(z), LABELS)] * 2, 1),
    ),
    "expectation": (
        lambda z: softjax.expectation(z, values),
        lambda z: (jnp.exp(log_p(z)) * values).sum(-1),
    ),
}
MADE = {"linear": (linear, linear_in_memory), "distances": (distances, distances_in_memory)}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("logits", MADE)
@pytest.mark.each_value_once
def test_functions_of_listed_classes(logits, function):
    (made, in_memory), (ours, definition) = MADE[logits], FUNCTIONS[function]
    arrays = ARRAYS(cases.Random("float64"))
    assert gathered.listed(made(*arrays)) is not None
    check = cases.agreement(lambda *a: ours(made(*a)), lambda *a: definition(in_memory(*a)))
    check(*arrays)


def test_a_label_that_is_not_listed_costs_inf_and_one_out_of_range_is_nan():
    z = linear(*ARRAYS(cases.Random("float64")))
    labels = np.asarray([7, 4, 1, K, -1], np.int32)
    assert np.isposinf(ce(z, labels)[1:3]).all()
    assert np.isnan(ce(z, labels)[3:]).all()
    assert np.isfinite(ce(z, labels)[0])


def test_classes_that_are_found_have_their_ids():
    arrays = ARRAYS(cases.Random("float64"))
    z, dense = linear(*arrays), linear_in_memory(*arrays)
    np.testing.assert_array_equal(softjax.argmax(z), dense.argmax(-1))
    found = softjax.top_k(z, 2)
    values, ids = jax.lax.top_k(dense, 2)
    np.testing.assert_allclose(found.logits, values, rtol=1e-12)
    np.testing.assert_array_equal(found.ids, np.where(np.isneginf(values), -1, ids))
    metrics = softjax.metrics(z, LABELS)
    np.testing.assert_array_equal(metrics.predicted, dense.argmax(-1))
    np.testing.assert_array_equal(metrics.correct, np.asarray(dense.argmax(-1)) == LABELS)


def test_divergences_of_two_logits_of_the_same_classes():
    ids = jnp.asarray(IDS)
    p_of, q_of = MADE["linear"][1], MADE["distances"][1]

    def ours(x, w, b):
        p, q = softjax.linear(x, w, class_axis=0) * 1.5 + b, softjax.distances(x, w) + b
        return softjax.kl_divergence(p.where_ids(ids), q.where_ids(ids))

    def definition(x, w, b):
        log_ratio = jnp.where(LISTED, log_p(p_of(x, w, b)) - log_p(q_of(x, w, b)), 0)
        return (jnp.exp(log_p(p_of(x, w, b))) * log_ratio).sum(-1)

    cases.assert_close(ours(*ARRAYS(cases.Random("float64"))), definition(*ARRAYS(cases.Random("float64"))))


def test_all_classes_where_an_example_lists_many():
    x, w, _ = ARRAYS(cases.Random("float64"))
    many = np.zeros((N, T + 1), np.int32)
    assert gathered.listed(softjax.linear(x, w, class_axis=0).where_ids(many)) is None
    assert gathered.listed(softjax.linear(x, w.T).where_ids(IDS)) is None  # columns of a kernel are far apart
    assert gathered.listed(softjax.linear(x, w, class_axis=0).where_ids(IDS).where(np.ones((N, K), bool))) is None


def test_gradients_of_repeated_half_precision_rows_are_added_in_float32():
    rows = jnp.ones((K, 1), "bfloat16")
    ids = np.zeros((1000, 1), np.int32)
    with jax.enable_x64(False):
        x = jnp.full((1000, 1), 0.01, "float32")
        d = jax.grad(lambda w: softjax.linear(x, w, class_axis=0).take(ids).sum())(rows)
    np.testing.assert_allclose(float(d[0, 0]), 10.0, rtol=4e-3)  # one by one, the sum stops at 4
