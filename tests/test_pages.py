"""The site of the pages: its navigation, its reference, its links; what to cite and how to contribute."""

import importlib
import inspect
import re
import subprocess
import typing
from pathlib import Path

import pytest
import yaml

import softjax
from pages import notebook, paths
from softjax import engines, losses, testing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PYTHON = ROOT / ".venv-docs" / "bin" / "python"


@pytest.fixture
def references(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "pages")  # as MkDocs does
    return importlib.import_module("pages.references")


def leaves(nav):
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in leaves(part)]


def unlisted(nav, pages):
    return set(pages) ^ set(leaves(nav))


def test_every_page_is_in_the_navigation_once():
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    pages += [paths.site_path(path) for path in paths.TEXTS]
    assert unlisted(CONFIG["nav"], pages) == set()
    assert len(leaves(CONFIG["nav"])) == len(pages)
    assert unlisted(CONFIG["nav"], [*pages, "new.md"]) == {"new.md"}


def test_notebooks_are_found_and_have_a_place_in_the_navigation():
    assert "notebooks/the_rule.ipynb" in paths.notebook_paths()
    assert {"Notebooks": []} in CONFIG["nav"]  # `pages/sources.py` fills it


# --- the reference ----------------------------------------------------------------------------------

REFERENCE = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
DESCRIBED = re.findall(r"^::: softjax\.([\w.]+)$", REFERENCE, re.MULTILINE)
IS_LOSS = lambda value: (
    isinstance(value, softjax.Loss)
    or (inspect.isfunction(value) and typing.get_type_hints(value).get("return") is softjax.Loss)
)
PUBLIC = [
    *softjax.__all__,
    *(f"losses.{name}" for name, value in vars(losses).items() if not name.startswith("_") and IS_LOSS(value)),
    *(f"testing.{name}" for name in testing.__all__),
    *(f"engines.{name}" for name in engines.__all__ if name != "Totals"),
]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference_once(name):
    assert DESCRIBED.count(name) == 1


def test_the_reference_has_only_names_that_exist_and_are_public():
    modules = {"losses", "testing", "engines"}
    assert set(DESCRIBED) - set(PUBLIC) == modules


# --- links ------------------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)\s]+)\)")
TITLE = re.compile(r"^#+ (.*)$", re.MULTILINE)


def without_code(path):
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def broken_links(path):
    """The links of a page to files that do not exist, or to titles that their files do not have."""
    broken = []
    for link in LINK.findall(without_code(path)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if re.match(r"\w+:", link):
            continue
        if not target.exists():
            broken.append(link)
        elif anchor:
            titles = [
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in TITLE.findall(target.read_text())
            ]
            broken += [] if anchor in titles else [link]
    return broken


PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_to_titles(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "page.md").write_text(
        "# A title\n[1](#a-title) [2](#no-title) [3](none.md) [4](page.md#none) `[5](none)`"
    )
    assert broken_links(tmp_path / "page.md") == ["#no-title", "none.md", "page.md#none"]


@pytest.mark.parametrize(
    ("path", "link", "wanted"),
    [
        ("README.md", "docs/recipes/README.md", "recipes/README.md"),
        ("README.md", "docs/performance.md#benchmark-on-a-cpu", "performance.md#benchmark-on-a-cpu"),
        ("README.md", "notebooks/the_rule.ipynb", "notebooks/the_rule.md"),
        ("README.zh.md", "README.md", "index.md"),
        ("docs/losses.md", "../notebooks/the_rule.ipynb", "notebooks/the_rule.md"),
        ("docs/recipes/flax.md", "../../benchmarks/results/v5e-compiled.md", "../benchmarks/results/v5e-compiled.md"),
        ("docs/recipes/flax.md", "decoding.md#a-title", "decoding.md#a-title"),
        ("notebooks/the_rule.ipynb", "../docs/mathematics.md", "../mathematics.md"),
        ("README.md", "#figures", "#figures"),
    ],
)
def test_links_are_rewritten_for_the_site(path, link, wanted):
    assert paths.moved_links(f"[a link]({link}), `x[0](1)`", path) == f"[a link]({wanted}), `x[0](1)`"
    code = f"```python\nx = [f]({link})\n```"
    assert paths.moved_links(code, path) == code


def test_a_notebook_becomes_text_code_outputs_and_pictures():
    markdown, pictures = notebook.markdown(ROOT / "notebooks" / "the_rule.ipynb")
    assert markdown.startswith("# One derivative\n")
    assert "```python\nimport jax\n" in markdown  # the magic is left out
    assert "LOE   + tr Var =  EOL" in markdown
    assert pictures
    for name, content in pictures.items():
        assert f"]({name})" in markdown
        assert content.startswith(b"\x89PNG")


def test_names_in_code_are_linked_to_the_reference_and_arguments_are_not(references):
    places = references.places()
    assert set(places) == set(DESCRIBED)
    linked = lambda code: references.linked(code, "recipes/flax.html", places)
    link = '<a href="../reference/{}">{}</a>'.format
    for code in ("<code>softjax.softmax</code>", "<code>softmax(x, axis=-1)</code>"):
        assert linked(code) == link("logits.html#softjax.softmax", code)
    code = "<code>losses.class_weights</code>"
    assert linked(code) == link("losses.html#softjax.losses.class_weights", code)
    for kept in ("<code>softmax</code>", "<code>where</code>", "<pre><code>softjax.softmax</code></pre>"):
        assert linked(kept) == kept


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="`make docs` makes the environment of the pages")
def test_the_site_builds_without_a_warning_and_has_every_name(tmp_path):
    command = [PYTHON, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = "\n".join(path.read_text() for path in tmp_path.rglob("*.html"))
    for name in PUBLIC:
        assert f'id="softjax.{name}"' in site
    for page in leaves(CONFIG["nav"]):
        assert (tmp_path / re.sub(r"(README)?\.md$", lambda end: f"{(end[1] and 'index') or ''}.html", page)).exists()
    for unfinished in ('class="arithmatex"', "language-mermaid", "::: softjax", "jax._src", "Union[", "noqa"):
        assert unfinished not in site
    assert not re.search(r'<(script|link rel="stylesheet"|img)[^>]* (src|href)="https?:', site)


# --- what to cite and how to contribute -------------------------------------------------------------


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == softjax.__version__
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_contributors_have_three_commands_that_exist():
    text, makefile = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "Makefile").read_text()
    commands = re.findall(r"^    make (\w+)", text, re.MULTILINE)
    assert commands == ["demo", "test", "docs"]
    for command in commands:
        assert re.search(rf"^{command}: ", makefile, re.MULTILINE)
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == 15
