"""The errors of every public function on this machine, against 50 digits: `python -m softjax audit`."""

import contextlib
import functools as ft
import gc
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from rich.console import Console
from rich.table import Table
from rich.text import Text

import softjax
from softjax import Placement, losses
from softjax.arguments.dtypes import join, split
from softjax.compute.placement import BlockSize

from . import truth
from .machine import machine

# Limits in float32, relative to the largest element. A result in half precision may have one more rounding error.
LIMITS = {"value": 2e-6, "reverse": 2e-6, "forward": 2e-6, "HVP": 1e-4}
# With operands in bfloat16, by the precision with which their cotangents meet them. The scores are exact. Confident
# rows are tried with "highest" alone: their gradient for the features is a sum that cancels, of terms that are rounded.
_OF_COTANGENTS = {"default": 4e-3, "high": 1e-5, "highest": 2e-6}
PRECISION_LIMITS = {level: LIMITS | {"reverse": most, "forward": most} for level, most in _OF_COTANGENTS.items()}
ALL = tuple(LIMITS)
FIRST_ORDER = ALL[:3]
FLOAT32, HALF = ("float32",), ("bfloat16", "float16")

LOGITS = "logits"
PLACES = {"default": None, "mean": None, "blocks": 5, "tiles": Placement(2, 5), "forward": Placement(2, 5, "forward")}
REDUCED = "mean", "forward"  # the places of a mean


class Scenario(NamedTuple):
    """Arguments of a function, and the types, modes and placement to test them with."""

    name: str
    arguments: dict[str, Any]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    place: str
    """a key of `PLACES`, or `LOGITS` for a function of dense logits"""
    block_size: BlockSize = None


class Work(NamedTuple):
    """A public function, its definition in `truth`, and the scenarios in which they are compared."""

    function: str
    definition: Callable
    scenarios: Iterable[Scenario]
    options: dict[str, Any]
    """arguments that are not arrays"""
    peer: Callable | None = None
    """the function of another library, to compare errors with"""
    adapter: Callable = lambda function: function
    """from the public function to a function of the scenarios' arguments"""
    limits: dict[str, float] = LIMITS
    """for each mode"""
    precision: str = ""
    """of the products, if it is not that of the type"""


_MPMATH = threading.Lock()  # the constants of mpmath are shared by all threads


class Entry(NamedTuple):
    """The error of a function in one mode: the largest of its arrays."""

    function: str
    scenario: str
    dtype: str
    placement: str
    mode: str
    error: float
    limit: float
    worst_array: str
    """the place of the array in the result"""
    peer: float | None
    """the error of the peer, if there is one"""


# ---------------------------------------------------------------------------------------------
# The functions and their scenarios

MARGINS = (-80.0, -17.3, -1.25, 0.0, 6.0, 17.3, 33.0, 64.7, 80.0)
OFFSETS = (0.0, 100.0, 1e4)
WITH_EQUAL_LOGITS = ("softmax", "log_softmax", "logsumexp", "softmax_cross_entropy_with_integer_labels")
N, K = 4, 13
LIVE = np.arange(K) % 5 != 4  # the labels are 0 .. N - 1


def _labels(n: int, k: int) -> np.ndarray:
    return np.arange(n) % k


