"""Swapped in for optax's and jax.nn's functions: the same results on sane input, better ones where they break."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softjax

from . import cases

PAIRS = {
    name: (getattr(softjax, name), getattr(optax.losses, name))
    for name in ("softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "multiclass_hinge_loss")
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """As optax itself needs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def agree(name, *args, rtol=1e-6, **options):
    ours, theirs = PAIRS[name]
    like = jax.eval_shape(lambda *args: theirs(*args, **options), *args)
    ct = jnp.asarray(np.random.default_rng(0).normal(size=like.shape), like.dtype)

    @cases.compiled
    def both(*args):
        of_each = [jax.vjp(lambda z, f=f: f(z, *args[1:], **options), args[0]) for f in (ours, theirs)]
        return [(value, back(ct)[0]) for value, back in of_each]

    got, want = both(*args)
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)
    assert got[0].shape == want[0].shape
    assert got[0].dtype == want[0].dtype


@pytest.mark.parametrize("name", PAIRS)
def test_argument_names_and_order_are_the_same(name):
    ours, theirs = (inspect.signature(f).parameters for f in PAIRS[name])
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter in list(theirs):
        assert ours[parameter].default == theirs[parameter].default


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_signatures_of_jax_nn_are_kept(name):
    ours, theirs = (list(inspect.signature(getattr(m, name)).parameters) for m in (softjax, jax.nn))
    assert ours == theirs


@pytest.mark.parametrize("axis", [-1, 0, 1, (1,), (0, 2), (2, 1), (-1, -3)])
@pytest.mark.each_value_once
def test_integer_labels_over_any_axes(axis, dtype):
    random = cases.Random(dtype)
    z = random.normal(2, 3, 4)
    axes = [a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))]
    count = int(np.prod([z.shape[a] for a in axes]))
    y = random.integers(count, *(n for a, n in enumerate(z.shape) if a not in axes))
    agree("softmax_cross_entropy_with_integer_labels", z, y, axis=axis)


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), None])
@pytest.mark.each_value_once
def test_soft_labels_over_any_axes(axis, dtype):
    random = cases.Random(dtype)
    agree("softmax_cross_entropy", random.normal(2, 3, 4), random.normal(2, 3, 4), axis=axis)
    agree("softmax_cross_entropy", random.normal(2, 3, 4), random.normal(4), axis=axis)


def test_masks_of_classes_and_of_examples(dtype):
    random = cases.Random(dtype)
    z, labels, y = random.normal(5, 4), random.integers(4, 5), random.normal(5, 4)
    classes = jnp.ones((5, 4), bool).at[0, 1].set(False).at[2, 3].set(False)
    classes = classes.at[jnp.arange(5), labels].set(True)
    examples = jnp.array([True, False, True, True, False])
    agree("softmax_cross_entropy", z, y, where=classes)
    for where in (classes, examples, examples[:, None]):
        agree("softmax_cross_entropy_with_integer_labels", z, labels, where=where)


def test_soft_labels_of_masked_examples_cost_nothing(dtype):
    random = cases.Random(dtype)
    z, y = random.normal(3, 4), random.normal(3, 4)
    loss = softjax.softmax_cross_entropy(z, y, where=jnp.array([True, False, True]))
    np.testing.assert_allclose(loss, jnp.where(jnp.array([True, False, True]), cases.cross_entropy(z, y), 0), rtol=1e-5)


def test_hinge(dtype):
    random = cases.Random(dtype)
    agree("multiclass_hinge_loss", random.normal(5, 4), random.integers(4, 5))


