"""Trains a language model whose classes are sharded over a mesh of devices: `python -m benchmarks lm`."""

import contextlib
import json
import math
import re
import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import softjax
from softjax.tools import pictures
from softjax.tools.demo import interrupts

from . import drawings

WIDTH, BLOCKS, HEADS = 64, 2, 4
BATCH, LENGTH = 16, 32  # examples, tokens of each
TOKEN = re.compile(r" ?\w+|\n *| +|[^\w\s]+|\s")
MAX_TOKENS = 3_000_000  # reading stops after the file that reaches it


class Refusal(Exception):  # noqa: N818
    """The reason, in a sentence, why the command cannot be run."""


class Block(nnx.Module):
    """Causal attention, and a two-layer network applied to each token."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Features [N, T, D] of features [N, T, D]."""
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """Computes features of each token and the tokens before it; has an output embedding of every class."""

    def __init__(self, vocabulary: int, class_devices: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.1 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.blocks = nnx.List(Block(rngs) for _ in range(BLOCKS))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        head = 0.02 * jax.random.normal(rngs.params(), (vocabulary, WIDTH))
        self.vocabulary = vocabulary
        # Padded once, as the devices may not divide the classes.
        self.head = nnx.Param(jnp.pad(head, ((0, -vocabulary % class_devices), (0, 0))))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Features [N, T, D] of tokens [N, T]."""
        x = self.embedding(tokens) + self.positions[...]
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def loss(self, tokens: jax.Array, mesh: Mesh) -> jax.Array:
        """The mean cross entropy of the next token."""
        logits = softjax.linear(self(tokens[:, :-1]), self.head[...], class_axis=0)
        padded = logits.shape[-1]
        if padded > self.vocabulary:
            logits = logits.where(jnp.arange(padded) < self.vocabulary)
        logits = softjax.shard(logits, mesh, examples="data", classes="classes")
        return softjax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:], reduction="mean")


class Text(NamedTuple):
    """The ids of all tokens; 0 for tokens outside the vocabulary."""

    ids: np.ndarray
    vocabulary: int

    def batch(self, seed: int, step: int) -> np.ndarray:
        """Examples [N, T + 1], determined by the seed and the step."""
        starts = np.random.default_rng((seed, step)).integers(len(self.ids) - LENGTH, size=BATCH)
        return self.ids[starts[:, None] + np.arange(LENGTH + 1)]


class Curve(NamedTuple):
    """The loss before each step, the median time of a step, and the output embedding after the last step."""

    losses: list[float]
    seconds: float | None
    head: jax.Array


def run(
    shape: tuple[int, int], steps: int, vocabulary: int, seed: int, checkpoints: Path | None, every: int,
    compare: bool, output: Path, report: Path | None,
) -> int:  # fmt: skip
    """Trains over a mesh, prints the shard of each device and draws the losses; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    name = "{}x{}".format(*shape)
    try:
        mesh = mesh_of(shape)
        text = read(vocabulary)
        console.print(
            f"{len(text.ids):,} tokens of Python's standard library, {text.vocabulary:,} classes, "
            f"{(text.ids == 0).mean():.1%} of the tokens unknown"
        )
        curves = {name: fit(name, mesh, text, steps, seed, console, checkpoints, every)}
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    losses, seconds, head = curves[name]
    timed = f"; a step took {seconds * 1e3:.0f} ms" if seconds else ""
    console.print(f"Loss {losses[0]:.4f} at step 0, {losses[-1]:.4f} at step {len(losses) - 1}{timed}")
    for shard in head.addressable_shards:
        first, end, _ = shard.index[0].indices(len(head))
        console.print(
            f"{shard.device} held {shard.data.shape} of the output embedding {head.shape}: rows {first:,} to "
            f"{end - 1:,}, {shard.data.nbytes / 1e6:.1f} MB"
        )
    if compare and len(losses) >= steps:
        curves["one device"] = alone = fit("one device", mesh_of((1, 1)), text, len(losses), seed, console)
        apart = difference(losses, alone.losses)
        console.print(f"Largest relative difference to the losses on one device: {apart.max():.1e}")
    draw(curves, text.vocabulary, output)
    console.print(f"The losses of all steps: {output}")
    if report:
        settings = {"mesh": name, "vocabulary": text.vocabulary, "seed": seed}
        known = {name: {"losses": curve.losses, "seconds per step": curve.seconds} for name, curve in curves.items()}
        report.write_text(json.dumps(settings | {"curves": known}, indent=1))
    return 130 if any(len(curve.losses) < steps for curve in curves.values()) else 0


def mesh_of(shape: tuple[int, int]) -> Mesh:
    """A mesh of accelerators, or of parts of the CPU, as many as needed."""
    needed = math.prod(shape)
    if BATCH % shape[0]:
        raise Refusal(f"The devices along data must divide the {BATCH} examples of a batch, got {shape[0]}.")
    with contextlib.suppress(RuntimeError):  # JAX already runs, with the devices that it has
        jax.config.update("jax_num_cpu_devices", needed)
    devices = jax.devices()
    if len(devices) < needed:
        raise Refusal(f"The mesh needs {needed} devices, and JAX has {len(devices)} ({devices[0].platform}).")
    return jax.make_mesh(shape, ("data", "classes"), axis_types=(AxisType.Auto,) * 2, devices=devices[:needed])


def read(vocabulary: int) -> Text:
    """The tokens of Python's standard library, in the order of its file names."""
    tokens: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and len(tokens) < MAX_TOKENS:
            tokens += TOKEN.findall(path.read_text("utf-8", "replace"))
    ids = {token: i for i, (token, _) in enumerate(Counter(tokens).most_common(vocabulary - 1), 1)}
    return Text(np.array([ids.get(token, 0) for token in tokens], np.int32), len(ids) + 1)


def fit(
    name: str, mesh: Mesh, text: Text, steps: int, seed: int, console: Console,
    folder: Path | None = None, every: int = 1,
) -> Curve:  # fmt: skip
    """Trains until the last step or Ctrl-C, from the last checkpoint if there is one."""
    shapes, init, step = program(mesh, text.vocabulary, seed)
    settings = {"tokens": len(text.ids), "vocabulary": text.vocabulary, "seed": seed}
    settings["rows"] = shapes[0]["head"].shape[0]  # of the output embedding, with padding
    bar = Progress(
        TextColumn(f"training on {name}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}, {task.fields[rate]} tokens/s"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    keep = ocp.CheckpointManagerOptions(max_to_keep=2)
    saved = ocp.CheckpointManager(folder.absolute(), options=keep) if folder else contextlib.nullcontext()
    seconds = []
    with interrupts() as interrupted, saved as manager, bar:
        state, losses = restored(manager, shapes, settings) if manager and manager.all_steps() else (init(), [])
        task = bar.add_task("training", total=steps, completed=len(losses), loss="...", rate="...")
        for done in range(len(losses) + 1, steps + 1):
            start = time.perf_counter()
            tokens = jax.device_put(text.batch(seed, done - 1), NamedSharding(mesh, P("data")))
            state, loss = step(state, tokens)
            losses.append(float(loss))
            seconds.append(time.perf_counter() - start)
            rate = f"{BATCH * LENGTH / seconds[-1]:,.0f}"
            bar.update(task, completed=done, loss=f"{losses[-1]:.3f}", rate=rate)
            stop = bool(interrupted)
            if manager and (stop or done == steps or done % every == 0):
                record = ocp.args.JsonSave({"settings": settings, "losses": losses})
                manager.save(done, args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=record))
            if stop:
                break
    if len(losses) < steps:
        console.print(f"Stopped after {len(losses)} of {steps} steps.")
    typical = statistics.median(seconds[1:]) if seconds[1:] else None  # the first step includes the compilation
    return Curve(losses, typical, state[0]["head"][...])


def program(mesh: Mesh, vocabulary: int, seed: int) -> tuple[Any, Callable, Callable]:
    """(shapes and shardings of the state of the model and of Adam, its initialiser, a training step).

    The output embedding and its moments are sharded by classes. Everything else is replicated.
    """

    def init():
        model = LanguageModel(vocabulary, mesh.shape["classes"], nnx.Rngs(seed))
        return nnx.split((model, nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)))

    def place(path, x):
        spec = P("classes") if "head" in jax.tree_util.keystr(path) else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    def step(state, tokens):
        model, optimizer = nnx.merge(graph, state)
        loss, grads = nnx.value_and_grad(lambda model: model.loss(tokens, mesh))(model)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer)), loss

    graph, state = jax.eval_shape(init)
    state = jax.tree_util.tree_map_with_path(place, state)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    new_state = jax.jit(lambda: init()[1], out_shardings=shardings)
    return state, new_state, jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def restored(manager, state, settings: dict) -> tuple[Any, list[float]]:
    """(the state of the last checkpoint, sharded as `state`; the losses before it)."""
    read = lambda **args: manager.restore(manager.latest_step(), args=ocp.args.Composite(**args))
    record = read(record=ocp.args.JsonRestore())["record"]
    if record["settings"] != settings:
        raise Refusal(f"The checkpoint is of {record['settings']}, but this training is of {settings}.")
    return read(state=ocp.args.StandardRestore(state))["state"], record["losses"]


