"""The contract's edges: labels out of range, classes left out, infinities, NaN, and empty arrays.

A table. Each row is a line of the contract that puts an odd value into the arguments. Each column is a function in
one placement. The expected value is the definition of one example and its live classes, in NumPy's float64; the
expected gradient is its central differences.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses
from softjax.logits import as_logits

from . import cases, spelled, table
from .cases import D, E, K, N

INF, NAN = float("inf"), float("nan")
STEP = 1e-6
FLOOR = -200.0  # a logit in place of -inf, where the slope of an infinite loss is wanted as a limit

# --- definitions of the table, for one example and its live classes ----------------------------------

# The loss where no class is left: a label has probability 0, nothing competes with it, and a sum of nothing is 0.
NOTHING = {"focal": INF, "poly_1": INF, "brier": 1.0, "weston_watkins": 0.0, "crammer_singer": 0.0, "leop": INF}


class Seen(NamedTuple):
    """The arguments of a definition: one example and its live classes."""

    h: np.ndarray
    ids: np.ndarray
    y: int | tuple
    y_weights: tuple
    v: np.ndarray | None  # payoffs of the classes
    x: np.ndarray | None  # data of the example
    count: int
    prior: np.ndarray  # of every class
    floor: float = -INF


def log_sum_exp(h):
    return table.log_sum_exp(h[None])[0]


def by_table(name):
    """The row's definition. The label of a class that is left out is a class more, whose logit is -inf, or FLOOR."""
    row = table.LOSSES[name]

    def definition(s):
        if not s.h.size and name in NOTHING:
            return NOTHING[name]
        h, example = s.h, None if s.x is None else s.x[None]
        if row in table.LABELLED:
            h = s.h if s.y in s.ids else np.append(s.h, s.floor)
            example = np.array([*np.flatnonzero(s.ids == s.y), len(h) - 1])[:1]
        return row.definition(h[None], example, *([] if s.v is None else [s.v]))[0]

    return definition


def cross_entropy(s):
    """-sum_t w_t log p of the labels, which is infinite where a label has no probability."""
    labels, weights = (s.y, s.y_weights) if np.ndim(s.y) else ([s.y], [1.0])
    logit = lambda y: s.h[s.ids == y].sum() if y in s.ids else s.floor
    costs = [w * (log_sum_exp(s.h) - logit(y)) if s.h.size else w * INF for y, w in zip(labels, weights, strict=True)]
    return np.sum(costs)


def of_capped(s):
    """Of the logits 3 tanh(z / 3) / 0.6, less 0.4 for the label, with a z-loss."""
    capped = capped_logits(s.h, 3.0, 0.6) - 0.4 * (s.ids == s.y)
    return cross_entropy(s._replace(h=capped)) + 0.1 * log_sum_exp(capped) ** 2


def smoothed(s):
    """-sum_k weight_k (0.8 1{k = y} + 0.2 prior_k) log p_k."""
    of_prior = 0.2 * s.prior[s.ids] * CLASS_WEIGHTS[s.ids] * (log_sum_exp(s.h) - s.h)
    return 0.8 * CLASS_WEIGHTS[s.y] * cross_entropy(s) + of_prior.sum()


def smoothed_over_live_classes(s):
    """-sum_k (0.8 1{k = y} + 0.2 / K) log p_k, for the K classes that are left."""
    return 0.8 * cross_entropy(s) + 0.2 * (log_sum_exp(s.h) - s.h).sum() / max(len(s.h), 1)


def with_every_option(s):
    capped = s._replace(h=capped_logits(s.h, 3.0, 0.6))
    loss = smoothed_over_live_classes(capped) + 0.1 * log_sum_exp(capped.h) ** 2
    return CLASS_WEIGHTS[s.y] * loss


def capped_logits(h, cap, temperature):
    return cap * np.tanh(h / cap) / temperature


def kl_divergence(s):
    """sum_k p_k (log p_k - log q_k), for log p_k = x . v_k less a number."""
    log_p, log_q = (h - log_sum_exp(h) if h.size else h for h in (s.v @ s.x, s.h))
    return (np.exp(log_p) * (log_p - log_q)).sum()


def everywhere(function, rest):
    """The function's value at every live class, and `rest` at the others."""

    def of(s):
        out = np.full(s.count, rest)
        out[s.ids] = function(s.h)
        return out

    return of


focal, poly_1, brier = by_table("focal"), by_table("poly_1"), by_table("brier")
weston_watkins, crammer_singer = by_table("weston_watkins"), by_table("crammer_singer")
entropy, expectation, mean_square = by_table("entropy"), by_table("expectation"), by_table("mean_square")
autoencoder, eol, leop = by_table("mixture_autoencoder"), by_table("eol"), by_table("leop")
weighted_logsumexp = by_table("weighted_logsumexp")


# --- rows: the lines of the contract ---------------------------------------------------------------

MASK = (1, 5, 6, 7, 8, 9)  # the second block of five, whole, and one class more
EVERY = tuple(range(K))
IGNORED = "ignored"  # stands for the column's `ignore_index`


class Line(NamedTuple):
    labels: tuple = (0, 3, 11, 12)
    out: tuple = ()  # the classes that are left out
    by: str = ""  # how: `where`, or a logit of "-inf"
    junk: float | None = None  # scores of the classes left out
    payoff: float | None = None  # their payoffs
    of_class: float | None = None  # scores of class 3
    of_example: float | None = None  # features of example 1


