"""Reads the text of a compiled program: its loops and branches, the bytes it moves, and its matrix products."""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
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


class Operation(NamedTuple):
    """A line of a program."""

    name: str
    shape: str
    """the type and sizes of the result, or of all results in parentheses"""
    kind: str
    """the name of the operation, such as "fusion" or "dot" """
    operands: tuple[str, ...]
    """their names; the number of a parameter or the value of a constant"""
    attributes: str
    root: bool

    def called(self, attribute: str) -> list[str]:
        """The names of the computations that an attribute has."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return re.findall(r"[\w.-]+", found[1]) if found else []


Table = dict[str, Operation]  # the operations of a computation by their names


class Program(NamedTuple):
    """The computations of a compiled program."""

    computations: dict[str, Table]
    entry: str

    def body(self, operation: Operation) -> Table:
        """The computation that a fusion stands for."""
        return self.computations[operation.called("calls")[0]]


def parse(text: str) -> Program:
    """The program of a compiled text."""
    computations: dict[str, Table] = {}
    entry = ""
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            operation = _operation(line)
            if operation is not None and computations:
                computations[list(computations)[-1]][operation.name] = operation
        elif header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line.rstrip()):
            computations[header[2]] = {}
            entry = header[2] if header[1] else entry
    return Program(computations, entry)


def _operation(line: str) -> Operation | None:
    assigned = re.match(r"\s+(ROOT )?%?([\w.-]+) = (.*)", line)
    if assigned is None:
        return None
    rest = assigned[3]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    call = re.match(r"\s*([\w-]+)\(", rest[end:])
    if call is None:
        return None
    start = end + call.end() - 1
    stop = start + _closing(rest[start:])
    inside = rest[start + 1 : stop - 1]
    names = re.findall(r"%([\w.-]+)", inside) or [part.split()[-1] for part in inside.split(",") if part.strip()]
    return Operation(assigned[2], rest[:end], call[1], tuple(names), rest[stop:], assigned[1] is not None)


def _closing(text: str) -> int:
    """The length of a text's first parenthesis."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _sizes(shape: str) -> list[int]:
    """The sizes of the first array of a shape."""
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _nbytes(shape: str) -> float:
    arrays = _ARRAY.findall(shape)
    return sum(_BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in arrays)


# ---------------------------------------------------------------------------------------------
# Sums over a program

Cost = Callable[[Program, Table, Operation], float]


def total(program: Program, cost: Cost, computation: str | None = None) -> float:
    """The sum of a cost over the operations of a program: loops as often as they run, of branches the dearest."""
    table = program.computations[computation or program.entry]
    return sum(_with_computations(program, cost, table, operation) for operation in table.values())


def _with_computations(program: Program, cost: Cost, table: Table, operation: Operation) -> float:
    def inside(*attributes):
        return [total(program, cost, name) for a in attributes for name in operation.called(a)]

    if operation.kind == "while":
        return trips(program, table, operation) * sum(inside("body"))
    if operation.kind == "conditional":
        return max(inside("branch_computations", "true_computation", "false_computation"))
    if operation.kind in ("call", "async-start"):
        return cost(program, table, operation) or sum(inside("to_apply", "calls"))
    return cost(program, table, operation)


def trips(program: Program, table: Table, loop: Operation) -> int:
    """How often a loop runs that counts up from 0 to a constant of its condition; raises `ValueError` for others."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    tables = [condition, *(program.body(o) for o in condition.values() if o.kind == "fusion")]
    # Only counters have such constants: a condition computes nothing else.
    numbers = [o.operands[0] for t in tables for o in t.values() if o.kind == "constant" and o.shape[:3] == "s32"]
    numbers += [limit for o in condition.values() if (limit := _carried(table, loop, o)) is not None]
    if not numbers or max(map(int, numbers)) <= 0:
        raise ValueError(f"The loop {loop.name!r} must count to a constant.")
    return max(map(int, numbers))


def _carried(table: Table, loop: Operation, operation: Operation) -> str | None:
    """The constant that a loop carries, if the operation of its condition takes one."""
    arguments = table.get(loop.operands[0])
    if operation.kind != "get-tuple-element" or arguments is None or arguments.kind != "tuple":
        return None
    place = re.search(r"index=(\d+)", operation.attributes)
    source = table.get(arguments.operands[int(place[1])]) if place else None
    while source is not None and source.kind == "copy":
        source = table.get(source.operands[0])
    constant = source is not None and source.kind == "constant" and source.shape[:3] == "s32"
    return source.operands[0] if source is not None and constant else None


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
        yield from (_product(program, platform, table, o) for o in table.values() if _is_product(o))


def products_of(program: Program, platform: str, table: Table, operation: Operation) -> Iterator[Product]:
    """The products of an operation: its own, or those inside of a fusion."""
    if _is_product(operation):
        yield _product(program, platform, table, operation)
    elif operation.kind == "fusion":
        body = program.body(operation)
        for inner in body.values():
            yield from products_of(program, platform, body, inner)


def _is_product(operation: Operation) -> bool:
    library = operation.kind == "custom-call" and re.search(r'target="[^"]*(gemm|matmul)', operation.attributes)
    return operation.kind in ("dot", "convolution") or bool(library)


def _product(program: Program, platform: str, table: Table, operation: Operation) -> Product:
    left, right = operation.operands[:2]
    types = [_type(table[name].shape) for name in (left, right)]
    text = operation.attributes.lower()
    algorithm = re.search(r"algorithm[=\":]+(?:alg_)?(dot_\w+)", text)
    precision = re.search(r"operand_precision[=\":]+[{\[]\"?(\w+)", text)
    contracted = re.search(r"lhs_contracting_dim\w*[=\":]+[{\[]([\d,\"]+)", text)
    flops = math.nan
    if contracted:
        sizes = _sizes(table[left].shape)
        summed = math.prod(sizes[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
        flops = 2 * math.prod(_sizes(operation.shape)) * summed
    if platform == "tpu":  # a GPU's product has the type that it states, whatever its operands were before
        types = [_narrowest(program, table, name) for name in (left, right)]
    rounded, passes = _rounded(platform, types, algorithm and algorithm[1], precision[1] if precision else "default")
    tensor = all(dtype in _OF_TENSOR_CORES for dtype in rounded)
    unit = "MXU" if platform == "tpu" else "tensor cores" if tensor else "CUDA cores"
    return Product((rounded[0], rounded[1]), unit, passes, flops)


def _type(shape: str) -> str:
    found = _ARRAY.search(shape)
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
