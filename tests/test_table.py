"""The table is complete: a public function, loss or score without a row fails here."""

import inspect
import typing

import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses

from . import cases, refusals, spelled, table

NOT_IN_THE_TABLE = {
    "softargmax",  # another name of softmax
    "placement",  # it has no arrays; test_linear has its tests
    "soft_quantize",  # it has several results; test_mixture has its tests
    "shard",  # it returns the logits that it is given; test_shard has its tests
    "softcap",  # it returns logits; test_truth has its tests
    "metrics",  # it has no gradients; test_metrics has its tests
    *("argmax", "top_k", "sample"),  # nor do these; test_decoding has their tests
}
# What a row of logits that are made and changed has besides the arguments of its public functions.
OF_LOGITS = {"where", "softcap", "temperature", "log_prior", "class_weights", "has_aux"}


def public_functions():
    return {name: getattr(softjax, name) for name in softjax.__all__ if inspect.isfunction(getattr(softjax, name))}


def returns(function, kind):
    return typing.get_type_hints(function).get("return") is kind


def public_names(row):
    """The functions in `softjax` that a row is for."""
    return row.public or (row.name,)


def test_every_public_function_has_a_row():
    in_table = {name for row in table.FUNCTIONS.values() for name in public_names(row)}
    assert public_functions().keys() - NOT_IN_THE_TABLE == in_table
    assert {"of", "kl_divergence", "js_divergence", "pairwise"} <= in_table
    assert public_functions().keys() >= NOT_IN_THE_TABLE


def test_every_loss_and_every_function_that_makes_one_has_a_row():
    functions = {name: f for name, f in vars(losses).items() if inspect.isfunction(f) and name[0] != "_"}
    made = {name for name, f in functions.items() if returns(f, softjax.Loss)}
    given = {name for name, value in vars(losses).items() if isinstance(value, softjax.Loss) and name[0] != "_"}
    in_table = {name for row in (table.LOSSES | table.OF_TWO).values() for name in (row.public or (row.name,))}
    assert made | given == in_table - {"Loss"}  # the last is for a user's own
    assert {"cross_entropy", "weighted_logsumexp", "kl_divergence"} <= given
    assert {"focal", "class_weights"} <= made


def test_every_function_that_makes_logits_has_a_row():
    made = {name for name, f in public_functions().items() if returns(f, softjax.Logits)} - {"shard"}
    names = {"of": "pairwise"}  # of a function of a user's
    assert made == {names.get(name, name) for name in table.SCORES} - {"dense"}  # an array


def arguments(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize("name", [name for name, row in table.FUNCTIONS.items() if not row.public])
def test_a_definition_has_the_arguments_of_the_function(name):
    ours, theirs = arguments(table.FUNCTIONS[name].definition), arguments(getattr(softjax, name))
    more = OF_LOGITS - theirs.keys() if getattr(spelled, name) is not getattr(softjax, name) else set()
    assert {p for p in ours if p not in more} == {p for p in theirs if p not in table.HOW_TO_COMPUTE}
    by_position = lambda of: [p for p in of if of[p].kind is not inspect.Parameter.KEYWORD_ONLY]
    assert by_position(ours) == by_position(theirs)
    for p in ours.keys() - more:
        assert ours[p].default == theirs[p].default
        assert ours[p].kind == theirs[p].kind


@pytest.mark.parametrize("name", [name for name, row in table.FUNCTIONS.items() if row.public and row.loss is None])
def test_a_definition_of_composed_functions_has_their_arguments(name):
    """With the defaults of these, for which an argument may have another name."""
    row = table.FUNCTIONS[name]
    of_each = [arguments(getattr(softjax, f)) for f in row.public]
    theirs = {p: of_one[p] for of_one in of_each for p in of_one}
    ours = {p: of_one for p, of_one in arguments(row.definition).items() if p in theirs}
    wanted = theirs.keys() - table.HOW_TO_COMPUTE - {"logits", "loss", "example", "per_class", "loss_weights"}
    assert wanted - ours.keys() <= RENAMED.get(name, set())
    for p in ours:
        assert ours[p].default == theirs[p].default


# Arguments of public functions that have another name in a row, or that its composition does not have.
RENAMED = {
    "linear_log_probs": {"ids"},
    "linear_distillation_loss": {"p", "q"},
    "linear_expectation": {"weights", "reduction"},
    "linear_logsumexp": {"a", "axis", "keepdims"},
    "mixture_expectation": {"weights", "reduction"},
}


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


LOGITS = {  # (x, w, t) -> logits of a linear layer, and t
    "arrays": lambda x, w, t: (x @ w, t),
    "beside an array": lambda x, w, t: (softjax.linear(x, w, block_size=5), t),
    "in a mean": lambda x, w, t: (softjax.linear(x, w, block_size=softjax.Placement(3, 5, "forward")), t),
    "of two layers": lambda x, w, t: (softjax.linear(x, w, block_size=4), softjax.linear(t, jnp.eye(t.shape[1]))),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("row", table.OF_TWO.values(), ids=table.OF_TWO)
@pytest.mark.each_value_once
def test_a_loss_of_two_logits(row, logits):
    r, s = cases.Random(jnp.float64), cases.SIZES
    reduction = "mean" if logits == "in a mean" else "none"
    ours = lambda x, w, t: softjax.of(row.loss, LOGITS[logits](x, w, t), reduction=reduction)
    definition = lambda x, w, t: table.reduced(row.definition((x @ w, t), None), reduction)
    x, w, t = r.normal(*s.batch, s.d), r.normal(s.d, s.k), r.normal(*s.batch, s.k)
    t = 1 / (1 + jnp.exp(-t)) if row.name.startswith("binary") else t  # targets
    cases.agreement(ours, definition)(x, w, t)


def test_every_refused_number_has_a_check_of_its_range():
    names = {name.split(" of ")[0] for name in refusals.NUMBERS}
    assert names == {"label_smoothing", "temperature", "margin", "gamma", "rate", "cap"}
