"""Draws of right and wrong arguments end in a right answer or in words of this library, never in an error of JAX."""

import ast
import functools
import itertools
import math
import pathlib
import re
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import Columns, Loss, Placement, Weights, losses

from . import spelled, table, test_arguments, test_mesh, test_seams, test_value

N, K, D, E = 4, 5, 3, 2
HOME = pathlib.Path(softjax.__file__).parent
SENTENCE = re.compile(r"[^\n]*`[^`\n]+`[^\n]*\.")
# the command line, and helpers of tests
NOT_OF_FUNCTIONS = ("__main__", "network", "testing")


# --- a refusal ----------------------------------------------------------------------------


def raises_of(path):
    """(first line, last line) of every `raise` in a file."""
    raised = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Raise)]
    return {(n.lineno, n.end_lineno) for n in raised if getattr(n.exc, "id", None) != "NotImplementedError"}


RAISES = {str(path): raises_of(path) for path in HOME.rglob("*.py") if "tools" not in path.parts}


def raised_at(error):
    """(file, lines) of the library's `raise` that an error comes from, or None if it comes from elsewhere."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = [(a, b) for a, b in RAISES.get(frame.filename, ()) if a <= frame.lineno <= b]
    return (frame.filename, lines[0]) if lines else None


def fault_of(error):
    """Why an error is no refusal in words, or None if it is one."""
    if raised_at(error) is None or not isinstance(error, TypeError | ValueError):
        return f"{type(error).__name__} from the depths: {str(error)[:90]!r}"
    return None if SENTENCE.fullmatch(str(error)) else f"no sentence that names an argument: {str(error)[:90]!r}"


def assert_refused(call):
    try:
        out = jax.eval_shape(call)
    except Exception as error:
        fault = fault_of(error)
    else:
        fault = f"answered with {out}"
    assert fault is None, fault


# --- arguments of the tests below ---------------------------------------------------------------------

x, w, y, z = jnp.ones((N, D)), jnp.ones((D, K)), jnp.zeros(N, int), jnp.ones((N, K))


# --- the definitions of the table, in NumPy's float64 ---------------------------------------------------


def by_table(name):
    """The definition, of arguments by their names."""
    row = table.FUNCTIONS[name]
    return lambda a: row.definition(**{key: x for key, x in a.items() if key not in table.HOW_TO_COMPUTE})


def batch_of(name, a):
    return np.zeros(a[name].shape[:-1])


def of_linear_values(a):
    """E_p[t] of values [K] or [..., K]."""
    names = ("features", "kernel", "bias", "class_axis", "softcap", "temperature")
    z = table.linear_scores(**{name: a[name] for name in names})
    return (table.softmax(z, where=a["where"]) * a["values"]).sum(-1)


def of_divergence(a):
    """sum_k p_k (log p_k - log q_k)."""
    log_p, log_q = table.log_softmax(a["p"]), table.log_softmax(a["q"])
    return table.reduced((np.exp(log_p) * (log_p - log_q)).sum(-1), a["reduction"], a["weights"])


def of_both_divergences(a):
    """The mean of the divergences from the mean."""
    p, q = table.softmax(a["p"]), table.softmax(a["q"])
    to_mean = lambda p, m: (p * np.log(p / m)).sum(-1)
    return table.reduced((to_mean(p, (p + q) / 2) + to_mean(q, (p + q) / 2)) / 2, a["reduction"], a["weights"])


OF_VECTORS = (losses.expectation, losses.weighted_logsumexp)  # of several numbers per example


def of_scores(name, a):
    """0 in the shape of the losses: their values have tests elsewhere."""
    loss = np.zeros((*batch_of(name, a).shape, *(a["per_class"].shape[1:] if a["loss"] in OF_VECTORS else ())))
    return loss if a["reduction"] == "none" else loss.sum()


# --- the functions, each with right arguments ---------------------------------------------------------


class Drawn:
    """Seeded choices and arrays of one draw."""

    def __init__(self, *seed):
        self.generator = np.random.default_rng(seed)

    def one(self, *things):
        return things[self.generator.integers(len(things))]

    def normal(self, *shape, dtype="float32"):
        return jnp.asarray(self.generator.normal(size=shape), dtype)

    def integers(self, high, *shape):
        return jnp.asarray(self.generator.integers(high, size=shape), jnp.int32)

    def positive(self, *shape):
        return jnp.exp(self.normal(*shape) / 2)

    def labels(self, live, *shape):
        return jnp.asarray(self.generator.choice(np.flatnonzero(live), size=shape), jnp.int32)


class Sizes(NamedTuple):
    batch: tuple
    k: int
    dtype: str
    live: np.ndarray
    d: int = D
    e: int = E


class Function(NamedTuple):
    call: Callable
    arguments: Callable  # (drawn, sizes) -> arguments by name
    definition: Callable  # of the same, in numpy
    typed_by: tuple = ()  # the arguments whose type the result has; none for a loss, in at least float32


def logits_of(name, axes, **more):
    def arguments(d, s):
        made = {k: make(d, s) for k, make in more.items()}
        where = d.one(None, jnp.asarray(s.live))
        return {name: d.normal(*s.batch, s.k, dtype=s.dtype), **made, "axis": d.one(*axes), "where": where}

    return arguments


def like_logits(d, s):
    return d.normal(*s.batch, s.k, dtype=s.dtype)


def hinge_arguments(d, s):
    return {"scores": like_logits(d, s), "labels": d.labels(s.live, *s.batch), "margin": d.one(1.0, 0.3)}


def linear_arguments(d, s, *names):
    axis = d.one(0, -1)
    pair = (d.labels(s.live, *s.batch, 2), d.positive(*s.batch, 2))
    every = {
        "features": d.normal(*s.batch, D, dtype=s.dtype),
        "kernel": d.normal(*((s.k, D) if axis == 0 else (D, s.k)), dtype=s.dtype),
        "labels": d.one(pair, d.labels(s.live, *s.batch)),
        "values": d.normal(s.k, E, dtype=s.dtype),
        "bias": d.one(None, d.normal(s.k, dtype=s.dtype)),
        "class_axis": axis,
        "where": d.one(None, jnp.asarray(s.live)),
        "weights": d.one(None, d.positive(*s.batch)),
        "class_weights": d.one(None, d.positive(s.k)),
        "ignore_index": d.one(None, -1),
        "label_smoothing": d.one(0.0, 0.2),
        "z_loss": d.one(0, 0.1),
        "softcap": d.one(None, 2.0),
        "temperature": d.one(1.0, 0.7),
        "reduction": d.one("none", "sum", "mean"),
        "block_size": d.one(None, 2, Placement(3, 2, "forward"), Placement(3, 2)),
    }
    return every if not names else {name: every[name] for name in names}


def mixture_arguments(d, s):
    shapes = {"z": (*s.batch, D), "x": (*s.batch, E), "centers": (s.k, D), "values": (s.k, E)}
    arrays = {name: d.normal(*shape, dtype=s.dtype) for name, shape in shapes.items()}
    options = linear_arguments(d, s, "where", "temperature", "weights", "reduction")
    precisions = d.one(None, *(jnp.exp(d.normal(*shape, dtype=s.dtype)) for shape in ((s.k, D), (s.k, 1), (D,))))
    return arrays | {"log_prior": d.one(None, d.normal(s.k, dtype=s.dtype)), "precisions": precisions} | options


def in_blocks(arguments):
    return lambda d, s: arguments(d, s) | linear_arguments(d, s, "block_size")


def gaussian_arguments(d, s):
    given = without(mixture_arguments, "x", "values", "temperature")(d, s)
    return {("x" if name == "z" else name): a for name, a in given.items()}


def without(arguments, *names):
    return lambda d, s: {name: a for name, a in arguments(d, s).items() if name not in names}


def contrastive_arguments(d, s):
    options = linear_arguments(d, s._replace(batch=(N,)), "temperature", "weights", "reduction", "block_size")
    views = {name: d.normal(N, D, dtype=s.dtype) for name in "xy"}
    return views | options | {"symmetric": d.one(True, False)}


def named(*names):
    return lambda d, s: linear_arguments(d, s, *names)


def token_arguments(d, s):
    return named(*LINEAR, "softcap", "ignore_index")(d, s) | {"tokens": d.labels(s.live, *s.batch)}


def label_set_arguments(d, s):
    """Two different labels of each example, or one and none."""
    first = d.labels(s.live, *s.batch)
    second = jnp.where(d.integers(2, *s.batch) == 1, -1, jnp.flatnonzero(s.live)[0])
    labels = jnp.stack([first, jnp.where(second == first, -1, second)], -1)
    return named(*LINEAR, "softcap", "weights", "reduction")(d, s) | {"labels": labels, "ignore_index": -1}


def value_arguments(d, s):
    """Values of the classes, or of each example and class."""
    values = d.one(d.normal(s.k, dtype=s.dtype), d.normal(*s.batch, s.k, dtype=s.dtype))
    return named(*LINEAR, "softcap")(d, s) | {"values": values}


def divergence_arguments(d, s):
    return {"p": like_logits(d, s), "q": like_logits(d, s)} | linear_arguments(d, s, "weights", "reduction")


def expectation_of_linear(values, **options):
    made = spelled.linear(options.pop("features"), options.pop("kernel"), options)
    return softjax.expectation(made, values)


LINEAR_SCORES = ("features", "kernel", "bias", "class_axis", "where", "block_size")
LINEAR = (*LINEAR_SCORES, "temperature")
OF_LOGITS = without(linear_arguments, "values", "class_weights")
OF_FEATURES = without(linear_arguments, "values", "class_weights", "where", "softcap", "temperature", "block_size")
DRAWN = {  # (arguments, names of the arguments that decide the type of the result)
    "softmax": (logits_of("x", (-1, None, (0, -1))), ("x",)),
    "log_softmax": (without(logits_of("x", (-1, None)), "where"), ("x",)),
    "logsumexp": (logits_of("a", (-1, None), keepdims=lambda d, _: d.one(True, False)), ("a",)),
    "entropy": (logits_of("logits", (-1, None)), ()),
    "expectation": (logits_of("logits", (-1, None), values=like_logits), ("logits", "values")),
    "softmax_cross_entropy": (logits_of("logits", (-1, None), labels=like_logits), ()),
    "softmax_cross_entropy_with_integer_labels": (
        logits_of(
            "logits",
            (-1,),
            labels=lambda d, s: d.labels(s.live, *s.batch),
            ignore_index=lambda d, _: d.one(None, -1),
        ),
        (),
    ),
    "multiclass_svm_loss": (hinge_arguments, ()),
    "multiclass_hinge_loss": (hinge_arguments, ()),
    "linear_softmax_cross_entropy": (OF_FEATURES, ()),
    "contrastive_loss": (contrastive_arguments, ()),
    "mixture_autoencoder_loss": (mixture_arguments, ()),
    "eol_loss": (mixture_arguments, ()),
    "leop_loss": (mixture_arguments, ()),
    "gaussian_mixture_nll_loss": (gaussian_arguments, ()),
}
OF_LINEAR = {  # functions of logits, and all that these are made of
    "linear_expectation": named(*LINEAR, "values"),
    "linear_log_probs": token_arguments,
    "linear_logsumexp": named(*LINEAR, "softcap"),
    "linear_sigmoid_binary_cross_entropy": label_set_arguments,
    "mixture_expectation": in_blocks(without(mixture_arguments, "x", "weights", "reduction")),
}
FUNCTIONS = {
    name: Function(getattr(softjax, name), arguments, by_table(name), typed_by)
    for name, (arguments, typed_by) in DRAWN.items()
}
FUNCTIONS |= {
    name: Function(getattr(spelled, name), arguments, by_table(name)) for name, arguments in OF_LINEAR.items()
}
FUNCTIONS |= {
    "softmax_cross_entropy of Logits": Function(
        spelled.linear_softmax_cross_entropy, OF_LOGITS, by_table("linear_softmax_cross_entropy")
    ),
    "expectation of Logits": Function(expectation_of_linear, value_arguments, of_linear_values),
    "kl_divergence": Function(softjax.kl_divergence, divergence_arguments, of_divergence),
    "js_divergence": Function(softjax.js_divergence, divergence_arguments, of_both_divergences),
}


def known(row, d, s):
    """The loss's data of examples and of classes; weston_watkins also takes the logits of the labels."""
    example = row.example(d, s)
    return (example, d.normal(*s.batch)) if row.name == "weston_watkins" else example, row.per_class(d, s)


