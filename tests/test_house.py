"""The structure of the package: names, imports, arguments in docstrings, and docs/architecture.md."""

import ast
import collections
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import softjax
from softjax import losses
from softjax.arguments import table as arguments

HOME = pathlib.Path(softjax.__file__).parent
FOLDERS = ("arguments", "parallel", "sums", "compute", "logits", "losses")
FILES = {path: ast.parse(path.read_text()) for path in sorted(HOME.rglob("*.py")) if "tools" not in path.parts}
# A folder is one module: its files import each other.
MODULES = {path.stem: [path] for path in FILES if path.parent == HOME and path.stem[:2] != "__"}
MODULES |= {folder: [path for path in FILES if path.parent == HOME / folder] for folder in FOLDERS}
BENCHMARKS = HOME.parent / "benchmarks"
DOCUMENT = HOME.parent / "docs" / "architecture.md"
# Public names that stand for the same thing: a function, and the loss that it evaluates.
NAMESAKES = {"logsumexp", "entropy", "expectation", "kl_divergence", "js_divergence", "__all__"}


def imports_of(paths):
    """The modules of the package that the files of a module import."""
    found = set()
    for path in paths:
        home = 1 if path.parent == HOME else 2  # the level of an import from the package
        for node in ast.walk(FILES[path]):
            if isinstance(node, ast.ImportFrom) and node.level == home:
                found |= {a.name for a in node.names} if node.module is None else {node.module.split(".")[0]}
    return found & set(MODULES)


IMPORTS = {name: imports_of(paths) for name, paths in MODULES.items()}


def reachable(name):
    return set().union(*({other} | reachable(other) for other in IMPORTS[name]))


def test_imports_go_one_way():
    for name in MODULES:
        assert name not in reachable(name)


INTERNAL = re.compile(r"jax\.(experimental|extend|interpreters|_src)\b|from jax import .*\b(extend|interpreters)\b")


def test_what_jax_may_change_is_in_one_module():
    """`jax.experimental`, `jax.extend`, `jax.interpreters` and private names, in the tools and the benchmarks too."""
    paths = [*HOME.rglob("*.py"), *BENCHMARKS.rglob("*.py")]
    using = [path for path in paths if INTERNAL.search(path.read_text())]
    assert using == [HOME / "_jax.py"]


def test_the_library_does_not_import_its_tools():
    for path, tree in FILES.items():
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert path.stem == "__main__" or not any("tools" in module for module in modules), path


def names_benchmarks(code):
    """Whether code imports the benchmarks, by a statement or by their name in a text."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            found = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
        if any(re.fullmatch(r"benchmarks(\.\w+)*", name) for name in found):
            return True
    return False


def test_imports_go_from_the_benchmarks_to_the_package_and_never_back():
    assert [path for path in HOME.rglob("*.py") if names_benchmarks(path.read_text())] == []
    assert any("from softjax" in path.read_text() for path in BENCHMARKS.glob("*.py"))


@pytest.mark.parametrize(
    "code",
    [
        "import benchmarks",
        "def f():\n    from benchmarks.bench import Row",
        "from .. import benchmarks",
        "importlib.import_module('benchmarks.bench')",
    ],
)
def test_an_import_of_the_benchmarks_is_found(code):
    assert names_benchmarks(code)


def _is_bound(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def names_of(tree):
    """The names that a file defines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if _is_bound(n))


def test_no_two_objects_share_a_name():
    count = collections.Counter(name for tree in FILES.values() for name in set(names_of(tree)))
    assert {name for name, times in count.items() if times > 1 and name != "_"} <= NAMESAKES


def test_the_classes_of_sums_have_the_same_steps():
    from softjax.sums.sums import KINDS, Sums, Totals

    assert tuple(KINDS) == Sums._fields[1:] == Totals._fields[1:-1] == softjax.Columns._fields[1:]
    for kind in KINDS.values():
        assert {"needs_top", "fold", "merge", "over", "close", "pull"} <= set(vars(kind))


def test_the_graph_in_the_architecture_is_that_of_the_imports():
    text = DOCUMENT.read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    direct = {
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if not any(other in reachable(between) for between in others)
    }
    assert drawn == direct
    described = set(re.findall(r"\*\*`(\w+)(?:\.py)?`\*\*", text))
    assert described == set(MODULES)


# --- the table of arguments -------------------------------------------------------------------------

DOCUMENTED = [f for name in softjax.__all__ if inspect.isfunction(f := getattr(softjax, name))]


SECTION = re.compile(r"^(\w+):$", re.MULTILINE)


def sections(function):
    """The sections of a docstring, by their headings; those of Python 3.13 have no common indentation."""
    _, *found = SECTION.split(inspect.getdoc(function))
    return dict(zip(found[::2], found[1::2], strict=True))


def described(function):
    """The arguments that a docstring describes, in its order."""
    return re.findall(r"^ {4}(\w+): \S", sections(function)["Args"], re.MULTILINE)


@pytest.mark.parametrize("function", DOCUMENTED, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_help_shows_every_argument_the_result_what_is_raised_and_an_example(function):
    assert described(function) == list(inspect.signature(function).parameters)
    assert list(sections(function)) == ["Args", "Returns", "Raises", "Example"]


@pytest.mark.parametrize("function", DOCUMENTED, ids=lambda f: f.__name__)
def test_no_function_has_more_than_ten_arguments(function):
    assert len(inspect.signature(function).parameters) <= 10


def test_every_row_of_the_table_is_the_argument_of_a_function():
    used = {name for f in DOCUMENTED for name in inspect.signature(f).parameters}
    used |= {n for f in vars(losses).values() if inspect.isfunction(f) for n in inspect.signature(f).parameters}
    assert set(arguments.ARGUMENTS) <= used


def test_an_argument_without_a_text_is_found():
    def function(features, unheard_of):
        """One line.

        Args:
            features: described: [..., D].
                unheard_of: in the text of another.
        """

    assert described(function) == ["features"] != list(inspect.signature(function).parameters)


x, w, y = jnp.ones((2, 3)), jnp.ones((3, 5)), jnp.zeros(2, int)
ce = softjax.linear_softmax_cross_entropy
OUT_OF_RANGE = {
    "label_smoothing": (lambda v: ce(x, w, y, label_smoothing=v), [-0.1, 1.5, float("nan")], r"in \[0, 1\]"),
    "temperature": (lambda v: softjax.contrastive_loss(x, x, temperature=v), [0, -1.0, 0.0], "positive"),
    "margin": (lambda v: softjax.multiclass_svm_loss(x, y, margin=v), [-1.0], "at least 0"),
    "gamma": (lambda v: losses.focal(v), [-2.0], "at least 0"),
    "rate": (lambda v: losses.label_smoothing(losses.cross_entropy, v, 0.2), [2], r"in \[0, 1\]"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_python_number_out_of_range_is_refused_and_a_traced_one_is_not(name):
    call, values, wanted = OUT_OF_RANGE[name]
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must be {wanted}, got {value}\."):
            call(value)
        jax.eval_shape(lambda v: (call(v), v)[1], 1.0 * value)
