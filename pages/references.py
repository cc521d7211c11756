"""Links from the names of the library in code to their place in the reference."""

import posixpath
import re

from paths import ROOT

_DESCRIBED = re.compile(r"^::: softjax\.([\w.]+)$", re.MULTILINE)
_KEPT = re.compile(r"(<a\b.*?</a>|<pre\b.*?</pre>|<h[1-6]\b.*?</h[1-6]>)", re.DOTALL)
_CODE = re.compile(r"<code>(?:softjax\.)?([\w.]+)(\(.*?)?</code>", re.DOTALL)


def places():
    """A dictionary from each name in the reference to its place on the site."""
    return {
        name: f"reference/{path.stem}.html#softjax.{name}"
        for path in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for name in _DESCRIBED.findall(path.read_text())
    }


def linked(content, url, places):
    """The HTML of the page at `url`, with links. A short word may be an argument: it has to be called or prefixed."""

    def link(found):
        name, called = found[1], found[2]
        is_clear = called or "_" in name or name[0].isupper() or "softjax." in found[0]
        if name not in places or not is_clear:
            return found[0]
        return f'<a href="{posixpath.relpath(places[name], posixpath.dirname(url) or ".")}">{found[0]}</a>'

    parts = _KEPT.split(content)  # parts without and with links, in turns
    return "".join(part if i % 2 else _CODE.sub(link, part) for i, part in enumerate(parts))


def on_page_content(content, page, config, files):  # noqa: ARG001
    """Adds the links to a page."""
    return linked(content, page.file.url, places())
