"""Masks and other data of each example and class, and the contrastive losses that need them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases, spelled, table

N, K, D, T = 4, 13, 3, 3
MASK = np.random.default_rng(3).random((N, K)) < 0.6
MASK[np.arange(N), [0, 3, 4, 12]] = True
LABELS = jnp.asarray([0, 3, 4, 12], jnp.int32)
PLACEMENTS = {
    "whole": (None, "none"),
    "ragged": (5, "none"),
    "tiles": (softjax.Placement(3, 5, "backward"), "sum"),
    "forward": (softjax.Placement(3, 5, "forward", 5), "mean"),
}
in_placements = pytest.mark.parametrize(("size", "reduction"), PLACEMENTS.values(), ids=PLACEMENTS)


def of_ids(i, k):
    return (7 * i + 3 * k) % 5 != 0


def of_array(mask):
    """The mask as a function, which closes over it."""
    mask = jnp.asarray(mask)
    return lambda i, k: mask[i, k]


FORMS = {"array": MASK, "function": of_array(MASK)}


@pytest.mark.usefixtures("x64")
@in_placements
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.each_value_once
def test_a_mask_of_each_example(form, size, reduction):
    r = cases.Random(jnp.float64)
    options = {"softcap": 5.0, "z_loss": 0.1, "reduction": reduction}

    def ours(x, w, b):
        given = {"bias": b, "where": FORMS[form], "block_size": size, **options}
        return spelled.linear_softmax_cross_entropy(x, w, LABELS, **given)

    def definition(x, w, b):
        z = table.linear_scores(x, w, b, softcap=5.0)
        a = table.log_sum_exp(z, where=MASK)
        return table.reduced(a - table.at(z, LABELS) + 0.1 * a**2, reduction)

    cases.agreement(ours, definition)(r.normal(N, D), r.normal(D, K), r.normal(K))


@pytest.mark.usefixtures("x64")
def test_a_function_of_ids_without_arrays():
    r = cases.Random(jnp.float64)
    mask = np.asarray(of_ids(np.arange(N)[:, None], np.arange(K)[None]))
    ours = lambda x, w: spelled.linear_logsumexp(x, w, where=of_ids, block_size=5)
    cases.agreement(ours, lambda x, w: table.linear_logsumexp(x, w, where=mask))(r.normal(N, D), r.normal(D, K))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mixture_autoencoder_loss", "leop_loss"])
@pytest.mark.each_value_once
def test_masks_of_mixtures(name, form):
    r = cases.Random(jnp.float64)
    ours = lambda *args: getattr(spelled, name)(*args, where=FORMS[form], block_size=5)
    definition = lambda *args: table.FUNCTIONS[name].definition(*args, where=MASK)
    cases.agreement(ours, definition)(r.normal(N, D), r.normal(N, 5), r.normal(K, D), r.normal(K, 5))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_masks_of_own_scores(form):
    def own(z, c):
        cauchy = lambda x, y: 1 / (1 + ((x - y) ** 2).sum() / 4)
        logits = softjax.pairwise(cauchy, z, c, block_size=5).where(FORMS[form])
        return softjax.logsumexp(logits, axis=-1)

    r = cases.Random(jnp.float64)
    definition = lambda z, c: table.log_sum_exp(table.cauchy(2.0, z, c), where=MASK)
    cases.agreement(own, definition)(r.normal(N, D), r.normal(K, D))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("labels", ["lists", "targets"])
def test_binary_cross_entropy_over_a_mesh_that_does_not_divide_the_classes(labels):
    r = cases.Random(jnp.float64)
    given = jnp.asarray([[0, 12], [7, 3], [1, 2], [9, 6]]) if labels == "lists" else jnp.abs(r.normal(N, K)) % 1
    axes = {"mesh": cases.mesh(2, 4), "class_axis_name": "classes", "batch_axis_name": "data", "block_size": 3}
    ours = lambda x, w: spelled.linear_sigmoid_binary_cross_entropy(x, w, given, reduction="mean", **axes)
    definition = lambda x, w: table.linear_sigmoid_binary_cross_entropy(x, w, given, reduction="mean")
    cases.agreement(ours, definition)(r.normal(N, D), r.normal(D, K))


@pytest.mark.usefixtures("x64")
def test_masks_when_classes_are_chosen():
    r = cases.Random(jnp.float64)
    x, w = r.normal(N, D), r.normal(D, K)
    z = np.where(MASK, np.asarray(x @ w), -np.inf)
    top = spelled.linear_top_k(x, w, 2, where=MASK, block_size=5)
    np.testing.assert_array_equal(top.ids, np.argsort(-z, -1)[:, :2])
    np.testing.assert_array_equal(spelled.linear_argmax(x, w, where=FORMS["function"], block_size=5), z.argmax(-1))
    drawn = spelled.linear_sample(jax.random.key(0), x, w, where=MASK, shape=200, block_size=5)
    assert MASK[np.arange(N)[:, None], drawn].all()


def test_a_row_without_a_class_and_nan_features_of_ignored_rows():
    x, w = jnp.ones((N, D)).at[2].set(jnp.nan), jnp.ones((D, K))
    none = jnp.asarray(MASK).at[1].set(False)
    assert spelled.linear_logsumexp(jnp.ones((N, D)), w, where=none)[1] == -jnp.inf
    loss = lambda x: spelled.linear_softmax_cross_entropy(
        x, w, LABELS.at[2].set(-100), where=MASK, ignore_index=-100, reduction="mean"
    )
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_masks_over_a_mesh_that_does_not_divide_the_classes(form):
    r = cases.Random(jnp.float64)
    axes = {"mesh": cases.mesh(2, 4), "class_axis_name": "classes", "batch_axis_name": "data", "block_size": 3}

    def ours(x, w):
        return spelled.linear_softmax_cross_entropy(x, w, LABELS, where=FORMS[form], reduction="mean", **axes)

    def definition(x, w):
        z = x @ w
        return (table.log_sum_exp(z, where=MASK) - table.at(z, LABELS)).mean()

    cases.agreement(ours, definition)(r.normal(N, D), r.normal(D, K))


def test_no_mask_is_copied():
    """A mask [N, K] is read in blocks: no temporary array has its size."""
    n, d, k = 512, 64, 16384
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)

    def loss(x, w, y, where):
        return spelled.linear_softmax_cross_entropy(x, w, y, where=where, reduction="mean", block_size=512)

    given = shape(n, d), shape(d, k), shape(n, dtype=jnp.int32)
    temporaries = [
        jax.jit(jax.grad(loss, (0, 1))).lower(*given, mask).compile().memory_analysis().temp_size_in_bytes
        for mask in (shape(k, dtype=bool), shape(n, k, dtype=bool))
    ]
    assert temporaries[1] < temporaries[0] + n * k / 4


@pytest.mark.usefixtures("x64")
@in_placements
def test_targets_of_each_example_and_class(size, reduction):
    r = cases.Random(jnp.float64)
    targets = jnp.abs(r.normal(N, K)) % 1
    options = {"reduction": reduction, "where": jnp.asarray(MASK)}
    ours = lambda x, w: spelled.linear_sigmoid_binary_cross_entropy(x, w, targets, block_size=size, **options)
    definition = lambda x, w: table.linear_sigmoid_binary_cross_entropy(x, w, targets, **options)
    cases.agreement(ours, definition)(r.normal(N, D), r.normal(D, K))


@pytest.mark.usefixtures("x64")
@in_placements
@pytest.mark.parametrize("of_pairs", [False, True], ids=["labels", "pairs"])
@pytest.mark.each_value_once
def test_lists_of_labels_of_different_lengths(of_pairs, size, reduction):
    r = cases.Random(jnp.float64)
    ids = jnp.asarray([[0, 12, 5], [-1, -1, -1], [4, -1, 3], [12, 0, -1]], jnp.int32)
    x, w, targets = r.normal(N, D, scale=3), r.normal(D, K), jnp.abs(r.normal(N, T)) % 1
    options = {"ignore_index": -1, "reduction": reduction}
    given = lambda targets: (ids, *targets) if of_pairs else ids
    ours = lambda x, w, *t: spelled.linear_sigmoid_binary_cross_entropy(x, w, given(t), block_size=size, **options)
    definition = lambda x, w, *t: table.linear_sigmoid_binary_cross_entropy(x, w, given(t), **options)
    cases.agreement(ours, definition)(x, w, *((targets,) if of_pairs else ()))


def test_labels_out_of_range_give_nan_and_confident_ones_keep_their_digits():
    x, w = jnp.eye(2), jnp.asarray([[20.0, -20.0, -20.0], [0.0, 0.0, 0.0]])
    loss = spelled.linear_sigmoid_binary_cross_entropy
    np.testing.assert_allclose(loss(x, w, jnp.asarray([[0], [1]]))[0], 3 * np.log1p(np.exp(-20.0)), rtol=1e-6)
    assert jnp.isnan(loss(x, w, jnp.asarray([[3], [1]]))).tolist() == [True, False]
    assert jnp.isnan(loss(x, w, jnp.asarray([[-1], [1]]))).tolist() == [True, False]


def test_a_loss_of_ones_own_sees_blocks():
    """Data of each example and class are logits: the Brier score of soft labels, sum_k (p_k - y_k)^2 - p_k^2."""
    r = cases.Random(jnp.float32)
    x, w, y = r.normal(N, D), r.normal(D, K), jax.nn.softmax(r.normal(N, K))
    linear_part = softjax.Loss(
        lambda z, *_: softjax.Columns(z[0], payoffs=(-2 * z[1],), terms=(z[1] ** 2,)),
        lambda q, _: q.payoffs[0].value + q.terms[0],
        logits=2,
    )
    got = softjax.of(linear_part, (softjax.linear(x, w, block_size=5), y))
    p = jax.nn.softmax(x @ w)
    np.testing.assert_allclose(got, ((p - y) ** 2 - p**2).sum(-1), rtol=2e-5, atol=2e-6)


# --- contrastive losses ---------------------------------------------------------------------------

VIEWS = ("contrastive_loss", "nt_xent_loss", "supervised_contrastive_loss", "siglip_loss")
M = 8
OF_LABELS = jnp.asarray([0, 1, 0, 2, 1, 0, 3, 1], jnp.int32)  # two of them alone
NEGATIVES = np.random.default_rng(5).random((M, M)) < 0.7
np.fill_diagonal(NEGATIVES, val=True)


def views(name, r):
    second = OF_LABELS if name == "supervised_contrastive_loss" else r.normal(M, D)
    masks = {"where": NEGATIVES} if name in ("contrastive_loss", "siglip_loss") else {}
    return (r.normal(M, D), second), masks


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.each_value_once
def test_contrastive_losses(name, placement):
    r = cases.Random(jnp.float64)
    (x, second), options = views(name, r)
    size, reduction = PLACEMENTS[placement]
    options |= {"reduction": reduction, "weights": jnp.abs(r.normal(M))}
    ours = lambda *args: getattr(softjax, name)(*args[:2], temperature=args[2], block_size=size, **options)
    definition = lambda *args: table.FUNCTIONS[name].definition(*args[:2], temperature=args[2], **options)
    cases.agreement(ours, definition)(x, second, jnp.float64(0.6))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.each_value_once
def test_contrastive_losses_over_a_mesh(name, reduction):
    r = cases.Random(jnp.float64)
    (x, second), options = views(name, r)
    options = {name: of_array(mask) for name, mask in options.items()}
    weights = jnp.abs(r.normal(M))
    more = {"mesh": cases.mesh(2, 4), "batch_axis_name": ("data", "classes"), "weights": weights, "block_size": 3}

    def ours(x, second):
        return getattr(spelled, name)(x, second, reduction=reduction, **options, **more)

    masks = {"where": NEGATIVES} if options else {}

    def definition(x, second):
        return table.FUNCTIONS[name].definition(x, second, reduction=reduction, weights=weights, **masks)

    cases.agreement(ours, definition)(x, second)


@pytest.mark.parametrize("name", VIEWS)
def test_bfloat16_views_have_gradients_of_their_type(name):
    r = cases.Random(jnp.float32)
    x, y = (r.normal(M, D).astype(jnp.bfloat16) for _ in range(2))
    of_second = name != "supervised_contrastive_loss"
    wide = (lambda a: a.astype(jnp.float32)) if of_second else lambda a: a
    second = y if of_second else OF_LABELS
    gradient = jax.jit(jax.grad(lambda x: getattr(softjax, name)(x, second, reduction="mean")))(x)
    definition = table.FUNCTIONS[name].definition
    want = jax.jit(jax.grad(lambda x: definition(x, wide(second), reduction="mean")))(x.astype(jnp.float32))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), want, atol=4e-3 * np.abs(want).max())