def _logit_works(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    others = -np.abs(random.normal(size=(len(OFFSETS), len(MARGINS), K)))
    others[..., 0] = MARGINS
    rows = (others + np.reshape(OFFSETS, (-1, 1, 1))).reshape(-1, K)
    normal = lambda n, k: random.normal(size=(n, k), scale=2)
    rows = np.concatenate([rows, normal(N, K)])
    data: list[tuple[str, np.ndarray, tuple[str, ...], tuple[str, ...]]] = [
        ("margins", rows, FLOAT32, FIRST_ORDER),
        ("margins", rows, HALF[:1] if quick else HALF, FIRST_ORDER),
    ]
    if not quick:
        data += [("ordinary", normal(N, K), FLOAT32, ALL)]
        data += [(f"K={k}", normal(n, k), FLOAT32, FIRST_ORDER) for n, k in ((2, 1), (2, 2), (2, 1000), (1, 70000))]
    equal = ("70000 equal", np.zeros((1, 70000)), ("float16",), FIRST_ORDER)

    def work(function, definition, name, peer=None, variant="", options=None, **more):
        """The work of a function of the logits `name`; `more` are functions from logits to other arguments."""
        scenarios = [
            Scenario(label + variant, {name: z} | {k: f(z) for k, f in more.items()}, dtypes, modes, LOGITS)
            for label, z, dtypes, modes in (data if quick or function not in WITH_EQUAL_LOGITS else [*data, equal])
        ]
        return Work(function, definition, scenarios, options or {}, peer)

    yield work("softmax", truth.softmax, "x", jax.nn.softmax)
    yield work("log_softmax", truth.log_softmax, "x", jax.nn.log_softmax)
    a = ft.partial(jax.nn.logsumexp, axis=-1)
    yield work("logsumexp", truth.logsumexp, "a", a, options={"axis": -1})
    yield work("entropy", truth.entropy, "logits")
    yield work("softcap", ft.partial(truth.softcap, cap=30.0), "logits", options={"cap": 30.0})
    factors = np.where(np.arange(K) == 0, 0.0, 1.0)  # the class with the margin does not count
    weighted = work("of", ft.partial(truth.weighted_logsumexp, factors=factors), "logits", variant=", factors")
    of_factors = {"loss": losses.weighted_logsumexp, "per_class": jnp.asarray(factors[:, None], "float32")}
    first_of = lambda of: lambda **given: of(**given)[:, 0]
    of_13 = [s for s in weighted.scenarios if s.arguments["logits"].shape[1] == K and s.dtypes == FLOAT32]
    yield weighted._replace(scenarios=of_13, options=of_factors, adapter=first_of)
    positive = lambda z: random.uniform(1, 2, z.shape)  # so that the sum does not cancel
    yield work("expectation", truth.expectation, "logits", values=positive)
    first = lambda z: np.zeros(len(z), int)
    soft = ft.partial(work, "softmax_cross_entropy", truth.softmax_cross_entropy, "logits", optax.softmax_cross_entropy)
    one_hot = soft(", one-hot labels", labels=lambda z: truth.one_hot(first(z), z.shape[1]))
    yield one_hot._replace(scenarios=[*one_hot.scenarios, *soft(", soft labels", labels=positive).scenarios])
    peer = optax.softmax_cross_entropy_with_integer_labels
    for function, argument, other in (
        ("softmax_cross_entropy_with_integer_labels", "logits", peer),
        ("multiclass_svm_loss", "scores", None),
        ("multiclass_hinge_loss", "scores", optax.losses.multiclass_hinge_loss),
    ):
        yield work(function, getattr(truth, function), argument, other, labels=first)
    yield work("of", truth.focal, "logits", variant=", focal", options={"loss": losses.focal(2.0)}, example=first)
    brier = work("of", truth.brier, "logits", variant=", Brier", options={"loss": losses.brier}, example=first)
    # In half precision, an offset of 1e4 rounds all other logits to one number. The gradient is then a rounded 0.
    yield brier._replace(scenarios=[s for s in brier.scenarios if s.dtypes == FLOAT32])


def _scenarios(
    ordinary: Callable,
    others: dict[str, dict],
    large: Callable | None,
    scalar: bool,
    quick: bool,
    placed: bool = True,
) -> Iterator[Scenario]:
    """The scenarios of a function of examples and classes.

    `ordinary(n, k)` gives arguments for n examples and k classes, `others` are named arguments for (N, K), and
    `large(n, k)` gives arguments for few and for many classes. `scalar` says whether there is a `reduction`, and
    `placed` whether there is a placement.
    """
    few = {"ordinary": ordinary(N, K)} | others
    if placed:
        modes_of = {"default": ALL, "blocks": ALL, "tiles": FIRST_ORDER, "forward": FIRST_ORDER}
    else:
        modes_of = {"default": ALL, "mean": FIRST_ORDER}
    if quick:
        modes_of = {"blocks" if placed else "default": FIRST_ORDER}
    for (place, modes), (name, arguments) in itertools.product(modes_of.items(), few.items()):
        if scalar or place not in REDUCED:
            # Second derivatives are inaccurate for confident rows, as in other libraries.
            yield Scenario(name, arguments, FLOAT32, FIRST_ORDER if "margin" in name else modes, place, PLACES[place])
    if quick:
        return
    of_each = "blocks" if placed else "default"
    of_mean = of_each if not scalar else "forward" if placed else "mean"
    yield Scenario("ordinary", few["ordinary"], ("bfloat16",), FIRST_ORDER, of_each, PLACES[of_each])
    yield Scenario("ordinary", few["ordinary"], ("float16",), FIRST_ORDER, of_mean, PLACES[of_mean])
    if large is not None:
        yield Scenario("K=1", large(2, 1), FLOAT32, FIRST_ORDER, "default")
        yield Scenario("K=1000", large(2, 1000), FLOAT32, FIRST_ORDER, of_each, 512 if placed else None)
        yield Scenario("K=70000", large(2, 70000), FLOAT32, FIRST_ORDER, "default")


# The public functions take logits, and the scenarios have the arrays of which these are made.


def _of_linear(argument: str = "logits", chosen: Callable = lambda found: found) -> Callable:
    """The adapter of a function of logits: a part of its result, as a function of features and kernel."""

    def adapter(function):
        def of_arrays(
            features,
            kernel,
            *,
            bias=None,
            softcap=None,
            temperature=None,
            where=None,
            block_size=None,
            precision=None,
            dtype=None,
            **more,
        ):
            how = {"block_size": block_size, "precision": precision, "dtype": dtype}
            logits = softjax.linear(features, kernel, bias, **how)
            if softcap is not None:
                softcap = softcap.astype(jnp.float32)  # which adds its two gradients before they are rounded
                logits = softcap * (logits / softcap).map(jnp.tanh)
            logits = _changed(logits, temperature, None, where)
            return chosen(function(**{argument: logits}, **more))

        return of_arrays

    return adapter


def _of_distances(argument: str = "logits", chosen: Callable = lambda found: found) -> Callable:
    """The same, of the logits of a mixture."""

    def adapter(function):
        def of_arrays(
            z, centers, *, log_prior=None, precisions=None, temperature=None, where=None, block_size=None, **more
        ):
            logits = softjax.distances(z, centers, precisions=precisions, block_size=block_size)
            logits = _changed(logits, temperature, log_prior, where)
            return chosen(function(**{argument: logits}, **more))

        return of_arrays

    return adapter


def _changed(logits, temperature, log_prior, where):
    logits = logits if temperature is None else logits / temperature
    logits = logits if log_prior is None else logits + log_prior
    return logits if where is None else logits.where(where)


def _of_data(of):
    """`of` for a loss of data x and values of the classes, whose squared distances are sums of differences."""
    return lambda x, values, **more: of(example=x, per_class=values, **more)


# Products and sums of data far from 0 lose digits: `softjax.of` is given data about a middle, as the functions of
# mixtures do by themselves. Whole numbers are the same wherever the compiler computes the mean again.


def _middle(values):
    return jnp.round(jax.lax.stop_gradient(values).mean(0))


def _of_data_about_middle(of):
    def about_middle(x, values, **more):
        middle = _middle(values)
        return of(example=x - middle, per_class=values - middle, **more)

    return about_middle


def _of_values(of):
    """`of` for the expectation of values of the classes."""

    def about_middle(values, **more):
        middle = _middle(values)
        return of(per_class=values - middle, **more) + middle

    return about_middle


def _linear_works(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    normal, uniform = lambda *shape: random.normal(size=shape), lambda *shape: random.uniform(0.5, 1.5, shape)
    exact = np.array(list(itertools.permutations((2.0, 1.0, 0.0, -1.0)))[:K])

    def work(
        function,
        definition,
        more,
        options=None,
        peer=None,
        variant="",
        confident=True,
        large=True,
        scalar=True,
        adapter=None,
        modes=None,
    ):
        """The work of a function of linear logits; `more(n, k)` gives its other arguments."""
        ordinary = lambda n, k: {"features": normal(n, 3), "kernel": normal(3, k)} | more(n, k)

        def ahead(scale):
            """Arguments with exact logits, the logit of class n ahead of the others by `scale` or more."""
            return more(N, K) | {"features": scale * exact[:N], "kernel": exact.T}

        others = {f"margin {scale}": ahead(scale) for scale in (17, 80, -80)} if confident else {}
        scenarios = _scenarios(ordinary, others, ordinary if large else None, scalar, quick, adapter is not _itself)
        named = (s._replace(name=s.name + variant, modes=modes or s.modes) for s in scenarios)
        adapter = adapter or _of_linear()
        return Work(function, ft.partial(truth.of_linear, definition), named, options or {}, peer, adapter)

    labels = lambda n, k: {"labels": _labels(n, k)}

    def pair(n, k):
        return {"labels": (random.integers(k, size=(n, 3)), uniform(n, 3))}

    def smoothed(n, k):
        arrays = {"bias": normal(k), "weights": uniform(n)}
        return labels(n, k) | arrays | {"label_smoothing": np.array(0.1), "z_loss": np.array(0.01)}

    def options(n, k):
        return smoothed(n, k) | {"where": LIVE, "softcap": np.array(5.0), "temperature": np.array(1.7)}

    def peer(features, kernel, labels):
        return optax.softmax_cross_entropy_with_integer_labels(features @ kernel, labels)

    definition = truth.smoothed_cross_entropy
    yield work("linear_softmax_cross_entropy", definition, labels, peer=peer, adapter=_itself)
    yield work("linear_softmax_cross_entropy", definition, pair, variant=", pair labels", large=False, adapter=_itself)
    yield work(
        "linear_softmax_cross_entropy", definition, smoothed, variant=", all options", confident=False, large=False,
        adapter=_itself,
    )  # fmt: skip
    function = "softmax_cross_entropy_with_integer_labels"
    yield work(function, definition, labels, peer=peer)
    yield work(function, definition, pair, variant=", pair labels", large=False)
    yield work(function, definition, options, variant=", all options", confident=False, large=False)
    of_classes = lambda n, k: options(n, k) | {"class_weights": uniform(k)}
    of_live = lambda logits, class_weights, **more: truth.smoothed_cross_entropy(
        logits, class_weights=class_weights[LIVE], **more
    )
    yield work(
        "of", of_live, of_classes, variant=", class weights", confident=False, large=False,
        adapter=lambda of: _of_linear()(_of_class_weights(of)),
    )  # fmt: skip
    soft = lambda n, k: {"labels": uniform(n, k)}
    yield work("softmax_cross_entropy", truth.softmax_cross_entropy, soft, large=False, scalar=False)

    vectors = lambda n, k: {"values": normal(k, 2), "temperature": np.array(2.0)}
    of_vectors = ft.partial(
        work, "of", truth.vector_expectation, vectors, scalar=False, adapter=lambda of: _of_linear()(_of_values(of))
    )
    means = {"loss": losses.expectation}
    expectation = of_vectors(means, variant=", expectation")
    yield expectation._replace(scenarios=map(_with_smooth_values("kernel", lambda w: w.T), expectation.scenarios))
    positive = lambda n, k: {"values": uniform(k)}
    yield work("expectation", truth.expectation, positive, large=False, scalar=False)
    nothing: Callable[..., dict] = lambda n, k: {}
    ids = lambda n, k: {"ids": _labels(n, k)}
    yield work("log_probs", truth.log_probs, ids, scalar=False)
    several = lambda n, k: {"ids": (_labels(n, k)[:, None] + np.arange(3)) % k}
    yield work("log_probs", truth.log_probs, several, variant=", 3 ids", large=False, scalar=False)
    of_entropy = lambda logits, ids: truth.entropy(logits)
    yield work(
        "log_probs", of_entropy, ids, {"entropy": True}, variant=", entropy", scalar=False,
        adapter=_of_linear(chosen=lambda found: found[1]),
    )  # fmt: skip
    yield work("entropy", truth.entropy, nothing, large=False, scalar=False)
    yield work("logsumexp", truth.logsumexp, nothing, {"axis": -1}, scalar=False, adapter=_of_linear("a"))
    # Values alone: the log-probabilities of the likeliest classes are constants of differentiation.
    best, entropies = lambda found: found.log_probs, lambda found: found.entropy
    of_values = ft.partial(work, large=False, scalar=False, modes=("value",))
    yield of_values("top_k", truth.top_k, nothing, {"k": 3}, adapter=_of_linear(chosen=best))
    of_entropy = lambda logits, labels: truth.entropy(logits)
    yield of_values("metrics", of_entropy, labels, adapter=_of_linear(chosen=entropies))
    example = lambda n, k: {"example": _labels(n, k)}
    for variant, loss, of, more in (
        (", focal", losses.focal(2.0), truth.focal, example),
        (", entropy", losses.entropy, truth.entropy, nothing),
    ):
        yield work("of", of, more, {"loss": loss}, variant=variant, large=False)
    both = lambda logits, example: (
        truth.softmax_cross_entropy_with_integer_labels(logits, example) + (truth.entropy(logits) * SHARE)
    )
    yield work(
        "of", both, example, variant=", two losses", large=False, adapter=lambda of: _of_linear()(_of_two_losses(of))
    )

    for level, limits in PRECISION_LIMITS.items():
        options_of_level = {"precision": level, "dtype": "bfloat16"}
        few = {"confident": level == "highest", "large": False}
        for one in (
            work(function, truth.smoothed_cross_entropy, labels, options_of_level, variant=f", {level}", **few),
            of_vectors(options_of_level | means, variant=f", expectation, {level}", **few),
        ):
            rounded = map(_of_bfloat16_operands, one.scenarios)
            yield one._replace(scenarios=rounded, limits=limits, precision=f"bfloat16 products, {level}")

    binary = ft.partial(work, "sigmoid_binary_cross_entropy", truth.sigmoid_binary_cross_entropy, large=False)
    yield binary(lambda n, k: {"labels": np.stack([_labels(n, k), (_labels(n, k) + k // 2) % k], -1)})
    yield binary(lambda n, k: {"labels": random.uniform(size=(n, k))}, variant=", all targets")
    for name, variant, of_hinge in (
        ("multiclass_svm_loss", "", truth.multiclass_svm_loss),
        ("multiclass_hinge_loss", "", truth.multiclass_hinge_loss),
    ):
        yield work(name, of_hinge, labels, variant=variant, large=False, scalar=False, adapter=_of_linear("scores"))

    for name in ("kl_divergence", "js_divergence"):
        of = getattr(truth, name)
        from_p: Callable = lambda q, p, of=of: of(p, q)
        one = work(name, from_p, lambda n, k: {"p": normal(n, k)}, large=False, adapter=_of_linear("q"))
        # Between a sure q and p is m, which is not sure: derivatives of the divergence are differences, and nearly 0.
        unsure: Callable = lambda s, name=name: name == "js_divergence" and "margin" in s.name
        values_alone = (s._replace(modes=("value",)) if unsure(s) else s for s in one.scenarios)
        yield one._replace(scenarios=values_alone)
        if name == "kl_divergence":
            yield work(
                name, from_p, lambda n, k: {"p": (several(n, k)["ids"], uniform(n, 3))}, variant=", pair",
                large=False, adapter=_of_linear("q"),
            )  # fmt: skip
        teacher = lambda n, k: {"of_p": (normal(n, 5), normal(5, k))}
        of_both = lambda q, of_p, of=of: of(truth.linear(*of_p), q)
        yield work(name, of_both, teacher, variant=", two layers", confident=False, large=False, adapter=_of_two_layers)

    views = lambda x, y: {"x": x, "y": y, "temperature": np.array(2.0), "weights": uniform(K)}
    others = {f"margin {scale}": views(scale * exact, exact) for scale in (17, 80)}
    scenarios = _scenarios(lambda n, k: views(normal(k, 3), normal(k, 3)), others, None, True, quick)
    yield Work("contrastive_loss", truth.contrastive_loss, scenarios, {})
    of_pairs = lambda n, k: views(normal(k, 3), normal(k, 3))
    of_sets = lambda n, k: {name: a for name, a in of_pairs(n, k).items() if name != "y"} | {"labels": np.arange(k) % 4}
    for name, ordinary in (
        ("nt_xent_loss", of_pairs),
        ("supervised_contrastive_loss", of_sets),
        ("siglip_loss", lambda n, k: of_pairs(n, k) | {"logit_bias": np.array(-1.5)}),
    ):
        yield Work(name, getattr(truth, name), _scenarios(ordinary, {}, None, True, quick), {})


SHARE = 0.125  # of the second of two losses


def _itself(function):
    """The adapter of a function of the scenarios' arguments."""
    return function


def _of_class_weights(of):
    def weighted(logits, labels, class_weights, label_smoothing, z_loss, **more):
        loss = losses.label_smoothing(losses.cross_entropy, label_smoothing)
        loss = losses.z_loss(losses.class_weights(loss, class_weights), z_loss)
        return of(loss, logits, labels, **more)

    return weighted


def _of_two_losses(of):
    """A weighted sum of two losses from one pass."""

    def of_both(logits, example, reduction="none"):
        given = (losses.cross_entropy, losses.entropy), logits, (example, None)
        if reduction != "none":
            return of(*given, reduction=reduction, loss_weights=(1.0, SHARE))[0]
        of_labels, entropy = of(*given)
        return of_labels + SHARE * entropy

    return of_both


def _of_two_layers(divergence):
    """A divergence of two linear layers, in memory neither."""

    def of_arrays(features, kernel, of_p, block_size=None, **more):
        p = softjax.linear(*of_p, block_size=block_size)
        return divergence(p, softjax.linear(features, kernel, block_size=block_size), **more)

    return of_arrays


def _of_bfloat16_operands(scenario):
    """The scenario with features and kernel that bfloat16 holds exactly, in arrays of float32."""
    a = scenario.arguments
    operands = {name: a[name].astype(jnp.bfloat16).astype(float) for name in ("features", "kernel")}
    return scenario._replace(arguments=a | operands, dtypes=FLOAT32, modes=FIRST_ORDER)


def _mixture_works(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    def normal(n, k):
        shapes = {"z": (n, 2), "x": (n, 2), "centers": (k, 2), "values": (k, 2)}
        return {name: random.normal(size=shape) for name, shape in shapes.items()}

    smooth = _with_smooth_values("centers", lambda c: c)
    data = normal(N, K)
    settings = {"log_prior": random.normal(size=K), "temperature": np.array(1.7), "where": LIVE}
    settings["weights"] = random.uniform(0.5, 1.5, N)
    far = {name: a + 1000 for name, a in data.items()}
    coincident = data | {"centers": data["centers"][:1] + 1e-4 * data["centers"]}
    # Two clusters, with examples in both; the distances within one are those of `data`.
    apart = lambda a: a + 1e4 * (np.arange(len(a)) % 2)[:, None]
    clusters = data | {name: apart(data[name]) for name in ("z", "centers")}
    of_data = clusters | {name: apart(data[name]) for name in ("x", "values")}
    no_data = "x", "weights"
    of_loss = lambda loss, of_data=_of_data: ("of", {"loss": loss}, lambda of: _of_distances()(of_data(of)))
    for function, options, adapter, definition, without, variant in (
        ("mixture_autoencoder_loss", {}, _itself, truth.mixture_autoencoder_loss, (), ""),
        ("eol_loss", {}, _itself, truth.eol_loss, (), ""),
        ("leop_loss", {}, _itself, truth.leop_loss, (), ""),
        ("soft_quantize", {}, _codes, truth.soft_quantize, no_data, ""),
        (
            *of_loss(losses.mixture_autoencoder, _of_data_about_middle), truth.mixture_autoencoder_loss, (),
            ", mixture autoencoder",
        ),
        (*of_loss(losses.eol), truth.eol_loss, (), ", EOL"),
        (*of_loss(losses.leop), truth.leop_loss, (), ", LEOP"),
        (
            "of", {"loss": losses.expectation}, lambda of: _of_distances()(_of_values(of)), truth.soft_quantize,
            no_data, ", expectation of a mixture",
        ),
        (
            "of", {"loss": losses.entropy}, _of_distances(), ft.partial(truth.of_distances, truth.entropy),
            ("x", "values"), ", entropy of a mixture",
        ),
    ):  # fmt: skip
        chosen = lambda a, without=without: {name: value for name, value in a.items() if name not in without}
        others = {"mean 1000": chosen(far | settings), "centers coincide": chosen(coincident | settings)}
        others["clusters 1e4 apart"] = chosen(clusters | settings)
        others["temperature alone"] = chosen(far | {"temperature": settings["temperature"]})
        others["precisions"] = chosen(data | settings | {"precisions": random.uniform(0.3, 3.0, (K, 2))})
        if definition in (truth.eol_loss, truth.leop_loss):  # losses of distances alone
            others["data 1e4 apart"] = chosen(of_data | settings)
        of_entropy = options.get("loss") is losses.entropy
        if of_entropy:  # the gradient of a mean for its weights would be a difference of equal entropies
            del others["centers coincide"]["weights"]
        ordinary = lambda n, k, chosen=chosen: chosen(data | settings)
        large = None if of_entropy else lambda n, k, chosen=chosen: chosen(normal(n, k))
        placed, scalar = function == "of", without != no_data
        scenarios = (smooth(s) for s in _scenarios(ordinary, others, large, scalar, quick, placed))
        named = (s._replace(name=s.name + variant) for s in scenarios)
        yield Work(function, definition, named, options, adapter=adapter)

    nearest = lambda n, k: {name: a for name, a in normal(n, k).items() if name in ("z", "centers")}
    scenarios = (s._replace(modes=("value",)) for s in _scenarios(nearest, {}, None, False, quick))
    definition = ft.partial(truth.of_distances, truth.top_k)
    adapter = _of_distances(chosen=lambda found: found.log_probs)
    yield Work(
        "top_k", definition, (s._replace(name=s.name + ", mixture") for s in scenarios), {"k": 3}, adapter=adapter
    )


def _codes(soft_quantize):
    """Ids, usage and perplexity have no derivative."""
    return lambda **given: soft_quantize(**given).values


def _gaussian_works(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    """The likelihood of Gaussians, in a dimension of differences and in one of a matrix product."""
    for d in (2, 5):
        arrays = lambda n, k, d=d: {
            "x": random.normal(size=(n, d)),
            "centers": random.normal(size=(k, d)),
            "precisions": random.uniform(0.3, 3.0, (k, d)),
        }
        data = arrays(N, K) | {"log_prior": random.normal(size=K), "weights": random.uniform(0.5, 1.5, N)}
        masked = data | {"where": LIVE}
        far = data | {name: data[name] + 1000 for name in ("x", "centers")}
        others = {f"mean 1000, D={d}": far, f"masked, D={d}": masked}
        if d == 2:  # a product has an error of eps |x - m| |c - m|, beside which these distances are small
            near = {"x": data["centers"][np.arange(N) % K] + 0.01, "precisions": 1e4 * data["precisions"]}
            others["narrow, D=2"] = data | near
        large, definition = arrays if d == 2 else None, truth.gaussian_mixture_nll_loss
        ordinary = lambda n, k, data=data: data
        scenarios = ft.partial(_scenarios, ordinary, others, large, True, quick)
        yield Work("gaussian_mixture_nll_loss", definition, scenarios(placed=False), {})
        named = (s._replace(name=f"{s.name}, Gaussians") for s in scenarios())
        yield Work("of", definition, named, {"loss": losses.gaussian_mixture()}, adapter=_of_gaussians)


def _of_gaussians(of):
    """The loss of logits that are the log-prior alone: distances in no dimension are 0."""

    def of_arrays(x, centers, precisions, log_prior=None, where=None, block_size=None, **more):
        logits = softjax.distances(x[..., :0], centers[:, :0], block_size=block_size)
        logits = _changed(logits, None, log_prior, where)
        middle = _middle(centers) if x.shape[-1] > 2 else 0  # differences are exact
        return of(logits=logits, example=x - middle, per_class=(centers - middle, precisions), **more)

    return of_arrays


def _kernel_works(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    """The work of `softjax.of`, with logits by a function of one example and one class."""

    def ordinary(n, k):
        return {"examples": random.normal(size=(n, 2)), "classes": random.normal(size=(k, 2)), "scale": np.array(0.7)}

    def of_kernel(of):
        def of_arrays(examples, classes, scale, block_size=None, **more):
            cauchy = lambda x, c: -jnp.log1p(((x - c) ** 2).sum() / scale**2)
            return of(logits=softjax.pairwise(cauchy, examples, classes, block_size=block_size), **more)

        return of_arrays

    scenarios = (s._replace(name=f"{s.name}, kernel") for s in _scenarios(ordinary, {}, ordinary, True, quick))
    yield Work("of", truth.of_kernel, scenarios, {"loss": losses.logsumexp}, adapter=of_kernel)


def _with_smooth_values(class_argument: str, coordinates: Callable) -> Callable[[Scenario], Scenario]:
    """Makes the values of scenarios with many classes nearly a smooth function of the classes, as in a trained model.

    With random values, the gradient through the scores is a sum over the classes that cancels.
    """

    def smooth(scenario):
        a = scenario.arguments
        if "values" not in a or len(a["values"]) < 1000:
            return scenario
        linear = coordinates(a[class_argument])[:, :2] @ np.array([[1.0, 0.5], [-0.5, 1.0]])
        return scenario._replace(arguments=a | {"values": linear + 0.3 * a["values"]})

    return smooth


def works(quick: bool) -> Iterator[Work]:
    """All functions and scenarios, with the same random numbers in every run."""
    for seed, family in enumerate((_logit_works, _linear_works, _mixture_works, _kernel_works, _gaussian_works)):
        for work in family(quick, np.random.default_rng(seed)):
            yield work._replace(scenarios=list(work.scenarios))


# ---------------------------------------------------------------------------------------------
# Errors


def measure(work: Work) -> Iterator[Entry]:
    """The errors of a function and of its peer in every scenario."""
    function = work.adapter(getattr(softjax, work.function))

    @ft.cache
    def program(place, reduction):
        return _program(ft.partial(function, **work.options, **_without_none(block_size=place, reduction=reduction)))

    @ft.cache
    def peer(function, reduction):
        def theirs(**arguments):
            with jax.numpy_dtype_promotion("standard"):  # optax needs it in half precision
                out = function(**arguments)
            return out.mean() if reduction else out

        return _program(theirs)

    for scenario in work.scenarios:
        reduction = "mean" if scenario.place in REDUCED else None
        for dtype in scenario.dtypes:
            types = f"{dtype}, {work.precision}" if work.precision else dtype
            with _MPMATH:
                reduced = ft.partial(work.definition, **_without_none(reduction=reduction))
                problem = _Problem(reduced, work.definition, scenario, dtype)
            theirs = problem.errors(peer(work.peer, reduction), work.limits) if work.peer else {}
            for mode, (error, limit, array) in problem.errors(
                program(scenario.block_size, reduction), work.limits
            ).items():
                of_peer = theirs[mode][0] if theirs else None
                yield Entry(work.function, scenario.name, types, scenario.place, mode, error, limit, array, of_peer)


def _without_none(**options):
    return {name: option for name, option in options.items() if option is not None}


def _program(function: Callable) -> Callable:
    """A function that computes all modes of differentiation in one program, and the value in one of its own too.

    A compiler may round the logits of a value otherwise than those that a gradient needs again.
    """
    alone = jax.jit(lambda moving, fixed: function(**join(moving, fixed)))

    @ft.partial(jax.jit, static_argnames="modes")
    def run(moving, fixed, cotangent, tangent, modes):
        f = lambda moving: function(**join(moving, fixed))
        along = lambda f: jax.jvp(f, (moving,), (tangent,))[1]

        def pull(moving):
            out, back = jax.vjp(f, moving)
            return back(cotangent.astype(out.dtype))[0]

        of_mode = {"value": lambda: f(moving), "reverse": lambda: pull(moving)}
        of_mode |= {"forward": lambda: along(f), "HVP": lambda: along(pull)}
        return {mode: of_mode[mode]() for mode in modes}

    def of_all(moving, fixed, cotangent, tangent, modes):
        found = run(moving, fixed, cotangent, tangent, modes)
        return found | {"value": {"alone": alone(moving, fixed), "with its gradients": found["value"]}}

    return of_all


class _Problem:
    """A scenario in one type: its arguments rounded to that type, and the true results.

    `definition` gives the output, and `definition_by_example` the same without a reduction.
    """

    def __init__(self, definition: Callable, definition_by_example: Callable, scenario: Scenario, dtype: str):
        self.modes, self.by_row = scenario.modes, scenario.place == LOGITS
        random = np.random.default_rng(2024)  # another seed than the data's
        rounded = lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype.name.replace("64", "32"))
        self.moving, self.fixed = split(jax.tree.map(rounded, scenario.arguments))
        leaves, tree = jax.tree.flatten(self.moving)
        fixed = jax.tree.map(np.asarray, self.fixed)
        f = lambda *numbers: definition(**join(jax.tree.unflatten(tree, numbers), fixed))

        inputs = [truth.Numbers(a) for a in leaves]
        output = f(*inputs)
        by_example = output
        if output.shape == ():
            by_example = definition_by_example(**join(jax.tree.unflatten(tree, inputs), fixed))
        self.cotangent = rounded(random.normal(size=output.shape))
        gradients = truth.gradients(output, self.cotangent, inputs)
        # The gradient for a number is a sum over the examples, which may cancel. Its error is therefore relative to the
        # sum of their absolute values.
        numbers = [x for x in inputs if x.shape == ()]
        examples = [by_example[n] for n in range(by_example.shape[0])] if numbers and by_example.shape else []
        cotangents = np.broadcast_to(self.cotangent, by_example.shape) / (1 if output.shape else len(examples) or 1)
        parts = [truth.gradients(out, cotangents[n], numbers) for n, out in enumerate(examples)]
        sizes = iter(np.abs(np.array(parts, float)).sum(0) if parts else [0.0] * len(numbers))
        self.min_scales = [float(next(sizes)) if x.shape == () else 0.0 for x in inputs]
        # The tangent has the signs of the gradient, so that the sum of their products does not cancel.
        signs = [np.sign(g.astype(float)) for g in gradients]
        tangent = [rounded(np.asarray(s * np.abs(random.normal(size=s.shape)))) for s in signs]
        self.tangent = jax.tree.unflatten(tree, tangent)
        values = {"alone": output.value, "with its gradients": output.value}
        self.want = {"value": values, "reverse": jax.tree.unflatten(tree, gradients)}
        products = [g * truth.Numbers(v).value for g, v in zip(gradients, tangent, strict=True)]
        self.want["forward"] = sum(self.rows(p).sum(-1) for p in products)
        if "HVP" in self.modes:
            back = lambda *inputs: truth.gradients(f(*inputs), self.cotangent, inputs)
            self.want["HVP"] = jax.tree.unflatten(tree, truth.along(back, leaves, tangent))

    def rows(self, a: Any) -> np.ndarray:
        return np.reshape(a, (len(a) if self.by_row else 1, -1))

    def errors(self, program: Callable, limits: dict[str, float]) -> dict[str, tuple[float, float, str]]:
        """(error, limit, place of the array) of every mode, for the array with the largest error / limit."""
        got = program(self.moving, self.fixed, self.cotangent, self.tangent, self.modes)
        found = {}
        for mode in self.modes:
            arrays = jax.tree_util.tree_leaves_with_path(got[mode])
            min_scales = self.min_scales if mode == "reverse" else [0.0] * len(arrays)
            each = [
                (self.error(mode, a, want, min_scale), _limit(limits[mode], a.dtype), jax.tree_util.keystr(path))
                for (path, a), want, min_scale in zip(arrays, jax.tree.leaves(self.want[mode]), min_scales, strict=True)
            ]
            found[mode] = max(each, key=lambda found: found[0] / found[1])
        return found

    def error(self, mode: str, array: Array, want: np.ndarray, min_scale: float = 0.0) -> float:
        """The largest error relative to the largest element, or to `min_scale` if that is larger.

        In forward mode, the sums of products of tangent and cotangent are compared.
        """
        info = jnp.finfo(array.dtype)
        tiny = max(float(info.smallest_subnormal), float(jnp.finfo("float32").tiny))
        got, want = np.asarray(array, np.float64), want.astype(np.float64)
        if mode == "forward":
            products = self.rows(got * np.asarray(self.cotangent, np.float64))
            off, scale = np.abs(products.sum(-1) - want), np.maximum(np.abs(products).sum(-1), np.abs(want))
            tiny *= products.shape[-1]
        else:
            off, scale = np.abs(self.rows(got - want)).max(-1), np.maximum(np.abs(self.rows(want)).max(-1), min_scale)
        off = np.where(scale == 0, off, np.maximum(off - tiny, 0))  # the type may round it to 0
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nan_to_num(np.where(off == 0, 0, off / scale), nan=np.inf, posinf=np.inf).max())


def _limit(of_float32: float, dtype: jnp.dtype) -> float:
    return of_float32 + (float(jnp.finfo(dtype).eps) / 2 if dtype.itemsize < 4 else 0)


# ---------------------------------------------------------------------------------------------
# The report


def run(quick: bool, text: str, report: Path | None) -> int:
    """Measures and prints the errors; returns 1 if one is beyond its limit, else 0."""
    console = Console(width=None if Console().is_terminal else 140)
    entries: list[Entry] = []
    with console.status("") as status, _without_garbage_collection():
        chosen = [work for work in works(quick) if text in work.function]
        with ThreadPoolExecutor(2) as pool:  # one compiles while the other computes the truth
            for found in pool.map(lambda work: list(measure(work)), chosen):
                status.update(found[-1].function)
                entries += found
    host = machine()
    console.print(f"{host['device']}, {host['processor']}, {host['cores']} cores, {host['versions']}")
    console.print(_table(entries))
    broken = [e for e in entries if not e.error <= e.limit]
    for e in broken:
        name = f"{e.function}, {e.scenario}, {e.dtype}, {e.placement}: {e.mode} {e.worst_array}".rstrip()
        console.print(Text(f"{name} is off by {e.error:.1e}, more than {e.limit:.1e}", "red"), soft_wrap=True)
    console.print(f"{len(entries)} comparisons with 50 digits, {len(broken)} beyond their limits.")
    if report is not None:
        rows = [e._asdict() | {"within": e.error <= e.limit} for e in entries]
        report.write_text(json.dumps({"machine": host, "quick": quick, "rows": rows}, indent=1) + "\n")
        console.print(f"Figures: {report}")
    return 1 if broken else 0


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Turns garbage collection off: millions of numbers without cycles are computed in half the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _table(entries: list[Entry]) -> Table:
    """The largest errors over all scenarios, each with the error of the peer after a slash."""
    table = Table("", "", "", *ALL, title="Largest relative errors / errors of jax.nn or optax", title_justify="left")
    groups: dict[tuple[str, ...], dict[str, list[Entry]]] = {}
    for e in entries:
        groups.setdefault((e.function, e.dtype, e.placement), {}).setdefault(e.mode, []).append(e)
    for row, modes in groups.items():
        table.add_row(*row, *(_cell(modes.get(mode, [])) for mode in ALL))
    return table


def _cell(entries: list[Entry]) -> Text:
    peers = [e.peer for e in entries if e.peer is not None]
    if not entries:
        return Text()
    broken = any(not e.error <= e.limit for e in entries)
    text = Text(f"{max(e.error for e in entries):.1e}" + " !" * broken, "red" if broken else "green")
    return text + Text(f" / {max(peers):.1e}" if peers else "", "default")
