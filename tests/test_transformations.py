"""Every public function under every transformation of JAX, several of them in one program."""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

from . import cases, placed, spelled, table

N, K, D, E = 4, 8, 3, 5
BLOCK, FORWARD = 4, softjax.Placement(2, 4, "forward")
LIVE = np.arange(K) % 4 != 1
FEWER = LIVE & (np.arange(K) != 2)


class Row(NamedTuple):
    """A function of arrays by their names, and its definition."""

    name: str
    function: Callable
    definition: Callable
    names: str
    apart: bool = True  # whether no example has to do with the others


MADE = {
    "logits": lambda r: r.normal(N, K),
    "soft_labels": lambda r: r.normal(N, K),
    "payoffs": lambda r: r.normal(N, K),
    "labels": lambda r: jnp.asarray([0, 3, 4, 7], jnp.int32)[r.integers(4, N)],  # on no class that a mask leaves out
    "groups": lambda r: jnp.asarray([[0, 3, 0, 3], [3, 3, 0, 0], [0, 0, 3, 3]], jnp.int32)[r.integers(3)],
    "label_sets": lambda r: jnp.asarray([[0, 3], [7, 0], [4, 7]], jnp.int32)[r.integers(3, N)],
    "features": lambda r: r.normal(N, D),
    "others": lambda r: r.normal(N, D),
    "teacher_features": lambda r: r.normal(N, E),
    "kernel": lambda r: r.normal(D, K),
    "teacher_kernel": lambda r: r.normal(E, K),
    "bias": lambda r: r.normal(K),
    "z": lambda r: r.normal(N, D),
    "x": lambda r: r.normal(N, E),
    "centers": lambda r: r.normal(K, D),
    "values": lambda r: r.normal(K, E),
    "log_prior": lambda r: r.normal(K),
    "precisions": lambda r: jnp.exp(r.normal(K, D, scale=0.3)),
    "precisions_of_values": lambda r: jnp.exp(r.normal(K, E, scale=0.3)),
    "temperatures": lambda r: jnp.exp(r.normal(K, 1, scale=0.3)),
    "scales": lambda r: jnp.exp(r.normal(D, scale=0.3)),
    "class_weights": lambda r: jnp.exp(r.normal(K)),
    "weights": lambda r: jnp.exp(r.normal(N)),
    "where": lambda r: jnp.asarray(LIVE),
    "temperature": lambda r: jnp.exp(r.normal(scale=0.3)),
    "softcap": lambda r: 2 + jnp.exp(r.normal()),
    "margin": lambda r: r.normal(),
    "logit_bias": lambda r: r.normal(),
    "label_smoothing": lambda r: jax.nn.sigmoid(r.normal()),
    "z_loss": lambda r: jnp.exp(r.normal()),
}
OF_EXAMPLES = ("logits", "soft_labels", "payoffs", "labels", "label_sets", "features", "z", "x", "weights")
OF_EXAMPLES += ("teacher_features",)
NUMBERS = ("temperature", "softcap", "margin", "label_smoothing", "z_loss", "logit_bias")


# --- the rows of the table, in blocks or in tiles ---------------------------------------------------

IN_BLOCKS = dict.fromkeys(
    ("contrastive_loss", "nt_xent_loss", "supervised_contrastive_loss", "siglip_loss"), 2
) | dict.fromkeys(
    (
        name
        for name in table.FUNCTIONS
        if name.startswith(("linear", "of_linear", "of_mixture", "mixture", "eol", "leop", "gaussian"))
    ),
    BLOCK,
)
IN_BLOCKS["of"] = BLOCK
MEANS = ("linear_softmax_cross_entropy", "eol_loss")
CHOOSING = ("mixture_autoencoder_loss", "eol_loss", "leop_loss", "gaussian_mixture_nll_loss")  # their own placement


def finite(row, function):
    """A logarithm of 0 is left out of the result, as nothing can be summed with it."""
    if row.name != "log_softmax":
        return function
    return lambda logits, where: jnp.where(where, function(logits=logits, where=where), 0)


def kernel_transposed(function):
    """The same with the classes on the first axis of the kernel."""
    return lambda kernel, **given: function(kernel=kernel.T, class_axis=0, **given)


def placed_row(name, row, **options):
    """The function of a row on a placement, which an argument `block_size` changes."""
    if name == "of":
        size, function = options.pop("block_size"), placed.in_blocks(row.function(**options))
        return lambda block_size=size, **given: function(block_size=block_size, **given)
    if name in CHOOSING:
        row = row._replace(call=placed.in_blocks(getattr(softjax, name)))
    return row.function(**options)