def masked(*out, by="where", **options):
    return Line(out=out, by=by, **options)


LABEL_LINES = {
    "a label of -1": Line((0, -1, 11, 12)),
    "a label of -100": Line((0, 3, 11, -100)),
    "a label of K": Line((0, K, 11, 12)),
    "a label of 2^31 - 1": Line((2**31 - 1, 3, 11, 12)),
    "labels out of range beside masked classes": masked(*MASK, labels=(0, -1, K, 12), junk=NAN),
    "labels out of range where all is masked": masked(*EVERY, labels=(0, -1, K, 12), junk=NAN),
    "labels on masked classes": masked(*MASK, labels=(3, 1, 7, 12), junk=NAN),
    "labels on impossible classes": masked(*MASK, by="-inf", labels=(3, 1, 7, 12)),
    "the label is the only class left by a mask": masked(*range(12), labels=(12, 12, 0, 12), junk=INF),
    "the label is the only possible class": masked(*range(12), by="-inf", labels=(12, 12, 0, 12)),
}
LINES = {
    "nothing odd": Line(),
    "masked classes were NaN and paid +inf": masked(*MASK, junk=NAN, payoff=INF),
    "masked classes were +inf and paid -inf": masked(*MASK, junk=INF, payoff=-INF),
    "masked classes were -inf and paid NaN": masked(*MASK, junk=-INF, payoff=NAN),
    "impossible classes pay +inf": masked(*MASK, by="-inf", payoff=INF),
    "impossible classes pay -inf": masked(*MASK, by="-inf", payoff=-INF),
    "impossible classes pay NaN": masked(*MASK, by="-inf", payoff=NAN),
    "the first block is masked": masked(*range(5), labels=(12, 7, 5, 11), junk=NAN, payoff=NAN),
    "all blocks but the last are masked": masked(*range(10), labels=(10, 11, 12, 12), junk=NAN, payoff=INF),
    "the last block is impossible": masked(10, 11, 12, by="-inf", labels=(0, 3, 5, 9), payoff=INF),
    "all is masked": masked(*EVERY, junk=NAN, payoff=INF),
    "all is impossible": masked(*EVERY, by="-inf", payoff=NAN),
    "NaN in a live class": Line(of_class=NAN),
    "+inf in a live class": Line(of_class=INF),
    "NaN in a live class beside masked ones": masked(*MASK, junk=INF, of_class=NAN),
    "NaN in the only live class": masked(*(k for k in range(K) if k != 3), of_class=NAN),
    "NaN in an example": Line(of_example=NAN),
    "+inf in an example": Line(of_example=INF),
}
IGNORED_LINES = {
    "ignored labels, of features that are NaN": Line((0, IGNORED, 11, IGNORED)),
    "all labels are ignored": Line((IGNORED,) * N),
    "an ignored label, one out of range, and masked classes": masked(*MASK, labels=(IGNORED, K, 11, 12), junk=NAN),
    "an ignored label where all is masked": masked(*EVERY, labels=(IGNORED, 3, 11, IGNORED), junk=NAN),
}

# --- columns: functions, and the places of their classes -------------------------------------------

WEIGHTS = np.array([0.5, 2.0, 1.0, 1.5], np.float32)
CLASS_WEIGHTS = np.random.default_rng(9).uniform(0.5, 2, K).astype(np.float32)
MIXTURE_TEMPERATURE = 1.3


class Place(NamedTuple):
    block_size: int | softjax.Placement | None = None
    reduction: str = "none"
    devices: tuple[int, int] | None = None  # over which examples and classes are spread


PLACES = {
    "whole": Place(),
    "blocks": Place(5),
    "tiles": Place(softjax.Placement(3, 5, "backward")),
    "forward, sum": Place(softjax.Placement(3, 5, "forward"), "sum"),
    "forward, mean": Place(softjax.Placement(3, 5, "forward"), "mean"),
    "devices": Place(2, devices=(2, 4)),  # of which the last have no class, or one
    "devices, mean": Place(softjax.Placement(1, 1, "forward"), "mean", (2, 4)),
}


class Subject(NamedTuple):
    name: str
    kind: str  # of scores: logits in "hand", "linear", or of a "mixture"
    call: Callable  # (arrays with gradients, other arrays, options) -> output
    definition: Callable
    labelled: bool = False
    payoffs: str = ""  # "" for none, "v" per class, "t" per example and class, "vx" per class with data of the examples
    ignore: int | None = None
    pairs: bool = False
    nothing: float | None = None  # the loss of an example that is masked whole, where that is a convention
    capped: bool = False  # then a logit of +inf is one of 3


def hand(name, call, definition, **options):
    return Subject(name, "hand", call, definition, **options)


CAP = {"softcap": 3.0, "temperature": 0.6}


def of_logits(loss):
    def call(a, s, where=None):
        example = known(loss, a["z"], s, a)
        if loss is not CAPPED:
            return spelled.of_logits(made(loss, s), a["z"], example, a.get("v"), where=where)
        logits = spelled.changed(as_logits("logits", a["z"]), where=where, **CAP)
        return softjax.of(loss, logits, example, a.get("v"))

    return call


