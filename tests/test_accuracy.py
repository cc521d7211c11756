"""Values and gradients against truth in 50 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import softjax

from . import cases, placed

mp.mp.dps = 50
pytestmark = pytest.mark.usefixtures("optimised")
PROMISED = 2e-6  # relative, in float32

MARGINS = [-80.0, -17.3, -1.0, 0.0, 0.5, 6.0, 17.3, 33.0, 40.0, 64.7, 80.0]
OFFSETS = [0.0, 100.0, 1e4]
T = [3.0, 1.0, -1.0, 0.5]
Y = [0.5, 0.25, 1.0, 0.0]


def exact(numbers):
    return [mp.mpf(float(a)) for a in numbers]


class Truth:
    """All that is made of one row of logits, and the gradients of it."""

    def __init__(self, logits):
        z = exact(logits)
        m = max(z)
        w = [mp.exp(a - m) for a in z]
        s = mp.fsum(w)
        self.z, self.k = z, range(len(z))
        self.p = [a / s for a in w]
        self.A = m + mp.log(s)
        self.log_p = [a - self.A for a in z]

    def mean(self, t):
        return mp.fsum(a * b for a, b in zip(self.p, t, strict=True))

    def pull(self, t):
        """p_k (t_k - E_p[t]); 1 - p_k is summed over the others, as 50 digits could run out too."""
        gap = lambda k: mp.fsum(self.p[j] * (t[k] - t[j]) for j in self.k)
        return [self.p[k] * gap(k) for k in self.k]

    def cross_entropy_gradient(self, y):
        """p_k sum_j y_j - y_k = sum_j (p_k y_j - p_j y_k)."""
        return [mp.fsum(self.p[k] * y[j] - self.p[j] * y[k] for j in self.k) for k in self.k]


def logits(margin, offset, dtype=jnp.float32):
    return jnp.asarray([margin + offset, offset, offset - 0.5, offset - 2.0], dtype)


def assert_close(got, want, tolerance=PROMISED):
    """Relative to the largest element, as every element is a sum with it."""
    got, want = exact(np.atleast_1d(np.asarray(got, np.float64))), list(want)
    error = max(abs(a - b) for a, b in zip(got, want, strict=True)) / max(abs(b) for b in want)
    assert error <= tolerance, f"{mp.nstr(error, 3)} > {tolerance}: got {got}, want {want}"


def functions():
    """(name, function of a row of logits, its truth, its gradient's truth)."""
    t, y = jnp.asarray(T, jnp.float32), jnp.asarray(Y, jnp.float32)
    ct = jnp.asarray([0.25, -1.0, 2.0, 0.75], jnp.float32)
    one_hot = jnp.asarray([1.0, 0, 0, 0], jnp.float32)
    total = lambda log_p, y: -mp.fsum(a * b for a, b in zip(log_p, exact(y), strict=True))
    first = jnp.array(0)
    return {
        "logsumexp": (softjax.logsumexp, lambda q: [q.A], lambda q: q.p),
        "softmax": (lambda z: softjax.softmax(z) @ ct, lambda q: [q.mean(exact(ct))], lambda q: q.pull(exact(ct))),
        "log_softmax": (
            lambda z: softjax.log_softmax(z) @ one_hot,
            lambda q: [q.log_p[0]],
            lambda q: [-g for g in q.cross_entropy_gradient(exact(one_hot))],
        ),
        "entropy": (softjax.entropy, lambda q: [-q.mean(q.log_p)], lambda q: [-g for g in q.pull(q.log_p)]),
        "expectation": (
            lambda z: softjax.expectation(z, t),
            lambda q: [q.mean(exact(t))],
            lambda q: q.pull(exact(t)),
        ),
        "cross entropy, sure labels": (
            lambda z: softjax.softmax_cross_entropy(z, one_hot),
            lambda q: [total(q.log_p, one_hot)],
            lambda q: q.cross_entropy_gradient(exact(one_hot)),
        ),
        "cross entropy, soft labels": (
            lambda z: softjax.softmax_cross_entropy(z, y),
            lambda q: [total(q.log_p, y)],
            lambda q: q.cross_entropy_gradient(exact(y)),
        ),
        "cross entropy, integer labels": (
            lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, first),
            lambda q: [-q.log_p[0]],
            lambda q: q.cross_entropy_gradient(exact(one_hot)),
        ),
    }


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", functions())
@pytest.mark.each_value_once
def test_no_digit_is_lost_at_any_margin(name, offset):
    function, value_of, gradient_of = functions()[name]
    value_and_grad = jax.jit(jax.value_and_grad(function))
    for margin in MARGINS:
        z = logits(margin, offset)
        truth = Truth(z)
        value, gradient = value_and_grad(z)
        scale = PROMISED  # a mean is as exact as its terms
        if name in ("softmax", "expectation"):
            scale = PROMISED * max(1, float(max(abs(a) for a in exact(T)) / abs(value_of(truth)[0])))
        assert_close(value, value_of(truth), scale)
        assert_close(gradient, gradient_of(truth))