def difference(*losses: list[float]) -> np.ndarray:
    """The relative differences of two curves, up to the end of the shorter."""
    a, b = (np.array(curve[: min(map(len, losses))]) for curve in losses)
    return abs(a - b) / b


@pictures.styled()
def draw(curves: dict[str, Curve], vocabulary: int, output: Path) -> None:
    """Draws the losses by step, and below them the relative differences if there are two curves."""
    height, ratios = (4, [1]) if len(curves) == 1 else (6, [2, 1])
    figure, panels = pictures.panels(len(curves), 1, 8, height, sharex=True, height_ratios=ratios)
    axes, inks = panels[:, 0], drawings.inks(curves, ours=next(iter(curves)))
    for name, curve in curves.items():
        axes[0].plot(curve.losses, inks[name].line, color=inks[name].colour, label=name)
    uniform = math.log(vocabulary)
    axes[0].axhline(uniform, color=pictures.TEXT, linewidth=0.8, linestyle=":")
    axes[0].annotate(
        f"log {vocabulary:,}, of a uniform guess", (1, uniform), (0, -4), ("axes fraction", "data"), "offset points",
        ha="right", va="top", size=8,
    )  # fmt: skip
    axes[0].set_ylabel("cross entropy, nats")
    axes[0].set_title("The next token of Python's standard library")
    axes[0].legend(loc="lower left")
    if len(curves) == 2:
        axes[1].plot(difference(*(curve.losses for curve in curves.values())), ".", color=pictures.TEXT, markersize=3)
        axes[1].set_ylabel("relative difference")
    axes[-1].set_xlabel("step")
    pictures.save(figure, output)
