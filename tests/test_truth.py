"""Inputs that real jobs have, and that a loss may get wrong without a word: each case stands for its kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softjax
from softjax import losses

Z = jnp.asarray([[0.0, 1.0, 2.0, 3.0]])
P = np.exp(np.asarray(Z[0], float)) / np.exp(np.asarray(Z[0], float)).sum()
FORMS = {
    "an array": lambda z: z,
    "blocks": lambda z: softjax.linear(z, jnp.eye(z.shape[-1]), block_size=2),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
NAN = float("nan")


def close(got, want, rtol=3e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


# --- classes that contribute nothing ----------------------------------------------------------------------


@forms
def test_a_class_of_factor_0_is_not_the_largest_that_counts(form):
    z = jnp.asarray([[0.0, -90.0, 5.0]])
    f = lambda z, b: softjax.of(losses.weighted_logsumexp, form(z), per_class=b)[0]
    b = jnp.asarray([[0.0, 0.0, 1.0, 1e30], [1.0, 0.0, 2.0, 1.0], [0.0, 0.0, -1e-3, 0.0]])
    factors = np.asarray(b, float)
    sums = (factors * np.exp(np.asarray(z[0], float))[:, None]).sum(0)
    close(f(z, b), np.where(sums == 0, -np.inf, np.log(np.where(sums == 0, 1, sums))), 1e-5)
    for column, want in ((0, [0, 1, 0]), (1, [0, 0, 0])):
        dz, db = jax.grad(lambda z, b, column=column: f(z, b)[column], (0, 1))(z, b)
        close(dz, [want])
        close(db[:, column], want)


def test_a_prior_of_0_leaves_its_class_out():
    prior = jnp.asarray([0.25, 0.0, 0.75])
    centers = jnp.asarray([[1.0], [0.0], [3.0]])

    def loss(prior):
        log_prior = jnp.where(prior > 0, jnp.log(jnp.where(prior > 0, prior, 1)), -jnp.inf)
        return softjax.logsumexp(softjax.distances(jnp.zeros((1, 1)), centers) + log_prior, axis=-1)[0]

    weights = np.asarray([0.25, 0, 0.75]) * np.exp([-1.0, 0, -9])
    close(loss(prior), np.log(weights.sum()))
    close(jax.grad(loss)(prior), np.where(weights > 0, np.exp([-1.0, 0, -9]), 0) / weights.sum())


# --- teachers ---------------------------------------------------------------------------------------------

PAIR = lambda p: (jnp.arange(4)[None], jnp.asarray(p)[None])
LOGITS = lambda p: jnp.where(
    jnp.asarray(p) == 0, -jnp.inf, jnp.log(jnp.where(jnp.asarray(p) == 0, 1.0, jnp.asarray(p)))
)[None]
TEACHERS = {
    "a pair": PAIR,
    "logits": LOGITS,
    "a layer": lambda p: softjax.linear(jnp.zeros((1, 2)), jnp.zeros((2, 4)), LOGITS(p)[0]),
    "blocks": lambda p: softjax.linear(jnp.zeros((1, 2)), jnp.zeros((2, 4)), LOGITS(p)[0], block_size=2),
}
teachers = pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)


def kl(p, q):
    p = np.asarray(p, float)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum()


def js(p, q):
    m = (np.asarray(p, float) + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


@forms
@teachers
@pytest.mark.parametrize("p", [[0.5, 0.0, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]])
def test_a_teacher_is_the_same_in_every_form(teacher, form, p):
    close(softjax.kl_divergence(teacher(p), form(Z))[0], kl(p, P))
    close(softjax.js_divergence(teacher(p), form(Z))[0], js(p, P))


@forms
@teachers
def test_a_teacher_without_classes(teacher, form):
    """The formulas with p = 0."""
    none = [0.0, 0.0, 0.0, 0.0]
    if not (teacher is TEACHERS["a layer"] or teacher is TEACHERS["blocks"]):
        assert softjax.kl_divergence(teacher(none), form(Z))[0] == 0
        close(softjax.js_divergence(teacher(none), form(Z))[0], np.log(2) / 2)


def test_divergences_from_a_student_without_classes():
    none = jnp.full((1, 4), -jnp.inf)
    assert jnp.isposinf(softjax.kl_divergence(Z, none)[0])
    close(softjax.js_divergence(Z, none)[0], np.log(2) / 2)
    assert softjax.js_divergence(none, none)[0] == 0


@pytest.mark.parametrize("p", [[NAN] * 4, [0.5, NAN, 0.5, 0.0]])
@forms
def test_nan_in_a_teacher_is_nan_in_the_loss(form, p):
    with_nan = jnp.asarray([p])
    assert jnp.isnan(softjax.kl_divergence(jnp.log(with_nan), form(Z))).all()
    assert jnp.isnan(softjax.kl_divergence(PAIR(p), form(Z))).all()
    assert jnp.isnan(softjax.js_divergence(PAIR(p), form(Z))).all()
    assert jnp.isnan(softjax.softmax_cross_entropy(form(Z), with_nan)).all()
    assert jnp.isnan(softjax.softmax_cross_entropy(form(Z), PAIR(p))).all()


def test_probabilities_of_a_pair_are_taken_as_they_are():
    pair = jnp.asarray([[0, 1]]), jnp.asarray([[0.5, 0.2]])
    close(softjax.kl_divergence(pair, Z)[0], kl([0.5, 0.2, 0, 0], P))
    close(softjax.softmax_cross_entropy(Z, pair)[0], -(0.5 * np.log(P[0]) + 0.2 * np.log(P[1])))
    close(
        softjax.softmax_cross_entropy(Z, jnp.asarray([[0.5, 0.2, 0, 0]]))[0], -(0.5 * np.log(P[0]) + 0.2 * np.log(P[1]))
    )


# --- examples of weight 0 ---------------------------------------------------------------------------------

BAD = jnp.concatenate([Z, jnp.full((1, 4), jnp.nan)])
GOOD = jnp.concatenate([Z, Z[:, ::-1]])
OF_WEIGHTS = {
    "labels": lambda f, z, w, r: softjax.softmax_cross_entropy_with_integer_labels(
        f(z), jnp.asarray([1, 2]), weights=w, reduction=r
    ),
    "a label that is none": lambda f, z, w, r: softjax.softmax_cross_entropy_with_integer_labels(
        f(z), jnp.asarray([1, -100]), weights=w, reduction=r
    ),
    "z-loss": lambda f, z, w, r: softjax.softmax_cross_entropy_with_integer_labels(
        f(z), jnp.asarray([1, 2]), z_loss=0.1, label_smoothing=0.1, weights=w, reduction=r
    ),
    "a teacher": lambda f, z, w, r: softjax.kl_divergence(z[:, ::-1], f(z), weights=w, reduction=r),
    "Jensen and Shannon": lambda f, z, w, r: softjax.js_divergence(z[:, ::-1], f(z), weights=w, reduction=r),
    "targets": lambda f, z, w, r: softjax.sigmoid_binary_cross_entropy(f(z), z / 3, weights=w, reduction=r),
    "a mixture": lambda f, z, w, r: softjax.eol_loss(z, z, jnp.eye(4), jnp.eye(4), weights=w, reduction=r),
    "an expectation": lambda f, z, w, r: softjax.of(
        losses.mixture_autoencoder, f(z), z, jnp.eye(4), weights=w, reduction=r
    ),
}


@forms
@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weight_0_is_as_if_the_example_were_not_there(name, form, reduction):
    function = OF_WEIGHTS[name]
    total = lambda z, w: function(form, z, w, reduction).sum()
    value, (dz, dw) = jax.value_and_grad(total, (0, 1))(BAD, jnp.asarray([2.0, 0.0]))
    alone = lambda z, w: jnp.sum(
        w * function(form, GOOD.at[:1].set(z), None, "none")[0] / (w if reduction == "mean" else 1)
    )
    want, of_z = jax.value_and_grad(alone)(Z, jnp.asarray(2.0))
    close(value, want)
    close(dz[:1], of_z)
    assert (dz[1] == 0).all()
    assert jnp.isfinite(dw).all()


def test_weight_0_leaves_the_gradient_of_a_kernel_alone():
    kernel = jnp.arange(12.0).reshape(4, 3) / 7
    loss = lambda z, kernel, w: softjax.linear_softmax_cross_entropy(
        z, kernel, jnp.asarray([1, 2]), weights=w, reduction="mean"
    )
    got = jax.grad(loss, 1)(BAD, kernel, jnp.asarray([1.0, 0.0]))
    p = np.exp(np.asarray(Z @ kernel, float))
    p /= p.sum()
    close(got, np.asarray(Z, float).T @ (p - np.eye(3)[1:2]), 1e-5)


def test_the_derivative_by_a_weight_of_0_is_the_loss():
    loss = lambda w: softjax.softmax_cross_entropy_with_integer_labels(
        GOOD, jnp.asarray([1, 2]), weights=w, reduction="sum"
    )
    close(jax.grad(loss)(jnp.asarray([1.0, 0.0])), [-np.log(P[1]), -np.log(P[1])])


def test_all_weights_0_over_labels_that_are_none():
    loss = lambda z: softjax.softmax_cross_entropy_with_integer_labels(
        z, jnp.asarray([-100, -100]), weights=jnp.zeros(2), reduction="mean"
    )
    value, gradient = jax.value_and_grad(loss)(GOOD)
    assert value == 0
    assert (gradient == 0).all()


# --- padding ----------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("padding", [-1, -100, 4, 99])
def test_an_id_of_probability_0_is_padding(form, padding):
    ids, p = jnp.asarray([[1, padding, 3]]), jnp.asarray([[0.25, 0.0, 0.75]])
    dense = [0, 0.25, 0, 0.75]
    ce = lambda z, p: softjax.softmax_cross_entropy(form(z), (ids, p))[0]
    close(ce(Z, p), -(dense * np.log(P)).sum())
    dz, dp = jax.grad(ce, (0, 1))(Z, p)
    close(dz[0], P - dense)
    close(dp[0], [-np.log(P[1]), 0, -np.log(P[3])])
    divergence = lambda z: softjax.kl_divergence((ids, p), form(z))[0]
    close(divergence(Z), kl(dense, P))
    close(jax.grad(divergence)(Z)[0], P - dense)
    close(softjax.js_divergence((ids, p), form(Z))[0], js(dense, P))
    want = optax.sigmoid_binary_cross_entropy(Z[0], jnp.asarray(dense)).sum()
    close(softjax.sigmoid_binary_cross_entropy(form(Z), (ids, p))[0], want)


@forms
def test_the_entropy_does_not_depend_on_the_token(form):
    entropy = -(P * np.log(P)).sum()
    for ids in (jnp.asarray([-1]), jnp.asarray([[-1, 2]])):
        log_p, found = softjax.log_probs(form(Z), ids, entropy=True)
        close(found, [entropy])
        assert jnp.isnan(log_p).reshape(-1)[0]
    d = jax.grad(lambda z: softjax.log_probs(form(z), jnp.asarray([-1]), entropy=True)[1].sum())(Z)
    close(d[0], -P * (np.log(P) + entropy), 1e-5)
    ignored = softjax.log_probs(form(Z), jnp.asarray([-1]), entropy=True, ignore_index=-1)
    assert [float(a[0]) for a in ignored] == [0, 0]


# --- labels -----------------------------------------------------------------------------------------------


@forms
def test_targets_of_all_classes_are_no_lists_of_labels(form):
    targets = jnp.asarray([[1.0, 0.0, 1.0, 0.0]])
    want = optax.sigmoid_binary_cross_entropy(Z, targets).sum()
    for y in (targets, targets.astype(bool)):
        close(softjax.sigmoid_binary_cross_entropy(form(Z), y)[0], want)
    with pytest.raises(ValueError, match="may be class ids or the targets"):
        softjax.sigmoid_binary_cross_entropy(form(Z), targets.astype(int))
    ids = jnp.asarray([[0, 2]])
    close(softjax.sigmoid_binary_cross_entropy(form(Z), ids)[0], want)
    close(softjax.sigmoid_binary_cross_entropy(form(Z), jnp.asarray([[0, 2, 2]]))[0], want)  # once is enough
    missing = softjax.sigmoid_binary_cross_entropy(form(Z), jnp.asarray([[1.0, 0.0, -1.0, 0.0]]), ignore_index=-1)
    close(missing[0], optax.sigmoid_binary_cross_entropy(Z, targets)[0, jnp.asarray([0, 1, 3])].sum())


@forms
@pytest.mark.parametrize("y", [3.0, -0.1, NAN])
def test_a_target_outside_of_0_and_1_is_nan(form, y):
    assert jnp.isnan(softjax.sigmoid_binary_cross_entropy(form(Z), (jnp.asarray([[1]]), jnp.asarray([[y]]))))[0]
    assert jnp.isnan(softjax.sigmoid_binary_cross_entropy(form(Z), jnp.asarray([[0.0, y, 0.0, 0.0]])))[0]


@pytest.mark.parametrize("label", [1 + 2**32, -(2**32) + 1, 2**63 - 1])
@forms
def test_labels_that_do_not_fit_in_32_bits_are_none(form, label):
    labels = np.asarray([label])
    assert jnp.isnan(softjax.softmax_cross_entropy_with_integer_labels(form(Z), labels))[0]
    assert jnp.isnan(softjax.log_probs(form(Z), labels))[0]
    assert jnp.isnan(softjax.multiclass_svm_loss(form(Z), labels))[0]
    assert jnp.isnan(softjax.softmax_cross_entropy_with_integer_labels(form(Z), labels.astype(np.uint64)))[0]


# --- losses of one label ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 0.99, 1.0, 2.0])
def test_no_second_derivative_of_the_focal_loss_is_nan(gamma):
    margins = jnp.asarray([-100.0, -10, -1, 0, 0.5, 1, 5, 17, 30, 45, 60, 80, 86, 90, 104, 200])
    of = lambda m: softjax.of(losses.focal(gamma), jnp.stack([m, 0 * m])[None], jnp.asarray([0]))[0]
    value, slope, curve = (jax.vmap(f)(margins) for f in (of, jax.grad(of), jax.grad(jax.grad(of))))
    assert jnp.isfinite(jnp.stack([value, slope, curve])).all()
    with jax.enable_x64(True):
        m = np.asarray(margins[:9], float)
        c = np.log1p(np.exp(-m)) + 0 * m
        s = -np.expm1(-c)
        close(value[:9], s**gamma * c, 1e-5)
        q = 1 / (1 + np.exp(m))  # -dc/dm, and dq/dm = -q (1 - q)
        first = gamma * s ** (gamma - 1) * np.exp(-c) * c + s**gamma
        close(slope[:9], -first * q, 1e-5)
        of_s = gamma * (gamma - 1) * s ** (gamma - 2) * np.exp(-2 * c) * c
        second = of_s + 2 * gamma * s ** (gamma - 1) * np.exp(-c) - gamma * s ** (gamma - 1) * np.exp(-c) * c
        np.testing.assert_allclose(curve[:9], second * q**2 + first * q * (1 - q), rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.focal(2.0), losses.poly_1(2.0)])
@forms
def test_losses_of_one_label_refuse_a_distribution(form, loss):
    with pytest.raises(ValueError, match="must be labels"):
        softjax.of(loss, form(Z), PAIR([0.3, 0.0, 0.0, 0.7]))


@forms
def test_class_weights_are_factors_of_the_losses_of_one_label(form):
    weights, label = jnp.asarray([1.0, 0.25, 2.0, 0.0]), jnp.asarray([1])
    p = P[1]
    for loss, want in (
        (losses.focal(2.0), -((1 - p) ** 2) * np.log(p)),
        (losses.poly_1(2.0), -np.log(p) + 2 * (1 - p)),
    ):
        close(softjax.of(losses.class_weights(loss, weights), form(Z), label)[0], 0.25 * want)


@forms
@pytest.mark.parametrize("scores", [[2.0, 1, 1], [2.0, 1, 0], [1.0, 1, 1], [1.0, 2, 2]])
def test_ties_of_the_hinge_share_its_gradient_as_in_the_maximum_of_jax(form, scores):
    s, y = jnp.asarray([scores]), jnp.asarray([0])
    loss = lambda s: softjax.multiclass_hinge_loss(form(s), y).sum()
    close(jax.grad(loss)(s), jax.grad(lambda s: optax.losses.multiclass_hinge_loss(s, y).sum())(s))


# --- temperatures, caps -----------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("temperature", [0.0, 1e-39])
def test_no_token_is_sampled_at_a_temperature_of_0(form, temperature):
    z = jnp.concatenate([Z, -Z, 0 * Z])
    draw = lambda t: softjax.sample(jax.random.key(0), form(z) / t, shape=3)
    assert (jax.jit(draw)(temperature)[jnp.asarray([0, 2])] == -1).all()
    log_p = jax.jit(lambda t: softjax.log_probs(form(z) / t, jnp.asarray([0, 1, 2])))(temperature)
    assert jnp.isnan(log_p[jnp.asarray([0, 2])]).all()


@forms
def test_a_row_without_a_softmax_has_no_sample(form):
    z = jnp.asarray([[0.0, NAN, 1.0], [0.0, jnp.inf, 1.0], [-jnp.inf] * 3, [0.0, -jnp.inf, -jnp.inf]])
    shape = softjax.sample(jax.random.key(1), z, shape=4)
    assert shape.tolist() == [[-1] * 4, [-1] * 4, [-1] * 4, [0] * 4]
    assert (softjax.sample(jax.random.key(1), form(z[:2]), shape=4) == -1).all()


@forms
def test_the_least_normal_temperature_is_right(form):
    log_p = jax.jit(lambda t: softjax.log_probs(form(Z) / t, jnp.asarray([[1, 3]])))(2.0**-126)
    close(log_p, [[-(2.0**127), 0]])


@pytest.mark.parametrize("temperature", [0.0, 1e-39, -1.0])
def test_a_traced_temperature_that_is_not_positive_is_nan(temperature):
    centers = jnp.asarray([[0.0, 0], [1, 1], [3, 3]])
    quantize = jax.jit(lambda t: softjax.soft_quantize(jnp.asarray([[2.9, 2.9]]), centers, temperature=t).values)
    assert jnp.isnan(quantize(temperature)).all()
    contrast = jax.jit(lambda t: softjax.contrastive_loss(jnp.eye(3), jnp.eye(3), temperature=t))
    assert jnp.isnan(contrast(temperature)).all()
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        softjax.soft_quantize(jnp.zeros((1, 2)), centers, temperature=temperature)


@forms
@pytest.mark.parametrize("z", [[200.0, 190.0], [300.0, 300.0], [1.0, -2.0], [-29.0, 31.0], [0.0, 1e-6]])
def test_a_soft_cap_keeps_its_gradient(form, z):
    cap, ct = 30.0, jnp.asarray([[0.7, -1.3]])
    capped = lambda z, cap: softjax.softcap(form(z), cap)
    dense = lambda z, cap: a if isinstance(a := capped(z, cap), jax.Array) else a.dense()
    value, back = jax.vjp(dense, jnp.asarray([z]), jnp.asarray(cap))
    x = np.asarray([z], float) / cap
    close(value, cap * np.tanh(x))
    slope = 1 / np.cosh(x) ** 2
    dz, dcap = back(ct)
    np.testing.assert_allclose(dz, ct * slope, rtol=1e-5, atol=0)
    close(dcap, (np.asarray(ct) * (np.tanh(x) - x * slope)).sum(), 1e-5)


def test_a_cap_of_half_precision_logits_has_their_type():
    z = jnp.asarray([1.0, 500.0], "bfloat16")
    assert softjax.softcap(z, 30.0).dtype == z.dtype
    assert jax.grad(lambda z: softjax.softcap(z, 30.0).sum().astype(float))(z)[1] > 0


# --- the forms of "off", and of arguments -----------------------------------------------------------------


def test_what_other_libraries_pass_for_none():
    ce, labels = softjax.softmax_cross_entropy_with_integer_labels, jnp.asarray([1, 2])
    want = ce(GOOD, labels)
    close(ce(GOOD, labels, z_loss=None, label_smoothing=None, reduction=None), want)
    mask = jnp.asarray([True, False])
    close(ce(GOOD, labels, weights=mask, reduction="mean"), want[0])
    close(ce(GOOD, labels, weights=mask[:, None], reduction="mean"), want[0])


class Boxed:
    def unbox(self):
        raise NotImplementedError


class Layer:
    kernel = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (Boxed(), r"`kernel.unbox\(\)`"),
        (Layer(), "give its `.kernel`"),
        ({"kernel": jnp.ones((4, 2))}, r"give its \['kernel'\]"),
        (jnp.ones((4, 2), jnp.int8), "multiply it by its scales"),
        (jnp.ones((7, 4)), "with `class_axis=0` it fits"),
    ],
)
def test_a_kernel_in_another_form_is_refused_with_what_to_give(kernel, message):
    with pytest.raises((TypeError, ValueError), match=message):
        softjax.linear(Z, kernel)


def test_labels_of_keras_are_refused_with_what_to_give():
    with pytest.raises(TypeError, match=r"`labels` must be integers, got dtype float32: `labels.astype\(int\)`"):
        softjax.softmax_cross_entropy_with_integer_labels(Z, jnp.asarray([1.0]))


# --- what has no derivative -------------------------------------------------------------------------------


@forms
def test_metrics_and_parts_that_a_gradient_uses_make_it_nan(form):
    labels, both = jnp.asarray([1]), (losses.cross_entropy, losses.entropy)
    with_metrics = lambda z: softjax.softmax_cross_entropy_with_integer_labels(
        form(z), labels, reduction="mean", has_aux=True
    )
    with_parts = lambda z: softjax.of(both, form(z), (labels, None), reduction="mean", loss_weights=(1.0, -0.1))
    for function, number in ((with_metrics, lambda m: m.logsumexp.sum()), (with_parts, lambda parts: parts[1])):
        used = lambda z, function=function, number=number: function(z)[0] + 1e-4 * number(function(z)[1]) ** 2
        assert jnp.isnan(jax.grad(used)(Z)).all()
        beside, aux = jax.grad(function, has_aux=True)(Z)
        assert jnp.isfinite(beside).all()
        assert jnp.isfinite(number(aux))
