"""The machine that a report is of."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """The machine and the versions of the packages."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "torch", "pykeops"):
        if importlib.util.find_spec(package) is not None:
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