def with_a_loss(arguments):
    def of_loss(d, s):
        row = d.one(*table.LOSSES.values())
        example, per_class = known(row, d, s)
        given = {"loss": row.made(s.k), **arguments(d, s), "example": example, "per_class": per_class}
        return given | ({"reduction": "none"} if row.loss in OF_VECTORS else {})

    return of_loss


OF_SCORES = {
    "of": Function(
        softjax.of,
        with_a_loss(lambda d, s: {"logits": like_logits(d, s)} | linear_arguments(d, s, "weights", "reduction")),
        lambda a: of_scores("logits", a),
    ),
    "of_linear": Function(
        spelled.of_linear,
        with_a_loss(
            lambda d, s: linear_arguments(
                d, s, "features", "kernel", "bias", "class_axis", "where", "weights", "reduction", "block_size"
            )
        ),
        lambda a: of_scores("features", a),
    ),
    "of_mixture": Function(
        spelled.of_mixture,
        with_a_loss(in_blocks(without(mixture_arguments, "x", "values"))),
        lambda a: of_scores("z", a),
    ),
}


def several_arguments(d, s):
    """Of two losses, their weighted sum."""
    row = d.one(*(row for row in table.LABELLED if row.name != "weston_watkins"))
    example, per_class = row.example(d, s), row.per_class(d, s)
    drawn = linear_arguments(d, s, "features", "kernel", "bias", "class_axis", "where", "weights", "block_size")
    of_two = {
        "example": (None, example),
        "per_class": d.one(None, (None, per_class)) if per_class is None else (None, per_class),
    }
    return {
        "loss": (losses.entropy, row.made(s.k)),
        **drawn,
        **of_two,
        "loss_weights": (1.0, -0.1),
        "reduction": d.one("sum", "mean"),
    }