def of_linear(loss):
    def call(a, s, **o):
        z = a["x"] @ jnp.where(s["live"][0], a["w"], 0) + a["b"][None]
        example = known(loss, z, s, a)
        o |= CAP if loss is CAPPED else {}
        return spelled.of_linear(made(loss, s), a["x"], a["w"], example, a.get("v"), bias=a["b"], **o)

    return call


def of_mixture(loss):
    def call(a, s, **o):
        options = {"log_prior": a["b"], "temperature": MIXTURE_TEMPERATURE, **o}
        return spelled.of_mixture(loss, a["z"], a["c"], s["y"], a.get("v"), **options)

    return call


def of_teacher(a, s, q, o):
    """The divergence of logits q from those of a teacher, which has no class that is left out."""
    p = spelled.linear(a["d"], a["v"], {"class_axis": 0, **o})
    return softjax.of(losses.kl_divergence, (p.where(s["live"][-1]), q))


def kl_of_logits(a, s, where=None):
    return of_teacher(a, s, a["z"] if where is None else jnp.where(where, a["z"], -INF), {})


def kl_of_linear(a, s, **o):
    of_teacher_too = {name: x for name, x in o.items() if name != "where"}
    return of_teacher(a, s, spelled.linear(a["x"], a["w"], {"bias": a["b"], **o}), of_teacher_too)


def made(loss, s):
    """The loss, which a row may have a part in."""
    return loss(s) if loss is SMOOTHED else loss


def known(loss, z, s, a):
    """The loss's data of the examples: labels, labels with their logits, or vectors."""
    if loss is not WESTON_WATKINS:
        return s["y"] if "d" not in a else a["d"]
    y, live = s["y"], s["live"]
    is_class = (y >= 0) & (y < live.shape[1])
    place = jnp.where(is_class, y, 0)[:, None]
    pick = lambda of: jnp.take_along_axis(of, place, 1)[:, 0]
    logit = jnp.where(pick(live), pick(jnp.where(live, z, 0)), -INF)
    return y, jnp.where(is_class, logit, 0)


def SMOOTHED(s):  # noqa: N802
    live = s["live"][-1]
    prior = live.astype(jnp.float32) / jnp.maximum(live.sum(), 1).astype(jnp.float32)
    return losses.class_weights(losses.label_smoothing(losses.cross_entropy, 0.2, prior), CLASS_WEIGHTS[: live.size])


LOSS = {name: row.made() for name, row in table.LOSSES.items()}
WESTON_WATKINS = LOSS["weston_watkins"]
CAPPED = losses.z_loss(losses.margin(losses.cross_entropy, 0.4), 0.1)  # of logits with a softcap and a temperature
OF_LABELS = {
    "cross_entropy": (losses.cross_entropy, cross_entropy),
    "focal": (LOSS["focal"], focal),
    "poly_1": (LOSS["poly_1"], poly_1),
    "brier": (losses.brier, brier),
    "weston_watkins": (WESTON_WATKINS, weston_watkins),
    "crammer_singer": (LOSS["crammer_singer"], crammer_singer),
    "z_loss, margin, temperature and softcap": (CAPPED, of_capped),
    "label_smoothing and class_weights": (SMOOTHED, smoothed),
    "label_smoothing over live classes": (LOSS["smoothed_over_live_classes"], smoothed_over_live_classes),
}
OF_SCORES = {
    "logsumexp": (losses.logsumexp, lambda s: log_sum_exp(s.h), ""),
    "entropy": (losses.entropy, entropy, ""),
    "expectation": (losses.expectation, expectation, "v"),
    "weighted_logsumexp": (losses.weighted_logsumexp, weighted_logsumexp, "v"),
    "mean_square, a user's": (LOSS["mean_square"], mean_square, ""),
    "leop": (losses.leop, leop, "vx"),
}


def dense(s):
    """Soft labels [N, K]: 0.75 for the label and 0.5 for class 4, as a pair has them."""
    hot = lambda y: (y[:, None] == jnp.arange(K, dtype=jnp.int32)).astype(jnp.float32)
    return 0.75 * hot(s["y"]) + 0.5 * hot(jnp.full_like(s["y"], 4))


ce = spelled.linear_softmax_cross_entropy
bias = lambda a: {"bias": a["b"]}
OPTIONS = {"label_smoothing": 0.2, "z_loss": 0.1, **CAP}


def with_class_weights(a, s, weights=1.0, **o):
    """The cross entropy of every option, with weights of the classes as weights of the examples."""
    y = s["y"]
    of_labels = jnp.where((y >= 0) & (y < K), jnp.asarray(CLASS_WEIGHTS)[jnp.clip(y, 0, K - 1)], 1)
    return ce(a["x"], a["w"], y, **bias(a), ignore_index=2, weights=weights * of_labels, **OPTIONS, **o)