def rows():
    for name, row in table.FUNCTIONS.items():
        options = {"block_size": IN_BLOCKS[name]} if name in IN_BLOCKS else {}
        function = placed_row(name, row, **options)
        function = kernel_transposed(function) if name == "linear_logsumexp" else function
        yield Row(name, finite(row, function), finite(row, row.defined()), row.kinds, row.apart)
    for name in MEANS:
        row, mean = table.FUNCTIONS[name], {"reduction": "mean"}
        function = placed_row(name, row, block_size=FORWARD, **mean)
        yield Row(f"{name}_mean", function, row.defined(**mean), row.kinds, apart=False)


ROWS = [*rows()]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def arrays(row, dtype, seed=0):
    """Arrays for the row; a second seed gives others, and another mask."""
    random = cases.Random(dtype, seed)
    made = {name: MADE[name](random) for name in row.names.split()}
    return made | ({"where": jnp.asarray(FEWER)} if seed and "where" in made else {})


def split(given):
    """(the floating-point arrays, the others)."""
    moving = {name: a for name, a in given.items() if jnp.issubdtype(jnp.result_type(a), jnp.floating)}
    return moving, {name: a for name, a in given.items() if name not in moving}


def value_and_gradients(function):
    def of(given, ct):
        moving, fixed = split(given)
        value, back = jax.vjp(lambda moving: function(**moving, **fixed), moving)
        return value, back(ct)[0]

    return of


compiled, assert_close = cases.compiled, ft.partial(cases.assert_close, rtol=1e-9)


def stack(*trees, axis=0):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def output_like(row, given, seed=9):
    """A cotangent."""
    out = jax.eval_shape(lambda given: row.function(**given), given)
    return cases.Random(out.dtype, seed).normal(*out.shape)


FACTORS = [[1.0, 2.0], [3.0, -1.0]]  # of the cotangents


# --- vmap -----------------------------------------------------------------------------------------


OVER_ANY_ARGUMENTS = ("softmax", "of_logits", "linear_softmax_cross_entropy")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", cases.in_tiers({row.name: row for row in ROWS}, OVER_ANY_ARGUMENTS))
def test_vmap_over_any_arguments_is_the_function_called_once_for_each(row):
    one, two = arrays(row, jnp.float64), arrays(row, jnp.float64, seed=1)
    assert all((one[name] != two[name]).any() for name in one)
    ct = output_like(row, one)
    head, *others = one
    by_themselves = () if row.name.endswith("_mean") else others  # there the same function was given them
    whole = {} if head == "logits" else {"block_size": K}  # which compiles faster, and vmap meets the blocks below
    last = {name: -1 if a.ndim else 0 for name, a in one.items()}

    def nested(both):
        """[2 of the first argument, ..., 2 of the others]."""
        axes = {name: last[name] for name in others}
        inner = jax.vmap(lambda a, rest: row.function(**{head: a}, **rest), (None, axes), -1)
        return jax.vmap(inner, (last[head], None), 0)(both[head], {name: both[name] for name in others})

    def program(one, two):
        both = {name: jnp.stack([one[name], two[name]], axis) for name, axis in last.items()}
        made = {"vmap of grad": jax.vmap(value_and_gradients(row.function), (last, None), -1)(both, ct)}
        moving, fixed = split(both)
        made["nested"], back = jax.vjp(lambda moving: nested({**moving, **fixed}), moving)
        made["grad of nested"] = back(jnp.stack([jnp.stack([f * ct for f in line], -1) for line in FACTORS]))[0]
        for name in by_themselves:
            axis = one[name].ndim // 2  # 0 of numbers and rows, 1 of matrices
            pair = jnp.stack([one[name], two[name]], axis)
            made[name] = jax.vmap(lambda a, name=name: row.function(**{**one, name: a}, **whole), axis, -1)(pair)
        if row.apart:
            axes = {name: 0 if name in OF_EXAMPLES else None for name in one}
            made["examples"] = jax.vmap(lambda given: row.function(**given), (axes,))(one)
        return made

    alone = compiled(value_and_gradients(row.function))
    grid = [[alone({**rest, head: of_head[head]}, ct) for rest in (one, two)] for of_head in (one, two)]
    values = [[cell[0] for cell in line] for line in grid]
    gradients = stack(*(stack(*(cell[1] for cell in line)) for line in grid))
    of_pairs = {  # gradients of the first argument summed over the pairs of the others, and the reverse
        name: jnp.einsum("ij,ij...->i..." if name == head else "ij,ij...->j...", jnp.asarray(FACTORS), g)
        for name, g in gradients.items()
    }
    want = {
        "vmap of grad": stack(grid[0][0], grid[1][1], axis=-1),
        "nested": jnp.stack([jnp.stack(line, -1) for line in values]),
        "grad of nested": {name: jnp.stack([*pair], last[name]) for name, pair in of_pairs.items()},
        **{name: jnp.stack([values[0][0], alone({**one, name: two[name]}, ct)[0]], -1) for name in by_themselves},
    }
    if row.apart:
        want["examples"] = values[0][0]
    assert_close(compiled(program)(one, two), want)


