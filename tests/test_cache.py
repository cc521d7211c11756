"""JAX's persistent compilation cache: a program over a mesh is found again, and one loss is not taken for another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from . import cached

ROOT = Path(__file__).parent.parent
DEFINITIONS = {
    "focal": lambda log_p: -((1 - jnp.exp(log_p)) ** 2) * log_p,
    "poly_1": lambda log_p: -log_p + 2 * (1 - jnp.exp(log_p)),
}


def defined(name):
    """The value, and the sum of the squares of each gradient, in float64."""
    with jax.enable_x64(True):
        x, w, y = (jnp.asarray(a) for a in cached.arguments())
        x, w = x.astype("float64"), w.astype("float64")

        def mean(x, w):
            log_p = jax.nn.log_softmax(x @ w)[jnp.arange(len(y)), y]
            return DEFINITIONS[name](log_p).mean()

        value, gradients = jax.value_and_grad(mean, (0, 1))(x, w)
        return float(value), [float((g**2).sum()) for g in gradients]


def run(folder, name, *options):
    """What a process of its own prints."""
    command = [sys.executable, "-m", "tests.cached", str(folder), name, *options]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.startswith("COV")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("options", [(), ("--without-address",)], ids=["by default", "without the address in the key"])
@pytest.mark.slow  # process starts
def test_a_loss_is_found_again_and_is_no_other(tmp_path, options):
    for name, is_found in (("focal", False), ("poly_1", False), ("poly_1", True), ("focal", True)):
        got = run(tmp_path, name, *options)
        value, squares = defined(name)
        np.testing.assert_allclose(got["value"], value, rtol=1e-5)
        np.testing.assert_allclose(got["squares"], squares, rtol=1e-4)
        assert got["found"] == is_found, name
