"""Functions that users write, as pytrees: of one example and one class, with the arrays that they close over."""

from __future__ import annotations

import importlib
import operator
import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ..arguments import checks


@jax.tree_util.register_pytree_node_class
class UserFunction:
    """A Python function, rebuilt from its code and the arrays that it reads, which have gradients.

    Two are equal if their code is, and what they compute with all that they read beside arrays: a lambda that is made
    again is the same part of a program, and is not compiled again; one that reads another number is another.
    """

    def __init__(self, key: Any, inner: Any, types: tuple = (), program: str = ""):
        self.key, self.inner = key, inner  # the code; what it reads
        self.types, self.program = types, program  # of the arguments; what it computes of these, as a text

    def tree_flatten(self) -> tuple:
        return (self.inner,), (self.key, self.types, self.program)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple) -> UserFunction:
        key, types, program = static
        return cls(key, children[0], types, program)

    @classmethod
    def of(cls, function: Callable) -> UserFunction:
        """The function, taken apart."""
        if isinstance(function, cls):
            return function
        if isinstance(function, Partial):
            return cls("partial", (cls.of(function.func), function.args, function.keywords))
        if not isinstance(function, types.FunctionType):
            return cls(_Whole(function), ())
        cells = tuple(_part(cell.cell_contents) for cell in function.__closure__ or ())
        defaults = tuple(map(_part, function.__defaults__ or ()))
        named = {name: _part(x) for name, x in (function.__kwdefaults__ or {}).items()}
        around = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        read = {name: jnp.asarray(x) for name, x in around.items() if isinstance(x, Array | np.ndarray)}
        return cls(_Code(function), (cells, defaults, named, read))

    def again(self) -> UserFunction:
        """The function with what it now computes: it may read a number that was changed since."""
        program = str(jax.make_jaxpr(self)(*jax.tree.unflatten(*self.types)))
        return UserFunction(self.key, self.inner, self.types, _ADDRESS.sub("", program))

    def __call__(self, *args: Any) -> Any:
        if self.key == "partial":
            function, first, named = self.inner
            return function(*first, *args, **named)
        if isinstance(self.key, _Whole):
            return self.key.function(*args)
        cells, defaults, named, read = self.inner
        closure = tuple(types.CellType(_whole(part)) for part in cells)
        code, of_module = self.key.code, self.key.of_module | read
        function = types.FunctionType(code, of_module, code.co_name, tuple(map(_whole, defaults)) or None, closure)
        function.__kwdefaults__ = {name: _whole(part) for name, part in named.items()}
        return function(*args)


_ADDRESS = re.compile(r"0x[0-9a-f]+")


class _Code:
    """The code of a function and its module, which are compared. It does not keep what the function closes over."""

    def __init__(self, function: types.FunctionType):
        self.code, self.of_module = function.__code__, function.__globals__
        self.key = self.code, id(self.of_module)
        self.names = function.__module__, function.__qualname__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple:  # code cannot be pickled, but the name of a function in a module
        return _code_of, self.names


def _code_of(module, name):
    return _Code(operator.attrgetter(name)(importlib.import_module(module)))


class _Whole(NamedTuple):
    """A function that is not taken apart: built in, or of a class."""

    function: Callable


@jax.tree_util.register_static
class _Still(NamedTuple):
    """What a function closes over that is neither an array nor a function."""

    value: Any

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except TypeError:
            return id(self.value)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Still) and self.value is other.value
        return same or (isinstance(other, _Still) and _equal(self.value, other.value))


def _equal(a, b):
    try:
        return type(a) is type(b) and hash(a) == hash(b) and bool(a == b)
    except (TypeError, ValueError):
        return False


def _part(x):
    if isinstance(x, Array | np.ndarray):
        return jnp.asarray(x)
    if isinstance(x, types.FunctionType | Partial):
        return UserFunction.of(x)
    if isinstance(x, tuple | list | dict) and any(isinstance(a, Array | np.ndarray) for a in jax.tree.leaves(x)):
        return jax.tree.map(_part, x)
    return _Still(x)


def _whole(part):
    is_still = lambda a: isinstance(a, _Still | UserFunction)
    return jax.tree.map(lambda a: a.value if isinstance(a, _Still) else a, part, is_leaf=is_still)


def user_function(
    name: str, function: Any, *types_of_arguments: Any, boolean: bool = False, of_numbers: bool = True
) -> UserFunction:
    """The function of one example and one class, refused where it is written for more.

    Args:
        name: of the argument.
        function: that was given.
        types_of_arguments: of one example and one class.
        boolean: whether it returns a boolean.
        of_numbers: whether it has to be elementwise, so that a reduction can only be one over all classes.
    """
    if not callable(function):
        raise TypeError(f"`{name}` must be a function, got {checks.shown(function)}.")
    taken = UserFunction.of(function)
    one = "a function of one example and one class"
    try:
        jaxpr, out = jax.make_jaxpr(taken, return_shape=True)(*types_of_arguments)
    except (TypeError, ValueError, IndexError) as error:
        raise type(error)(f"`{name}` must be {one}, got one that fails: {str(error).rstrip('.')}.") from error
    kind = jnp.bool_ if boolean else jnp.floating
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, kind):
        wanted = "a boolean" if boolean else "a floating-point number"
        raise ValueError(f"`{name}` must be {one} that returns {wanted}, got {checks.shown(out)}.")
    if of_numbers and any(_over_nothing(jaxpr.jaxpr)):
        raise ValueError(f"`{name}` must be {one}, got one that reduces or sorts a number: it does not see the others.")
    leaves = jax.tree.leaves(taken)
    if any(_is_hidden(a) and not any(a is b for b in leaves) for a in jaxpr.consts):
        raise ValueError(
            f"`{name}` must close over its arrays as variables, or take them as arguments of `map`, got an array of "
            "an object."
        )
    leaves, tree = jax.tree.flatten(types_of_arguments)
    return UserFunction(taken.key, taken.inner, (tree, tuple(leaves))).again()


def _over_nothing(jaxpr):
    """Whether operations reduce a single number, as `z - z.max()` does, written for all classes."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        is_single = all(getattr(v.aval, "ndim", 0) == 0 for v in equation.invars)
        yield is_single and (name.startswith(("reduce_", "arg", "cum")) or name == "sort")
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _over_nothing(inner)


def _is_hidden(constant):
    """Whether a constant is an array: one that a function did not close over as a variable would have no gradient."""
    return isinstance(constant, Array)
