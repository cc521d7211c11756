"""The code of a page in Markdown: run, and its output compared with the comments that show it."""

import contextlib
import io
import re

import jax
import numpy as np

NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]\d+)?")
# The comment after a print at the margin shows its output, and a line that is a comment at the margin is one of output.
SHOWN = re.compile(r"^(?:print\(.*\)  )?# (.*)$", re.MULTILINE)


def blocks(path, language="python"):
    """The blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def run(block, path, names):
    """Runs a block among the names, and compares its output with its comments. Returns how many lines are shown."""
    printed, shown = io.StringIO(), SHOWN.findall(block)
    with contextlib.redirect_stdout(printed), jax.numpy_dtype_promotion("standard"):
        exec(compile(block, path.name, "exec"), names)
    lines = printed.getvalue().splitlines()
    words = lambda lines: [NUMBER.sub("#", line).split() for line in lines]
    assert words(lines) == words(shown)
    for line, wanted in zip(lines, shown, strict=True):
        numbers = ([float(n) for n in NUMBER.findall(text)] for text in (line, wanted))
        np.testing.assert_allclose(*numbers, rtol=1e-4)
    return len(shown)