def weighted_sum(**given):
    return spelled.of_linear(**given)[0]


OF_SCORES["of several"] = Function(weighted_sum, several_arguments, lambda a: np.zeros(()))


def of_classes(function, *names, wanted, **more):
    """0 in the shape of the classes that a function finds: their ids have tests elsewhere."""
    call = lambda **a: jnp.zeros(jax.tree.leaves(function(**a))[-1].shape)
    arguments = lambda d, s: named(*names)(d, s) | {name: make(d) for name, make in more.items()}
    return Function(call, arguments, lambda a: np.zeros((*batch_of("features", a).shape, *wanted(a))))


def tuple_of(a):
    return tuple(a) if isinstance(a, tuple | list) else (a,)


DECODED = {
    "linear_argmax": of_classes(spelled.linear_argmax, *LINEAR_SCORES, wanted=lambda a: ()),
    "linear_top_k": of_classes(
        spelled.linear_top_k, *LINEAR, "softcap", wanted=lambda a: (a["k"],), k=lambda d: d.one(1, 3)
    ),
    "linear_sample": of_classes(
        spelled.linear_sample,
        *(*LINEAR, "softcap"),
        wanted=lambda a: tuple_of(a["shape"]),
        key=lambda d: d.one(jax.random.key(0), jax.random.PRNGKey(1)),
        shape=lambda d: d.one((), 2, (2, 1)),
    ),
}


