"""One of the processes that test_cache.py starts: a loss over a mesh, by way of JAX's persistent compilation cache.

    python -m tests.cached FOLDER LOSS [--without-address]

It prints, as JSON, the value, the sum of the squares of each gradient, and whether the program was found in the cache.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses

DEVICES, N, D, K = 4, 64, 8, 512
LOSSES = {"focal": losses.focal(2.0), "poly_1": losses.poly_1(2.0)}
FOUND = {"/jax/compilation_cache/cache_hits": True, "/jax/compilation_cache/cache_misses": False}


def arguments():
    """Features, kernel and labels."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    return normal(N, D), normal(D, K), random.integers(K, size=N).astype(np.int32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("loss", choices=LOSSES)
    parser.add_argument("--without-address", action="store_true")
    given = parser.parse_args()
    for name, value in {
        "jax_platforms": "cpu",
        "jax_num_cpu_devices": DEVICES,
        "jax_compilation_cache_dir": given.folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_remove_custom_partitioning_ptr_from_cache_key": given.without_address,
    }.items():
        jax.config.update(name, value)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = P("data"), P(), P("data")
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arguments(), specs, strict=True)]

    def mean(x, w, y):
        """Half of it with the gradient taken in the forward pass, and half in the backward pass."""
        of = lambda block: softjax.of(LOSSES[given.loss], softjax.linear(x, w, block_size=block), y, reduction="mean")
        return (of(softjax.Placement(8, 128)) + of(softjax.Placement(8, 128, "forward"))) / 2

    found = []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(FOUND.get(event)))
    program = jax.jit(jax.value_and_grad(mean, (0, 1))).lower(*placed).compile()
    (is_found,) = [one for one in found if one is not None]
    value, gradients = program(*placed)
    squares = [float(jnp.sum(g**2)) for g in gradients]
    print(json.dumps({"value": float(value), "squares": squares, "found": is_found}))


if __name__ == "__main__":
    main()
