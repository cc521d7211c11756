"""Will it fit? The memory and the products of the fused loss and of dense logits: `python -m softjax explain`.

Nothing runs and no array is allocated. The figures are those of the compiled program where there is a compiler for the
device, else those of a model of cost, which this module describes. They are for the value and the gradients of the
features and the kernel.
"""

import dataclasses
import functools as ft
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import softjax
from softjax import Placement

from . import programs, targets

Way = Literal["softjax", "dense logits"]
WAYS: tuple[Way, ...] = ("softjax", "dense logits")
# Gigabytes of memory, as the makers state them. Devices that `targets` describes can be compiled for.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "a100": 80, "h100": 80, "h200": 141}
DEVICES = ("here", "cpu", *MEMORY)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mean, sum or losses of N examples with D features and K classes."""

    examples: int
    features: int
    classes: int
    dtype: str
    reduction: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the arrays."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def arrays(self) -> int:
        """Bytes of the features and the kernel, and of their gradients."""
        return (self.examples + self.classes) * self.features * self.itemsize

    @property
    def product(self) -> float:
        """Multiplications and additions of a product of the features and the kernel."""
        return 2.0 * self.examples * self.features * self.classes


class Device(NamedTuple):
    """A device, and the bytes of its memory."""

    name: str
    platform: str
    memory: int

    def placement(self, problem: Problem) -> Placement:
        """The choice of the library on this device."""
        n, k, d = problem.examples, problem.classes, problem.features
        options: dict[str, Any] = {"platform": self.platform, "memory": max(self.memory // 10, 1)}
        return softjax.placement(n, k, d, reduction=problem.reduction, dtype=problem.dtype, **options)

    def rounds(self, problem: Problem) -> bool:
        """Whether the cotangents of the scores are rounded to bfloat16: see `softjax._products`."""
        return problem.dtype == "bfloat16" and self.platform != "cpu"


class Cost(NamedTuple):
    """The bytes that a way needs, and its operations."""

    source: str
    """the origin of the figures: "compiled program" or "model of cost" """
    arguments: int
    gradients: int
    temporaries: int
    operations: float
    """multiplications and additions of the matrix products"""
    note: str = ""

    @property
    def total(self) -> int:
        """All bytes."""
        return self.arguments + self.gradients + self.temporaries


# ---------------------------------------------------------------------------------------------
# The model of cost


def modelled(problem: Problem, device: Device, way: Way) -> Cost:
    """The cost from the sizes alone."""
    place = device.placement(problem)
    temporaries = _dense_bytes(problem, device) if way == "dense logits" else _fused_bytes(problem, device, place)
    products = 3.0 if way == "dense logits" else _products(problem, place)
    arguments = problem.arrays + 4 * problem.examples * (1 if problem.reduction != "none" else 2)
    return Cost("model of cost", arguments, problem.arrays, temporaries, products * problem.product)


def _products(problem: Problem, place: Placement) -> float:
    """The scores and both gradients; scores that are not kept are computed twice."""
    if place.gradient == "backward":
        return 4.0
    kept = problem.classes if place.kept is None else min(place.kept, problem.classes)
    return 4.0 - kept / problem.classes


def _dense_bytes(problem: Problem, device: Device) -> int:
    """The logits in float32 and their cotangent, which a TPU rounds for its matrix units."""
    rounded = 2 if device.platform == "tpu" or device.rounds(problem) else 4
    return problem.examples * problem.classes * (4 + rounded)


def _fused_bytes(problem: Problem, device: Device, place: Placement) -> int:
    """The scores that are kept, those of the block at hand, and sums that are not yet in the type of a gradient."""
    raise NotImplementedError