# --- wrong arguments ------------------------------------------------------------------------------------


def is_array(a):
    return isinstance(a, jax.Array | np.ndarray)


def foreign(d):
    """A value that is rarely a valid argument."""
    options = (0, 1, -1, 7, 2**70, -(2**40), 2.5, 0.0, -1.0, math.nan, math.inf, True, 1j, np.float64(2), np.int64(3))
    texts = ("", "abc", "Mean", b"abc", np.array(["ab", "cd"]), np.datetime64("2020-01-01"))
    things = (None, object(), slice(1), ..., jnp.float32, losses.entropy, losses.focal, range(4), np.True_)
    nests = ((), [], {}, {"a": 1.0}, [[1.0, 2.0], [3.0]], (0, 1), [0], (-1,), (None, None), ("ab",), (1, 2.0))
    arrays = (
        jnp.ones(N),
        np.ones((N, K)),
        jnp.zeros((3, 3, 3, 3)),
        jnp.zeros((N, 2), int),
        jnp.array(1),
        np.array([2]),
    )
    others = (
        jax.random.key(0),
        jax.random.split(jax.random.key(0), N),
        np.ma.masked_array(np.ones((N, K), "float32"), np.zeros((N, K))),
        np.array([1, "x", None], object),
        jax.ShapeDtypeStruct((N, K), jnp.float32),
    )
    pairs = ((jnp.zeros((N, 2), int), jnp.ones((N, 2))), (jnp.zeros((N, 2), int),), [jnp.zeros(N, int), jnp.ones(N)])
    placements = (
        Placement(2, 3),
        Placement(2.5, 3),
        Placement(None, None),
        Placement(1, 1, jnp.ones(3)),
        (2, 3, "forward"),
    )
    return d.one(*d.one(options, texts, things, nests, arrays, others, pairs, placements))