def test_the_label_has_its_gradient_however_sure_the_row():
    slope = jax.jit(jax.grad(lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, jnp.array(0))))
    for margin in MARGINS:
        z = logits(margin, 1e4)
        assert_close(slope(z)[0], [Truth(z).cross_entropy_gradient(exact([1, 0, 0, 0]))[0]])


@pytest.mark.parametrize("count", [1, 2, 1000, 70000])
def test_no_digit_is_lost_among_many_classes(count):
    z = cases.Random(jnp.float32).normal(count, scale=2.0)
    z64 = np.asarray(z, np.float64)
    p = np.exp(z64 - z64.max())
    p /= p.sum()
    loss = lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, jnp.array(count // 2))
    value, gradient = jax.value_and_grad(loss)(z)
    np.testing.assert_allclose(value, -np.log(p[count // 2]), rtol=PROMISED, atol=0)
    np.testing.assert_allclose(gradient, p - (np.arange(count) == count // 2), rtol=PROMISED, atol=0)
    np.testing.assert_allclose(softjax.entropy(z), -(p * np.log(p)).sum(), rtol=PROMISED)
    np.testing.assert_allclose(softjax.softmax(z), p, rtol=PROMISED)


def test_float16_holds_70000_equal_logits():
    z = jnp.zeros(70000, jnp.float16)
    loss, gradient = jax.value_and_grad(lambda z: softjax.softmax_cross_entropy_with_integer_labels(z, jnp.array(7)))(z)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.float16
    np.testing.assert_allclose(loss, np.log(70000.0), rtol=PROMISED)
    np.testing.assert_array_equal(softjax.softmax(z), np.full(70000, 1 / 70000, np.float16))
    np.testing.assert_allclose(softjax.logsumexp(z), np.float16(np.log(70000.0)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", functions())
@pytest.mark.each_value_once
def test_half_precision_is_rounded_once(name, dtype):
    """The gradient of the rounded logits, rounded once, at the end."""
    function, _, gradient_of = functions()[name]
    if name == "softmax":
        function = lambda z: softjax.softmax(z).astype(jnp.float32) @ jnp.asarray([0.25, -1.0, 2.0, 0.75], jnp.float32)
    if name == "log_softmax":
        function = lambda z: softjax.log_softmax(z)[0].astype(jnp.float32)
    if name == "expectation":
        function = lambda z: softjax.expectation(z, jnp.asarray(T, z.dtype)).astype(jnp.float32)
    slope = jax.jit(jax.grad(function))
    for margin in [-6.0, 0.5, 6.0]:
        z = logits(margin, 0.0, dtype)
        gradient = slope(z)
        assert gradient.dtype == z.dtype
        half_a_step = float(jnp.finfo(dtype).eps) / 2 + PROMISED
        # every element by itself: rounding once is relative to the element
        for a, b in zip(exact(gradient), gradient_of(Truth(z)), strict=True):
            tiny = float(jnp.finfo(dtype).smallest_subnormal)
            assert abs(a - b) <= half_a_step * abs(b) + tiny, (margin, a, b)


def mixtures_in_double(case, arguments):
    """Value and gradients of the definition, of the same numbers in float64."""
    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
        weights = jnp.arange(1.0, 1 + cases.N)
        moving = tuple(range(len(arguments)))
        scalar = lambda *args: (per_row(case.definition(*args)) * weights).sum()
        return cases.compiled(lambda *args: (case.definition(*args), jax.grad(scalar, moving)(*args)))(*arguments)


PUBLIC = {"autoencoder": "mixture_autoencoder_loss", "eol": "eol_loss", "leop": "leop_loss"}


def function_of(case):
    """The public function, on a placement."""
    return placed.in_blocks(getattr(softjax, PUBLIC[case.name])) if case.name in PUBLIC else case.function


def per_row(x):
    return x.reshape(cases.N, -1).sum(-1)


@pytest.mark.parametrize("block", [pytest.param(None, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=lambda case: case.name)
@pytest.mark.parametrize("where", ["at the origin", "far from it", "centers nearly coincide"])
@pytest.mark.one_case_in(6)
def test_mixtures_keep_their_digits(case, where, block):
    random = cases.Random(jnp.float32, seed=5)
    offset = 1000.0 if where == "far from it" else 0.0
    arguments = [a + jnp.float32(offset) for a in case.arguments(random, 1.0)]
    if where == "centers nearly coincide":
        arguments[-2] = arguments[-2][:1] + 1e-4 * arguments[-2]
    weights = jnp.arange(1.0, 1 + cases.N, dtype=jnp.float32)
    function = function_of(case)
    scalar = lambda *args: (per_row(function(*args, block_size=block)) * weights).sum()
    moving = tuple(range(len(arguments)))
    got = jax.jit(lambda *args: (function(*args, block_size=block), jax.grad(scalar, moving)(*args)))(*arguments)
    want = mixtures_in_double(case, arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= PROMISED * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("block", [pytest.param(None, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("case", cases.MIXTURES, ids=lambda case: case.name)
@pytest.mark.one_case_in(2)
def test_mixtures_keep_their_digits_where_every_example_is_sure_of_its_center(case, block):
    """Centers some 8 apart; z and x within 0.1 of a center and of its value.

    Much farther apart, and the definition's derivative in float64 is no truth any more: at a margin of
    50 it is off by 5%.
    """
    random = cases.Random(jnp.float32, seed=0)
    c, a = random.normal(32, 4, scale=4.0), random.normal(32, cases.E)
    own = random.integers(32, cases.N)
    data = {
        "z": c[own] + random.normal(cases.N, 4, scale=0.1),
        "x": a[own] + random.normal(cases.N, cases.E, scale=0.1),
    }
    arguments = [*(data[name] for name in ("z", "x") if name == "z" or case.name != "decode"), c, a]
    weights = jnp.arange(1.0, 1 + cases.N, dtype=jnp.float32)
    function = function_of(case)
    scalar = lambda *args: (per_row(function(*args, block_size=block)) * weights).sum()
    moving = tuple(range(len(arguments)))
    both = jax.jit(lambda *args: (function(*args, block_size=block), jax.grad(scalar, moving)(*args)))
    value, gradients = both(*arguments)
    true_value, true_gradients = mixtures_in_double(case, arguments)
    np.testing.assert_allclose(value, true_value, rtol=PROMISED)
    # The scores of all classes come from a matrix product, with an error of eps |c_k|^2: here some 1e-5 of p_k.
    for a, b in zip(gradients, true_gradients, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 5e-5 * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("far", [100.0, 1e4])
@pytest.mark.one_case_in(2)
def test_one_center_far_away_does_not_cost_the_others_their_digits(far):
    centers = jnp.array([[0.0], [1.0], [0.5], [far]])
    z, x = jnp.array([0.3]), jnp.array([0.2])
    for loss, definition in (
        (softjax.mixture_autoencoder_loss, cases.autoencoder),
        (softjax.eol_loss, cases.minus_eol),
        (softjax.leop_loss, cases.leop),
    ):
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(z, x, centers, centers)
        want = cases.compiled(jax.value_and_grad(definition, (0, 1)))(z, x, centers[:3], centers[:3])
        np.testing.assert_allclose(got[0], want[0], rtol=PROMISED)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


def test_a_common_part_of_the_priors_costs_no_digits():
    c = jnp.array([[0.0], [1.0]])
    loss = lambda z, prior: softjax.mixture_autoencoder_loss(z, jnp.array([0.2]), c, c, log_prior=prior)
    prior, value_and_grad = jnp.array([0.0, 1.0]), jax.jit(jax.value_and_grad(loss))
    for offset in (100.0, 1e4, -1e4):
        got, want = (value_and_grad(jnp.array([0.3]), prior + o) for o in (offset, 0.0))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=PROMISED)
