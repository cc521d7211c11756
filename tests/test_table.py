"""The table is complete: a public function, loss or score without a row fails here."""

import inspect
import typing

import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses, scores

from . import cases, refusals, table

NOT_IN_THE_TABLE = {
    "softargmax",  # another name of softmax
    "placement",  # it has no arrays; test_linear has its tests
    "soft_quantize",  # it has several results; test_mixture has its tests
    *("linear", "distances", "pairwise"),  # they make logits; test_law and test_value have their tests,
    *("log_probs", "metrics", "sigmoid_binary_cross_entropy", "argmax", "top_k", "sample"),  # and those of these
    *("linear_argmax", "linear_sample", "linear_top_k"),  # they have no gradients; test_decoding has their tests
}
HELPERS = {"as_tree", "as_partials"}  # functions of `softjax.losses` that return a loss as a pytree


def functions_of(module):
    """Its own public functions by their names."""
    of_module = lambda f: inspect.isfunction(f) and f.__module__ == module.__name__
    return {name: f for name, f in vars(module).items() if of_module(f) and not name.startswith("_")}


def public_functions():
    return {name: getattr(softjax, name) for name in softjax.__all__ if inspect.isfunction(getattr(softjax, name))}


def returns(function, kind):
    return typing.get_type_hints(function).get("return") is kind


def test_every_public_function_has_a_row():
    assert public_functions().keys() - NOT_IN_THE_TABLE == table.FUNCTIONS.keys()


def test_every_loss_and_every_function_that_makes_one_has_a_row():
    made = {name for name, f in functions_of(losses).items() if returns(f, softjax.Loss)} - HELPERS
    given = {name for name, value in vars(losses).items() if isinstance(value, softjax.Loss) and name[0] != "_"}
    in_table = {name for row in table.LOSSES.values() for name in (row.public or (row.name,))}
    assert made | given == in_table - {"Loss"}  # the last is for a user's own
    assert {"cross_entropy", "weighted_logsumexp"} <= given
    assert {"focal", "class_weights"} <= made


def test_every_function_that_makes_scores_has_a_row():
    made = {name for name, f in functions_of(scores).items() if returns(f, scores.Scores)}
    assert made == table.SCORES.keys()


@pytest.mark.parametrize(
    "name", [name for name in table.FUNCTIONS if name != "of" and not name.startswith("of_")]
)  # the others are given a loss
def test_a_definition_has_the_arguments_of_the_function(name):
    ours, theirs = (inspect.signature(f).parameters for f in (table.FUNCTIONS[name].definition, getattr(softjax, name)))
    assert [*ours] == [p for p in theirs if p not in table.HOW_TO_COMPUTE]
    for p in ours:
        assert ours[p].default == theirs[p].default
        assert ours[p].kind == theirs[p].kind


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", table.LOSSES.values(), ids=table.LOSSES)
def test_a_definition_is_the_same_in_numpy_as_in_jax(row):
    r = cases.Random(jnp.float64)
    known = [row.example(r, cases.SIZES), row.per_class(r, cases.SIZES)]
    z = table.logits(r, cases.SIZES)
    known = known if known[1] is not None else known[:1]
    as_numpy = [tuple(map(np.asarray, a)) if isinstance(a, tuple) else a if a is None else np.asarray(a) for a in known]
    got = row.definition(np.asarray(z), *as_numpy)
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, row.definition(z, *known), rtol=1e-12)


def test_every_refused_number_has_a_check_of_its_range():
    names = {name.split(" of ")[0] for name in refusals.NUMBERS}
    assert names == {"label_smoothing", "temperature", "softcap", "cap", "margin", "gamma", "rate"}