def reshaped(d, a):
    axis = d.one(*range(a.ndim)) if a.ndim else None
    some = lambda n: a if axis is None else jnp.take(jnp.asarray(a), np.arange(n), axis)
    return d.one(
        lambda: a[0] if a.ndim else a,
        lambda: a[None],
        lambda: a[..., None],
        lambda: a.T,
        lambda: some(0),
        lambda: some(1),
        lambda: some(max(1, a.shape[axis] - 1) if a.ndim else 1),
    )()


def retyped(d, a):
    types = ("float16", "bfloat16", "float32", "int8", "uint8", "int16", "int32", "uint32", "bool", "complex64")
    of_numpy = ("float64", "float16", "int64", "uint64", "bool", "complex128", "object", "S5")
    return d.one(
        lambda: jnp.asarray(a).astype(d.one(*types)) if a.dtype != bool else jnp.asarray(a, d.one(*types[:-1])),
        lambda: np.array(np.asarray(a).tolist()).reshape(a.shape).astype(d.one(*of_numpy)),
        lambda: np.asarray(a).tolist(),
        lambda: np.ma.masked_array(np.asarray(a), np.zeros(a.shape)),
    )()


def mutated(d, a):
    """One argument made wrong, as a rule."""
    if type(a) is tuple and a and d.one(True, True, True, False):
        i = d.one(*range(len(a)))
        return (*a[:i], mutated(d, a[i]), *a[i + 1 :])
    return d.one(reshaped, reshaped, retyped, lambda d, _: foreign(d))(d, a) if is_array(a) else foreign(d)


def said(a):
    return (
        f"{a.dtype}{list(a.shape)}"
        if is_array(a)
        else f"({', '.join(map(said, a))})"
        if type(a) is tuple
        else repr(a)[:60]
    )


OPTIONS = ("axis", "keepdims", "symmetric", "reduction", "class_axis", "ignore_index", "block_size", "loss")
OPTIONS += ("entropy", "has_aux", "k", "key", "shape", "loss_weights")


def plain(name, a):
    """An argument as numpy's float64 or integers."""
    if name in OPTIONS or a is None or (isinstance(a, tuple) and None in [b for b in a if not is_array(b)]):
        return a
    if name == "labels" and isinstance(a, tuple):
        return tuple(plain("", part) for part in a)
    a = np.asarray(a)
    whole = np.issubdtype(a.dtype, np.integer) and name not in ("", "labels", "tokens")
    return a.astype(np.float64) if whole or jnp.issubdtype(a.dtype, jnp.floating) else a


def defined(function, arguments):
    with np.errstate(all="ignore"):
        return np.asarray(function.definition({name: plain(name, a) for name, a in arguments.items()}))


def type_of(function, arguments):
    """The documented type of a result: all that its arguments promote to, where integers count as floats."""
    types = []
    for name in function.typed_by:
        if arguments.get(name) is None:
            continue
        a = jnp.asarray(arguments[name])
        whole = jnp.issubdtype(a.dtype, jnp.integer)
        if name == "values" and "logits" in function.typed_by and (whole or a.weak_type):
            continue  # they take the type of the logits
        types.append(jnp.dtype("float64" if a.dtype.itemsize == 8 else "float32") if whole else a.dtype)
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, types)


def fault_of_answer(function, arguments, out):
    """The fault in the shape or type of an answer, or None."""
    try:
        want = defined(function, arguments)
    except Exception as error:
        return f"answered with {out} where the definition says {error!r:.60}"
    if out.shape != want.shape:
        return f"answered with shape {out.shape} where the definition has {want.shape}"
    if function.typed_by:
        wanted = type_of(function, arguments)
        return None if out.dtype == wanted else f"answered with {out.dtype} in place of {wanted}"
    fits = out.dtype == jnp.float32 or (out.dtype == jnp.float64 and jax.config.jax_enable_x64)
    return None if fits else f"answered a loss in {out.dtype}"