IN_HAND = [
    hand("softmax", lambda a, s, **o: softjax.softmax(a["z"], **o), everywhere(table.softmax, 0.0)),
    hand(
        "log_softmax",
        lambda a, s, **o: softjax.log_softmax(a["z"], **o),
        everywhere(table.log_softmax, -INF),
    ),
    hand("logsumexp", lambda a, s, **o: softjax.logsumexp(a["z"], -1, **o), lambda s: log_sum_exp(s.h)),
    hand("entropy", lambda a, s, **o: softjax.entropy(a["z"], **o), entropy),
    hand("expectation", lambda a, s, **o: softjax.expectation(a["z"], a["t"], **o), expectation, payoffs="t"),
    hand(
        "integer labels",
        lambda a, s, **o: softjax.softmax_cross_entropy_with_integer_labels(a["z"], s["y"], **o),
        cross_entropy,
        labelled=True,
        nothing=0.0,
    ),
    hand(
        "soft labels",
        lambda a, s, **o: softjax.softmax_cross_entropy(a["z"], dense(s), **o),
        cross_entropy,
        pairs=True,
        nothing=0.0,
    ),
]
HINGES = [
    hand(
        "svm",
        lambda a, s: softjax.multiclass_svm_loss(a["z"], s["y"], margin=0.7),
        weston_watkins,
        labelled=True,
    ),
    hand(
        "hinge",
        lambda a, s: softjax.multiclass_hinge_loss(a["z"], s["y"], margin=0.7),
        crammer_singer,
        labelled=True,
    ),
]
LOSSES_IN_HAND = [
    *(
        hand(f"of_logits {name}", of_logits(loss), definition, labelled=True, capped=loss is CAPPED)
        for name, (loss, definition) in OF_LABELS.items()
    ),
    *(
        hand(f"of_logits {name}", of_logits(loss), definition, payoffs=payoffs)
        for name, (loss, definition, payoffs) in OF_SCORES.items()
    ),
    hand("of_logits kl_divergence", kl_of_logits, kl_divergence, payoffs="vx"),
]
LINEAR = [
    Subject(
        "linear cross entropy",
        "linear",
        lambda a, s, **o: ce(a["x"], a["w"], s["y"], **bias(a), **o),
        cross_entropy,
        labelled=True,
    ),
    Subject(
        "linear cross entropy, ignoring",
        "linear",
        lambda a, s, **o: ce(a["x"], a["w"].T, s["y"], **bias(a), class_axis=0, ignore_index=-1, **o),
        cross_entropy,
        labelled=True,
        ignore=-1,
    ),
    Subject(
        "linear cross entropy of every option",
        "linear",
        with_class_weights,
        with_every_option,
        labelled=True,
        ignore=2,
        capped=True,
    ),
    Subject(
        "linear cross entropy of pairs",
        "linear",
        lambda a, s, **o: ce(a["x"], a["w"], s["pair"], **bias(a), ignore_index=-100, **o),
        cross_entropy,
        labelled=True,
        pairs=True,
        ignore=-100,
    ),
    Subject(
        "linear_expectation",
        "linear",
        lambda a, s, **o: spelled.linear_expectation(a["x"], a["w"], a["v"], **bias(a), **o),
        expectation,
        payoffs="v",
    ),
    Subject(
        "linear_logsumexp",
        "linear",
        lambda a, s, **o: spelled.linear_logsumexp(a["x"], a["w"], **bias(a), **o),
        lambda s: log_sum_exp(s.h),
    ),
    *(
        Subject(f"of_linear {name}", "linear", of_linear(loss), definition, labelled=True, capped=loss is CAPPED)
        for name, (loss, definition) in OF_LABELS.items()
    ),
    *(
        Subject(f"of_linear {name}", "linear", of_linear(loss), definition, payoffs=payoffs)
        for name, (loss, definition, payoffs) in OF_SCORES.items()
    ),
    Subject("of_linear kl_divergence", "linear", kl_of_linear, kl_divergence, payoffs="vx"),
]


def of_mixture_data(function):
    return lambda a, s, **o: function(
        a["z"], a["d"], a["c"], a["v"], log_prior=a["b"], temperature=MIXTURE_TEMPERATURE, **o
    )


MIXTURES = [
    Subject("mixture_autoencoder_loss", "mixture", of_mixture_data(spelled.mixture_autoencoder_loss), autoencoder),
    Subject("eol_loss", "mixture", of_mixture_data(spelled.eol_loss), eol),
    Subject("leop_loss", "mixture", of_mixture_data(spelled.leop_loss), leop),
]
MIXTURES = [m._replace(payoffs="vx") for m in MIXTURES] + [
    Subject(
        "mixture_expectation",
        "mixture",
        lambda a, s, **o: spelled.mixture_expectation(
            a["z"], a["c"], a["v"], log_prior=a["b"], temperature=MIXTURE_TEMPERATURE, **o
        ),
        expectation,
        payoffs="v",
    ),
    *(
        Subject(f"of_mixture {name}", "mixture", of_mixture(loss), definition, labelled=True)
        for name, (loss, definition) in OF_LABELS.items()
        if name in ("cross_entropy", "brier")
    ),
]
SUBJECTS = {s.name: s for s in IN_HAND + HINGES + LOSSES_IN_HAND + LINEAR + MIXTURES}


# --- a cell of the table ----------------------------------------------------------------------------


class Given(NamedTuple):
    arrays: dict  # with a gradient
    known: dict  # without a gradient
    where: np.ndarray | None
    live: np.ndarray  # [N, K], the classes that are left
    labels: tuple


OWN = {"hand": ("z", "t", "d"), "linear": ("x", "d"), "mixture": ("z", "d")}  # arrays of the examples


def by_class(name, a):
    """A view with the classes on the first axis."""
    return a.T if name == "w" else a


