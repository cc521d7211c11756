"""Each statement of the source texts as a test, with their errors corrected (see docs/mathematics.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def random():
    return cases.Random(jnp.float64, seed=1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


# --- Softmax and related gradients; The softmax function and its derivative ----------------------


def test_softmax_of_the_translated_text_is_its_example():
    np.testing.assert_allclose(softjax.softmax(jnp.array([1.0, 2.0, 3.0])), [0.09, 0.24, 0.67], atol=0.01)
    np.testing.assert_allclose(softjax.softmax(jnp.array([1.0, 2.0, 5.0])), [0.02, 0.05, 0.93], atol=0.01)


def test_softmax_is_stable_where_the_texts_listing_gives_nan():
    with np.errstate(all="ignore"):
        e = np.exp([1000.0, 2000.0, 3000.0])
        assert np.isnan(e / e.sum()).any()
    np.testing.assert_array_equal(softjax.softmax(jnp.array([1000.0, 2000.0, 3000.0])), [0, 0, 1])


def test_softmax_does_not_see_a_shift(random):
    z = random.normal(7)
    close(softjax.softmax(z + 12.5), softjax.softmax(z))


def test_jacobian_is_y_i_delta_ij_minus_y_i_y_j(random):
    z = random.normal(6)
    y = softjax.softmax(z)
    for jacobian in (jax.jacrev, jax.jacfwd):
        close(jacobian(softjax.softmax)(z), np.diag(y) - np.outer(y, y))


def test_jacobian_sums_to_0_over_the_classes(random):
    """sum_k dp_k / dz_d = 0, as sum_k p_k = 1."""
    jacobian = jax.jacrev(softjax.softmax)(random.normal(6))
    close(jacobian.sum(0), np.zeros(6))
    close(jacobian.sum(1), np.zeros(6))


def test_softmax_layer_has_the_derivative_s_t_delta_ti_minus_s_i_x_j(random):
    """DP_t / DW_ij, of which the text would build a T x NT matrix."""
    w, x = random.normal(4, 3), random.normal(3)
    s = softjax.softmax(w @ x)
    jacobian = jax.jacrev(lambda w: softjax.softmax(w @ x))(w)
    close(jacobian, np.einsum("t,ti,j->tij", s, np.eye(4) - s, x))


def test_cross_entropy_of_the_layer_has_the_derivative_s_i_minus_delta_yi_x_j(random):
    w, x, y = random.normal(4, 3), random.normal(3), 2
    loss = lambda w: softjax.softmax_cross_entropy_with_integer_labels(w @ x, jnp.array(y))
    close(jax.grad(loss)(w), np.outer(softjax.softmax(w @ x) - np.eye(4)[y], x))


def test_two_layer_network_has_the_texts_backward_formulas(random):
    """x -> p = W1 x -> r = relu(p) -> z = W2 r -> y = softmax(z) -> l."""
    w1, w2, x, dl_dy = random.normal(5, 3), random.normal(4, 5), random.normal(3), random.normal(4)
    network = lambda x: softjax.softmax(w2 @ jax.nn.relu(w1 @ x)) @ dl_dy
    p = w1 @ x
    y = softjax.softmax(w2 @ jax.nn.relu(p))
    dl_dz = (np.diag(y) - np.outer(y, y)) @ dl_dy
    dl_dp = jnp.where(p > 0, w2.T @ dl_dz, 0)
    close(jax.grad(network)(x), w1.T @ dl_dp)


# --- CATSMILE-1012 (softargmax) --------------------------------------------------------------------


def test_softargmax_is_another_name_of_softmax():
    assert softjax.softargmax is softjax.softmax


def test_softargmax_of_scores_has_the_texts_core_equation(random):
    """dp_k / dz = p_k (dh_k / dz - sum_j p_j dh_j / dz)."""
    z, a = random.normal(3), random.normal(6, 3)
    h = lambda z: jnp.tanh(a @ z)
    p, dh = softjax.softmax(h(z)), jax.jacrev(h)(z)
    close(jax.jacrev(lambda z: softjax.softmax(h(z)))(z), p[:, None] * (dh - p @ dh))


def test_expectation_has_the_gradient_p_t_minus_its_mean(random):
    """d sum_k p_k t_k / dh_k = (t_k - sum_j t_j p_j) p_k."""
    h, t = random.normal(6), random.normal(6)
    p = cases.softmax(h)
    close(jax.grad(softjax.expectation)(h, t), (t - t @ p) * p)


def test_expectation_of_moving_payoffs_gains_the_mean_of_their_derivative(random):
    """The half that the text leaves out: E_p[dt]."""
    h, t, dt = random.normal(6), random.normal(6), random.normal(6)
    close(jax.jvp(lambda t: softjax.expectation(h, t), (t,), (dt,))[1], cases.softmax(h) @ dt)


def test_cross_entropy_of_labels_that_do_not_sum_to_1_has_the_gradient_p_sum_y_minus_y(random):
    z, y = random.normal(6), abs(random.normal(6))
    close(jax.grad(softjax.softmax_cross_entropy)(z, y), cases.softmax(z) * y.sum() - y)
    with_payoffs = jax.grad(softjax.expectation)(z, jax.lax.stop_gradient(y / cases.softmax(z)))  # t_k = y_k / p_k
    close(jax.grad(softjax.softmax_cross_entropy)(z, y), -with_payoffs)


def test_mixture_autoencoder_has_the_texts_gradient_through_a_k_vector(random):
    """t_k = sum_e 2 (x_e - E_p[A]_e) A_ke and dh_k / dz_d = 2 (c_kd - z_d), of NLL = -loss."""
    z, x, c, a = random.normal(3), random.normal(5), random.normal(8, 3), random.normal(8, 5)
    p = cases.mixture(z, c)
    t = 2 * (x - p @ a) @ a.T
    gradient = ((t - t @ p) * p) @ (2 * (c - z))
    close(jax.jit(jax.grad(softjax.mixture_autoencoder_loss))(z, x, c, a), -gradient)


def test_eol_has_the_texts_gradient(random):
    """t_k = log p(x|c_k) = -sum_e (x_e - A_ke)^2."""
    z, x, c, a = random.normal(3), random.normal(5), random.normal(8, 3), random.normal(8, 5)
    p, t = cases.mixture(z, c), -((x - a) ** 2).sum(-1)
    close(jax.jit(jax.grad(softjax.eol_loss))(z, x, c, a), -((t - t @ p) * p) @ (2 * (c - z)))


def test_matrix_form_that_the_text_leaves_open(random):
    """ds = P * (T - rowsum(P * T)), dZ = ds W, dW = ds^T Z; for vector payoffs T = G A^T, rowsum(G * (P A))."""
    z, w, a, g = random.normal(4, 3), random.normal(8, 3), random.normal(8, 5), random.normal(4, 5)
    loss = lambda z, w, a: ((softjax.softmax(z @ w.T) @ a) * g).sum()
    p = cases.softmax(z @ w.T)
    ds = p * (g @ a.T - (g * (p @ a)).sum(-1, keepdims=True))
    for got, want in zip(jax.jit(jax.grad(loss, (0, 1, 2)))(z, w, a), (ds @ w, ds.T @ z, p.T @ g), strict=True):
        close(got, want)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_eol_bounds_the_others_and_differs_from_loe_by_the_variance(random, scale):
    """As log-likelihoods LOE >= EOL <= LEOP, and EOL = LOE - tr Var_p(A); the losses are their negatives."""
    z, x, c, a = cases.mixture_arguments(random, scale)
    loe, eol, leop = (f(z, x, c, a) for f in (softjax.mixture_autoencoder_loss, softjax.eol_loss, softjax.leop_loss))
    p = cases.mixture(z, c)
    variance = p @ (a**2).sum(-1) - ((p @ a) ** 2).sum(-1)
    close(eol, loe + variance)
    assert (eol >= leop).all()
    assert (eol >= loe).all()


# --- Notes on gradients, 1; Softmax output and its backward pass (MXNet) ---------------------------


def test_svm_loss_has_the_texts_gradient_over_a_batch(random):
    """The NumPy listing svm_loss, away from its kinks: ties count 1 there and 1/2 here."""
    s, y = random.normal(6, 5), random.integers(5, 6)
    i = np.arange(6)
    margins = np.maximum(np.asarray(s) - np.asarray(s)[i, y][:, None] + 1, 0)
    margins[i, y] = 0
    ds = (np.asarray(s) - np.asarray(s)[i, y][:, None] + 1 > 0).astype(float)
    ds[i, y] = 0
    ds[i, y] = -ds.sum(1)
    mean = lambda s: softjax.multiclass_svm_loss(s, y).mean()
    value, gradient = jax.jit(jax.value_and_grad(mean))(s)
    close(value, margins.sum() / 6)
    close(gradient, ds / 6)


def test_the_listing_divides_integers_in_place_which_numpy_refuses():
    ds = (np.zeros((2, 3)) >= 0).astype("int")
    with pytest.raises(TypeError, match="Cannot cast ufunc 'divide' output"):
        ds /= 2


def test_the_rule_for_or_holds_only_where_the_conditions_exclude_each_other():
    x = np.array([4.0, 7.0, 11.0])  # at 7 both conditions of the text's example hold
    np.testing.assert_array_equal((x > 5).astype(int) + (x < 10), [1, 2, 1])
    np.testing.assert_array_equal((x > 5) | (x < 10), [1, 1, 1])


def test_hinges_split_a_tie_as_jax_does():
    s = jnp.array([1.0, 0.0, -3.0])  # s_1 - s_0 + 1 is exactly 0
    for loss in (softjax.multiclass_svm_loss, softjax.multiclass_hinge_loss):
        close(jax.jit(jax.grad(loss))(s, jnp.array(0)), [-0.5, 0.5, 0.0])


def test_softmax_loss_has_the_texts_gradient_over_a_batch(random):
    """The NumPy listing softmax_loss, with the logarithm that it lacks: dS = (p - onehot) / N."""
    s, y = random.normal(6, 5), random.integers(5, 6)
    p = np.array(cases.softmax(s))
    mean = lambda s: softjax.softmax_cross_entropy_with_integer_labels(s, y).mean()
    close(mean(s), -np.log(p[np.arange(6), y]).mean())
    p[np.arange(6), y] -= 1
    close(jax.grad(mean)(s), p / 6)


def test_mxnets_listing_is_the_gradient_of_the_sum(random):
    """dst[y][x] = src[y][x], less 1 at the label."""
    s, y = random.normal(6, 5), random.integers(5, 6)
    total = lambda s: softjax.softmax_cross_entropy_with_integer_labels(s, y).sum()
    want = np.array(cases.softmax(s))
    for row, label in enumerate(y):
        want[row, label] -= 1
    close(jax.grad(total)(s), want)


def test_one_hot_and_integer_labels_agree(random):
    s, y = random.normal(6, 5), random.integers(5, 6)
    close(
        softjax.softmax_cross_entropy(s, jnp.asarray(np.eye(5)[y])),
        softjax.softmax_cross_entropy_with_integer_labels(s, y),
    )
