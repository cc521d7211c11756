"""Devices to compile for that need not be there."""

import functools as ft
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from .._jax import device_to_compile_for


class Kind(NamedTuple):
    """A device to compile for."""

    platform: str
    topology: str
    gibibytes: int
    """of memory"""


KINDS = {
    "v5e": Kind("tpu", "v5e:2x2", 16),
    "v5p": Kind("tpu", "v5p:2x2x1", 95),
    "v6e": Kind("tpu", "v6e:2x2", 32),
    "h100": Kind("gpu", "1x1x1", 80),
}
# The H100 SXM, in XLA's words: the figures of NVIDIA's data sheet and of its table of compute capabilities.
_H100 = {
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "memory_bandwidth": 3_352_320_000_000,
    "device_memory_size": 84_929_347_584,
    "l2_cache_size": 52_428_800,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block": 49_152,
    "shared_memory_per_block_optin": 232_448,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "threads_per_core_limit": 2048,
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
}
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",  # it would ask a server of the cloud for the devices
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it takes a lock, as if there were a device
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # it warns that these are unknown
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",  # a device of this machine, if any, stays out of it
}


def prepare() -> None:
    """Settings without which the compilers look for devices; before JAX's first computation."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def missing(kind: Kind) -> str | None:
    """The package of a compiler that is not installed."""
    packages = ("libtpu",) if kind.platform == "tpu" else ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return None if any(importlib.util.find_spec(name) for name in packages) else packages[0]


@ft.cache
def device(kind: Kind) -> SingleDeviceSharding:
    """The first core of a device that need not be there."""
    if kind.platform == "tpu":
        first = device_to_compile_for("tpu", topology_name=kind.topology)
    else:
        info = " ".join(f"{name}: {value}" for name, value in _H100.items())
        target = f"gpu_device_info {{ {info} cuda_compute_capability {{ major: 9 }} }} "
        target += 'platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 } '
        target += 'device_description_str: "NVIDIA H100 80GB HBM3"'
        first = device_to_compile_for("cuda", topology_name="", target_config=target, topology=kind.topology)
    return SingleDeviceSharding(first)


def compiled_for(kind: Kind, function: Callable, arguments: tuple[Any, ...]) -> Any:
    """The program of a function of arrays like the arguments, which are not allocated."""
    on_device = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device(kind)) for a in arguments]
    # Autotuning would run kernels.
    options: dict[str, Any] | None = {"xla_gpu_autotune_level": "0"} if kind.platform == "gpu" else None
    return jax.jit(function).lower(*on_device).compile(options)
