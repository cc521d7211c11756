"""Reads the text of a compiled program: its operations, its loops and branches, and its matrix products."""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


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
    found = ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


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


# ---------------------------------------------------------------------------------------------
# Matrix products


def products_of(program: Program, table: Table, operation: Operation) -> Iterator[tuple[Table, Operation]]:
    """The products of an operation, its own or those inside of a fusion, each with the computation that it is in."""
    if is_product(operation):
        yield table, operation
    elif operation.kind == "fusion":
        body = program.body(operation)
        for inner in body.values():
            yield from products_of(program, body, inner)


def is_product(operation: Operation) -> bool:
    """Whether an operation is a matrix product, of the compiler or of a library."""
    library = operation.kind == "custom-call" and re.search(r'target="[^"]*(gemm|matmul)', operation.attributes)
    return operation.kind in ("dot", "convolution") or bool(library)


def flops(table: Table, product: Operation) -> float:
    """The additions and multiplications of a product; NaN for a convolution, which is a TPU's product."""
    contracted = re.search(r"lhs_contracting_dim\w*[=\":]+[{\[]([\d,\"]+)", product.attributes.lower())
    if contracted is None:
        return math.nan
    sizes = _sizes(table[product.operands[0]].shape)
    summed = math.prod(sizes[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
    return 2 * math.prod(_sizes(product.shape)) * summed
