"""The fused functions: their options, labels, types, memory, and the peers that have the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases, placed, spelled, table
from .cases import D, E, K, N

FORWARD = softjax.Placement(3, 5, "forward")
KEPT = softjax.Placement(99, 5, "forward", 5)
TILES = softjax.Placement(3, 5, "backward")
PLACEMENTS = {"whole": None, "blocks": 5, "tiles": TILES, "forward": FORWARD, "some kept": KEPT}


def ce(features, kernel, labels, *, class_weights=None, ignore_index=None, weights=None, **options):
    """The cross entropy of linear logits; class weights have no `ignore_index`, but weights of the examples."""
    if class_weights is not None and ignore_index is not None:
        kept, ignore_index = labels != ignore_index, None
        labels, weights = jnp.where(kept, labels, 0), kept.astype(features.dtype) * (1 if weights is None else weights)
    options |= {} if class_weights is None else {"class_weights": class_weights}
    options |= {} if ignore_index is None else {"ignore_index": ignore_index}
    return spelled.linear_softmax_cross_entropy(features, kernel, labels, weights=weights, **options)


def arguments(dtype, class_axis=-1):
    r = cases.Random(dtype, seed=6)
    x, w = r.normal(N, D), r.normal(D, K)
    return (x, w if class_axis else w.T), cases.labels(r), r


def value_and_vjp(function, ct=None):
    """Jitted; the cotangent is 1 if none is given."""

    def of(*args):
        value, back = jax.vjp(function, *args)
        return value, back(jnp.ones_like(value) if ct is None else ct)

    return cases.compiled(of)


def option_sets(r):
    """Every option alone, and all together."""
    weights, class_weights = jnp.abs(r.normal(N)), jnp.abs(r.normal(K))
    single = {
        "bias": r.normal(K),
        "where": np.arange(K) % 5 != 2,
        "weights": weights,
        "class_weights": class_weights,
        "ignore_index": 0,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "softcap": 2.0,
        "temperature": 0.6,
    }
    return [{name: value} for name, value in single.items()] + [single]


EVERY_OPTION = 9  # the set with all options; 4 is ignored labels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("number", "reduction"),
    cases.in_tiers(
        {f"{number}-{reduction}": (number, reduction) for number in range(10) for reduction in ("none", "mean")},
        ["4-none", f"{EVERY_OPTION}-mean"],
    ),
)
def test_options_of_the_linear_cross_entropy(number, reduction):
    (x, w), _, r = arguments(jnp.float64)
    options = option_sets(r)[number] | {"reduction": reduction}
    moving = {k: v for k, v in options.items() if isinstance(v, jax.Array)}
    fixed = {k: v for k, v in options.items() if k not in moving}
    size = FORWARD if reduction == "mean" else 5
    y = jnp.asarray([0, 5, 3, 11], jnp.int32)  # one of them ignored, none on a masked class
    assert_agree = cases.agreement(
        lambda x, w, moving: ce(x, w, y, **fixed, **moving, block_size=size),
        lambda x, w, moving: table.linear_softmax_cross_entropy(x, w, y, **fixed, **moving),
    )
    assert_agree(x, w, moving)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.one_case_in(2)
def test_the_function_of_features_and_a_kernel(reduction):
    """Its own options, all together, and both axes of the kernel."""
    (x, w), _, r = arguments(jnp.float64)
    y, b, weights = jnp.asarray([0, 5, 3, 11], jnp.int32), r.normal(K), jnp.abs(r.normal(N))
    options = {"ignore_index": 0, "label_smoothing": 0.2, "z_loss": 0.1, "reduction": reduction}
    function = placed.in_blocks(softjax.linear_softmax_cross_entropy)
    size = FORWARD if reduction == "mean" else 5

    def of_both_axes(x, w, b, weights):
        given = {"bias": b, "weights": weights, **options}
        last, first = function(x, w, y, block_size=size, **given), function(x, w.T, y, class_axis=0, **given)
        return last + 0.5 * first

    reference = lambda x, w, b, weights: (
        1.5 * table.linear_softmax_cross_entropy(x, w, y, bias=b, weights=weights, **options)
    )
    cases.agreement(of_both_axes, reference)(x, w, b, weights)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.one_case_in(2)
def test_pairs_of_classes_and_probabilities(reduction):
    (x, w), _, r = arguments(jnp.float64)
    indices, probabilities = r.integers(K, N, 4).at[:, 3].set(2).at[0, 0].set(2), jnp.abs(r.normal(N, 4))
    options = {"label_smoothing": 0.2, "class_weights": jnp.abs(r.normal(K)), "reduction": reduction}
    function = lambda x, w, p: ce(x, w, (indices, p), **options, block_size=5)
    reference = lambda x, w, p: table.linear_softmax_cross_entropy(x, w, (indices, p), **options)
    cases.agreement(function, reference)(x, w, probabilities)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True], ids=["integers", "pairs"])
def test_the_semantics_are_as_in_pytorch(soft, smoothing, class_weights, reduction):
    torch = pytest.importorskip("torch")
    (x, w), y, r = arguments(jnp.float32)
    weights = jnp.abs(r.normal(K)) if class_weights else None
    tensor = lambda a: torch.tensor(np.array(a))
    if soft:
        labels = (jnp.tile(jnp.arange(K, dtype=jnp.int32), (N, 1)), jax.nn.softmax(r.normal(N, K)))
        target, ignore = tensor(labels[1]), {}
    else:
        labels, ignore = y.at[2].set(-100), {"ignore_index": -100}
        target = tensor(labels).long()
    x_, w_ = tensor(x).requires_grad_(), tensor(w).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        x_ @ w_,
        target,
        weight=None if weights is None else tensor(weights),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    ct = cases.Random(jnp.float32, seed=7).normal(*loss.shape)
    loss.backward(tensor(ct))
    options = {"label_smoothing": smoothing, "reduction": reduction, "block_size": 5, **ignore}
    got, gradients = value_and_vjp(lambda x, w: ce(x, w, labels, class_weights=weights, **options), ct)(x, w)
    np.testing.assert_allclose(got, loss.detach().numpy(), rtol=1e-5)
    for a, b in zip(gradients, (x_.grad, w_.grad), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


# --- labels (test_edges has every line of the contract) -------------------------------------------


@pytest.mark.parametrize("placement", ["blocks"])
@pytest.mark.parametrize("label", [-1, K])
def test_a_label_out_of_range_gives_nan_in_loss_and_gradient(label, placement):
    (x, w), y, _ = arguments(jnp.float32)
    y = y.at[1].set(label)
    options = {"block_size": PLACEMENTS[placement]}
    loss, (dx, dw) = value_and_vjp(lambda x, w: ce(x, w, y, **options))(x, w)
    assert np.isnan(loss[1])
    assert np.isfinite(np.delete(loss, 1)).all()
    assert np.isnan(dx[1]).all()
    assert np.isfinite(np.delete(dx, 1, 0)).all()
    assert np.isnan(dw).any()
    value, (dx, _) = value_and_vjp(lambda x, w: ce(x, w, y, reduction="mean", **options))(x, w)
    assert np.isnan(value)
    assert np.isnan(dx[1]).all()


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("margin", [-80.0, -17.3, 0.0, 6.0, 17.3, 40.0, 80.0])
@pytest.mark.each_value_once
def test_sure_rows_keep_their_digits(margin, placement):
    """Features along one axis, so that the logits are exactly (margin, 0, 0, ...)."""
    w = jnp.zeros((2, K)).at[0, 3].set(1.0)
    x = jnp.asarray([[margin, 1.0]])
    value_and_grad = jax.value_and_grad(
        lambda x, w: ce(x, w, jnp.array([3]), reduction="sum", block_size=PLACEMENTS[placement]), (0, 1)
    )
    loss, (dx, dw) = value_and_grad(x, w)
    others = (K - 1) * np.exp(-np.float64(margin))
    p = 1 / (1 + others)
    np.testing.assert_allclose(loss, np.log1p(others), rtol=2e-6)
    np.testing.assert_allclose(dx[0, 0], -others * p, rtol=2e-6)
    np.testing.assert_allclose(dw[1, 3], -others * p, rtol=2e-6)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.each_value_once
def test_half_precision_is_rounded_once(placement, kind):
    """The gradient of the rounded inputs, rounded once, in the type of its input."""
    r = cases.Random(jnp.float32, seed=3)
    n, d, k = 64, 8, 40
    x, w, y = r.normal(n, d).astype(kind), r.normal(d, k).astype(kind), r.integers(k, n)
    half_a_step = float(jnp.finfo(kind).eps) / 2 + 1e-5
    for reduction in ("none", "mean"):
        f = lambda x, w, reduction=reduction: ce(x, w, y, reduction=reduction, block_size=PLACEMENTS[placement])
        times = 1 if reduction == "mean" else n
        g = lambda x, w, times=times: cases.softmax_loss(x @ w, y).mean() * times
        loss, gradients = value_and_vjp(f)(x, w)
        assert loss.dtype == jnp.float32
        want = cases.compiled(jax.grad(g, (0, 1)))(x.astype(jnp.float32), w.astype(jnp.float32))
        for a, b in zip(gradients, want, strict=True):
            assert a.dtype == jnp.dtype(kind)
            error = np.abs(np.asarray(a, np.float32) - b)
            assert (error <= half_a_step * np.abs(b) + 1e-6 * np.abs(b).max()).all()


def test_sums_of_half_precision_have_at_least_float32():
    """Of logits that are not in memory; an expectation of an array of logits has the type of its arguments."""
    x, w, v = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((2, 5), jnp.bfloat16), jnp.ones((5, 4), jnp.bfloat16)
    assert spelled.linear_expectation(x, w, v).dtype == jnp.float32
    assert spelled.linear_expectation(x, w, v.astype(jnp.float32)).dtype == jnp.float32
    assert spelled.linear_logsumexp(x, w).dtype == jnp.float32
    assert softjax.expectation(softjax.linear(x, w), v[:, 0]).dtype == jnp.float32
    assert softjax.expectation(x @ w, v[:, 0]).dtype == jnp.bfloat16
    assert softjax.expectation(x @ w, v[:, 0].astype(jnp.float32)).dtype == jnp.float32


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("placement", ["whole", "blocks"])
def test_expectation_and_logsumexp(placement):
    (x, w), _, r = arguments(jnp.float64)
    v, b = r.normal(K, E), r.normal(K)
    size = {"block_size": PLACEMENTS[placement]}
    live = np.arange(K) % 4 != 1
    assert_agree = cases.agreement(
        lambda x, w, v, b: spelled.linear_expectation(x, w, v, bias=b, where=live, temperature=0.7, **size),
        lambda x, w, v, b: table.linear_expectation(x, w, v, bias=b, where=live, temperature=0.7),
    )
    assert_agree(x, w, v, b)
    assert_agree = cases.agreement(
        lambda x, w, b: spelled.linear_logsumexp(x, w.T, bias=b, class_axis=0, softcap=2.0, temperature=0.7, **size),
        lambda x, w, b: table.linear_logsumexp(x, w, bias=b, softcap=2.0, temperature=0.7),
    )
    assert_agree(x, w, b)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.one_case_in(2)
def test_the_contrastive_loss(symmetric):
    r = cases.Random(jnp.float64)
    x, y, weights = r.normal(7, D), r.normal(7, D), jnp.abs(r.normal(7))

    reference = lambda x, y, t, **options: table.contrastive_loss(x, y, temperature=t, symmetric=symmetric, **options)
    loss = lambda x, y, t, **options: softjax.contrastive_loss(x, y, temperature=t, symmetric=symmetric, **options)
    cases.agreement(lambda *args: loss(*args, block_size=3), reference)(x, y, jnp.float64(0.3))
    mean = {"weights": weights, "reduction": "mean"}
    of_mean = lambda *args: loss(*args, block_size=FORWARD, **mean)
    cases.agreement(of_mean, lambda *args: reference(*args, **mean))(x, y, jnp.float64(0.3))


PUBLIC = {"autoencoder": "mixture_autoencoder_loss", "eol": "eol_loss", "leop": "leop_loss"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("case", "reduction"),
    cases.in_tiers(
        {f"{r}-{case.name}": (case, r) for case in cases.MIXTURES[:3] for r in ("none", "sum", "mean")},
        ("none-autoencoder", "mean-leop"),
    ),
)
def test_weights_and_reductions_of_mixtures(case, reduction):
    given = case.arguments(cases.Random(jnp.float64), 1.0)
    weights = jnp.asarray([0.5, 0.0, 2.0, 1.0])
    size = 5 if reduction == "none" else FORWARD
    of_public = placed.in_blocks(getattr(softjax, PUBLIC[case.name]))
    function = lambda w, *args: of_public(*args, weights=w, reduction=reduction, block_size=size)
    reference = lambda w, *args: case.definition(*args, weights=w, reduction=reduction)
    cases.agreement(function, reference)(weights, *given)
    if reduction == "mean":
        assert cases.compiled(function)(jnp.zeros(N), *given) == 0


# --- memory ---------------------------------------------------------------------------------------

MEMORY_MODES = {
    "value": lambda f: f,
    "reverse mode": lambda f: jax.grad(f, (0, 1)),
    "forward mode": lambda f: lambda *args: jax.jvp(f, args, args),
    "forward over reverse": lambda f: lambda *args: jax.jvp(jax.grad(f, (0, 1)), args, args),
    "reverse over reverse": lambda f: jax.grad(
        lambda *args: sum((g**2).sum() for g in jax.grad(f, (0, 1))(*args)), (0, 1)
    ),
    "reverse over forward": lambda f: jax.grad(lambda *args: jax.jvp(f, args, args)[1], (0, 1)),
    "linearize": lambda f: lambda *args: jax.linearize(f, *args)[1](*args),
    "vmap": lambda f: lambda x, w: jax.vmap(f, (0, None))(x.reshape(4, -1, x.shape[1]), w),
}


def temporaries(program, n, d, k, class_axis=-1):
    shapes = (n, d), ((d, k) if class_axis else (k, d))
    compiled = jax.jit(program).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


MEMORY_SIZES = {
    "blocks": 128,
    "forward": softjax.Placement(64, 128, "forward"),
    "tiles": softjax.Placement(64, 128, "backward"),
}
FIRST_ORDER = [f"reverse mode-{name}" for name in MEMORY_SIZES]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("mode", "size"),
    cases.in_tiers(
        {f"{mode}-{name}": (mode, size) for mode in MEMORY_MODES for name, size in MEMORY_SIZES.items()},
        [*FIRST_ORDER, *(f"{mode}-forward" for mode in ("value", "forward over reverse"))],
    ),
)
def test_the_logits_are_never_held(mode, size):
    n, d, k = 1024, 4, 16384
    scores, kernel = 4 * n * k, 4 * d * k
    reduction = "mean" if mode != "vmap" else "sum"
    program = MEMORY_MODES[mode](lambda x, w: ce(x, w, jnp.arange(x.shape[0]), reduction=reduction, block_size=size))
    assert temporaries(program, n, d, k) < scores / 8 + 16 * kernel


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("class_axis", [0, pytest.param(-1, marks=pytest.mark.slow)])
def test_the_kernel_is_neither_transposed_nor_padded(class_axis):
    n, d, k = 64, 512, 32768 + 17
    for reduction, size in (("none", 512), ("mean", softjax.Placement(64, 512, "forward"))):
        options = {"class_axis": class_axis, "reduction": reduction, "block_size": size}
        loss = lambda x, w, options=options: ce(x, w, jnp.zeros(n, int), **options).sum()
        assert temporaries(loss, n, d, k, class_axis) < 4 * d * k / 4
        # The gradient of the kernel may be there once more than as a result, and the kernel may not.
        assert temporaries(jax.grad(loss, (0, 1)), n, d, k, class_axis) < 1.5 * 4 * d * k


@pytest.mark.usefixtures("optimised")
def test_memory_does_not_grow_with_the_classes_but_for_their_gradients():
    n, d = 512, 8
    gradient = jax.grad(lambda x, w: ce(x, w, jnp.zeros(n, int), block_size=256).sum(), (0, 1))
    small, large = temporaries(gradient, n, d, 8192), temporaries(gradient, n, d, 32768)
    assert large - small <= 2 * 4 * d * (32768 - 8192)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_similarities_of_a_contrastive_loss_are_never_held(reduction):
    n, d = 4096, 8
    loss = lambda x, y: softjax.contrastive_loss(x, y, reduction=reduction).sum()
    assert temporaries(jax.grad(loss, (0, 1)), n, d, n, class_axis=0) < 4 * n * n / 8


# --- placement ------------------------------------------------------------------------------------


def test_the_placement_that_is_printed_is_the_one_that_is_used(monkeypatch):
    from softjax import _of

    used = []
    evaluated = _of._evaluate
    spy = lambda *args: used.append(args[6]) or evaluated(*args)
    monkeypatch.setattr(_of, "_evaluate", spy)
    for n, d, k, reduction in (  # sizes that no other test has traced
        (7, 3, 19, "mean"),
        (521, 256, 4099, "mean"),
        (521, 8, 4099, "mean"),
        (521, 256, 4099, "none"),
    ):
        shapes = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((d, k), jnp.float32)
        jax.eval_shape(lambda x, w, r=reduction: ce(x, w, jnp.zeros(x.shape[0], int), reduction=r), *shapes)
        assert used.pop() == softjax.placement(n, k, d, reduction=reduction)
        assert not used


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_placements_hold_a_bounded_part_of_the_scores(platform, reduction):
    for n, k, d in itertools.product((1, 100, 4096, 10**6), (1, 100, 32768, 10**7), (8, 4096)):
        tile, block, gradient, kept = softjax.placement(n, k, d, reduction=reduction, platform=platform)
        assert 1 <= tile <= n
        assert 1 <= block <= k
        held = 4 * tile * (block + (k if kept is None else kept) * (gradient == "forward"))
        assert held <= {"cpu": 2**29, "gpu": 2**34, "tpu": 2**34}[platform], (n, k, d)


# --- labels of a narrow type ----------------------------------------------------------------------


def test_an_ignored_label_that_the_labels_type_cannot_hold_ignores_none():
    x, w, y = jnp.ones((4, 3)), jnp.ones((3, 7)), jnp.zeros(4, int)
    assert (ce(x, w, y.astype("int8"), ignore_index=-1000) == ce(x, w, y)).all()
