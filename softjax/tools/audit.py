"""How far every public function is from the truth, on this machine: what `python -m softjax audit` runs."""

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
from softjax._dtypes import join, split
from softjax._placement import BlockSize

from . import truth
from .bench import machine

# In float32, relative to the largest element. Results in half precision are rounded once more.
LIMITS = {"value": 2e-6, "reverse": 2e-6, "forward": 2e-6, "HVP": 1e-4}
FIRST, ALL = ("value", "reverse", "forward"), tuple(LIMITS)
WIDE, HALF = ("float32",), ("bfloat16", "float16")

LOGITS = "logits"
PLACES = {"default": None, "blocks": 5, "tiles": Placement(2, 5), "forward": Placement(2, 5, "forward")}


class Scenario(NamedTuple):
    """Arguments by their names, and in which types, modes and placements a function is tried with them."""

    name: str
    arguments: dict[str, Any]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    place: str
    block_size: BlockSize = None


class Work(NamedTuple):
    """A public function, its definition, and where they are compared."""

    function: str
    definition: Callable
    scenarios: Iterable[Scenario]
    options: dict[str, Any]
    peer: Callable | None = None


_TRUTH = threading.Lock()  # mpmath keeps its constants in what threads share


class Entry(NamedTuple):
    """The largest error of a mode, and in which of the results it is."""

    function: str
    scenario: str
    dtype: str
    placement: str
    mode: str
    error: float
    limit: float
    worst: str
    peer: float | None


# ---------------------------------------------------------------------------------------------
# The work

MARGINS = (-80.0, -17.3, -1.25, 0.0, 6.0, 17.3, 33.0, 64.7, 80.0)
OFFSETS = (0.0, 100.0, 1e4)
EQUAL = ("softmax", "log_softmax", "logsumexp", "softmax_cross_entropy_with_integer_labels")
N, K = 4, 13
LIVE = np.arange(K) % 5 != 4  # the labels are 0 .. N - 1


def _labels(n: int, k: int) -> np.ndarray:
    return np.arange(n) % k