def given(subject, line, k=K, n=N):
    r = cases.Random(jnp.float32, seed=3)
    # In hand, where a mask may be another for each example, the first is left whole; but for payoffs of the classes.
    rows = np.arange(n)[:, None] >= (subject.kind == "hand" and "v" not in subject.payoffs)
    live = ~(rows & np.isin(np.arange(k), line.out))
    junk = 0.5 if line.junk is None else line.junk
    shapes = {
        "hand": {"z": (n, k)},
        "linear": {"x": (n, D), "w": (D, k), "b": (k,)},
        "mixture": {"z": (n, D), "c": (k, D), "b": (k,)},
    }[subject.kind]
    more = {"": {}, "t": {"t": (n, k)}, "v": {"v": (k, E)}, "vx": {"v": (k, E), "d": (n, E)}}[subject.payoffs]
    arrays = {name: np.array(r.normal(*shape)) for name, shape in (shapes | more).items()}
    if subject.definition is weighted_logsumexp:  # the logarithm of a sum of these factors
        arrays["v"] = 0.1 + abs(arrays["v"])
    out = ~live[-1] if n else np.zeros(k, bool)
    for name in arrays:
        if name == "z" and subject.kind == "hand":
            arrays[name][~live] = -INF if line.by == "-inf" else junk
        elif name == "b" and line.by == "-inf":
            arrays[name][out] = -INF
        elif name in ("w", "b", "c"):
            by_class(name, arrays[name])[out] = junk
        elif name in ("v", "t") and line.payoff is not None:
            arrays[name][out if name == "v" else ~live] = line.payoff
    scores = arrays["z"].T if subject.kind == "hand" else arrays["b"]
    if line.of_class is not None:
        scores[3] = line.of_class
    if line.of_example is not None:
        arrays[OWN[subject.kind][0]][1, :2] = line.of_example
    labels = tuple(subject.ignore if y is IGNORED else y for y in line.labels[:n])
    if subject.ignore is not None:
        arrays["x"][[y == subject.ignore for y in labels]] = NAN
    y = np.array(labels, np.int32).reshape(n)
    other = np.where(y == subject.ignore, y, 4)
    none = np.full_like(y, subject.ignore if subject.ignore is not None else 4)
    weights = np.broadcast_to(np.array([0.75, 0.5, 0.25], np.float32), (n, 3))
    known = {"y": y, "live": live, "pair": (np.stack([y, other, none], -1), weights)}
    by_mask = live if subject.kind == "hand" else ~out
    return Given(arrays, known, by_mask if line.by == "where" else None, live, labels)


def scores(kind, a, i):
    """h [K] of one example."""
    if kind == "hand":
        return a["z"][i]
    if kind == "linear":
        return a["x"][i] @ a["w"] + a["b"]
    return -((a["z"][i] - a["c"]) ** 2).sum(-1) / MIXTURE_TEMPERATURE + a["b"]


def slopes(function, arrays):
    """Central differences of a function of arrays, for each of their numbers."""
    arrays = [a.copy() for a in arrays]
    result = [np.zeros_like(a) for a in arrays]
    for a, slope in zip(arrays, result, strict=True):
        for place in np.ndindex(a.shape):
            middle = a[place]
            a[place] = middle + STEP
            up = function(*arrays)
            a[place] = middle - STEP
            slope[place] = (up - function(*arrays)) / (2 * STEP)
            a[place] = middle
    return result


class Wanted(NamedTuple):
    value: np.ndarray
    gradient: dict  # of sum(ct * value), for every array
    spoiled: bool = False  # the gradient has NaN in it
    open: bool = False  # the contract leaves the gradient for this example's own arrays open


@ft.cache
def wanted_of(name, line, i, k, ct):
    """The expected value and gradient of example i, for a cotangent `ct`."""
    subject = SUBJECTS[name]
    g = given(subject, line, k)
    a = {name: np.asarray(x, np.float64) for name, x in g.arrays.items()}
    gradient = {name: np.zeros_like(x) for name, x in a.items()}
    ids, y = np.flatnonzero(g.live[i]), g.labels[i]
    ct = np.asarray(ct)
    if y == subject.ignore:
        return Wanted(np.zeros(ct.shape), gradient)
    if subject.nothing is not None and line.by == "where" and not ids.size:
        return Wanted(np.full(ct.shape, subject.nothing), gradient)

    h = scores(subject.kind, a, i)[ids]
    v = a["v"][ids] if "v" in a else a["t"][i][ids] if "t" in a else None
    x = a["d"][i] if "d" in a else None
    seen = Seen(h, ids, *labels_of(subject, g, line, i), v, x, k, g.live[-1] / max(g.live[-1].sum(), 1))
    if subject.labelled and not 0 <= y < k:
        for name, to in gradient.items():
            if name not in OWN[subject.kind]:
                by_class(name, to)[ids] = NAN
            else:
                to[i] = np.where(g.live[i], NAN, 0) if subject.kind == "hand" else NAN
        return Wanted(np.full(ct.shape, NAN), gradient, open=not ids.size)
    if np.isnan(h).any() or (h == INF).any():
        return Wanted(np.full(ct.shape, NAN), gradient, spoiled=True)

    value = np.asarray(subject.definition(seen), np.float64)
    if np.isnan(value).any():
        return Wanted(value, gradient, spoiled=True)
    if value.ndim == 0 and np.isinf(value):
        if not ids.size:
            return Wanted(value, gradient)
        seen = seen._replace(floor=FLOOR)
    # A number common to all logits of a mixture is left out of them, and does not change a logit of -inf.
    in_common = subject.kind == "mixture" and seen.floor == FLOOR

    def total(h, *more):
        parts = dict(zip([n for n, p in (("v", v), ("x", x)) if p is not None], more, strict=True))
        value = np.asarray(subject.definition(seen._replace(h=h, **parts)))
        return np.where(np.isinf(value), 0, value * ct).sum()  # an infinite value is constant

    dh, *more = slopes(total, [p for p in (h, v, x) if p is not None])
    if subject.kind == "hand":
        gradient["z"][i, ids] = dh
    elif subject.kind == "linear":  # z_k = sum_d x_d w_dk + b_k
        gradient["x"][i] = a["w"][:, ids] @ dh
        gradient["w"][:, ids] = np.outer(a["x"][i], dh)
        gradient["b"][ids] = dh
    else:  # h_k = -|z - c_k|^2 / T + b_k
        apart = 2 * (a["z"][i] - a["c"][ids]) * dh[:, None] / MIXTURE_TEMPERATURE
        gradient["z"][i], gradient["c"][ids], gradient["b"][ids] = -apart.sum(0), apart, dh
    if "v" in a:
        gradient["v"][ids] = more[0]
    if "t" in a:
        gradient["t"][i, ids] = more[0]
    if "d" in a:
        gradient["d"][i] = more[-1]
    return Wanted(value, gradient, open=in_common)


