"""What tests/imports.sh runs with every Python: the import, a gradient, and its text for `help`."""

import sys

import jax
import jax.numpy as jnp

import softjax

if __name__ == "__main__":
    x, w, y = jnp.ones((2, 3)), jnp.ones((3, 5)), jnp.zeros(2, int)
    gradient = jax.grad(lambda w: softjax.linear_softmax_cross_entropy(x, w, y, reduction="mean"))(w)
    assert jnp.allclose(gradient, jnp.full((3, 5), 0.2).at[:, 0].set(-0.8))
    assert "labels: integers [...]" in softjax.linear_softmax_cross_entropy.__doc__
    print(f"Python {sys.argv[1]}, JAX {jax.__version__}: softjax {softjax.__version__} is imported.")
