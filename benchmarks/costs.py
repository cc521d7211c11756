"""What a compiled program costs, as its text says: a TPU's cycles, the bytes it moves, its matrix products."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from softjax.tools import programs
from softjax.tools.programs import ARRAY, Operation, Program, Table
from softjax.tools.targets import Kind, compiled_for

_BYTES: dict[str, float] = {
    "pred": 1,
    "bf16": 2,
    **{f"{letter}{bits}": bits // 8 for letter in "sufc" for bits in (8, 16, 32, 64, 128)},
}
_BYTES |= {"s4": 0.5, "u4": 0.5}
_FLOATS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}
# Operations that only name arrays.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the place of the update among the operands
_MOVES = {"bitcast", "convert", "copy", "transpose", "reshape", "slice", "dynamic-slice"}
BANDWIDTH = 3.35e12  # bytes per second of an H100
RATES = {"bfloat16": 989e12, "float16": 989e12, "tf32": 495e12, "float32": 67e12, "float64": 67e12}  # operations


# ---------------------------------------------------------------------------------------------
# Cycles and bytes


def cycles(_program: Program, _table: Table, operation: Operation) -> float:
    """The TPU compiler's estimate of an operation's cycles."""
    found = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
    # The compiler writes an enormous number where it has no estimate.
    return int(found[1]) if found and int(found[1]) < 10**15 else 0


def traffic(program: Program, table: Table, operation: Operation) -> float:
    """The bytes that an operation reads and writes: of a slice, or of an array updated in place, what it touches."""
    names_only = operation.kind in _FREE or "AllocateBuffer" in operation.attributes
    if names_only or operation.kind in ("call", "async-start") or operation.kind.endswith("-done"):
        return 0
    if operation.kind == "fusion":
        body = program.body(operation)
        inputs = [o.name for o in body.values() if o.kind == "parameter"]
    else:
        inputs = [name for name in dict.fromkeys(operation.operands) if name in table]
        body = {name: table[name] for name in inputs} | {operation.name: operation._replace(root=True)}
    if operation.kind.endswith("-start"):  # its shape is that of the source, too
        return 2 * sum(_nbytes(body[name].shape) for name in inputs)
    (root,) = (o for o in body.values() if o.root)
    results = [body[name] for name in root.operands] if root.kind == "tuple" else [root]
    return sum(_read(body, name) for name in inputs) + sum(_written(body, result) for result in results)


def _read(body: Table, name: str) -> float:
    full, touched = _nbytes(body[name].shape), 0.0
    for user in body.values():
        if user.kind == "parameter" or name not in user.operands:
            continue
        if user.kind in _SLICES and user.operands[0] == name:
            touched += _nbytes(user.shape)
        elif user.kind == "bitcast":
            touched += _read(body, user.name)
        elif not (user.kind in _UPDATES and user.operands[0] == name):
            return full
    return min(full, touched)


def _written(body: Table, result: Operation) -> float:
    while result.kind == "bitcast":
        result = body[result.operands[0]]
    if result.kind in _UPDATES:
        update = _nbytes(body[result.operands[_UPDATES[result.kind]]].shape)
        return update if result.kind == "dynamic-update-slice" else 2 * update  # a scatter reads what it adds to
    return 0 if result.kind == "parameter" else _nbytes(result.shape)


def _nbytes(shape: str) -> float:
    arrays = ARRAY.findall(shape)
    return sum(_BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in arrays)


# ---------------------------------------------------------------------------------------------
# Matrix products


class Product(NamedTuple):
    """A matrix product as the device computes it."""

    types: tuple[str, str]
    """of the operands as they are multiplied"""
    unit: str
    passes: int
    """the number of products of `types` that it takes, as of the parts of float32 numbers"""
    flops: float
    """the additions and multiplications of a pass; NaN for a convolution, which is a TPU's product"""


def products(program: Program, platform: str) -> Iterator[Product]:
    """The products of a program, each once."""
    for table in program.computations.values():
        yield from (_product(program, platform, table, o) for o in table.values() if programs.is_product(o))