def labels_of(subject, g, line, i):
    """The label, or the labels that are not ignored and their weights."""
    y, weights = (g.labels[i], 4), (0.75, 0.5)
    if not subject.pairs:
        return g.labels[i], ()
    if not subject.labelled and line.by == "where":  # soft labels are masked with their classes
        kept = [(c, w) for c, w in zip(y, weights, strict=True) if g.live[i, c]]
        return tuple(c for c, _ in kept), tuple(w for _, w in kept)
    return y, weights


def shares(subject, g, place):
    """The factor of each example's loss in the result."""
    if place.reduction == "none":
        return np.ones(len(g.labels))
    w = WEIGHTS.astype(np.float64) * [y != subject.ignore for y in g.labels]
    if place.reduction == "sum":
        return w
    of_label = [CLASS_WEIGHTS[y] if subject.definition is with_every_option and 0 <= y < K else 1 for y in g.labels]
    return w / (w * of_label).sum() if w.any() else w


@ft.cache
def compiled(name, place):
    """(value, gradients, derivative along a direction), of one compilation for all rows."""
    subject = SUBJECTS[name]

    def call(arrays, known, where):
        options = {} if subject in HINGES else {"where": where}
        if subject.kind != "hand":
            options |= {"block_size": place.block_size}
            if place.devices is not None:
                mesh = cases.mesh(*place.devices)
                options |= {"mesh": mesh, "class_axis_name": "classes", "batch_axis_name": "data"}
            if place.reduction != "none":
                options |= {"reduction": place.reduction, "weights": WEIGHTS[: known["y"].size]}
        return subject.call(arrays, known, **options)

    @cases.compiled
    def run(arrays, directions, ct, known, where):
        f = lambda arrays: call(arrays, known, where)
        value, back = jax.vjp(f, arrays)
        _, along = jax.jvp(f, (arrays,), (directions,))
        return value, back(ct)[0], along

    return run


def check(subject, place, line, k=K):
    g = given(subject, line, k)
    where = g.where
    if where is None and place is not PLACES["whole"]:
        where = np.ones(k, bool)  # one compilation for all rows
    random = np.random.default_rng(7)
    normal = lambda shape: random.normal(size=shape).astype(np.float32)
    directions = {name: normal(a.shape) for name, a in g.arrays.items()}
    reduced = place.reduction != "none"
    ct = normal(() if reduced else (N, *more_axes(subject, k)))
    unit = [tuple(c.tolist()) if np.ndim(c) else 1.0 for c in (np.ones(N) if reduced else ct)]
    share = shares(subject, g, place)
    factor = share * ct if reduced else ct.astype(np.float64) if ct.ndim == 1 else np.ones(N)
    with np.errstate(all="ignore"):
        wanted = [wanted_of(subject.name, line, i, k, unit[i]) for i in range(N)]
        values = [w.value.sum() if reduced else w.value for w in wanted]
        values = sum(c * v for c, v in zip(share, values, strict=True) if c) if reduced else np.stack(values)
    ct = np.where(np.isinf(values), 0, ct) if ct.ndim == 2 else ct
    value, gradients, forward = jax.tree.map(
        np.asarray, compiled(subject.name, place)(g.arrays, directions, ct, g.known, where)
    )

    spoiled = np.array([w.spoiled for w in wanted])
    nan = np.array([np.isnan(w.value).any() for w in wanted])
    unsaid = spoiled | np.array([w.open for w in wanted])  # of the arrays of an example
    if value.shape == (N, k):
        value = np.where(spoiled[:, None] & ~g.live, NAN, value)
    close = ft.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    close(value, values, err_msg="value")

    along = np.zeros(N)
    for name, gradient in gradients.items():
        parts = [c * w.gradient[name] for c, w in zip(factor, wanted, strict=True)]
        along += [(part * directions[name]).sum() for part in parts]
        said = np.ones(gradient.shape, bool)
        if name in OWN[subject.kind]:
            said[unsaid] = False
            if name == "z" and subject.kind == "hand":  # the gradient of a class left out is always 0
                said |= ~g.live
        elif nan.any() and (spoiled.any() or name == "v"):
            by_class(name, said)[g.live[-1] | (name == "v")] = False
        close(np.where(said, gradient, 0), np.where(said, sum(parts), 0), err_msg=f"gradient for {name}")
        assert nan.any() or np.isfinite(gradient).all(), f"a gradient for {name} that is not finite"
    first = gradients[OWN[subject.kind][0]]
    assert all(np.isnan(first[i]).any() for i in np.flatnonzero(spoiled)), "a finite gradient where the loss is NaN"

    moved = np.where(ct == 0, 0, ct * forward.astype(np.float64)).reshape(len(ct) if ct.ndim else 1, -1).sum(-1)
    along, unsaid = np.where(spoiled, NAN, along), unsaid & ~spoiled
    along, unsaid = (along.sum(keepdims=True), unsaid.any(keepdims=True)) if reduced else (along, unsaid)
    close(np.where(unsaid, 0, moved), np.where(unsaid, 0, along), err_msg="forward mode")
    assert not (np.isnan(forward) & ~np.isnan(value)).any(), "forward mode gives NaN where the value is none"


