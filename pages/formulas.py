"""Formulas as MathML, which browsers show without scripts, and a font for devices that have none for formulas."""

import html
import io
import re
from pathlib import Path

import ziamath
from fontTools import subset
from math_core import LatexToMathML
from mkdocs.structure.files import File

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_LATEX = LatexToMathML()
# Letters, Greek letters, punctuation, arrows, operators, brackets, and the alphabets of mathematics.
_CHARACTERS = ((0x20, 0x7F), (0xA0, 0x100), (0x370, 0x400), (0x2000, 0x2400), (0x27E0, 0x27F0), (0x1D400, 0x1D800))


def on_files(files, config):
    """Adds the font: STIX Two Math (SIL Open Font License 1.1), of which the characters of formulas are kept."""
    files.append(File.generated(config, "formulas.woff", content=_font()))
    return files


def _font():
    source = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["*"])
    font = subset.load_font(str(source), options)
    kept = subset.Subsetter(options)
    kept.populate(unicodes=[code for first, end in _CHARACTERS for code in range(first, end)])
    kept.subset(font)
    written = io.BytesIO()
    subset.save_font(font, written, options)
    return written.getvalue()


def on_page_content(content, page, config, files):  # noqa: ARG001
    """Replaces the LaTeX of a page, and of its table of contents."""
    _replace_in_titles(page.toc)
    return _FORMULA.sub(_mathml, content)


def _replace_in_titles(titles):
    for title in titles:
        title.title = re.sub(r"\\\((.*?)\\\)", lambda found: _converted(found[1], False), title.title)
        _replace_in_titles(title.children)


def _mathml(found):
    display = found[2] == "["
    formula = _converted(found[3], display)
    return f'<div class="formula">{formula}</div>' if display else formula


def _converted(latex, display):
    return _LATEX.convert_with_local_state(html.unescape(latex).strip(), displaystyle=display)
