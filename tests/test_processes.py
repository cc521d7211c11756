"""Processes train over one mesh as one process does, end when one of them dies, and go on from a checkpoint."""

import contextlib
import functools as ft
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from . import cases, process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STEPS, MANY = 5, 100_000
TO_TRAIN, TO_END = 240, 60  # seconds
TOLERANCE = 1e-11  # of float64


@contextlib.contextmanager
def started(count, folder, **options):
    """Processes that train; those still running at the end are killed. Their output is in the folder."""
    folder.mkdir()
    named = [f"--{name}={value}" for name, value in ({"records": folder} | options).items()]
    # without the variables that measure coverage or set the number of devices
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "XLA_FLAGS"))}
    env["XLA_FLAGS"] = " ".join(f"--{name}={value}".lower() for name, value in cases.QUICKLY.items())
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(held_port())
        group = []
        for i in range(count):
            command = [sys.executable, "-m", "tests.process", f"localhost:{port}", str(count), str(i), *named]
            log = stack.enter_context((folder / f"{i}.log").open("w"))
            group.append(subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT))
            stack.callback(group[-1].wait)
            stack.callback(group[-1].kill)
        yield group


@contextlib.contextmanager
def held_port():
    """A free port that nobody else is given, while those that share it can listen at it, as the coordinator does."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def printed(folder):
    return [path.read_text() for path in sorted(folder.glob("*.log"))]


def exit_codes(group, seconds):
    """None for a process that has not ended by then."""
    end = time.monotonic() + seconds
    for member in group:
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.wait(max(0, end - time.monotonic()))
    return [member.poll() for member in group]


def wait_for_step(step, group, folder):
    end = time.monotonic() + TO_TRAIN
    while not all(f"step {step} " in text for text in printed(folder)):
        assert {member.poll() for member in group} == {None}, "\n".join(printed(folder))
        assert time.monotonic() < end, "\n".join(printed(folder))
        time.sleep(0.05)


def trained(count, folder, **options):
    """The record of each process: the losses and gradients of every step."""
    with started(count, folder, steps=STEPS, **options) as group:
        assert exit_codes(group, TO_TRAIN) == [0] * count, "\n".join(printed(folder))
    return [dict(np.load(folder / f"{i}.npz")) for i in range(count)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The records of so many processes."""
    return ft.cache(lambda count: trained(count, tmp_path_factory.mktemp("processes") / "uninterrupted"))


# --- the definition -----------------------------------------------------------------------------


def mean_of_known(losses, labels):
    known = labels >= 0
    return jnp.where(known, losses, 0).sum() / known.sum()


def definition(params, x, labels, *, mean=mean_of_known, padding=0):
    linear, mixture = params["linear"], params["mixture"]
    logits = jnp.pad(x @ linear["map"] @ linear["kernel"], ((0, 0), (0, padding)))
    return {
        "linear": mean(cases.softmax_loss(logits, jnp.maximum(labels, 0)), labels),
        "mixture": cases.autoencoder(x @ mixture["map"], x, mixture["centers"], mixture["values"]).mean(),
    }


def by_definition(**options):
    """The record that one process makes."""

    @cases.compiled
    def update(params, state, x, labels):
        def total(params):
            each = definition(params, x, labels, **options)
            return each["linear"] + each["mixture"], each

        grads, each = jax.grad(total, has_aux=True)(params)
        updates, state = process.OPTIMIZER.update(grads, state)
        return optax.apply_updates(params, updates), state, {"loss": each, "gradient": grads}

    records = []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = process.parameters()
        state = process.OPTIMIZER.init(params)
        for step in range(STEPS):
            params, state, record = update(params, state, *process.batch(step))
            records.append(process.by_name(record))
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def assert_same_training(got, want):
    """Compares each step; the gradient of padding is 0."""
    widths = lambda name: [(0, a - b) for a, b in zip(got[name].shape, want[name].shape, strict=True)]
    want = {name: np.pad(want[name], widths(name)) for name in want}
    at = lambda record, step: {name: record[name][step] for name in record}
    for step in range(STEPS):
        cases.assert_close(at(got, step), at(want, step), TOLERANCE)


# --- tests --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_does(count, uninterrupted):
    want = by_definition()
    for got in uninterrupted(count):
        assert_same_training(got, want)


def mean_of_halves(losses, labels):
    return (mean_of_known(losses[:4], labels[:4]) + mean_of_known(losses[4:], labels[4:])) / 2


@pytest.mark.parametrize("fault", [{"mean": mean_of_halves}, {"padding": 1}], ids=lambda fault: next(iter(fault)))
def test_another_training_is_told_apart(fault, uninterrupted):
    """Training with a mean per device, or with padding counted as classes."""
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_training(uninterrupted(2)[0], by_definition(**fault))


def test_a_wrong_number_is_told_apart():
    want = by_definition()
    for name in want:
        got = want | {name: want[name].copy()}
        got[name][-1] *= 1 + 2 * TOLERANCE
        with pytest.raises(AssertionError, match="is off by"):
            assert_same_training(got, want)


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (4, 3)])
def test_when_one_is_killed_the_others_end_and_all_go_on_from_a_checkpoint(count, victim, uninterrupted, tmp_path):
    """Process 0, which is the coordinator, or another one."""
    checkpoints = tmp_path / "checkpoints"
    with started(count, tmp_path / "killed", steps=MANY, checkpoints=checkpoints) as group:
        wait_for_step(STEPS, group, tmp_path / "killed")
        group[victim].kill()
        begin = time.monotonic()
        codes = exit_codes(group, TO_END)
        print(f"exit codes {codes} after {time.monotonic() - begin:.1f} s")
        assert all(codes), "\n".join(printed(tmp_path / "killed"))
    again = trained(count, tmp_path / "again", checkpoints=checkpoints)
    for got, want in zip(again, uninterrupted(count), strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name][process.SAVED :], err_msg=name)
