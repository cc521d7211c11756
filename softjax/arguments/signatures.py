"""Signatures that read in `help()` as they are written in the source: `ArrayLike`, not all the types it stands for.

Modules with public functions have `from __future__ import annotations`, which keeps the text of an annotation.
"""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, TypeVar

Named = TypeVar("Named", bound=Callable)


class Text(str):
    """The text of an annotation, which `help()` shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def readable(named: Named) -> Named:
    """A decorator: `inspect.signature` of a function, or of a class's own functions, shows annotations as written.

    `typing.get_type_hints` still gives the types.
    """
    members = [getattr(member, "__func__", member) for member in vars(named).values()]
    for function in members if isinstance(named, type) else [named]:
        if inspect.isfunction(function):
            with_texts(function, inspect.signature(function))
    return named


def with_texts(function: Any, signature: inspect.Signature) -> None:
    """Gives a function a signature, with the annotations as texts."""
    parameters = [p.replace(annotation=_text(p.annotation)) for p in signature.parameters.values()]
    result = _text(signature.return_annotation)
    function.__signature__ = signature.replace(parameters=parameters, return_annotation=result)


def _text(annotation):
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
    return Text(text) if isinstance(text, str) else annotation
