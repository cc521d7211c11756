"""Mermaid diagrams as SVG in the page, in the colours of the theme, without scripts."""

import re

import mermaidx

_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CONFIG = {"flowchart": {"nodeSpacing": 14, "rankSpacing": 30, "padding": 8}}


def on_page_markdown(markdown, page, config, files):  # noqa: ARG001
    """Draws the diagrams of a page, which then has the place of the table of contents for them."""
    if _DIAGRAM.search(markdown):
        page.meta["hide"] = ["toc"]
    return _DIAGRAM.sub(_drawn, markdown)


def _drawn(found):
    svg = mermaidx.render(found[1], theme="neutral", config=_CONFIG).svg()
    svg = svg.replace("my-svg", f"diagram-{found.start()}")  # several diagrams of a page have their own styles
    return f'<div class="diagram">{svg}</div>'