def products_of(program: Program, platform: str, table: Table, operation: Operation) -> Iterator[Product]:
    """The products of an operation: its own, or those inside of a fusion."""
    for body, product in programs.products_of(program, table, operation):
        yield _product(program, platform, body, product)


def _product(program: Program, platform: str, table: Table, operation: Operation) -> Product:
    left, right = operation.operands[:2]
    types = [_type(table[name].shape) for name in (left, right)]
    text = operation.attributes.lower()
    algorithm = re.search(r"algorithm[=\":]+(?:alg_)?(dot_\w+)", text)
    precision = re.search(r"operand_precision[=\":]+[{\[]\"?(\w+)", text)
    if platform == "tpu":  # a GPU's product has the type that it states, whatever its operands were before
        types = [_narrowest(program, table, name) for name in (left, right)]
    rounded, passes = _rounded(platform, types, algorithm and algorithm[1], precision[1] if precision else "default")
    tensor = all(dtype in _OF_TENSOR_CORES for dtype in rounded)
    unit = "MXU" if platform == "tpu" else "tensor cores" if tensor else "CUDA cores"
    return Product((rounded[0], rounded[1]), unit, passes, programs.flops(table, operation))


def _type(shape: str) -> str:
    found = ARRAY.search(shape)
    return _FLOATS.get(found[1], found[1]) if found else shape


def _narrowest(program: Program, table: Table, name: str) -> str:
    """The type of an operand, before it is converted to a wider one inside of a fusion."""
    operation = table[name]
    dtype = _type(operation.shape)
    before = dtype
    if operation.kind == "fusion":
        body = program.body(operation)
        before = next(_narrowest(program, body, o.name) for o in body.values() if o.root)
    elif operation.kind in _MOVES:
        before = _narrowest(program, table, operation.operands[0])
    return before if before in ("bfloat16", "float16") else dtype


_OF_TENSOR_CORES = ("bfloat16", "float16", "tf32")
_PASSES = {"default": 1, "high": 3, "highest": 6}  # of a TPU, for float32


def _rounded(platform: str, types: list[str], algorithm: str | None, precision: str) -> tuple[list[str], int]:
    """(the types that a product rounds its operands to, the number of passes)."""
    if algorithm is not None:
        parts = algorithm.split("_")  # such as dot_bf16_bf16_f32 or dot_tf32_tf32_f32_x3
        passes = int(parts[4][1:]) if len(parts) > 4 else 1
        return [_FLOATS.get(dtype, dtype) for dtype in parts[1:3]], passes
    if "float32" not in types:
        return types, 1
    if platform == "tpu":
        passes = _PASSES[precision]
        return [("bfloat16" if passes == 1 and dtype == "float32" else dtype) for dtype in types], passes
    return [("tf32" if precision != "highest" and dtype == "float32" else dtype) for dtype in types], 1


# ---------------------------------------------------------------------------------------------
# Estimates


class Estimate(NamedTuple):
    """What a compiled program costs."""

    cost: float
    """cycles of a TPU; seconds of a GPU's roofline"""
    temporaries: int
    """bytes"""
    products: tuple[Product, ...]


def estimate(kind: Kind, function: Callable, arguments: tuple[Any, ...]) -> Estimate:
    """Compiles a function of arrays like the arguments, and reads the program."""
    compiled = compiled_for(kind, function, arguments)
    program = programs.parse(compiled.as_text())
    cost = programs.total(program, cycles if kind.platform == "tpu" else roofline)
    found = tuple(products(program, kind.platform))
    return Estimate(cost, compiled.memory_analysis().temp_size_in_bytes, found)


def roofline(program: Program, table: Table, operation: Operation) -> float:
    """The seconds that an H100 needs at least for an operation: for its bytes or for its products."""
    of_operation = products_of(program, "gpu", table, operation)
    multiplying = sum(p.passes * p.flops / min(RATES[dtype] for dtype in p.types) for p in of_operation)
    return max(traffic(program, table, operation) / BANDWIDTH, multiplying)