def _of_logits(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    others = -np.abs(random.normal(size=(len(OFFSETS), len(MARGINS), K)))
    others[..., 0] = MARGINS
    rows = (others + np.reshape(OFFSETS, (-1, 1, 1))).reshape(-1, K)
    normal = lambda n, k: random.normal(size=(n, k), scale=2)
    rows = np.concatenate([rows, normal(N, K)])
    data: list[tuple[str, np.ndarray, tuple[str, ...], tuple[str, ...]]] = [
        ("margins", rows, WIDE, FIRST),
        ("margins", rows, HALF[:1] if quick else HALF, FIRST),
    ]
    if not quick:
        data += [("ordinary", normal(N, K), WIDE, ALL)]
        data += [(f"K={k}", normal(n, k), WIDE, FIRST) for n, k in ((2, 1), (2, 2), (2, 1000), (1, 70000))]
    equal = ("70000 equal", np.zeros((1, 70000)), ("float16",), FIRST)

    def work(function, definition, name, peer=None, variant="", options=None, **more):
        """More arguments are functions of the logits."""
        scenarios = [
            Scenario(what + variant, {name: z} | {k: f(z) for k, f in more.items()}, dtypes, modes, LOGITS)
            for what, z, dtypes, modes in (data if quick or function not in EQUAL else [*data, equal])
        ]
        return Work(function, definition, scenarios, options or {}, peer)

    yield work("softmax", truth.softmax, "x", jax.nn.softmax)
    yield work("log_softmax", truth.log_softmax, "x", jax.nn.log_softmax)
    a = ft.partial(jax.nn.logsumexp, axis=-1)
    yield work("logsumexp", truth.logsumexp, "a", a, options={"axis": -1})
    yield work("entropy", truth.entropy, "logits")
    positive = lambda z: random.uniform(1, 2, z.shape)  # else the sum could cancel
    yield work("expectation", truth.expectation, "logits", values=positive)
    first = lambda z: np.zeros(len(z), int)
    soft = ft.partial(work, "softmax_cross_entropy", truth.softmax_cross_entropy, "logits", optax.softmax_cross_entropy)
    sure = soft(", sure labels", labels=lambda z: truth.one_hot(first(z), z.shape[1]))
    yield sure._replace(scenarios=[*sure.scenarios, *soft(", soft labels", labels=positive).scenarios])
    peer = optax.softmax_cross_entropy_with_integer_labels
    for function, argument, other in (
        ("softmax_cross_entropy_with_integer_labels", "logits", peer),
        ("multiclass_svm_loss", "scores", None),
        ("multiclass_hinge_loss", "scores", optax.losses.multiclass_hinge_loss),
    ):
        yield work(function, getattr(truth, function), argument, other, labels=first)
    yield work(
        "of_logits", truth.focal, "logits", variant=", focal", options={"loss": losses.focal(2.0)}, example=first
    )
    brier = work("of_logits", truth.brier, "logits", variant=", Brier", options={"loss": losses.brier}, example=first)
    # In half precision 1e4 rounds all others to one number, of which the gradient is what rounding makes of 0.
    yield brier._replace(scenarios=[s for s in brier.scenarios if s.dtypes == WIDE])


def _placed(
    ordinary: Callable, others: dict[str, dict], large: Callable | None, scalar: bool, quick: bool
) -> Iterator[Scenario]:
    """The scenarios of a fused function: arguments for (n, k), more of (N, K), and for many classes."""
    few = {"ordinary": ordinary(N, K)} | others
    tried = {"blocks": FIRST} if quick else {"default": ALL, "blocks": ALL, "tiles": FIRST, "forward": FIRST}
    for (place, modes), (name, arguments) in itertools.product(tried.items(), few.items()):
        if scalar or place != "forward":
            # Second derivatives lose the digits of sure rows, here as elsewhere.
            yield Scenario(name, arguments, WIDE, FIRST if "margin" in name else modes, place, PLACES[place])
    if quick:
        return
    yield Scenario("ordinary", few["ordinary"], ("bfloat16",), FIRST, "blocks", PLACES["blocks"])
    place = "forward" if scalar else "blocks"
    yield Scenario("ordinary", few["ordinary"], ("float16",), FIRST, place, PLACES[place])
    if large is not None:
        yield Scenario("K=1", large(2, 1), WIDE, FIRST, "default")
        yield Scenario("K=1000", large(2, 1000), WIDE, FIRST, "blocks", 512)
        yield Scenario("K=70000", large(2, 70000), WIDE, FIRST, "default")


def _of_linear(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    normal, uniform = lambda *shape: random.normal(size=shape), lambda *shape: random.uniform(0.5, 1.5, shape)
    exact = np.array(list(itertools.permutations((2.0, 1.0, 0.0, -1.0)))[:K])

    def work(function, definition, more, options=None, peer=None, variant="", sure=True, large=True, scalar=True):
        """More are arguments for (n, k)."""
        ordinary = lambda n, k: {"features": normal(n, 3), "kernel": normal(3, k)} | more(n, k)

        def ahead(scale):
            """Example n is ahead for class n by `scale` and more; the product is exact."""
            return more(N, K) | {"features": scale * exact[:N], "kernel": exact.T}

        others = {f"margin {scale}": ahead(scale) for scale in (17, 80, -80)} if sure else {}
        scenarios = _placed(ordinary, others, ordinary if large else None, scalar, quick)
        named = (s._replace(name=s.name + variant) for s in scenarios)
        return Work(function, definition, named, options or {}, peer)

    labels = lambda n, k: {"labels": _labels(n, k)}

    def pair(n, k):
        return {"labels": (random.integers(k, size=(n, 3)), uniform(n, 3))}

    def options(n, k):
        numbers = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "temperature": 1.7}
        arrays = {"bias": normal(k), "where": LIVE, "weights": uniform(n), "class_weights": uniform(k)}
        return labels(n, k) | arrays | {name: np.array(number) for name, number in numbers.items()}

    def peer(features, kernel, labels):
        return optax.softmax_cross_entropy_with_integer_labels(features @ kernel, labels)

    function, definition = "linear_softmax_cross_entropy", truth.linear_softmax_cross_entropy
    yield work(function, definition, labels, peer=peer)
    yield work(function, definition, pair, variant=", pair labels", large=False)
    yield work(function, definition, options, variant=", all options", sure=False, large=False)
    values = lambda n, k: {"values": normal(k, 2), "temperature": np.array(2.0)}
    expectation = work("linear_expectation", truth.linear_expectation, values, scalar=False)
    yield expectation._replace(scenarios=map(_following("kernel", lambda w: w.T), expectation.scenarios))
    nothing: Callable[..., dict] = lambda n, k: {}
    yield work("linear_logsumexp", truth.linear_logsumexp, nothing, scalar=False)
    example = lambda n, k: {"example": _labels(n, k)}
    for variant, loss, of, more in (
        (", focal", losses.focal(2.0), truth.focal, example),
        (", entropy", losses.entropy, truth.entropy, nothing),
    ):
        yield work("of_linear", ft.partial(truth.of_linear, of), more, {"loss": loss}, variant=variant, large=False)

    views = lambda x, y: {"x": x, "y": y, "temperature": np.array(2.0), "weights": uniform(K)}
    others = {f"margin {scale}": views(scale * exact, exact) for scale in (17, 80)}
    scenarios = _placed(lambda n, k: views(normal(k, 3), normal(k, 3)), others, None, True, quick)
    yield Work("contrastive_loss", truth.contrastive_loss, scenarios, {})


def _of_mixture(quick: bool, random: np.random.Generator) -> Iterator[Work]:
    def normal(n, k):
        shapes = {"z": (n, 2), "x": (n, 2), "centers": (k, 2), "values": (k, 2)}
        return {name: random.normal(size=shape) for name, shape in shapes.items()}

    follow = _following("centers", lambda c: c)
    data = normal(N, K)
    settings = {"log_prior": random.normal(size=K), "temperature": np.array(1.7), "where": LIVE}
    settings["weights"] = random.uniform(0.5, 1.5, N)
    far = {name: a + 1000 for name, a in data.items()}
    coincident = data | {"centers": data["centers"][:1] + 1e-4 * data["centers"]}
    for function, without, options in (
        ("mixture_autoencoder_loss", (), {}),
        ("eol_loss", (), {}),
        ("leop_loss", (), {}),
        ("mixture_expectation", ("x", "weights"), {}),
        ("of_mixture", ("x", "values"), {"loss": losses.entropy}),
    ):
        chosen = lambda a, without=without: {name: value for name, value in a.items() if name not in without}
        others = {"mean 1000": chosen(far | settings), "centers coincide": chosen(coincident | settings)}
        if function == "of_mixture":  # by the weights of a mean, the gradient is a difference of equal entropies
            del others["centers coincide"]["weights"]
        ordinary = lambda n, k, chosen=chosen: chosen(data | settings)
        large = None if function == "of_mixture" else lambda n, k, chosen=chosen: chosen(normal(n, k))
        scalar = function != "mixture_expectation"
        scenarios = _placed(ordinary, others, large, scalar, quick)
        yield Work(function, getattr(truth, function), map(follow, scenarios), options)


def _following(of_classes: str, coordinates: Callable) -> Callable[[Scenario], Scenario]:
    """Scenarios whose many values follow their classes, as those of a model do.

    Of values at random, the gradient by the scores' side is a sum over the classes that cancels.
    """

    def follow(scenario):
        a = scenario.arguments
        if "values" not in a or len(a["values"]) <= 1000:
            return scenario
        along = coordinates(a[of_classes])[:, :2] @ np.array([[1.0, 0.5], [-0.5, 1.0]])
        return scenario._replace(arguments=a | {"values": along + 0.3 * a["values"]})

    return follow


def works(quick: bool) -> Iterator[Work]:
    """Everything that is measured, at random numbers that are the same in every run."""
    for family, kind in enumerate((_of_logits, _of_linear, _of_mixture)):
        yield from kind(quick, np.random.default_rng(family))


# ---------------------------------------------------------------------------------------------
# Errors


def measure(work: Work) -> Iterator[Entry]:
    """The errors of a function, in every scenario, beside those of its peer."""
    function = getattr(softjax, work.function)

    @ft.cache
    def program(place, reduction):
        return _program(ft.partial(function, **work.options, **_given(block_size=place, reduction=reduction)))

    @ft.cache
    def peer(function, reduction):
        def theirs(**arguments):
            with jax.numpy_dtype_promotion("standard"):  # which optax needs in half precision
                out = function(**arguments)
            return out.mean() if reduction else out

        return _program(theirs)

    for scenario in work.scenarios:
        reduction = "mean" if scenario.place == "forward" else None
        for dtype in scenario.dtypes:
            with _TRUTH:
                of_all = ft.partial(work.definition, **_given(reduction=reduction))
                problem = _Problem(of_all, work.definition, scenario, dtype)
            theirs = problem.errors(peer(work.peer, reduction)) if work.peer else {}
            for mode, (error, limit, worst) in problem.errors(program(scenario.block_size, reduction)).items():
                other = theirs[mode][0] if theirs else None
                yield Entry(work.function, scenario.name, dtype, scenario.place, mode, error, limit, worst, other)


def _given(**options):
    return {name: option for name, option in options.items() if option is not None}


def _program(function: Callable) -> Callable:
    """All modes of differentiation in one compilation."""

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

    return run


class _Problem:
    """A scenario in one type: what goes in, rounded to that type, and what should come out."""

    def __init__(self, definition: Callable, of_each: Callable, scenario: Scenario, dtype: str):
        self.modes, self.by_row = scenario.modes, scenario.place == LOGITS
        random = np.random.default_rng(2024)  # not what the data come from
        rounded = lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype.name.replace("64", "32"))
        self.moving, self.fixed = split(jax.tree.map(rounded, scenario.arguments))
        leaves, tree = jax.tree.flatten(self.moving)
        fixed = jax.tree.map(np.asarray, self.fixed)
        f = lambda *numbers: definition(**join(jax.tree.unflatten(tree, numbers), fixed))

        inputs = [truth.Numbers(a) for a in leaves]
        output = f(*inputs)
        each = of_each(**join(jax.tree.unflatten(tree, inputs), fixed)) if output.shape == () else output
        self.cotangent = rounded(random.normal(size=output.shape))
        gradients = truth.gradients(output, self.cotangent, inputs)
        # The gradient of a number is a sum over the examples, which may cancel: its error is relative to their sizes.
        numbers = [x for x in inputs if x.shape == ()]
        examples = [each[n] for n in range(each.shape[0])] if numbers and each.shape else []
        of_one = np.broadcast_to(self.cotangent, each.shape) / (1 if output.shape else len(examples) or 1)
        parts = [truth.gradients(out, of_one[n], numbers) for n, out in enumerate(examples)]
        sizes = iter(np.abs(np.array(parts, float)).sum(0) if parts else [0.0] * len(numbers))
        self.least = [float(next(sizes)) if x.shape == () else 0.0 for x in inputs]
        # what the gradient says of every element has the same sign, so that their sum does not cancel
        signs = [np.sign(g.astype(float)) for g in gradients]
        tangent = [rounded(np.asarray(s * np.abs(random.normal(size=s.shape)))) for s in signs]
        self.tangent = jax.tree.unflatten(tree, tangent)
        self.want = {"value": output.value, "reverse": jax.tree.unflatten(tree, gradients)}
        products = [g * truth.Numbers(v).value for g, v in zip(gradients, tangent, strict=True)]
        self.want["forward"] = sum(self.rows(p).sum(-1) for p in products)
        if "HVP" in self.modes:
            back = lambda *inputs: truth.gradients(f(*inputs), self.cotangent, inputs)
            self.want["HVP"] = jax.tree.unflatten(tree, truth.along(back, leaves, tangent))

    def rows(self, a: Any) -> np.ndarray:
        return np.reshape(a, (len(a) if self.by_row else 1, -1))

    def errors(self, program: Callable) -> dict[str, tuple[float, float, str]]:
        """(the error closest to its limit or furthest beyond, the limit, which array it is) of every mode."""
        got = program(self.moving, self.fixed, self.cotangent, self.tangent, self.modes)
        found = {}
        for mode in self.modes:
            arrays = jax.tree_util.tree_leaves_with_path(got[mode])
            least = self.least if mode == "reverse" else [0.0] * len(arrays)
            each = [
                (self.error(mode, a, want, size), _limit(mode, a.dtype), jax.tree_util.keystr(path))
                for (path, a), want, size in zip(arrays, jax.tree.leaves(self.want[mode]), least, strict=True)
            ]
            found[mode] = max(each, key=lambda found: found[0] / found[1])
        return found

    def error(self, mode: str, array: Array, want: np.ndarray, least: float = 0.0) -> float:
        """Relative to the largest element, or to `least` if that is more.

        Of forward mode, what is compared is the sum of its products with the cotangent.
        """
        info = jnp.finfo(array.dtype)
        tiny = max(float(info.smallest_subnormal), float(jnp.finfo("float32").tiny))
        got, want = np.asarray(array, np.float64), want.astype(np.float64)
        if mode == "forward":
            products = self.rows(got * np.asarray(self.cotangent, np.float64))
            off, scale = np.abs(products.sum(-1) - want), np.maximum(np.abs(products).sum(-1), np.abs(want))
            tiny *= products.shape[-1]
        else:
            off, scale = np.abs(self.rows(got - want)).max(-1), np.maximum(np.abs(self.rows(want)).max(-1), least)
        off = np.where(scale == 0, off, np.maximum(off - tiny, 0))  # what is too small for the type may become 0
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nan_to_num(np.where(off == 0, 0, off / scale), nan=np.inf, posinf=np.inf).max())