def outcome(d, function, arguments):
    """The fault of one call, or None. Some arrays are traced, and some calls are differentiated by them."""
    traced = {n: a for n, a in arguments.items() if isinstance(a, jax.Array) and d.one(True, False)}
    fixed = {n: a for n, a in arguments.items() if n not in traced}
    moving = {n: a for n, a in traced.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    still = {n: a for n, a in traced.items() if n not in moving}

    def call(moving, still):
        return function.call(**fixed, **moving, **still)

    def with_gradient(moving, still):
        out, back = jax.vjp(lambda moving: call(moving, still), moving)
        return out, back(out)

    try:
        if moving and d.one(True, False):
            out, back = jax.eval_shape(with_gradient, moving, still)
            for name, a in moving.items():
                if (back[0][name].shape, back[0][name].dtype) != (a.shape, a.dtype):
                    return f"answered with a gradient {back[0][name]} for {name}"
            return fault_of_answer(function, arguments, out)
        return fault_of_answer(function, arguments, jax.eval_shape(call, moving, still))
    except Exception as error:
        return fault_of(error)


# As users have it: promotion as it is by default, or strict as in these tests, or with 64 bits.
SETTINGS = (("strict", False), ("standard", False), ("standard", True))


def faults(name, function, names):
    """The faults of some draws of a function's arguments, of which each in turn is wrong, or in some draws none."""
    found = []
    for n in range(max(20, 3 * len(names))):
        d = Drawn(n, *name.encode())
        promotion, x64 = d.one(*SETTINGS)
        with jax.numpy_dtype_promotion(promotion), jax.enable_x64(x64):
            arguments = function.arguments(d, Sizes((N,), K, d.one("float32", "bfloat16"), np.arange(K) != 1))
            wrong = d.one(set(), *3 * [{names[n % len(names)], d.one(None, None, *names)} - {None}])
            with np.errstate(all="ignore"):
                changed = {name: mutated(d, arguments[name]) for name in sorted(wrong)}
            fault = outcome(d, function, arguments | changed)
        if fault is not None:
            given = ", ".join(f"{name}={said(a)}" for name, a in changed.items())
            found.append(f"{given} ({promotion}{', x64' * x64}): {fault}")
    return found


OF_LOSSES = ("loss", "example", "per_class")


@pytest.mark.parametrize("name", [*FUNCTIONS, *OF_SCORES, *DECODED])
@pytest.mark.one_case_in(8)
def test_wrong_arguments_of_functions_end_in_an_answer_or_in_words(name):
    function = (FUNCTIONS | OF_SCORES | DECODED)[name]
    drawn = function.arguments(Drawn(0), Sizes((N,), K, "float32", np.ones(K, bool)))
    found = faults(name, function, [name for name in drawn if name not in OF_LOSSES])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", OF_SCORES)
def test_wrong_data_of_a_loss_end_in_an_answer_or_in_words(name):
    found = faults(name, OF_SCORES[name], OF_LOSSES)
    assert not found, "\n".join(found)


COMBINATORS = {
    "focal": (losses.focal, {"gamma": 2.0}),
    "poly_1": (losses.poly_1, {"epsilon": 2.0}),
    "crammer_singer": (losses.crammer_singer, {"margin": 1.0}),
    "margin": (losses.margin, {"loss": losses.cross_entropy, "margin": 0.3}),
    "label_smoothing over the classes": (losses.label_smoothing, {"loss": losses.cross_entropy, "rate": 0.1}),
    "label_smoothing": (losses.label_smoothing, {"loss": losses.cross_entropy, "rate": 0.1, "prior": jnp.ones(K) / K}),
    "class_weights": (losses.class_weights, {"loss": losses.cross_entropy, "weights": jnp.ones(K)}),
    "z_loss": (losses.z_loss, {"loss": losses.cross_entropy, "weight": 0.1}),
}


def of_numbers(a):
    """0 for the sum of a loss that is made with real scalars, or with numbers of classes."""
    for name, number in a.items():
        if name == "loss":
            continue
        per_class = name == "weights" or (name == "prior" and number.ndim)
        fits = number.ndim == 1 and number.size if per_class else number.ndim == 0  # NaN for a class that has none
        if number.dtype.kind not in "biufV" or not fits:
            raise ValueError(name)
    return np.zeros(())


@pytest.mark.parametrize("name", COMBINATORS)
def test_wrong_arguments_of_combinators_end_in_an_answer_or_in_words(name):
    make, arguments = COMBINATORS[name]
    placements = itertools.cycle([None, Placement(3, 2, "forward")])
    x, w, y = jnp.ones((N, D)), jnp.ones((D, K)), jnp.zeros(N, jnp.int32)
    call = lambda **a: spelled.of_linear(make(**a), x, w, y, reduction="sum", block_size=next(placements))
    found = faults(name, Function(call, lambda d, s: dict(arguments), of_numbers), list(arguments))
    assert not found, "\n".join(found)


# --- losses of one's own ------------------------------------------------------------------------------


def of_columns(**columns):
    return Loss(
        lambda z, ids, _, __: Columns(**{"logits": z, **{name: make(z) for name, make in columns.items()}}), log_sum
    )


def of_finish(finish):
    return Loss(lambda z, ids, _, __: Columns(z), finish)


def log_sum(q, _):
    return q.A.value


WRONG_LOSSES = {
    "columns are an array": (
        Loss(lambda z, ids, _, __: z, log_sum),
        "`columns` of a loss must return `softjax.Columns`, got float32",
    ),
    "columns are none": (
        Loss(lambda z, ids, _, __: None, log_sum),
        "`columns` of a loss must return `softjax.Columns`, got None",
    ),
    "columns are no function": (Loss(1, log_sum), "`columns` of a loss must be a function, got 1"),
    "finish is no function": (
        Loss(lambda z, ids, _, __: Columns(z), None),
        "`finish` of a loss must be a function, got None",
    ),
    "scores of an example": (
        of_columns(logits=lambda z: z.sum(-1)),
        r"`logits` of `Columns` must have shape \[N, 5\] .* got \(4,\)",
    ),
    "scores of integers": (
        of_columns(logits=lambda z: z.astype(int)),
        "`logits` of `Columns` must be floating-point numbers, got dtype int32",
    ),
    "scores of twice the classes": (
        of_columns(logits=lambda z: jnp.concatenate([z, z], -1)),
        r"`logits` of `Columns` must have shape \[N, 5\] .* got \(4, 10\)",
    ),
    "no scores": (of_columns(logits=lambda z: None), "`logits` of `Columns` must be a JAX array, got None"),
    "payoffs not in a tuple": (
        of_columns(payoffs=lambda z: z),
        r"`payoffs` of `Columns` must be a tuple, got float32\[4, 5\]",
    ),
    "payoffs of an example": (
        of_columns(payoffs=lambda z: (z.sum(-1),)),
        r"`payoffs` of `Columns` must have shape \[N, B\] as `logits`, got \(4,\)",
    ),
    "payoffs of rank 3": (
        of_columns(payoffs=lambda z: (z[..., None],)),
        r"`payoffs` of `Columns` must have shape \[N, B\] as `logits`, got \(4, 5, 1\)",
    ),
    "vectors of rank 1": (
        of_columns(class_values=lambda z: (z[0],)),
        r"`class_values` of `Columns` must have shape \[5, E\] .* got \(5,\)",
    ),
    "vectors of an example": (
        of_columns(class_values=lambda z: (z,)),
        r"`class_values` of `Columns` must have shape \[5, E\] .* got \(4, 5\)",
    ),
    "exponents not in a tuple": (of_columns(exponents=lambda z: z), "`exponents` of `Columns` must be a tuple"),
    "an entropy not in a tuple": (
        of_columns(entropies=lambda z: z),
        "`entropies` of `Columns` must be a tuple",
    ),
    "an entropy in place of what is wanted": (
        of_columns(entropies=lambda z: (z,)),
        "`entropies` of `Columns` must be `losses.ENTROPY`, got float32",
    ),
    "labels not in a tuple": (
        of_columns(labels=lambda z: jnp.zeros(len(z), jnp.int32)),
        "`labels` of `Columns` must be a tuple, got int32",
    ),
    "labels in place of weights": (
        of_columns(labels=lambda z: (jnp.zeros(len(z), jnp.int32),)),
        "`labels` of `Columns` must be `softjax.Weights`, got int32",
    ),
    "weights of rank 1": (
        of_columns(labels=lambda z: Weights(jnp.zeros(len(z), jnp.int32), jnp.ones(len(z)))),
        r"`labels.ids` of `Columns` must have shape \[N, T\] for the N of `logits`, got \(4,\)",
    ),
    "weights of floats": (
        of_columns(labels=lambda z: Weights(jnp.zeros((len(z), 1)), jnp.ones((len(z), 1)))),
        "`labels.ids` of `Columns` must be integers, got dtype float32",
    ),
    "plain terms of an example": (
        of_columns(terms=lambda z: (z.sum(-1),)),
        r"`terms` of `Columns` must have shape \[N, B\] as `logits`, or \[N, 1\], got \(4,\)",
    ),
    "plain terms not in a tuple": (of_columns(terms=lambda z: z), "`terms` of `Columns` must be a tuple"),
    "a pair from finish": (of_finish(lambda q, _: q.A), "`finish` of a loss must return a JAX array, got Pair"),
    "nothing from finish": (of_finish(lambda q, _: None), "`finish` of a loss must return a JAX array, got None"),
    "two arrays from finish": (
        of_finish(lambda q, _: (q.A.value, q.A.value)),
        "`finish` of a loss must return a JAX array, got ",
    ),
    "a sum from finish": (
        of_finish(lambda q, _: q.A.value.sum()),
        r"`finish` of a loss must return an array \[N, ...\] of 4 losses, got shape \(\)",
    ),
    "too much from finish": (
        of_finish(lambda q, _: jnp.tile(q.A.value, 2)),
        r"`finish` of a loss must return an array \[N, ...\] of 4 losses, got shape \(8,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_a_wrong_loss_of_ones_own_is_refused_in_words(name):
    loss, message = WRONG_LOSSES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        softjax.of(loss, z)
    assert_refused(lambda: softjax.of(loss, z))
    for options in ({}, {"reduction": "sum", "block_size": Placement(3, 2, "forward")}):
        assert_refused(lambda options=options: spelled.of_linear(loss, x, w, **options))
    assert_refused(lambda: spelled.of_mixture(loss, x, w.T, reduction="mean"))


# --- right arguments, really run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_case_in(4)
def test_right_arguments_of_any_shape_and_type_give_the_definition_and_its_derivative(name):
    function = FUNCTIONS[name]
    number = list(FUNCTIONS).index(name)
    d = Drawn(7, number)
    k = d.one(1, 4, 6) if name != "multiclass_hinge_loss" else 4
    live = (np.arange(k) % 3 != 1) if k > 1 else np.ones(1, bool)
    s = Sizes(d.one((3,), (2, 3), (4,)), k, ("float32", "bfloat16", "float32", "float16")[number % 4], live)
    arguments = function.arguments(d, s)
    moving = {n: a for n, a in arguments.items() if is_array(a) and jnp.issubdtype(a.dtype, jnp.floating)}
    fixed = {n: a for n, a in arguments.items() if n not in moving}
    want = defined(function, arguments)
    ct = d.generator.normal(size=want.shape)
    direction = {n: d.generator.normal(size=a.shape) for n, a in moving.items()}

    @jax.jit
    def both(moving):
        out, back = jax.vjp(lambda moving: function.call(**fixed, **moving), moving)
        return out, back(jnp.asarray(ct, out.dtype))[0]

    out, gradients = both(moving)
    assert fault_of_answer(function, arguments, out) is None
    digits = float(jnp.finfo(out.dtype).eps)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol=8 * digits, atol=8 * digits * np.abs(want).max())

    step = 1e-5
    moved = lambda t: arguments | {n: plain(n, a) + t * direction[n] for n, a in moving.items()}
    ct = np.asarray(jnp.asarray(ct, out.dtype), np.float64)
    wanted = (ct * (defined(function, moved(step)) - defined(function, moved(-step)))).sum() / (2 * step)
    terms = [np.asarray(gradients[n], np.float64) * direction[n] for n in moving]
    digits = max(float(jnp.finfo(a.dtype).eps) for a in moving.values())
    got, scale = sum(a.sum() for a in terms), sum(np.abs(a).sum() for a in terms)
    assert abs(got - wanted) <= 16 * digits * scale


# --- every raise has a test on its message ---------------------------------------------------------------


def calls_with_tested_messages():
    tables = (test_arguments.REFUSALS.values(), test_mesh.REFUSALS.values(), test_seams.REFUSALS.values())
    calls = [row[0] for rows in tables for row in rows]
    of_values = [row[0] for row in test_value.REFUSED.values()] + [*test_value.MISUSES.values()]
    calls += [lambda call=call: call(test_value.LOGITS) for call in of_values]
    return calls + [lambda loss=loss: softjax.of(loss, z) for loss, _ in WRONG_LOSSES.values()]


def test_every_raise_of_the_functions_has_a_test_on_its_message():
    seen = set()
    for call in calls_with_tested_messages():
        with pytest.raises((TypeError, ValueError, IndexError)) as refusal:
            call()
        seen.add(raised_at(refusal.value))
    everywhere = {(f, lines) for f, of_file in RAISES.items() for lines in of_file}
    wanted = {(f, lines) for f, lines in everywhere if pathlib.Path(f).stem not in NOT_OF_FUNCTIONS}
    assert wanted - seen == set()