def more_axes(subject, k):
    """The axes that the output has for each example."""
    if subject.definition in (expectation, weighted_logsumexp) and subject.payoffs == "v":
        return (E,)
    return (k,) if subject.name in ("softmax", "log_softmax") else ()


def lines_of(subject):
    lines = dict(LINES)
    if subject.labelled:
        lines |= LABEL_LINES
    if subject.ignore is not None:
        lines |= IGNORED_LINES
    if subject.capped:  # a bound makes a number of +inf
        lines = {name: line for name, line in lines.items() if INF not in (line.of_class, line.of_example)}
    if subject in HINGES:  # which take no mask
        lines = {name: line for name, line in lines.items() if line.by != "where"}
    return lines


def failures(subject, place, lines, k=K):
    """The failed lines and their messages."""
    found = {}
    for name, line in lines.items():
        try:
            check(subject, place, line, k)
        except AssertionError as error:
            found[name] = str(error)
    return found


def assert_all_hold(*cell, **options):
    found = failures(*cell, **options)
    assert not found, "\n\n".join(f"* {name}: {message}" for name, message in found.items())


CELLS = [
    *((s.name, "whole") for s in IN_HAND + HINGES + LOSSES_IN_HAND),
    *(
        (name, place)
        for place, names in {
            "whole": ("linear cross entropy", "leop_loss"),
            "blocks": (
                "linear cross entropy, ignoring",
                "linear cross entropy of pairs",
                "linear_expectation",
                "linear_logsumexp",
                "of_linear brier",
                "of_linear weston_watkins",
                "of_linear crammer_singer",
                "of_linear z_loss, margin, temperature and softcap",
                "of_linear mean_square, a user's",
                "of_linear kl_divergence",
                "mixture_autoencoder_loss",
                "mixture_expectation",
                "of_mixture cross_entropy",
                "of_mixture brier",
            ),
            "tiles": ("linear cross entropy, ignoring", "eol_loss"),
            "forward, sum": (
                "linear cross entropy, ignoring",
                "of_linear brier",
                "of_linear crammer_singer",
                "of_linear entropy",
                "leop_loss",
            ),
            "forward, mean": ("linear cross entropy of every option", "linear cross entropy of pairs"),
            "devices": tuple(s.name for s in LINEAR + MIXTURES),
            "devices, mean": (
                "linear cross entropy of every option",
                "linear cross entropy of pairs",
                "mixture_autoencoder_loss",
            ),
        }.items()
        for name in names
    ),
]
# In the fast tier each place has a function with each kind of sum; the others are slow.
FAST_IN = {
    "blocks": (
        "linear cross entropy, ignoring",
        "linear cross entropy of pairs",
        "linear_logsumexp",
        "of_linear weston_watkins",
        "of_linear kl_divergence",
        "mixture_autoencoder_loss",
    ),
    "tiles": ("linear cross entropy, ignoring",),
    "forward, sum": ("of_linear crammer_singer",),
    "forward, mean": ("linear cross entropy of every option",),
    "devices": ("linear cross entropy of every option", "of_linear crammer_singer", "mixture_expectation"),
    "devices, mean": ("linear cross entropy of pairs",),
}
NARROW = [  # also tested with one class, and without examples
    *((s.name, "whole") for s in IN_HAND + HINGES if not s.pairs),
    ("of_logits brier", "whole"),
    *(("linear cross entropy, ignoring", place) for place in ("blocks", "tiles", "forward, mean")),
    ("mixture_autoencoder_loss", "blocks"),
    ("leop_loss", "forward, sum"),
]


FAST = {f"{name}-{place}" for name, place in CELLS if place not in FAST_IN or name in FAST_IN[place]}


@pytest.mark.parametrize(("name", "place"), cases.in_tiers({"-".join(cell): cell for cell in CELLS}, FAST))
def test_every_line_of_the_contract_in_value_and_in_both_modes(name, place):
    assert_all_hold(SUBJECTS[name], PLACES[place], lines_of(SUBJECTS[name]))