def _limit(mode: str, dtype: jnp.dtype) -> float:
    return LIMITS[mode] + (float(jnp.finfo(dtype).eps) / 2 if dtype.itemsize < 4 else 0)


# ---------------------------------------------------------------------------------------------
# The report


def run(quick: bool, text: str, report: Path | None) -> int:
    """Measures and prints; returns 1 if an error is beyond its limit, else 0."""
    console = Console(width=None if Console().is_terminal else 140)
    entries: list[Entry] = []
    with console.status("") as status, _without_collections():
        chosen = [work for work in works(quick) if text in work.function]
        with ThreadPoolExecutor(2) as pool:  # one compiles while the other finds the truth
            for found in pool.map(lambda work: list(measure(work)), chosen):
                status.update(found[-1].function)
                entries += found
    where = machine()
    console.print(f"{where['device']}, {where['processor']}, {where['cores']} cores, {where['versions']}")
    console.print(_table(entries))
    broken = [e for e in entries if not e.error <= e.limit]
    for e in broken:
        name = f"{e.function}, {e.scenario}, {e.dtype}, {e.placement}: {e.mode} {e.worst}".rstrip()
        console.print(Text(f"{name} is off by {e.error:.1e}, more than {e.limit:.1e}", "red"), soft_wrap=True)
    console.print(f"{len(entries)} comparisons with 50 digits, {len(broken)} beyond their limits.")
    if report is not None:
        rows = [e._asdict() | {"within": e.error <= e.limit} for e in entries]
        report.write_text(json.dumps({"machine": where, "quick": quick, "rows": rows}, indent=1) + "\n")
        console.print(f"Figures: {report}")
    return 1 if broken else 0


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Millions of numbers that hold no cycles take half as long where none are looked for."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _table(entries: list[Entry]) -> Table:
    """The largest errors over all scenarios; beside them, behind a stroke, those of the peer."""
    table = Table("", "", "", *ALL, title="Largest relative errors / of jax.nn or optax", title_justify="left")
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
