"""The notebooks are short, have the pictures that they promise, and say nothing of the machine that ran them."""

import ast
import base64
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NAMES = (
    *("language_model", "mixture_autoencoder", "your_own_loss", "accuracy", "any_number_of_classes"),
    *("the_rule", "devices"),
)
PACKAGES = {"sklearn": "scikit-learn"}  # where the name to install is another than the name to import
INSTALLED_WITH_ANOTHER = {"jax": ("ml_dtypes", "numpy")}


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def sources(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook) -> list[str]:
    """Reasons why a notebook is not fit to be committed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    found = {
        "more than 25 cells": len(notebook.cells) > 25,
        "no title first": not notebook.cells[0].source.startswith("# "),
        "cells not run, or not in order": counts != list(range(1, len(counts) + 1)),
        "a warning or an error": any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs),
        "a path of a machine": any(re.search(r"(?<![\w.])/\w+/|[A-Z]:\\", text) for text in texts),
        "no picture": not pictures,
        "a picture that is no PNG": not all(picture.startswith(b"\x89PNG") for picture in pictures),
    }
    return [fault for fault, is_so in found.items() if is_so]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_clean(name):
    assert faults(read(name)) == []
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 400_000


def test_all_notebooks_are_known():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


def test_the_check_finds_planted_faults():
    notebook = read("the_rule")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].outputs = [nbformat.v4.new_output("stream", name="stderr", text="see /home/me/x.py")]
    code[1].execution_count = None
    for cell in code:
        cell.outputs = [output for output in cell.outputs if "image/png" not in output.get("data", {})]
    notebook.cells[0].source = "No title"
    notebook.cells += [nbformat.v4.new_markdown_cell("one more")] * 25
    assert faults(notebook) == [
        "more than 25 cells",
        "no title first",
        "cells not run, or not in order",
        "a warning or an error",
        "a path of a machine",
        "no picture",
    ]


def imported(code: str) -> set[str]:
    """The packages that code imports."""
    code = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_the_extra_has_the_packages_that_the_notebooks_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["notebooks"]]
    assert "softjax-losses[demo]" in wanted
    packages = {re.match(r"[\w-]+", text)[0] for text in (*wanted, *extras["demo"])}
    packages |= {name for of, names in INSTALLED_WITH_ANOTHER.items() if of in packages for name in names}
    used = set().union(*(imported(source) for name in NAMES for source in sources(read(name))))
    used -= {*sys.stdlib_module_names, "softjax"}
    assert {"jax", "flax", "sympy"} <= used
    assert {PACKAGES.get(name, name) for name in used} <= packages
