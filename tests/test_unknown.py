"""Labels that are none of the classes: NaN in loss and gradient, and gradient 0 in rows whose cotangent is 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import Placement, _cross_entropies, losses
from softjax.sums import unknown

from . import cases, spelled

N, D, K = 6, 4, 13
LABELS = np.array([1, -100, 3, 99, 5, 6])
KNOWN = (LABELS >= 0) & (LABELS < K)
PLACES = {
    "whole": None,
    "blocks": 5,
    "tiles": Placement(4, 5),
    "forward": Placement(4, 5, "forward"),
    "kept": Placement(N, 5, "forward", 5),
}


def arguments():
    r = cases.Random("float32", seed=5)
    return r.normal(N, D), r.normal(D, K), r.normal(N)


def truth(x, w, ct):
    """The gradients of sum(ct loss) over the labels that are classes, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    ct = np.where(KNOWN, ct, 0.0)
    p = np.exp(x @ w)
    p /= p.sum(-1, keepdims=True)
    dz = ct[:, None] * (p - np.eye(K)[np.where(KNOWN, LABELS, 0)])
    return dz, dz @ w.T, x.T @ dz


def masked(loss, ct):
    """The sum of the losses with a mask after the loss, in the two ways that are usual."""
    return jnp.where(KNOWN, loss, 0) @ ct + 0 * loss.mean(where=KNOWN)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_masked_rows_of_a_linear_layer_have_gradient_0(place):
    x, w, ct = arguments()
    loss = lambda x, w: spelled.linear_softmax_cross_entropy(x, w, LABELS, block_size=PLACES[place])
    total = lambda x, w: masked(loss(x, w), ct)
    _, dx, dw = truth(x, w, ct)
    gradient = jax.grad(total, (0, 1))

    @jax.jit
    def run(*args):
        return gradient(*args), jax.jvp(gradient, args, args)[1], jax.jvp(loss, args, args)[1]

    got, moved, of_losses = run(x, w)
    close(got[0], dx)
    close(got[1], dw)
    assert all(jnp.isfinite(a).all() for a in moved)
    assert (jnp.isnan(of_losses) == ~KNOWN).all()


def test_masked_rows_of_a_linear_layer_one_by_one_have_gradient_0():
    x, w, ct = arguments()
    one_by_one = lambda x: jax.vmap(lambda x, y: spelled.linear_softmax_cross_entropy(x, w, y))(x, LABELS)
    close(jax.jit(jax.grad(lambda x: masked(one_by_one(x), ct)))(x), truth(x, w, ct)[1])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_weight_of_0_masks_a_row_too(reduction):
    x, w, ct = arguments()
    weights = jnp.where(KNOWN, jnp.abs(ct), 0)
    place = PLACES["forward"]
    loss = lambda x: spelled.linear_softmax_cross_entropy(
        x, w, LABELS, weights=weights, reduction=reduction, block_size=place
    )
    value, got = jax.value_and_grad(loss)(x)
    costs = -jax.nn.log_softmax(x @ w)[jnp.arange(N), jnp.where(KNOWN, LABELS, 0)]
    close(value, (weights * costs).sum() / (weights.sum() if reduction == "mean" else 1))
    close(got, truth(x, w, weights / (weights.sum() if reduction == "mean" else 1))[1])


@pytest.mark.parametrize(
    "loss",
    [softjax.softmax_cross_entropy_with_integer_labels]
    + [lambda z, y, loss=loss: spelled.of_logits(loss, z, y) for loss in (losses.cross_entropy, losses.focal(0.0))],
)
def test_masked_rows_of_dense_logits_have_gradient_0(loss):
    x, w, ct = arguments()
    dz, *_ = truth(x, w, ct)
    close(jax.grad(lambda z: masked(loss(z, LABELS), ct))(x @ w), dz)


@pytest.mark.parametrize("loss", [losses.brier, losses.crammer_singer(), losses.focal(2.0)])
def test_masked_rows_of_other_losses_have_gradient_0(loss):
    x, w, ct = arguments()
    got = jax.grad(lambda z: masked(spelled.of_logits(loss, z, LABELS), ct))(x @ w)
    assert jnp.isfinite(got).all()
    assert ((got != 0).any(-1) == KNOWN).all()


def test_without_a_mask_the_rows_have_gradient_nan():
    x, w, ct = arguments()
    loss = lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, LABELS) @ ct
    assert (jnp.isnan(jax.grad(loss)(x @ w)).all(-1) == ~KNOWN).all()


def test_over_a_mesh():
    x, w, ct = arguments()
    total = lambda x, w: masked(
        spelled.linear_softmax_cross_entropy(
            x, w, LABELS, mesh=cases.mesh(2, 4), class_axis_name="classes", batch_axis_name="data"
        ),
        ct,
    )
    _, dx, dw = truth(x, w, ct)
    got = jax.jit(jax.grad(total, (0, 1)))(x, w)
    close(got[0], dx)
    close(got[1], dw)


def test_ignored_labels_of_dense_logits():
    x, w, ct = arguments()
    z = (x @ w).at[1].set(jnp.nan)
    labels = np.where(KNOWN, LABELS, -100)
    loss = lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, labels, ignore_index=-100)
    value, back = jax.vjp(loss, z)
    assert (value[~KNOWN] == 0).all()
    assert (value[KNOWN] > 0).all()
    close(back(ct)[0], truth(x, w, ct)[0])


def test_a_factor_of_nan_is_found(monkeypatch):
    """The tests above would find the usual way, which multiplies the loss by NaN."""
    by_factor = lambda known, x: x * jnp.where(known, 1, jnp.nan)
    monkeypatch.setattr(_cross_entropies, "nan_unless", by_factor)
    x, w, ct = arguments()
    got = jax.grad(lambda z: masked(softjax.softmax_cross_entropy_with_integer_labels(z, LABELS), ct))(x @ w)
    assert jnp.isnan(got[~KNOWN]).all()
    assert unknown.nan_unless(jnp.array(KNOWN), ct)[0] == ct[0]
