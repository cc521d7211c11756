"""Trains a mixture autoencoder on handwritten digits: `python -m softjax demo`."""

import contextlib
import functools
import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import softjax
from softjax.testing import relative_errors

from . import pictures

SIDE, GAP = 8, 2  # pixels
BATCH = 256


class MixtureAutoencoder(nnx.Module):
    """Encodes x to z, and decodes z to the expected value under a mixture; centers and values are learned."""

    def __init__(self, values: np.ndarray, latents: int, rngs: nnx.Rngs, hidden: int = 256):
        classes, pixels = values.shape
        self.encoder = nnx.Sequential(
            nnx.Linear(pixels, hidden, rngs=rngs), nnx.gelu,
            nnx.Linear(hidden, hidden, rngs=rngs), nnx.gelu,
            nnx.Linear(hidden, latents, rngs=rngs),
        )  # fmt: skip
        self.centers = nnx.Param(2 * jax.random.normal(rngs.params(), (classes, latents)))
        self.values = nnx.Param(jnp.asarray(values))

    def loss(self, x: jax.Array, loss=softjax.mixture_autoencoder_loss) -> jax.Array:
        """The mean loss of a batch [N, E]."""
        return loss(self.encoder(x), x, self.centers[...], self.values[...]).mean()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstructions [N, E]."""
        logits = softjax.distances(self.encoder(x), self.centers[...])
        return softjax.of(softjax.losses.expectation, logits, per_class=self.values[...])


def plain_loss(z, x, centers, values):
    """The loss in plain JAX, for autodiff."""
    p = jax.nn.softmax(-((z[:, None] - centers) ** 2).sum(-1))
    return ((x - p @ values) ** 2).sum(-1)


def run(steps: int, classes: int, latents: int, seed: int, output: Path) -> int:
    """Checks, trains, measures and draws; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(check())
    train, held_out, one_of_each = digits(seed)
    model, done = fit(train, steps, classes, latents, seed, console)
    if done < steps:
        console.print(f"Stopped after {done} of {steps} steps. The results are of the model at that step.")
    spread = ((held_out - train.mean(0)) ** 2).sum()
    explained = lambda rebuilt: 1 - ((held_out - rebuilt) ** 2).sum() / spread
    rebuilt = np.asarray(nnx.jit(lambda model, x: model(x))(model, held_out))
    pca = PCA(latents).fit(train)
    by_pca = pca.inverse_transform(pca.transform(held_out))
    console.print(
        f"Explained variance of {len(held_out)} held-out digits, {latents} latent dimensions: "
        f"mixture autoencoder {explained(rebuilt):.1%}, PCA {explained(by_pca):.1%}"
    )
    console.print(cost(model, train[:BATCH]))
    draw(model, [a[one_of_each] for a in (held_out, rebuilt, by_pca)], output)
    console.print(f"Held-out digits, their reconstructions and the {classes} learned values: {output}")
    return 0 if done == steps else 130


