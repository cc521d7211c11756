"""Every public function lowers for every platform, and multiplies matrices with all the digits of their type."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import softjax

from . import cases, spelled, table
from .test_transformations import ROWS, K, N, Row, arrays
from .test_transformations import value_and_gradients as value_and_gradients_along

EXACT = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def value_and_gradients(row):
    """(a function of the floating-point arrays, these)."""
    arguments = arrays(row, jnp.float32)
    moving = {name: a for name, a in arguments.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    fixed = {name: a for name, a in arguments.items() if name not in moving}
    return jax.value_and_grad(lambda moving: row.function(**moving, **fixed).sum()), moving


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(function, *args):
    """The precision of every matrix product of a program."""
    everywhere = equations(jax.make_jaxpr(function)(*args).jaxpr)
    return [e.params["precision"] for e in everywhere if e.primitive is lax.dot_general_p]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.one_case_in(3)
def test_value_and_gradients_lower_for_every_platform(row):
    function, moving = value_and_gradients(row)
    exported = jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(moving)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "linear" in row.name or "mixture" in row.name], ids=lambda row: row.name
)
@pytest.mark.one_case_in(4)
def test_matrix_products_of_float32_keep_all_digits_unless_linear_layers_are_asked_for_less(row):
    """By default GPUs multiply float32 in TF32, with 10 bits, and TPUs in bfloat16."""
    function, moving = value_and_gradients(row)
    along = lambda moving: jax.jvp(function, (moving,), (moving,))
    for precision in (None, "default", "bfloat16"):
        with jax.default_matmul_precision(precision):
            found = products(along, moving)
        assert len(found) > 4
        assert (set(found) == {EXACT}) == (precision is None or "mixture" in row.name)


def test_a_product_of_the_default_precision_would_be_seen():
    x, w, y = jnp.ones((4, 3)), jnp.ones((3, 5)), jnp.zeros(4, int)
    loss = lambda x: softjax.softmax_cross_entropy_with_integer_labels(x @ w, y).sum()
    with jax.default_matmul_precision("default"):
        found = products(jax.grad(loss), x)
    assert EXACT not in found
    assert len(found) == 2


MEAN = table.FUNCTIONS["linear_softmax_cross_entropy"]
VIEWS = ("contrastive_loss", "nt_xent_loss", "siglip_loss", "supervised_contrastive_loss")
OF_ANY_SIZE = [row for row in ROWS if row.name not in VIEWS and not row.name.endswith("_mean")]
OF_ANY_SIZE.append(Row("mean", MEAN.function(reduction="mean"), MEAN.defined(reduction="mean"), MEAN.kinds))


@pytest.mark.parametrize(
    "row",
    cases.in_tiers(
        {row.name: row for row in OF_ANY_SIZE},
        [*(row.name for row in OF_ANY_SIZE if "logits" in row.names), "mean", "mixture_expectation"],
    ),
)
@pytest.mark.one_case_in(3)
def test_a_program_for_any_number_of_examples_and_of_dense_classes_is_exported(row):
    given = arrays(row, jnp.float32)
    value = row.definition(**given)
    ct = cases.Random(jnp.float32, seed=1).normal(*value.shape)
    sizes = {N: "n", K: "k"} if "logits" in given else {N: "n"}
    named = dict(zip(sizes, jax.export.symbolic_shape(", ".join(sizes.values())), strict=True))
    symbolic = lambda a: jax.ShapeDtypeStruct([named.get(n, n) for n in a.shape], a.dtype)
    function = cases.compiled(value_and_gradients_along(row.function))
    exported = jax.export.export(function)(*jax.tree.map(symbolic, (given, ct)))
    want = value_and_gradients_along(row.definition)(given, ct)
    cases.assert_close(exported.call(given, ct), want, rtol=2e-5)


def test_half_precision_is_multiplied_without_a_loss():
    """Its products are exact in float32, in which they are added up."""
    random = cases.Random(jnp.bfloat16)
    x, w = random.normal(4, 64), random.normal(64, 7)
    wide = [a.astype(jnp.float32) for a in (x, w)]
    got = jax.value_and_grad(lambda x, w: spelled.linear_logsumexp(x, w).sum(), (0, 1))(x, w)
    want = jax.value_and_grad(lambda x, w: spelled.linear_logsumexp(x, w).sum(), (0, 1))(*wide)
    assert got[0] == want[0]
    for a, b in zip(got[1], want[1], strict=True):
        assert (a == b.astype(jnp.bfloat16)).all()
