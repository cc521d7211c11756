"""Distillation: every form of teacher and divergence against the definition in the table."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases, spelled, table

N, K, D, E, T = 4, 13, 3, 5, 3
WHERE = jnp.arange(K) % 3 != 1
TEACHERS = ("layer", "probabilities", "zeros", "pair")
DIVERGENCES = ("forward", "reverse", "jensen_shannon")
PLACEMENTS = {
    "whole": (None, "none"),
    "ragged": (5, "none"),
    "tiles": (softjax.Placement(3, 5, "backward"), "sum"),
    "forward": (softjax.Placement(3, 5, "forward", 5), "mean"),
}


def teacher(kind, r):
    """Arguments that give a teacher."""
    if kind == "layer":
        arrays = {"teacher_features": r.normal(N, E), "teacher_kernel": r.normal(E, K), "teacher_bias": r.normal(K)}
        return arrays | {"teacher_softcap": 4.0}
    probs = jax.nn.softmax(2 * r.normal(N, K))
    if kind == "pair":
        ids = jnp.asarray([[0, 12, 5], [7, 3, 4], [1, 2, 3], [9, 6, 0]], jnp.int32)
        chosen = jnp.take_along_axis(probs, ids, -1).at[0, 1].set(0)
        return {"teacher_probs": (ids, chosen / chosen.sum(-1, keepdims=True))}
    probs = jnp.where(jnp.arange(K) % 4 != 2, probs, 0) if kind == "zeros" else probs
    return {"teacher_probs": probs / probs.sum(-1, keepdims=True)}


def student(r, scale=1.0):
    return r.normal(N, D, scale=scale), r.normal(D, K), r.normal(K)


def cells():
    for divergence in DIVERGENCES:
        for kind in TEACHERS:
            if not (divergence == "reverse" and kind in ("zeros", "pair")):
                for placement in PLACEMENTS:
                    yield divergence, kind, placement


FAST = {("forward", "layer", "forward"), ("reverse", "probabilities", "ragged"), ("jensen_shannon", "pair", "tiles")}
FAST |= {("forward", "zeros", "whole")}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("divergence", "kind", "placement"),
    cases.in_tiers({"-".join(cell): cell for cell in cells()}, {"-".join(cell) for cell in FAST}),
)
def test_all_modes(divergence, kind, placement):
    r = cases.Random(jnp.float64)
    size, reduction = PLACEMENTS[placement]
    options = {"divergence": divergence, "reduction": reduction, "softcap": 5.0, **teacher(kind, r)}
    options |= {"temperature": 1.7} | ({"where": WHERE} if kind == "layer" else {})

    def named(function, **more):
        return lambda x, w, b: function(x, w, bias=b, **options, **more)

    ours = named(spelled.linear_distillation_loss, block_size=size)
    check = cases.agreement(ours, named(table.linear_distillation_loss))
    check(*student(r))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_digits_of_a_student_near_its_teacher(divergence):
    """The divergence is then about 1e-7; "jensen_shannon" is a sum of squares, the others are differences."""
    r = np.random.default_rng(0)
    x, w, apart = (r.normal(size=shape).astype(np.float32) for shape in ((N, D), (D, K), (D, K)))
    teacher_kernel = w + np.float32(1e-3) * apart
    wide = [a.astype(np.float64) for a in (x, w, teacher_kernel)]
    loss = lambda f, x, w, v: f(x, w, teacher_features=x, teacher_kernel=v, divergence=divergence)
    got = loss(ft.partial(spelled.linear_distillation_loss, block_size=5), x, w, teacher_kernel)
    want = loss(table.linear_distillation_loss, *wide)
    assert want.max() < 1e-6
    eps = np.finfo(np.float32).eps
    limits = {"rtol": 5e-3} if divergence == "jensen_shannon" else {"atol": 2 * eps * np.abs(x @ w).max()}
    np.testing.assert_allclose(got, want, **({"rtol": 0} | limits))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.one_case_in(3)
def test_several_leading_axes(divergence):
    r = cases.Random(jnp.float32)
    x, w, _ = student(r)
    of_rows = {"teacher_features": r.normal(N, E), "teacher_kernel": r.normal(E, K), "divergence": divergence}
    of_batch = of_rows | {"teacher_features": of_rows["teacher_features"].reshape(2, 2, E)}
    got = spelled.linear_distillation_loss(x.reshape(2, 2, D), w, **of_batch, block_size=5)
    np.testing.assert_array_equal(got, spelled.linear_distillation_loss(x, w, **of_rows, block_size=5).reshape(2, 2))


def test_a_class_that_the_teacher_excludes():
    """KL(p || q) is infinite where q_k is 0 and p_k is not; a pair is refused for it."""
    r = cases.Random(jnp.float32)
    x, w, _ = student(r)
    loss = ft.partial(spelled.linear_distillation_loss, x, w, divergence="reverse")
    assert jnp.isposinf(loss(**teacher("zeros", r), block_size=5)).all()
    assert jnp.isfinite(loss(**teacher("zeros", r), where=jnp.arange(K) % 4 != 2)).all()


def test_a_label_of_a_pair_out_of_range_gives_nan():
    x, w, _ = student(cases.Random(jnp.float32))
    ids, probs = jnp.asarray([[0, 1], [2, K], [-1, 3], [4, 5]]), jnp.full((N, 2), 0.5)
    loss = spelled.linear_distillation_loss(x, w, teacher_probs=(ids, probs))
    assert jnp.isnan(loss).tolist() == [False, True, True, False]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("kind", ["layer", "logits"])
@pytest.mark.one_case_in(2)
def test_a_teacher_has_no_gradient_and_no_product_for_one(kind):
    """Nothing of the size of the teacher's arrays is computed for it, and no array has the size of the logits."""
    n, k, d = 256, 8192, 64
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    given = (shape(n, d), shape(d, k)) if kind == "layer" else (shape(n, k),)

    def loss(x, w, *of_teacher):
        teacher = softjax.linear(*of_teacher, block_size=256) if kind == "layer" else of_teacher[0]
        student = softjax.linear(x, w, block_size=256)
        return softjax.kl_divergence(jax.lax.stop_gradient(teacher), student, reduction="mean")

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(shape(n, d), shape(d, k), *given).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 0.75 * 4 * n * k
    moving = jax.jit(jax.grad(loss, tuple(range(2 + len(given))))).lower(shape(n, d), shape(d, k), *given).compile()
    assert moving.memory_analysis().temp_size_in_bytes <= temporaries * 1.01
    zeros = jax.jit(jax.grad(loss, 2))(*(jnp.ones(s.shape) for s in (shape(n, d), shape(d, k), *given)))
    assert not zeros.any()


MESHES = {"classes": {"class_axis_name": "classes"}, "both": {"class_axis_name": "classes", "batch_axis_name": "data"}}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.one_case_in(4)
def test_over_a_mesh_that_does_not_divide_the_classes(kind, divergence):
    if divergence == "reverse" and kind in ("zeros", "pair"):
        pytest.skip("it is infinite")
    r = cases.Random(jnp.float64)
    options = {"divergence": divergence, "reduction": "mean", **teacher(kind, r)}
    both = MESHES["both"] | {"mesh": cases.mesh(2, 4), "block_size": 3}
    ours = lambda *args: spelled.linear_distillation_loss(*args, **options, **both)
    cases.agreement(ours, lambda *args: table.linear_distillation_loss(*args, **options))(*student(r)[:2])
