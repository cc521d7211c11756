"""Formulas as MathML, which browsers show without scripts."""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, page, config, files):  # noqa: ARG001
    """Replaces the LaTeX of a page."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found):
    display = found[2] == "["
    formula = convert(html.unescape(found[3]).strip(), display="block" if display else "inline")
    return f'<div class="formula">{formula}</div>' if display else formula