# --- derivatives ----------------------------------------------------------------------------------


SECOND_ORDER = ("softmax", "linear_softmax_cross_entropy", "contrastive_loss", "mixture_expectation")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", cases.in_tiers({row.name: row for row in ROWS}, SECOND_ORDER))
@pytest.mark.one_case_in(4)
def test_a_hessian_a_linearization_and_a_checkpoint_in_a_scan_match_the_definition(row):
    """The Hessian is jacfwd of jacrev; the function is linearized in all arguments, and batched."""
    given = arrays(row, jnp.float64)
    moving, fixed = split(given)
    ct, head = output_like(row, given), next(iter(given))
    smaller = {name: 0.9 * a for name, a in moving.items()}

    def parts(function):
        f = lambda moving: function(**moving, **fixed)
        total = lambda moving: (ct * f(moving)).sum()
        return f, total, lambda: jax.hessian(lambda a: total({**moving, head: a}))(moving[head])

    def program(moving, smaller):
        f, total, hessian = parts(row.function)
        step = lambda c, m: (c + jax.checkpoint(total)(m), None)
        value, linear = jax.linearize(f, moving)
        along = {name: jnp.eye(a.size).reshape(a.size, *a.shape) for name, a in moving.items()}
        none = jax.tree.map(jnp.zeros_like, moving)
        return {
            "value": value,
            "linearize": {n: jax.vmap(lambda d, n=n: linear({**none, n: d}), out_axes=-1)(along[n]) for n in moving},
            "hessian": hessian(),
            "scan": jax.grad(lambda both: jax.lax.scan(step, jnp.zeros(()), both)[0])(stack(moving, smaller)),
        }

    f, _, hessian = parts(row.definition)
    jacobian = compiled(jax.jacrev(f))
    of_both = jacobian(moving), jacobian(smaller)
    want = {
        "value": f(moving),
        "linearize": {name: j.reshape(*ct.shape, -1) for name, j in of_both[0].items()},
        "hessian": compiled(hessian)(),
        "scan": stack(*(jax.tree.map(lambda j: jnp.tensordot(ct, j, ct.ndim), of_one) for of_one in of_both)),
    }
    assert_close(compiled(program)(moving, smaller), want)


# --- traces, types, debugging, donation -------------------------------------------------------------


@pytest.mark.usefixtures("checking_leaks")
@every_row
@pytest.mark.one_case_in(6)
def test_one_trace_without_leaks_serves_donated_arrays_and_other_numbers(row):
    moving, fixed = split(arrays(row, jnp.float32))
    ct = output_like(row, {**moving, **fixed})
    by_definition = value_and_gradients(ft.partial(row.definition, **fixed))  # the mask is not traced
    wanted = compiled(by_definition)(moving, ct)
    numbers = {name: float(moving.pop(name)) for name in NUMBERS if name in moving}
    traces = []

    def program(moving, fixed, numbers):
        traces.append(1)
        return value_and_gradients(row.function)({**moving, **fixed, **numbers}, ct)

    donated = jax.jit(program, donate_argnums=0, compiler_options=cases.QUICKLY)
    copies = jax.tree.map(jnp.copy, moving)
    got = jax.block_until_ready(donated(copies, fixed, numbers))
    assert all(a.is_deleted() for a in copies.values())
    assert_close(got, wanted, rtol=2e-5)
    assert not any(a.weak_type for a in (got[0], *(got[1][name] for name in moving)))
    other = donated(jax.tree.map(jnp.copy, moving), fixed, {name: 1.25 * number for name, number in numbers.items()})
    assert len(traces) == 1
    assert not numbers or (other[0] != got[0]).any()


def sane(row):
    """Finite arrays without a class left out, and Python's numbers."""
    given = arrays(row, jnp.float32)
    given |= {"where": jnp.ones(K, bool)} if "where" in given else {}
    return given | {name: float(given[name]) for name in NUMBERS if name in given}