def test_softmax_and_logsumexp_of_jax_nn(dtype):
    z, where = cases.Random(dtype).normal(2, 3, 4), jnp.arange(4) != 1
    ours = softjax.softmax, softjax.log_softmax, softjax.logsumexp
    theirs = jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp

    @cases.compiled
    def every(z, where):
        return [
            [
                f(z, axis=axis, **options)
                for axis in (-1, 0, (0, 2), None)
                for options in ({}, {"where": where})
                for f in fs
            ]
            for fs in (ours, theirs)
        ]

    for got, want in zip(*every(z, where), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
    kept = softjax.logsumexp(z, (0, 2), keepdims=True)
    np.testing.assert_allclose(kept, jax.nn.logsumexp(z, (0, 2), keepdims=True), rtol=1e-5)


# --- where they break -------------------------------------------------------------------------------


def test_a_sure_row_keeps_its_loss():
    """Optax's loss of a row that is 17 ahead is 0 in float32; the true one is 8.28e-8."""
    z, y = jnp.array([[17.0, 0.0, 0.0]]), jnp.array([0])
    ours, theirs = PAIRS["softmax_cross_entropy_with_integer_labels"]
    assert theirs(z, y)[0] == 0
    np.testing.assert_allclose(ours(z, y), [2 * np.exp(-17.0)], rtol=1e-6)


def test_a_label_of_minus_1_is_not_the_last_class():
    z, y = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([-1])
    ours, theirs = PAIRS["softmax_cross_entropy_with_integer_labels"]
    assert np.isfinite(theirs(z, y)).all()
    assert np.isnan(ours(z, y)).all()


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("mask", ["none", "examples", "classes"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"])
@pytest.mark.each_value_once
def test_gradients_over_several_axes_need_no_more_memory(name, mask):
    """Of logits that are given, and of logits that are computed: temporaries and results together."""
    b, l, d, v = shape = 4, 16, 8, 512
    labels = jnp.zeros((*shape[:2], v) if name == "softmax_cross_entropy" else shape[:2], jnp.int32)
    where = {"none": None, "examples": jnp.ones((b, l), bool), "classes": jnp.ones((b, l, v), bool)}[mask]
    labels = labels.astype("float32") if labels.ndim == 3 else labels

    def bytes_of(loss, program, *shapes):
        mean = lambda *args: loss(program(*args[:-2]), args[-2], where=args[-1]).mean()
        step = jax.value_and_grad(mean, tuple(range(len(shapes))))
        given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        memory = jax.jit(step).lower(*given, labels, where).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    for program, shapes in ((lambda z: z, [(b, l, v)]), (lambda x, w: jnp.tanh(x @ w), [(b, l, d), (d, v)])):
        ours, theirs = (bytes_of(loss, program, *shapes) for loss in PAIRS[name])
        assert ours <= 1.05 * theirs


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_rows_that_are_left_out_may_hold_anything(name, axis):
    """In value and derivatives of both orders: as if the rows were not there. In optax their gradient is NaN."""
    r = cases.Random("float32")
    z, t, y = r.normal(3, 4, 5), r.normal(3, 4, 5), r.integers(5, 3, 4)
    kept, ct = jnp.ones((3, 4), bool).at[1, 2].set(False).at[2, 0].set(False), r.normal(3, 4)
    if name == "softmax_cross_entropy":
        y = jax.nn.softmax(r.normal(3, 4, 5))
    ours, theirs = PAIRS[name]
    move = lambda a: a if a.ndim < 3 else jnp.moveaxis(a, -1, axis)
    lost = jnp.where(kept[..., None], 0, jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0, 1]))

    total = lambda z, where: (ours(move(z + lost), move(y), axis, where) * ct).sum()
    summed = {
        "given": lambda z: total(z, kept),
        "with an axis more": lambda z: total(z, move(kept[..., None])),
        "definition": lambda z: (jnp.where(kept, theirs(move(z), move(y), axis), 0) * ct).sum(),
    }
    if y.ndim == 2:
        unknown = jnp.where(kept, y, -7)
        ignoring = lambda z: (ours(move(z + lost), unknown, axis, ignore_index=-7) * ct).sum()
        summed["ignored"] = ignoring

    @cases.compiled
    def derivatives(z, t):
        hvp = lambda f: jax.grad(lambda z: (jax.grad(f)(z) * t).sum())(z)
        of = lambda f: (*jax.value_and_grad(f)(z), jax.jvp(f, (z,), (t,))[1], hvp(f), jax.jvp(jax.grad(f), (z,), (t,)))
        return {name: of(f) for name, f in summed.items()}

    found = derivatives(z, t)
    want = found.pop("definition")
    for got in found.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    masked = jax.vmap(lambda z, y, kept: ours(z, y, where=kept))(z + lost, y, kept)
    np.testing.assert_array_equal(jnp.isnan(masked), False)


NO_CLASS = {
    "softmax": (lambda m, z: m.softmax(z), jax.nn),
    "log_softmax": (lambda m, z: m.log_softmax(z, axis=(1,)), jax.nn),
    "logsumexp": (lambda m, z: m.logsumexp(z, axis=-1, keepdims=True), jax.nn),
    "logsumexp of all": (lambda m, z: m.logsumexp(z), jax.nn),
    "soft labels": (lambda m, z: m.softmax_cross_entropy(z, z), optax),
    "softmax of the other axis": (lambda m, z: m.softmax(z, 0), jax.nn),
}


@pytest.mark.parametrize("case", NO_CLASS)
def test_of_no_class(case):
    function, theirs = NO_CLASS[case]
    of = lambda m: jax.vjp(lambda z: function(m, z), jnp.zeros((3, 0)))
    (got, back), (want, _) = of(softjax), of(theirs)
    np.testing.assert_array_equal(got, want)
    assert got.shape == want.shape
    assert back(got)[0].shape == (3, 0)


def test_of_no_class_where_no_other_library_has_a_value():
    z, y = jnp.zeros((3, 0)), jnp.zeros(3, jnp.int32)
    np.testing.assert_array_equal(softjax.entropy(z), [-np.inf] * 3)
    np.testing.assert_array_equal(softjax.expectation(z, z), [0.0] * 3)
    nan = [np.nan] * 3  # a label is none of the classes
    np.testing.assert_array_equal(softjax.softmax_cross_entropy_with_integer_labels(z, y), nan)
    np.testing.assert_array_equal(softjax.softmax_cross_entropy_with_integer_labels(z, y, ignore_index=0), [0.0] * 3)
    for hinge in (softjax.multiclass_svm_loss, softjax.multiclass_hinge_loss, optax.losses.multiclass_hinge_loss):
        with pytest.raises(ValueError, match=r"with K classes|zero-size array"):
            hinge(z, y)
