"""The paths on the site of the files of the repository, and their links.

On the site each file has the path that it has in the repository, without docs/; the README is the first page. Links
are rewritten accordingly, so that the same text can be read in the repository and on the site.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXTS = ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")  # pages outside of docs/
_LINK = re.compile(r"(\]\()([^)\s]+)(?=\))")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def site_path(path):
    """The path on the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"
    return path.removeprefix("docs/")


def notebook_paths():
    """The notebooks, in the order of their names."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))


def moved_links(markdown, path):
    """The text of the file `path` of the repository, with links for the site."""
    here = posixpath.dirname(site_path(path))

    def moved(link):
        target, hash_, anchor = link[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return link[1] + posixpath.relpath(site_path(target), here or ".") + hash_ + anchor

    parts = _CODE.split(markdown)  # text and code, in turns
    return "".join(part if i % 2 else _LINK.sub(moved, part) for i, part in enumerate(parts))
