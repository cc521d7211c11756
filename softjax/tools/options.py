"""What command lines share: the values of their options, and how a command is run."""

import argparse
import functools as ft
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from softjax.arguments import checks


def positive(text: str) -> int:
    """A positive integer."""
    try:
        return checks.positive("value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}") from error


def at_least(least: int, text: str) -> int:
    """An integer that is not smaller."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")
    return int(text)


def file(suffix: str, text: str) -> Path:
    """A file to write."""
    path = Path(text)
    if path.suffix != suffix or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a {suffix} file in a folder that exists, got {text!r}")
    return path


seed = ft.partial(at_least, 0)
picture, report = ft.partial(file, ".png"), ft.partial(file, ".json")


def run(name: str, extra: str, modules: list[str], call: Callable[[ModuleType], int]) -> int:
    """Imports the modules and calls a function of the first; returns the exit code.

    It is 1 if a package of the extra is not installed, and 130 after Ctrl-C.
    """
    try:
        tool, *_ = [importlib.import_module(module) for module in modules]
    except ModuleNotFoundError as error:
        advice = f"pip install '.[{extra}]' in a clone of the repository"
        print(f"The {name} needs {error.name}: {advice}", file=sys.stderr)
        return 1
    try:
        return call(tool)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