@pytest.mark.parametrize(("name", "place"), NARROW)
@pytest.mark.one_case_in(2)
def test_a_single_class_which_may_be_left_out(name, place):
    lines = {
        "nothing odd": Line((0, 0, 0, 0)),
        "masked, and NaN": masked(0, labels=(0, 0, 0, 0), junk=NAN, payoff=INF),
        "impossible": masked(0, by="-inf", labels=(0, 0, 0, 0), payoff=NAN),
    }
    if SUBJECTS[name].labelled:
        lines["labels out of range"] = Line((0, 1, 0, -7))
    if name in (s.name for s in HINGES):
        del lines["masked, and NaN"]
    assert_all_hold(SUBJECTS[name], PLACES[place], lines, k=1)


@pytest.mark.parametrize(("name", "place"), NARROW)
@pytest.mark.one_case_in(2)
def test_no_example_gives_no_loss_and_gradients_of_0(name, place):
    subject, place = SUBJECTS[name], PLACES[place]
    g = given(subject, Line(), n=0)
    shape = () if place.reduction != "none" else (0, *more_axes(subject, K))
    where = np.ones((0, K) if subject.kind == "hand" else K, bool)
    ct = np.ones(shape, np.float32)
    value, gradients, forward = compiled(name, place)(g.arrays, g.arrays, ct, g.known, where)
    for x in (value, forward):
        np.testing.assert_array_equal(x, np.zeros(shape))
    for key, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, np.zeros(g.arrays[key].shape))


@pytest.mark.parametrize("place", ["blocks", "tiles", "forward, sum"])
def test_nan_in_a_view_spreads_to_the_views_compared_with_it_and_no_further(place):
    place = PLACES[place]
    r = cases.Random(jnp.float32)
    x, y, ct = r.normal(N, D), r.normal(N, D), np.float32(1 if place.reduction == "sum" else [0.3, -1, 2, 0.7])

    @cases.compiled
    def run(x, y):
        options = {"symmetric": False, "block_size": place.block_size, "reduction": place.reduction}
        f = lambda x, y: softjax.contrastive_loss(x, y, **options)
        value, back = jax.vjp(f, x, y)
        return value, *back(jnp.broadcast_to(ct, value.shape)), jax.jvp(f, (x, y), (x, jnp.zeros_like(y)))[1]

    good = np.array([0, 2, 3])
    z = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    wanted = -np.log(np.diagonal(p))
    dx = np.broadcast_to(ct, N)[:, None] * ((p - np.eye(N)) @ np.asarray(y, np.float64))
    along = ((p - np.eye(N)) * z).sum(-1)

    value, gx, gy, forward = jax.tree.map(np.asarray, run(x.at[1].set(NAN), y))
    np.testing.assert_allclose(gx[good], dx[good], rtol=1e-4, atol=1e-5)
    assert np.isnan(gx[1]).all()
    assert np.isnan(gy).all()
    if value.ndim:
        np.testing.assert_allclose(value[good], wanted[good], rtol=1e-5)
        np.testing.assert_allclose(forward[good], along[good], rtol=1e-4, atol=1e-5)
    assert np.isnan(value if not value.ndim else value[1])
    assert np.isnan(forward if not value.ndim else forward[1])
    for result in run(x, y.at[1].set(NAN)):
        assert np.isnan(result).all()


@pytest.mark.parametrize("place", ["blocks", "forward, mean"])
def test_a_single_pair_of_views_has_nothing_to_be_told_from(place):
    options = {"block_size": PLACES[place].block_size, "reduction": PLACES[place].reduction}
    f = lambda x, y: softjax.contrastive_loss(x, y, **options).sum()
    x = jnp.asarray([[3.0, -1.0, 2.0]])
    run = cases.compiled(lambda x, y: (jax.value_and_grad(f, (0, 1))(x, y), jax.jvp(f, (x, y), (x, x))))
    for result in jax.tree.leaves(run(x, -x)):
        np.testing.assert_array_equal(result, np.zeros_like(result))


def usual(a, s, where=None):
    """The cross entropy as it is often written, without a check of labels, masks and infinities."""
    z = a["z"] if where is None else jnp.where(where, a["z"], -INF)
    m = jax.lax.stop_gradient(z.max(-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(z - m).sum(-1)) + m[:, 0]
    return log_sum - jnp.take_along_axis(z, s["y"][:, None], -1)[:, 0]


def test_the_usual_formula_fails_the_lines_that_it_should():
    SUBJECTS["usual"] = subject = hand("usual", usual, cross_entropy, labelled=True)
    failed = failures(subject, PLACES["whole"], lines_of(subject))
    about = lambda word: {name for name, message in failed.items() if message.split("\n")[2].startswith(word)}
    assert about("value") == {
        "a label of -1",  # the last class's loss
        "labels out of range beside masked classes",
        "labels out of range where all is masked",
        "all is masked",
        "all is impossible",
    }
    assert about("gradient") == {
        "a label of -100",  # the loss is NaN, and the gradient trains the row
        "a label of K",
        "a label of 2^31 - 1",
        "labels on impossible classes",
        "the label is the only possible class",
    }
    assert len(failed) == 10