def check() -> str:
    """Compares the gradient of the loss with autodiff of the plain formula; returns the result in a sentence."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(32, 4), (32, 6), (100, 4), (100, 6)]
    args = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    in_blocks = functools.partial(softjax.distances, block_size=32)
    functions = [
        softjax.mixture_autoencoder_loss,
        lambda z, x, c, v: softjax.of(softjax.losses.mixture_autoencoder, in_blocks(z, c), x, v),
    ]
    found = [relative_errors(loss, plain_loss, *args, modes=["vjp", "jvp"]) for loss in functions]
    errors = {mode: max(each[mode] for each in found) for mode in found[0]}
    device = jax.devices()[0]
    return (
        f"Gradient of mixture_autoencoder_loss against autodiff of its formula, on {device.platform} "
        f"({device.device_kind}): largest relative error {errors['vjp']:.0e} in reverse mode, "
        f"{errors['jvp']:.0e} in forward mode"
    )


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training digits, held-out digits, the index of one held-out digit of each kind); pixels [N, 64] in [0, 1]."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.data))
    x, names = data.data[order].astype(np.float32) / 16, data.target[order]
    return x[300:], x[:300], np.unique(names[:300], return_index=True)[1]


def fit(train, steps, classes, latents, seed, console) -> tuple[MixtureAutoencoder, int]:
    """(the trained model, the number of steps taken, which Ctrl-C may reduce)."""
    rng = np.random.default_rng(seed)
    model = MixtureAutoencoder(train[rng.choice(len(train), classes)], latents, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)
    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip
    with bar, interrupts() as interrupted:
        task = bar.add_task("training", total=steps, loss="...")
        for done in range(1, steps + 1):
            loss = train_step(model, optimizer, train[rng.choice(len(train), BATCH)])
            if done % 50 == 0 or done == steps or interrupted:
                bar.update(task, completed=done, loss=f"{float(loss):.3f}")
            if interrupted:
                break
    return model, done


@contextlib.contextmanager
def interrupts() -> Iterator[list]:
    """A list that is empty until Ctrl-C is pressed, which raises nothing.

    A KeyboardInterrupt raised during a compilation could be lost.
    """
    seen: list = []
    before = signal.signal(signal.SIGINT, lambda *signal: seen.append(signal))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@nnx.jit(static_argnames="loss")
def train_step(model, optimizer, x, loss=softjax.mixture_autoencoder_loss):
    """Takes one step of the optimizer; returns the loss before the step."""
    value, grads = nnx.value_and_grad(lambda model: model.loss(x, loss))(model)
    optimizer.update(model, grads)
    return value


def cost(model: MixtureAutoencoder, x: np.ndarray, rounds: int = 30) -> str:
    """Measures time and memory of value and gradients, and of the plain formula in turn; returns a sentence."""
    graph, state = nnx.split(model)
    losses = {"softjax": softjax.mixture_autoencoder_loss, "plain JAX": plain_loss}
    programs = {
        name: jax.jit(jax.value_and_grad(lambda state, x, loss=loss: nnx.merge(graph, state).loss(x, loss)))
        .lower(state, x)
        .compile()
        for name, loss in losses.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(state, x))
            seconds[name].append(time.perf_counter() - start)
    megabytes = {name: program.memory_analysis().temp_size_in_bytes / 1e6 for name, program in programs.items()}  # type: ignore[union-attr]
    results = [
        f"{name} {statistics.median(seconds[name]) * 1e3:.2f} ms and {megabytes[name]:.1f} MB of temporaries"
        for name in programs
    ]
    return f"Value and gradients for {len(x)} digits and {model.centers.shape[0]} classes: {', '.join(results)}"


@pictures.styled()
def draw(model: MixtureAutoencoder, rows: list[np.ndarray], output: Path) -> None:
    """Draws held-out digits and their reconstructions, and below them the learned values, arranged by their centers."""
    classes, latents = model.centers.shape
    figure, axes = pictures.panels(2, 1, 9, 12, height_ratios=[len(rows) / len(rows[0]), 1])
    above, below = axes[:, 0]
    show = functools.partial(Axes.imshow, cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic")
    show(above, tiled(np.stack(rows)))
    above.set_yticks([(i + 0.5) * (SIDE + GAP) for i in range(len(rows))], ["held out", "rebuilt", "PCA"])
    above.set_xticks([])
    above.tick_params(length=0)
    above.grid(visible=False)
    above.spines[:].set_visible(False)
    above.set_title(f"Held-out digits, rebuilt from z in {latents} dimensions")
    show(below, tiled(atlas(np.asarray(model.centers[...]), np.asarray(model.values[...]))))
    below.set_axis_off()
    below.set_title(f"Learned values $A_k$ (K = {classes}), arranged by their centers $c_k$")
    pictures.save(figure, output)


def tiled(digits: np.ndarray) -> np.ndarray:
    """One picture of digits [rows, columns, 64], with gaps between them."""
    pixels = digits.reshape(*digits.shape[:2], SIDE, SIDE)
    pixels = np.pad(pixels, [(0, 0), (0, 0), (GAP // 2, GAP // 2), (GAP // 2, GAP // 2)])
    return pixels.transpose(0, 2, 1, 3).reshape(len(digits) * (SIDE + GAP), -1)


def atlas(centers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values [K, 64] in the cells [rows, columns, 64] of a square; values of close centers are in close cells."""
    classes, latents = centers.shape
    side = math.ceil(math.sqrt(classes))
    plane = PCA(2).fit_transform(centers) if min(classes, latents) > 2 else np.resize(centers, (classes, 2))
    ranks = plane.argsort(0).argsort(0) * (side / classes)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    _, cell_of = linear_sum_assignment(((ranks[:, None] - cells) ** 2).sum(-1))
    square = np.zeros((side * side, values.shape[1]))
    square[cell_of] = values
    return square.reshape(side, side, -1)
