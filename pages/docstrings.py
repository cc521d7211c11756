"""The docstrings of the reference, as `help()` shows them: the library writes parts of them when it is imported.

The signatures are read from the sources, where types have their short names.
"""

import importlib
import inspect
import re

import griffe

_COMMENT = re.compile(r"\s#\s(?!noqa)(.*)$")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_FORMULA = re.compile(r"\n(?=-?[A-Za-z]\w*(?:\[\w+\])? = )")
_RESULT = re.compile(r"(?<=^Returns:\n)(?:    .*\n?)+", re.MULTILINE)
_SOURCE = re.compile(r"^Source: ", re.MULTILINE)


class RuntimeDocstrings(griffe.Extension):
    """Takes docstrings from the imported library, and comments of fields as their docstrings."""

    def on_package(self, *, pkg, **kwargs):  # noqa: ARG002
        """Visits the modules of the library when all are loaded."""
        if pkg.name != "softjax":
            return
        for module in _modules(pkg):
            _visit(module, importlib.import_module(module.path), pkg)


def _modules(package):
    """A package and the modules of its folders, without the commands."""
    members = [member for member in package.members.values() if not member.is_alias and member.is_module]
    inner = [member for member in members if member.name not in ("tools", "__main__")]
    return [package, *(one for module in inner for one in _modules(module))]


def _visit(parent, value, package):
    for name, member in list(parent.members.items()):
        if member.is_alias or member.is_module:
            continue
        found = inspect.getattr_static(value, name, None)
        found = getattr(value, name, None) if found is not None else None
        if member.is_attribute and inspect.isfunction(found) and hasattr(found, "__wrapped__"):
            member = parent.members[name] = _function(name, found, member, package)
        _describe(member, found)
        if member.is_class:
            _visit(member, found, package)


def _describe(member, value):
    if member.is_attribute and inspect.isfunction(value):
        member.docstring = griffe.Docstring(f"Another name of `softjax.{value.__name__}`.", parent=member)
        return
    own = member.is_function or member.is_class or type(value).__name__ == "Loss"
    text = inspect.getdoc(value) if own else member.docstring and member.docstring.value
    if member.is_attribute and not text:
        comment = _COMMENT.search(member.source.splitlines()[0]) if member.source else None
        text = comment[1] if comment else None
    if type(value).__name__ == "Loss":
        member.value, member.annotation = None, "Loss"
    if text:
        text, example, rest = _SOURCE.sub("*Source:* ", _EXAMPLE.sub("Examples:", text)).partition("Examples:")
        text = _FORMULA.sub("  \n", text.replace("] [", "] \\["))  # a line of its own; shapes, and no link
        text = _RESULT.sub(lambda found: found[0].replace(": ", "&#58; "), text) + example + rest  # no type before it
        member.docstring = griffe.Docstring(text, parent=member, parser="google")


def _function(name, value, attribute, package):
    """A function that is made from another when the library is imported, with the types of the other."""
    original = inspect.unwrap(value)
    source = package[f"{original.__module__.partition('.')[2]}.{original.__name__}"]
    types = {"mesh": "Mesh | None", "class_axis_name": "AxisName", "batch_axis_name": "AxisName"}
    known = {parameter.name: parameter for parameter in source.parameters}
    keyword = griffe.ParameterKind.keyword_only
    parameters = [
        griffe.Parameter(n, annotation=types[n], kind=keyword, default="None") if n in types else known[n]
        for n in inspect.signature(value).parameters
    ]
    return griffe.Function(
        name,
        parameters=griffe.Parameters(*parameters),
        returns=source.returns,
        lineno=attribute.lineno,
        endlineno=attribute.endlineno,
        parent=attribute.parent,
    )