@every_row
@pytest.mark.one_case_in(5)
def test_sane_input_and_numbers_meet_no_nan_on_the_way_and_no_wider_type(row):
    given = sane(row)
    with jax.debug_nans(True):
        value = row.function(**given)
    assert np.isfinite(value).all()
    assert (value.dtype, value.weak_type) == (jnp.float32, False)
    with jax.enable_x64(True):
        moving, fixed = split({name: a for name, a in given.items() if name not in NUMBERS})
        numbers = {name: given[name] for name in NUMBERS if name in given}
        ct = output_like(row, given)
        out = jax.eval_shape(
            lambda m: value_and_gradients(ft.partial(row.function, **numbers))({**m, **fixed}, ct), moving
        )
        assert all((a.dtype, a.weak_type) == (jnp.float32, False) for a in jax.tree.leaves(out))


@every_row
@pytest.mark.one_case_in(2)
def test_sane_input_meets_no_infinity_on_the_way(row):
    """Each operation outside of a compiled part is looked at."""
    given = sane(row)
    with jax.debug_infs(True):
        assert np.isfinite(row.function(**given)).all()


# --- trees of the user's --------------------------------------------------------------------------


@ft.partial(jax.tree_util.register_dataclass, data_fields=["scale", "more"], meta_fields=["power"])
@dataclasses.dataclass
class Customer:
    scale: Any
    more: dict
    power: int = 2


@jax.tree_util.register_pytree_node_class
class Goods:
    def __init__(self, prices, kinds):
        self.prices, self.kinds = prices, kinds

    def tree_flatten(self):
        return (self.prices, self.kinds), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def spent(prices, kinds, wanted, power):
    """The price that each customer [N] pays for each of the goods [B]; 0 for goods of another kind."""
    return jnp.where(kinds[None] == wanted[:, None], prices.sum(-1)[None] ** power, 0)


SPENT = softjax.Loss(
    lambda z, ids, of, goods: softjax.Columns(
        z, payoffs=(of.scale[:, None] * spent(goods.prices, goods.kinds, of.more["wanted"], of.power),)
    ),
    lambda q, of: q.payoffs[0].value + of.more["debts"][0],
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("where_from", ["of_logits", "of_linear", "of_mixture"])
def test_examples_and_classes_may_be_trees_of_the_users_own_kind(where_from):
    r = cases.Random(jnp.float64, seed=3)
    wanted, kinds = r.integers(2, N), jnp.arange(K, dtype=jnp.int32) % 2
    moving = {"x": r.normal(N, K if where_from == "of_logits" else D), "scale": r.normal(N), "debt": r.normal(N)}
    moving |= {"prices": r.normal(K, 2)}
    if where_from != "of_logits":
        moving |= {"of_classes": r.normal(D, K) if where_from == "of_linear" else r.normal(K, D)}
    logits_of = {
        "of_logits": lambda x: x,
        "of_linear": lambda x, w: x @ w,
        "of_mixture": lambda x, c: -((x[:, None] - c) ** 2).sum(-1),
    }[where_from]
    call = getattr(spelled, where_from)
    options = {} if where_from == "of_logits" else {"block_size": 3}

    def function(moving):
        customers = Customer(moving["scale"], {"wanted": wanted, "debts": (moving["debt"],)})
        scores = [moving[name] for name in ("x", "of_classes") if name in moving]
        return call(SPENT, *scores, customers, Goods(moving["prices"], kinds), **options)

    def definition(moving):
        p = cases.softmax(logits_of(*(moving[name] for name in ("x", "of_classes") if name in moving)))
        t = spent(moving["prices"], kinds, wanted, 2)
        return moving["scale"] * (p * t).sum(-1) + moving["debt"]

    two = stack(moving, jax.tree.map(lambda a: 0.7 * a, moving))
    ct = r.normal(2, N)
    got, want = (
        compiled(lambda two, f=f: jax.value_and_grad(lambda two: (ct * jax.vmap(f)(two)).sum())(two))(two)
        for f in (function, definition)
    )
    assert_close(got, want)


# --- the checks themselves ------------------------------------------------------------------------


def test_an_error_a_wrong_type_and_a_missing_array_are_found():
    right = {"a": jnp.ones(3), "b": jnp.zeros(2)}
    assert_close(right, right)
    for wrong in (
        {**right, "a": jnp.array([1.0, 1.0, 1.0001])},
        {**right, "b": jnp.array([0.0, 0.0001])},
        {**right, "b": jnp.array([0.0, jnp.nan])},
        {**right, "a": jnp.ones((3, 1))},
        {**right, "a": jnp.ones(3, jnp.bfloat16)},
        {"a": right["a"]},
    ):
        with pytest.raises(AssertionError):
            assert_close(wrong, right, rtol=1e-5)
