"""The choice of tile and block sizes, and of the pass in which the gradient is taken.

docs/architecture.md has the measurements behind it; `python -m benchmarks --placements` repeats them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike

from ..arguments import checks
from ..arguments.dtypes import compute_dtype
from ..arguments.signatures import readable


@readable
class Placement(NamedTuple):
    """The sizes of the tile of examples and of the block of classes whose scores are in memory at a time.

    The gradient of a sum of losses is taken in the forward pass, which keeps the scores of a tile for the first `kept`
    classes (None: for all) and computes those of the others again, or in the backward pass, which computes all again.
    """

    tile: int
    block: int
    gradient: Literal["forward", "backward"] = "backward"
    kept: int | None = None


BlockSize = int | Placement | None


@readable
def placement(
    examples: int,
    classes: int,
    features: int,
    *,
    reduction: str = "none",
    dtype: DTypeLike = "float32",
    platform: str | None = None,
    memory: int | None = None,
) -> Placement:
    """The placement that `block_size=None` chooses.

    Args:
        examples: N, the number of examples.
        classes: K, the number of classes.
        features: D, the size of the features or latents.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        dtype: the type of the arrays; the scores are computed in at least float32.
        platform: "cpu", "gpu" or "tpu"; None for JAX's default.
        memory: the bytes that scores may take on a GPU or TPU; None for a tenth of the memory of the device.

    Returns:
        The placement.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax
        >>> print(softjax.placement(4096, 32768, 512, reduction="mean", platform="cpu"))
        Placement(tile=512, block=2048, gradient='forward', kept=None)
    """
    sizes = {"examples": examples, "classes": classes, "features": features}
    n, k, d = (checks.positive(name, size) for name, size in sizes.items())
    reduction = checks.reduction(reduction)
    arrays = checks.floating_dtype("dtype", dtype)
    if not (platform is None or isinstance(platform, str)):
        raise TypeError(f"`platform` must be the name of one or None, got {checks.shown(platform)}.")
    memory = None if memory is None else checks.positive("memory", memory)
    rounding = arrays if arrays == jnp.bfloat16 else None
    return _chosen(n, k, d, reduction, compute_dtype(arrays), rounding, platform or jax.default_backend(), memory)


def given_or_chosen(
    block_size: BlockSize, n: int, k: int, d: int, reduction: str, dtype: jnp.dtype, rounding: Any
) -> Placement:
    """The placement for the argument `block_size`."""
    if block_size is None:
        return _chosen(n, k, d, reduction, dtype, rounding, jax.default_backend())
    if not isinstance(block_size, Placement):
        return Placement(n, checks.positive("block_size", block_size, "a positive integer or None"))
    tile, block, gradient, kept = block_size
    if export.is_symbolic_dim(n):
        raise ValueError(f"`block_size` must be an integer or None for a symbolic number of examples, got tile {tile}.")
    if not isinstance(gradient, str) or gradient not in ("forward", "backward"):
        raise ValueError(f"`block_size` must take the gradient 'forward' or 'backward', got {checks.shown(gradient)}.")
    if kept is not None and not (type(kept) is int and kept >= 0):
        raise ValueError(f"`block_size` must keep 0 or more classes or None for all, got {checks.shown(kept)}.")
    return Placement(checks.positive("block_size", tile), checks.positive("block_size", block), gradient, kept)


def _chosen(n, k, d, reduction, dtype, rounding, platform, memory=None):
    if not isinstance(k, int):  # a symbolic size, of an exported program for all sizes
        return Placement(n, k)
    if not isinstance(n, int):
        return Placement(n, min(k, 1024))
    n = max(n, 1)
    if n == 1:  # probably one example of a batch under vmap
        return Placement(1, min(k, 512))
    scalar, scores = reduction != "none", lambda megabytes: megabytes * 2**20 // dtype.itemsize
    if n * k <= scores(1):
        return Placement(n, min(k, 2048))  # sums over more lose digits
    if platform == "cpu":
        return _of_cpu(n, k, d, scalar, scores)
    memory = memory or _memory(platform) // 10
    of_kept = dtype.itemsize if rounding is None else rounding.itemsize
    if n * k * (dtype.itemsize + (0 if rounding is None else of_kept)) <= memory:
        return Placement(n, k, "forward") if scalar else Placement(n, _of_chip(n, k, scores))
    if platform == "tpu":
        return Placement(n, _of_chip(n, k, scores), *(("forward", 0) if scalar else ()))
    block = min(k, max(1024, min(8192, _power_of_2(memory // (4 * n * dtype.itemsize)))))
    kept = max(memory - n * block * dtype.itemsize, 0) // (n * of_kept) if d >= 128 else 0
    return Placement(n, block, "forward", min(k, kept)) if scalar else Placement(n, block)


def _of_chip(n, k, scores):
    """A block of 64 MB of scores, which the compiler of a TPU keeps on the chip."""
    return min(k, max(1024, min(8192, _power_of_2(scores(64) // n))))


def _of_cpu(n, k, d, scalar, scores):
    wide = d >= 128
    if scalar and wide and min(n, 256) * k <= scores(256):
        tile = min(n, max(256, min(512, n // 8)))
        return Placement(tile, k if tile * k <= scores(8) else min(k, 2048), "forward")
    if wide:
        return Placement(n, min(k, max(128, min(scores(8) // n, 4096))))
    # The scores of a block, read several times, stay in the caches of two cores. A tile has more examples than a block
    # has classes, as the products of the gradient sum over the examples. With still fewer classes in a block, sums over
    # the classes of vectors as long as a block is wide would cost as much as the scores.
    tile = -(-n // -(-n // 1024))
    return Placement(tile, min(k, max(128, min(scores(1) // tile, 4096))))


def _power_of_2(size):
    """The largest power of 2 up to the size."""
    return 2 ** max(size.bit_length() - 1, 0)


def _memory(platform):
    """The bytes of the memory of a device of the platform: of this machine's, else of a common one."""
    stats = jax.local_devices()[0].memory_stats() if platform == jax.default_backend() else None
    return (stats or {}).get("bytes_limit", 2**34 if platform == "tpu" else 80 * 2**30)
