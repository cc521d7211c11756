"""The matrix products of linear scores: the type of their operands, and the rounding of cotangents.

bfloat16 operands are multiplied in their own type and added up in float32: the product of two of them is exact in
float32. The cotangent of the scores is an array of float32, which meets them in one of three ways:

    "default"  rounded once to bfloat16: 3 products
    "high"     in two parts, the rounded cotangent and its rounding error: 5 products
    "highest"  as it is, with the operands widened to float32: 3 products of float32

float16 has too small a range for cotangents, and is always multiplied in float32.
"""

import functools as ft
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .._jax import setting
from ..arguments import checks
from ..arguments.dtypes import common_dtype
from ..compute.rules import both_modes

PrecisionLike = str | lax.Precision | None
LEVELS = ("default", "high", "highest")
# Names of `jax.default_matmul_precision` that ask for the digits of a level.
_OTHER_NAMES = {"float32": "highest", "tensorfloat32": "high", "bfloat16_3x": "high"}


class Product(NamedTuple):
    """How features and kernel are multiplied: a part of the program."""

    dtype: Any = None  # the half-precision type to which the operands are rounded; None for their own type
    precision: Any = "highest"  # one of LEVELS for half precision, else a `precision` of `jax.numpy.matmul`

    @property
    def rounding(self) -> Any:
        """The type to which cotangents are rounded, if they are rounded once."""
        return self.dtype if self.precision == "default" else None

    def __call__(self, a: Array, b: Array) -> Array:
        """The product of a [N, D] and b [D, B], in at least float32."""
        if self.dtype is None:
            return jnp.matmul(a, b, precision=self.precision)
        return _rounded_product(self, (a, b), ())


def chosen(precision: PrecisionLike, dtype: DTypeLike | None, features: Array, kernel: Array) -> Product:
    """The product for the arguments `precision` and `dtype`."""
    level = precision.name.lower() if isinstance(precision, lax.Precision) else precision
    if not (level is None or level in LEVELS):
        raise ValueError(f"`precision` must be one of {LEVELS}, a `jax.lax.Precision` or None, got {precision!r}.")
    given = common_dtype(features, kernel)
    operands = given if dtype is None else checks.floating_dtype("dtype", dtype)
    default = setting("jax_default_matmul_precision")
    if operands.itemsize >= 4:
        return Product(None, level or default or "highest")
    if level is None and default is None:
        level = "highest" if jax.default_backend() == "cpu" else "default"  # CPUs multiply half precision slowly
    elif level is None:
        level = default if default in LEVELS else _OTHER_NAMES.get(default, "default")
    if operands == jnp.float16:
        level = "highest"
    return Product(None if level == "highest" and operands == given else operands, level)


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_rule(product, operands, _):
    return _multiplied(product, *_rounded(product, *operands))


def _product_fwd(product, operands, _):
    a, b = _rounded(product, *operands)
    return _multiplied(product, a, b), (a, b)


def _product_bwd(product, residuals, ct):
    a, b = residuals
    (high,) = (ct,) if product.precision == "highest" else _rounded(product, ct)
    parts = [high, ct - high] if product.precision == "high" else [high]
    da = ft.reduce(jnp.add, [_multiplied(product, part, b.T) for part in parts])
    db = ft.reduce(jnp.add, [_multiplied(product, part.T, a).T for part in parts])
    return (da, db), None


_product_rule.defvjp(_product_fwd, _product_bwd)
_rounded_product = both_modes(_product_rule, options=1)


def _rounded(product, *arrays):
    return tuple(a.astype(product.dtype).astype(a.dtype) for a in arrays)


def _multiplied(product, a, b):
    """The product of rounded arrays. As their type is float32, so is the type of its transpose, which rounds alike."""
    exact = ft.partial(jnp.matmul, precision="highest")
    if product.precision == "highest" or a.dtype != jnp.float32:
        return exact(a, b)
    in_bfloat16 = ft.partial(jnp.matmul, precision=lax.DotAlgorithmPreset.BF16_BF16_F32)
    return lax.platform_dependent(a, b, cpu=exact, default=in_bfloat16)  # CPUs lack it in some products
